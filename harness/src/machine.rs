//! A machine: a container with its own Docker engine, and its name, kind and specification.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wopr_machine::paths;

use crate::engine::{
    ContainerSpec, HostPort, LABEL_MACHINE, LABEL_OWNER, LABEL_PID, LABEL_TOPOLOGY, MountSpec, PortMap,
    Privilege,
};
use crate::lease;

mod running;

pub use running::{BootError, RunningMachine};

/// The kind of a machine: which stack it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// postgres, platform-api, platform-ui and caddy.
    Vps,
    /// llama-cpp, chatterbox, whisper and qwen-embeddings.
    Gpu,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vps => "vps",
            Self::Gpu => "gpu",
        })
    }
}

/// What a machine is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variant {
    /// Its own Docker engine, with a container for each service.
    #[default]
    Full,
    /// One small process that answers at the four ports, so that many fit on one host. It has no engine.
    Light,
}

/// Name of a machine within its topology: `vps`, `gpu`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(Cow<'static, str>);

/// The VPS machine.
pub const VPS: MachineName = MachineName(Cow::Borrowed("vps"));
/// The GPU machine.
pub const GPU: MachineName = MachineName(Cow::Borrowed("gpu"));

/// A name that no machine has.
#[derive(Debug, thiserror::Error)]
#[error("no machine is called {given:?}; the machines are vps, gpu, and in a fleet gpu-2 and so on")]
pub struct NoSuchMachine {
    given: String,
}

impl MachineName {
    /// The `n`th GPU machine of a fleet, from 1: `gpu`, `gpu-2`, …
    pub fn gpu(n: usize) -> Self {
        match n {
            0 | 1 => GPU,
            n => Self(Cow::Owned(format!("gpu-{n}"))),
        }
    }

