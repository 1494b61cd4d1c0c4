//! Nodes that one poll takes in turn: what their rows say of a poll that is under way.

#![allow(dead_code, reason = "each file of tests uses a part")]

use anyhow::Result;
use wopr_harness::fault::Fault;
use wopr_harness::history::History;
use wopr_harness::seed::{self, NodeId, NodeSpec};
use wopr_harness::{GPU, Service, Topology};

/// Seeds so many active nodes while platform-api is stopped, so that no poll sees some of them alone; returns its stop.
pub async fn seed_while_stopped(topology: &Topology, count: usize) -> Result<(Vec<NodeId>, Fault)> {
    let stopped = topology.stop_service(Service::PlatformApi).await?;
    let mut nodes = Vec::new();
    for number in 1..=count {
        let node: NodeId = format!("node-{number}").parse()?;
        seed::write(topology, &NodeSpec::at(node.clone(), topology.address(&GPU))).await?;
        nodes.push(node);
    }
    Ok((nodes, stopped))
}

/// Starts platform-api again, and waits until it is well.
pub async fn start(topology: &Topology, stopped: Fault) -> Result<()> {
    stopped.heal().await?;
    Ok(topology.until_healthy(&[Service::PlatformApi]).await?)
}

/// Whether some of these nodes were polled more often than others between two times, the first included, in
/// microseconds since 1970: then a poll was under way at the second, unless one was at the first.
pub fn is_uneven(history: &History, nodes: &[NodeId], from: i64, to: i64) -> bool {
    let polls = nodes.iter().map(|node| {
        let polls = history.polls(node.as_str()).into_iter();
        polls.filter(|(at, _)| (from..to).contains(at)).count()
    });
    polls.clone().min() != polls.max()
}
