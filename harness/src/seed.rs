//! Seeding: the row of `gpu_nodes` that names the GPU machine. `wopr seed` and local/gpu-seeder.sh do
//! the same, with the same statement.

use std::fmt;
use std::str::FromStr;

use sqlx::Connection as _;

use crate::machine::{GPU, MachineName};
use crate::service::Service;
use crate::topology::{Topology, TopologyError};

/// The statement; its parameters are the node's id and its address.
pub const STATEMENT: &str = include_str!("../../local/gpu-seeder.sql");

/// Longest id of a node: it becomes a host name.
const LONGEST: usize = 63;

/// Id of a node: letters, digits and dashes, not a dash first, 63 at most.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(String);

/// A text that is no node's id.
#[derive(Debug, thiserror::Error)]
#[error(
    "{given:?} is not a node's id: 1 to {LONGEST} letters, digits and dashes, the first not a dash (^[a-zA-Z0-9][a-zA-Z0-9-]*$)"
)]
pub struct BadNodeId {
    given: String,
}

impl NodeId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for NodeId {
    /// The seeder's own: `local-gpu-node-001`.
    fn default() -> Self {
        Self("local-gpu-node-001".to_owned())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        let inside = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts && text.len() <= LONGEST && text.chars().all(inside) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadNodeId {
                given: text.to_owned(),
            })
        }
    }
}

/// A row of gpu_nodes for a scenario, as something else than the seeder would have left it.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its id.
    pub id: NodeId,
    /// What the watchdog polls.
    pub host: Option<String>,
    /// Its droplet.
    pub droplet: Option<String>,
    /// Its status, in the contract's words.
    pub status: &'static str,
    /// JSON, in a text column.
    pub service_health: Option<&'static str>,
}

impl NodeSpec {
    /// An active node at an address, without a droplet.
    pub fn at(id: NodeId, host: impl fmt::Display) -> Self {
        Self {
            id,
            host: Some(host.to_string()),
            droplet: None,
            status: "active",
            service_health: None,
        }
    }

    /// The same with a droplet.
    #[must_use]
    pub fn droplet(mut self, droplet: &str) -> Self {
        self.droplet = Some(droplet.to_owned());
        self
    }

    /// The same with another status.
    #[must_use]
    pub fn status(mut self, status: &'static str) -> Self {
        self.status = status;
        self
    }
}

/// A GPU machine of a fleet, and the node that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetNode {
    /// The machine.
    pub machine: MachineName,
    /// Its node.
    pub id: NodeId,
}

impl FleetNode {
    /// The node of a GPU machine: `local-gpu-node-001` of the first, `local-gpu-node-002` of the second.
    fn of(machine: &MachineName) -> Self {
        let number = machine.number().unwrap_or_default();
        Self {
            machine: machine.clone(),
            id: NodeId(format!("local-gpu-node-{number:03}")),
        }
    }
}

impl Topology {
    /// The nodes that its GPU machines are, by number, whether they are seeded or not.
    pub fn fleet(&self) -> Vec<FleetNode> {
        let mut names: Vec<_> = self
            .machines()
            .map(|machine| machine.name())
            .filter(|name| name.number().is_some())
            .collect();
        names.sort_by_key(|name| name.number());
        names.into_iter().map(FleetNode::of).collect()
    }

    /// Seeds a node for each GPU machine, active at its address and without a droplet, and restarts platform-api
    /// once. Returned by number.
    ///
    /// # Errors
    /// [`SeedError`].
    pub async fn seed_fleet(&self) -> Result<Vec<FleetNode>, SeedError> {
        let fleet = self.fleet();
        self.seed_nodes(&fleet).await?;
        Ok(fleet)
    }

