//! A topology of the pool, as the harness's directories show it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::PoolError;
use super::state::State;
use crate::lease::{self, Held, Standing};
use crate::machine::MachineName;
use crate::topology::{Plan, Remains, Topology};

/// What is kept of a member, in its directory.
const FILE: &str = "pool.json";

/// A member that was idle when it was looked at.
pub(super) struct Member {
    directory: PathBuf,
    id: String,
}

/// What is known of a member.
pub(super) struct Kept {
    pub(super) id: String,
    pub(super) addresses: BTreeMap<MachineName, Ipv4Addr>,
    pub(super) baseline: State,
}

/// The same on disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// What it is made from.
    key: String,
    /// Addresses by name of the machine.
    addresses: BTreeMap<String, Ipv4Addr>,
    /// What it looked like at first.
    baseline: State,
}

impl Member {
    /// Takes its lease; `None` when somebody was faster, or it cannot be used.
    pub(super) fn take(self, plan: &Plan) -> Option<(Remains, Kept)> {
        let held = Held::take_idle(&self.directory)?;
        let remains = Remains::taken(plan.engine.clone(), &self.id, self.directory.clone(), held);
        let stored = read(&self.directory)?;
        let addresses = stored.addresses.into_iter();
        let addresses = addresses.map(|(name, address)| Some((name.parse().ok()?, address)));
        let kept = Kept {
            id: self.id,
            addresses: addresses.collect::<Option<_>>()?,
            baseline: stored.baseline,
        };
        Some((remains, kept))
    }
}

/// Lets the first `wanted` members that are idle last as long again: they are what the next test is to find.
pub(super) fn renew(run: &Path, key: &str, wanted: usize) {
    for member in idle(run, key).iter().take(wanted) {
        lease::renew(&member.directory);
    }
}

fn read(directory: &Path) -> Option<Stored> {
    let text = std::fs::read(directory.join(FILE)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Keeps what has to be known of a new member.
pub(super) fn keep(plan: &Plan, topology: &Topology, key: &str, baseline: &State) -> Result<(), PoolError> {
    let stored = Stored {
        key: key.to_owned(),
        addresses: topology
            .machines()
            .map(|machine| (machine.name().to_string(), machine.address()))
            .collect(),
        baseline: baseline.clone(),
    };
    let path = plan.dirs.run.join(topology.id()).join(FILE);
    let text = serde_json::to_vec(&stored).unwrap_or_default();
    std::fs::write(&path, text).map_err(|source| PoolError::File {
        action: "write",
        path,
        source,
    })
}

/// All directories of topologies, with how their lease stands.
fn all(run: &Path) -> Vec<(PathBuf, Standing)> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let directories = entries.map(|entry| entry.path());
    directories
        .filter(|directory| directory.join(lease::FILE).exists())
        .map(|directory| {
            let standing = lease::standing(&directory);
            (directory, standing)
        })
        .collect()
}

/// How many topologies there are: what a dead holder left counts until it is gone.
pub(super) fn count(run: &Path) -> usize {
    all(run).len()
}

/// Whether there is one whose holder has ended and left it.
pub(super) fn has_dead(run: &Path) -> bool {
    all(run).iter().any(|(_, standing)| *standing == Standing::Dead)
}

fn idle_where(run: &Path, wanted: impl Fn(&str) -> bool) -> Vec<(Duration, Member)> {
    let idle = all(run).into_iter().filter_map(|(directory, standing)| {
        let Standing::Idle { since } = standing else {
            return None;
        };
        let id = directory.file_name()?.to_str()?.to_owned();
        wanted(&read(&directory)?.key).then_some((since, Member { directory, id }))
    });
    let mut idle: Vec<_> = idle.collect();
    idle.sort_by_key(|(since, _)| *since);
    idle
}

/// Idle members that are made from the same, the one that was given back last first: what nobody needs
/// any more grows old and goes.
pub(super) fn idle(run: &Path, key: &str) -> Vec<Member> {
    let members = idle_where(run, |found| found == key).into_iter();
    members.map(|(_, member)| member).collect()
}

/// Idle members that are made from something else, the oldest first.
pub(super) fn idle_others(run: &Path, key: &str) -> Vec<Member> {
    let members = idle_where(run, |found| found != key).into_iter().rev();
    members.map(|(_, member)| member).collect()
}

/// Who holds what, for a person who waits.
pub(super) fn who_holds(run: &Path) -> String {
    let held = all(run).into_iter().filter_map(|(directory, standing)| {
        let id = directory.file_name()?.to_str()?.to_owned();
        match standing {
            Standing::Held { by } => Some(format!("{id} is held by {by}")),
            _ => None,
        }
    });
    held.collect::<Vec<_>>().join("; ")
}
