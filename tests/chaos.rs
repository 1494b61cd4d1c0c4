//! Whenever a test is killed, and whatever it leaves, nothing stays.
//!
//! `WOPR_CHAOS_SEED` and `WOPR_CHAOS_ROUNDS` choose another course; a failure names its seed.

#[path = "common/players.rs"]
mod players;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use players::measure::Measured;
use players::{NOT_UNDONE, Pool, UNDONE, id};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use wopr_harness::engine::{Engine, LABEL_OWNER};

/// A pool that nobody uses any more is gone after its idle time, and a few seconds for the removal.
const IDLE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(90);
/// From the first moments of a boot to the last of a third lease.
const MOMENTS: std::ops::Range<u64> = 50..9_000;
const LEASES: usize = 3;
const SIDE_BY_SIDE: usize = 2;

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(default),
    }
}

#[tokio::test]
async fn nothing_stays_of_tests_that_were_killed_at_random_moments() -> Result<()> {
    let seed = number("WOPR_CHAOS_SEED", rand::rng().random())?;
    let mut random = StdRng::seed_from_u64(seed);
    let rounds = number("WOPR_CHAOS_ROUNDS", 6)?;
    let rounds: Vec<Round> = (1..=rounds)
        .map(|number| Round::draw(number, &mut random))
        .collect();
    let (many, began) = (rounds.len(), Instant::now());
    let played = stream::iter(rounds)
        .map(Round::play)
        .buffer_unordered(SIDE_BY_SIDE);
    let left: Vec<_> = played.collect().await;
    for round in left {
        round.with_context(|| format!("WOPR_CHAOS_SEED={seed} WOPR_CHAOS_ROUNDS={many}"))?;
    }
    let took = began.elapsed().as_secs();
    println!("{many} rounds of WOPR_CHAOS_SEED={seed} in {took} s: 0 leftovers");
    Ok(())
}

/// A player that leases, leaves something and gives back, over and over, until it is killed.
struct Round {
    number: u64,
    script: String,
    after_ms: u64,
}

impl Round {
    /// All is drawn before any of it is played, so that a seed is a course whatever the players do.
    fn draw(number: u64, random: &mut StdRng) -> Self {
        let all = [UNDONE.as_slice(), &NOT_UNDONE].concat();
        let mut lease = || {
            let mess = all.choose(random).copied().unwrap_or_default();
            let end = ["give", "drop"].choose(random).copied().unwrap_or_default();
            format!("lease {mess} {end}")
        };
        Self {
            number,
            script: [(); LEASES].map(|()| lease()).join(" "),
            after_ms: random.random_range(MOMENTS),
        }
    }

    async fn play(self) -> Result<()> {
        let Self {
            number,
            script,
            after_ms,
        } = &self;
        let played = kill_after(script, Duration::from_millis(*after_ms)).await;
        let played = played.with_context(|| format!("round {number}: {script:?} killed after {after_ms} ms"));
        // The others take minutes.
        if let Err(error) = &played {
            eprintln!("{error:#}");
        }
        played
    }
}

