//! Containers of the host: started through testcontainers, and looked after through bollard.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bollard::models::{ContainerStateStatusEnum, PortBinding};
use bollard::query_parameters::{
    InspectContainerOptions, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
    RestartContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder, WaitContainerOptions,
};
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use testcontainers::core::{AccessMode, CgroupnsMode, Host, Mount};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{GenericImage, ImageExt as _};

use super::error::absent_is_fine;
use super::{Engine, EngineError};

/// A cold engine was seen to take 4 s; this is for a host on its knees.
const START_PATIENCE: Duration = Duration::from_secs(60);

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

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// The engine's id of it.
    pub id: String,
    /// Reference of its image.
    pub image: String,
    /// Whether its first process runs.
    pub running: bool,
    /// Whether it is frozen.
    pub paused: bool,
    /// Its first process, in the engine's own process namespace, while it runs.
    pub pid: Option<i64>,
    /// How often the engine has started it again by itself.
    pub restarts: i64,
    /// Exit code of the last run.
    pub exit_code: Option<i64>,
    /// Published ports: inside → on 127.0.0.1.
    pub ports: BTreeMap<u16, u16>,
    /// Networks that it is on, stopped or not, and its address on each while it runs.
    pub networks: BTreeMap<String, Option<Ipv4Addr>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Option<SystemTime>,
}

impl ContainerState {
    /// Its address on the first of its networks that gave it one.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.networks.values().find_map(|address| *address)
    }
}

impl Engine {
    /// Makes and starts a container, on `network` at `address` where given, and returns its id.
    /// Nothing is left when this fails.
    ///
    /// # Errors
    /// [`EngineError::PortTaken`], [`EngineError::NoImage`], [`EngineError::Start`],
    /// [`EngineError::Call`].
    pub async fn start(
        &self,
        spec: &ContainerSpec,
        network: Option<(&str, Ipv4Addr)>,
    ) -> Result<String, EngineError> {
        check_ports(spec)?;
        let started = tokio::time::timeout(START_PATIENCE, self.start_on_no_network(spec)).await;
        let result = match started {
            Ok(Ok(id)) => self.join(spec, network, &id).await.map(|()| id),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(EngineError::Start {
                container: spec.name.clone(),
                source: Box::new(testcontainers::TestcontainersError::other(format!(
                    "no answer within {} s",
                    START_PATIENCE.as_secs()
                ))),
            }),
        };
        if result.is_err() {
            // testcontainers leaves a container behind that was created and could not be started.
            self.remove_container(&spec.name).await?;
        }
        result
    }

