//! What is left of a scenario for its reader: the text of its error, and the page beside it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use pretty_assertions::assert_eq;
use wopr_harness::clock::{polls, seconds};
use wopr_harness::fault::{Stream, Toxic};
use wopr_harness::history::Status::{Degraded, Failed};
use wopr_harness::history::{History, NodeRow, Scope, What};
use wopr_harness::machine::Role;
use wopr_harness::report::Timeline;
use wopr_harness::seed::{self, NodeId, NodeSpec};
use wopr_harness::testing::topology;
use wopr_harness::watch::{Condition, WatchError, status};
use wopr_harness::{GPU, Service, Topology, VPS};

/// When each log line of a history was written, in microseconds since 1970, and the line.
fn lines(history: &History) -> Vec<(i64, Service, &str)> {
    let lines = history.events.iter().filter_map(|event| match &event.what {
        What::Log { service, line } => Some((event.at_us, *service, line.as_str())),
        _ => None,
    });
    lines.collect()
}

/// The page that an error names, and its path.
fn page(error: &WatchError) -> Result<(PathBuf, String)> {
    let (WatchError::TimedOut { timeline, .. } | WatchError::Breach { timeline, .. }) = error else {
        bail!("an error without a page: {error}");
    };
    match timeline {
        Timeline::Written(path) => Ok((path.clone(), std::fs::read_to_string(path)?)),
        Timeline::NotWritten(why) => bail!("{why}"),
    }
}

/// A secret of the topology's that is in neither text.
fn assert_no_secret(topology: &Topology, texts: &[&str]) {
    let settings = topology.settings().of(Role::Vps);
    let secrets = settings
        .iter()
        .filter(|(name, value)| wopr_harness::settings::is_secret(name) && !value.is_empty());
    for (name, value) in secrets {
        assert!(texts.iter().all(|text| !text.contains(value.as_str())), "{name}");
    }
}

#[tokio::test]
async fn a_wait_in_vain_leaves_a_page_with_the_node_the_fault_and_platform_apis_words() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    // Whisper says what it loads.
    topology.restart(Service::Whisper).await?;
    let _cut = topology.link(VPS, GPU).reset().await?;
    let waited = watch.until(status(Failed)).within(polls(3)).await;
    let error = waited.err().context("the node failed after three polls")?;

    let text = error.to_string();
    let (path, page) = page(&error)?;
    assert!(text.ends_with(&format!("timeline: {}", path.display())), "{text}");
    for told in [&text, &page] {
        assert!(told.contains(node.as_str()), "{told}");
        assert!(told.contains("begun:  reset on vps → gpu"), "{told}");
        assert!(told.contains("Degraded"), "{told}");
        // platform-api logs what it notifies of, in words of its own: in the text for its time, in the page for
        // its service.
        let said = told
            .split(['\n', '<'])
            .any(|line| line.contains("platform-api | ") && line.contains("gpu_node_degraded"));
        assert!(said, "{told}");
    }
    assert!(
        page.contains("status Failed did not happen to local-gpu-node-001"),
        "{page}"
    );
    assert!(page.contains("whisper | "), "every service's log is in the page");
    let name = "a_wait_in_vain_leaves_a_page_with_the_node_the_fault_and_platform_apis_words";
    assert_eq!(
        path.file_name(),
        Some(Path::new(&format!("{name}-{}.html", topology.id())).as_os_str())
    );
    assert_eq!(path.metadata()?.permissions().mode() & 0o777, 0o600);
    assert_no_secret(&topology, &[&text, &page]);
    Ok(())
}

