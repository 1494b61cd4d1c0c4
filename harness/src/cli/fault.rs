//! `wopr fault`, `faults`, `heal`, `watch`.

mod clock;
mod dns;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use wopr_harness::Topology;
use wopr_harness::fault::{self, End, Manner, Names, Stream, Toxic};
use wopr_harness::machine::MachineName;
use wopr_harness::service::Service;

use clock::Timing;
use dns::Naming;

use super::up::parse_service;
use super::{Failure, Outcome};

/// How long a fault lasts.
#[derive(Args)]
pub(crate) struct Lasting {
    /// Heal after this long, as `90s` or `5m`; on Ctrl-C unless it is given.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
}

/// A link, and which part of it.
#[derive(Args)]
pub(crate) struct Place {
    /// Who opens connections: a machine (vps, gpu), or a service alone, as platform-api.
    from: End,
    /// Where they lead: the other machine, or a service.
    to: End,
    /// One port of it; all unless it is given.
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    lasting: Lasting,
}

/// A service, or a machine as a whole.
#[derive(Clone)]
enum Target {
    Machine(MachineName),
    Service(Service),
}

fn parse_target(text: &str) -> Result<Target, String> {
    match text.parse() {
        Ok(machine) => Ok(Target::Machine(machine)),
        Err(_) => parse_service(text)
            .map(Target::Service)
            .map_err(|error| format!("{error}; the machines are vps and gpu")),
    }
}

/// What to harm.
#[derive(Args)]
pub(crate) struct What {
    /// A service, or a machine as a whole: vps or gpu.
    #[arg(value_parser = parse_target)]
    target: Target,
    #[command(flatten)]
    lasting: Lasting,
}

/// A machine.
#[derive(Args)]
pub(crate) struct Whole {
    /// The machine: vps or gpu.
    machine: MachineName,
    #[command(flatten)]
    lasting: Lasting,
}

/// A service.
#[derive(Args)]
pub(crate) struct Which {
    /// The service.
    #[arg(value_parser = parse_service)]
    service: Service,
    #[command(flatten)]
    lasting: Lasting,
}

