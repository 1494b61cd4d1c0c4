//! The end of a topology: everything that carries its label goes, and that is read back.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use wopr_machine::paths::CONTROL_SOCKET;
use wopr_machine::protocol::Request;

use super::{TopologyError, keeper};
use crate::by_hand;
use crate::control::Control;
use crate::dirs::Dirs;
use crate::engine::{Engine, EngineError, LABEL_OWNER, LABEL_TOPOLOGY};
use crate::lease::{self, Held, Standing};
use crate::machine::BY_HAND;

/// A removal that the engine is still busy with shows as a leftover for a moment.
const ROUNDS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);
/// A machine that runs answers at once; one that does not has nothing frozen.
const THAW: Duration = Duration::from_millis(500);
/// The database gets the time to write what it has.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// A directory younger than this may be one that is just being made.
const SETTLED: Duration = Duration::from_secs(60);

/// What becomes of a topology's volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    /// They stay, for the next boot.
    Keep,
    /// They go, and all data with them.
    Remove,
}

/// What is there of a topology.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Containers, by name.
    pub containers: Vec<String>,
    /// Networks, by id.
    pub networks: Vec<String>,
    /// Volumes, by name.
    pub volumes: Vec<String>,
    /// Directories of the host.
    pub directories: Vec<PathBuf>,
}

impl Leftovers {
    /// What of `topology` is on the host.
    pub(crate) async fn of(engine: &Engine, topology: &str) -> Result<Self, EngineError> {
        let label = format!("{LABEL_TOPOLOGY}={topology}");
        let (containers, networks, volumes) = tokio::try_join!(
            engine.containers_with_label(&label),
            engine.networks_with_label(&label),
            engine.volumes_with_label(&label),
        )?;
        let mut volumes = volumes;
        if topology != BY_HAND {
            // A container that was being made while its volumes were removed makes them anew, without labels.
            let named = engine.volumes_with_prefix(&format!("wopr-{topology}-")).await?;
            volumes.extend(
                named
                    .into_iter()
                    .filter(|name| !volumes.contains(name))
                    .collect::<Vec<_>>(),
            );
        }
        Ok(Self {
            containers,
            networks,
            volumes,
            directories: Vec::new(),
        })
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directories: Vec<_> = self
            .directories
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let parts = [
            ("container", &self.containers),
            ("network", &self.networks),
            ("volume", &self.volumes),
            ("directory", &directories),
        ];
        let shown = parts.iter().filter(|(_, names)| !names.is_empty());
        let shown: Vec<_> = shown
            .map(|(kind, names)| format!("{kind} {}", names.join(", ")))
            .collect();
        f.write_str(if shown.is_empty() { "nothing" } else { "" })?;
        f.write_str(&shown.join("; "))
    }
}

/// What happens when the handle of a topology is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtDrop {
    /// It stays: somebody started it by hand.
    Stay,
    /// It goes.
    Go,
}

/// What has to be removed of a topology, from the moment in which the first of it may exist.
#[derive(Debug)]
pub(crate) struct Remains {
    engine: Engine,
    topology: String,
    directory: PathBuf,
    at_drop: AtDrop,
    /// The kernel lets go of it when this process ends, however it ends.
    lease: Option<Held>,
}

impl Remains {
    /// Makes the topology's directory, and takes its lease.
    pub(crate) fn own(
        engine: Engine,
        dirs: &Dirs,
        topology: &str,
        idle: Duration,
    ) -> Result<Self, TopologyError> {
        let directory = dirs.run.join(topology);
        crate::dirs::make_private(&directory)?;
        let lease = Held::make(&directory).map_err(TopologyError::io("make the lease in", &directory))?;
        keeper::start(topology, &directory, engine.socket(), idle)?;
        Ok(Self::taken(engine, topology, directory, lease))
    }

    /// Answers from now on for a topology whose lease was taken.
    pub(crate) fn taken(engine: Engine, topology: &str, directory: PathBuf, lease: Held) -> Self {
        Self {
            engine,
            topology: topology.to_owned(),
            directory,
            at_drop: AtDrop::Go,
            lease: Some(lease),
        }
    }

    /// Lets go of a topology that stays, clean, for the next to take.
    pub(crate) fn let_go(mut self) -> Result<(), TopologyError> {
        self.at_drop = AtDrop::Stay;
        match self.lease.take() {
            Some(lease) => lease
                .let_go()
                .map_err(TopologyError::io("let go of", &self.directory)),
            None => Ok(()),
        }
    }

