//! A node's registration: every status code and the order of its checks, over the real way and over one
//! that breaks.

#[path = "common/registering.rs"]
mod registering;

use std::time::Duration;

use anyhow::{Context as _, Result};
use pretty_assertions::assert_eq;
use registering::{ROUTE, Registration, right_head, secret, send_raw};
use rstest::rstest;
use serde_json::{Value, json};
use wopr_harness::fault::{Stream, Toxic};
use wopr_harness::history::Status;
use wopr_harness::machine::Role;
use wopr_harness::seed::{self, NodeId, NodeSpec};
use wopr_harness::testing::topology;
use wopr_harness::watch::{self, Condition, Watch};
use wopr_harness::{GPU, Service, Topology, VPS, clock::polls};

const STAGES: [&str; 6] = [
    "installing_drivers",
    "installing_docker",
    "downloading_models",
    "starting_services",
    "registering",
    "done",
];

fn unauthorised() -> (u16, Value) {
    (401, json!({ "success": false, "error": "Unauthorized" }))
}

#[tokio::test]
async fn every_stage_is_taken_and_done_activates() -> Result<()> {
    let topology = topology().await;
    let spec = NodeSpec::at("fresh".parse()?, topology.address(&GPU)).status("provisioning");
    seed::write(&topology, &spec).await?;
    let mut watch = topology.watch(&spec.id).await?;

    for stage in STAGES {
        let path = format!("/internal/gpu/register?stage={stage}");
        let sent = Registration {
            path: &path,
            ..Registration::of(&topology, "fresh")?
        }
        .send()
        .await?;
        assert_eq!(sent, (200, json!({ "success": true })), "{stage}");
        let expected = if stage == "done" {
            Status::Active
        } else {
            Status::Provisioning
        };
        // One write or two: nobody promises which.
        let reached = Condition::new(format!("stage {stage} and status {expected:?}"), move |row| {
            row.provision_stage == stage && row.status == expected
        });
        watch.until(reached).within(polls(1)).await?;
    }
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn a_registration_updates_its_row_and_never_inserts_one() -> Result<()> {
    let topology = topology().await;
    let sent = Registration::of(&topology, "nobody")?.send().await?;
    assert_eq!(
        (sent.0, &sent.1["error"]),
        (404, &json!("GPU node not found: nobody"))
    );
    let mut database = topology.database().await?;
    let (rows,): (i64,) = sqlx::query_as("SELECT count(*) FROM gpu_nodes")
        .fetch_one(&mut database)
        .await?;
    assert_eq!(rows, 0);
    Ok(())
}

#[tokio::test]
async fn nothing_but_the_right_bearer_gets_in() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let secret = topology.settings().value(Role::Vps, "GPU_NODE_SECRET")?;
    let short = &secret[..secret.len() - 1];

    let refused = ["", "Bearer", "Bearer ", "Bearer wrong", "Basic wrong"].map(str::to_owned);
    let near = [
        format!("Bearer {short}"),
        format!("Bearer {secret}0"),
        format!("Basic {secret}"),
        short.to_owned(),
    ];
    for authorization in refused.into_iter().chain(near).map(Some).chain([None]) {
        let registration = Registration {
            authorization,
            ..Registration::of(&topology, node.as_str())?
        };
        let shown = registration
            .authorization
            .as_ref()
            .map(|value| value.replace(secret, "SECRET"));
        assert_eq!(registration.send().await?, unauthorised(), "{shown:?}");
    }
    for scheme in ["Bearer ", "bearer ", "BEARER ", ""] {
        let authorization = Some(format!("{scheme}{secret}"));
        let sent = Registration {
            authorization,
            ..Registration::of(&topology, node.as_str())?
        }
        .send()
        .await?;
        assert_eq!(sent.0, 200, "{scheme:?}");
    }
    Ok(())
}

#[tokio::test]
async fn without_a_secret_of_its_own_platform_api_lets_nobody_in() -> Result<()> {
    let topology = Topology::builder()
        .with(Role::Vps, "GPU_NODE_SECRET", "")
        .boot()
        .await?;
    for authorization in [Some("Bearer ".to_owned()), Some("Bearer x".to_owned()), None] {
        let registration = Registration {
            topology: &topology,
            path: "/internal/gpu/register?stage=done",
            authorization,
            content_type: "application/json",
            body: b"{}".to_vec(),
        };
        assert_eq!(registration.send().await?, unauthorised());
    }
    Ok(())
}