    /// The same for some of them.
    ///
    /// # Errors
    /// [`SeedError`].
    pub async fn seed_nodes(&self, nodes: &[FleetNode]) -> Result<(), SeedError> {
        for node in nodes {
            write(self, &node.spec(self)).await?;
        }
        let Some(last) = nodes.last() else {
            return Ok(());
        };
        self.restart(Service::PlatformApi)
            .await
            .map_err(|source| SeedError::Topology {
                node: last.id.clone(),
                source,
            })
    }
}

impl FleetNode {
    /// Its row: active, at its machine's address, without a droplet.
    pub fn spec(&self, topology: &Topology) -> NodeSpec {
        NodeSpec::at(self.id.clone(), topology.address(&self.machine))
    }
}

/// Writes a row as it is; platform-api is not restarted.
///
/// # Errors
/// [`SeedError`].
pub async fn write(topology: &Topology, spec: &NodeSpec) -> Result<(), SeedError> {
    let failed = |source| SeedError::Topology {
        node: spec.id.clone(),
        source,
    };
    let mut database = topology.database().await.map_err(failed)?;
    let query = sqlx::query(
        "INSERT INTO gpu_nodes (id, host, droplet_id, region, size, status, provision_stage, service_health) \
         VALUES ($1, $2, $3, 'local', 'rtx-3070', $4, 'done', $5) ON CONFLICT (id) DO UPDATE SET host = excluded.host, \
         droplet_id = excluded.droplet_id, status = excluded.status, service_health = excluded.service_health",
    );
    let query = query
        .bind(spec.id.as_str())
        .bind(&spec.host)
        .bind(&spec.droplet)
        .bind(spec.status);
    let written = query.bind(spec.service_health).execute(&mut database).await;
    written
        .map_err(TopologyError::database("write a row of gpu_nodes"))
        .map_err(failed)?;
    let closed = database.close().await;
    closed
        .map_err(TopologyError::database("close the connection to postgres"))
        .map_err(failed)
}

/// Why a node is not seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The topology.
    #[error("node {node} is not seeded: {source}")]
    Topology {
        /// The node.
        node: NodeId,
        /// Why.
        source: TopologyError,
    },
}

/// Upserts the row with the GPU machine's address on wopr-dev, and restarts platform-api, whose
/// watchdog then starts without a memory. Doing it again changes nothing.
///
/// # Errors
/// [`SeedError`].
pub async fn seed(topology: &Topology, node: &NodeId) -> Result<(), SeedError> {
    let failed = |source| SeedError::Topology {
        node: node.clone(),
        source,
    };
    upsert(topology, node).await.map_err(failed)?;
    topology.restart(Service::PlatformApi).await.map_err(failed)
}

async fn upsert(topology: &Topology, node: &NodeId) -> Result<(), TopologyError> {
    let host = topology.address(&GPU).to_string();
    let mut database = topology.database().await?;
    let query = sqlx::query(STATEMENT).bind(node.as_str()).bind(host);
    query
        .execute(&mut database)
        .await
        .map_err(TopologyError::database("upsert the row of gpu_nodes"))?;
    database
        .close()
        .await
        .map_err(TopologyError::database("close the connection to postgres"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_no_host_name_is_refused() {
        for bad in [
            "",
            "-a",
            "x'); drop table gpu_nodes;--",
            "a b",
            "ä",
            &"a".repeat(64),
        ] {
            let error = bad.parse::<NodeId>().unwrap_err().to_string();
            assert!(error.contains("is not a node's id"), "{error}");
        }
    }

    #[test]
    fn the_first_machine_of_a_fleet_is_the_node_that_the_seeder_writes() {
        assert_eq!(FleetNode::of(&GPU).id, NodeId::default());
        assert_eq!(
            FleetNode::of(&MachineName::gpu(12)).id.as_str(),
            "local-gpu-node-012"
        );
    }

    #[test]
    fn an_id_of_63_characters_is_the_longest() {
        assert!("a".repeat(63).parse::<NodeId>().is_ok());
        assert_eq!("GPU-1".parse::<NodeId>().unwrap().as_str(), "GPU-1");
    }
}
