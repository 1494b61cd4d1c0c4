//! What a hostile or broken client of the registration may send: whatever becomes of it, the row says what was
//! answered, the table is there, and the right node gets in.

#[path = "common/registering.rs"]
mod registering;

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use pretty_assertions::assert_eq;
use registering::{ROUTE, Registration, answer, connect, head, right_head, secret, send_raw};
use rstest::rstest;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use wopr_harness::Topology;
use wopr_harness::clock::polls;
use wopr_harness::seed::NodeId;
use wopr_harness::testing::topology;
use wopr_harness::watch::{Condition, Watch, all_ok};

/// Stage of what a hostile client sends; the right node sends `registering`.
const HOSTILE: &str = "downloading_models";
const MEGABYTE: usize = 1 << 20;

fn hostile_path() -> String {
    format!("{ROUTE}?stage={HOSTILE}")
}

/// How often the hostile stage was written into the row.
async fn hostile_rows(watch: &Watch<'_>, node: &NodeId) -> Result<usize> {
    let history = watch.history().await?;
    let mut stages: Vec<_> = history
        .rows(node.as_str())
        .map(|(_, row)| row.provision_stage.clone())
        .collect();
    stages.dedup();
    Ok(stages.iter().filter(|stage| *stage == HOSTILE).count())
}

/// The right node gets in.
async fn the_right_node_gets_in(topology: &Topology, watch: &mut Watch<'_>, node: &NodeId) -> Result<()> {
    let sent = Registration::of(topology, node.as_str())?.send().await?;
    assert_eq!(sent, (200, json!({ "success": true })));
    let registering = Condition::new("stage registering", |row| row.provision_stage == "registering");
    watch.until(registering).within(polls(2)).await?;
    Ok(())
}

/// Sends a hostile request. What was refused is not in the row, and what was taken is; after it the right node gets
/// in. Returns what is wrong, and the answer's status where there is one.
async fn send_hostile(
    topology: &Topology,
    watch: &mut Watch<'_>,
    node: &NodeId,
    request: &[u8],
) -> Result<(Option<String>, Option<u16>)> {
    let before = hostile_rows(watch, node).await?;
    let status = send_raw(topology, request).await?;
    let written = hostile_rows(watch, node).await? - before;
    let wrong = match status {
        Some(200) if written == 0 => Some("taken, and not in the row".to_owned()),
        Some(300..) if written > 0 => Some(format!("refused with {status:?}, and in the row")),
        // Without an answer the client knows nothing.
        Some(200 | 300..) | None => None,
        Some(other) => Some(format!("answered with {other}")),
    };
    the_right_node_gets_in(topology, watch, node).await?;
    Ok((wrong, status))
}

fn padding() -> String {
    "a".repeat(8 * MEGABYTE)
}

