//! The end of a topology: everything that carries its label goes, and that is read back.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use wopr_machine::paths::CONTROL_SOCKET;
use wopr_machine::protocol::Request;

use super::TopologyError;
use crate::by_hand;
use crate::control::Control;
use crate::dirs::Dirs;
use crate::engine::{Engine, EngineError, LABEL_TOPOLOGY};
use crate::image;
use crate::keeper;
use crate::lease::Held;
use crate::machine::BY_HAND;

/// A removal that the engine is still busy with shows as a leftover for a moment.
const ROUNDS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);
/// A machine that runs answers at once; one that does not has nothing frozen.
const THAW: Duration = Duration::from_millis(500);
/// The database gets the time to write what it has.
const STOP_GRACE: Duration = Duration::from_secs(30);

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
        let (containers, networks, mut volumes, half_made) = tokio::try_join!(
            engine.containers_with_label(&label),
            engine.networks_with_label(&label),
            engine.volumes_with_label(&label),
            image::half_made(engine, topology),
        )?;
        volumes.extend(half_made);
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
        let keeper = keeper::start(topology, &directory, engine.socket(), idle);
        let keeper = keeper.map_err(TopologyError::io("start a keeper for", &directory))?;
        crate::dirs::make_private(&directory)?;
        let lease = Held::make(&directory).map_err(TopologyError::io("make the lease in", &directory))?;
        drop(keeper);
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

/// Removes all that is there of a topology, and reads back that nothing is.
pub(super) async fn remove(
    engine: &Engine,
    topology: &str,
    directory: &Path,
    volumes: Volumes,
) -> Result<(), TopologyError> {
    let mut left = Leftovers::of(engine, topology).await?;
    unpause(engine, &left.containers).await;
    thaw(directory).await;
    let mut refusal = None;
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
            refusal = Some(Box::new(error));
            tokio::time::sleep(PAUSE).await;
        }
        left = Leftovers::of(engine, topology).await?;
    }
    if volumes == Volumes::Keep {
        left.volumes.clear();
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
        refusal,
    })
}

fn remove_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
