//! Machines that droplets are: where there is room, and which is which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wopr_machine::protocol::Request;

use super::CloudError;
use crate::dirs;
use crate::engine::Engine;
use crate::machine::{MachineName, RunningMachine, Setting};
use crate::settings::StackSettings;
use crate::topology::{self, Topology, TopologyError};

/// Machines of a topology, those among them that droplets are, and room for more.
pub(super) struct Rack {
    engine: Engine,
    setting: Setting,
    settings: StackSettings,
    machines: BTreeMap<MachineName, RunningMachine>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    droplets: BTreeMap<u64, MachineName>,
    /// Places that something is made at, or removed from.
    busy: BTreeSet<MachineName>,
}

impl Rack {
    pub(super) fn of(topology: &Topology, droplets: BTreeMap<u64, MachineName>) -> Self {
        let machines = topology
            .places()
            .map(|machine| (machine.name().clone(), machine.clone()));
        let taken = Taken {
            droplets,
            busy: BTreeSet::new(),
        };
        Self {
            engine: topology.engine().clone(),
            setting: topology.setting().clone(),
            settings: topology.settings().clone(),
            machines: machines.collect(),
            taken: Mutex::new(taken),
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn machines(&self) -> impl Iterator<Item = &RunningMachine> {
        self.machines.values().filter(|machine| !machine.is_racked())
    }

    /// The machine that is a droplet.
    pub(super) fn machine_of(&self, droplet: u64) -> Result<&RunningMachine, CloudError> {
        let name = self.taken().droplets.get(&droplet).cloned();
        name.and_then(|name| self.machines.get(&name))
            .ok_or(CloudError::NoMachine { droplet })
    }

    /// A machine that is to be a droplet from now on.
    fn take(&self, droplet: u64) -> Result<&RunningMachine, CloudError> {
        let mut taken = self.taken();
        let free = |machine: &&RunningMachine| machine.is_racked() && !taken.busy.contains(machine.name());
        let Some(machine) = self.machines.values().find(free) else {
            return Err(CloudError::NoRoom {
                droplet,
                places: self.machines.len() - 2,
            });
        };
        taken.busy.insert(machine.name().clone());
        taken.droplets.insert(droplet, machine.name().clone());
        Ok(machine)
    }

    /// Makes a machine that is this droplet, on volumes of its own. It boots when this returns.
    pub(super) async fn make(&self, droplet: u64) -> Result<&RunningMachine, CloudError> {
        let machine = self.take(droplet)?;
        topology::power_on(&self.engine, &self.setting, &self.settings, machine.name()).await?;
        Ok(machine)
    }

    /// Waits until a machine that was made has booted. Its services wait for somebody to start them, as on a machine
    /// that has just been installed.
    pub(super) async fn until_booted(&self, droplet: u64) -> Result<(), CloudError> {
        let machine = self.machine_of(droplet)?;
        let name = machine.name();
        topology::until_booted(&self.engine, &self.setting, name, |_| {}).await?;
        machine.read_ports().await?;
        if machine.is_light() {
            let rest = Request::Rest { resting: true };
            machine.control().await?.ask(&rest).await?;
        } else {
            for container in machine.engine().containers_with_label(COMPOSE).await? {
                machine
                    .engine()
                    .stop(&container, std::time::Duration::ZERO)
                    .await?;
            }
        }
        let mut taken = self.taken();
        // Else it is being removed.
        if taken.droplets.get(&droplet) == Some(name) {
            machine.set_racked(false);
            taken.busy.remove(name);
        }
        Ok(())
    }

    /// Removes the machine that is a droplet, volumes and all, and reads back that it is gone. Its place is free
    /// for another.
    pub(super) async fn remove(&self, droplet: u64) -> Result<(), CloudError> {
        let machine = self.machine_of(droplet)?;
        let name = machine.name().clone();
        {
            let mut taken = self.taken();
            taken.droplets.remove(&droplet);
            taken.busy.insert(name.clone());
            machine.set_racked(true);
        }
        let container = machine.container();
        if self.engine.container(container).await?.is_some() {
            self.engine.remove_container(container).await?;
        }
        for (volume, _) in self.setting.volumes(&name) {
            self.engine.remove_volume(&volume).await?;
        }
        if self.engine.container(container).await?.is_some() {
            let what = container.to_owned();
            return Err(CloudError::Left { droplet, what });
        }
        match std::fs::remove_dir_all(machine.control_directory()) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(CloudError::File {
                    machine: name,
                    action: "remove the control directory",
                    source,
                });
            }
            _ => {}
        }
        if self.setting.by_hand() {
            // Other commands know a place by its directory.
            dirs::make_private(machine.control_directory()).map_err(TopologyError::from)?;
        }
        self.taken().busy.remove(&name);
        Ok(())
    }

    /// Lets a machine come back at an address that nobody had; the others learn it.
    pub(super) async fn start_elsewhere(&self, machine: &RunningMachine) -> Result<(), CloudError> {
        let network = self.setting.network();
        let taken: Vec<_> = self.machines.values().map(RunningMachine::address).collect();
        let address = self.engine.free_address(&network, &taken).await?;
        self.engine.detach(&network, machine.container()).await?;
        machine.move_to(address, &network).await?;
        for other in self.machines() {
            other.learn(machine.name(), address).await?;
        }
        Ok(machine.start().await?)
    }
}

/// What compose gives each of a stack's containers.
const COMPOSE: &str = "com.docker.compose.service";
