//! Several GPU machines, each with links, faults and a node of its own.

use anyhow::Result;
use futures_util::future::try_join_all;
use pretty_assertions::assert_eq;
use wopr_harness::clock::{Rate, polls};
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::machine::MachineName;
use wopr_harness::seed::{self, NodeId, NodeSpec};
use wopr_harness::watch::{all_down, all_ok, status};
use wopr_harness::{Topology, VPS};

/// A fleet, and an active node for each of its machines.
async fn fleet(count: usize) -> Result<(Topology, Vec<(MachineName, NodeId)>)> {
    let rate = Rate::from_environment()?;
    let topology = Topology::builder().rate(rate).gpus(count).boot().await?;
    let mut nodes = Vec::new();
    for number in 1..=count {
        let (machine, node) = (
            MachineName::gpu(number),
            format!("node-{number}").parse::<NodeId>()?,
        );
        seed::write(&topology, &NodeSpec::at(node.clone(), topology.address(&machine))).await?;
        nodes.push((machine, node));
    }
    Ok((topology, nodes))
}

#[tokio::test]
async fn each_machine_of_a_fleet_is_found_well_at_its_own_address() -> Result<()> {
    let (topology, nodes) = fleet(3).await?;
    let found = nodes.iter().map(|(_, node)| async {
        let mut watch = topology.watch(node).await?;
        watch.until(all_ok()).within(polls(3)).await?;
        anyhow::Ok(watch.conclude().await?)
    });
    try_join_all(found).await?;
    let hosts: std::collections::BTreeSet<_> = nodes
        .iter()
        .map(|(machine, _)| topology.address(machine))
        .collect();
    assert_eq!(hosts.len(), 3);
    Ok(())
}

#[tokio::test]
async fn a_machine_that_is_lost_degrades_its_own_node_alone() -> Result<()> {
    let (topology, nodes) = fleet(3).await?;
    let (lost, node) = &nodes[1];
    let mut watch = topology.watch(node).await?;
    let off = topology.kill_machine(lost).await?;
    watch.until(status(Degraded)).within(polls(4)).await?;
    let history = topology.history().await?;
    for (_, other) in [&nodes[0], &nodes[2]] {
        assert_eq!(history.statuses(other.as_str()), [Active], "\n{history}");
    }
    off.heal().await?;
    watch.until(status(Active)).within(polls(6)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn half_of_a_fleet_that_is_cut_off_comes_back_when_it_heals() -> Result<()> {
    let (topology, nodes) = fleet(4).await?;
    let (near, far) = nodes.split_at(2);
    let mut watches = Vec::new();
    for (_, node) in far {
        watches.push(topology.watch(node).await?);
    }
    let mut cuts = Vec::new();
    for (machine, _) in far {
        cuts.push(topology.link(VPS, machine.clone()).reset().await?);
    }
    for watch in &mut watches {
        watch.until(status(Degraded)).within(polls(5)).await?;
    }
    let history = topology.history().await?;
    for (_, node) in near {
        assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    }
    for cut in cuts {
        cut.heal().await?;
    }
    for watch in watches {
        let history = watch.conclude().await?;
        assert!(!history.events.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn machines_that_cannot_reach_each_other_are_both_found_by_the_watchdog() -> Result<()> {
    let (topology, nodes) = fleet(2).await?;
    let (one, other) = (nodes[0].0.clone(), nodes[1].0.clone());
    // A bridge: the VPS machine sees both, and they do not see each other.
    let _there = topology.link(one.clone(), other.clone()).reset().await?;
    let _back = topology.link(other, one).reset().await?;
    for (_, node) in &nodes {
        let mut watch = topology.watch(node).await?;
        watch.until(all_ok()).within(polls(3)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_is_whoever_has_its_address() -> Result<()> {
    let (topology, nodes) = fleet(2).await?;
    let (first, second) = (&nodes[0], &nodes[1]);
    let mut watch = topology.watch(&first.1).await?;
    watch.until(all_ok()).within(polls(3)).await?;
    let off = topology.kill_machine(&first.0).await?;
    watch.until(all_down()).within(polls(3)).await?;
    // The other machine takes the address over: the watchdog cannot tell, and finds the node well.
    let address = topology.address(&first.0);
    topology
        .reboot_at(&second.0, address, wopr_harness::fault::Names::Stale)
        .await?;
    watch.until(all_ok()).within(polls(4)).await?;
    drop(off);
    Ok(())
}
