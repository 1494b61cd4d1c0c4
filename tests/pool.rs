//! The pool: one test holds a topology at a time, and gets it as new, whatever the one before left.
//!
//! Each test plays in a pool of its own, through processes of their own.

#[path = "common/players.rs"]
mod players;

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use players::{Pool, id, kill_keeper, until_leased};
use pretty_assertions::{assert_eq, assert_ne};
use rstest::rstest;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use wopr_harness::engine::{Engine, LABEL_TOPOLOGY};
use wopr_harness::{GPU, Service};

#[tokio::test]
async fn a_topology_that_was_given_back_is_leased_again_across_processes() -> Result<()> {
    let pool = Pool::of(2)?;
    let first = pool.play("lease rows give lease drop").await?;
    let second = pool.play("lease give").await?;
    let ids: BTreeSet<&str> = [&first[0], &first[2], &second[0]]
        .into_iter()
        .map(|said| id(said))
        .collect::<Result<_>>()?;
    assert_eq!(ids.len(), 1, "{first:?} {second:?}");
    assert!(second[0].ends_with("with 0 rows"), "{second:?}");
    Ok(())
}

#[tokio::test]
async fn a_keeper_that_looks_at_a_lease_keeps_nobody_from_it() -> Result<()> {
    let programs = tempfile::tempdir()?;
    // What the keeper looks with takes its time, as on a busy host.
    let slow = programs.path().join("stat");
    std::fs::write(&slow, "#!/bin/sh\nsleep 0.3\nexec /usr/bin/stat \"$@\"\n")?;
    std::fs::set_permissions(&slow, Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH")?);
    let pool = Pool::of(2)?.with("PATH", path);
    let said = pool.play("lease give lease give").await?;
    assert_eq!(id(&said[0])?, id(&said[2])?, "{said:?}");
    Ok(())
}

#[rstest]
#[case::rows_and_records(&["rows", "watch", "operated-cloud"])]
#[case::faults_of_links(&["partition", "toxic", "wrong-name"])]
#[case::what_stands_still(&["frozen-service", "frozen-machine", "stopped-database", "clock-jump"])]
#[tokio::test]
async fn what_a_reset_undoes_is_gone_for_the_next(#[case] messes: &[&str]) -> Result<()> {
    let pool = Pool::of(1)?;
    let left = messes.iter().map(|mess| format!("lease {mess} give "));
    let said = pool.play(&(left.collect::<String>() + "lease drop")).await?;
    assert_eq!(said.len(), 2 * messes.len() + 1, "{said:?}");
    let first = id(&said[0])?;
    for words in &said {
        let is_as_new = words.contains(first) && words.ends_with("with 0 rows");
        assert!(is_as_new || words == "gave back", "{said:?}");
    }
    Ok(())
}

#[rstest]
#[case::in_a_machine(&[
    ("packet-rule", "192.0.2.1"),
    ("program", "program sleep"),
    ("listener", "listener tcp 0.0.0.0:7777"),
    ("file", "file /etc/left-behind new"),
])]
#[case::of_services(&[
    ("program-of-a-service", "program in a container: sleep"),
    ("file-of-a-service", "postgres file /etc/left-behind new"),
    ("trigger", "function f()"),
    ("database-setting", "work_mem = 1024"),
    ("no-service", "lost \"service whisper\""),
])]
#[case::of_machines(&[
    ("dead-machine", "lost \"machine gpu\""),
    ("absent-machine", "lost \"machine gpu at its address\""),
    ("moved-machine", "lost \"machine gpu at its address\""),
])]
#[tokio::test]
async fn what_a_reset_does_not_undo_is_named_and_its_topology_replaced(
    #[case] messes: &[(&str, &str)],
) -> Result<()> {
    let pool = Pool::of(1)?;
    let left = messes.iter().map(|(mess, _)| format!("lease {mess} give "));
    let said = pool.play(&(left.collect::<String>() + "lease drop")).await?;
    let mut ids = BTreeSet::new();
    for (place, (mess, named)) in messes.iter().enumerate() {
        ids.insert(id(&said[2 * place])?);
        let told = &said[2 * place + 1];
        assert!(
            told.starts_with("left ") && told.contains(named),
            "{mess}: {said:?}"
        );
    }
    ids.insert(id(&said[2 * messes.len()])?);
    assert_eq!(ids.len(), messes.len() + 1, "each is replaced: {said:?}");
    Ok(())
}

