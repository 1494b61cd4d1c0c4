//! A node whose row names it by a name, `wopr-gpu`, and a name server that fails.

use anyhow::Result;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{PlatformTime, polls, seconds};
use wopr_harness::fault::{Fault, FaultError};
use wopr_harness::history::Health::{self, Down, Ok as Well};
use wopr_harness::history::Status::{Active, Degraded};
use wopr_harness::seed::{self, NodeId, NodeSpec};
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_ok, services, status};
use wopr_harness::{GPU, Topology, VPS};

const NAME: &str = "wopr-gpu";

/// The GPU machine's node, whose host is a name.
async fn seed_by_name(topology: &Topology) -> Result<NodeId> {
    let node = topology.seed_gpu_node().await?;
    seed::write(topology, &NodeSpec::at(node.clone(), NAME)).await?;
    Ok(node)
}

#[derive(Debug, Clone, Copy)]
enum Wrong {
    Silence,
    NoSuchName,
    Failure,
    AnotherAddress,
}

async fn apply(topology: &Topology, wrong: Wrong) -> Result<Fault, FaultError> {
    let name = topology.dns_name(NAME);
    match wrong {
        Wrong::Silence => name.unanswered().await,
        Wrong::NoSuchName => name.unknown().await,
        Wrong::Failure => name.failing().await,
        // A machine where nobody listens at the services' ports.
        Wrong::AnotherAddress => name.wrong(topology.address(&VPS)).await,
    }
}

#[rstest]
#[case::silence(Wrong::Silence)]
#[case::no_such_name(Wrong::NoSuchName)]
#[case::a_failure_of_the_server(Wrong::Failure)]
#[case::another_address(Wrong::AnotherAddress)]
#[tokio::test]
async fn a_name_that_leads_nowhere_degrades_the_node_and_its_return_activates_it(
    #[case] wrong: Wrong,
) -> Result<()> {
    let topology = topology().await;
    let node = seed_by_name(&topology).await?;
    let mut watch = topology.watch(&node).await?;
    watch.until(all_ok()).within(polls(2)).await?;

    let fault = apply(&topology, wrong).await?;
    let row = watch.until(status(Degraded)).within(polls(4)).await?;
    assert_eq!(row.host.as_deref(), Some(NAME));
    fault.heal().await?;
    watch.until(status(Active)).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::in_time(seconds(1.5), Well)]
#[case::too_late(seconds(8.0), Down)]
#[tokio::test]
async fn a_late_name_server_counts_towards_the_five_seconds(
    #[case] late: PlatformTime,
    #[case] verdict: Health,
) -> Result<()> {
    let topology = topology().await;
    let node = seed_by_name(&topology).await?;
    let mut watch = topology.watch(&node).await?;

    let slow = topology.dns_name(NAME).late(topology.rate().real(late)).await?;
    let all = ["llama", "chatterbox", "whisper", "qwen"].map(|service| (service, verdict));
    watch.found(services(all)).await?;
    slow.heal().await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_polled_by_its_address_needs_no_name_server() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let _silent = topology.dns_name(NAME).unanswered().await?;
    watch.found(all_ok()).await?;
    watch.found(all_ok()).await?;
    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    Ok(())
}

#[tokio::test]
async fn a_name_that_the_machines_own_engine_answers_is_told_to_be_out_of_reach() -> Result<()> {
    let topology = topology().await;
    let refused = topology.dns_name("postgres").wrong(topology.address(&GPU)).await;
    let error = refused.unwrap_err().to_string();
    assert!(
        error.contains("postgres looked up from platform-api is"),
        "{error}"
    );
    assert_eq!(topology.faults().await?, []);
    Ok(())
}
