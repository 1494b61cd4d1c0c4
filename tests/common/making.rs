//! A node that platform-api makes: how it is asked for, and what is seen of it.

#![allow(dead_code, reason = "each file of tests uses a part")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use wopr_harness::Topology;
use wopr_harness::clock::{Rate, minutes};
use wopr_harness::cloud::standin::Droplet;
use wopr_harness::engine::Engine;
use wopr_harness::history::{History, Status, What};
use wopr_harness::machine::Role;
use wopr_harness::oracle;
use wopr_harness::watch::Condition;

pub const NODE: &str = "made-001";
const WAITING_AGENT: &str = "waiting_agent";
pub const STAGES: [&str; 9] = [
    "creating",
    "waiting_active",
    WAITING_AGENT,
    "installing_drivers",
    "installing_docker",
    "downloading_models",
    "starting_services",
    "registering",
    "done",
];

/// What a busy host takes beyond platform-api's time.
const BUSY: Duration = Duration::from_secs(10);

/// A topology with room for so many droplets.
pub async fn with_rack(places: usize) -> Result<Topology> {
    let rate = Rate::from_environment()?;
    Ok(Topology::builder().rate(rate).rack(places).boot().await?)
}

/// A call to platform-api as its operators make it: the status, and the body where it is JSON.
pub async fn admin(
    topology: &Topology,
    method: Method,
    path: &str,
    body: Value,
) -> Result<(StatusCode, Value)> {
    let token = topology.settings().value(Role::Vps, "FLEET_API_TOKEN_ADMIN")?;
    let url = topology.url(3100, &format!("/api/admin/gpu{path}"));
    let request = reqwest::Client::new().request(method, url).bearer_auth(token);
    let answer = request.json(&body).send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    Ok((status, serde_json::from_str(&text).unwrap_or_default()))
}

/// The same call, which is to go well.
pub async fn admin_well(topology: &Topology, method: Method, path: &str, body: Value) -> Result<Value> {
    let (status, answer) = admin(topology, method, path, body).await?;
    ensure!(status.is_success(), "{status}: {answer}");
    Ok(answer)
}

/// Registers a stage of a node, as its cloud-init does; returns the status of the answer.
pub async fn register(topology: &Topology, node: &str, stage: &str) -> Result<StatusCode> {
    let secret = topology.settings().value(Role::Vps, "GPU_NODE_SECRET")?;
    let url = topology.url(3100, &format!("/internal/gpu/register?stage={stage}"));
    let request = reqwest::Client::new().post(url).bearer_auth(secret);
    let sent = request.body(json!({ "nodeId": node }).to_string()).send();
    Ok(sent.await?.status())
}

/// Asks for the node; what comes of it is still to be seen.
pub async fn order(topology: &Topology) -> Result<(StatusCode, Value)> {
    admin(topology, Method::POST, "", json!({ "name": NODE })).await
}

/// Asks for the node, and waits until it waits for its machine or has failed. Whether the answer comes before that
/// or after it, and what is answered about a node that failed, the contract leaves open.
pub async fn provision(topology: &Topology) -> Result<(StatusCode, Value)> {
    let mut events = topology.events().await?;
    let answer = order(topology).await?;
    let settled = async {
        loop {
            if let What::Row(row) = events.next().await?.what
                && row.id == NODE
                && (row.provision_stage == WAITING_AGENT || row.status == Status::Failed)
            {
                return anyhow::Ok(());
            }
        }
    };
    // A droplet may take five minutes, and each answer of the cloud its time.
    let limit = topology.rate().real(minutes(7)) + BUSY;
    let settled = tokio::time::timeout(limit, settled).await;
    settled.with_context(|| {
        format!("{NODE} is still being made; asked for it, platform-api said {answer:?}")
    })??;
    Ok(answer)
}

/// Stages of a node's row in their order, each once.
pub fn stages(history: &History) -> Vec<String> {
    let mut stages: Vec<_> = history
        .rows(NODE)
        .map(|(_, row)| row.provision_stage.clone())
        .collect();
    stages.dedup();
    stages
}

pub fn stage(wanted: &'static str) -> Condition {
    Condition::new(format!("stage {wanted}"), move |row| {
        row.provision_stage == wanted
    })
}

/// What the host has of the machines of the rack.
pub async fn machines_left(topology: &Topology) -> Result<Vec<String>> {
    let label = format!("wopr.topology={}", topology.id());
    let mut left = Engine::connect().await?.containers_with_label(&label).await?;
    left.retain(|name| name.contains("-gpu-"));
    Ok(left)
}

/// The droplet, where there is one.
pub async fn the_droplet(topology: &Topology) -> Result<Droplet> {
    let [droplet] = topology
        .droplets()
        .await?
        .try_into()
        .ok()
        .context("one droplet")?;
    Ok(droplet)
}

/// The history, which the contract allows.
pub async fn judged(topology: &Topology) -> Result<History> {
    let history = topology.history().await?;
    oracle::judge_all(&history)?;
    Ok(history)
}
