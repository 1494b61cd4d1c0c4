//! Every topology on the host: whose it is, and the end of those that nobody holds.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use super::TopologyError;
use super::remains::{Volumes, remove};
use crate::dirs::Dirs;
use crate::engine::{Engine, LABEL_OWNER, LABEL_TOPOLOGY};
use crate::lease::{self, Held, Standing};
use crate::machine::BY_HAND;

/// A directory younger than this may be one that is just being made.
const SETTLED: Duration = Duration::from_secs(60);

/// Which of the topologies that nobody holds are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// What dead processes left, and idle ones whose time is over.
    Expired(Duration),
    /// Every one.
    Free,
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Ids of the topologies that are gone.
    pub gone: Vec<String>,
    /// Why others are not.
    pub refused: Vec<TopologyError>,
}

impl Swept {
    /// For those who came for something else: the next boot tries again.
    pub(crate) fn tell_of_refusals(&self) {
        for error in &self.refused {
            eprintln!("wopr: while sweeping what a dead process left: {error}");
        }
    }
}

/// Removes topologies of this user that nobody holds. Those of living processes, and what was started by hand, are
/// not touched; one that will not go keeps none of the others.
///
/// # Errors
/// [`TopologyError`] where it could not be told what there is.
pub async fn sweep(engine: &Engine, dirs: &Dirs, which: Sweep) -> Result<Swept, TopologyError> {
    let mut swept = Swept::default();
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
        match remove(engine, &topology, &directory, Volumes::Remove).await {
            Ok(()) => swept.gone.push(topology),
            Err(error) => swept.refused.push(error),
        }
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
    /// When the first of them was made.
    pub created: Option<SystemTime>,
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
        let states = join_all(containers.iter().map(|name| engine.container(name))).await;
        let created = states
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|state| state.created);
        listed.push(Listed {
            id,
            owner,
            created: created.min(),
            containers,
        });
    }
    Ok(listed)
}
