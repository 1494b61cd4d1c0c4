//! From a request to eight healthy services.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use rand::RngExt as _;

use super::remains::Remains;
use super::{Topology, TopologyError, Volumes, sweep};
use tokio::sync::OnceCell;

use crate::by_hand;
use crate::clock::{self, Rate};
use crate::control::Control;
use crate::dirs::{self, Dirs};
use crate::engine::{Engine, Lan};
use crate::history::Deeds;
use crate::image;
use crate::machine::{BY_HAND, GPU, MachineName, Role, RunningMachine, Setting, VPS};
use crate::models;
use crate::privilege;
use crate::profile::Profile;
use crate::progress::{Progress, Task};
use crate::service::Service;
use crate::settings::StackSettings;

/// A removal takes under a second; one that hangs is the next boot's to try.
const SWEEP: Duration = Duration::from_secs(5);
/// Lines of a machine's log that an error shows.
const SHOWN: usize = 40;
/// A service is asked before its machine has a port for it; a connection attempt is cheap to repeat.
const CONNECT: Duration = Duration::from_millis(250);

/// A topology to be booted.
#[derive(Debug)]
pub struct Builder {
    profile: Profile,
    models: Option<PathBuf>,
    changes: Vec<(Role, String, String)>,
    progress: Progress,
    by_hand: bool,
    rate: Rate,
    resting: Option<Resting>,
}

/// Volumes to boot on.
#[derive(Debug)]
struct Resting {
    topology: String,
    settings: StackSettings,
    remains: Remains,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            profile: Profile::from_environment(),
            models: None,
            changes: Vec::new(),
            progress: Progress::lines_after(Duration::from_secs(5)),
            by_hand: false,
            rate: Rate::TRUE,
            resting: None,
        }
    }

    pub(super) fn on_volumes_of(setting: &Setting, settings: StackSettings, remains: Remains) -> Self {
        let resting = Resting {
            topology: setting.topology.clone(),
            settings,
            remains,
        };
        Self {
            models: Some(setting.models.clone()),
            resting: Some(resting),
            ..Self::new()
        }
    }

    /// The topology that people use: fixed ports and names, and it stays when its handle is dropped.
    #[must_use]
    pub fn by_hand(mut self) -> Self {
        self.by_hand = true;
        self
    }

    /// Where images come from. Unless given: the environment, as `PLATFORM_API_IMAGE`.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Directory of models. Unless given: tiny ones that are made here.
    #[must_use]
    pub fn models(mut self, directory: impl Into<PathBuf>) -> Self {
        self.models = Some(directory.into());
        self
    }

    /// Changes a setting of a stack, as its `.env` would.
    #[must_use]
    pub fn with(mut self, role: Role, variable: &str, value: &str) -> Self {
        self.changes.push((role, variable.to_owned(), value.to_owned()));
        self
    }

    /// How fast platform-api's time runs; true unless given.
    #[must_use]
    pub fn rate(mut self, rate: Rate) -> Self {
        self.rate = rate;
        self
    }

    /// Who hears how it goes. Unless given: standard error, once it takes longer than a few seconds.
    #[must_use]
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Boots the machines, and waits until all services are healthy. Nothing is left when this fails
    /// or is dropped.
    ///
    /// # Errors
    /// [`TopologyError`] with the machine or service, and its last words.
    pub async fn boot(self) -> Result<Topology, TopologyError> {
        let dirs = Dirs::find()?;
        let engine = Engine::connect().await?;
        let defaults = match (&self.resting, self.by_hand) {
            (Some(resting), _) => resting.settings.clone(),
            (None, true) => StackSettings::by_hand(&dirs)?,
            (None, false) => StackSettings::for_tests(&dirs)?,
        };
        let set = image::ensure(
            &engine,
            &dirs,
            &self.profile,
            &StackSettings::for_tests(&dirs)?,
            &self.progress,
        )
        .await?;
        let privilege = privilege::find(&engine, &dirs, &set.machine, &self.progress).await?;
        let settings = self
            .changes
            .iter()
            .fold(defaults, |settings, (role, variable, value)| {
                settings.with(*role, variable, value)
            });
        let chosen_ports = if self.by_hand {
            by_hand::ports(&dirs)?
        } else {
            BTreeMap::new()
        };
        let models = self.models.clone().unwrap_or_else(|| dirs.tiny_models());
        models::check(&models, &settings.of(Role::Gpu))?;

        let task = self.progress.begin("booting two machines");
        let (sweep_engine, sweep_dirs) = (engine.clone(), dirs.clone());
        let swept = sweep_for_a_while(&sweep_engine, &sweep_dirs);
        let setting = |topology: String, control: PathBuf| Setting {
            topology,
            root: dirs.root.clone(),
            control,
            image: set.machine.clone(),
            toxiproxy: set.toxiproxy.clone(),
            image_set: set.id.clone(),
            models,
            addresses: BTreeMap::new(),
            privilege,
            gid: rustix::process::getgid().as_raw(),
            chosen_ports: chosen_ports.clone(),
            owner: dirs.run.clone(),
        };
        let (setting, remains) = if self.by_hand {
            let control = dirs.by_hand_control()?;
            let remains = Remains::of_another(engine.clone(), BY_HAND, dirs.root.join("local/.run"));
            (setting(BY_HAND.to_owned(), control), remains)
        } else if let Some(resting) = self.resting {
            (
                setting(resting.topology.clone(), dirs.run.join(&resting.topology)),
                resting.remains,
            )
        } else {
            let topology = new_id();
            let remains = Remains::own(engine.clone(), &dirs, &topology)?;
            (setting(topology.clone(), dirs.run.join(&topology)), remains)
        };
        let booting = Booting {
            dirs,
            engine,
            setting,
            settings,
            rate: self.rate,
            remains,
        };
        let (topology, ()) = tokio::join!(booting.boot(&task), swept);
        let topology = topology?;
        task.done();
        Ok(topology)
    }
}

