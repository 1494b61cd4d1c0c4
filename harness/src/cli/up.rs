//! `wopr up`, `seed`, `restart`, `down`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use wopr_harness::by_hand;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::Engine;
use wopr_harness::image;
use wopr_harness::machine::{BY_HAND, MachineName, Role};
use wopr_harness::profile::Profile;
use wopr_harness::seed::{NodeId, seed};
use wopr_harness::service::Service;
use wopr_harness::settings::StackSettings;
use wopr_harness::topology::{
    Owner, Sweep, Swept, Topology, TopologyError, Volumes, idle_time, list, remove_by_hand, sweep,
};

use wopr_machine::protocol::Request;

use super::{Failure, Outcome, bars};

#[derive(Args)]
pub(crate) struct Up {
    /// Do not seed the GPU node.
    #[arg(long)]
    no_seed: bool,
    /// Directory of the model files; tiny models that are made here unless it is given.
    #[arg(long, value_name = "DIR", env = "WOPR_MODELS_DIR")]
    models: Option<PathBuf>,
    /// So many GPU machines: gpu, gpu-2 and so on. Published ports lead to the first.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=48))]
    gpus: u8,
    /// Room for so many machines more, which droplets become: see `wopr droplet`.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=47))]
    rack: u8,
}

impl Up {
    pub(crate) async fn run(self) -> Outcome {
        let topology = match Topology::by_hand().await {
            Ok(topology) => {
                self.check_size(&topology)?;
                apply(&topology).await?;
                let services = topology.expected_services();
                let task = bars::progress().begin("waiting for the services of the topology that is up");
                topology.until_healthy(&services).await?;
                task.done();
                topology
            }
            Err(wopr_harness::topology::TopologyError::NotUp) => self.boot().await?,
            Err(error) => return Err(error.into()),
        };
        if !self.no_seed {
            let task = bars::progress().begin("seeding, and restarting platform-api");
            let nodes = topology.seed_fleet().await?;
            task.done();
            for node in nodes {
                say!(
                    "node {} is seeded with {}",
                    node.id,
                    topology.address(&node.machine)
                );
            }
        }
        print_ways_in(&topology);
        Ok(ExitCode::SUCCESS)
    }

    /// A topology that is up has the size that it has.
    fn check_size(&self, topology: &Topology) -> Result<(), Failure> {
        let (gpus, places) = (topology.fleet().len(), topology.room());
        let (asked, more) = (usize::from(self.gpus), usize::from(self.rack));
        if asked <= gpus && asked + more <= gpus + places {
            return Ok(());
        }
        Err(format!(
            "the topology that is up has {gpus} GPU machines and room for {places} more, and was to have {asked} and room for {more}: `wopr down` first, its data stays"
        )
        .into())
    }

    async fn boot(&self) -> Result<Topology, Failure> {
        let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
        // Stopped or half of it: what is left of the last boot goes, its data stays.
        remove_by_hand(&engine, &dirs, Volumes::Keep).await?;
        let settings = StackSettings::by_hand(&dirs)?;
        let mut all = settings.of(Role::Vps);
        all.extend(settings.of(Role::Gpu));
        let profile = Profile::from_settings(&all);
        let progress = bars::progress();
        let set = image::ensure(
            &engine,
            &dirs,
            &profile,
            &StackSettings::for_tests(&dirs)?,
            &progress,
        )
        .await?;
        by_hand::write_env(&dirs, &set)?;
        let mut builder = Topology::builder()
            .by_hand()
            .profile(profile)
            .progress(progress)
            .gpus(self.gpus.into())
            .rack(self.rack.into());
        let local = by_hand::settings(&dirs)?;
        let models = self.models.clone().or_else(|| {
            // As compose reads it: relative to the directory of the compose file.
            local
                .get("WOPR_MODELS_DIR")
                .map(|path| dirs.root.join("local").join(path))
        });
        if let Some(models) = models {
            builder = builder.models(std::path::absolute(models)?);
        }
        Ok(builder.boot().await?)
    }
}

/// Brings the stacks to what is in their `.env` files now.
async fn apply(topology: &Topology) -> Result<(), Failure> {
    for machine in topology.machines() {
        let task = bars::progress().begin(format!("applying the settings of {}", machine.name()));
        machine.control().await?.ask(&Request::ApplyStack).await?;
        task.done();
    }
    Ok(())
}