#[tokio::test]
async fn a_test_that_panics_poisons_nothing() -> Result<()> {
    let pool = Pool::of(1)?;
    let first = pool.play("lease partition panic").await?;
    let second = pool.play("lease drop").await?;
    assert_eq!(id(&first[0])?, id(&second[0])?);
    assert!(second[0].ends_with("with 0 rows"), "{second:?}");
    Ok(())
}

#[tokio::test]
async fn what_a_killed_test_held_is_never_handed_on() -> Result<()> {
    let pool = Pool::of(1)?;
    let mut killed = pool.start("lease wait")?;
    let first = until_leased(&mut killed).await?;
    killed.kill().await?;
    let next = pool.play("lease drop").await?;
    assert_ne!(first, id(&next[0])?);
    Ok(())
}

#[tokio::test]
async fn two_tests_never_hold_one_topology() -> Result<()> {
    let pool = Pool::of(2)?;
    let players = (0..4).map(|_| pool.play("lease rows rest drop lease rest drop"));
    let said = futures_util::future::try_join_all(players).await?;
    let leased: Vec<&String> = said
        .iter()
        .flatten()
        .filter(|words| words.starts_with("leased"))
        .collect();
    assert_eq!(leased.len(), 8, "{said:?}");
    // Had two held it at once, one would have seen the other's row.
    assert!(
        leased.iter().all(|words| words.ends_with("with 0 rows")),
        "{said:?}"
    );
    let ids: BTreeSet<&str> = leased.iter().map(|words| id(words)).collect::<Result<_>>()?;
    assert_eq!(ids.len(), 2, "the pool holds two: {said:?}");
    Ok(())
}

#[tokio::test]
async fn a_test_that_waits_says_for_whom() -> Result<()> {
    let pool = Pool::of(1)?;
    let mut holder = pool.start("lease wait")?;
    let held = until_leased(&mut holder).await?;
    let mut waiting = pool.start("lease drop")?;
    let mut errors = BufReader::new(waiting.stderr.take().context("no errors")?).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), errors.next_line())
        .await??
        .unwrap_or_default();
    assert!(
        line.contains(&format!("waiting for a topology: {held} is held by pool player")),
        "{line}"
    );
    holder.kill().await?;
    assert!(waiting.wait().await?.success());
    Ok(())
}

#[tokio::test]
async fn an_idle_topology_of_another_kind_makes_room() -> Result<()> {
    let pool = Pool::of(1)?;
    let said = pool.play("lease drop lease-fast drop lease drop").await?;
    let ids: BTreeSet<&str> = said.iter().map(|words| id(words)).collect::<Result<_>>()?;
    assert_eq!(ids.len(), 3, "{said:?}");
    Ok(())
}

#[tokio::test]
async fn two_pools_share_nothing() -> Result<()> {
    let (one, other) = (Pool::of(1)?, Pool::of(1)?);
    let (first, second) = (one.play("lease drop").await?, other.play("lease drop").await?);
    assert_ne!(id(&first[0])?, id(&second[0])?);
    Ok(())
}

#[tokio::test]
async fn one_more_than_tests_hold_boots_ahead_of_demand() -> Result<()> {
    let pool = Pool::of(2)?.with("WOPR_POOL_AHEAD", "1");
    let mut holder = pool.start("lease wait")?;
    let held = until_leased(&mut holder).await?;
    let ahead = until_idle(&pool).await?;
    let mut next = pool.start("lease wait")?;
    assert_eq!(until_leased(&mut next).await?, ahead);
    assert_ne!(held, ahead);
    // The pool is full: nothing more boots.
    assert_eq!(std::fs::read_dir(pool.run.path())?.count(), 2);
    holder.kill().await?;
    next.kill().await?;
    Ok(())
}

#[tokio::test]
async fn what_boots_ahead_of_demand_stays_as_long_as_tests_come_one_by_one() -> Result<()> {
    let pool = Pool {
        idle: Duration::from_secs(8),
        ..Pool::of(2)?.with("WOPR_POOL_AHEAD", "1")
    };
    let said = pool.play("lease give").await?;
    let first = id(&said[0])?.to_owned();
    let both = [until_another(&pool, &first).await?, first];
    let began = Instant::now();
    while began.elapsed() < pool.idle + Duration::from_secs(4) {
        pool.play("lease give").await?;
    }
    for id in both {
        assert!(pool.run.path().join(&id).join("idle").exists(), "{id} is gone");
    }
    Ok(())
}

