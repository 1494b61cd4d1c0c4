//! Ahead of demand: while a test has its topology, the next one boots beside it, where the pool has room.
//!
//! It is for the test that comes next: one that starts while all others are held, or after one whose topology
//! could not be brought back.

use std::fs::File;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::{PoolError, boot_member, claim, member};
use crate::engine::Engine;
use crate::env::{self, BadNumber};
use crate::topology::{Plan, TopologyError};

/// How many idle ones there should be, beyond those that tests hold.
const IDLE: u64 = 1;

/// A boot under way for whoever comes next. Dropping it does not end it: see [`Ahead::finish`].
#[derive(Debug)]
pub(super) struct Ahead(JoinHandle<()>);

/// How many are to be ready beyond those that are held: `WOPR_POOL_AHEAD`.
pub(super) fn wanted() -> Result<usize, BadNumber> {
    let wanted = env::number("WOPR_POOL_AHEAD")?.unwrap_or(IDLE);
    Ok(usize::try_from(wanted).unwrap_or(usize::MAX))
}

/// Lives as long as the process: testcontainers' client is the process's, and a connection of it that was made
/// here must not end under a test that uses it.
fn runtime() -> Option<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tokio-wopr-ahead")
            .enable_all()
            .build()
            .ok()
    });
    made.as_ref()
}

impl Ahead {
    /// Boots one, if `wanted` are not there and the pool may have `most`. What fails of it is told of, and no
    /// test's concern.
    pub(super) fn start(plan: &Plan, key: &str, most: usize, wanted: usize) -> Option<Self> {
        // Else one that the tests have not come to need would go when its time is over, and be booted anew, as long as
        // they go on one by one.
        member::renew(&plan.dirs.run, key, wanted);
        let enough =
            || member::idle(&plan.dirs.run, key).len() >= wanted || member::count(&plan.dirs.run) >= most;
        // One at a time for each pool: several at once would slow the tests down that they are made for.
        let lock = File::open(&plan.dirs.run).ok()?;
        if enough() || lock.try_lock().is_err() || enough() {
            return None;
        }
        let (plan, key) = (plan.for_another(), key.to_owned());
        let booting = async move {
            if let Err(error) = boot(plan, &key, most).await {
                eprintln!("wopr: a topology for the next test could not be booted: {error}");
            }
            drop(lock);
        };
        Some(Self(runtime()?.spawn(booting)))
    }

    /// Waits for its end: what is half booted when a process ends is wasted.
    pub(super) fn finish(self) {
        while !self.0.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn boot(mut plan: Plan, key: &str, most: usize) -> Result<(), PoolError> {
    // This runtime's own connection.
    let socket = plan.engine.socket().to_owned();
    plan.engine = Engine::at(socket).await.map_err(TopologyError::from)?;
    let Some(claim) = claim(&mut plan, most).await? else {
        return Ok(());
    };
    let (topology, _) = boot_member(&plan, key, claim).await?;
    Ok(topology.let_go()?)
}
