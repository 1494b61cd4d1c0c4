//! What a container is made from.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// What a container is made from. Two that are equal make the same container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Name on the host.
    pub name: String,
    /// Image reference with a tag.
    pub image: String,
    /// Host name inside.
    pub hostname: String,
    /// Arguments; none keeps the image's.
    pub command: Vec<String>,
    /// Environment. Never a secret: whoever may use the engine can read it.
    pub environment: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Names in its /etc/hosts.
    pub hosts: BTreeMap<String, Ipv4Addr>,
    /// Ports published on 127.0.0.1.
    pub ports: Vec<PortMap>,
    /// Volumes and directories.
    pub mounts: Vec<MountSpec>,
    /// Fresh memory file systems.
    pub tmpfs: Vec<String>,
    /// Resolvers; none keeps the engine's.
    pub dns: Vec<Ipv4Addr>,
    /// What it may do.
    pub privilege: Privilege,
}

impl ContainerSpec {
    /// A container with nothing but a name, an image and a privilege.
    pub fn new(name: &str, image: &str, privilege: Privilege) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            hostname: name.to_owned(),
            command: Vec::new(),
            environment: BTreeMap::new(),
            labels: BTreeMap::new(),
            hosts: BTreeMap::new(),
            ports: Vec::new(),
            mounts: Vec::new(),
            tmpfs: Vec::new(),
            dns: Vec::new(),
            privilege,
        }
    }
}

/// What a container may do to the host's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// What the engine grants by default.
    Default,
    /// The smallest set with which an engine runs inside: each part of it is needed.
    Nested,
    /// `--privileged`, where the engine refuses [`Privilege::Nested`].
    Full,
}

impl Privilege {
    /// Capabilities beyond Docker's default set.
    pub fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Nested => &["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"],
            Self::Default | Self::Full => &[],
        }
    }
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMap {
    /// Port inside.
    pub container: u16,
    /// Port on 127.0.0.1.
    pub host: HostPort,
}

/// A port of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPort {
    /// Any free one.
    Free,
    /// That very one; `variable` is the setting that moves it.
    Fixed {
        /// The port.
        port: u16,
        /// The setting.
        variable: &'static str,
    },
}

/// A volume or directory inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// What is mounted.
    pub source: MountSource,
    /// Where.
    pub target: String,
    /// Whether it can be written to.
    pub access: Access,
}

/// Whether a mount can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It cannot.
    ReadOnly,
    /// It can.
    ReadWrite,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A named volume.
    Volume(String),
    /// A volume that goes with its container.
    Anonymous,
    /// A directory of the host.
    Directory(PathBuf),
}

impl MountSpec {
    /// A volume that can be written to.
    pub fn volume(name: impl Into<String>, target: &str) -> Self {
        Self {
            source: MountSource::Volume(name.into()),
            target: target.to_owned(),
            access: Access::ReadWrite,
        }
    }

    /// A directory of the host that can be written to.
    pub fn directory(path: impl Into<PathBuf>, target: &str) -> Self {
        Self {
            source: MountSource::Directory(path.into()),
            target: target.to_owned(),
            access: Access::ReadWrite,
        }
    }

    /// A volume that goes with its container.
    pub fn anonymous(target: &str) -> Self {
        Self {
            source: MountSource::Anonymous,
            target: target.to_owned(),
            access: Access::ReadWrite,
        }
    }

    /// The same, read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.access = Access::ReadOnly;
        self
    }
}
