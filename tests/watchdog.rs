//! What the InferenceWatchdog does about a node: its polls, its verdicts, its reboots.

use std::time::Duration;

use anyhow::Result;
use pretty_assertions::assert_eq;
use rstest::rstest;
use wopr_harness::clock::{POLL, PlatformTime, Rate, minutes, polls, seconds};
use wopr_harness::fault::{Answer, Caller, Manner};
use wopr_harness::history::Health::{Down, Ok as Well};
use wopr_harness::history::History;
use wopr_harness::history::Status::{Active, Degraded, Failed};
use wopr_harness::seed::{self, NodeSpec};
use wopr_harness::testing::topology;
use wopr_harness::watch::{Condition, all_down, all_ok, health, services, status};
use wopr_harness::{GPU, Service, VPS};

const DROPLET: &str = "412345678";

/// So many services, and no more, are down.
fn down(count: usize) -> Condition {
    Condition::new(format!("{count} services down"), move |row| {
        row.health().values().filter(|health| **health == Down).count() == count
    })
}

/// A service's key in a row.
fn key(service: Service) -> &'static str {
    match service {
        Service::LlamaCpp => "llama",
        Service::Chatterbox => "chatterbox",
        Service::Whisper => "whisper",
        Service::QwenEmbeddings => "qwen",
        other => panic!("no poll asks {other}"),
    }
}

#[tokio::test]
async fn the_first_poll_comes_one_interval_after_the_start_and_finds_all_well() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    // From here on platform-api's start is known to the harness's own clock.
    topology.restart(Service::PlatformApi).await?;
    let restarted = tokio::time::Instant::now();
    let row = watch.next_poll().await?;

    assert_eq!(row.health().len(), 4);
    assert!(row.health().values().all(|health| *health == Well), "{row:?}");
    let since = topology.rate().platform(restarted.elapsed());
    assert!(since < polls(2), "the first poll came {since} after the start");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn polls_are_thirty_seconds_apart() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.polls(11).await?;

    let history = watch.history().await?;
    let times: Vec<i64> = history.polls(node.as_str()).iter().map(|(at, _)| *at).collect();
    let mean = Duration::from_micros(u64::try_from((times[10] - times[0]) / 10)?);
    let mean = topology.rate().platform(mean);
    let (least, most) = (seconds(28.5), seconds(31.5));
    assert!(least <= mean && mean <= most, "a mean of {mean}\n{history}");
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::llama(Service::LlamaCpp)]
#[case::chatterbox(Service::Chatterbox)]
#[case::whisper(Service::Whisper)]
#[case::qwen(Service::QwenEmbeddings)]
#[tokio::test]
async fn one_service_that_stops_is_down_alone(#[case] service: Service) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let stopped = topology.stop_service(service).await?;
    let row = watch.found(down(1)).await?;
    assert_eq!(row.health()[key(service)], Down, "{row:?}");
    watch.polls(3).await?;
    stopped.heal().await?;
    watch.until(all_ok()).within(polls(2)).await?;

    let history = watch.history().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    assert_eq!(
        history.notifications(node.as_str()),
        Vec::<String>::new(),
        "\n{history}"
    );
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::llm([Service::LlamaCpp, Service::QwenEmbeddings])]
#[case::voice([Service::Chatterbox, Service::Whisper])]
#[case::speech_and_llama([Service::LlamaCpp, Service::Chatterbox])]
#[case::whisper_and_llama([Service::LlamaCpp, Service::Whisper])]
#[case::speech_and_embeddings([Service::Chatterbox, Service::QwenEmbeddings])]
#[case::whisper_and_embeddings([Service::Whisper, Service::QwenEmbeddings])]
#[tokio::test]
async fn half_of_the_services_down_does_not_degrade(#[case] half: [Service; 2]) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let _one = topology.stop_service(half[0]).await?;
    let _other = topology.pause_service(half[1]).await?;
    watch.polls(4).await?;
    let row = watch.found(down(2)).await?;
    for service in half {
        assert_eq!(row.health()[key(service)], Down, "{service}: {row:?}");
    }
    assert_eq!(row.status, Active);
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::an_error(Manner::Status { code: 503, after_ms: 0 }, Down)]
#[case::a_not_found(Manner::Status { code: 404, after_ms: 0 }, Down)]
#[case::no_content(Manner::Status { code: 204, after_ms: 0 }, Well)]
#[case::headers_and_then_nothing(Manner::HeadersThenHang, Well)]
#[case::silence(Manner::Silent, Down)]
#[case::a_redirect_loop(Manner::RedirectLoop, Down)]
#[case::a_close(Manner::Close, Down)]
#[case::a_huge_body_that_is_no_json(Manner::Body { bytes: 8 << 20 }, Well)]
#[tokio::test]
async fn a_service_is_judged_by_its_status_line(
    #[case] manner: Manner,
    #[case] verdict: wopr_harness::history::Health,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let _fault = topology.impersonate(Service::LlamaCpp, manner).await?;
    // The poll that is under way may have asked before.
    // The others are judged by themselves.
    watch
        .found(services([("llama", verdict), ("qwen", Well)]))
        .await?;
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::just_in_time(4.9, 3.0, Well)]
#[case::too_late(5.1, 7.0, Down)]
#[tokio::test]
async fn an_answer_has_five_seconds(
    #[case] in_true_time: f64,
    #[case] on_a_fast_clock: f64,
    #[case] verdict: wopr_harness::history::Health,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    // On a fast clock a tenth of a second is less than what any host takes for an answer.
    let after = match topology.rate() {
        Rate::TRUE => in_true_time,
        _ => on_a_fast_clock,
    };
    let after_ms = u64::try_from(topology.rate().real(seconds(after)).as_millis())?;
    let _slow = topology
        .impersonate(Service::Whisper, Manner::Status { code: 200, after_ms })
        .await?;
    watch.found(health("whisper", verdict)).await?;
    watch.conclude().await?;
    Ok(())
}

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
    assert_eq!(
        history.statuses(node.as_str()),
        [Active, Degraded, Active],
        "\n{history}"
    );
    assert_eq!(
        history.notifications(node.as_str()),
        ["gpu_node_degraded"],
        "\n{history}"
    );
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_degraded_node_is_told_of_once_and_rebooted_once() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    watch.polls(6).await?;

    let history = watch.history().await?;
    assert_eq!(
        history.notifications(node.as_str()),
        ["gpu_node_degraded"],
        "\n{history}"
    );
    assert_eq!(history.reboots(DROPLET), 1, "\n{history}");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_node_without_a_droplet_is_degraded_and_not_rebooted() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    watch.polls(2).await?;
    let history = watch.history().await?;
    assert!(
        !history.to_string().contains("/actions"),
        "no call of the cloud\n{history}"
    );
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn one_good_poll_between_two_silent_ones_breaks_the_count() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    for _ in 0..3 {
        let cut = topology.link(VPS, GPU).reset().await?;
        watch.until(all_down()).within(polls(2)).await?;
        cut.heal().await?;
        watch.until(all_ok()).within(polls(2)).await?;
    }
    let history = watch.history().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn one_service_of_four_keeps_a_node_active_and_brings_it_back() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let port = |port| topology.link(VPS, GPU).port(port);

    let _three = [
        port(8081).reset().await?,
        port(8082).reset().await?,
        port(8083).reset().await?,
    ];
    watch.polls(4).await?;
    assert_eq!(watch.next_whole_poll().await?.status, Active);
    let last = port(8080).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    last.heal().await?;
    let row = watch.until(status(Active)).within(polls(2)).await?;

    let verdicts = ["llama", "chatterbox", "whisper", "qwen"].map(|key| row.health()[key]);
    assert_eq!(verdicts, [Well, Down, Down, Down], "{row:?}");
    watch.conclude().await?;
    Ok(())
}

