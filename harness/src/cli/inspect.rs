//! `wopr status`, `ps`, `exec`.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::Row as _;
use wopr_harness::cloud::standin::Droplet;
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
    droplet: Option<String>,
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
        // A VPS machine that is off or frozen has no cloud to ask.
        let droplets = tokio::time::timeout(PATIENCE, topology.droplets()).await;
        let droplets = droplets.ok().and_then(Result::ok).unwrap_or_default();
        if self.json {
            let nodes = nodes.unwrap_or_default();
            say!(
                "{:#}",
                to_json(&topology, &services, &droplets, &nodes, well).await?
            );
        } else {
            print(&topology, &services, &droplets, nodes).await?;
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
    let query = "SELECT id, host, status, provision_stage, service_health, last_health_at, droplet_id FROM gpu_nodes ORDER BY id";
    let rows = sqlx::query(query).fetch_all(&mut database).await?;
    let row = |row: &sqlx::postgres::PgRow| {
        Ok(NodeRow {
            id: row.try_get("id")?,
            host: row.try_get("host")?,
            status: row.try_get("status")?,
            stage: row.try_get("provision_stage")?,
            health: row.try_get("service_health")?,
            polled_at: row.try_get("last_health_at")?,
            droplet: row.try_get("droplet_id")?,
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

/// A line for each machine, with the droplet that it is and the node that platform-api knows there; and for each
/// droplet and node that has no machine.
fn fleet(
    topology: &Topology,
    states: &[String],
    droplets: &[Droplet],
    nodes: &[NodeRow],
) -> Vec<[String; 10]> {
    let none = || "-".to_owned();
    let of_node = |node: Option<&NodeRow>| match node {
        None => [none(), none(), none(), none(), none()],
        Some(node) => [
            node.id.clone(),
            node.status.clone(),
            node.stage.clone(),
            services_of(node.health.as_deref()),
            node.polled_at.map_or_else(|| "never".to_owned(), ago),
        ],
    };
    let of_droplet = |droplet: Option<&Droplet>| {
        droplet.map_or_else(none, |droplet| format!("{} {}", droplet.id, word_of(droplet)))
    };
    let line = |[machine, state, address, made_of]: [String; 4], droplet, node| {
        let [id, status, stage, services, polled] = of_node(node);
        let droplet = of_droplet(droplet);
        [
            machine, state, address, made_of, droplet, id, status, stage, services, polled,
        ]
    };
    let (mut lines, mut shown_nodes, mut shown_droplets) = (Vec::new(), Vec::new(), Vec::new());
    for (machine, state) in topology.machines().zip(states) {
        let address = machine.address();
        let node = nodes
            .iter()
            .find(|node| node.host.as_deref() == Some(&*address.to_string()));
        let droplet = droplets.iter().find(|droplet| droplet.public == Some(address));
        shown_nodes.extend(node.map(|node| node.id.as_str()));
        shown_droplets.extend(droplet.map(|droplet| droplet.id));
        let own = [
            machine.name().to_string(),
            state.clone(),
            address.to_string(),
            made_of(machine).to_owned(),
        ];
        lines.push(line(own, droplet, node));
    }
    let by_id = |id: &str| droplets.iter().find(|droplet| droplet.id.to_string() == id);
    for node in nodes
        .iter()
        .filter(|node| !shown_nodes.contains(&node.id.as_str()))
    {
        let droplet = node.droplet.as_deref().and_then(by_id);
        shown_droplets.extend(droplet.map(|droplet| droplet.id));
        let host = node.host.clone().unwrap_or_else(none);
        lines.push(line([none(), none(), host, none()], droplet, Some(node)));
    }
    for droplet in droplets
        .iter()
        .filter(|droplet| !shown_droplets.contains(&droplet.id))
    {
        lines.push(line([none(), none(), none(), none()], Some(droplet), None));
    }
    lines
}

fn word_of(droplet: &Droplet) -> String {
    format!("{:?}", droplet.shown_status()).to_lowercase()
}

/// What a row's service_health says, shortly: how many are ok, and which are not.
fn services_of(health: Option<&str>) -> String {
    let Some(health) = health else {
        return "not known".to_owned();
    };
    let Ok(Value::Object(services)) = serde_json::from_str(health) else {
        return health.to_owned();
    };
    let down: Vec<_> = services
        .iter()
        .filter(|(_, word)| *word != "ok")
        .map(|(name, _)| name.as_str())
        .collect();
    match down[..] {
        [] => format!("{} ok", services.len()),
        _ if down.len() == services.len() => "all down".to_owned(),
        _ => format!("{} down", down.join(" ")),
    }
}

fn ago(at: i64) -> String {
    let now = i64::try_from(humantime_now()).unwrap_or(i64::MAX);
    format!("{} s ago", now - at)
}

async fn print(
    topology: &Topology,
    services: &[(Service, ServiceHealth)],
    droplets: &[Droplet],
    nodes: Result<Vec<NodeRow>, Failure>,
) -> Result<(), Failure> {
    let mut states = Vec::new();
    for machine in topology.machines() {
        states.push(word(machine.state().await?.as_ref()).to_owned());
    }
    let (known, trouble) = match nodes {
        Ok(nodes) => (nodes, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let head = [
        "machine",
        "state",
        "address",
        "made of",
        "droplet",
        "node",
        "status",
        "stage",
        "services",
        "last poll",
    ];
    say!("{}\n", table(head, fleet(topology, &states, droplets, &known)));
    match trouble {
        Some(error) => say!("nodes are not known: {error}\n"),
        None if known.is_empty() => {
            say!("no node is registered: `wopr seed` registers the GPU machine\n")
        }
        None => {}
    }
    let rows = services.iter().map(|(service, health)| {
        let answer = match health {
            ServiceHealth::Ok => "ok".to_owned(),
            ServiceHealth::Down(reason) => format!("down: {reason}"),
        };
        [service.to_string(), service.role().to_string(), answer]
    });
    say!("{}", table(["service", "machine", "health"], rows));
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
    droplets: &[Droplet],
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
            "id": node.id, "host": node.host, "status": node.status, "stage": node.stage, "droplet": node.droplet,
            "service_health": health, "last_health_at": node.polled_at,
        })
    });
    let droplets = droplets.iter().map(|droplet| {
        json!({ "id": droplet.id, "name": droplet.spec.name, "status": word_of(droplet), "address": droplet.public })
    });
    Ok(json!({
        "topology": topology.id(),
        "droplets": droplets.collect::<Vec<_>>(),
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
                let age = age(entry).map(|age| age.as_secs());
                json!({ "topology": entry.id, "owner": owner, "age_s": age, "containers": entry.containers })
            };
            say!("{:#}", Value::Array(found.iter().map(entry).collect()));
        } else if found.is_empty() {
            say!("no topology is on this host");
        } else {
            let rows = found.into_iter().map(|entry| {
                let age = age(&entry).map_or("-".to_owned(), |age| format!("{} s", age.as_secs()));
                [entry.id, entry.owner.to_string(), age, entry.containers.join(" ")]
            });
            say!("{}", table(["topology", "owner", "age", "containers"], rows));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How long a topology has been there.
fn age(topology: &topology::Listed) -> Option<Duration> {
    topology.created?.elapsed().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_health_is_told_shortly() {
        assert_eq!(services_of(None), "not known");
        assert_eq!(services_of(Some(r#"{"llama":"ok","qwen":"ok"}"#)), "2 ok");
        assert_eq!(services_of(Some(r#"{"llama":"ok","qwen":"down"}"#)), "qwen down");
        assert_eq!(services_of(Some(r#"{"llama":"down","qwen":"down"}"#)), "all down");
        assert_eq!(services_of(Some("no JSON")), "no JSON");
    }
}
