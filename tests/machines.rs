//! What a machine, an engine or a database that fails does to a node's row.

use anyhow::Result;
use pretty_assertions::assert_eq;
use wopr_harness::clock::polls;
use wopr_harness::fault::Names;
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_down, all_ok, status};
use wopr_harness::{GPU, Service};

#[tokio::test]
async fn a_machine_that_is_frozen_for_two_polls_is_degraded_and_active_after() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let frozen = topology.pause_machine(&GPU).await?;
    assert_eq!(topology.faults().await?, [(GPU, "pause of gpu".to_owned())]);
    watch.until(status(Degraded)).within(polls(3)).await?;
    frozen.heal().await?;
    assert_eq!(topology.faults().await?, []);

    let history = watch.conclude().await?;
    assert_eq!(
        history.statuses(node.as_str()),
        [Active, Degraded, Active],
        "\n{history}"
    );
    Ok(())
}

#[tokio::test]
async fn a_node_at_a_new_address_is_lost_until_it_is_seeded_again() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let old = topology.address(&GPU);
    let new = topology.reboot_at_new_address(&GPU, Names::Follow).await?;
    assert_eq!(topology.address(&GPU), new);
    let row = watch.until(status(Degraded)).within(polls(3)).await?;
    assert_eq!(row.host, Some(old.to_string()), "the row is stale");
    topology.seed_gpu_node().await?;
    let row = watch.until(all_ok()).within(polls(3)).await?;
    assert_eq!(row.host, Some(new.to_string()));
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_machine_that_leaves_the_network_and_rejoins_it_is_down_and_then_well() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let away = topology.disconnect_machine(&GPU).await?;
    watch.until(all_down()).within(polls(2)).await?;
    away.heal().await?;
    watch.until(all_ok()).within(polls(2)).await?;
    for service in topology.expected_services() {
        topology.until_healthy(&[service]).await?;
    }
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_full_disk_ends_polls_and_the_next_one_after_it_is_written() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    let full = topology.fill_disk().await?;
    assert!(topology.health(Service::PlatformApi).await.is_ok());
    full.heal().await?;
    watch.until(all_ok()).within(polls(4)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn an_engine_that_is_killed_comes_back_with_its_services() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    topology.kill_engine(&GPU).await?;
    watch.until(all_ok()).within(polls(4)).await?;
    watch.conclude().await?;
    Ok(())
}
