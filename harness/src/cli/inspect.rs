//! `wopr status`, `ps`, `exec`.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use clap::Args;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::Row as _;
use wopr_harness::dirs::Dirs;
use wopr_harness::engine::Engine;
use wopr_harness::machine::MachineName;
use wopr_harness::service::Service;
use wopr_harness::topology::{self, ServiceHealth, Topology};

use super::table::table;
use super::up::{check_place, parse_service};
use super::{Failure, Outcome};

/// A database that answers at all does so well within this.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Status {
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

struct NodeRow {
    id: String,
    host: Option<String>,
    status: String,
    stage: String,
    health: Option<String>,
    polled_at: Option<i64>,
}

impl Status {
    /// Ends with 1 when a service is not well.
    pub(crate) async fn run(self) -> Outcome {
        let topology = Topology::by_hand().await?;
        let services = topology.expected_services();
        let health = join_all(services.iter().map(|service| topology.health(*service))).await;
        let well = health.iter().all(ServiceHealth::is_ok);
        // A machine that is frozen takes the question, and says nothing.
        let nodes = match tokio::time::timeout(PATIENCE, nodes(&topology)).await {
            Ok(nodes) => nodes,
            Err(_) => Err(Failure::from(format!(
                "no answer within {} s",
                PATIENCE.as_secs()
            ))),
        };
        let services: Vec<_> = services.into_iter().zip(health).collect();
        if self.json {
            let nodes = nodes.unwrap_or_default();
            say!("{:#}", to_json(&topology, &services, &nodes, well).await?);
        } else {
            print(&topology, &services, nodes).await?;
        }
        Ok(if well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

async fn nodes(topology: &Topology) -> Result<Vec<NodeRow>, Failure> {
    let mut database = topology.database().await?;
    let query =
        "SELECT id, host, status, provision_stage, service_health, last_health_at FROM gpu_nodes ORDER BY id";
    let rows = sqlx::query(query).fetch_all(&mut database).await?;
    let row = |row: &sqlx::postgres::PgRow| {
        Ok(NodeRow {
            id: row.try_get("id")?,
            host: row.try_get("host")?,
            status: row.try_get("status")?,
            stage: row.try_get("provision_stage")?,
            health: row.try_get("service_health")?,
            polled_at: row.try_get("last_health_at")?,
        })
    };
    rows.iter()
        .map(row)
        .collect::<Result<_, sqlx::Error>>()
        .map_err(Into::into)
}

fn word(state: Option<&wopr_harness::engine::ContainerState>) -> &'static str {
    match state {
        None => "gone",
        Some(state) if state.paused => "paused",
        Some(state) if state.running => "running",
        Some(_) => "stopped",
    }
}

/// What a machine is made of.
fn made_of(machine: &wopr_harness::machine::RunningMachine) -> &'static str {
    if machine.is_light() {
        "one process, no engine"
    } else {
        "an engine"
    }
}

async fn print(
    topology: &Topology,
    services: &[(Service, ServiceHealth)],
    nodes: Result<Vec<NodeRow>, Failure>,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for machine in topology.machines() {
        let state = machine.state().await?;
        rows.push([
            machine.name().to_string(),
            word(state.as_ref()).to_owned(),
            machine.address().to_string(),
            made_of(machine).to_owned(),
        ]);
    }
    say!("{}\n", table(["machine", "state", "address", "made of"], rows));
    let rows = services.iter().map(|(service, health)| {
        let answer = match health {
            ServiceHealth::Ok => "ok".to_owned(),
            ServiceHealth::Down(reason) => format!("down: {reason}"),
        };
        [service.to_string(), service.role().to_string(), answer]
    });
    say!("{}\n", table(["service", "machine", "health"], rows));
    match nodes {
        Err(error) => say!("nodes are not known: {error}"),
        Ok(nodes) if nodes.is_empty() => {
            say!("no node is registered: `wopr seed` registers the GPU machine")
        }
        Ok(nodes) => {
            let now = i64::try_from(humantime_now()).unwrap_or(i64::MAX);
            let rows = nodes.into_iter().map(|node| {
                let polled = node
                    .polled_at
                    .map_or("never".to_owned(), |at| format!("{} s ago", now - at));
                let health = node.health.unwrap_or_else(|| "not known".to_owned());
                [
                    node.id,
                    node.host.unwrap_or_else(|| "none".to_owned()),
                    node.status,
                    node.stage,
                    health,
                    polled,
                ]
            });
            say!(
                "{}",
                table(
                    ["node", "host", "status", "stage", "service health", "last poll"],
                    rows
                )
            );
        }
    }
    Ok(())
}

fn humantime_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

async fn to_json(
    topology: &Topology,
    services: &[(Service, ServiceHealth)],
    nodes: &[NodeRow],
    well: bool,
) -> Result<Value, Failure> {
    let mut machines = Vec::new();
    for machine in topology.machines() {
        let state = machine.state().await?;
        let state = word(state.as_ref());
        machines
            .push(json!({ "name": machine.name().as_str(), "state": state, "address": machine.address(), "light": machine.is_light() }));
    }
    let services = services.iter().map(|(service, health)| {
        let reason = match health {
            ServiceHealth::Ok => None,
            ServiceHealth::Down(reason) => Some(reason),
        };
        let (name, machine) = (service.name(), service.role().to_string());
        json!({ "name": name, "machine": machine, "ok": health.is_ok(), "reason": reason })
    });
    let nodes = nodes.iter().map(|node| {
        let health = node
            .health
            .as_ref()
            .map(|text| serde_json::from_str(text).unwrap_or(Value::Null));
        json!({
            "id": node.id, "host": node.host, "status": node.status, "stage": node.stage,
            "service_health": health, "last_health_at": node.polled_at,
        })
    });
    Ok(json!({
        "topology": topology.id(),
        "ok": well,
        "machines": machines,
        "services": services.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
    }))
}

#[derive(Args)]
pub(crate) struct Ps {
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

impl Ps {
    pub(crate) async fn run(self) -> Outcome {
        let (engine, dirs) = (Engine::connect().await?, Dirs::find()?);
        let found = topology::list(&engine, &dirs).await?;
        if self.json {
            let entry = |entry: &topology::Listed| {
                let owner = entry.owner.to_string();
                json!({ "topology": entry.id, "owner": owner, "containers": entry.containers })
            };
            say!("{:#}", Value::Array(found.iter().map(entry).collect()));
        } else if found.is_empty() {
            say!("no topology is on this host");
        } else {
            let rows = found
                .into_iter()
                .map(|entry| [entry.id, entry.owner.to_string(), entry.containers.join(" ")]);
            say!("{}", table(["topology", "owner", "containers"], rows));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args)]
pub(crate) struct Exec {
    /// vps or gpu.
    machine: MachineName,
    /// A service on it; the machine itself unless it is given.
    #[arg(value_parser = parse_service)]
    service: Option<Service>,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Exec {
    /// Becomes `docker exec`, which knows terminals; the inner one is reached through the outer.
    pub(crate) async fn run(self) -> Outcome {
        if let Some(service) = self.service {
            check_place(&self.machine, service)?;
        }
        let topology = Topology::by_hand().await?;
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let flags = if terminal { "-it" } else { "-i" };
        let mut command = std::process::Command::new("docker");
        command.args(["exec", flags, topology.machine(&self.machine).container()]);
        if let Some(service) = self.service {
            command.args(["docker", "exec", flags, &service.container()]);
        }
        let error = command.args(&self.command).exec();
        Err(format!("cannot run the docker command: {error}; install docker-cli (or docker.io)").into())
    }
}