#[rstest]
#[case::of_padding(|node: &NodeId| json!({ "nodeId": node.as_str(), "padding": padding() }).to_string())]
#[case::of_an_id(|_: &NodeId| json!({ "nodeId": padding() }).to_string())]
#[case::of_space(|node: &NodeId| format!("{}{}", " ".repeat(4 * MEGABYTE), json!({ "nodeId": node.as_str() })))]
#[case::of_nothing_but_depth(|_: &NodeId| "[".repeat(4 * MEGABYTE))]
#[tokio::test]
async fn a_body_of_megabytes_is_taken_or_refused_and_keeps_nobody_out(
    #[case] body: fn(&NodeId) -> String,
) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let body = body(&node);
    let request = right_head(&topology, &hostile_path(), body.len())? + &body;
    let (wrong, status) = send_hostile(&topology, &mut watch, &node, request.as_bytes()).await?;
    assert_eq!(wrong, None, "{status:?}\n{}", watch.history().await?);
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn an_id_of_line_ends_puts_no_header_into_the_answer() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    for id in [
        format!("{node}\r\nX-Injected: yes\r\n\r\n"),
        format!("{node}\nX-Injected: yes"),
        format!("{node}\rX-Injected: yes"),
        format!("{node}%0d%0aX-Injected:%20yes"),
        format!("{node}\u{2028}X-Injected: yes"),
        format!("{node}\u{10a}X-Injected: yes"),
    ] {
        let sent = reqwest::Client::new()
            .post(topology.url(3100, &hostile_path()))
            .bearer_auth(secret(&topology)?)
            .body(json!({ "nodeId": &id }).to_string());
        let answer = sent.send().await?;
        assert_eq!(answer.status().as_u16(), 404, "{id:?}");
        assert!(!answer.headers().contains_key("x-injected"), "{answer:?}");
    }
    assert_eq!(hostile_rows(&watch, &node).await?, 0);
    the_right_node_gets_in(&topology, &mut watch, &node).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn the_secret_anywhere_but_in_its_header_lets_nobody_in() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let (path, secret) = (hostile_path(), secret(&topology)?);
    let body = json!({ "nodeId": node.as_str(), "authorization": format!("Bearer {secret}") }).to_string();
    let paths = [
        format!("{path}&authorization=Bearer%20{secret}"),
        format!("{path}%0d%0aAuthorization:%20Bearer%20{secret}"),
        format!("{path}#{secret}"),
    ];
    let headers = [
        format!("X-Authorization: Bearer {secret}\r\n"),
        format!("Proxy-Authorization: Bearer {secret}\r\n"),
        format!("Cookie: authorization=Bearer {secret}\r\n"),
        format!("X-Folded: a\r\n Authorization: Bearer {secret}\r\n"),
        format!("X-Cut: a\rAuthorization: Bearer {secret}\r\n"),
        format!("Authorization: Bearer {secret},{secret}\r\n"),
    ];
    let by_path = paths.iter().map(|path| head(path, body.len(), ""));
    let by_header = headers.iter().map(|line| head(&path, body.len(), line));
    let mut let_in = Vec::new();
    for head in by_path.chain(by_header) {
        let status = send_raw(&topology, (head.clone() + &body).as_bytes()).await?;
        // Where it is not understood at all there may be no answer.
        if status.is_some_and(|status| status < 300) {
            let_in.push((status, head.replace(secret, "SECRET")));
        }
    }
    assert_eq!(let_in, []);
    assert_eq!(hostile_rows(&watch, &node).await?, 0);
    the_right_node_gets_in(&topology, &mut watch, &node).await?;
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn headers_that_no_client_sends_are_taken_or_refused_and_keep_nobody_out() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let body = json!({ "nodeId": node.as_str() }).to_string();
    let bearer = format!("Authorization: Bearer {}\r\n", secret(&topology)?);
    let mut wrong = Vec::new();
    for (what, more) in [
        (
            "a megabyte of one",
            format!("X-Long: {}\r\n", "a".repeat(MEGABYTE)),
        ),
        ("thousands of them", "X-Many: a\r\n".repeat(5000)),
        ("a NUL", "X-Nul: a\0b\r\n".to_owned()),
        ("one without a colon", "X-Nothing\r\n".to_owned()),
        ("one without a name", ": a\r\n".to_owned()),
        ("one that is not ASCII", "X-Ümlaut: ü\r\n".to_owned()),
        ("another length", "Content-Length: 1\r\n".to_owned()),
        ("a length and chunks", "Transfer-Encoding: chunked\r\n".to_owned()),
        ("an unknown encoding", "Transfer-Encoding: rot13\r\n".to_owned()),
        ("an unknown expectation", "Expect: the-unexpected\r\n".to_owned()),
        (
            "an upgrade",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n".to_owned(),
        ),
        ("a second bearer", "Authorization: Bearer wrong\r\n".to_owned()),
    ] {
        let request = head(&hostile_path(), body.len(), &format!("{bearer}{more}")) + &body;
        let (found, _) = send_hostile(&topology, &mut watch, &node, request.as_bytes()).await?;
        wrong.extend(found.map(|found| format!("{what}: {found}")));
    }
    assert_eq!(wrong, Vec::<String>::new(), "\n{}", watch.history().await?);
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn no_trick_with_the_path_gets_round_the_secret() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let body = json!({ "nodeId": node.as_str() }).to_string();
    let mut wrong = Vec::new();
    for path in [
        "/internal%2Fgpu%2Fregister",
        "/internal/gpu/%72egister",
        "/internal/gpu/./register",
        "/internal/x/../gpu/register",
        "/internal/%2e%2e/internal/gpu/register",
        "/health/../internal/gpu/register",
        "/internal\\gpu\\register",
        "/internal/gpu/register;x=y",
        "/internal/gpu/register%00",
        "/internal/gpu/register%0d%0a",
        "/Internal/GPU/Register",
        "internal/gpu/register",
        "http://localhost/internal/gpu/register",
        "http://elsewhere.invalid/internal/gpu/register",
        &format!("/{}/internal/gpu/register", "x".repeat(64 << 10)),
        &format!("/internal/gpu/register/{}", "../".repeat(10_000)),
    ] {
        let path_and_stage = format!("{path}?stage={HOSTILE}");
        let shown = &path[..path.len().min(60)];
        let nobody = head(&path_and_stage, body.len(), "") + &body;
        let (found, status) = send_hostile(&topology, &mut watch, &node, nobody.as_bytes()).await?;
        wrong.extend(found.map(|found| format!("{shown} without the secret: {found}")));
        if status == Some(200) {
            wrong.push(format!("{shown}: lets in who has no secret"));
        }
        // Whether it is the route, a server may see either way.
        let somebody = right_head(&topology, &path_and_stage, body.len())? + &body;
        let (found, _) = send_hostile(&topology, &mut watch, &node, somebody.as_bytes()).await?;
        wrong.extend(found.map(|found| format!("{shown}: {found}")));
    }
    assert_eq!(wrong, Vec::<String>::new(), "\n{}", watch.history().await?);
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn whatever_the_content_type_says_the_body_is_read_as_json() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let body = json!({ "nodeId": node.as_str() }).to_string();
    let bearer = format!("Authorization: Bearer {}\r\n", secret(&topology)?);
    let long = format!("application/{}", "x".repeat(2000));
    let mut refused = Vec::new();
    for content_type in [
        "",
        "nonsense",
        "a/b/c;;;=,",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "application/octet-stream",
        "text/html",
        &long,
    ] {
        let line = format!("Content-Type: {content_type}\r\n");
        let head = head(&hostile_path(), body.len(), &format!("{bearer}{line}"));
        let request = head + &body;
        let (wrong, status) = send_hostile(&topology, &mut watch, &node, request.as_bytes()).await?;
        if wrong.is_some() || status != Some(200) {
            refused.push((content_type, status, wrong));
        }
    }
    assert_eq!(refused, []);
    watch.conclude().await?;
    Ok(())
}