    /// testcontainers knows no fixed address: the container starts without a network and is attached
    /// right after, which keeps its address over restarts, too.
    async fn start_on_no_network(&self, spec: &ContainerSpec) -> Result<String, EngineError> {
        let (name, tag) = spec.image.rsplit_once(':').unwrap_or((&spec.image, "latest"));
        let modified = spec.clone();
        let mut request = GenericImage::new(name, tag)
            .with_container_name(&spec.name)
            .with_hostname(&spec.hostname)
            .with_labels(&spec.labels)
            .with_cgroupns_mode(CgroupnsMode::Private)
            .with_startup_timeout(START_PATIENCE)
            .with_privileged(spec.privilege == Privilege::Full)
            .with_cmd(&spec.command)
            .with_host_config_modifier(move |host| {
                host.network_mode = Some("none".into());
                host.publish_all_ports = Some(false);
                host.port_bindings = Some(bindings(&modified.ports));
                host.init = Some(false);
                let anonymous = modified
                    .mounts
                    .iter()
                    .filter(|mount| mount.source == MountSource::Anonymous);
                let anonymous = anonymous.map(|mount| bollard::models::Mount {
                    target: Some(mount.target.clone()),
                    typ: Some(bollard::models::MountType::VOLUME),
                    ..Default::default()
                });
                host.mounts.get_or_insert_default().extend(anonymous);
                host.tmpfs = Some(
                    modified
                        .tmpfs
                        .iter()
                        .map(|path| (path.clone(), String::new()))
                        .collect(),
                );
                if !modified.dns.is_empty() {
                    host.dns = Some(modified.dns.iter().map(ToString::to_string).collect());
                }
                if modified.privilege == Privilege::Nested {
                    host.device_cgroup_rules = Some(vec!["a *:* rwm".into()]);
                    host.masked_paths = Some(Vec::new());
                    host.readonly_paths = Some(Vec::new());
                }
            });
        for port in &spec.ports {
            request = request.with_mapped_port(0, testcontainers::core::ContainerPort::Tcp(port.container));
        }
        for (key, value) in &spec.environment {
            request = request.with_env_var(key, value);
        }
        for (name, address) in &spec.hosts {
            request = request.with_host(name, Host::Addr((*address).into()));
        }
        for capability in spec.privilege.capabilities() {
            request = request.with_cap_add(*capability);
        }
        if spec.privilege == Privilege::Nested {
            request = request
                .with_security_opt("seccomp=unconfined")
                .with_security_opt("apparmor=unconfined");
        }
        for mount in spec.mounts.iter().filter_map(to_mount) {
            request = request.with_mount(mount);
        }
        let container = request
            .start()
            .await
            .map_err(|source| start_error(spec, source))?;
        let id = container.id().to_owned();
        // A topology may outlive this process (`wopr up`), and its end is ours to see to: by label,
        // which also finds what a killed process left. Dropping the handle would remove the container.
        std::mem::forget(container);
        Ok(id)
    }

    async fn join(
        &self,
        spec: &ContainerSpec,
        network: Option<(&str, Ipv4Addr)>,
        id: &str,
    ) -> Result<(), EngineError> {
        let Some((network, address)) = network else {
            return Ok(());
        };
        self.detach("none", id).await?;
        self.attach(network, id, address, vec![spec.hostname.clone()])
            .await
    }

