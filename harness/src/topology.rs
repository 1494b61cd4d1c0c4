//! A topology: two machines on a private network, booted, healthy, and gone when it is dropped.

mod attach;
mod bare;
mod boot;
mod builder;
mod error;
mod health;
mod remains;
mod sweep;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};

pub use bare::Bare;
pub(crate) use boot::{Claim, Plan, power_on, until_booted};
pub use builder::{Builder, idle_time};
pub use error::TopologyError;
pub use health::{HEALTH_PATIENCE, ServiceHealth};
pub(crate) use remains::Remains;
pub use remains::{Leftovers, Volumes, remove_by_hand};
pub use sweep::{Listed, Owner, Sweep, Swept, list, sweep};

use tokio::sync::OnceCell;

use crate::clock::Rate;
use crate::control::Control;
use crate::dirs::Dirs;
use crate::engine::Engine;
use crate::fault::{FaultError, Sidecar};
use crate::history::{Deed, Deeds, now_us};
use crate::machine::{GPU, MachineName, RunningMachine, Setting, VPS};
use crate::seed::{NodeId, NodeSpec, SeedError};
use crate::service::{Instance, Service};
use crate::settings::StackSettings;

/// A running topology.
///
/// ```no_run
/// # async fn doc() -> Result<(), Box<dyn std::error::Error>> {
/// use wopr_harness::Topology;
///
/// let topology = Topology::builder().boot().await?;
/// let node = topology.seed_gpu_node().await?;
/// let health = reqwest::get(topology.url(3100, "/health")).await?;
/// assert!(health.status().is_success());
/// topology.down().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Topology {
    dirs: Dirs,
    engine: Engine,
    setting: Setting,
    settings: StackSettings,
    machines: BTreeMap<MachineName, RunningMachine>,
    rate: Rate,
    deeds: Deeds,
    sidecar: OnceCell<Sidecar>,
    remains: Remains,
}

impl Topology {
    /// A topology of this process's own: free ports, a subnet and secrets of its own, gone when it is
    /// dropped.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Its id: part of the name of all that belongs to it.
    pub fn id(&self) -> &str {
        &self.setting.topology
    }

    /// How fast platform-api's time runs.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// What the harness did by this handle, in its words, oldest first.
    pub fn done(&self) -> Vec<String> {
        let events = self.deeds.all().into_iter();
        events.map(|event| event.what.detail()).collect()
    }

    /// What the harness did.
    pub(crate) fn deeds(&self) -> &Deeds {
        &self.deeds
    }

    /// The Toxiproxy sidecar; started when it is asked for first.
    pub(crate) async fn sidecar(&self) -> Result<&Sidecar, FaultError> {
        self.sidecar.get_or_try_init(|| Sidecar::start(self)).await
    }

    /// The host's engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where the harness keeps things on the host.
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// Settings of its stacks.
    pub fn settings(&self) -> &StackSettings {
        &self.settings
    }

    /// What its machines are made from.
    pub fn setting(&self) -> &Setting {
        &self.setting
    }

    /// A machine.
    ///
    /// # Panics
    /// When the topology has no such machine: names come from its own list.
    pub fn machine(&self, name: &MachineName) -> &RunningMachine {
        match self.machines.get(name) {
            Some(machine) => machine,
            None => panic!("topology {} has no machine {name}", self.id()),
        }
    }

    /// All machines, but those that wait in the rack.
    pub fn machines(&self) -> impl Iterator<Item = &RunningMachine> {
        self.machines.values().filter(|machine| !machine.is_racked())
    }

    /// All machines, and places for machines that droplets may become.
    pub(crate) fn places(&self) -> impl Iterator<Item = &RunningMachine> {
        self.machines.values()
    }

    /// Places for machines that droplets may become, and that are none yet.
    pub fn room(&self) -> usize {
        self.machines
            .values()
            .filter(|machine| machine.is_racked())
            .count()
    }

    /// The machine that a service runs on.
    pub fn machine_of(&self, service: Service) -> &RunningMachine {
        self.machine(match service.role() {
            crate::machine::Role::Vps => &VPS,
            crate::machine::Role::Gpu => &GPU,
        })
    }

    /// The machine of one service among several of its kind.
    pub(crate) fn machine_with(&self, instance: &Instance) -> &RunningMachine {
        match &instance.machine {
            Some(machine) => self.machine(machine),
            None => self.machine_of(instance.service),
        }
    }