#[tokio::test]
async fn the_secret_is_looked_at_before_the_stage_and_the_stage_before_the_body() -> Result<()> {
    let topology = topology().await;
    let wrong = Registration {
        authorization: None,
        path: "/internal/gpu/register?stage=no",
        ..Registration::of(&topology, "x")?
    };
    assert_eq!(wrong.send().await?, unauthorised());

    let path = "/internal/gpu/register?stage=no";
    let sent = Registration {
        path,
        body: b"{".to_vec(),
        ..Registration::of(&topology, "x")?
    }
    .send()
    .await?;
    let error = sent.1["error"].as_str().context("no error")?;
    assert_eq!(sent.0, 400);
    assert!(
        STAGES.iter().all(|stage| error.contains(stage)),
        "the valid stages are named: {error}"
    );

    let sent = Registration {
        body: b"{".to_vec(),
        ..Registration::of(&topology, "x")?
    }
    .send()
    .await?;
    assert_eq!(sent.0, 400, "{}", sent.1);
    Ok(())
}

#[rstest]
#[case::cut_off(br#"{"nodeId":"local-gpu"#, 400)]
#[case::empty(b"", 400)]
#[case::an_array(br#"["local-gpu-node-001"]"#, 400)]
#[case::no_node(b"{}", 400)]
#[case::a_number(br#"{"nodeId":7}"#, 400)]
#[case::null(br#"{"nodeId":null}"#, 400)]
#[case::an_empty_id(br#"{"nodeId":""}"#, 404)]
#[case::sql(br#"{"nodeId":"x'); drop table gpu_nodes;--"}"#, 404)]
#[case::a_nul(br#"{"nodeId":"a\u0000b"}"#, 500)]
#[tokio::test]
async fn a_body_that_names_no_node_is_refused(#[case] body: &[u8], #[case] status: u16) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let sent = Registration {
        body: body.to_vec(),
        ..Registration::of(&topology, node.as_str())?
    }
    .send()
    .await?;
    assert_eq!(sent.0, status, "{}", sent.1);
    // The table is there, and the right node still gets in.
    assert_eq!(Registration::of(&topology, node.as_str())?.send().await?.0, 200);
    Ok(())
}

#[rstest]
#[case::none_is_given("/internal/gpu/register", 400)]
#[case::an_empty_one("/internal/gpu/register?stage=", 400)]
#[case::in_capitals("/internal/gpu/register?stage=DONE", 400)]
#[case::creating_is_not_the_nodes_to_say("/internal/gpu/register?stage=creating", 400)]
#[case::a_trailing_slash("/internal/gpu/register/?stage=done", 404)]
#[case::a_doubled_slash("//internal/gpu/register?stage=done", 404)]
#[tokio::test]
async fn a_path_or_stage_that_is_not_to_the_letter_is_refused(
    #[case] path: &str,
    #[case] status: u16,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let body = json!({ "nodeId": node.as_str() }).to_string();
    let request = right_head(&topology, path, body.len())? + &body;
    assert_eq!(send_raw(&topology, request.as_bytes()).await?, Some(status));
    Ok(())
}

#[tokio::test]
async fn a_get_is_not_found_and_the_content_type_is_not_looked_at() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let got = reqwest::get(topology.url(3100, "/internal/gpu/register?stage=done")).await?;
    assert_eq!(got.status().as_u16(), 404);
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin1",
    ] {
        let sent = Registration {
            content_type,
            ..Registration::of(&topology, node.as_str())?
        }
        .send()
        .await?;
        assert_eq!(sent.0, 200, "{content_type}");
    }
    Ok(())
}

#[tokio::test]
async fn many_registrations_at_once_are_all_taken() -> Result<()> {
    let topology = topology().await;
    let host = topology.address(&GPU);
    let ids: Vec<String> = (0..16).map(|number| format!("node-{number}")).collect();
    for id in &ids {
        seed::write(&topology, &NodeSpec::at(id.parse()?, host).status("provisioning")).await?;
    }
    let sent = ids.iter().chain(&ids).map(|id| async {
        let path = "/internal/gpu/register?stage=done";
        Registration {
            path,
            ..Registration::of(&topology, id)?
        }
        .send()
        .await
    });
    for answer in futures_util::future::join_all(sent).await {
        assert_eq!(answer?.0, 200);
    }
    let mut database = topology.database().await?;
    let query = "SELECT count(*) FROM gpu_nodes WHERE status = 'active' AND provision_stage = 'done'";
    let (active,): (i64,) = sqlx::query_as(query).fetch_one(&mut database).await?;
    assert_eq!(active, 16);
    Ok(())
}

/// Exit codes of curl.
const REFUSED: i32 = 7;
const TIMED_OUT: i32 = 28;
/// The connection broke while something was sent, or received.
const BROKEN: [i32; 2] = [55, 56];

fn taken() -> (i32, String) {
    (0, "200".to_owned())
}

/// How long a client waits for an answer. Real time.
const PATIENT: Duration = Duration::from_secs(20);
/// The same where none can come.
const BRIEF: Duration = Duration::from_secs(2);

