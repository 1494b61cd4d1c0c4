//! A link that is slow, cut off or narrow above TCP: what the watchdog makes of it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{PlatformTime, Rate, polls, seconds};
use wopr_harness::fault::{FaultError, Stream, Toxic};
use wopr_harness::history::Health::{self, Down, Ok as Well};
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_ok, health, services};
use wopr_harness::{GPU, Service, VPS};

const NO_TIME: Duration = Duration::ZERO;

#[rstest]
#[case::quick(seconds(2.0), Well)]
#[case::too_slow(seconds(8.0), Down)]
#[tokio::test]
async fn latency_counts_towards_the_five_seconds(
    #[case] latency: PlatformTime,
    #[case] verdict: Health,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let toxic = Toxic::Latency {
        latency: topology.rate().real(latency),
        jitter: NO_TIME,
    };
    let slow = topology
        .link(VPS, GPU)
        .port(8080)
        .toxic(toxic, Stream::Downstream)
        .await?;
    let row = watch.found(health("llama", verdict)).await?;
    assert_eq!(
        row.host.as_deref(),
        Some(topology.address(&GPU).to_string().as_str()),
        "the row knows no proxy"
    );
    slow.heal().await?;
    watch.until(all_ok()).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::down(Toxic::Down, Stream::Downstream, Down)]
#[case::reset(Toxic::ResetPeer { timeout: NO_TIME }, Stream::Downstream, Down)]
#[case::requests_are_swallowed(Toxic::Timeout { timeout: NO_TIME }, Stream::Upstream, Down)]
#[case::answers_are_swallowed(Toxic::Timeout { timeout: NO_TIME }, Stream::Downstream, Down)]
#[case::nothing_passes(Toxic::Bandwidth { rate: 0 }, Stream::Upstream, Down)]
#[case::an_answer_of_ten_bytes(Toxic::LimitData { bytes: 10 }, Stream::Downstream, Down)]
#[case::narrow_and_wide_enough(Toxic::Bandwidth { rate: 100 }, Stream::Downstream, Well)]
#[case::in_pieces(Toxic::Slicer { average_size: 16, size_variation: 4, delay: NO_TIME }, Stream::Downstream, Well)]
#[case::a_slow_close(Toxic::SlowClose { delay: Duration::from_millis(50) }, Stream::Downstream, Well)]
#[tokio::test]
async fn each_toxic_is_one_services_fault(
    #[case] toxic: Toxic,
    #[case] stream: Stream,
    #[case] verdict: Health,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let fault = topology.link(VPS, GPU).port(8083).toxic(toxic, stream).await?;
    // The others are as they were.
    watch
        .found(services([("qwen", verdict), ("llama", Well)]))
        .await
        .with_context(|| fault.receipt().to_string())?;
    fault.heal().await?;
    watch.until(all_ok()).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

/// A delay of the answers, in platform-api's time.
fn latency(rate: Rate, time: PlatformTime) -> Toxic {
    Toxic::Latency {
        latency: rate.real(time),
        jitter: NO_TIME,
    }
}

#[tokio::test]
async fn toxics_on_one_port_add_up_and_each_heals_by_itself() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let (rate, port) = (topology.rate(), topology.link(VPS, GPU).port(8080));

    let slow = port
        .toxic(latency(rate, seconds(2.0)), Stream::Downstream)
        .await?;
    let _narrow = port
        .toxic(Toxic::Bandwidth { rate: 100 }, Stream::Downstream)
        .await?;
    // Two seconds of five.
    watch.found(health("llama", Well)).await?;

    let slower = port.toxic(latency(rate, seconds(4.0)), Stream::Upstream).await?;
    watch.until(health("llama", Down)).within(polls(2)).await?;
    slow.heal().await?;
    watch.until(health("llama", Well)).within(polls(2)).await?;
    slower.heal().await?;
    assert_eq!(topology.faults().await?.len(), 1, "the bandwidth");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn toxics_on_two_ports_are_two_services_faults() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let link = topology.link(VPS, GPU);

    let _silent = link
        .clone()
        .port(8082)
        .toxic(Toxic::Timeout { timeout: NO_TIME }, Stream::Upstream)
        .await?;
    let _down = link.port(8083).toxic(Toxic::Down, Stream::Downstream).await?;
    let found = [
        ("llama", Well),
        ("chatterbox", Well),
        ("whisper", Down),
        ("qwen", Down),
    ];
    watch.found(services(found)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_toxic_that_changes_is_seen_by_the_polls() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let rate = topology.rate();

    let mut slow = topology
        .link(VPS, GPU)
        .port(8081)
        .toxic(latency(rate, seconds(1.0)), Stream::Downstream)
        .await?;
    slow.update(latency(rate, seconds(8.0))).await?;
    watch.until(health("chatterbox", Down)).within(polls(2)).await?;
    slow.update(latency(rate, seconds(1.0))).await?;
    watch.until(health("chatterbox", Well)).within(polls(2)).await?;
    let other = slow.update(Toxic::Bandwidth { rate: 1 }).await;
    assert!(matches!(other, Err(FaultError::NotThatKind { .. })), "{other:?}");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_toxic_on_platform_apis_own_way_is_a_fault_of_the_service_alone() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let reset = topology
        .link(Service::PlatformApi, GPU)
        .port(8080)
        .toxic(Toxic::ResetPeer { timeout: NO_TIME }, Stream::Downstream)
        .await?;
    watch.until(health("llama", Down)).within(polls(2)).await?;
    reset.heal().await?;
    watch.until(all_ok()).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}
