//! From a request to eight healthy services.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use wopr_machine::protocol::Phase;

use super::builder::{Fleet, Resting};
use super::{Remains, Sweep, Topology, TopologyError, Volumes, sweep};
use crate::by_hand;
use crate::clock::{self, Rate};
use crate::control::Control;
use crate::dirs::{self, Dirs};
use crate::disk;
use crate::engine::{Engine, Lan, Privilege};
use crate::history::Deeds;
use crate::image::ImageSet;
use crate::machine::{BY_HAND, MachineName, Role, RunningMachine, Setting, VPS, Variant};
use crate::models;
use crate::privilege;
use crate::progress::{Progress, Task};
use crate::service::Service;
use crate::settings::StackSettings;

/// A removal takes under a second; one that hangs is the next boot's to try.
const SWEEP: Duration = Duration::from_secs(5);
/// Lines of a machine's log that an error shows.
const SHOWN: usize = 40;

/// All that a topology is made from.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) dirs: Dirs,
    pub(crate) engine: Engine,
    pub(crate) progress: Progress,
    pub(crate) idle: Duration,
    pub(super) set: ImageSet,
    pub(super) settings: StackSettings,
    pub(super) models: PathBuf,
    pub(super) by_hand: bool,
    pub(super) rate: Rate,
    pub(super) fleet: Fleet,
    pub(super) resting: Option<Resting>,
}

/// A place for a topology that is to be booted.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(super) topology: String,
    pub(super) remains: Remains,
}

impl Plan {
    /// The same for one more topology, which nobody hears of.
    pub(crate) fn for_another(&self) -> Self {
        Self {
            dirs: self.dirs.clone(),
            engine: self.engine.clone(),
            progress: Progress::silent(),
            set: self.set.clone(),
            settings: self.settings.clone(),
            models: self.models.clone(),
            resting: None,
            ..*self
        }
    }

    /// The same for topologies that are made from the same: one can stand in for the other.
    pub(crate) fn key(&self) -> String {
        let mut hash = Sha256::new();
        let parts = [
            self.set.id.clone(),
            self.set.machine.clone(),
            self.set.toxiproxy.clone(),
            self.models.display().to_string(),
            self.dirs.root.display().to_string(),
            self.rate.to_string(),
            self.idle.as_secs().to_string(),
            format!("{:?}", self.fleet),
        ];
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(self.settings.digest());
        hex::encode(hash.finalize())[..12].to_owned()
    }

    /// Whether its GPU machines are light.
    pub(crate) fn is_light(&self) -> bool {
        self.fleet.variant == Variant::Light
    }

    /// How machines of a topology of this plan are set.
    pub(super) fn setting(&self, topology: String, control: PathBuf, privilege: Privilege) -> Setting {
        Setting {
            topology,
            root: self.dirs.root.clone(),
            control,
            image: self.set.machine.clone(),
            toxiproxy: self.set.toxiproxy.clone(),
            image_set: self.set.id.clone(),
            models: self.models.clone(),
            gpus: self.fleet.variant,
            addresses: BTreeMap::new(),
            privilege,
            gid: rustix::process::getgid().as_raw(),
            chosen_ports: BTreeMap::new(),
            owner: self.dirs.run.clone(),
            idle: self.idle,
        }
    }

    /// The ways to a topology of this plan that runs.
    pub(crate) async fn attach(
        &self,
        topology: &str,
        addresses: BTreeMap<MachineName, Ipv4Addr>,
        remains: Remains,
    ) -> Result<Topology, TopologyError> {
        let setting = Setting {
            addresses,
            // Of no account: its machines run.
            ..self.setting(
                topology.to_owned(),
                self.dirs.run.join(topology),
                Privilege::Nested,
            )
        };
        let (dirs, engine) = (self.dirs.clone(), self.engine.clone());
        Topology::attach(dirs, engine, setting, self.settings.clone(), self.rate, remains).await
    }

    /// Claims the place of a new topology: from here on it counts, and something answers for its removal.
    pub(crate) fn claim(&mut self) -> Result<Claim, TopologyError> {
        if let Some(resting) = self.resting.take() {
            return Ok(Claim {
                topology: resting.topology,
                remains: resting.remains,
            });
        }
        let topology = new_id();
        let remains = Remains::own(self.engine.clone(), &self.dirs, &topology, self.idle)?;
        Ok(Claim { topology, remains })
    }

    /// Boots one.
    pub(crate) async fn boot(mut self) -> Result<Topology, TopologyError> {
        if self.by_hand {
            let control = self.dirs.by_hand_control()?;
            let chosen_ports = by_hand::ports(&self.dirs)?;
            let remains =
                Remains::of_another(self.engine.clone(), BY_HAND, self.dirs.root.join("local/.run"));
            let claim = Claim {
                topology: BY_HAND.to_owned(),
                remains,
            };
            return self.boot_at(control, chosen_ports, claim).await;
        }
        let claim = self.claim()?;
        self.boot_claimed(claim).await
    }