/// From the poll that degraded a node to its failure, in platform-api's time.
fn time_to_failure(history: &History, node: &str, rate: Rate) -> Option<Duration> {
    let first = |wanted| {
        history
            .rows(node)
            .find(|(_, row)| row.status == wanted)
            .map(|(at, _)| at)
    };
    let (degraded, failed) = (first(Degraded)?, first(Failed)?);
    let poll = history
        .polls(node)
        .into_iter()
        .rev()
        .find(|(at, _)| *at < degraded)?
        .0;
    Some(
        rate.platform(Duration::from_micros(u64::try_from(failed - poll).ok()?))
            .0,
    )
}

#[tokio::test]
async fn a_reboot_that_does_not_help_is_a_failure_after_ten_minutes_and_not_before() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    watch.until(status(Failed)).within(minutes(12)).await?;
    // The row says so before it is told.
    watch.until_notified("gpu_node_failed").await?;

    let history = watch.history().await?;
    let took = time_to_failure(&history, node.as_str(), topology.rate()).unwrap_or_default();
    // Ten minutes are looked at once a poll.
    let (least, most) = (minutes(10).0 - seconds(1.0).0, minutes(10).0 + POLL.0 * 3 / 2);
    assert!(least <= took && took <= most, "it took {took:?}\n{history}");
    assert_eq!(
        history.notifications(node.as_str()),
        ["gpu_node_degraded", "gpu_node_failed"],
        "\n{history}"
    );
    assert_eq!(history.reboots(DROPLET), 1, "\n{history}");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn nodes_without_a_host_or_not_in_service_are_left_alone() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let host = topology.address(&GPU);
    let mut quiet = Vec::new();
    for status in ["provisioning", "bootstrapping", "failed", "destroying"] {
        quiet.push(NodeSpec::at(format!("node-{status}").parse()?, host).status(status));
    }
    quiet.push(NodeSpec {
        host: None,
        ..NodeSpec::at("node-without-host".parse()?, host)
    });
    let mut watch = topology.watch(&node).await?;
    for spec in &quiet {
        seed::write(&topology, spec).await?;
    }
    watch.polls(3).await?;

    let history = watch.history().await?;
    for spec in &quiet {
        assert_eq!(
            history.rows(spec.id.as_str()).count(),
            1,
            "{} was written to\n{history}",
            spec.id
        );
    }
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn every_node_in_service_is_polled() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let host = topology.address(&GPU);
    for number in 1..=3 {
        seed::write(&topology, &NodeSpec::at(format!("node-{number}").parse()?, host)).await?;
    }
    let degraded = NodeSpec::at("node-degraded".parse()?, host).status("degraded");
    seed::write(&topology, &degraded).await?;
    let mut watch = topology.watch(&node).await?;
    watch.polls(3).await?;

    let history = watch.history().await?;
    for other in ["node-1", "node-2", "node-3", "node-degraded"] {
        assert!(history.polls(other).len() >= 2, "{other}\n{history}");
    }
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::refused(Answer::Status { code: 500 })]
#[case::cut_off(Answer::Close)]
#[tokio::test]
async fn a_webhook_that_fails_changes_nothing_about_the_node(#[case] answer: Answer) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    topology.answer(Caller::Webhook, answer).await?;
    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    watch.next_poll().await?;
    cut.heal().await?;
    watch.until(status(Active)).within(polls(2)).await?;
    assert_eq!(watch.history().await?.reboots(DROPLET), 1);
    watch.conclude().await?;
    Ok(())
}

