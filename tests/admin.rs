//! The routes that are not a node's own: clause by clause, and every deviation is told of.

use anyhow::Result;
use pretty_assertions::assert_eq;
use reqwest::Method;
use serde_json::{Value, json};
use wopr_harness::clock::Rate;
use wopr_harness::history::{Event, What};
use wopr_harness::machine::Role;
use wopr_harness::seed::{self, NodeSpec};
use wopr_harness::testing::topology;
use wopr_harness::{GPU, Topology};

const ADMIN: &str = "/api/admin/gpu";

/// Sends a request; its answer's status and JSON.
async fn send(
    topology: &Topology,
    method: &Method,
    path: &str,
    bearer: Option<&str>,
    body: Option<&Value>,
) -> Result<(u16, Value)> {
    let mut request = reqwest::Client::new().request(method.clone(), topology.url(3100, path));
    if let Some(bearer) = bearer {
        request = request.bearer_auth(bearer);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    let body = serde_json::from_str(&answer.text().await?).unwrap_or(Value::Null);
    Ok((status, body))
}

#[tokio::test]
async fn health_is_told_to_anybody() -> Result<()> {
    let topology = topology().await;
    let (status, body) = send(&topology, &Method::GET, "/health", None, None).await?;
    assert_eq!((status, &body["status"]), (200, &json!("ok")), "{body}");
    assert!(body["service"].is_string(), "{body}");
    Ok(())
}

#[tokio::test]
async fn every_admin_route_wants_the_admins_bearer() -> Result<()> {
    let topology = topology().await;
    let node = topology.seed_gpu_node().await?;
    let (one, reboot) = (format!("{ADMIN}/{node}"), format!("{ADMIN}/{node}/reboot"));
    let routes = [
        (Method::GET, ADMIN),
        (Method::POST, ADMIN),
        (Method::GET, "/api/admin/gpu/regions"),
        (Method::GET, "/api/admin/gpu/sizes"),
        (Method::GET, &one),
        (Method::DELETE, &one),
        (Method::POST, &reboot),
    ];
    let mut deviations = Vec::new();
    for (method, path) in routes {
        for (bearer, error) in [
            (None, "Authentication required"),
            (Some("wrong"), "Invalid or expired token"),
        ] {
            let (status, body) = send(&topology, &method, path, bearer, None).await?;
            if status != 401 || !body.to_string().contains(error) {
                deviations.push(format!("{method} {path}: 401 {error}, and not {status} {body}"));
            }
        }
    }
    assert_eq!(deviations, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn without_the_id_of_an_ssh_key_no_node_is_made_or_deleted_and_the_answer_names_it() -> Result<()> {
    let builder = Topology::builder().rate(Rate::from_environment()?);
    let topology = builder.with(Role::Vps, "DO_SSH_KEY_ID", "").boot().await?;
    let node = topology.seed_gpu_node_with_droplet("412345678").await?;
    let token = topology.settings().value(Role::Vps, "FLEET_API_TOKEN_ADMIN")?;
    let (one, name) = (format!("{ADMIN}/{node}"), json!({ "name": "gpu-extra" }));
    for (method, path, body) in [
        (Method::POST, ADMIN, Some(&name)),
        (Method::DELETE, one.as_str(), None),
    ] {
        let (status, answer) = send(&topology, &method, path, Some(token), body).await?;
        assert_eq!(status, 500, "{method} {path}: {answer}");
        assert!(
            answer.to_string().contains("DO_SSH_KEY_ID"),
            "{method} {path}: {answer}"
        );
    }

    assert_eq!(topology.droplets().await?, []);
    let (status, answer) = send(&topology, &Method::GET, &one, Some(token), None).await?;
    assert_eq!(status, 200, "it is still there: {answer}");
    let history = topology.conclude().await?;
    let calls = |event: &Event| matches!(&event.what, What::Cloud(record) if record.method != "GET");
    assert!(
        !history.events.iter().any(calls),
        "the cloud was asked for nothing\n{history}"
    );
    Ok(())
}

#[tokio::test]
async fn the_admin_routes_answer_as_the_contract_says() -> Result<()> {
    let topology = topology().await;
    topology.seed_gpu_node().await?;
    let token = topology.settings().value(Role::Vps, "FLEET_API_TOKEN_ADMIN")?;
    for status in ["provisioning", "bootstrapping"] {
        let spec = NodeSpec::at(format!("node-{status}").parse()?, topology.address(&GPU)).status(status);
        seed::write(&topology, &spec).await?;
    }
    let name = |name: &str| Some(json!({ "name": name }));
    let clauses = [
        (Method::GET, "", None, 200),
        (Method::GET, "/regions", None, 200),
        (Method::GET, "/sizes", None, 200),
        (Method::GET, "/local-gpu-node-001", None, 200),
        (Method::GET, "/nobody", None, 404),
        (Method::POST, "/local-gpu-node-001/reboot", None, 400),
        (Method::DELETE, "/node-provisioning", None, 409),
        (Method::DELETE, "/node-bootstrapping", None, 409),
        (Method::POST, "", name("-begins-with-a-dash"), 400),
        (Method::POST, "", name("under_score"), 400),
        (Method::POST, "", name("dots/../slashes"), 400),
        (Method::POST, "", name(&"x".repeat(64)), 400),
        // Not to be found with a trailing slash, as everything else.
        (Method::GET, "/", None, 404),
        (Method::GET, "/regions/", None, 404),
        (Method::GET, "/local-gpu-node-001/", None, 404),
    ];
    let mut deviations = Vec::new();
    for (method, path, body, expected) in clauses {
        let path = format!("{ADMIN}{path}");
        let (status, answer) = send(&topology, &method, &path, Some(token), body.as_ref()).await?;
        if status != expected {
            let body = body.unwrap_or_default();
            deviations.push(format!(
                "{method} {path} {body}: {expected}, and not {status} {answer}"
            ));
        }
    }
    assert_eq!(deviations, Vec::<String>::new());

    let (_, all) = send(&topology, &Method::GET, ADMIN, Some(token), None).await?;
    let nodes = all["nodes"].as_array().map(Vec::len);
    assert_eq!(
        (&all["success"], &all["count"], nodes),
        (&json!(true), &json!(3), Some(3)),
        "{all}"
    );
    Ok(())
}