#[tokio::test]
async fn what_boots_ahead_of_demand_goes_with_a_killed_test() -> Result<()> {
    let pool = Pool {
        idle: Duration::from_secs(2),
        ..Pool::of(2)?.with("WOPR_POOL_AHEAD", "1")
    };
    let mut holder = pool.start("lease wait")?;
    let held = until_leased(&mut holder).await?;
    let ahead = until_another(&pool, &held).await?;
    holder.kill().await?;
    until_gone(&pool, &ahead).await?;
    until_gone(&pool, &held).await
}

/// Waits for a second topology, in whatever state; returns its id.
async fn until_another(pool: &Pool, one: &str) -> Result<String> {
    let began = Instant::now();
    loop {
        for entry in std::fs::read_dir(pool.run.path())?.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            if id != one {
                return Ok(id);
            }
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "nothing boots beside {one}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for a topology that nobody holds; returns its id.
async fn until_idle(pool: &Pool) -> Result<String> {
    let began = Instant::now();
    loop {
        for entry in std::fs::read_dir(pool.run.path())?.flatten() {
            if entry.path().join("idle").exists() {
                return Ok(entry.file_name().to_string_lossy().into_owned());
            }
        }
        assert!(began.elapsed() < Duration::from_secs(60), "nothing is idle");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_idle_topology_goes_when_its_time_is_over() -> Result<()> {
    let pool = Pool {
        idle: Duration::from_secs(2),
        ..Pool::of(1)?
    };
    let said = pool.play("lease drop").await?;
    until_gone(&pool, id(&said[0])?).await
}

async fn until_gone(pool: &Pool, id: &str) -> Result<()> {
    let (engine, began) = (Engine::connect().await?, Instant::now());
    let directory: PathBuf = pool.run.path().join(id);
    let label = format!("{LABEL_TOPOLOGY}={id}");
    while directory.exists() || !engine.topologies_with_label(&label).await?.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "{id} is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test]
async fn machines_end_by_themselves_when_the_keeper_is_killed_too() -> Result<()> {
    let pool = Pool {
        idle: Duration::from_secs(2),
        ..Pool::of(1)?
    };
    let mut holder = pool.start("lease wait")?;
    let id = until_leased(&mut holder).await?;
    kill_keeper(&id)?;
    holder.kill().await?;
    let (engine, began) = (Engine::connect().await?, Instant::now());
    for machine in ["vps", "gpu"] {
        let name = format!("wopr-{id}-{machine}");
        while engine.container(&name).await?.is_some_and(|state| state.running) {
            assert!(began.elapsed() < Duration::from_secs(60), "{name} still runs");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    // The next boot sweeps the rest.
    pool.play("lease drop").await?;
    until_gone(&pool, &id).await?;
    Ok(())
}

#[tokio::test]
async fn a_full_disk_is_told_of_before_the_boot() -> Result<()> {
    let pool = Pool::of(1)?.with("WOPR_DISK_FREE", "1000000000");
    let played = pool.start("lease drop")?.wait_with_output().await?;
    let errors = String::from_utf8_lossy(&played.stderr);
    assert!(errors.contains("MiB are needed for two machines"), "{errors}");
    assert_eq!(std::fs::read_dir(pool.run.path())?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn what_machines_start_from_is_never_written_to() -> Result<()> {
    let topology = wopr_harness::testing::topology().await;
    let digest = "cd /golden && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum";
    let look = async || {
        let mut control = topology.control(&GPU).await?;
        let limit = Duration::from_secs(60);
        anyhow::Ok(control.run(&["sh", "-c", digest], limit).await?)
    };
    let before = look().await?;
    topology.seed_gpu_node().await?;
    topology.restart(Service::LlamaCpp).await?;
    topology.power_cut(&GPU).await?;
    let written = ["sh", "-c", "echo x > /golden/x"];
    let (code, _) = topology
        .control(&GPU)
        .await?
        .run_any(&written, Duration::from_secs(5))
        .await?;
    assert_ne!(code, 0, "the golden volume is to be read-only in a machine");
    assert_eq!(look().await?, before);
    Ok(())
}