#[tokio::test]
async fn a_breach_of_the_contract_leaves_a_page_as_well() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let watch = topology.watch(&node).await?;
    let mut database = topology.database().await?;
    let forged = "UPDATE gpu_nodes SET status = 'failed'";
    sqlx::raw_sql("UPDATE gpu_nodes SET status = 'active'")
        .execute(&mut database)
        .await?;
    sqlx::raw_sql(forged).execute(&mut database).await?;

    let error = watch.conclude().await.err().context("the oracle allowed it")?;
    let (path, page) = page(&error)?;
    let text = error.to_string();
    let breach = "nothing led from Active to Failed";
    assert!(text.contains(breach) && page.contains(breach), "{text}");
    assert!(text.ends_with(&format!("timeline: {}", path.display())), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_service_that_is_said_to_answer_through_a_partition_is_a_breach() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let cut = topology.link(VPS, GPU).partition().await?;
    watch.until(status(Degraded)).within(polls(4)).await?;
    watch.polls(2).await?;
    let forged = "UPDATE gpu_nodes SET service_health = replace(service_health, '\"llama\":\"down\"', '\"llama\":\"ok\"')";
    let mut database = topology.database().await?;
    sqlx::raw_sql(forged).execute(&mut database).await?;
    cut.heal().await?;

    let error = watch.conclude().await.err().context("the oracle believed it")?;
    let (_, page) = page(&error)?;
    let (text, breach) = (
        error.to_string(),
        "llama was found ok during the partition on vps → gpu",
    );
    assert!(text.contains(breach) && page.contains(breach), "{text}");
    Ok(())
}

#[tokio::test]
async fn what_happens_to_a_node_before_anybody_watches_is_recorded_and_judged() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let cut = topology.link(VPS, GPU).reset().await?;
    let history = topology.history().await?;
    let (_, seeded) = history.rows(node.as_str()).next().context("no row")?;
    assert_eq!(seeded.service_health, None, "\n{history}");

    let mut watch = topology.watch(&node).await?;
    watch.until_notified("gpu_node_degraded").await?;
    cut.heal().await?;
    let row = watch.next_whole_poll().await?;
    assert!(!row.is_silent(), "{row:?}\n{}", watch.history().await?);
    let history = topology.conclude().await?;
    let (_, first) = history.rows(node.as_str()).next().context("no row")?;
    assert_eq!(first, seeded, "\n{history}");
    Ok(())
}