    /// A machine's address on wopr-dev.
    pub fn address(&self, machine: &MachineName) -> Ipv4Addr {
        self.machine(machine).address()
    }

    /// The port on 127.0.0.1 that leads to the published `port` (3100, 80, 8080 to 8083) of the VPS machine or of
    /// the first GPU machine; those of others are told by [`RunningMachine::port`].
    ///
    /// # Panics
    /// When that port is not published.
    pub fn port(&self, port: u16) -> u16 {
        match [&VPS, &GPU]
            .into_iter()
            .find_map(|name| self.machine(name).port(port))
        {
            Some(host) => host,
            None => panic!("port {port} is not published by topology {}", self.id()),
        }
    }

    /// Address of a published port's page, as `http://127.0.0.1:32768/health`.
    pub fn url(&self, port: u16, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port(port))
    }

    /// How to reach the database, over its Unix socket: a way that no fault on the network touches.
    ///
    /// # Errors
    /// [`TopologyError::Settings`] when the stack has no password.
    pub fn database_options(&self) -> Result<PgConnectOptions, TopologyError> {
        let password = self
            .settings
            .value(crate::machine::Role::Vps, "POSTGRES_PASSWORD")?;
        Ok(PgConnectOptions::new_without_pgpass()
            .socket(self.postgres_directory())
            .username("wopr")
            .database("wopr_platform")
            .password(password)
            .application_name("wopr-harness")
            .disable_statement_logging())
    }

    fn postgres_directory(&self) -> PathBuf {
        self.machine(&VPS)
            .control_directory()
            .join(wopr_machine::paths::POSTGRES)
    }

    /// A connection to the database.
    ///
    /// # Errors
    /// [`TopologyError::Database`].
    pub async fn database(&self) -> Result<PgConnection, TopologyError> {
        let options = self.database_options()?;
        PgConnection::connect_with(&options)
            .await
            .map_err(TopologyError::database("connect to postgres"))
    }

    /// Seeds the GPU machine's node, `local-gpu-node-001`, and restarts platform-api.
    ///
    /// # Errors
    /// [`SeedError`].
    pub async fn seed_gpu_node(&self) -> Result<NodeId, SeedError> {
        let node = NodeId::default();
        crate::seed::seed(self, &node).await?;
        Ok(node)
    }

    /// Seeds the GPU machine's node with a droplet, so that a reboot can be asked for.
    ///
    /// # Errors
    /// [`SeedError`].
    pub async fn seed_gpu_node_with_droplet(&self, droplet: &str) -> Result<NodeId, SeedError> {
        let node = self.seed_gpu_node().await?;
        let spec = NodeSpec::at(node.clone(), self.address(&GPU)).droplet(droplet);
        crate::seed::write(self, &spec).await?;
        Ok(node)
    }

    /// Restarts a service, and waits until it is healthy.
    ///
    /// # Errors
    /// [`TopologyError::Engine`], [`TopologyError::Unhealthy`].
    pub async fn restart(&self, service: Service) -> Result<(), TopologyError> {
        let from_us = now_us();
        self.machine_of(service)
            .engine()
            .restart(&service.container())
            .await?;
        self.until_healthy(&[service]).await?;
        let restarted = Deed::over(format!("restarted {service}"), self.end_of(&service.into()));
        self.deeds.note(restarted.since(from_us));
        Ok(())
    }

    /// A conversation with a machine's first process.
    ///
    /// # Errors
    /// [`TopologyError::Control`].
    pub async fn control(&self, machine: &MachineName) -> Result<Control, TopologyError> {
        Ok(self.machine(machine).control().await?)
    }

    /// Takes the topology down, volumes and all, and reads back that nothing is left.
    ///
    /// # Errors
    /// [`TopologyError::Leftovers`] with what would not go.
    pub async fn down(mut self) -> Result<(), TopologyError> {
        self.remains.remove(Volumes::Remove).await
    }

    /// Takes containers and network down and keeps the volumes, to boot on them again.
    ///
    /// # Errors
    /// [`TopologyError::Leftovers`] with what would not go.
    pub async fn rest(mut self) -> Result<Builder, TopologyError> {
        for machine in self.machines.values() {
            machine.stop().await?;
        }
        self.remains.remove(Volumes::Keep).await?;
        let again = Builder::on_volumes_of(&self.setting, self.settings.clone(), self.remains.hand_over())
            .rate(self.rate);
        Ok(again)
    }
}
