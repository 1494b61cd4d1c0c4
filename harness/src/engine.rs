//! The host's Docker engine. testcontainers and bollard meet the rest of the code here and below,
//! and nowhere else.

mod build;
mod container;
mod error;
mod exec;
mod layer;
mod log;
mod memory;
mod network;
mod ports;
mod spec;
mod start;
mod volume;

use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;

pub use build::{BuildContext, BuildLine};
pub use container::ContainerState;
pub use error::EngineError;
pub use exec::Output;
pub(crate) use layer::{Change, Layer};
pub use log::{Follow, Log, LogLine};
pub use memory::Memory;
pub(crate) use network::lock_file;
pub use network::{Lan, SUBNET_RANGE};
pub(crate) use ports::holder as port_holder;
pub use spec::{Access, ContainerSpec, HostPort, MountSource, MountSpec, PortMap, Privilege};

/// Every call but those that move images is answered in well under this.
const PATIENCE: Duration = Duration::from_secs(120);

/// Label that names the topology which a container, network or volume belongs to.
pub const LABEL_TOPOLOGY: &str = "wopr.topology";
/// Label that names the machine which a container is.
pub const LABEL_MACHINE: &str = "wopr.machine";
/// Label that names the directory of the processes which own a topology.
pub const LABEL_OWNER: &str = "wopr.owner";
/// Label that names the process which made something, for people: a number comes again.
pub const LABEL_PID: &str = "wopr.pid";
/// Label that names the image set of an image or a golden volume.
pub const LABEL_IMAGE_SET: &str = "wopr.image-set";
/// Label that names who makes a golden volume. Until the volume is sealed it goes with its maker.
pub const LABEL_MAKER: &str = "wopr.maker";

/// A connection to a Docker engine.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
    socket: PathBuf,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// Its identity, which a new installation changes.
    pub id: String,
    /// Its version, as `28.5.2`.
    pub version: String,
    /// The newest API that it speaks.
    pub api_version: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// `overlay2`, …
    pub storage_driver: String,
    /// Its data root on the host.
    pub root: PathBuf,
    /// Whether it runs on another kernel than ours: a virtual machine, or a remote host.
    pub kernel: String,
}

impl Engine {
    /// Connects to the host's engine: the one of `DOCKER_HOST`, else `/var/run/docker.sock`.
    ///
    /// # Errors
    /// [`EngineError::NotLocal`] for an engine that is not behind a Unix socket: machines share
    /// directories with this process. [`EngineError::Unreachable`] when it does not answer.
    pub async fn connect() -> Result<Self, EngineError> {
        let socket = match std::env::var("DOCKER_HOST") {
            Ok(host) if !host.is_empty() => match host.strip_prefix("unix://") {
                Some(path) => PathBuf::from(path),
                None => return Err(EngineError::NotLocal { host }),
            },
            _ => PathBuf::from("/var/run/docker.sock"),
        };
        Self::at(socket).await
    }

    /// Connects to the engine behind a Unix socket.
    ///
    /// # Errors
    /// [`EngineError::Unreachable`].
    pub async fn at(socket: PathBuf) -> Result<Self, EngineError> {
        let unreachable = |source| EngineError::Unreachable {
            socket: socket.clone(),
            source,
        };
        let docker = Docker::connect_with_unix(
            &socket.to_string_lossy(),
            PATIENCE.as_secs(),
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(unreachable)?
        .negotiate_version()
        .await
        .map_err(unreachable)?;
        Ok(Self { docker, socket })
    }

    /// The engine behind a Unix socket, which cannot be asked for its version now: its machine is frozen or off.
    pub(crate) fn unasked(socket: PathBuf) -> Result<Self, EngineError> {
        let docker = Docker::connect_with_unix(
            &socket.to_string_lossy(),
            PATIENCE.as_secs(),
            bollard::API_DEFAULT_VERSION,
        );
        match docker {
            Ok(docker) => Ok(Self { docker, socket }),
            Err(source) => Err(EngineError::Unreachable { socket, source }),
        }
    }

    /// The client itself, for what this module does not wrap.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// The socket that it is reached at.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Asks the engine about itself.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn info(&self) -> Result<EngineInfo, EngineError> {
        let failed = EngineError::call("ask the engine about itself");
        let info = self.docker.info().await.map_err(failed)?;
        let version = self
            .docker
            .version()
            .await
            .map_err(EngineError::call("ask for its version"))?;
        Ok(EngineInfo {
            id: info.id.unwrap_or_default(),
            version: version.version.unwrap_or_default(),
            api_version: version.api_version.unwrap_or_default(),
            cgroup_version: info
                .cgroup_version
                .map(|v| v.to_string())
                .unwrap_or_else(|| "1".into()),
            storage_driver: info.driver.unwrap_or_default(),
            root: info.docker_root_dir.unwrap_or_default().into(),
            kernel: info.kernel_version.unwrap_or_default(),
        })
    }
}