/// Registers from the GPU machine itself, over the link; returns curl's exit code and the status.
async fn register_over_the_link(
    topology: &Topology,
    node: &str,
    patience: Duration,
) -> Result<(i32, String)> {
    let body = json!({ "nodeId": node }).to_string();
    let more = format!("--max-time {}", patience.as_secs());
    curl_of(topology, &body, &more)?.await
}

/// The same with more arguments, in the shell's words, and a body that has no quotes of the shell's.
fn curl_of(
    topology: &Topology,
    body: &str,
    more: &str,
) -> Result<impl Future<Output = Result<(i32, String)>> + Send + 'static> {
    let url = format!("http://{}:3100{ROUTE}?stage=done", topology.address(&VPS));
    let script = format!(
        "curl --silent {more} --output /dev/null --write-out '%{{http_code}}' --header 'Authorization: Bearer {}' --data '{body}' {url}",
        secret(topology)?
    );
    let machine = topology.machine(&GPU).clone();
    Ok(async move {
        let mut control = machine.control().await?;
        Ok(control.run_any(&["sh", "-c", &script], PATIENT * 2).await?)
    })
}

/// Seeds a node that has yet to register.
async fn seed_fresh(topology: &Topology) -> Result<NodeId> {
    let spec = NodeSpec::at("fresh".parse()?, topology.address(&GPU)).status("provisioning");
    seed::write(topology, &spec).await?;
    Ok(spec.id)
}

/// Ends a scenario of a node that was kept out: it gets in now.
async fn a_retry_is_taken(topology: &Topology, watch: Watch<'_>) -> Result<()> {
    assert_eq!(register_over_the_link(topology, "fresh", PATIENT).await?, taken());
    it_is_active(watch).await
}

/// Ends a scenario of a node that was registered as done.
async fn it_is_active(mut watch: Watch<'_>) -> Result<()> {
    watch
        .until(watch::status(Status::Active))
        .within(polls(1))
        .await?;
    watch.conclude().await?;
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    Drop,
    Reset,
    Partition,
}

#[rstest]
#[case::dropped(Cut::Drop, TIMED_OUT)]
#[case::reset(Cut::Reset, REFUSED)]
#[case::both_ways(Cut::Partition, TIMED_OUT)]
#[tokio::test]
async fn a_registration_over_a_cut_link_changes_nothing_and_its_retry_is_taken(
    #[case] cut: Cut,
    #[case] ended: i32,
) -> Result<()> {
    let topology = topology().await;
    let node = seed_fresh(&topology).await?;
    let watch = topology.watch(&node).await?;

    let link = topology.link(GPU, VPS);
    let cut = match cut {
        Cut::Drop => link.port(3100).drop_packets().await?,
        Cut::Reset => link.port(3100).reset().await?,
        Cut::Partition => link.partition().await?,
    };
    let (code, _) = register_over_the_link(&topology, "fresh", BRIEF).await?;
    assert_eq!(code, ended, "curl's exit code");
    let history = watch.history().await?;
    assert_eq!(history.rows("fresh").count(), 0, "{history}");
    cut.heal().await?;
    a_retry_is_taken(&topology, watch).await
}

/// A toxic that lets nothing through, and closes the connection at once when there is something.
const NOTHING: Toxic = Toxic::LimitData { bytes: 0 };
/// Some of a body, and all of any head.
const PART: u32 = 4000;

#[rstest]
#[case::whose_answer_is_lost(NOTHING, Stream::Downstream, true)]
#[case::whose_answer_never_comes(Toxic::Timeout { timeout: Duration::ZERO }, Stream::Downstream, true)]
#[case::that_is_swallowed(Toxic::Timeout { timeout: Duration::ZERO }, Stream::Upstream, false)]
#[case::that_is_reset(Toxic::ResetPeer { timeout: Duration::ZERO }, Stream::Upstream, false)]
#[case::that_is_cut_short(Toxic::LimitData { bytes: 100 }, Stream::Upstream, false)]
#[case::that_is_cut_in_its_body(Toxic::LimitData { bytes: PART }, Stream::Upstream, false)]
#[tokio::test]
async fn a_registration_without_an_answer_is_taken_again(
    #[case] toxic: Toxic,
    #[case] stream: Stream,
    #[case] written: bool,
) -> Result<()> {
    let topology = topology().await;
    let node = seed_fresh(&topology).await?;
    let mut watch = topology.watch(&node).await?;

    let fault = topology.link(GPU, VPS).port(3100).toxic(toxic, stream).await?;
    let padding = "a".repeat(2 * PART as usize);
    let body = json!({ "nodeId": node.as_str(), "padding": padding }).to_string();
    // Where the connection is not closed the client's patience ends it. The row, and not that, says what was taken.
    let patience = match toxic {
        Toxic::Timeout { .. } if written => 2 * BRIEF,
        Toxic::Timeout { .. } => BRIEF,
        _ => PATIENT,
    };
    let more = format!("--max-time {}", patience.as_secs());
    let (code, status) = curl_of(&topology, &body, &more)?.await?;
    assert_ne!(
        (code, status.as_str()),
        (0, "200"),
        "no answer came\n{}",
        fault.receipt()
    );
    if written {
        watch
            .until(watch::status(Status::Active))
            .within(polls(3))
            .await?;
    } else {
        let history = watch.history().await?;
        assert_eq!(history.rows("fresh").count(), 0, "\n{history}");
    }
    fault.heal().await?;
    a_retry_is_taken(&topology, watch).await
}