/// How a body goes on that stopped half-way.
#[derive(Debug, Clone, Copy)]
enum End {
    Closed,
    Reset,
    Late,
}

#[rstest]
#[case::closed(End::Closed)]
#[case::reset(End::Reset)]
#[case::late(End::Late)]
#[tokio::test]
async fn a_body_that_stops_half_way_holds_nobody_up_and_is_never_half_taken(#[case] end: End) -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let body = json!({ "nodeId": node.as_str() }).to_string();
    let (half, rest) = body.as_bytes().split_at(body.len() / 2);
    let mut stream = connect(&topology).await?;
    let head = right_head(&topology, &hostile_path(), body.len())?;
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(half).await?;
    the_right_node_gets_in(&topology, &mut watch, &node).await?;
    // A server may give up meanwhile: two minutes are more than most wait for a body.
    watch.polls(4).await?;
    assert_eq!(
        hostile_rows(&watch, &node).await?,
        0,
        "\n{}",
        watch.history().await?
    );

    let status = match end {
        End::Closed => {
            let _ = stream.shutdown().await;
            answer(&mut stream).await?
        }
        End::Reset => {
            stream.set_zero_linger()?;
            drop(stream);
            None
        }
        End::Late => {
            let _ = stream.write_all(rest).await;
            answer(&mut stream).await?
        }
    };
    the_right_node_gets_in(&topology, &mut watch, &node).await?;
    let written = hostile_rows(&watch, &node).await?;
    // Late it may be taken; without its end it is no registration.
    let taken = matches!(end, End::Late) && status == Some(200);
    assert_eq!(
        written,
        usize::from(taken),
        "{status:?}\n{}",
        watch.history().await?
    );
    assert!(taken || status.is_none_or(|status| status >= 300), "{status:?}");
    watch.conclude().await?;
    Ok(())
}

#[tokio::test]
async fn hundreds_of_connections_that_wait_half_open_keep_nobody_out_and_polls_go_on() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let mut watch = topology.watch(&node).await?;

    let head = right_head(&topology, &hostile_path(), 100)?;
    let (topology, half, head) = (&topology, &head.as_bytes()[..head.len() / 2], head.as_bytes());
    let open = (0..300).map(|number| async move {
        let mut stream = connect(topology).await?;
        // A third of them say nothing at all, a third half a head, a third a head and no body.
        let said = match number % 3 {
            0 => &[],
            1 => half,
            _ => head,
        };
        stream.write_all(said).await?;
        anyhow::Ok(stream)
    });
    let open = tokio::time::timeout(Duration::from_secs(20), try_join_all(open)).await;
    let open = open.context("the connections do not come about")??;
    the_right_node_gets_in(topology, &mut watch, &node).await?;
    watch.found(all_ok()).await?;
    the_right_node_gets_in(topology, &mut watch, &node).await?;
    drop(open);
    the_right_node_gets_in(topology, &mut watch, &node).await?;
    assert_eq!(
        hostile_rows(&watch, &node).await?,
        0,
        "\n{}",
        watch.history().await?
    );
    watch.conclude().await?;
    Ok(())
}
