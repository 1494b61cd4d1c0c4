//! What a machine, or its engine, that fails does to a node's row.

use std::time::Duration;

use anyhow::Result;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{minutes, polls};
use wopr_harness::fault::{Fault, FaultError, Names};
use wopr_harness::history::Status::{Active, Degraded, Failed};
use wopr_harness::machine::{MachineName, Role};
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_down, all_ok, status};
use wopr_harness::{GPU, Service, Topology, VPS};

/// A program in a machine that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Harm {
    Pause,
    PowerCut,
    Shutdown,
    Absence,
}

async fn apply(topology: &Topology, machine: &MachineName, harm: Harm) -> Result<Fault, FaultError> {
    match harm {
        Harm::Pause => topology.pause_machine(machine).await,
        Harm::PowerCut => topology.kill_machine(machine).await,
        Harm::Shutdown => topology.stop_machine(machine).await,
        Harm::Absence => topology.disconnect_machine(machine).await,
    }
}

#[rstest]
#[case::frozen(Harm::Pause, "pause of gpu")]
#[case::without_power(Harm::PowerCut, "gpu is off")]
#[case::shut_down(Harm::Shutdown, "gpu is off")]
#[case::off_the_network(Harm::Absence, "absence of gpu from the network")]
#[tokio::test]
async fn a_machine_that_is_lost_for_two_polls_is_degraded_and_active_after(
    #[case] harm: Harm,
    #[case] listed: &str,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let lost = apply(&topology, &GPU, harm).await?;
    assert_eq!(topology.faults().await?, [(GPU, listed.to_owned())]);
    watch.until(status(Degraded)).within(polls(3)).await?;
    lost.heal().await?;
    assert_eq!(topology.faults().await?, []);
    topology.until_healthy(&Service::ALL).await?;

    let history = watch.conclude().await?;
    let expected = [Active, Degraded, Active];
    assert_eq!(history.statuses(node.as_str()), expected, "\n{history}");
    Ok(())
}

#[rstest]
#[case::frozen(Harm::Pause)]
#[case::without_power(Harm::PowerCut)]
#[case::off_the_network(Harm::Absence)]
#[tokio::test]
async fn a_lost_machine_comes_back_when_nobody_holds_it(#[case] harm: Harm) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let lost = apply(&topology, &GPU, harm).await?;
    watch.until(all_down()).within(polls(2)).await?;
    drop(lost);
    topology.machine(&GPU).until_ready().await?;
    assert_eq!(topology.faults().await?, []);
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::frozen(Harm::Pause)]
#[case::without_power(Harm::PowerCut)]
#[case::off_the_network(Harm::Absence)]
#[tokio::test]
async fn a_harm_that_nobody_waits_for_is_undone(#[case] harm: Harm) -> Result<()> {
    let topology = topology().await;
    // From before the engine was asked to after it has done it.
    for patience in [0, 20, 60, 120, 240] {
        let asked = apply(&topology, &GPU, harm);
        let _ = tokio::time::timeout(Duration::from_millis(patience), asked).await;
        assert_eq!(topology.faults().await?, [], "after {patience} ms");
        topology.machine(&GPU).until_ready().await?;
    }
    topology.until_healthy(&Service::ALL).await?;
    Ok(())
}

#[rstest]
#[case::by_a_power_cut(true)]
#[case::after_a_shutdown(false)]
#[tokio::test]
async fn a_machine_that_reboots_is_back_at_its_address(#[case] power_cut: bool) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let watch = topology.watch(&node).await?;
    let address = topology.address(&GPU);

    if power_cut {
        topology.power_cut(&GPU).await?;
    } else {
        topology.reboot(&GPU).await?;
    }
    let row = watch
        .conclude()
        .await?
        .rows(node.as_str())
        .last()
        .map(|(_, row)| row.clone());
    assert_eq!(row.and_then(|row| row.host), Some(address.to_string()));
    assert_eq!(topology.address(&GPU), address);
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
async fn a_name_follows_its_machine_or_is_left_behind() -> Result<()> {
    let topology = topology().await;
    let found = async || topology.address_for(Service::PlatformApi, "wopr-gpu").await;
    let first = topology.address(&GPU);
    assert_eq!(found().await?, Some(first));
    let second = topology.reboot_at_new_address(&GPU, Names::Follow).await?;
    assert_ne!(first, second);
    assert_eq!(found().await?, Some(second));

    topology.reboot(&VPS).await?;
    assert_eq!(
        found().await?,
        Some(second),
        "a machine that reboots knows it too"
    );

    let third = topology.reboot_at_new_address(&GPU, Names::Stale).await?;
    assert_ne!(second, third);
    assert_eq!(found().await?, Some(second));
    Ok(())
}

/// Registers as a node's cloud-init does at each boot.
async fn register_from_gpu(topology: &Topology, node: &str, stage: &str) -> Result<()> {
    let secret = topology.settings().value(Role::Vps, "GPU_NODE_SECRET")?;
    let vps = topology.address(&VPS);
    let url = format!("http://{vps}:3100/internal/gpu/register?stage={stage}");
    let (bearer, body) = (
        format!("Authorization: Bearer {secret}"),
        format!(r#"{{"nodeId":"{node}"}}"#),
    );
    let argv = [
        "curl", "--silent", "--fail", "--header", &bearer, "--data", &body, &url,
    ];
    topology.control(&GPU).await?.run(&argv, LIMIT).await?;
    Ok(())
}

#[tokio::test]
async fn a_machine_that_stays_off_fails_its_node_and_registers_when_it_is_back() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet("412345678").await?;
    let mut watch = topology.watch(&node).await?;

    let off = topology.kill_machine(&GPU).await?;
    watch.until(status(Failed)).within(minutes(13)).await?;
    off.heal().await?;
    for stage in ["registering", "done"] {
        register_from_gpu(&topology, node.as_str(), stage).await?;
    }
    watch.until(status(Active)).within(polls(1)).await?;
    watch.until(all_ok()).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn an_engine_that_is_killed_comes_back_with_each_service_once() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    topology.kill_engine(&GPU).await?;
    watch.until(all_ok()).within(polls(4)).await?;
    let count = ["pgrep", "--count", "--full", "containerd-shim"];
    let shims = topology.control(&GPU).await?.run(&count, LIMIT).await?;
    assert_eq!(shims.trim(), "4", "one for each service");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn polls_go_on_after_the_vps_machines_engine_was_killed() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    topology.kill_engine(&VPS).await?;
    topology.until_healthy(&Service::ALL).await?;
    let count = ["pgrep", "--count", "--full", "postgres -D"];
    let servers = topology.control(&VPS).await?.run(&count, LIMIT).await?;
    assert_eq!(
        servers.trim(),
        "1",
        "two servers on one database would destroy it"
    );
    watch.until(all_ok()).within(polls(3)).await?;
    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    Ok(())
}

#[rstest]
#[case::frozen(Harm::Pause)]
#[case::without_power(Harm::PowerCut)]
#[case::shut_down(Harm::Shutdown)]
#[case::off_the_network(Harm::Absence)]
#[tokio::test]
async fn the_vps_machines_own_outage_is_not_the_nodes(#[case] harm: Harm) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    let lost = apply(&topology, &VPS, harm).await?;
    lost.heal().await?;
    topology.until_healthy(&Service::ALL).await?;
    watch.until(all_ok()).within(polls(3)).await?;
    watch.conclude().await?;
    Ok(())
}