#[tokio::test]
async fn versions_of_a_row_that_are_written_at_once_are_seen_one_by_one() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let mut database = topology.database().await?;
    let at_once = "DO $$ BEGIN FOR number IN 1..50 LOOP \
         UPDATE gpu_nodes SET last_error = number::text; END LOOP; END $$";
    sqlx::raw_sql(at_once).execute(&mut database).await?;

    for number in 1..=50 {
        let number = number.to_string();
        let has_come = Condition::new(format!("version {number}"), move |row: &NodeRow| {
            row.last_error.as_deref() == Some(number.as_str())
        });
        watch.until(has_come).within(polls(1)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_version_that_becomes_visible_after_a_newer_one_of_another_node_is_not_missed() -> Result<()> {
    let topology = topology().await;
    topology.seed_gpu_node().await?;
    let late: NodeId = "late".parse()?;
    // Failed: no poll writes the row again.
    let spec = NodeSpec::at(late.clone(), topology.address(&GPU)).status("failed");
    seed::write(&topology, &spec).await?;
    let mut watch = topology.watch(&late).await?;
    let (mut slow, mut quick) = (topology.database().await?, topology.database().await?);
    sqlx::raw_sql("BEGIN; UPDATE gpu_nodes SET last_error = 'at last' WHERE id = 'late'")
        .execute(&mut slow)
        .await?;
    sqlx::raw_sql("UPDATE gpu_nodes SET last_error = 'at once' WHERE id <> 'late'")
        .execute(&mut quick)
        .await?;
    let is_there = || {
        Condition::new("the late version", |row: &NodeRow| {
            row.last_error.as_deref() == Some("at last")
        })
    };
    // By its end the watch has looked at what the other wrote.
    let too_early = watch.until(is_there()).within(seconds(1.0)).await;
    assert!(too_early.is_err(), "it is not committed yet: {too_early:?}");
    sqlx::raw_sql("COMMIT").execute(&mut slow).await?;
    watch.until(is_there()).within(polls(1)).await?;
    Ok(())
}

#[tokio::test]
async fn the_connections_of_a_link_with_a_toxic_are_in_its_history() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;
    let before = watch.history().await?;
    let is_connection = |what: &What| matches!(what, What::Connection(_));
    assert!(
        !before.events.iter().any(|event| is_connection(&event.what)),
        "without a sidecar: {before}"
    );

    let toxic = Toxic::Latency {
        latency: Duration::from_millis(20),
        jitter: Duration::ZERO,
    };
    let link = topology.link(VPS, GPU).port(8080);
    let slow = link.toxic(toxic, Stream::Downstream).await?;
    watch.polls(2).await?;
    slow.heal().await?;

    let history = watch.history().await?;
    let connections: Vec<_> = history
        .events
        .iter()
        .filter_map(|event| match &event.what {
            What::Connection(connection) => Some(connection),
            _ => None,
        })
        .collect();
    let mut ended = 0;
    for connection in connections {
        let [toxic] = connection.toxics.as_slice() else {
            bail!("not one toxic: {connection}");
        };
        assert!(toxic.starts_with("latency_downstream"), "{connection}");
        assert!(
            connection.bytes_up > 0 && connection.bytes_down > 0,
            "{connection}"
        );
        // One that a client keeps for its next request ends when that has waited long enough.
        let lasted = connection.closed_us.map(|closed| closed - connection.opened_us);
        ended += usize::from(lasted.is_some());
        assert!(lasted.is_none_or(|lasted| lasted >= 20_000), "{connection}");
        assert!(
            connection.client.starts_with(&topology.address(&VPS).to_string()),
            "{connection}"
        );
    }
    assert!(ended > 0, "{history}");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn what_was_written_for_the_test_before_is_not_in_a_history() -> Result<()> {
    let before = topology().await;
    // It says that it listens.
    before.restart(Service::PlatformApi).await?;
    assert!(!lines(&before.history().await?).is_empty());
    before.give_back().await?;

    let begun = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
    let topology = topology().await;
    topology.restart(Service::PlatformApi).await?;
    let history = topology.history().await?;
    assert!(!lines(&history).is_empty());
    assert!(
        lines(&history).iter().all(|(at, _, _)| *at >= begun),
        "{}",
        history.whole()
    );
    Ok(())
}

#[tokio::test]
async fn a_history_holds_the_lines_of_the_services_that_it_was_asked_for_and_no_secret() -> Result<()> {
    let topology = topology().await;
    // Said by postgres as it is sent, and never to be read as it was sent.
    let secret = topology
        .settings()
        .value(Role::Vps, "POSTGRES_PASSWORD")?
        .to_owned();
    let mut database = topology.database().await?;
    let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "SELECT no_such_column AS \"{secret}\""
    )))
    .execute(&mut database)
    .await;
    assert!(refused.is_err(), "postgres logs what it refuses");

    let scope = Scope {
        services: vec![Service::Postgres],
        since: None,
    };
    // postgres answers before its line has gone through its engine.
    let refused = |history: &History| {
        let said = lines(history);
        let statement = said
            .iter()
            .find(|(_, _, line)| line.contains("SELECT no_such_column"));
        statement.map(|(_, _, line)| (*line).to_owned())
    };
    let said = async {
        loop {
            let history = topology.history_of(&scope).await?;
            if let Some(statement) = refused(&history) {
                return anyhow::Ok((history, statement));
            }
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(10), said).await;
    let (history, statement) = said.context("postgres did not log the statement that it refused")??;
    let lines = lines(&history);
    assert!(
        lines.iter().all(|(_, service, _)| *service == Service::Postgres),
        "{lines:?}"
    );
    assert!(statement.contains("AS \"[secret]\""), "{statement}");
    assert!(
        lines.iter().all(|(_, _, line)| !line.contains(&secret)),
        "{lines:?}"
    );
    Ok(())
}