    /// Looks after a topology that outlives this process.
    pub(crate) fn of_another(engine: Engine, topology: &str, directory: PathBuf) -> Self {
        Self {
            engine,
            topology: topology.to_owned(),
            directory,
            at_drop: AtDrop::Stay,
            lease: None,
        }
    }

    /// The same, by another connection to the engine.
    pub(crate) fn with_engine(mut self, engine: Engine) -> Self {
        let mut given = self.hand_over();
        given.engine = engine;
        given
    }

    /// The duty to remove, for whoever boots on the same volumes.
    pub(crate) fn hand_over(&mut self) -> Self {
        let given = Self {
            engine: self.engine.clone(),
            topology: self.topology.clone(),
            directory: self.directory.clone(),
            at_drop: self.at_drop,
            lease: self.lease.take(),
        };
        self.at_drop = AtDrop::Stay;
        given
    }

    /// Removes, and reads back.
    pub(crate) async fn remove(&mut self, volumes: Volumes) -> Result<(), TopologyError> {
        remove(&self.engine, &self.topology, &self.directory, volumes).await?;
        if volumes == Volumes::Remove {
            self.at_drop = AtDrop::Stay;
        }
        Ok(())
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.at_drop == AtDrop::Stay {
            return;
        }
        let (socket, topology) = (self.engine.socket().to_owned(), self.topology.clone());
        let directory = self.directory.clone();
        // A thread with a runtime of its own: the one that this is dropped in may be ending, and its
        // connections with it. Joined, since a process that ends would take the thread along.
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let removed = runtime.map(|runtime| {
                runtime.block_on(async {
                    let engine = Engine::at(socket).await?;
                    remove(&engine, &topology, &directory, Volumes::Remove).await
                })
            });
            if let Ok(Err(error)) = removed {
                eprintln!("wopr: {error}");
            }
        });
        let _ = removal.join();
    }
}

/// Lets machines go on that a fault froze as a whole: neither they nor what is frozen in them can be ended else.
async fn unpause(engine: &Engine, containers: &[String]) {
    for container in containers {
        if let Ok(Some(state)) = engine.container(container).await
            && state.paused
        {
            // What cannot be unpaused shows as a leftover.
            let _ = engine.unpause(container).await;
        }
    }
}

/// Asks the machines that still run to thaw what a fault froze: the engine cannot end them otherwise.
async fn thaw(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for control in entries.map(|entry| entry.path()) {
        if control.join(CONTROL_SOCKET).exists() {
            let machine = control.file_name().unwrap_or_default().to_string_lossy();
            let asked = tokio::time::timeout(THAW, async {
                let mut control = Control::connect(&machine, &control).await.ok()?;
                control.ask(&Request::Thaw).await.ok()
            });
            let _ = asked.await;
        }
    }
}

async fn remove(
    engine: &Engine,
    topology: &str,
    directory: &Path,
    volumes: Volumes,
) -> Result<(), TopologyError> {
    let mut left = Leftovers::of(engine, topology).await?;
    unpause(engine, &left.containers).await;
    thaw(directory).await;
    let mut last_error = None;
    for _ in 0..ROUNDS {
        if volumes == Volumes::Keep {
            left.volumes.clear();
        }
        if left.is_empty() {
            break;
        }
        let containers = join_all(left.containers.iter().map(|name| engine.remove_container(name))).await;
        let networks = join_all(left.networks.iter().map(|id| engine.remove_network(id))).await;
        let volumes = join_all(left.volumes.iter().map(|name| engine.remove_volume(name))).await;
        let failed = containers
            .into_iter()
            .chain(networks)
            .chain(volumes)
            .find_map(Result::err);
        if let Some(error) = failed {
            last_error = Some(error);
            tokio::time::sleep(PAUSE).await;
        }
        left = Leftovers::of(engine, topology).await?;
    }
    if volumes == Volumes::Keep {
        left.volumes.clear();
    }
    if let (false, Some(error)) = (left.is_empty(), last_error) {
        tracing::debug!("the last refusal: {error}");
    }
    if volumes == Volumes::Remove && remove_directory(directory).is_err() {
        left.directories.push(directory.to_owned());
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(TopologyError::Leftovers {
        topology: topology.to_owned(),
        leftovers: Box::new(left),
    })
}

fn remove_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Which of the topologies that nobody holds are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// What dead processes left, and idle ones whose time is over.
    Expired(Duration),
    /// Every one.
    Free,
}

