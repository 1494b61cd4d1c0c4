//! What the InferenceWatchdog does about a node: its polls, its verdicts, its reboots.

use anyhow::{Context as _, Result};
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{POLL, minutes, polls, seconds};
use wopr_harness::fault::{Answer, Caller, Manner};
use wopr_harness::history::Health::{Down, Ok as Well};
use wopr_harness::history::Status::{Active, Degraded, Failed};
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_down, all_ok, health, status};
use wopr_harness::{GPU, Service, Topology, VPS};

#[tokio::test]
async fn two_silent_polls_degrade_the_node_and_a_good_one_heals_it() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(VPS, GPU).partition().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    cut.heal().await?;
    watch.until(status(Active)).within(polls(2)).await?;

    let history = watch.history().await?;
    assert_eq!(history.statuses(node.as_str()), [Active, Degraded, Active], "\n{history}");
    assert_eq!(history.notifications(node.as_str()), ["gpu_node_degraded"], "\n{history}");
    Ok(())
}

#[tokio::test]
async fn the_first_poll_comes_one_interval_after_the_start_and_finds_all_well() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let row = watch.next_poll().await?;
    assert_eq!(row.health().len(), 4);
    assert!(row.health().values().all(|health| *health == Well), "{row:?}");
    Ok(())
}
