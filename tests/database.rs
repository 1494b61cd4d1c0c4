//! What a database that fails does to polls, registrations and the watchdog's memory.

#[path = "common/making.rs"]
mod making;
#[path = "common/rounds.rs"]
mod rounds;

use anyhow::{Context as _, Result, bail};
use making::register;
use pretty_assertions::assert_eq;
use rounds::{is_uneven, seed_while_stopped, start};
use rstest::rstest;
use wopr_harness::clock::{polls, seconds};
use wopr_harness::fault::{Fault, FaultError, Manner};
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::history::{History, Part, What};
use wopr_harness::seed::NodeSpec;
use wopr_harness::testing::topology;
use wopr_harness::watch::{Condition, all_ok, status};
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

/// When a fault was seen to be in effect last, in microseconds since 1970.
fn begun(history: &History, name: &str) -> Option<i64> {
    let begun = history.events.iter().rev().find(
        |event| matches!(&event.what, What::Deed(deed) if deed.part == Part::Begun && deed.name == name),
    );
    begun.map(|event| event.at_us)
}

#[tokio::test]
async fn a_database_that_goes_in_the_middle_of_a_poll_ends_it_and_the_next_interval_tries_again() -> Result<()>
{
    let topology = topology().await;
    let (nodes, stopped) = seed_while_stopped(&topology, 4).await?;
    let mut watch = topology.watch_nodes(nodes.clone()).await?;
    // Each takes five seconds, for the one service that says nothing: a poll takes two thirds of its interval.
    let _silent = topology.impersonate(Service::Whisper, Manner::Silent).await?;
    start(&topology, stopped).await?;

    // A busy host may be too slow to meet one.
    for _ in 0..6 {
        watch.next_poll().await?;
        let away = topology.stop_service(Service::Postgres).await?;
        let name = away.name().to_owned();
        away.heal().await?;
        watch.polls(2).await?;
        let history = watch.history().await?;
        let gone = begun(&history, &name).context("it was away")?;
        if is_uneven(&history, &nodes, 0, gone) {
            let history = watch.conclude().await?;
            for node in &nodes {
                assert_eq!(history.statuses(node.as_str()), [Active], "{node}\n{history}");
            }
            return Ok(());
        }
    }
    bail!(
        "no poll was under way when the database went\n{}",
        watch.history().await?
    )
}
