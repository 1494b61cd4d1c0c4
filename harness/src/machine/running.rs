//! A machine that was started: the ways to it that no fault touches.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{MachineName, engine_socket};
use crate::control::{Control, ControlError};
use crate::engine::{ContainerState, Engine, EngineError, Output};
use crate::service::Service;

/// A stop asks the inner engine to end its containers first.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// A machine of a running topology.
#[derive(Debug, Clone)]
pub struct RunningMachine {
    name: MachineName,
    host: Engine,
    container: String,
    control: PathBuf,
    address: Ipv4Addr,
    inner: Engine,
    /// Published ports: inside → on 127.0.0.1. The engine may choose others at each start.
    ports: Arc<Mutex<BTreeMap<u16, u16>>>,
}

impl RunningMachine {
    /// The machine whose container is `container`, once its engine answers.
    pub(crate) async fn connect(
        name: MachineName,
        host: Engine,
        container: String,
        control: PathBuf,
        address: Ipv4Addr,
    ) -> Result<Self, EngineError> {
        let inner = Engine::at(engine_socket(&control)).await?;
        let machine = Self {
            name,
            host,
            container,
            control,
            address,
            inner,
            ports: Arc::default(),
        };
        machine.read_ports().await?;
        Ok(machine)
    }

    /// Its name in the topology.
    pub fn name(&self) -> &MachineName {
        &self.name
    }

    /// Name of its container on the host.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Its address on wopr-dev.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its own engine, over a private socket.
    pub fn engine(&self) -> &Engine {
        &self.inner
    }

    /// Its control directory on the host.
    pub fn control_directory(&self) -> &PathBuf {
        &self.control
    }

    /// A new conversation with its first process.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`].
    pub async fn control(&self) -> Result<Control, ControlError> {
        Control::connect(self.name.as_str(), &self.control).await
    }

    /// The port on 127.0.0.1 that leads to `port` of the machine, if that is published.
    pub fn port(&self, port: u16) -> Option<u16> {
        self.ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&port)
            .copied()
    }

    async fn read_ports(&self) -> Result<(), EngineError> {
        let state = self.state().await?;
        let ports = state.map(|state| state.ports).unwrap_or_default();
        *self.ports.lock().unwrap_or_else(PoisonError::into_inner) = ports;
        Ok(())
    }

    /// What its container is doing; `None` when it is gone.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn state(&self) -> Result<Option<ContainerState>, EngineError> {
        self.host.container(&self.container).await
    }

    /// Lets it go on if it is paused.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub(crate) async fn unpause(&self) -> Result<(), EngineError> {
        match self.state().await? {
            Some(state) if state.paused => self.host.unpause(&self.container).await,
            _ => Ok(()),
        }
    }

    /// What its container is and does, in a line; the same as long as nobody changes it.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub(crate) async fn fingerprint(&self) -> Result<String, EngineError> {
        self.host.fingerprint(&self.container).await
    }

    /// What a service's container is doing; `None` when the machine has none.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn service(&self, service: Service) -> Result<Option<ContainerState>, EngineError> {
        self.inner.container(&service.container()).await
    }

    /// Runs a program in a service's container.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn exec(&self, service: Service, argv: &[&str]) -> Result<Output, EngineError> {
        self.inner.exec(&service.container(), argv).await
    }

    /// Ends the machine as a power cut does.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn kill(&self) -> Result<(), EngineError> {
        self.host.signal(&self.container, "SIGKILL").await?;
        self.host.until_exit(&self.container).await.map(drop)
    }

    /// Shuts the machine down.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn stop(&self) -> Result<(), EngineError> {
        self.host.stop(&self.container, STOP_GRACE).await
    }

    /// Starts it again on the same volumes, at the same address; its engine answers when this returns.
    ///
    /// # Errors
    /// [`EngineError`] and [`ControlError`] as [`BootError`].
    pub async fn start(&self) -> Result<(), BootError> {
        self.host.start_again(&self.container).await?;
        self.control().await?.until_ready(|_| {}).await?;
        self.read_ports().await?;
        Ok(())
    }
}

/// Why a machine did not come back.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Its container.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its own boot.
    #[error(transparent)]
    Control(#[from] ControlError),
}
