//! The pool: one test holds a topology at a time, and gets it as new, whatever the one before left.
//!
//! Each test plays in a pool of its own, through processes of their own.

#[path = "common/players.rs"]
mod players;

use std::collections::BTreeSet;
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

#[rstest]
#[case::rows("rows")]
#[case::a_partition("partition")]
#[case::a_toxic("toxic")]
#[case::a_frozen_service("frozen-service")]
#[case::a_frozen_machine("frozen-machine")]
#[case::a_clock_that_jumped("clock-jump")]
#[case::a_wrong_name("wrong-name")]
#[case::a_cloud_that_somebody_operates("operated-cloud")]
#[case::a_stopped_database("stopped-database")]
#[case::a_watched_node("watch")]
#[tokio::test]
async fn what_a_reset_undoes_is_gone_for_the_next(#[case] mess: &str) -> Result<()> {
    let pool = Pool::of(1)?;
    let said = pool.play(&format!("lease {mess} give lease drop")).await?;
    assert_eq!(said[1], "gave back");
    assert_eq!(id(&said[0])?, id(&said[2])?);
    assert!(said[2].ends_with("with 0 rows"), "{said:?}");
    Ok(())
}

#[rstest]
#[case::a_packet_rule("packet-rule", "192.0.2.1")]
#[case::a_program("program", "program sleep")]
#[case::a_function_in_the_database("trigger", "function f()")]
#[case::a_setting_of_the_database("database-setting", "work_mem = 1024")]
#[case::no_service("no-service", "lost \"service whisper\"")]
#[case::no_machine("dead-machine", "lost \"machine gpu\"")]
#[case::an_absent_machine("absent-machine", "lost \"machine gpu at its address\"")]
#[case::a_moved_machine("moved-machine", "lost \"machine gpu at its address\"")]
#[tokio::test]
async fn what_a_reset_does_not_undo_is_named_and_its_topology_replaced(
    #[case] mess: &str,
    #[case] named: &str,
) -> Result<()> {
    let pool = Pool::of(1)?;
    let said = pool.play(&format!("lease {mess} give lease drop")).await?;
    assert!(
        said[1].starts_with("left ") && said[1].contains(named),
        "{said:?}"
    );
    assert_ne!(id(&said[0])?, id(&said[2])?);
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
