//! Whenever a test is killed, and whatever it leaves, nothing stays.
//!
//! `WOPR_CHAOS_SEED` and `WOPR_CHAOS_ROUNDS` choose another course; a failure names its seed.

#[path = "common/players.rs"]
mod players;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use players::Pool;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use wopr_harness::engine::{Engine, LABEL_OWNER};

/// A pool that nobody uses any more is gone after its idle time, and a few seconds for the removal.
const IDLE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(90);
/// From the first moments of a boot to the last of a third lease.
const MOMENTS: std::ops::Range<u64> = 50..9_000;
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
    let rounds: Vec<u64> = (0..number("WOPR_CHAOS_ROUNDS", 6)?)
        .map(|_| random.random_range(MOMENTS))
        .collect();
    let played = stream::iter(rounds).map(round).buffer_unordered(SIDE_BY_SIDE);
    let left: Vec<_> = played.collect().await;
    for round in left {
        round.with_context(|| format!("WOPR_CHAOS_SEED={seed}"))?;
    }
    Ok(())
}

/// Kills a player after so many milliseconds, and waits until nothing of its pool is left.
async fn round(after_ms: u64) -> Result<()> {
    let pool = Pool {
        idle: IDLE,
        ..Pool::of(1)?
    };
    let mut player =
        pool.start("lease rows partition give lease toxic packet-rule drop lease frozen-service drop")?;
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    player.kill().await?;
    let (engine, began) = (Engine::connect().await?, Instant::now());
    loop {
        let left = leftovers(&engine, &pool).await?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "killed after {after_ms} ms, it left {left:?}"
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

/// A long run: `WOPR_SOAK_LEASES=200 cargo test --test chaos -- --ignored soak`.
#[tokio::test]
#[ignore = "takes minutes"]
async fn a_long_soak_drifts_nowhere() -> Result<()> {
    let leases = number("WOPR_SOAK_LEASES", 200)?;
    let seed = number("WOPR_CHAOS_SEED", rand::rng().random())?;
    let mut random = StdRng::seed_from_u64(seed);
    let messes = [
        "rows",
        "partition",
        "toxic",
        "frozen-service",
        "stopped-database",
        "watch",
    ];
    let words: Vec<String> = (0..leases)
        .map(|_| format!("lease {} give", messes[random.random_range(0..messes.len())]))
        .collect();
    let pool = Pool::of(1)?;
    let first = pool.play("lease measure give").await?;
    let said = pool.play(&words.join(" ")).await?;
    let last = pool.play("lease measure give").await?;
    let given = said.iter().filter(|words| *words == "gave back").count();
    ensure!(
        given as u64 == leases,
        "WOPR_CHAOS_SEED={seed}: {given} of {leases} were given back: {said:?}"
    );
    println!("before: {}\nafter:  {}", first[1], last[1]);
    Ok(())
}