/// Removes what dead processes left, beside the boot. It neither holds a boot up nor fails it: what would
/// not go is told of, and tried again at the next.
async fn sweep_for_a_while(engine: &Engine, dirs: &Dirs) {
    match tokio::time::timeout(SWEEP, sweep(engine, dirs)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => eprintln!("wopr: while sweeping what a dead process left: {error}"),
        Err(_) => eprintln!(
            "wopr: sweeping what dead processes left takes longer than {} s; `wopr ps` shows it",
            SWEEP.as_secs()
        ),
    }
}

fn new_id() -> String {
    format!("{:06x}", rand::rng().random_range(0..1 << 24))
}

/// What a boot works on.
struct Booting {
    dirs: Dirs,
    engine: Engine,
    setting: Setting,
    settings: StackSettings,
    rate: Rate,
    remains: Remains,
}

impl Booting {
    async fn boot(mut self, task: &Task) -> Result<Topology, TopologyError> {
        let by_hand = self.setting.by_hand();
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
            deeds: Deeds::default(),
            sidecar: OnceCell::new(),
            remains: self.remains,
        };
        task.detail("waiting for the services");
        let services: Vec<Service> = topology.expected_services();
        let healthy = async {
            topology.until_healthy(&services).await?;
            topology.prove_clock().await
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

    /// A boot that failed leaves nothing; by hand too, when not even the machines came up.
    async fn give_up(&mut self, error: TopologyError) -> TopologyError {
        let volumes = if self.setting.by_hand() {
            Volumes::Keep
        } else {
            Volumes::Remove
        };
        match self.remains.remove(volumes).await {
            Ok(()) => error,
            Err(second) => second,
        }
    }

    async fn start_machines(
        &mut self,
        task: &Task,
    ) -> Result<BTreeMap<MachineName, RunningMachine>, TopologyError> {
        let lan = self.make_network().await?;
        let names = [VPS, GPU];
        for (place, name) in (0..).zip(&names) {
            self.setting.addresses.insert(name.clone(), lan.address(place));
        }
        let (vps, gpu) = tokio::try_join!(self.start_machine(&VPS, task), self.start_machine(&GPU, task))?;
        Ok([vps, gpu]
            .into_iter()
            .map(|machine| (machine.name().clone(), machine))
            .collect())
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

    async fn start_machine(&self, name: &MachineName, task: &Task) -> Result<RunningMachine, TopologyError> {
        let control_directory = self.setting.control_directory(name);
        dirs::make_private(&control_directory)?;
        if !self.setting.by_hand() && name.role() == Role::Vps {
            clock::write(&control_directory, self.rate)
                .map_err(TopologyError::io("set the clock in", &control_directory))?;
        }
        // By hand the machine reads a person's .env itself, at each of its boots.
        if !self.setting.by_hand() {
            self.settings.hand_over(name.role(), &control_directory)?;
        }
        for (volume, labels) in self.setting.volumes(name) {
            self.engine
                .create_volume(&volume, labels.into_iter().collect())
                .await?;
        }
        let spec = self.setting.machine(name);
        let address = self.setting.addresses[name];
        self.engine
            .start(&spec, Some((&self.setting.network(), address)))
            .await?;
        let mut control = Control::connect(name.as_str(), &control_directory).await?;
        let ready = control
            .until_ready(|status| task.detail(&format!("{name}: {}", status.phase)))
            .await;
        if let Err(source) = ready {
            let log = self.engine.log_tail(&spec.name, SHOWN).await?;
            return Err(TopologyError::Machine { source, log });
        }
        let machine = RunningMachine::connect(
            name.clone(),
            self.engine.clone(),
            spec.name,
            control_directory,
            address,
        );
        Ok(machine.await?)
    }
}

impl Topology {
    /// The topology that was started by hand, by `wopr up` or by compose.
    ///
    /// # Errors
    /// [`TopologyError::NotUp`] when its machines do not run.
    pub async fn by_hand() -> Result<Self, TopologyError> {
        let dirs = Dirs::find()?;
        let engine = Engine::connect().await?;
        let settings = StackSettings::by_hand(&dirs)?;
        let mut setting = Setting {
            topology: BY_HAND.to_owned(),
            root: dirs.root.clone(),
            control: dirs.by_hand_control()?,
            image: String::new(),
            toxiproxy: String::new(),
            image_set: String::new(),
            models: dirs.tiny_models(),
            addresses: BTreeMap::from([(VPS, Lan::BY_HAND.address(0)), (GPU, Lan::BY_HAND.address(1))]),
            privilege: crate::engine::Privilege::Nested,
            gid: rustix::process::getgid().as_raw(),
            chosen_ports: BTreeMap::new(),
            owner: dirs.run.clone(),
        };
        let mut machines = BTreeMap::new();
        for name in [VPS, GPU] {
            let container = setting.name(name.as_str());
            let state = engine
                .container(&container)
                .await?
                .filter(|state| state.running || state.paused);
            let state = state.ok_or(TopologyError::NotUp)?;
            setting.image = state.image;
            let (directory, address) = (setting.control_directory(&name), setting.addresses[&name]);
            let machine =
                RunningMachine::connect(name.clone(), engine.clone(), container, directory, address).await?;
            machines.insert(name, machine);
        }
        let remains = Remains::of_another(engine.clone(), BY_HAND, dirs.root.join("local/.run"));
        Ok(Self {
            dirs,
            engine,
            setting,
            settings,
            machines,
            rate: Rate::TRUE,
            deeds: Deeds::default(),
            sidecar: OnceCell::new(),
            remains,
        })
    }

    /// Looks at the time of two of platform-api's answers: it runs as fast as was asked.
    async fn prove_clock(&self) -> Result<(), TopologyError> {
        if self.rate == Rate::TRUE {
            return Ok(());
        }
        let asked_first = Instant::now();
        let first = self.platform_time().await?;
        let answered_first = Instant::now();
        // Long enough for whole seconds to tell, whatever the rate.
        tokio::time::sleep(
            self.rate
                .real(clock::seconds(15.0))
                .max(Duration::from_millis(100)),
        )
        .await;
        let asked_second = Instant::now();
        let second = self.platform_time().await?;
        let (least, most) = (asked_second - answered_first, asked_first.elapsed());
        let passed = second.duration_since(first).unwrap_or_default();
        Ok(clock::judge(self.rate, least, most, passed)?)
    }

    async fn platform_time(&self) -> Result<SystemTime, TopologyError> {
        let asked = self.http().get(self.url(3100, "/health")).send().await;
        let no_date = |reason: String| TopologyError::Clock(clock::ClockError::NoDate(reason));
        let answer = asked.map_err(|error| no_date(error.to_string()))?;
        let date = answer
            .headers()
            .get(reqwest::header::DATE)
            .and_then(|date| date.to_str().ok());
        let date = date.ok_or_else(|| no_date(format!("{:?}", answer.headers())))?;
        httpdate::parse_http_date(date).map_err(|error| no_date(format!("{date:?}: {error}")))
    }

    /// Services that the settings ask for: the GPU stack's profiles may leave some out.
    pub fn expected_services(&self) -> Vec<Service> {
        let gpu = self.settings.of(Role::Gpu);
        let profiles = gpu
            .get("COMPOSE_PROFILES")
            .map_or("llm,voice", String::as_str)
            .to_owned();
        let wanted = |service: &Service| match service.profile() {
            Some(profile) => profiles.split(',').any(|given| given.trim() == profile),
            None => true,
        };
        Service::ALL.into_iter().filter(wanted).collect()
    }

    /// A client for one request at a time on a new connection each: no connection of before a fault is
    /// taken for one of after it.
    pub(crate) fn http(&self) -> reqwest::Client {
        let client = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT);
        client.build().unwrap_or_default()
    }
}