#[rstest]
#[case::late_both_ways(Toxic::Latency { latency: Duration::from_millis(400), jitter: Duration::from_millis(100) })]
#[case::narrow(Toxic::Bandwidth { rate: 10 })]
#[case::in_pieces(Toxic::Slicer { average_size: 100, size_variation: 50, delay: Duration::from_millis(5) })]
#[tokio::test]
async fn a_registration_over_a_slow_link_is_taken(#[case] toxic: Toxic) -> Result<()> {
    let topology = topology().await;
    let node = seed_fresh(&topology).await?;
    let watch = topology.watch(&node).await?;

    let link = topology.link(GPU, VPS).port(3100);
    let _there = link.toxic(toxic, Stream::Upstream).await?;
    let _back = link.toxic(toxic, Stream::Downstream).await?;
    let padding = "a".repeat(2 * PART as usize);
    let body = json!({ "nodeId": node.as_str(), "padding": padding }).to_string();
    let more = format!("--max-time {}", PATIENT.as_secs());
    assert_eq!(curl_of(&topology, &body, &more)?.await?, taken());
    it_is_active(watch).await
}

#[tokio::test]
async fn a_registration_that_is_reset_in_the_middle_of_its_body_is_not_taken_and_its_retry_is() -> Result<()>
{
    let topology = topology().await;
    let node = seed_fresh(&topology).await?;
    let watch = topology.watch(&node).await?;

    // Ten seconds of sending, of which it gets one or so.
    let padding = "a".repeat(100_000);
    let body = json!({ "nodeId": node.as_str(), "padding": padding }).to_string();
    let sending = tokio::spawn(curl_of(&topology, &body, "--max-time 20 --limit-rate 10k")?);
    let script = format!(
        "for _ in $(seq 1000); do ss --no-header state established dst {}:3100 | grep -q . && exit; sleep 0.01; done; exit 1",
        topology.address(&VPS)
    );
    let mut control = topology.control(&GPU).await?;
    control.run(&["sh", "-c", &script], PATIENT).await?;
    let cut = topology.link(GPU, VPS).port(3100).reset().await?;
    let (code, _) = sending.await??;
    assert!(BROKEN.contains(&code), "curl's exit code is {code}");
    let history = watch.history().await?;
    assert_eq!(history.rows("fresh").count(), 0, "\n{history}");
    cut.heal().await?;
    a_retry_is_taken(&topology, watch).await
}

#[tokio::test]
async fn a_stage_never_clears_the_last_error() -> Result<()> {
    let topology = topology().await;
    let spec = NodeSpec::at("fresh".parse()?, topology.address(&GPU)).status("failed");
    seed::write(&topology, &spec).await?;
    let mut database = topology.database().await?;
    sqlx::raw_sql("UPDATE gpu_nodes SET last_error = 'no room'")
        .execute(&mut database)
        .await?;
    for stage in STAGES {
        let path = format!("/internal/gpu/register?stage={stage}");
        let registration = Registration::of(&topology, "fresh")?;
        let sent = Registration {
            path: &path,
            ..registration
        }
        .send()
        .await?;
        assert_eq!(sent.0, 200, "{stage}");
        let query = "SELECT last_error FROM gpu_nodes WHERE id = 'fresh'";
        let (error,): (Option<String>,) = sqlx::query_as(query).fetch_one(&mut database).await?;
        assert_eq!(error.as_deref(), Some("no room"), "{stage}");
    }
    Ok(())
}

#[tokio::test]
async fn a_registration_while_the_database_is_stopped_fails_and_its_retry_is_taken() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let stopped = topology.stop_service(Service::Postgres).await?;
    let (_, status) = register_over_the_link(&topology, node.as_str(), BRIEF).await?;
    assert_ne!(status, "200", "nobody could have written it down");
    stopped.heal().await?;
    topology.until_healthy(&[Service::Postgres]).await?;
    assert_eq!(
        register_over_the_link(&topology, node.as_str(), PATIENT).await?,
        taken()
    );
    topology.conclude().await?;
    Ok(())
}
