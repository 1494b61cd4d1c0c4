//! How an operator follows the cloud's orders.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::machine::MachineName;

/// What becomes of a reboot that platform-api asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reboots {
    /// The power is cut, and comes back.
    #[default]
    PowerCycle,
    /// The machine is shut down, its services first.
    Clean,
    /// As a power cycle, after this real time: convert it by `Topology::rate`.
    After(Duration),
    /// It is accepted, and never happens.
    Never,
    /// The machine comes back at an address that nobody had; names follow it.
    Moved,
}

/// How an operator follows the cloud's orders. Unless told otherwise: at once, and well.
#[derive(Debug, Clone, Default)]
pub struct Conduct {
    pub(super) reboots: Reboots,
    pub(super) creation: Duration,
    pub(super) first_boot: Duration,
    pub(super) step: Duration,
    pub(super) dies_after: Option<String>,
    pub(super) fails: Vec<String>,
    pub(super) machines: BTreeMap<u64, MachineName>,
}

impl Conduct {
    /// What becomes of reboots.
    #[must_use]
    pub fn reboots(mut self, reboots: Reboots) -> Self {
        self.reboots = reboots;
        self
    }

    /// A droplet stays `new` for this real time before its machine boots.
    #[must_use]
    pub fn creation_takes(mut self, time: Duration) -> Self {
        self.creation = time;
        self
    }

    /// A first boot begins this real time after the machine has come up, which it has some time after its droplet is
    /// `active`. At once, unless given: a machine that registers before platform-api has looked at its droplet again
    /// (each 5 s of its time) sees its stage overwritten by `waiting_agent`.
    #[must_use]
    pub fn first_boot_begins_after(mut self, time: Duration) -> Self {
        self.first_boot = time;
        self
    }

    /// Each command of a first boot that reaches for the internet (packages, downloads) takes this real time.
    #[must_use]
    pub fn each_download_takes(mut self, time: Duration) -> Self {
        self.step = time;
        self
    }

    /// A first boot ends after it has registered this stage, as when the machine's kernel panics.
    #[must_use]
    pub fn first_boot_dies_after(mut self, stage: &str) -> Self {
        self.dies_after = Some(stage.to_owned());
        self
    }

    /// A command of a first boot fails each time: `apt-get`, `docker`, `nvidia-ctk`, `systemctl`, or `curl` where
    /// it does not register. As with the real cloud-init, those after it run all the same.
    #[must_use]
    pub fn fails(mut self, command: &str) -> Self {
        self.fails.push(command.to_owned());
        self
    }

    /// A machine of the topology is this droplet, which a test wrote into a row by hand.
    #[must_use]
    pub fn machine(mut self, droplet: u64, machine: &MachineName) -> Self {
        self.machines.insert(droplet, machine.clone());
        self
    }
}