#[rstest]
#[case::webhook(Caller::Webhook, seconds(4.0))]
#[case::cloud(Caller::Cloud, seconds(10.0))]
#[tokio::test]
async fn an_answer_that_is_slow_to_come_delays_no_poll_and_changes_nothing_about_the_node(
    #[case] caller: Caller,
    #[case] late: PlatformTime,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let ms = u64::try_from(topology.rate().real(late).as_millis())?;
    topology.answer(caller, Answer::After { ms }).await?;
    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until_notified("gpu_node_degraded").await?;
    watch.polls(3).await?;
    cut.heal().await?;
    watch.until(status(Active)).within(polls(2)).await?;
    let history = watch.conclude().await?;
    assert_eq!(
        history.statuses(node.as_str()),
        [Active, Degraded, Active],
        "\n{history}"
    );
    assert_eq!(history.reboots(DROPLET), 1, "\n{history}");
    Ok(())
}

#[rstest]
#[case::unauthorised(Answer::Status { code: 401 })]
#[case::too_many(Answer::Status { code: 429 })]
#[case::broken(Answer::Status { code: 500 })]
#[case::cut_off(Answer::Close)]
#[tokio::test]
async fn a_reboot_that_the_cloud_refuses_is_not_asked_for_again(#[case] answer: Answer) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    topology.answer(Caller::Cloud, answer).await?;
    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Degraded)).within(polls(3)).await?;
    watch.polls(4).await?;
    cut.heal().await?;
    watch.until(status(Active)).within(polls(2)).await?;
    let history = watch.history().await?;
    assert_eq!(history.reboots(DROPLET), 1, "\n{history}");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_restart_between_two_silent_polls_starts_the_count_anew() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    // A new process's time begins anew: without these, its first poll could bear the very second of the last one.
    watch.polls(2).await?;
    let _cut = topology.link(VPS, GPU).reset().await?;
    watch.until(all_down()).within(polls(2)).await?;
    topology.restart(Service::PlatformApi).await?;
    let first = watch.until(all_down()).within(polls(2)).await?;
    assert_eq!(
        first.status,
        Active,
        "the poll before the restart is forgotten\n{}",
        watch.history().await?
    );
    watch.until(status(Degraded)).within(polls(2)).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn polls_go_on_after_the_database_was_restarted() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    watch.next_poll().await?;

    topology.restart(Service::Postgres).await?;
    // The poll that met the restart may be lost; those after it are not.
    let row = watch.until(all_ok()).within(polls(4)).await?;
    assert_eq!(row.status, Active);
    watch.polls(2).await?;
    watch.conclude().await?;
    Ok(())
}
