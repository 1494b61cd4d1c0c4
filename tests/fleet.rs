//! Several GPU machines, each with links, faults and a node of its own.

#[path = "common/making.rs"]
mod making;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use making::{admin_well, judged};
use pretty_assertions::assert_eq;
use reqwest::Method;
use serde_json::{Value, json};
use wopr_harness::clock::{Rate, minutes, polls};
use wopr_harness::cloud::Conduct;
use wopr_harness::fault::{Names, Outcome, Split};
use wopr_harness::history::History;
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::machine::MachineName;
use wopr_harness::seed::{self, FleetNode, NodeId};
use wopr_harness::testing::light_fleet;
use wopr_harness::watch::{all_down, all_ok, status};
use wopr_harness::{Topology, VPS};

fn machines(nodes: &[FleetNode]) -> Vec<MachineName> {
    nodes.iter().map(|node| node.machine.clone()).collect()
}

fn ids(nodes: &[FleetNode]) -> Vec<NodeId> {
    nodes.iter().map(|node| node.id.clone()).collect()
}

fn unharmed(history: &History, nodes: &[FleetNode]) {
    for node in nodes {
        assert_eq!(
            history.statuses(node.id.as_str()),
            [Active],
            "{}\n{history}",
            node.id
        );
    }
}

#[tokio::test]
async fn each_full_machine_of_a_fleet_is_found_well_and_lost_alone() -> Result<()> {
    let rate = Rate::from_environment()?;
    let topology = Topology::builder().rate(rate).gpus(3).boot().await?;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    watch.until_each(all_ok()).within(polls(3)).await?;

    let lost = &nodes[1];
    let off = topology.kill_machine(&lost.machine).await?;
    let node = [lost.id.clone()];
    watch
        .until_these(&node, status(Degraded))
        .within(polls(4))
        .await?;
    off.heal().await?;
    let history = watch.conclude().await?;
    unharmed(&history, &nodes[..1]);
    unharmed(&history, &nodes[2..]);
    Ok(())
}

#[tokio::test]
async fn sixteen_light_machines_are_found_well_at_addresses_of_their_own() -> Result<()> {
    let topology = light_fleet(16).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    watch.until_each(all_ok()).within(polls(3)).await?;
    let addresses: BTreeSet<_> = nodes.iter().map(|node| topology.address(&node.machine)).collect();
    assert_eq!(addresses.len(), 16);
    let history = watch.conclude().await?;
    unharmed(&history, &nodes);
    Ok(())
}

