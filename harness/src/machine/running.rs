//! A machine that was started: the ways to it that no fault touches.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{MachineName, Variant, engine_socket};
use crate::control::{Control, ControlError};
use crate::engine::{ContainerState, Engine, EngineError, Layer, Output};
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
    inner: Engine,
    variant: Variant,
    place: Arc<Mutex<Place>>,
}

/// Where a machine is to be found; a reboot may change it.
#[derive(Debug)]
struct Place {
    address: Ipv4Addr,
    /// Published ports: inside → on 127.0.0.1. The engine may choose others at each start.
    ports: BTreeMap<u16, u16>,
    /// Addresses of machines that have moved, by host name. The engine writes those of the boot into
    /// /etc/hosts at each start of the container.
    moved: BTreeMap<String, Ipv4Addr>,
    /// Whether it waits for a droplet that it is to be, and has no container.
    racked: bool,
}

impl RunningMachine {
    /// The machine whose container is `container`, once its engine answers; at once where that is frozen or off.
    pub(crate) async fn connect(
        name: MachineName,
        host: Engine,
        container: String,
        control: PathBuf,
        address: Ipv4Addr,
        variant: Variant,
    ) -> Result<Self, EngineError> {
        let socket = engine_socket(&control);
        if !socket.exists() {
            // The engine's client wants a socket to be there from the first; an engine makes it anew.
            UnixListener::bind(&socket).map_err(|source| EngineError::Io {
                action: "make a socket at",
                path: socket.clone(),
                source,
            })?;
        }
        let state = host.container(&container).await?;
        let inner = match (variant, state) {
            (Variant::Full, Some(state)) if state.running => Engine::at(socket).await?,
            _ => Engine::unasked(socket)?,
        };
        let machine = Self {
            name,
            host,
            container,
            control,
            inner,
            variant,
            place: Arc::new(Mutex::new(Place {
                address,
                ports: BTreeMap::new(),
                moved: BTreeMap::new(),
                racked: false,
            })),
        };
        machine.read_ports().await?;
        Ok(machine)
    }

    /// The same machine, asked after at another connection to the host's engine: one of another runtime, for
    /// whoever cannot wait in this one.
    pub(crate) fn through(&self, host: Engine) -> Self {
        Self { host, ..self.clone() }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.place().address
    }

    /// Whether it waits in the rack: it has a name and an address, and is no machine yet.
    pub fn is_racked(&self) -> bool {
        self.place().racked
    }

    pub(crate) fn set_racked(&self, racked: bool) {
        self.place().racked = racked;
    }

    /// The host's engine, which runs it.
    pub(crate) fn host(&self) -> &Engine {
        &self.host
    }

    /// What it is made of.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Whether it is light: it has no engine, and one process answers for its services.
    pub fn is_light(&self) -> bool {
        self.variant == Variant::Light
    }

    /// Its own engine, over a private socket. Of a light machine nothing answers there.
    pub fn engine(&self) -> &Engine {
        &self.inner
    }

    /// Its own engine, where it has one.
    fn own_engine(&self) -> Result<&Engine, EngineError> {
        match self.variant {
            Variant::Full => Ok(&self.inner),
            Variant::Light => Err(EngineError::Light {
                machine: self.name.to_string(),
            }),
        }
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
        self.place().ports.get(&port).copied()
    }

    pub(crate) async fn read_ports(&self) -> Result<(), EngineError> {
        let state = self.state().await?;
        self.place().ports = state.map(|state| state.ports).unwrap_or_default();
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
    pub(crate) async fn fingerprint(&self) -> Result<(String, Option<Layer>), EngineError> {
        self.host.fingerprint(&self.container).await
    }

    /// What a service's container is doing; `None` when the machine has none.
    ///
    /// # Errors
    /// [`EngineError::Call`], [`EngineError::Light`].
    pub async fn service(&self, service: Service) -> Result<Option<ContainerState>, EngineError> {
        self.own_engine()?.container(&service.container()).await
    }

    /// Runs a program in a service's container.
    ///
    /// # Errors
    /// [`EngineError::Call`], [`EngineError::Light`].
    pub async fn exec(&self, service: Service, argv: &[&str]) -> Result<Output, EngineError> {
        self.own_engine()?.exec(&service.container(), argv).await
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

    /// Starts it again on the same volumes, where it was; its engine answers when this returns.
    ///
    /// # Errors
    /// [`EngineError`] and [`ControlError`] as [`BootError`].
    pub async fn start(&self) -> Result<(), BootError> {
        self.begin().await?;
        self.until_ready().await
    }

    /// Starts it again; its first process answers when this returns, and knows the others' addresses.
    pub(crate) async fn begin(&self) -> Result<(), BootError> {
        self.host.start_again(&self.container).await?;
        self.read_ports().await?;
        self.tell_moved().await
    }

    /// Waits until its engine answers.
    ///
    /// # Errors
    /// [`BootError::Control`] with the machine's reason.
    pub async fn until_ready(&self) -> Result<(), BootError> {
        Ok(self.control().await?.until_ready(|_| {}).await?)
    }

    /// Attaches it to a network, at its address and under its name.
    pub(crate) async fn join(&self, network: &str) -> Result<(), EngineError> {
        let names = vec![self.name.hostname()];
        // The engine gives a container that starts on no network this one, which goes with no other.
        let state = self.state().await?;
        if state.is_some_and(|state| state.networks.contains_key("none")) {
            self.host.detach("none", &self.container).await?;
        }
        self.host
            .attach(network, &self.container, self.address(), names)
            .await?;
        self.read_ports().await
    }

    /// Attaches it to a network that it has left, at another address than before.
    pub(crate) async fn move_to(&self, address: Ipv4Addr, network: &str) -> Result<(), EngineError> {
        self.place().address = address;
        self.join(network).await
    }

    /// Lets it know where another machine has moved to, now if it runs and at each start.
    pub(crate) async fn learn(&self, other: &MachineName, address: Ipv4Addr) -> Result<(), BootError> {
        self.place().moved.insert(other.hostname(), address);
        match self.state().await? {
            Some(state) if state.running => self.tell_moved().await,
            _ => Ok(()),
        }
    }

    /// Writes the addresses of machines that have moved into /etc/hosts, where inner containers' questions for
    /// names are answered from as well, and reads them back.
    pub(crate) async fn tell_moved(&self) -> Result<(), BootError> {
        let moved = self.place().moved.clone();
        for (name, address) in moved {
            let address = address.to_string();
            let told = ["sh", "-c", TELL, "tell", &name, &address];
            self.control().await?.run(&told, TELL_LIMIT).await?;
        }
        Ok(())
    }
}

/// Arguments: a host name, its address. In place: the engine has the file bound there.
const TELL: &str = r#"
hosts=$(awk -v name="$1" '{ for (i = 2; i <= NF; i++) if ($i == name) next } 1' /etc/hosts)
printf '%s\n%s\t%s\n' "$hosts" "$2" "$1" > /etc/hosts
getent ahostsv4 "$1" | grep --quiet "^$2 " || { echo "$1 is not at $2 after it was written down" >&2; exit 1; }
"#;
const TELL_LIMIT: Duration = Duration::from_secs(5);

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