    /// What a container is and does, in a line; the same as long as nobody changes it.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub(crate) async fn fingerprint(&self, name: &str) -> Result<String, EngineError> {
        let action = format!("look at container {name}");
        let found = self
            .docker()
            .inspect_container(name, None::<InspectContainerOptions>)
            .await;
        let found = match found {
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {
                return Ok("gone".to_owned());
            }
            other => other.map_err(EngineError::call(action))?,
        };
        let state = found.state.as_ref().and_then(|state| state.status);
        let id = found.id.unwrap_or_default();
        // By way of a value, whose keys are in order.
        let made = serde_json::json!([found.config, found.host_config]).to_string();
        let made = hex::encode(Sha256::digest(made));
        let state = state.map_or("unknown".to_owned(), |state| state.to_string());
        Ok(format!("container {:.12} {state} {:.12}", id, made))
    }

    /// Looks at a container; `None` when it is not there.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn container(&self, name: &str) -> Result<Option<ContainerState>, EngineError> {
        let found = self
            .docker()
            .inspect_container(name, None::<InspectContainerOptions>)
            .await;
        let found = match found.map_err(EngineError::call(format!("look at {name}"))) {
            Ok(found) => found,
            Err(error) if error.status() == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = found.state.unwrap_or_default();
        let paused = state.status == Some(ContainerStateStatusEnum::PAUSED);
        let settings = found.network_settings.unwrap_or_default();
        let networks = settings.networks.unwrap_or_default().into_iter();
        let networks = networks.map(|(name, on)| (name, on.ip_address.and_then(|text| text.parse().ok())));
        let published = settings.ports.unwrap_or_default();
        let ports = published.into_iter().filter_map(|(inside, bound)| {
            let inside = inside.split('/').next()?.parse().ok()?;
            let outside = bound?.into_iter().find_map(|b| b.host_port?.parse().ok())?;
            Some((inside, outside))
        });
        Ok(Some(ContainerState {
            id: found.id.unwrap_or_default(),
            created: found.created.map(SystemTime::from),
            image: found
                .config
                .as_ref()
                .and_then(|config| config.image.clone())
                .unwrap_or_default(),
            running: state.running.unwrap_or(false) && !paused,
            paused,
            pid: state.pid.filter(|pid| *pid > 0),
            restarts: found.restart_count.unwrap_or_default(),
            exit_code: state.exit_code,
            ports: ports.collect(),
            networks: networks.collect(),
            labels: found
                .config
                .and_then(|c| c.labels)
                .unwrap_or_default()
                .into_iter()
                .collect(),
        }))
    }

    /// Names of the containers with a label (`key=value` or `key`), stopped ones too.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn containers_with_label(&self, label: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self.docker().list_containers(Some(options)).await;
        let listed = listed.map_err(EngineError::call("list containers"))?;
        let names = listed.into_iter().filter_map(|container| {
            let name = container.names?.into_iter().next()?;
            Some(name.trim_start_matches('/').to_owned())
        });
        Ok(names.collect())
    }

    /// A container's address on its network.
    ///
    /// # Errors
    /// [`EngineError::NoAddress`] when it has none: it does not run, or is on no network.
    pub async fn address(&self, name: &str) -> Result<Ipv4Addr, EngineError> {
        let found = self
            .docker()
            .inspect_container(name, None::<InspectContainerOptions>)
            .await;
        let found = found.map_err(EngineError::call(format!("look at {name}")))?;
        let networks = found
            .network_settings
            .and_then(|settings| settings.networks)
            .unwrap_or_default();
        let address = networks
            .into_values()
            .find_map(|network| network.ip_address?.parse().ok());
        address.ok_or_else(|| EngineError::NoAddress {
            container: name.to_owned(),
        })
    }

    /// Ids of the topologies that have a container, network or volume with a label.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn topologies_with_label(&self, label: &str) -> Result<BTreeSet<String>, EngineError> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let containers = self.docker().list_containers(Some(options));
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let networks = self.docker().list_networks(Some(options));
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let volumes = self.docker().list_volumes(Some(options));
        let listed = tokio::try_join!(containers, networks, volumes);
        let (containers, networks, volumes) =
            listed.map_err(EngineError::call("list what topologies left"))?;
        let labels = (containers.into_iter().filter_map(|container| container.labels))
            .chain(networks.into_iter().filter_map(|network| network.labels))
            .chain(
                volumes
                    .volumes
                    .unwrap_or_default()
                    .into_iter()
                    .map(|volume| volume.labels),
            );
        Ok(labels
            .filter_map(|mut labels| labels.remove(super::LABEL_TOPOLOGY))
            .collect())
    }

    /// Removes a container, running or not, with its anonymous volumes; one that is gone is fine.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn remove_container(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = self.docker().remove_container(name, Some(options)).await;
        match removed.map_err(EngineError::call(format!("remove {name}"))) {
            // A removal of the same container that is under way does just as well.
            Err(error) if error.status() == Some(409) => self.until_gone(name).await,
            other => absent_is_fine(other),
        }
    }

    async fn until_gone(&self, name: &str) -> Result<(), EngineError> {
        for _ in 0..200 {
            if self.container(name).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = self.docker().remove_container(name, Some(options)).await;
        absent_is_fine(removed.map_err(EngineError::call(format!("remove {name}"))))
    }

    /// Starts a container that has been stopped or killed.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn start_again(&self, name: &str) -> Result<(), EngineError> {
        let started = self
            .docker()
            .start_container(name, None::<StartContainerOptions>)
            .await;
        started.map_err(EngineError::call(format!("start {name}")))
    }

    /// Lets a container go on that was paused.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub(crate) async fn unpause(&self, name: &str) -> Result<(), EngineError> {
        let unpaused = self.docker().unpause_container(name).await;
        unpaused.map_err(EngineError::call(format!("let container {name} go on")))
    }

    /// Stops a container: SIGTERM, and SIGKILL after `grace`.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn stop(&self, name: &str, grace: Duration) -> Result<(), EngineError> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        let stopped = self.docker().stop_container(name, Some(options)).await;
        stopped.map_err(EngineError::call(format!("stop {name}")))
    }

    /// Sends a signal to a container's first process, as `SIGKILL`.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn signal(&self, name: &str, signal: &str) -> Result<(), EngineError> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let sent = self.docker().kill_container(name, Some(options)).await;
        sent.map_err(EngineError::call(format!("send {signal} to {name}")))
    }

    /// Freezes a container: its processes stand still, and its kernel still answers for its open ports.
    ///
    /// # Errors
    /// [`EngineError::Call`], as when it does not run.
    pub async fn pause(&self, name: &str) -> Result<(), EngineError> {
        let paused = self.docker().pause_container(name).await;
        paused.map_err(EngineError::call(format!("pause {name}")))
    }

    /// Restarts a container, with ten seconds for its end.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn restart(&self, name: &str) -> Result<(), EngineError> {
        let options = RestartContainerOptionsBuilder::new().t(10).build();
        let restarted = self.docker().restart_container(name, Some(options)).await;
        restarted.map_err(EngineError::call(format!("restart {name}")))
    }

    /// Waits until a container has ended; returns its exit code.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn until_exit(&self, name: &str) -> Result<i64, EngineError> {
        let mut waited = std::pin::pin!(self.docker().wait_container(name, None::<WaitContainerOptions>));
        match waited.next().await {
            Some(Ok(answer)) => Ok(answer.status_code),
            // bollard takes a code other than 0 for an error.
            Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. })) => Ok(code),
            Some(Err(error)) => Err(EngineError::call(format!("wait for {name}"))(error)),
            None => Ok(0),
        }
    }
}

