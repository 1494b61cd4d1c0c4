//! A container's start, through testcontainers.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use bollard::models::PortBinding;
use testcontainers::core::{AccessMode, CgroupnsMode, Host, Mount};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{GenericImage, ImageExt as _};

use super::spec::{Access, ContainerSpec, HostPort, MountSource, MountSpec, PortMap, Privilege};
use super::{Engine, EngineError};

/// A cold engine was seen to take 4 s; this is for a host on its knees.
const START_PATIENCE: Duration = Duration::from_secs(60);

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