    /// Boots the one that was claimed.
    pub(crate) async fn boot_claimed(&self, claim: Claim) -> Result<Topology, TopologyError> {
        let control = self.dirs.run.join(&claim.topology);
        self.boot_at(control, BTreeMap::new(), claim).await
    }

    async fn boot_at(
        &self,
        control: PathBuf,
        chosen_ports: BTreeMap<String, u16>,
        claim: Claim,
    ) -> Result<Topology, TopologyError> {
        let (dirs, engine) = (&self.dirs, &self.engine);
        if self.fleet.variant == Variant::Full {
            models::check(&self.models, &self.settings.of(Role::Gpu))?;
        }
        let info = engine.info().await?;
        disk::check(&info.root, disk::for_boot()?, "two machines")?;
        let privilege = privilege::find(engine, &info, dirs, &self.set.machine, &self.progress).await?;
        let task = self.progress.begin(self.fleet.title());
        let swept = sweep_for_a_while(engine, dirs, self.idle);
        let mut setting = self.setting(claim.topology, control, privilege);
        setting.chosen_ports = chosen_ports;
        let booting = Booting {
            dirs: dirs.clone(),
            engine: engine.clone(),
            setting,
            settings: self.settings.clone(),
            rate: self.rate,
            fleet: self.fleet,
            remains: claim.remains,
        };
        let (topology, ()) = tokio::join!(booting.boot(&task), swept);
        let topology = topology?;
        task.done();
        Ok(topology)
    }
}

/// Removes what dead processes left, beside the boot. It neither holds a boot up nor fails it: what would
/// not go is told of, and tried again at the next.
async fn sweep_for_a_while(engine: &Engine, dirs: &Dirs, idle: Duration) {
    match tokio::time::timeout(SWEEP, sweep(engine, dirs, Sweep::Expired(idle))).await {
        Ok(Ok(swept)) => swept.tell_of_refusals(),
        Ok(Err(error)) => eprintln!("wopr: while sweeping what a dead process left: {error}"),
        Err(_) => eprintln!(
            "wopr: sweeping what dead processes left takes longer than {} s; `wopr ps` shows it",
            SWEEP.as_secs()
        ),
    }
}

/// A machine's address on a topology's network.
pub(super) fn place_of(name: &MachineName, lan: &Lan) -> Ipv4Addr {
    let place = match name.number() {
        None => 0,
        Some(0 | 1) => 1,
        // The third place is the sidecar's.
        Some(number) => number + 1,
    };
    lan.address(u8::try_from(place).unwrap_or(u8::MAX))
}

fn new_id() -> String {
    format!("{:06x}", rand::rng().random_range(0..1 << 24))
}

/// Makes a machine's container, on new volumes, and starts it: the machine boots when this returns.
pub(crate) async fn power_on(
    engine: &Engine,
    setting: &Setting,
    settings: &StackSettings,
    name: &MachineName,
) -> Result<(), TopologyError> {
    let control_directory = setting.control_directory(name);
    dirs::make_private(&control_directory)?;
    // By hand the machine reads a person's .env itself, at each of its boots.
    if !setting.by_hand() {
        settings.hand_over(name.role(), &control_directory)?;
    }
    for (volume, labels) in setting.volumes(name) {
        engine
            .create_volume(&volume, labels.into_iter().collect())
            .await?;
    }
    let spec = setting.machine(name);
    let place = (&*setting.network(), setting.addresses[name]);
    engine.start(&spec, Some(place)).await?;
    Ok(())
}

/// Waits until the engine of a machine that was powered on answers.
pub(crate) async fn until_booted(
    engine: &Engine,
    setting: &Setting,
    name: &MachineName,
    on_phase: impl Fn(&Phase),
) -> Result<(), TopologyError> {
    let mut control = Control::connect(name.as_str(), &setting.control_directory(name)).await?;
    let ready = control.until_ready(|status| on_phase(&status.phase)).await;
    if let Err(source) = ready {
        let log = engine.log_tail(&setting.name(name.as_str()), SHOWN).await;
        let log = log.unwrap_or_else(|error| error.to_string());
        return Err(TopologyError::Machine { source, log });
    }
    Ok(())
}

/// What a boot works on.
struct Booting {
    dirs: Dirs,
    engine: Engine,
    setting: Setting,
    settings: StackSettings,
    rate: Rate,
    fleet: Fleet,
    remains: Remains,
}

impl Booting {
    async fn boot(mut self, task: &Task) -> Result<Topology, TopologyError> {
        let by_hand = self.setting.by_hand();
        let deeds = Deeds::default();
        if !by_hand {
            deeds.begin();
        }
        let booted = self.start_machines(task).await;
        let machines = match booted {
            Ok(started) => started,
            Err(error) => return Err(self.give_up(error).await),
        };
        let topology = Topology {
            dirs: self.dirs,
            engine: self.engine,
            setting: self.setting,
            settings: self.settings,
            machines,
            rate: self.rate,
            deeds,
            sidecar: OnceCell::new(),
            remains: self.remains,
        };
        task.detail("waiting for the services");
        let healthy = async {
            topology.until_all_healthy().await?;
            let recorded = async {
                match by_hand {
                    // A person asks for it.
                    true => Ok(()),
                    false => topology.record_rows().await,
                }
            };
            tokio::try_join!(recorded, topology.prove_clock()).map(drop)
        };
        match healthy.await {
            Ok(()) => Ok(topology),
            // By hand it stays, so that a person can look into it.
            Err(error) if by_hand => Err(error),
            Err(error) => {
                topology.down().await?;
                Err(error)
            }
        }
    }

