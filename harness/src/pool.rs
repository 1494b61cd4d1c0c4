//! The pool: topologies that outlive a test, clean, for the next one.
//!
//! A test takes a [`Lease`] on a topology and holds it alone; when it gives it back, the topology is brought
//! to what it was at first and that is read back. What does not come back is removed. All of it is files in
//! the harness's directories and locks that die with their holder: tests in one process, in a process
//! each, or in several runs at once share one pool, and no service has to be started for it.

mod ahead;
mod database;
mod lease;
mod member;
mod reset;
mod state;

use std::fs::File;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

pub use lease::Lease;
pub use state::Difference;

use crate::env;
use crate::progress::Task;
use crate::topology::{Builder, Claim, Plan, Sweep, Topology, TopologyError, sweep};
use ahead::Ahead;
use member::Member;
use state::State;

/// How long a look at the pool is apart from the next. A look costs the reading of a few small files.
const PAUSE: Duration = Duration::from_millis(20);
/// Who waits for longer says so.
const PATIENT: Duration = Duration::from_secs(1);
/// Topologies for each processor: tests wait more than they compute.
const PER_CORE: usize = 2;
/// What a topology takes of the host's memory, with room for what tests do, in bytes.
const MEMORY: u64 = 600 << 20;

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A setting.
    #[error(transparent)]
    Setting(#[from] env::BadNumber),
    /// A file of the pool.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// After the reset it was not what it had been.
    #[error("it is not what it was: {}", Differences(.differences))]
    Left {
        /// How it differs.
        differences: Vec<Difference>,
    },
}

/// Shows one after the other.
struct Differences<'a>(&'a [Difference]);

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Takes a topology of what `builder` describes: one that is idle, else a new one, else waits for one.
///
/// The pool grows to what the host bears: two for each processor and at most what its memory holds, or
/// `WOPR_POOL` of them. Where it has room, one more than tests hold is booted for the next, or `WOPR_POOL_AHEAD`;
/// 0 boots none before it is asked for. With `WOPR_POOL=0` there is no pool, and each lease boots its own. Light
/// machines are never shared: each lease boots its own, too.
///
/// # Errors
/// [`PoolError`].
///
/// ```no_run
/// # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
/// use wopr_harness::{Topology, pool};
///
/// let topology = pool::lease(Topology::builder()).await?;
/// let node = topology.seed_gpu_node().await?;
/// # Ok(())
/// # }
/// ```
pub async fn lease(builder: Builder) -> Result<Lease, PoolError> {
    let mut plan = builder.plan().await?;
    let most = limit()?;
    // A fleet that idles holds memory that nobody asks for soon, and a light one boots in the time of its VPS
    // machine.
    if most == 0 || plan.is_light() {
        return Ok(Lease::of_its_own(plan.boot().await?));
    }
    let (key, wanted) = (plan.key(), ahead::wanted()?);
    let began = Instant::now();
    let mut task: Option<Task> = None;
    loop {
        for member in member::idle(&plan.dirs.run, &key) {
            if let Some(lease) = take(&plan, member).await {
                task.into_iter().for_each(Task::done);
                return Ok(lease.followed_by(Ahead::start(&plan, &key, most, wanted)));
            }
        }
        if let Some(claim) = grow(&mut plan, &key, most).await? {
            task.into_iter().for_each(Task::done);
            let (topology, baseline) = boot_member(&plan, &key, claim).await?;
            let lease = Lease::of_the_pool(topology, baseline);
            return Ok(lease.followed_by(Ahead::start(&plan, &key, most, wanted)));
        }
        if task.is_none() && began.elapsed() > PATIENT {
            let waiting = plan.progress.begin("waiting for a topology");
            waiting.waits(&member::who_holds(&plan.dirs.run));
            task = Some(waiting);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// How many topologies there may be.
fn limit() -> Result<usize, env::BadNumber> {
    if let Some(chosen) = env::number("WOPR_POOL")? {
        return Ok(usize::try_from(chosen).unwrap_or(usize::MAX));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram * u64::from(memory.mem_unit);
    let by_memory = usize::try_from(bytes / MEMORY).unwrap_or(usize::MAX);
    Ok((cores * PER_CORE).min(by_memory).max(1))
}

/// Takes a member that is idle. One whose machines do not run any more is removed.
async fn take(plan: &Plan, member: Member) -> Option<Lease> {
    let (remains, kept) = member.take(plan)?;
    let id = kept.id.clone();
    match plan.attach(&id, kept.addresses, remains).await {
        Ok(topology) => {
            topology.deeds().begin();
            Some(Lease::of_the_pool(topology, kept.baseline))
        }
        Err(error) => {
            eprintln!("wopr: topology {id} of the pool is removed: {error}");
            None
        }
    }
}

/// Claims a place for one more, if the host bears it. An idle one that nobody asks for makes room.
async fn grow(plan: &mut Plan, key: &str, most: usize) -> Result<Option<Claim>, PoolError> {
    let _held = lock(plan).await?;
    if member::count(&plan.dirs.run) >= most && member::has_dead(&plan.dirs.run) {
        // What will not go is no concern of this test's.
        let swept = sweep(&plan.engine, &plan.dirs, Sweep::Expired(plan.idle)).await?;
        swept.tell_of_refusals();
    }
    if member::count(&plan.dirs.run) >= most {
        let Some(other) = member::idle_others(&plan.dirs.run, key).into_iter().next() else {
            return Ok(None);
        };
        if let Some((mut remains, _)) = other.take(plan) {
            remains.remove(crate::topology::Volumes::Remove).await?;
        }
    }
    Ok(Some(plan.claim()?))
}

/// Claims a place for one more that nobody waits for: nothing makes room for it.
async fn claim(plan: &mut Plan, most: usize) -> Result<Option<Claim>, PoolError> {
    let _held = lock(plan).await?;
    if member::count(&plan.dirs.run) >= most {
        return Ok(None);
    }
    Ok(Some(plan.claim()?))
}

/// Who holds it counts the pool, and grows it.
async fn lock(plan: &Plan) -> Result<File, PoolError> {
    let locked = crate::engine::lock_file(&plan.dirs.state.join("pool.lock")).await;
    Ok(locked.map_err(TopologyError::from)?)
}

/// Boots a new member, and notes what it looks like.
async fn boot_member(plan: &Plan, key: &str, claim: Claim) -> Result<(Topology, State), PoolError> {
    let topology = plan.boot_claimed(claim).await?;
    let baseline = State::read(&topology).await?;
    member::keep(plan, &topology, key, &baseline)?;
    Ok((topology, baseline))
}
