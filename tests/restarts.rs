//! platform-api ends, by a restart or by a crash, at each phase of an outage: what it forgets, and what stays.

#[path = "common/rounds.rs"]
mod rounds;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pretty_assertions::assert_eq;
use rounds::{is_uneven, seed_while_stopped, start};
use rstest::rstest;
use wopr_harness::clock::{minutes, polls};
use wopr_harness::history::Status::{self, Active, Degraded, Failed};
use wopr_harness::history::{History, Upset, What};
use wopr_harness::seed::{self, NodeSpec};
use wopr_harness::testing::topology;
use wopr_harness::watch::{all_down, all_ok, status};
use wopr_harness::{GPU, Service, Topology, VPS};

const DROPLET: &str = "412345678";
const DEGRADED: &str = "gpu_node_degraded";
const FAILED: &str = "gpu_node_failed";
/// A busy host may be too slow for what is to come between two polls; not so often.
const TRIES: u32 = 6;

#[derive(Debug, Clone, Copy)]
enum Way {
    Restart,
    Crash,
}

/// When platform-api ended: from when it was asked to until it was well again, in microseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct End {
    asked: i64,
    back: i64,
}

/// Ends platform-api, and waits until it is well again.
async fn end(topology: &Topology, way: Way) -> Result<End> {
    match way {
        Way::Restart => topology.restart(Service::PlatformApi).await?,
        Way::Crash => topology.crash_service(Service::PlatformApi).await?,
    }
    let history = topology.history().await?;
    let mut ends = history.events.iter().filter_map(|event| match &event.what {
        What::Deed(deed) if deed.meaning.has(&[Upset::Memory]) => Some(End {
            asked: deed.from_us,
            back: event.at_us,
        }),
        _ => None,
    });
    ends.next_back().context("its end is a deed of the history")
}

/// A node's status at a time.
fn status_at(history: &History, node: &str, at: i64) -> Option<Status> {
    let rows = history.rows(node).take_while(|(written, _)| *written <= at);
    rows.last().map(|(_, row)| row.status)
}

/// Silent polls of a node that were written after a time and led to its degradation; none where it is not degraded.
fn silent_polls_to_degrade(history: &History, node: &str, after: i64) -> Option<usize> {
    let mut rows = history.rows(node).filter(|(at, _)| *at > after);
    let (degraded, _) = rows.find(|(_, row)| row.status == Degraded)?;
    let polls = history.polls(node).into_iter();
    let silent = polls.filter(|(at, row)| (after..degraded).contains(at) && row.is_silent());
    Some(silent.count())
}

#[rstest]
#[case::restarted(Way::Restart)]
#[case::crashed(Way::Crash)]
#[tokio::test]
async fn an_end_while_all_is_well_is_not_seen_in_the_row(#[case] way: Way) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    // A new process's time begins anew: without these, its first poll could bear the very second of the last one.
    watch.polls(2).await?;
    end(&topology, way).await?;
    watch.found(all_ok()).await?;
    let history = watch.conclude().await?;
    assert_eq!(history.statuses(node.as_str()), [Active], "\n{history}");
    let told = history.notifications(node.as_str());
    assert_eq!(told, Vec::<String>::new(), "\n{history}");
    Ok(())
}