    /// A boot that failed leaves nothing; by hand too, when not even the machines came up. Why it failed is what
    /// its caller has to know: that something is left, as while the engine is away, is told of beside it.
    async fn give_up(&mut self, error: TopologyError) -> TopologyError {
        let volumes = if self.setting.by_hand() {
            Volumes::Keep
        } else {
            Volumes::Remove
        };
        if let Err(left) = self.remains.remove(volumes).await {
            eprintln!("wopr: after a boot that failed: {left}");
        }
        error
    }

    async fn start_machines(
        &mut self,
        task: &Task,
    ) -> Result<BTreeMap<MachineName, RunningMachine>, TopologyError> {
        let lan = self.make_network().await?;
        let Fleet { running, racked, .. } = self.fleet;
        self.setting.addresses.insert(VPS, lan.address(0));
        for name in (1..=running + racked).map(MachineName::gpu) {
            let address = place_of(&name, &lan);
            self.setting.addresses.insert(name, address);
        }
        let starting = [VPS].into_iter().chain((1..=running).map(MachineName::gpu));
        let at_once = self.fleet.at_once();
        let started = starting.map(|name| self.start_machine(name, task));
        let mut machines: Vec<_> = stream::iter(started)
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        for number in running + 1..=running + racked {
            machines.push(self.rack_machine(MachineName::gpu(number)).await?);
        }
        Ok(machines
            .into_iter()
            .map(|machine| (machine.name().clone(), machine))
            .collect())
    }

    /// A machine that has a name, an address, and no container yet.
    async fn rack_machine(&self, name: MachineName) -> Result<RunningMachine, TopologyError> {
        let (control, address) = (
            self.setting.control_directory(&name),
            self.setting.addresses[&name],
        );
        dirs::make_private(&control)?;
        let (container, variant) = (self.setting.name(name.as_str()), self.setting.variant(&name));
        let host = self.engine.clone();
        let machine = RunningMachine::connect(name, host, container, control, address, variant).await?;
        machine.set_racked(true);
        Ok(machine)
    }

    async fn make_network(&self) -> Result<Lan, TopologyError> {
        let name = self.setting.network();
        let labels = self.setting.network_labels().into_iter().collect();
        if self.setting.by_hand() {
            self.engine.create_lan_at(&name, Lan::BY_HAND, labels).await?;
            return Ok(Lan::BY_HAND);
        }
        let lock = self.dirs.state.join("subnets.lock");
        Ok(self.engine.create_lan(&name, labels, &lock).await?)
    }

    async fn start_machine(&self, name: MachineName, task: &Task) -> Result<RunningMachine, TopologyError> {
        let control_directory = self.setting.control_directory(&name);
        dirs::make_private(&control_directory)?;
        if !self.setting.by_hand() && name.role() == Role::Vps {
            clock::write(&control_directory, self.rate)
                .map_err(TopologyError::io("set the clock in", &control_directory))?;
        }
        power_on(&self.engine, &self.setting, &self.settings, &name).await?;
        until_booted(&self.engine, &self.setting, &name, |phase| {
            task.detail(&format!("{name}: {phase}"));
        })
        .await?;
        let container = self.setting.name(name.as_str());
        let (address, variant) = (self.setting.addresses[&name], self.setting.variant(&name));
        let host = self.engine.clone();
        let machine = RunningMachine::connect(name, host, container, control_directory, address, variant);
        Ok(machine.await?)
    }
}

impl Topology {
    /// Looks at the time of two of platform-api's answers: it runs as fast as was asked.
    async fn prove_clock(&self) -> Result<(), TopologyError> {
        if self.rate == Rate::TRUE {
            return Ok(());
        }
        let dial = self.dial();
        let asked_first = Instant::now();
        let first = dial.time().await?;
        let answered_first = Instant::now();
        // Long enough for whole seconds to tell, whatever the rate.
        tokio::time::sleep(
            self.rate
                .real(clock::seconds(15.0))
                .max(Duration::from_millis(100)),
        )
        .await;
        let asked_second = Instant::now();
        let second = dial.time().await?;
        let found = clock::Paces {
            least: asked_second - answered_first,
            most: asked_first.elapsed(),
            platform: second.duration_since(first).unwrap_or_default(),
        };
        if !found.show(self.rate) {
            let state = self.machine(&VPS).service(Service::PlatformApi).await?;
            let image = state.map_or_else(|| "platform-api".to_owned(), |state| state.image);
            let asked = self.rate;
            return Err(clock::ClockError::Wrong { image, asked, found }.into());
        }
        Ok(())
    }
}
