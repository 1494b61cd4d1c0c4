//! A node's registration: every status code and the order of its checks, over the real way and over one
//! that breaks.

use std::time::Duration;

use anyhow::{Context as _, Result};
use pretty_assertions::assert_eq;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use rstest::rstest;
use serde_json::{Value, json};
use wopr_harness::fault::{Stream, Toxic};
use wopr_harness::history::Status;
use wopr_harness::machine::Role;
use wopr_harness::seed::{self, NodeSpec};
use wopr_harness::testing::topology;
use wopr_harness::watch::{self, Condition};
use wopr_harness::{GPU, Service, Topology, VPS, clock::polls};

const STAGES: [&str; 6] = [
    "installing_drivers",
    "installing_docker",
    "downloading_models",
    "starting_services",
    "registering",
    "done",
];

/// A registration, as a node's cloud-init sends it unless it is changed.
struct Registration<'a> {
    topology: &'a Topology,
    path: &'a str,
    authorization: Option<String>,
    content_type: &'a str,
    body: Vec<u8>,
}

impl<'a> Registration<'a> {
    fn of(topology: &'a Topology, node: &str) -> Result<Self> {
        let secret = topology.settings().value(Role::Vps, "GPU_NODE_SECRET")?;
        Ok(Self {
            topology,
            path: "/internal/gpu/register?stage=registering",
            authorization: Some(format!("Bearer {secret}")),
            content_type: "application/json",
            body: json!({ "nodeId": node }).to_string().into_bytes(),
        })
    }

    async fn send(self) -> Result<(u16, Value)> {
        let mut request = reqwest::Client::new()
            .post(self.topology.url(3100, self.path))
            .header(CONTENT_TYPE, self.content_type)
            .body(self.body);
        if let Some(value) = self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        Ok((
            status,
            serde_json::from_str(&answer.text().await?).unwrap_or(Value::Null),
        ))
    }
}

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
        let reached = Condition::new(format!("stage {stage}"), move |row| row.provision_stage == stage);
        let row = watch.until(reached).within(polls(1)).await?;
        let expected = if stage == "done" {
            Status::Active
        } else {
            Status::Provisioning
        };
        assert_eq!(row.status, expected, "{stage}");
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
    let at = topology.url(3100, "").trim_start_matches("http://").to_owned();
    let secret = topology.settings().value(Role::Vps, "GPU_NODE_SECRET")?;
    let body = json!({ "nodeId": node.as_str() }).to_string();
    // As bytes: a client library would tidy the path up.
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(send_raw(&at, request.as_bytes()).await?, status);
    Ok(())
}

/// Status of the answer to these bytes.
async fn send_raw(at: &str, request: &[u8]) -> Result<u16> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(at).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await??;
    let line = String::from_utf8_lossy(&answer)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    line.split(' ')
        .nth(1)
        .context("no status line")?
        .parse()
        .with_context(|| line.clone())
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

fn taken() -> (i32, String) {
    (0, "200".to_owned())
}

/// Registers from the GPU machine itself, over the link; returns curl's exit code and the status.
async fn register_over_the_link(topology: &Topology, node: &str) -> Result<(i32, String)> {
    let secret = topology.settings().value(Role::Vps, "GPU_NODE_SECRET")?;
    let url = format!(
        "http://{}:3100/internal/gpu/register?stage=done",
        topology.address(&VPS)
    );
    let (bearer, body) = (
        format!("Authorization: Bearer {secret}"),
        json!({ "nodeId": node }).to_string(),
    );
    let argv = [
        "curl",
        "--silent",
        "--max-time",
        "2",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        "--header",
        &bearer,
        "--data",
        &body,
        &url,
    ];
    Ok(topology
        .control(&GPU)
        .await?
        .run_any(&argv, Duration::from_secs(10))
        .await?)
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
    let spec = NodeSpec::at("fresh".parse()?, topology.address(&GPU)).status("provisioning");
    seed::write(&topology, &spec).await?;
    let mut watch = topology.watch(&spec.id).await?;

    let link = topology.link(GPU, VPS);
    let cut = match cut {
        Cut::Drop => link.port(3100).drop_packets().await?,
        Cut::Reset => link.port(3100).reset().await?,
        Cut::Partition => link.partition().await?,
    };
    let (code, _) = register_over_the_link(&topology, "fresh").await?;
    assert_eq!(code, ended, "curl's exit code");
    let history = watch.history().await?;
    assert_eq!(history.rows("fresh").count(), 0, "{history}");
    cut.heal().await?;
    assert_eq!(register_over_the_link(&topology, "fresh").await?, taken());
    watch
        .until(watch::status(Status::Active))
        .within(polls(1))
        .await?;
    Ok(())
}

#[rstest]
#[case::whose_answer_is_lost(Toxic::Timeout { timeout: Duration::ZERO }, Stream::Downstream, true)]
#[case::that_is_swallowed(Toxic::Timeout { timeout: Duration::ZERO }, Stream::Upstream, false)]
#[case::that_is_cut_short(Toxic::LimitData { bytes: 100 }, Stream::Upstream, false)]
#[tokio::test]
async fn a_registration_without_an_answer_is_taken_again(
    #[case] toxic: Toxic,
    #[case] stream: Stream,
    #[case] written: bool,
) -> Result<()> {
    let topology = topology().await;
    let spec = NodeSpec::at("fresh".parse()?, topology.address(&GPU)).status("provisioning");
    seed::write(&topology, &spec).await?;
    let mut watch = topology.watch(&spec.id).await?;

    let fault = topology.link(GPU, VPS).port(3100).toxic(toxic, stream).await?;
    let (code, _) = register_over_the_link(&topology, "fresh").await?;
    assert_ne!(code, 0, "no answer came\n{}", fault.receipt());
    let history = watch.history().await?;
    let done = history
        .rows("fresh")
        .any(|(_, row)| row.provision_stage == "done");
    assert_eq!(done, written, "\n{history}");
    fault.heal().await?;
    assert_eq!(register_over_the_link(&topology, "fresh").await?, taken());
    let done = Condition::new("stage done", |row| row.provision_stage == "done");
    watch.until(done).within(polls(1)).await?;
    Ok(())
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
    let (_, status) = register_over_the_link(&topology, node.as_str()).await?;
    assert_ne!(status, "200", "nobody could have written it down");
    stopped.heal().await?;
    topology.until_healthy(&[Service::Postgres]).await?;
    assert_eq!(
        register_over_the_link(&topology, node.as_str()).await?,
        (0, "200".to_owned())
    );
    Ok(())
}