    /// Its place among the GPU machines, from 1; none for the VPS machine.
    pub fn number(&self) -> Option<usize> {
        match self.as_str() {
            "gpu" => Some(1),
            name => name.strip_prefix("gpu-")?.parse().ok(),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind of the machine.
    pub fn role(&self) -> Role {
        if *self == VPS { Role::Vps } else { Role::Gpu }
    }

    /// Its host name, as `wopr-vps`.
    pub fn hostname(&self) -> String {
        format!("wopr-{}", self.0)
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::str::FromStr for MachineName {
    type Err = NoSuchMachine;

    fn from_str(text: &str) -> Result<Self, NoSuchMachine> {
        let name = text.strip_prefix("wopr-").unwrap_or(text);
        let number = name.strip_prefix("gpu-").and_then(|number| number.parse().ok());
        match (name, number) {
            ("vps", _) => Ok(VPS),
            ("gpu", _) => Ok(GPU),
            (_, Some(2..)) => Ok(Self::gpu(number.unwrap_or_default())),
            _ => Err(NoSuchMachine {
                given: text.to_owned(),
            }),
        }
    }
}

/// How the machines of a topology differ from those of any other.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Id of the topology; `local` for the one started by hand.
    pub topology: String,
    /// The checkout.
    pub root: PathBuf,
    /// Parent of the control directories.
    pub control: PathBuf,
    /// The machine image.
    pub image: String,
    /// The sidecar's image.
    pub toxiproxy: String,
    /// Id of the image set, and name of its golden volume.
    pub image_set: String,
    /// Directory of models.
    pub models: PathBuf,
    /// What its GPU machines are made of.
    pub gpus: Variant,
    /// Address of each machine.
    pub addresses: BTreeMap<MachineName, Ipv4Addr>,
    /// What machines may do to the host.
    pub privilege: Privilege,
    /// Group that may use the engines' sockets.
    pub gid: u32,
    /// By hand: ports in place of the usual ones, by the variable that chooses them.
    pub chosen_ports: BTreeMap<String, u16>,
    /// Directory that holds the topology's own, and in it the lease.
    pub owner: PathBuf,
    /// For how long the machines stay that nobody holds the lease of.
    pub idle: Duration,
}

/// Where Toxiproxy's API listens in the sidecar.
pub const TOXIPROXY_API: u16 = 8474;

/// Published ports, and the setting that moves each for the topology by hand.
pub const PORTS: [(u16, &str); 6] = [
    (3100, "WOPR_API_PORT"),
    (80, "WOPR_HTTP_PORT"),
    (8080, "WOPR_LLAMA_PORT"),
    (8081, "WOPR_CHATTERBOX_PORT"),
    (8082, "WOPR_WHISPER_PORT"),
    (8083, "WOPR_QWEN_PORT"),
];
const GPU_PORTS: std::ops::RangeInclusive<u16> = 8080..=8083;

/// What an engine keeps, and where.
const ENGINE_VOLUMES: [(&str, &str); 2] = [
    ("docker-data", paths::DOCKER_ROOT),
    ("containerd-data", paths::CONTAINERD_ROOT),
];
/// Label of a light machine.
pub(crate) const LABEL_LIGHT: &str = "wopr.light";

/// Id of the topology that people start by hand.
pub const BY_HAND: &str = "local";

impl Setting {
    /// Whether people start it by hand.
    pub fn by_hand(&self) -> bool {
        self.topology == BY_HAND
    }

    /// Name on the host of something of this topology: `wopr-vps` by hand, else `wopr-3f2a-vps`.
    pub fn name(&self, what: &str) -> String {
        if self.by_hand() {
            format!("wopr-{what}")
        } else {
            format!("wopr-{}-{what}", self.topology)
        }
    }

    /// Name of the topology's network.
    pub fn network(&self) -> String {
        self.name("dev")
    }

    /// A machine's control directory on the host.
    pub fn control_directory(&self, machine: &MachineName) -> PathBuf {
        self.control.join(machine.as_str())
    }

    /// What a machine is made of.
    pub fn variant(&self, machine: &MachineName) -> Variant {
        match machine.role() {
            Role::Vps => Variant::Full,
            Role::Gpu => self.gpus,
        }
    }

    /// Names of a machine's own volumes, and their labels: what its engine keeps, where it has one.
    pub fn volumes(&self, machine: &MachineName) -> Vec<(String, BTreeMap<String, String>)> {
        let volume = |(what, _): &(&str, &str)| {
            let key = format!("{machine}-{what}");
            (self.name(&key), self.labels_for_compose(&[("volume", &key)]))
        };
        match self.variant(machine) {
            Variant::Full => ENGINE_VOLUMES.iter().map(volume).collect(),
            Variant::Light => Vec::new(),
        }
    }

    /// Labels of everything of this topology.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([(LABEL_TOPOLOGY.to_owned(), self.topology.clone())]);
        if !self.by_hand() {
            labels.insert(LABEL_OWNER.to_owned(), self.owner.display().to_string());
            labels.insert(LABEL_PID.to_owned(), std::process::id().to_string());
        }
        labels
    }

    /// Labels of the network.
    pub fn network_labels(&self) -> BTreeMap<String, String> {
        self.labels_for_compose(&[("network", "wopr-dev")])
    }

    /// By hand, `docker compose` finds what the harness made by its own labels: `down`, `ps` and `logs`
    /// then work on either.
    fn labels_for_compose(&self, own: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut labels = self.labels();
        if self.by_hand() {
            let all = own.iter().chain(&[("project", "wopr")]);
            labels.extend(all.map(|(key, value)| (format!("com.docker.compose.{key}"), (*value).to_owned())));
        }
        labels
    }

    /// What `machine`'s container is made from. local/docker-compose.yml says the same for the
    /// topology by hand; a test holds the two equal.
    pub fn machine(&self, machine: &MachineName) -> ContainerSpec {
        let variant = self.variant(machine);
        let mut mounts = match variant {
            Variant::Full => self.engine_mounts(machine),
            Variant::Light => Vec::new(),
        };
        let control = self.control_directory(machine);
        mounts.push(MountSpec::directory(control, paths::CONTROL));
        if variant == Variant::Full && machine.role() == Role::Gpu {
            mounts.push(MountSpec::directory(&self.models, paths::MODELS).read_only());
        }
        if !self.by_hand() {
            mounts.push(MountSpec::directory(self.lease(), paths::LEASE).read_only());
        }
        let container = [
            ("service", machine.as_str()),
            ("container-number", "1"),
            ("oneoff", "False"),
            // Any text will do: compose passes over a container without one.
            ("config-hash", "wopr"),
        ];
        let mut labels = self.labels_for_compose(&container);
        labels.insert(LABEL_MACHINE.to_owned(), machine.to_string());
        let command = match variant {
            Variant::Full => Vec::new(),
            Variant::Light => {
                labels.insert(LABEL_LIGHT.to_owned(), "yes".to_owned());
                vec!["light".to_owned()]
            }
        };
        ContainerSpec {
            name: self.name(machine.as_str()),
            image: self.image.clone(),
            hostname: machine.hostname(),
            command,
            environment: self.environment(machine),
            labels,
            hosts: self
                .addresses
                .iter()
                .map(|(name, address)| (name.hostname(), *address))
                .collect(),
            ports: self.ports(machine),
            mounts,
            tmpfs: vec!["/run".to_owned()],
            dns: vec![paths::DNS_ADDRESS],
            privilege: self.privilege,
        }
    }

    /// Where an engine keeps its data, and where its stack is described.
    fn engine_mounts(&self, machine: &MachineName) -> Vec<MountSpec> {
        let workspace = self.root.join("local").join(machine.role().to_string());
        let mut mounts: Vec<_> = self
            .volumes(machine)
            .into_iter()
            .zip(ENGINE_VOLUMES)
            .map(|((volume, _), (_, place))| MountSpec::volume(volume, place))
            .collect();
        mounts.push(MountSpec::volume(golden_volume(&self.image_set), paths::GOLDEN).read_only());
        let place = format!("{}/{}", paths::WORKSPACE, machine.role());
        mounts.push(MountSpec::directory(workspace, &place));
        mounts
    }

    /// The Toxiproxy sidecar: started with the first fault that needs it.
    pub fn sidecar(&self) -> ContainerSpec {
        let api = PortMap {
            container: TOXIPROXY_API,
            host: HostPort::Free,
        };
        let name = self.name("toxiproxy");
        let spec = ContainerSpec::new(&name, &self.toxiproxy, Privilege::Default);
        ContainerSpec {
            hostname: "wopr-toxiproxy".to_owned(),
            labels: self.labels(),
            ports: vec![api],
            ..spec
        }
    }

    /// The file that whoever uses the topology holds locked. By hand there is none.
    fn lease(&self) -> PathBuf {
        self.owner.join(&self.topology).join(lease::FILE)
    }

    fn environment(&self, machine: &MachineName) -> BTreeMap<String, String> {
        let pairs = [
            ("WOPR_MACHINE", machine.role().to_string()),
            ("WOPR_IMAGE_SET", self.image_set.clone()),
            ("WOPR_SOCKET_GID", self.gid.to_string()),
            ("WOPR_DNS_OTHERS", "refuse".to_owned()),
        ];
        let idle = (paths::IDLE_SECONDS, self.idle.as_secs().to_string());
        pairs
            .into_iter()
            .chain((!self.by_hand()).then_some(idle))
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }

    fn ports(&self, machine: &MachineName) -> Vec<PortMap> {
        // Each costs a process on the host and a second of its start; who asks a light machine asks its first
        // process.
        if self.variant(machine) == Variant::Light {
            return Vec::new();
        }
        let here = |(port, _): &&(u16, &str)| match machine.role() {
            Role::Vps => !GPU_PORTS.contains(port),
            Role::Gpu => GPU_PORTS.contains(port),
        };
        // Of several GPU machines by hand, the first has the ports that people know.
        let known = self.by_hand() && [VPS, GPU].contains(machine);
        let host = |port, variable| match known {
            true => HostPort::Fixed {
                port: self.chosen_ports.get(variable).copied().unwrap_or(port),
                variable,
            },
            false => HostPort::Free,
        };
        let map = |&(port, variable): &(u16, &'static str)| PortMap {
            container: port,
            host: host(port, variable),
        };
        PORTS.iter().filter(here).map(map).collect()
    }
}

/// What the names of golden volumes begin with; an image set's id follows.
pub(crate) const GOLDEN_PREFIX: &str = "wopr-golden-";

/// Name of an image set's golden volume.
pub fn golden_volume(image_set: &str) -> String {
    format!("{GOLDEN_PREFIX}{image_set}")
}

/// The inner engine's socket in a machine's control directory.
pub fn engine_socket(control: &Path) -> PathBuf {
    control.join(paths::ENGINE_SOCKET)
}

#[cfg(test)]
mod compose_test;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_either_name() {
        assert_eq!("wopr-gpu".parse::<MachineName>().unwrap(), GPU);
        assert_eq!("vps".parse::<MachineName>().unwrap(), VPS);
        assert_eq!("gpu-3".parse::<MachineName>().unwrap(), MachineName::gpu(3));
    }

    #[test]
    fn gpu_machines_are_numbered_from_one() {
        for number in [1, 2, 10, 48] {
            assert_eq!(MachineName::gpu(number).number(), Some(number));
        }
        assert_eq!(VPS.number(), None);
    }

    #[test]
    fn an_unknown_machine_is_named_in_the_error() {
        let error = "db".parse::<MachineName>().unwrap_err().to_string();
        assert_eq!(
            error,
            r#"no machine is called "db"; the machines are vps, gpu, and in a fleet gpu-2 and so on"#
        );
    }
}
