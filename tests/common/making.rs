//! A node that platform-api makes: how it is asked for, and what is seen of it.

#![allow(dead_code, reason = "each file of tests uses a part")]

use anyhow::{Context as _, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use wopr_harness::Topology;
use wopr_harness::clock::Rate;
use wopr_harness::cloud::standin::Droplet;
use wopr_harness::engine::Engine;
use wopr_harness::history::History;
use wopr_harness::machine::Role;
use wopr_harness::oracle;
use wopr_harness::watch::Condition;

pub const NODE: &str = "made-001";
pub const STAGES: [&str; 9] = [
    "creating",
    "waiting_active",
    "waiting_agent",
    "installing_drivers",
    "installing_docker",
    "downloading_models",
    "starting_services",
    "registering",
    "done",
];

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

pub async fn provision(topology: &Topology) -> Result<(StatusCode, Value)> {
    admin(topology, Method::POST, "", json!({ "name": NODE })).await
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
