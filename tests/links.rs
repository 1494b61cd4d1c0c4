//! A link that is slow, cut off or narrow above TCP: what the watchdog makes of it.

use std::time::Duration;

use anyhow::Result;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{PlatformTime, polls, seconds};
use wopr_harness::fault::{Stream, Toxic};
use wopr_harness::history::Health::{self, Down, Ok as Well};
use wopr_harness::testing::topology;
use wopr_harness::watch::all_ok;
use wopr_harness::{GPU, VPS};

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
    watch.next_poll().await?;
    let row = watch.next_poll().await?;
    assert_eq!(row.health()["llama"], verdict, "{row:?}\n{}", slow.receipt());
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
    watch.next_poll().await?;
    let row = watch.next_poll().await?;
    assert_eq!(row.health()["qwen"], verdict, "{row:?}\n{}", fault.receipt());
    assert_eq!(
        row.health()["llama"],
        Well,
        "the others are as they were: {row:?}"
    );
    fault.heal().await?;
    watch.until(all_ok()).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}