#[derive(Subcommand)]
pub(crate) enum Fault {
    /// Cut both machines off from each other, in both directions; or a link's two ends, where they are named.
    Partition {
        /// One end: a machine (vps, gpu), or a service alone.
        #[arg(default_value = "vps")]
        from: End,
        /// The other end.
        #[arg(default_value = "gpu")]
        to: End,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// Let packets of a link vanish.
    Drop(Place),
    /// Reset connections of a link.
    Reset(Place),
    /// Tell the sender that no way leads there.
    Unreachable(Place),
    /// Refuse new connections of a link; those that flow live on.
    RefuseNew(Place),
    /// Let new connections of a link not come about; those that flow live on.
    DropNew(Place),
    /// Let connections that flow now stand still, as a cable pulled and put back does; new ones come about.
    CutFlowing(Place),
    /// Delay the answers of one port of a link, through the Toxiproxy sidecar.
    Latency {
        /// By how much, as `2s`.
        #[arg(value_parser = humantime::parse_duration)]
        by: Duration,
        #[command(flatten)]
        place: Place,
    },
    /// Let answers of one port of a link pass at so many kilobytes a second, through the Toxiproxy sidecar.
    Bandwidth {
        /// Kilobytes a second; none pass at 0.
        rate: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Answer wrongly, late or not at all when services of the VPS machine ask for a name.
    Dns {
        /// The name, as wopr-gpu.
        name: String,
        #[command(subcommand)]
        naming: Naming,
    },
    /// Change platform-api's clock, which local/vps/.env prepares it for (WOPR_CLOCK_LIBRARY).
    #[command(subcommand)]
    Clock(Timing),
    /// Lose packets of a link at random.
    Loss {
        /// Share of the packets, from 0 to 1.
        #[arg(long, default_value_t = 0.1)]
        share: f64,
        #[command(flatten)]
        place: Place,
    },
    /// Stop a service, or shut a machine down.
    Stop(What),
    /// Kill a service, or cut a machine's power.
    Kill(What),
    /// Freeze a service or a machine: it accepts, and says nothing.
    Pause(What),
    /// Take a machine off the network.
    Disconnect(Whole),
    /// Reboot a machine at another address, and back at its own when this heals: its row is stale meanwhile.
    Readdress {
        /// Let its name lead to the old address, as with a resolver that was not told.
        #[arg(long)]
        stale_name: bool,
        #[command(flatten)]
        whole: Whole,
    },
    /// Fill the database's disk: postgres is restarted on it, and answers no query.
    DiskFull(Lasting),
    /// Kill a service's process, which its engine starts again; nothing is left to heal.
    Crash {
        /// The service.
        #[arg(value_parser = parse_service)]
        service: Service,
    },
    /// Reboot a machine; nothing is left to heal.
    Reboot {
        /// The machine: vps or gpu.
        machine: MachineName,
        /// Cut its power in place of shutting it down.
        #[arg(long)]
        power_cut: bool,
    },
    /// Kill a machine's engine, which comes back with its services; nothing is left to heal.
    KillEngine {
        /// The machine: vps or gpu.
        machine: MachineName,
    },
    /// Answer in a service's place with a status.
    Status {
        /// HTTP status.
        #[arg(long, default_value_t = 503)]
        code: u16,
        /// Wait so long before the answer.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s")]
        after: Duration,
        #[command(flatten)]
        which: Which,
    },
    /// Answer in a service's place with headers, and never a body.
    Hang(Which),
}

impl Fault {
    pub(crate) async fn run(self) -> Outcome {
        let topology = Topology::by_hand().await?;
        let link = |place: &Place| {
            let link = topology.link(place.from.clone(), place.to.clone());
            match place.port {
                Some(port) => link.port(port),
                None => link,
            }
        };
        let (fault, lasting) = match self {
            Self::Partition { from, to, lasting } => (topology.link(from, to).partition().await?, lasting),
            Self::RefuseNew(place) => (link(&place).refuse_new().await?, place.lasting),
            Self::DropNew(place) => (link(&place).drop_new().await?, place.lasting),
            Self::CutFlowing(place) => (link(&place).cut_flowing().await?, place.lasting),
            Self::Latency { by, place } => {
                let jitter = Duration::ZERO;
                let toxic = Toxic::Latency { latency: by, jitter };
                (
                    link(&place).toxic(toxic, Stream::Downstream).await?,
                    place.lasting,
                )
            }
            Self::Bandwidth { rate, place } => {
                let toxic = Toxic::Bandwidth { rate };
                (
                    link(&place).toxic(toxic, Stream::Downstream).await?,
                    place.lasting,
                )
            }
            Self::Dns { name, naming } => naming.begin(&topology.dns_name(&name)).await?,
            Self::Clock(timing) => timing.begin(topology.clock()).await?,
            Self::Drop(place) => (link(&place).drop_packets().await?, place.lasting),
            Self::Reset(place) => (link(&place).reset().await?, place.lasting),
            Self::Unreachable(place) => (link(&place).unreachable().await?, place.lasting),
            Self::Loss { share, place } => (link(&place).lose(share).await?, place.lasting),
            Self::Stop(what) => match what.target {
                Target::Service(service) => (topology.stop_service(service).await?, what.lasting),
                Target::Machine(machine) => (topology.stop_machine(&machine).await?, what.lasting),
            },
            Self::Kill(what) => match what.target {
                Target::Service(service) => (topology.kill_service(service).await?, what.lasting),
                Target::Machine(machine) => (topology.kill_machine(&machine).await?, what.lasting),
            },
            Self::Pause(what) => match what.target {
                Target::Service(service) => (topology.pause_service(service).await?, what.lasting),
                Target::Machine(machine) => (topology.pause_machine(&machine).await?, what.lasting),
            },
            Self::Disconnect(whole) => (topology.disconnect_machine(&whole.machine).await?, whole.lasting),
            Self::DiskFull(lasting) => (topology.fill_disk().await?, lasting),
            Self::Readdress { stale_name, whole } => return readdress(&topology, whole, stale_name).await,
            Self::Crash { service } => {
                topology.crash_service(service).await?;
                say!("{service} was killed, and is well again");
                return Ok(ExitCode::SUCCESS);
            }
            Self::Reboot { machine, power_cut } => {
                match power_cut {
                    true => topology.power_cut(&machine).await?,
                    false => topology.reboot(&machine).await?,
                }
                say!("{machine} has rebooted at {}", topology.address(&machine));
                return Ok(ExitCode::SUCCESS);
            }
            Self::KillEngine { machine } => {
                topology.kill_engine(&machine).await?;
                say!("the engine of {machine} was killed, and is back");
                return Ok(ExitCode::SUCCESS);
            }
            Self::Status { code, after, which } => {
                let after_ms = u64::try_from(after.as_millis())?;
                let manner = Manner::Status { code, after_ms };
                (topology.impersonate(which.service, manner).await?, which.lasting)
            }
            Self::Hang(which) => (
                topology
                    .impersonate(which.service, Manner::HeadersThenHang)
                    .await?,
                which.lasting,
            ),
        };
        hold(fault, &lasting).await
    }
}

async fn hold(fault: fault::Fault, lasting: &Lasting) -> Outcome {
    let name = fault.name().to_owned();
    say!("in effect: {name}");
    for line in fault.receipt().to_string().lines() {
        say!("{line}");
    }
    until_over(lasting).await?;
    fault.heal().await?;
    say!("healed: {name}");
    Ok(ExitCode::SUCCESS)
}

/// A machine that moved has no handle: it goes back to its own address when the time is over.
async fn readdress(topology: &Topology, whole: Whole, stale_name: bool) -> Outcome {
    let names = if stale_name { Names::Stale } else { Names::Follow };
    let before = topology.address(&whole.machine);
    let machine = whole.machine;
    let address = topology.reboot_at_new_address(&machine, names).await?;
    say!("in effect: {machine} is at {address} and no longer at {before}");
    until_over(&whole.lasting).await?;
    topology.reboot_at(&machine, before, names).await?;
    say!("healed: {machine} is at {before} again");
    Ok(ExitCode::SUCCESS)
}

/// Waits for the end of its time, else for Ctrl-C.
async fn until_over(lasting: &Lasting) -> Result<(), Failure> {
    let ended = async {
        match lasting.time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    if lasting.time.is_none() {
        say!("Ctrl-C heals it");
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = ended => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// `wopr faults`.
pub(crate) async fn list() -> Outcome {
    let faults = Topology::by_hand().await?.faults().await?;
    if faults.is_empty() {
        say!("no fault is in effect");
    }
    for (machine, name) in faults {
        say!("{name} (held by {machine})");
    }
    Ok(ExitCode::SUCCESS)
}

/// `wopr heal`.
pub(crate) async fn heal() -> Outcome {
    let topology = Topology::by_hand().await?;
    let healed = topology.heal_all().await?;
    let left = topology.faults().await?;
    if !left.is_empty() {
        let names: Vec<_> = left.into_iter().map(|(_, name)| name).collect();
        return Err(Failure::from(format!("still in effect: {}", names.join(", "))));
    }
    match healed.as_slice() {
        [] => say!("no fault was in effect"),
        healed => healed
            .iter()
            .for_each(|(machine, name)| say!("healed: {name} (on {machine})")),
    }
    Ok(ExitCode::SUCCESS)
}

/// `wopr watch`: until Ctrl-C.
pub(crate) async fn watch() -> Outcome {
    let topology = Topology::by_hand().await?;
    let mut events = topology.events().await?;
    say!("watching; Ctrl-C ends it");
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Ok(ExitCode::SUCCESS);
            }
        };
        let at = std::time::UNIX_EPOCH + Duration::from_micros(u64::try_from(event.at_us)?);
        say!("{}  {}", humantime::format_rfc3339_millis(at), event.what);
    }
}
