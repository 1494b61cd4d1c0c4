//! What a database that fails does to polls, registrations and the watchdog's memory.

#[path = "common/making.rs"]
mod making;

use anyhow::{Result, bail};
use making::register;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{minutes, polls, seconds};
use wopr_harness::fault::{Fault, FaultError};
use wopr_harness::history::Status::{Active, Degraded, Failed};
use wopr_harness::seed::NodeSpec;
use wopr_harness::testing::topology;
use wopr_harness::watch::{Condition, all_down, all_ok, status};
use wopr_harness::{GPU, Service, Topology, VPS};

#[derive(Debug, Clone, Copy)]
enum Harm {
    Stop,
    Kill,
    Pause,
    FullDisk,
}

async fn apply(topology: &Topology, harm: Harm) -> Result<Fault, FaultError> {
    match harm {
        Harm::Stop => topology.stop_service(Service::Postgres).await,
        Harm::Kill => topology.kill_service(Service::Postgres).await,
        Harm::Pause => topology.pause_service(Service::Postgres).await,
        Harm::FullDisk => topology.fill_disk().await,
    }
}

/// Waits, where there is nothing to wait for: no poll can be written while the database is away.
async fn two_polls_pass(topology: &Topology) {
    tokio::time::sleep(topology.rate().real(polls(2))).await;
}

/// Waits until platform-api has logged something new: when all is well it logs no polls.
async fn a_poll_is_ended_and_logged(topology: &Topology) -> Result<()> {
    let engine = topology.machine(&VPS).engine();
    let container = Service::PlatformApi.container();
    let before = engine.log_tail(&container, 50).await?;
    let logged = async {
        while engine.log_tail(&container, 50).await? == before {
            tokio::time::sleep(topology.rate().real(seconds(1.0))).await;
        }
        anyhow::Ok(())
    };
    let limit = topology.rate().real(polls(5));
    match tokio::time::timeout(limit, logged).await {
        Ok(logged) => logged,
        Err(_) => bail!("no poll's end is logged within {}:\n{before}", polls(5)),
    }
}

#[rstest]
#[case::stopped(Harm::Stop)]
#[case::killed(Harm::Kill)]
#[case::frozen(Harm::Pause)]
#[case::on_a_full_disk(Harm::FullDisk)]
#[tokio::test]
async fn a_database_that_is_away_ends_polls_and_those_after_its_return_are_written(
    #[case] harm: Harm,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    let away = apply(&topology, harm).await?;
    match harm {
        // Whether a poll waits for a database that is silent, the contract leaves open.
        Harm::Pause => two_polls_pass(&topology).await,
        _ => a_poll_is_ended_and_logged(&topology).await?,
    }
    assert!(
        topology.health(Service::PlatformApi).await.is_ok(),
        "it lives without"
    );
    away.heal().await?;
    watch.until(all_ok()).within(polls(4)).await?;
    watch.polls(2).await?;

    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    Ok(())
}

#[rstest]
#[case::stopped(Harm::Stop)]
#[case::killed(Harm::Kill)]
#[case::on_a_full_disk(Harm::FullDisk)]
#[tokio::test]
async fn a_registration_without_a_database_is_a_500_and_changes_nothing(#[case] harm: Harm) -> Result<()> {
    let topology = topology().await;
    let spec = NodeSpec::at("fresh".parse()?, topology.address(&GPU)).status("provisioning");
    wopr_harness::seed::write(&topology, &spec).await?;
    let mut watch = topology.watch(&spec.id).await?;

    let away = apply(&topology, harm).await?;
    assert_eq!(register(&topology, spec.id.as_str(), "done").await?, 500);
    away.heal().await?;
    let history = watch.history().await?;
    assert_eq!(
        history.rows("fresh").count(),
        0,
        "the row is as it was\n{history}"
    );
    assert_eq!(
        register(&topology, spec.id.as_str(), "registering").await?,
        200,
        "and its retry is taken"
    );
    let registering = Condition::new("stage registering", |row| row.provision_stage == "registering");
    watch.until(registering).within(seconds(10.0)).await?;
    Ok(())
}

#[rstest]
#[case::killed(Harm::Kill)]
#[case::on_a_full_disk(Harm::FullDisk)]
#[tokio::test]
async fn what_was_committed_outlives_the_databases_end(#[case] harm: Harm) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let before = watch.polls(3).await?;

    apply(&topology, harm).await?.heal().await?;
    watch.until(all_ok()).within(polls(4)).await?;
    let history = watch.conclude().await?;
    let polled: Vec<_> = history.rows(node.as_str()).map(|(_, row)| row.clone()).collect();
    for row in before {
        assert!(polled.contains(&row), "{row:?} is gone\n{history}");
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_crashes_is_started_again_and_costs_a_poll_at_most() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    topology.crash_service(Service::Postgres).await?;
    watch.until(all_ok()).within(polls(3)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_database_that_restarts_leaves_the_watchdog_its_memory() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    topology.restart(Service::Postgres).await?;
    cut.heal().await?;
    // Unlike after a restart of platform-api itself: finding 1.
    watch.until(status(Active)).within(polls(3)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_crash_of_platform_api_while_all_is_well_is_not_seen_in_the_row() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    topology.crash_service(Service::PlatformApi).await?;
    watch.polls(2).await?;
    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    assert_eq!(history.notifications(node.as_str()).len(), 0, "\n{history}");
    Ok(())
}

#[tokio::test]
async fn a_crash_of_platform_api_after_one_silent_poll_starts_the_count_anew() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    // A new process's time begins anew: without these, its first poll could bear the very second of the last one.
    watch.polls(2).await?;
    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(all_down()).within(polls(2)).await?;
    topology.crash_service(Service::PlatformApi).await?;
    let row = watch.until(all_down()).within(polls(2)).await?;
    assert_eq!(
        row.status,
        Active,
        "the first is forgotten\n{}",
        watch.history().await?
    );
    watch.until(status(Degraded)).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_crash_of_platform_api_after_the_failure_leaves_the_node_failed() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet("412345678").await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Failed)).within(minutes(13)).await?;
    topology.crash_service(Service::PlatformApi).await?;
    cut.heal().await?;
    two_polls_pass(&topology).await;
    let history = watch.conclude().await?;
    assert_eq!(
        history.statuses(node.as_str()).last(),
        Some(&Failed),
        "\n{history}"
    );
    assert_eq!(history.reboots("412345678"), 1, "\n{history}");
    Ok(())
}
