//! What a topology is to be like.

use std::path::PathBuf;
use std::time::Duration;

use super::boot::Plan;
use super::{Remains, Topology, TopologyError};
use crate::clock::Rate;
use crate::dirs::Dirs;
use crate::engine::Engine;
use crate::image;
use crate::machine::{Role, Setting, Variant};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::settings::StackSettings;

/// Addresses of a topology's network that are neither the VPS machine's, nor the sidecar's, nor for a machine
/// that moves.
const MOST_GPUS: usize = 48;

/// A topology to be booted.
#[derive(Debug)]
pub struct Builder {
    profile: Profile,
    models: Option<PathBuf>,
    changes: Vec<(Role, String, String)>,
    progress: Progress,
    by_hand: bool,
    rate: Rate,
    run: Option<PathBuf>,
    fleet: Fleet,
    resting: Option<Resting>,
}

/// How many GPU machines there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fleet {
    /// That boot with the topology.
    pub(super) running: usize,
    /// That wait in the rack for a droplet to be made of them.
    pub(super) racked: usize,
    /// What all of them are made of.
    pub(super) variant: Variant,
}

/// Full machines that boot at a time for each processor: an engine's start is a second of one.
const FULL_PER_CORE: usize = 4;
/// Light ones: most of their start is the host's engine at work, which does one thing after the other.
const LIGHT_PER_CORE: usize = 3;

impl Fleet {
    /// What is booted, as `booting the VPS machine and 16 light GPU machines`.
    pub(super) fn title(self) -> String {
        let light = match self.variant {
            Variant::Full => "",
            Variant::Light => "light ",
        };
        match self.running {
            1 if self.variant == Variant::Full => "booting two machines".to_owned(),
            1 => "booting the VPS machine and a light GPU machine".to_owned(),
            count => format!("booting the VPS machine and {count} {light}GPU machines"),
        }
    }

    /// How many machines start at a time: all at once, each would wait for all, and a time-out for one would
    /// be a time-out for every one.
    pub(super) fn at_once(self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let each = match self.variant {
            Variant::Full => FULL_PER_CORE,
            Variant::Light => LIGHT_PER_CORE,
        };
        // The VPS machine takes longest, and begins with the first.
        cores * each + 1
    }
}

/// Volumes to boot on.
#[derive(Debug)]
pub(super) struct Resting {
    pub(super) topology: String,
    pub(super) settings: StackSettings,
    pub(super) remains: Remains,
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
            run: None,
            fleet: Fleet {
                running: 1,
                racked: 0,
                variant: Variant::Full,
            },
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

    /// So many GPU machines, `gpu`, `gpu-2` and so on, each with its own engine and four services. One unless
    /// given. The published ports of the host lead to the first.
    #[must_use]
    pub fn gpus(mut self, count: usize) -> Self {
        self.fleet.running = count.max(1);
        self
    }

    /// GPU machines without an engine: the four services are one small process that answers `/health` at the
    /// same ports, so that dozens fit on one host. Links, names, packets, freezing, power and moves are as on
    /// full machines; what needs an engine is refused with [`FaultError::Light`](crate::fault::FaultError::Light).
    ///
    /// ```no_run
    /// # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
    /// use wopr_harness::Topology;
    ///
    /// let topology = Topology::builder().gpus(16).light().boot().await?;
    /// let nodes = topology.seed_fleet().await?;
    /// assert_eq!(nodes.len(), 16);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn light(mut self) -> Self {
        self.fleet.variant = Variant::Light;
        self
    }

    /// Room for so many machines more, which do not run until a droplet is made of them: see
    /// [`Topology::operate_cloud`]. platform-api is told to be reached by them at `https://wopr-vps:8443`.
    #[must_use]
    pub fn rack(mut self, count: usize) -> Self {
        self.fleet.racked = count;
        self
    }

    /// Directory of the topology's sockets and locks; short, since a Unix socket's path has 107 bytes. What
    /// lies below another is of no concern to a sweep. Unless given: `WOPR_RUN_DIR`.
    #[must_use]
    pub fn run_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.run = Some(directory.into());
        self
    }

    /// Boots the machines, and waits until all services are healthy. Nothing is left when this fails
    /// or is dropped.
    ///
    /// # Errors
    /// [`TopologyError`] with the machine or service, and its last words.
    pub async fn boot(self) -> Result<Topology, TopologyError> {
        self.plan().await?.boot().await
    }

    /// Decides all that a topology is made from, and makes images that are missing.
    pub(crate) async fn plan(self) -> Result<Plan, TopologyError> {
        let asked = self.fleet.running + self.fleet.racked;
        if asked > MOST_GPUS {
            return Err(TopologyError::TooManyMachines {
                asked,
                most: MOST_GPUS,
            });
        }
        let mut dirs = Dirs::find()?;
        if let Some(run) = self.run {
            dirs = dirs.running_in(run)?;
        }
        let engine = Engine::connect().await?;
        let for_tests = StackSettings::for_tests(&dirs)?;
        let defaults = match (&self.resting, self.by_hand) {
            (Some(resting), _) => resting.settings.clone(),
            (None, true) => StackSettings::by_hand(&dirs)?,
            (None, false) => for_tests.clone(),
        };
        if self.rate != Rate::TRUE {
            image::check_clock(&engine, &dirs, &self.profile, &self.progress).await?;
        }
        let set = image::ensure(&engine, &dirs, &self.profile, &for_tests, &self.progress).await?;
        let settings = self
            .changes
            .iter()
            .fold(defaults, |settings, (role, variable, value)| {
                settings.with(*role, variable, value)
            });
        // Those who were told otherwise, by hand or by the builder, are told so still.
        let settings = match self.fleet.racked {
            0 => settings,
            _ => settings.with(Role::Vps, "PLATFORM_URL", &platform_url()),
        };
        Ok(Plan {
            models: self.models.unwrap_or_else(|| dirs.tiny_models()),
            idle: idle_time()?,
            dirs,
            engine,
            set,
            settings,
            by_hand: self.by_hand,
            rate: self.rate,
            fleet: self.fleet,
            resting: self.resting,
            progress: self.progress,
        })
    }
}

/// Where droplets reach platform-api: the VPS machine ends TLS there, by an authority of the topology's own.
fn platform_url() -> String {
    format!(
        "https://{}:{}",
        wopr_machine::paths::VPS_HOST_NAME,
        wopr_machine::paths::PLATFORM_TLS_PORT
    )
}

/// How long a topology stays that nobody uses: `WOPR_POOL_IDLE`, in seconds.
///
/// # Errors
/// [`BadNumber`](crate::env::BadNumber).
pub fn idle_time() -> Result<Duration, crate::env::BadNumber> {
    Ok(Duration::from_secs(
        crate::env::number("WOPR_POOL_IDLE")?.unwrap_or(60),
    ))
}
