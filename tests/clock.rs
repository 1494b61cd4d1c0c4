//! platform-api's clock that jumps, drifts or runs at another rate, and what the watchdog makes of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{PlatformTime, Rate, minutes, polls, seconds};
use wopr_harness::engine::{BuildContext, Engine};
use wopr_harness::fault::{Fault, FaultError};
use wopr_harness::history::Status::{Active, Degraded, Failed};
use wopr_harness::profile::Profile;
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_ok, status};
use wopr_harness::{GPU, Service, Topology, VPS};

const DROPLET: &str = "412345678";

#[derive(Debug, Clone, Copy)]
enum Jump {
    Ahead,
    Back,
}

async fn jump(topology: &Topology, jump: Jump, by: PlatformTime) -> Result<Fault, FaultError> {
    match jump {
        Jump::Ahead => topology.clock().jump(by).await,
        Jump::Back => topology.clock().jump_back(by).await,
    }
}

#[rstest]
#[case::ahead(Jump::Ahead)]
#[case::back(Jump::Back)]
#[tokio::test]
async fn a_clock_that_jumps_does_not_change_when_polls_come(#[case] which: Jump) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.polls(2).await?;

    let jumped = jump(&topology, which, minutes(60)).await?;
    watch.polls(3).await?;
    jumped.heal().await?;
    watch.polls(3).await?;

    let history = watch.history().await?;
    let times: Vec<i64> = history.polls(node.as_str()).iter().map(|(at, _)| *at).collect();
    for gap in times.windows(2) {
        let gap = topology
            .rate()
            .platform(Duration::from_micros(u64::try_from(gap[1] - gap[0])?));
        assert!(
            seconds(20.0) < gap && gap < seconds(45.0),
            "a gap of {gap}\n{history}"
        );
    }
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_clock_that_jumps_over_ten_minutes_ends_the_reboots_ten_minutes() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    // The reboot's time is marked after the node is degraded, and before the next poll.
    watch.next_poll().await?;
    let _jumped = topology.clock().jump(minutes(11)).await?;
    // The contract's ten minutes are by the wall clock, which says that they are over.
    watch.until(status(Failed)).within(polls(3)).await?;
    watch.until_notified("gpu_node_failed").await?;

    let history = watch.history().await?;
    assert_eq!(
        history.notifications(node.as_str()),
        ["gpu_node_degraded", "gpu_node_failed"],
        "\n{history}"
    );
    Ok(())
}

#[tokio::test]
async fn a_clock_that_jumps_over_ten_minutes_fails_no_node_that_recovers_with_the_next_poll() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    cut.heal().await?;
    let _jumped = topology.clock().jump(minutes(11)).await?;
    watch.until(status(Active)).within(polls(2)).await?;
    let history = watch.conclude().await?;
    assert_eq!(
        history.statuses(node.as_str()),
        [Active, Degraded, Active],
        "\n{history}"
    );
    Ok(())
}

#[tokio::test]
async fn a_clock_that_jumps_back_draws_the_reboots_ten_minutes_out() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    // The reboot's time is marked after the node is degraded, and before the next poll.
    watch.next_poll().await?;
    let jumped = topology.clock().jump_back(minutes(30)).await?;
    // Ten minutes after the reboot it has not failed: its clock says that the reboot is yet to come.
    watch.polls(23).await?;
    assert_eq!(watch.history().await?.statuses(node.as_str()), [Active, Degraded]);
    jumped.heal().await?;
    watch.until(status(Failed)).within(polls(3)).await?;
    Ok(())
}

#[tokio::test]
async fn a_clock_that_drifts_dates_the_polls_and_does_not_time_them() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let drifting = topology.clock().skew(0.2).await?;
    watch.next_poll().await?;
    let rows = watch.polls(6).await?;
    let dates: Vec<i64> = rows.iter().filter_map(|row| row.last_health_at).collect();
    // Five gaps of thirty seconds, and a fifth more of each.
    let passed = dates[5] - dates[0];
    assert!((174..=186).contains(&passed), "{passed} s by {dates:?}");
    drifting.heal().await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn time_that_runs_twice_as_fast_polls_twice_as_often() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    let twice: Rate = (topology.rate().get() * 2).to_string().parse()?;
    let faster = topology.clock().run_at(twice).await?;
    // The sleep that was under way keeps its length.
    watch.polls(2).await?;
    let began = tokio::time::Instant::now();
    watch.polls(6).await?;
    let took = topology.rate().platform(began.elapsed());
    assert!(polls(2) < took && took < polls(4), "six polls took {took}");
    faster.heal().await?;
    watch.until(all_ok()).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_restart_does_not_set_a_clock_right() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let before = topology.clock().now().await?;
    let jumped = topology.clock().jump_back(minutes(24 * 60)).await?;
    topology.restart(Service::PlatformApi).await?;
    assert!(topology.clock().now().await? < before, "{}", jumped.receipt());
    watch.polls(2).await?;
    drop(jumped);
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_change_of_time_that_cannot_be_seen_or_is_the_second_is_refused() -> Result<()> {
    let topology = topology().await;
    let small = topology.clock().jump(seconds(2.0)).await;
    assert!(matches!(small, Err(FaultError::TooSmall { .. })), "{small:?}");
    let _first = topology.clock().jump(minutes(5)).await?;
    let second = topology.clock().jump(minutes(5)).await.unwrap_err().to_string();
    assert!(second.contains("is changed already; heal that first"), "{second}");
    Ok(())
}

/// The beginning of a program that this loader loads, or none: as much of it as is looked at.
fn program(loader: Option<&str>) -> Result<String> {
    const HEADER: usize = 64;
    const SEGMENT: usize = 56;
    let name = loader.unwrap_or_default().as_bytes();
    let mut file = vec![0; HEADER + SEGMENT];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (file[32], file[54], file[56]) = (64, 56, u8::from(loader.is_some()));
    (file[64], file[64 + 8], file[64 + 32]) = (3, 120, u8::try_from(name.len()).unwrap_or(0));
    file.extend_from_slice(name);
    Ok(String::from_utf8(file)?)
}

#[rstest]
#[case::on_musl(Some("/lib/ld-musl-x86_64.so.1"), "/srv/api is built on musl")]
#[case::static_binary(None, "/srv/api is a static binary")]
#[tokio::test]
async fn an_image_whose_clock_cannot_be_changed_is_refused_before_anything_boots(
    #[case] loader: Option<&str>,
    #[case] found: &str,
) -> Result<()> {
    let engine = Engine::connect().await?;
    let image = format!("wopr-test/unclocked:{}", std::process::id());
    // As images come: a script somewhere in the path, and what runs it.
    let dockerfile = "FROM scratch\nCOPY api /srv/api\nCOPY start /srv/start\nENV PATH=/none:/srv\nENTRYPOINT [\"start\"]\n";
    let context = BuildContext::default()
        .text("Dockerfile", dockerfile)?
        .text("api", &program(loader)?)?
        .text("start", "#!/srv/api\n")?;
    engine
        .build(&image, context, &[], &HashMap::new(), |_| {})
        .await?;

    let profile = Profile::local().with_image(Service::PlatformApi, &image);
    let began = Instant::now();
    let fast = Topology::builder().profile(profile).rate(Rate::FAST).boot().await;
    engine.remove_image(&image).await?;
    let error = fast.err().context("it booted")?.to_string();
    for part in [image.as_str(), found, "WOPR_CLOCK_RATE=1"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "it looked for {:?}",
        began.elapsed()
    );
    Ok(())
}
