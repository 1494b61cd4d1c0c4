//! What a network that breaks between the machines does to a node's row.

use anyhow::Result;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::polls;
use wopr_harness::fault::{Fault, FaultError, Link, Outcome};
use wopr_harness::history::Health::{Down, Ok as Well};
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_down, all_ok, health, status};
use wopr_harness::{GPU, Service, VPS};

#[derive(Debug, Clone, Copy)]
enum Cut {
    Drop,
    Reset,
    Unreachable,
    Partition,
}

async fn apply(link: &Link<'_>, cut: Cut) -> Result<Fault, FaultError> {
    match cut {
        Cut::Drop => link.drop_packets().await,
        Cut::Reset => link.reset().await,
        Cut::Unreachable => link.unreachable().await,
        Cut::Partition => link.partition().await,
    }
}

#[rstest]
#[case::drop(Cut::Drop)]
#[case::reset(Cut::Reset)]
#[case::unreachable(Cut::Unreachable)]
#[case::partition(Cut::Partition)]
#[tokio::test]
async fn a_link_that_is_cut_degrades_the_node_and_its_heal_activates_it(#[case] cut: Cut) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let fault = apply(&topology.link(VPS, GPU), cut).await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    watch.polls(3).await?;
    fault.heal().await?;
    watch.until(status(Active)).within(polls(2)).await?;

    let history = watch.history().await?;
    assert_eq!(
        history.statuses(node.as_str()),
        [Active, Degraded, Active],
        "\n{history}"
    );
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::drop(Cut::Drop)]
#[case::reset(Cut::Reset)]
#[case::unreachable(Cut::Unreachable)]
#[tokio::test]
async fn a_port_that_is_cut_is_one_service_down(#[case] cut: Cut) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let fault = apply(&topology.link(VPS, GPU).port(8082), cut).await?;
    watch.until(health("whisper", Down)).within(polls(2)).await?;
    let row = watch.polls(3).await?.remove(2);
    assert_eq!(
        row.health().values().filter(|health| **health == Well).count(),
        3,
        "{row:?}"
    );
    assert_eq!(row.status, Active);
    fault.heal().await?;
    watch.until(all_ok()).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_link_that_is_cut_one_way_leaves_the_other_way_open() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    // Registrations do not get through; polls do.
    let cut = topology.link(GPU, VPS).drop_packets().await?;
    assert!(
        cut.receipt()
            .probes
            .iter()
            .any(|probe| probe.outcome == Outcome::Answered),
        "{}",
        cut.receipt()
    );
    let rows = watch.polls(3).await?;
    assert!(
        rows[2].health().values().all(|health| *health == Well),
        "{rows:?}"
    );
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn an_outage_between_two_polls_is_never_seen() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    for _ in 0..3 {
        watch.next_poll().await?;
        topology.link(VPS, GPU).reset().await?.heal().await?;
    }
    watch.next_poll().await?;
    let history = watch.history().await?;
    let silent = history
        .polls(node.as_str())
        .iter()
        .filter(|(_, row)| row.is_silent())
        .count();
    assert_eq!(silent, 0, "\n{history}");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_link_that_flaps_slower_than_the_polls_degrades_each_time() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    for _ in 0..2 {
        let cut = topology.link(VPS, GPU).reset().await?;
        watch.until(status(Degraded)).within(polls(3)).await?;
        cut.heal().await?;
        watch.until(status(Active)).within(polls(2)).await?;
    }
    let history = watch.history().await?;
    assert_eq!(
        history.statuses(node.as_str()),
        [Active, Degraded, Active, Degraded, Active],
        "\n{history}"
    );
    assert_eq!(
        history.notifications(node.as_str()).len(),
        2,
        "each outage is told of\n{history}"
    );
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_fault_that_is_dropped_heals_by_itself() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(VPS, GPU).partition().await?;
    watch.until(all_down()).within(polls(2)).await?;
    drop(cut);
    watch.until(all_ok()).within(polls(3)).await?;
    let rules = topology
        .control(&VPS)
        .await?
        .run(&["iptables-save"], std::time::Duration::from_secs(5))
        .await?;
    let gpu = topology.address(&GPU).to_string();
    assert!(
        !rules
            .lines()
            .any(|rule| rule.contains(&gpu) && rule.contains("DROP")),
        "{rules}"
    );
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_machine_that_reboots_is_silent_and_then_well() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let gpu = topology.machine(&GPU);

    gpu.kill().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    gpu.start().await?;
    watch.until(status(Active)).within(polls(4)).await?;
    watch.until(all_ok()).within(polls(4)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_frozen_stops_the_polls_and_they_go_on_after() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    let frozen = topology.pause_service(Service::Postgres).await?;
    // Nothing can be read while it is frozen: platform-api's own answer is what shows that it lives.
    assert!(topology.health(Service::PlatformApi).await.is_ok());
    frozen.heal().await?;
    watch.until(all_ok()).within(polls(4)).await?;
    watch.polls(2).await?;
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::one_in_a_hundred(0.01)]
#[case::one_in_ten(0.1)]
#[tokio::test]
async fn a_link_that_loses_packets_does_not_degrade_the_node(#[case] share: f64) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let _lossy = topology.link(VPS, GPU).lose(share).await?;
    watch.polls(8).await?;
    let history = watch.history().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    watch.conclude().await?;
    Ok(())
}