/// Kills a player after a while, and waits until nothing of its pool is left.
async fn kill_after(script: &str, after: Duration) -> Result<()> {
    let pool = Pool {
        idle: IDLE,
        ..Pool::of(1)?
    };
    let mut player = pool.start(script)?;
    tokio::time::sleep(after).await;
    player.kill().await?;
    let (engine, began) = (Engine::connect().await?, Instant::now());
    loop {
        let left = leftovers(&engine, &pool).await?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "{} s later there is left: {left:?}",
            PATIENCE.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Containers, networks, volumes, directories and processes of a pool.
async fn leftovers(engine: &Engine, pool: &Pool) -> Result<Vec<String>> {
    let run = pool.run.path();
    let owned = engine
        .topologies_with_label(&format!("{LABEL_OWNER}={}", run.display()))
        .await?;
    let mut left: Vec<String> = owned.into_iter().map(|id| format!("topology {id}")).collect();
    for entry in std::fs::read_dir(run)?.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        // Those that a container makes anew while they are removed have no label.
        let volumes = engine.volumes_with_prefix(&format!("wopr-{id}-")).await?;
        left.extend(volumes.into_iter().map(|name| format!("volume {name}")));
    }
    left.extend(pool.left_on_the_host()?);
    Ok(left)
}

/// Caches of engine and services are full, and the log of Postgres has its first segments.
const WARM_UP: u64 = 20;
/// Leases that leave nothing: what a test forgets on purpose keeps its connections open in its own process.
const CLEAN: u64 = 30;
/// The same connection pools as at first, give or take one that is just ending.
const MORE_FILES: usize = 3;

/// A long run: `WOPR_SOAK_LEASES=200 cargo nextest run --test chaos --no-capture --run-ignored all soak`.
#[tokio::test]
#[ignore = "takes minutes"]
async fn a_long_soak_drifts_nowhere() -> Result<()> {
    let leases = number("WOPR_SOAK_LEASES", 200)?;
    let seed = number("WOPR_CHAOS_SEED", rand::rng().random())?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut messy = |leases| {
        let mess = (0..leases).map(|_| UNDONE.choose(&mut random).copied().unwrap_or_default());
        mess.map(|mess| format!("lease {mess} give ")).collect::<String>()
    };
    let soak = Soak { pool: Pool::of(1)? };
    // Another process measures: what a player forgot goes with it.
    let played = async {
        soak.play(&messy(WARM_UP), WARM_UP).await?;
        let (topology, before) = soak.measure().await?;
        soak.play(&messy(leases), leases).await?;
        let (after_all, after) = soak.measure().await?;
        ensure!(
            topology == after_all,
            "topology {topology} was measured before, and {after_all} after"
        );
        println!("before: {}\nafter:  {}", before.to_line(), after.to_line());
        let drift = after.drift(&before);
        ensure!(drift.is_empty(), "{leases} leases drift: {}", drift.join("; "));
        soak.ensure_a_test_keeps_no_file_open().await
    };
    played.await.with_context(|| format!("WOPR_CHAOS_SEED={seed}"))
}

/// Leases of one topology, which nothing but the end of the test removes.
struct Soak {
    pool: Pool,
}

impl Soak {
    /// Plays so many leases, and sees each of them given back clean.
    async fn play(&self, script: &str, leases: u64) -> Result<Vec<String>> {
        let said = self.pool.play(script).await?;
        let given = said.iter().filter(|words| *words == "gave back").count();
        ensure!(
            given as u64 == leases,
            "{given} of {leases} were given back: {said:?}"
        );
        Ok(said)
    }

    /// The topology that is leased, and what it takes.
    async fn measure(&self) -> Result<(String, Measured)> {
        let said = self.play("lease measure give", 1).await?;
        let line = said[1]
            .strip_prefix("measured ")
            .context("nothing was measured")?;
        Ok((id(&said[0])?.to_owned(), Measured::parse(line)?))
    }

    async fn ensure_a_test_keeps_no_file_open(&self) -> Result<()> {
        let few = "lease give ".repeat(5);
        let many = "lease give ".repeat(usize::try_from(CLEAN)?);
        let said = self.play(&format!("{few} files {many} files"), 5 + CLEAN).await?;
        let files = said.iter().filter_map(|words| {
            let words = words.strip_prefix("has ")?.strip_suffix(" open files")?;
            words.parse::<usize>().ok()
        });
        let [before, after] = files.collect::<Vec<_>>()[..] else {
            anyhow::bail!("not counted twice: {said:?}");
        };
        println!("the test's own open files: {before} before {CLEAN} clean leases, {after} after");
        ensure!(
            after <= before + MORE_FILES,
            "after {CLEAN} clean leases the test has {after} files open, {before} before"
        );
        Ok(())
    }
}