/// Removes topologies of this user that nobody holds; returns their ids. Those of living processes, and
/// what was started by hand, are not touched.
///
/// # Errors
/// [`TopologyError::Leftovers`] for one that would not go.
pub async fn sweep(engine: &Engine, dirs: &Dirs, which: Sweep) -> Result<Vec<String>, TopologyError> {
    let mut swept = Vec::new();
    for topology in owned(engine, dirs).await? {
        let directory = dirs.run.join(&topology);
        let stays = match (lease::standing(&directory), which) {
            (Standing::Held { .. }, _) => true,
            (Standing::Idle { since }, Sweep::Expired(idle)) => since < idle,
            (Standing::Idle { .. }, Sweep::Free) | (Standing::Dead, _) => false,
        };
        if stays {
            continue;
        }
        // Held while it is removed, so that nobody takes it. Without the file, the removal had come that far.
        let held = Held::take(&directory);
        if held.is_none() && directory.join(lease::FILE).exists() {
            continue;
        }
        remove(engine, &topology, &directory, Volumes::Remove).await?;
        swept.push(topology);
    }
    Ok(swept)
}

/// Topologies that carry our label or have a directory of ours.
async fn owned(engine: &Engine, dirs: &Dirs) -> Result<BTreeSet<String>, TopologyError> {
    let owner = format!("{LABEL_OWNER}={}", dirs.run.display());
    let mut found = engine.topologies_with_label(&owner).await?;
    let entries = std::fs::read_dir(&dirs.run).map_err(TopologyError::io("list", &dirs.run))?;
    for entry in entries.flatten() {
        let settled = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > SETTLED));
        if settled && entry.path().join(lease::FILE).exists() {
            found.extend(entry.file_name().into_string());
        }
    }
    Ok(found)
}

/// Who answers for a topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A person, who started it by hand.
    ByHand,
    /// A process that lives; who, as far as is known.
    Alive(String),
    /// Nobody: it is clean, and waits so long for the next test.
    Idle(Duration),
    /// A process that has ended; the next boot sweeps it.
    Dead,
    /// Somebody else: another user, or another WOPR_RUN_DIR.
    Another,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByHand => f.pad("by hand"),
            Self::Alive(who) => f.pad(who),
            Self::Idle(since) => f.pad(&format!("the pool, idle for {} s", since.as_secs())),
            Self::Dead => f.pad("a process that has ended"),
            Self::Another => f.pad("another user"),
        }
    }
}

/// A topology on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Who answers for it.
    pub owner: Owner,
    /// Names of its containers.
    pub containers: Vec<String>,
}

/// Every topology on this host.
///
/// # Errors
/// [`TopologyError::Engine`].
pub async fn list(engine: &Engine, dirs: &Dirs) -> Result<Vec<Listed>, TopologyError> {
    let ours = owned(engine, dirs).await?;
    let mut listed = Vec::new();
    for id in engine.topologies_with_label(LABEL_TOPOLOGY).await? {
        let owner = match id.as_str() {
            BY_HAND => Owner::ByHand,
            _ if !ours.contains(&id) => Owner::Another,
            _ => match lease::standing(&dirs.run.join(&id)) {
                Standing::Held { by } => Owner::Alive(by),
                Standing::Idle { since } => Owner::Idle(since),
                Standing::Dead => Owner::Dead,
            },
        };
        let containers = engine
            .containers_with_label(&format!("{LABEL_TOPOLOGY}={id}"))
            .await?;
        listed.push(Listed {
            id,
            owner,
            containers,
        });
    }
    Ok(listed)
}

/// Takes the topology by hand down, whether `wopr up` or compose started it; returns how many things
/// of it there were.
///
/// # Errors
/// [`TopologyError::Leftovers`].
pub async fn remove_by_hand(engine: &Engine, dirs: &Dirs, volumes: Volumes) -> Result<usize, TopologyError> {
    let there = Leftovers::of(engine, BY_HAND).await?;
    for container in &there.containers {
        if engine
            .container(container)
            .await?
            .is_some_and(|state| state.running)
        {
            engine.stop(container, STOP_GRACE).await?;
        }
    }
    remove(engine, BY_HAND, &dirs.root.join("local/.run"), volumes).await?;
    by_hand::forget_others(dirs)?;
    let volumes = if volumes == Volumes::Remove {
        there.volumes.len()
    } else {
        0
    };
    Ok(there.containers.len() + there.networks.len() + volumes)
}