/// testcontainers knows no anonymous volume; those are made by the host config's own list.
fn to_mount(mount: &MountSpec) -> Option<Mount> {
    let made = match &mount.source {
        MountSource::Anonymous => return None,
        MountSource::Volume(name) => Mount::volume_mount(name, &mount.target),
        MountSource::Directory(path) => Mount::bind_mount(path.to_string_lossy(), &mount.target),
    };
    Some(made.with_access_mode(match mount.access {
        Access::ReadOnly => AccessMode::ReadOnly,
        Access::ReadWrite => AccessMode::ReadWrite,
    }))
}

/// Published on 127.0.0.1 alone; testcontainers by itself would bind every address.
fn bindings(ports: &[PortMap]) -> HashMap<String, Option<Vec<PortBinding>>> {
    let binding = |port: &PortMap| {
        let host_port = match port.host {
            HostPort::Free => String::new(),
            HostPort::Fixed { port, .. } => port.to_string(),
        };
        let bound = PortBinding {
            host_ip: Some("127.0.0.1".into()),
            host_port: Some(host_port),
        };
        (format!("{}/tcp", port.container), Some(vec![bound]))
    };
    ports.iter().map(binding).collect()
}

/// Names a taken port before the engine stumbles over it, which says only "bind: address in use".
fn check_ports(spec: &ContainerSpec) -> Result<(), EngineError> {
    for map in &spec.ports {
        let HostPort::Fixed { port, variable } = map.host else {
            continue;
        };
        if let Err(error) = std::net::TcpListener::bind(("127.0.0.1", port))
            && error.kind() == std::io::ErrorKind::AddrInUse
        {
            return Err(EngineError::PortTaken {
                port,
                holder: super::ports::holder(port)
                    .map(|who| format!(" by {who}"))
                    .unwrap_or_default(),
                container: spec.name.clone(),
                variable,
            });
        }
    }
    Ok(())
}

fn start_error(spec: &ContainerSpec, source: testcontainers::TestcontainersError) -> EngineError {
    let words = source.to_string();
    if words.contains("pull") || words.contains("No such image") {
        return EngineError::NoImage {
            image: spec.image.clone(),
            reason: words,
        };
    }
    EngineError::Start {
        container: spec.name.clone(),
        source: Box::new(source),
    }
}
