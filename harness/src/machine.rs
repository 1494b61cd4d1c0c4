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

/// Name of a machine within its topology: `vps`, `gpu`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(Cow<'static, str>);

/// The VPS machine.
pub const VPS: MachineName = MachineName(Cow::Borrowed("vps"));
/// The GPU machine.
pub const GPU: MachineName = MachineName(Cow::Borrowed("gpu"));

/// A name that no machine has.
#[derive(Debug, thiserror::Error)]
#[error("no machine is called {given:?}; the machines are vps and gpu")]
pub struct NoSuchMachine {
    given: String,
}

impl MachineName {
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
        match text.strip_prefix("wopr-").unwrap_or(text) {
            "vps" => Ok(VPS),
            "gpu" => Ok(GPU),
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

    /// Names of a machine's own volumes, and their labels.
    pub fn volumes(&self, machine: &MachineName) -> [(String, BTreeMap<String, String>); 2] {
        ["docker-data", "containerd-data"].map(|what| {
            let key = format!("{machine}-{what}");
            (self.name(&key), self.labels_for_compose(&[("volume", &key)]))
        })
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
        let [(docker, _), (containerd, _)] = self.volumes(machine);
        let workspace = self.root.join("local").join(machine.role().to_string());
        let mut mounts = vec![
            MountSpec::volume(docker, paths::DOCKER_ROOT),
            MountSpec::volume(containerd, paths::CONTAINERD_ROOT),
            MountSpec::volume(golden_volume(&self.image_set), paths::GOLDEN).read_only(),
            MountSpec::directory(workspace, &format!("{}/{}", paths::WORKSPACE, machine.role())),
            MountSpec::directory(self.control_directory(machine), paths::CONTROL),
        ];
        if machine.role() == Role::Gpu {
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
        ContainerSpec {
            name: self.name(machine.as_str()),
            image: self.image.clone(),
            hostname: machine.hostname(),
            command: Vec::new(),
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
        let here = |(port, _): &&(u16, &str)| match machine.role() {
            Role::Vps => !GPU_PORTS.contains(port),
            Role::Gpu => GPU_PORTS.contains(port),
        };
        let host = |port, variable| match self.by_hand() {
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

/// Name of an image set's golden volume.
pub fn golden_volume(image_set: &str) -> String {
    format!("wopr-golden-{image_set}")
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
    }

    #[test]
    fn an_unknown_machine_is_named_in_the_error() {
        let error = "db".parse::<MachineName>().unwrap_err().to_string();
        assert_eq!(
            error,
            r#"no machine is called "db"; the machines are vps and gpu"#
        );
    }
}