#[rstest]
#[case::restarted(Way::Restart)]
#[case::crashed(Way::Crash)]
#[tokio::test]
async fn an_end_in_the_middle_of_a_poll_leaves_nothing_of_it_to_be_counted(#[case] way: Way) -> Result<()> {
    let topology = topology().await;
    let (nodes, stopped) = seed_while_stopped(&topology, 4).await?;
    let mut watch = topology.watch_nodes(nodes.clone()).await?;
    start(&topology, stopped).await?;

    let mut before = End { asked: 0, back: 0 };
    let mut tries = 1..=TRIES;
    let met = loop {
        if tries.next().is_none() {
            bail!("no poll was under way when it ended\n{}", watch.history().await?);
        }
        // Whose time begins anew is to be told from who was before.
        watch.polls(2).await?;
        // Each node takes five seconds: a poll takes two thirds of its interval.
        let hole = topology.link(VPS, GPU).drop_packets().await?;
        watch.next_poll().await?;
        let next = end(&topology, way).await?;
        let history = watch.history().await?;
        // What is written while one process follows the other is nobody's for certain.
        let is_certain = !is_uneven(&history, &nodes, before.asked, before.back);
        let met = is_certain && is_uneven(&history, &nodes, before.back, next.asked);
        // Also where it was missed: who saw no outage does not see its end.
        watch.polls(3).await?;
        hole.heal().await?;
        if met {
            break next;
        }
        before = next;
    };
    let history = watch.conclude().await?;
    for node in &nodes {
        // One that the old process degraded at the last moment says nothing of the next.
        if status_at(&history, node.as_str(), met.back) == Some(Active) {
            let silent = silent_polls_to_degrade(&history, node.as_str(), met.asked);
            assert!(
                silent.is_some_and(|polls| polls >= 2),
                "{node}: {silent:?}\n{history}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_crash_between_two_silent_polls_starts_the_count_anew() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    watch.polls(2).await?;
    for _ in 0..TRIES {
        let cut = topology.link(VPS, GPU).reset().await?;
        watch.until(all_down()).within(polls(2)).await?;
        let met = end(&topology, Way::Crash).await?;
        watch.until(status(Degraded)).within(polls(4)).await?;
        let history = watch.history().await?;
        if status_at(&history, node.as_str(), met.back) == Some(Active) {
            let silent = silent_polls_to_degrade(&history, node.as_str(), met.asked);
            assert!(silent.is_some_and(|polls| polls >= 2), "{silent:?}\n{history}");
            watch.conclude().await?;
            return Ok(());
        }
        // It came after the second: the next process has to see an outage of its own before it sees its end.
        watch.next_whole_poll().await?;
        cut.heal().await?;
        watch.until(status(Active)).within(polls(3)).await?;
    }
    bail!("no crash came between two polls\n{}", watch.history().await?)
}

/// When platform-api told of a node, and what, in microseconds since 1970.
fn told(history: &History) -> Vec<(i64, String)> {
    let hooks = history.events.iter().filter_map(|event| match &event.what {
        What::Webhook(record) => Some((event.at_us, record.body["type"].as_str()?.to_owned())),
        _ => None,
    });
    hooks.collect()
}

#[rstest]
#[case::restarted(Way::Restart)]
#[case::crashed(Way::Crash)]
#[tokio::test]
async fn an_end_in_a_long_outage_forgets_the_reboot_and_its_ten_minutes(#[case] way: Way) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let _cut = topology.link(VPS, GPU).reset().await?;
    // The row says so before it is told.
    watch.until_notified(DEGRADED).await?;
    watch.polls(4).await?;
    end(&topology, way).await?;
    watch.until(status(Failed)).within(minutes(13)).await?;
    watch.until_notified(FAILED).await?;

    let history = watch.conclude().await?;
    let (times, words): (Vec<_>, Vec<_>) = told(&history).into_iter().unzip();
    assert_eq!(words, [DEGRADED, DEGRADED, FAILED], "\n{history}");
    assert_eq!(history.reboots(DROPLET), 2, "\n{history}");
    let took = Duration::from_micros(u64::try_from(times[2] - times[1])?);
    let took = topology.rate().platform(took);
    // A busy host may be late with the webhook whose time is known, and the mark is set after that.
    assert!(took > minutes(9), "{took}\n{history}");
    Ok(())
}

#[rstest]
#[case::restarted(Way::Restart)]
#[case::crashed(Way::Crash)]
#[tokio::test]
async fn an_end_after_the_failure_leaves_the_node_failed(#[case] way: Way) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node_with_droplet(DROPLET).await?;
    let mut watch = topology.watch(&node).await?;

    let cut = topology.link(VPS, GPU).reset().await?;
    watch.until(status(Failed)).within(minutes(13)).await?;
    watch.until_notified(FAILED).await?;
    cut.heal().await?;
    let met = end(&topology, way).await?;
    // Polls of another node show that there are polls.
    let witness = NodeSpec::at("witness".parse()?, topology.address(&GPU));
    seed::write(&topology, &witness).await?;
    topology.watch(&witness.id).await?.found(all_ok()).await?;

    let history = watch.conclude().await?;
    let after = history.rows(node.as_str()).filter(|(at, _)| *at > met.asked);
    assert_eq!(after.count(), 0, "nobody wrote to it\n{history}");
    assert_eq!(
        status_at(&history, node.as_str(), i64::MAX),
        Some(Failed),
        "\n{history}"
    );
    assert_eq!(history.reboots(DROPLET), 1, "\n{history}");
    Ok(())
}
