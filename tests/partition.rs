//! What a network that breaks between the machines does to a node's row.

use std::time::Instant;

use anyhow::Result;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{POLL, PlatformTime, polls, seconds};
use wopr_harness::fault::{Fault, FaultError, Link, Outcome};
use wopr_harness::history::Health::{Down, Ok as Well};
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::testing::topology;
use wopr_harness::watch::{Condition, WatchError, all_down, all_ok, health, services, status};
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
    watch.polls(2).await?;
    let found = [
        ("llama", Well),
        ("chatterbox", Well),
        ("whisper", Down),
        ("qwen", Well),
    ];
    let row = watch.found(services(found)).await?;
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
    watch.polls(2).await?;
    watch.found(all_ok()).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn an_outage_between_two_polls_is_never_seen() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let mut long = 0;
    for _ in 0..3 {
        watch.next_poll().await?;
        let began = Instant::now();
        topology.link(VPS, GPU).reset().await?.heal().await?;
        // On a busy host an outage may last into the next poll.
        long += usize::from(began.elapsed() > topology.rate().real(polls(1)) / 2);
    }
    watch.next_poll().await?;
    let history = watch.history().await?;
    let silent = history
        .polls(node.as_str())
        .iter()
        .filter(|(_, row)| row.is_silent())
        .count();
    assert!(
        silent <= long,
        "{long} outages of three were not between two polls\n{history}"
    );
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

    let off = topology.kill_machine(&GPU).await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    off.heal().await?;
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

#[tokio::test]
async fn a_link_that_loses_a_third_shows_services_down_now_and_then() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let _lossy = topology.link(VPS, GPU).lose(0.3).await?;
    let some_down = Condition::new("a service down", |row| {
        row.health().values().any(|health| *health == Down)
    });
    watch.until(some_down).within(polls(8)).await?;
    watch.until(health("llama", Well)).within(polls(30)).await?;
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::refused(Opening::Refused)]
#[case::without_an_answer(Opening::Unanswered)]
#[tokio::test]
async fn a_node_that_takes_no_new_connections_is_degraded_since_each_poll_opens_its_own(
    #[case] opening: Opening,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let link = topology.link(VPS, GPU);
    let closed = match opening {
        Opening::Refused => link.refuse_new().await?,
        Opening::Unanswered => link.drop_new().await?,
    };
    watch.until(status(Degraded)).within(polls(3)).await?;
    closed.heal().await?;
    watch.until(status(Active)).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Opening {
    Refused,
    Unanswered,
}

#[tokio::test]
async fn a_cable_pulled_and_put_back_harms_no_poll_that_begins_after_it() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    watch.next_poll().await?;
    let _cut = topology.link(VPS, GPU).cut_flowing().await?;
    watch.found(all_ok()).await?;
    watch.found(all_ok()).await?;
    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    Ok(())
}

#[tokio::test]
async fn a_cut_of_platform_api_alone_degrades_a_node_that_its_machine_still_reaches() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(Service::PlatformApi, GPU).partition().await?;
    let probes = &cut.receipt().probes;
    assert!(
        probes
            .iter()
            .any(|probe| probe.from == "vps" && probe.outcome == Outcome::Answered),
        "{}",
        cut.receipt()
    );
    watch.until(status(Degraded)).within(polls(3)).await?;
    cut.heal().await?;
    watch.until(status(Active)).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::drop(Cut::Drop)]
#[case::reset(Cut::Reset)]
#[case::partition(Cut::Partition)]
#[tokio::test]
async fn a_database_out_of_reach_stops_the_polls_and_they_go_on_after(#[case] cut: Cut) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    let fault = apply(&topology.link(Service::PlatformApi, Service::Postgres), cut).await?;
    let silent = watch.next_whole_poll().await;
    assert!(matches!(silent, Err(WatchError::TimedOut { .. })), "{silent:?}");
    assert!(topology.health(Service::PlatformApi).await.is_ok());
    fault.heal().await?;
    watch.until(all_ok()).within(polls(4)).await?;
    watch.polls(2).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_database_that_takes_no_new_connections_degrades_no_node_and_polls_go_on_after() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    let closed = topology
        .link(Service::PlatformApi, Service::Postgres)
        .refuse_new()
        .await?;
    // Whether polls go on over the connections of before is its pool's to say: there is nothing to wait for.
    tokio::time::sleep(topology.rate().real(polls(4))).await;
    closed.heal().await?;
    watch.next_whole_poll().await?;
    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    Ok(())
}

#[tokio::test]
async fn polls_go_on_after_the_connections_to_the_database_stood_still_for_good() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    let _cut = topology
        .link(Service::PlatformApi, Service::Postgres)
        .cut_flowing()
        .await?;
    // The poll that met the cut is lost with its connection; new ones come about.
    watch.until(all_ok()).within(polls(6)).await?;
    watch.polls(2).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_link_that_flaps_faster_than_the_polls_is_judged_by_what_each_poll_met() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let link = topology.link(VPS, GPU);
    let began = Instant::now();
    while began.elapsed() < topology.rate().real(polls(6)) {
        link.reset().await?.heal().await?;
    }
    // What each poll met is in its row; what had to follow from it is the oracle's to say.
    watch.next_poll().await?;
    let history = watch.conclude().await?;
    assert!(history.polls(node.as_str()).len() >= 6, "\n{history}");
    Ok(())
}

#[tokio::test]
async fn a_heal_at_the_edge_of_a_poll_counts_for_that_poll_or_for_the_next() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let rate = topology.rate();

    for early in [seconds(4.0), seconds(2.0), seconds(0.0)] {
        let cut = topology.link(VPS, GPU).reset().await?;
        let silent = watch.until(all_down()).within(polls(3)).await?;
        // No event tells that a poll is about to begin: they are one interval apart.
        tokio::time::sleep(rate.real(PlatformTime(POLL.0 - early.0))).await;
        cut.heal().await?;
        let next = watch.next_poll().await?;
        assert!(
            next.is_silent() || next.health().values().all(|health| *health == Well),
            "{silent:?} {next:?}"
        );
        watch.until(all_ok()).within(polls(3)).await?;
        watch.until(status(Active)).within(polls(2)).await?;
    }
    watch.conclude().await?;
    Ok(())
}