fn print_ways_in(topology: &Topology) {
    let services = topology.expected_services();
    say!("platform-api     {}", topology.url(3100, "/health"));
    say!("platform-ui      {}", topology.url(80, "/"));
    for (service, port) in [
        (Service::LlamaCpp, 8080),
        (Service::Chatterbox, 8081),
        (Service::Whisper, 8082),
        (Service::QwenEmbeddings, 8083),
    ] {
        if services.contains(&service) {
            say!("{service:16} {}", topology.url(port, "/health"));
        }
    }
}

#[derive(Args)]
pub(crate) struct Seed {
    /// Id of the node.
    #[arg(long, value_name = "ID", env = "GPU_NODE_ID", default_value_t = NodeId::default())]
    node: NodeId,
}

impl Seed {
    pub(crate) async fn run(self) -> Outcome {
        let topology = Topology::by_hand().await?;
        let task = bars::progress().begin("seeding, and restarting platform-api");
        seed(&topology, &self.node).await?;
        task.done();
        say!(
            "node {} is seeded with {}",
            self.node,
            topology.address(&wopr_harness::GPU)
        );
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args)]
pub(crate) struct Restart {
    /// vps or gpu.
    machine: MachineName,
    /// A service on it.
    #[arg(value_parser = parse_service)]
    service: Service,
}

/// A service's name, for clap.
pub(crate) fn parse_service(text: &str) -> Result<Service, String> {
    Service::from_name(text).ok_or_else(|| {
        let names: Vec<_> = Service::ALL.iter().map(|service| service.name()).collect();
        format!("no service is called so; there are {}", names.join(", "))
    })
}

/// Refuses a service that runs elsewhere.
pub(crate) fn check_place(machine: &MachineName, service: Service) -> Result<(), Failure> {
    if service.role() == machine.role() {
        return Ok(());
    }
    Err(format!("{service} runs on {}, not on {machine}", service.role()).into())
}

impl Restart {
    pub(crate) async fn run(self) -> Outcome {
        check_place(&self.machine, self.service)?;
        let topology = Topology::by_hand().await?;
        let task = bars::progress().begin(format!("restarting {}", self.service));
        topology.restart(self.service).await?;
        task.done();
        say!("{} is healthy", self.service);
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args)]
pub(crate) struct Down {
    /// Remove the volumes as well: every row, every inner image's changes.
    #[arg(long)]
    volumes: bool,
    /// Remove all other topologies of this user as well, but for those that a running test holds: idle ones
    /// of the pool, and what dead processes left.
    #[arg(long)]
    all: bool,
}

impl Down {
    pub(crate) async fn run(self) -> Outcome {
        let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
        let volumes = if self.volumes {
            Volumes::Remove
        } else {
            Volumes::Keep
        };
        let task = bars::progress().begin("taking the machines down");
        let removed = remove_by_hand(&engine, &dirs, volumes).await?;
        let swept = if self.all {
            sweep(&engine, &dirs, Sweep::Free).await?
        } else {
            Swept::default()
        };
        task.done();
        match removed {
            0 => say!("nothing of topology {BY_HAND} was there"),
            _ => say!(
                "topology {BY_HAND} is gone{}",
                if self.volumes { "" } else { "; its data stays" }
            ),
        }
        say_gone(swept)?;
        if self.all {
            for listed in list(&engine, &dirs).await? {
                if listed.owner != Owner::ByHand {
                    say!("topology {} stays: it belongs to {}", listed.id, listed.owner);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says what is gone; fails by the first that is not.
fn say_gone(swept: Swept) -> Result<(), TopologyError> {
    for id in &swept.gone {
        say!("topology {id} is gone");
    }
    let mut refused = swept.refused.into_iter();
    let first = refused.next();
    for error in refused {
        eprintln!("wopr: {error}");
    }
    first.map_or(Ok(()), Err)
}

/// Removes what dead processes left, and what has been idle for longer than WOPR_POOL_IDLE.
pub(crate) async fn reap() -> Outcome {
    let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
    let task = bars::progress().begin("removing what nobody holds");
    let swept = sweep(&engine, &dirs, Sweep::Expired(idle_time()?)).await?;
    task.done();
    if swept.gone.is_empty() && swept.refused.is_empty() {
        say!("nothing was left behind");
    }
    say_gone(swept)?;
    Ok(ExitCode::SUCCESS)
}
