//! Containers of the host, looked at and looked after through bollard.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use bollard::models::{ChangeType, ContainerInspectResponse, ContainerStateStatusEnum, FilesystemChange};
use bollard::query_parameters::{
    InspectContainerOptions, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListNetworksOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
    RestartContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder, WaitContainerOptions,
};
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::error::absent_is_fine;
use super::layer::{Change, Layer};
use super::{Engine, EngineError};

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
    async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        let found = self
            .docker()
            .inspect_container(name, None::<InspectContainerOptions>)
            .await;
        match found.map_err(EngineError::call(format!("look at container {name}"))) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.status() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a container is and does, in a line, the same as long as nobody changes it; and where its own files are.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub(crate) async fn fingerprint(&self, name: &str) -> Result<(String, Option<Layer>), EngineError> {
        let Some(found) = self.inspect(name).await? else {
            return Ok(("gone".to_owned(), None));
        };
        let state = found.state.as_ref().and_then(|state| state.status);
        let id = found.id.unwrap_or_default();
        // By way of a value, whose keys are in order.
        let made = serde_json::json!([found.config, found.host_config]).to_string();
        let made = hex::encode(Sha256::digest(made));
        let state = state.map_or("unknown".to_owned(), |state| state.to_string());
        let line = format!("container {:.12} {state} {:.12}", id, made);
        Ok((line, Layer::of(found.graph_driver)))
    }

    /// What differs in a container from its image, as the engine compares them.
    pub(super) async fn compared(&self, name: &str) -> Result<Vec<Change>, EngineError> {
        let changes = self.docker().container_changes(name).await;
        let changes = match changes.map_err(EngineError::call(format!("list what changed in {name}"))) {
            Err(error) if error.status() == Some(404) => None,
            other => other?,
        };
        let named = |change: FilesystemChange| {
            let kind = match change.kind {
                ChangeType::_0 => "changed",
                ChangeType::_1 => "new",
                ChangeType::_2 => "gone",
            };
            Change {
                path: change.path,
                kind: kind.to_owned(),
            }
        };
        Ok(changes.unwrap_or_default().into_iter().map(named).collect())
    }

    /// Looks at a container; `None` when it is not there.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn container(&self, name: &str) -> Result<Option<ContainerState>, EngineError> {
        let Some(found) = self.inspect(name).await? else {
            return Ok(None);
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
        let found = self.container(name).await?;
        let address = found.and_then(|state| state.address());
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