#[tokio::test]
async fn half_of_a_fleet_that_is_cut_off_degrades_and_the_other_half_does_not() -> Result<()> {
    let topology = light_fleet(8).await;
    let nodes = topology.seed_fleet().await?;
    let (near, far) = nodes.split_at(4);
    let mut watch = topology.watch_fleet(&nodes).await?;

    let here = [vec![VPS], machines(near)].concat();
    let split = Split::groups([here, machines(far)]);
    let cut = topology.partition(&split).await?;
    let silent = cut.receipt().probes.iter();
    let silent = silent.filter(|probe| probe.outcome == Outcome::NoConnection);
    assert_eq!(silent.count(), 2 * split.cut(), "{}", cut.receipt());
    watch
        .until_these(&ids(far), status(Degraded))
        .within(polls(6))
        .await?;
    cut.heal().await?;

    let history = watch.conclude().await?;
    unharmed(&history, near);
    for node in far {
        assert_eq!(
            history.statuses(node.id.as_str()),
            [Active, Degraded, Active],
            "\n{history}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn one_machine_against_the_rest_is_the_only_one_that_degrades() -> Result<()> {
    let topology = light_fleet(5).await;
    let nodes = topology.seed_fleet().await?;
    let (lost, others) = nodes.split_first().context("a fleet")?;
    let mut watch = topology.watch_fleet(&nodes).await?;

    let all = [vec![VPS], machines(&nodes)].concat();
    let cut = topology
        .partition(&Split::one_against_the_rest(&lost.machine, &all))
        .await?;
    watch
        .until_these(&ids(&nodes[..1]), status(Degraded))
        .within(polls(5))
        .await?;
    cut.heal().await?;
    let history = watch.conclude().await?;
    unharmed(&history, others);
    Ok(())
}

#[tokio::test]
async fn a_vps_machine_against_the_rest_loses_the_whole_fleet() -> Result<()> {
    let topology = light_fleet(3).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    let cut = topology
        .partition(&Split::one_against_the_rest(&VPS, &machines(&nodes)))
        .await?;
    watch.until_each(status(Degraded)).within(polls(5)).await?;
    cut.heal().await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn in_a_ring_the_watchdog_sees_its_two_neighbours_alone() -> Result<()> {
    let topology = light_fleet(4).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;

    // The VPS machine's neighbours are the first and the last.
    let ring = Split::ring(&[vec![VPS], machines(&nodes)].concat());
    let cut = topology.partition(&ring).await?;
    watch
        .until_these(&ids(&nodes[1..3]), status(Degraded))
        .within(polls(5))
        .await?;
    cut.heal().await?;
    let history = watch.conclude().await?;
    unharmed(&history, &[nodes[0].clone(), nodes[3].clone()]);
    Ok(())
}

#[tokio::test]
async fn machines_that_a_bridge_joins_are_both_found_well() -> Result<()> {
    let topology = light_fleet(2).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    let [left, right] = [&nodes[..1], &nodes[1..]].map(machines);
    let _cut = topology.partition(&Split::bridge(&left, &VPS, &right)).await?;
    watch.until_each(all_ok()).within(polls(3)).await?;
    watch.polls(3).await?;
    unharmed(&watch.conclude().await?, &nodes);
    Ok(())
}

#[tokio::test]
async fn a_node_behind_a_bridge_is_lost_with_the_link_of_its_side() -> Result<()> {
    let topology = light_fleet(2).await;
    let nodes = topology.seed_fleet().await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    // The first machine sees both, the VPS machine and the second do not see each other.
    let bridge = Split::bridge(&[VPS], &nodes[0].machine, &machines(&nodes[1..]));
    let cut = topology.partition(&bridge).await?;
    watch
        .until_these(&ids(&nodes[1..]), status(Degraded))
        .within(polls(5))
        .await?;
    cut.heal().await?;
    unharmed(&watch.conclude().await?, &nodes[..1]);
    Ok(())
}

#[tokio::test]
async fn finding_3_eight_black_holed_machines_of_sixteen_make_polls_overlap() -> Result<()> {
    let topology = light_fleet(16).await;
    let nodes = topology.fleet();
    let (near, far) = nodes.split_at(8);
    let here = [vec![VPS], machines(near)].concat();
    let _cut = topology.partition(&Split::groups([here, machines(far)])).await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    // The first poll after this begins with all of them; eight times five seconds are more than thirty.
    topology.seed_nodes(&nodes).await?;
    watch.polls(2).await?;

    let history = watch.history().await?;
    let nth = |place: usize| -> Vec<i64> {
        let times = far
            .iter()
            .filter_map(|node| Some(history.polls(node.id.as_str()).get(place)?.0));
        times.collect()
    };
    let (firsts, seconds) = (nth(0), nth(1));
    assert_eq!((firsts.len(), seconds.len()), (8, 8), "\n{history}");
    let overlap = seconds.iter().min() < firsts.iter().max();
    assert!(
        overlap,
        "each node was polled once before any was polled again\n{history}"
    );
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn nodes_join_and_leave_while_the_watchdog_polls() -> Result<()> {
    let topology = light_fleet(3).await;
    let nodes = topology.fleet();
    let (first, late) = (&nodes[..2], &nodes[2]);
    topology.seed_nodes(first).await?;
    let mut watch = topology.watch_fleet(&nodes).await?;
    watch.until_these(&ids(first), all_ok()).within(polls(3)).await?;

    seed::write(&topology, &late.spec(&topology)).await?;
    watch
        .until_these(&ids(&nodes[2..]), all_ok())
        .within(polls(3))
        .await?;

    let leaving = &nodes[1];
    admin_well(
        &topology,
        Method::DELETE,
        &format!("/{}", leaving.id),
        Value::Null,
    )
    .await?;
    let staying = [nodes[0].clone(), late.clone()];
    let mut watch = topology.watch_fleet(&staying).await?;
    watch.polls(3).await?;
    let history = watch.conclude().await?;
    unharmed(&history, &staying);
    let (gone, on) = (
        history.polls(leaving.id.as_str()),
        history.polls(late.id.as_str()),
    );
    let (last, _) = gone.last().context("it was polled before")?;
    let after = on.iter().filter(|(at, _)| at > last).count();
    assert!(after >= 3, "the node that left is polled on\n{history}");
    Ok(())
}

#[tokio::test]
async fn sixteen_nodes_that_are_provisioned_at_once_are_machines_of_their_own() -> Result<()> {
    let rate = Rate::from_environment()?;
    let topology = Topology::builder().rate(rate).light().rack(16).boot().await?;
    let operator = topology.operate_cloud(Conduct::default()).await?;
    let ids: Vec<NodeId> = (1..=16)
        .map(|number| format!("made-{number:03}").parse())
        .collect::<Result<_, _>>()?;
    let mut watch = topology.watch_nodes(ids.clone()).await?;
    let made = ids
        .iter()
        .map(|id| admin_well(&topology, Method::POST, "", json!({ "name": id.as_str() })));
    try_join_all(made).await?;

    watch.until_each(status(Active)).within(minutes(10)).await?;
    watch.until_each(all_ok()).within(polls(4)).await?;
    let history = watch.history().await?;
    let hosts: BTreeSet<_> = ids
        .iter()
        .filter_map(|id| history.rows(id.as_str()).last()?.1.host.clone())
        .collect();
    assert_eq!(hosts.len(), 16, "\n{history}");
    operator.end()?;
    judged(&topology).await?;
    Ok(())
}

#[tokio::test]
async fn a_node_is_whoever_has_its_address() -> Result<()> {
    let topology = light_fleet(2).await;
    let nodes = topology.seed_fleet().await?;
    let first = ids(&nodes[..1]);
    let mut watch = topology.watch_fleet(&nodes).await?;
    watch.until_each(all_ok()).within(polls(3)).await?;
    let off = topology.kill_machine(&nodes[0].machine).await?;
    watch.until_these(&first, all_down()).within(polls(3)).await?;
    // The other machine takes the address over: the watchdog cannot tell, and finds the node well.
    let address = topology.address(&nodes[0].machine);
    topology
        .reboot_at(&nodes[1].machine, address, Names::Stale)
        .await?;
    watch.until_these(&first, all_ok()).within(polls(4)).await?;
    watch
        .until_these(&ids(&nodes[1..]), all_down())
        .within(polls(4))
        .await?;
    drop(off);
    judged(&topology).await?;
    Ok(())
}
