//! A registration, as a node's cloud-init sends it, and as it never would.

#![allow(dead_code, reason = "each file of tests uses a part")]

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use reqwest::Client;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wopr_harness::Topology;
use wopr_harness::machine::Role;

/// The route, without a stage.
pub const ROUTE: &str = "/internal/gpu/register";

/// What a server on a busy host has for an answer. Real time.
const PATIENCE: Duration = Duration::from_secs(20);

/// For all registrations, and for tests with runtimes of their own: no connection is kept. Each client takes a while to
/// make, in which a connection of another that was made before would wait longer than a server on a fast clock allows.
static CLIENT: LazyLock<reqwest::Result<Client>> =
    LazyLock::new(|| Client::builder().pool_max_idle_per_host(0).build());

/// A registration, as a node's cloud-init sends it unless it is changed.
pub struct Registration<'a> {
    pub topology: &'a Topology,
    pub path: &'a str,
    pub authorization: Option<String>,
    pub content_type: &'a str,
    pub body: Vec<u8>,
}

impl<'a> Registration<'a> {
    pub fn of(topology: &'a Topology, node: &str) -> Result<Self> {
        Ok(Self {
            topology,
            path: "/internal/gpu/register?stage=registering",
            authorization: Some(format!("Bearer {}", secret(topology)?)),
            content_type: "application/json",
            body: json!({ "nodeId": node }).to_string().into_bytes(),
        })
    }

    pub async fn send(self) -> Result<(u16, Value)> {
        let client = CLIENT.as_ref().map_err(|error| anyhow!("no client: {error}"))?;
        let mut request = client
            .post(self.topology.url(3100, self.path))
            .timeout(PATIENCE)
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

/// What a node's bearer is.
pub fn secret(topology: &Topology) -> Result<&str> {
    Ok(topology.settings().value(Role::Vps, "GPU_NODE_SECRET")?)
}

/// The head of a registration, as bytes: a client library would tidy it up. More lines go before its end.
pub fn head(path: &str, length: usize, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n"
    )
}

/// The same with the right bearer.
pub fn right_head(topology: &Topology, path: &str, length: usize) -> Result<String> {
    let bearer = format!("Authorization: Bearer {}\r\n", secret(topology)?);
    Ok(head(path, length, &bearer))
}

/// A connection to platform-api.
pub async fn connect(topology: &Topology) -> Result<TcpStream> {
    let at = topology.url(3100, "");
    let stream = TcpStream::connect(at.trim_start_matches("http://")).await;
    stream.with_context(|| format!("no connection to {at}"))
}

/// Status of the answer to these bytes; none where the connection ends without one.
pub async fn send_raw(topology: &Topology, request: &[u8]) -> Result<Option<u16>> {
    let (mut reader, mut writer) = connect(topology).await?.into_split();
    // A server that refuses before it has read all closes meanwhile.
    let sending = async {
        let _ = writer.write_all(request).await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        status = answer(&mut reader) => status,
        () = sending => Ok(None),
    }
}

/// Status of the answer on a connection; none where it ends without one.
pub async fn answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<Option<u16>> {
    let mut told = Vec::new();
    let line = async {
        while !told.contains(&b'\n') {
            match stream.read_buf(&mut told).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, line).await;
    ended.with_context(|| format!("neither an answer nor an end within {} s", PATIENCE.as_secs()))?;
    let line = String::from_utf8_lossy(&told).into_owned();
    let Some(status) = line.split(' ').nth(1) else {
        return Ok(None);
    };
    let status = status.parse();
    status
        .map(Some)
        .with_context(|| format!("{line:?} is no status line"))
}
