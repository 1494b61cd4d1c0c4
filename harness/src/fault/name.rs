//! Faults of a name: what the services of the VPS machine hear when they ask for it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use wopr_machine::protocol::{Found, NameAnswer, Reply, Request};

use super::sight::others_are_in_effect;
use super::{Applying, Fault, FaultError};
use crate::clock::PlatformTime;
use crate::control::ControlError;
use crate::history::{Bearing, Meaning};
use crate::machine::{GPU, RunningMachine, VPS};
use crate::service::Service;
use crate::topology::Topology;

/// An answer within a machine takes a millisecond or two.
const PATIENCE: Duration = Duration::from_millis(600);
/// The engine's resolver, which stands between, gives a slow server this long.
const RESOLVER: Duration = Duration::from_secs(4);

/// The C library's, which asks twice, gives a silent server this long each time. It is told the true time, whatever
/// platform-api's clock says.
const C_LIBRARY: PlatformTime = PlatformTime(Duration::from_secs(5));

/// A name, as platform-api sees it.
#[derive(Debug, Clone)]
pub struct DnsName<'a> {
    topology: &'a Topology,
    name: String,
}

/// A look-up from a service's network, at its own resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LookUp {
    from: Service,
    name: String,
    found: Found,
    took: Duration,
}

impl fmt::Display for LookUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            name,
            found,
            took,
        } = self;
        write!(f, "{name} looked up from {from} ")?;
        match found {
            Found::Address { address } => write!(f, "is {address}")?,
            Found::NoAddress => f.write_str("has no address")?,
            Found::Unknown => f.write_str("does not exist")?,
            Found::Failure => f.write_str("is a failure of the server")?,
            Found::NoAnswer => f.write_str("gets no answer")?,
        }
        write!(f, " ({} ms)", took.as_millis())
    }
}

impl Topology {
    /// A name as platform-api and its neighbours on the VPS machine see it, for faults of it. `wopr-gpu` is
    /// the GPU machine's; any other may be taken as well.
    pub fn dns_name(&self, name: &str) -> DnsName<'_> {
        DnsName {
            topology: self,
            name: name.to_owned(),
        }
    }
}

/// Looks names up as a service does.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    machine: RunningMachine,
    service: Service,
}

impl Resolver {
    pub(super) fn of(topology: &Topology, service: Service) -> Self {
        Self {
            machine: topology.machine_of(service).clone(),
            service,
        }
    }

    /// The name's address, if the resolver tells one.
    pub(super) async fn address(&self, name: &str) -> Result<Option<Ipv4Addr>, FaultError> {
        let told = self.look_up(name, PATIENCE + RESOLVER).await?;
        Ok(match told.found {
            Found::Address { address } => Some(address),
            _ => None,
        })
    }

    async fn look_up(&self, name: &str, patience: Duration) -> Result<LookUp, FaultError> {
        let service = self.service;
        let state = self.machine.service(service).await?;
        let process = state
            .and_then(|state| state.pid)
            .and_then(|pid| u32::try_from(pid).ok());
        let request = Request::LookUp {
            from: process.ok_or(FaultError::NotRunning { service })?,
            name: name.to_owned(),
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        };
        match self.machine.control().await?.ask(&request).await? {
            Reply::LookedUp { found, took_us } => Ok(LookUp {
                from: service,
                name: name.to_owned(),
                found,
                took: Duration::from_micros(took_us),
            }),
            other => Err(ControlError::unexpected(self.machine.name().as_str(), &other).into()),
        }
    }
}

/// What a name was before a fault of it.
#[derive(Debug)]
pub(super) struct NameBefore {
    resolver: Resolver,
    look_up: LookUp,
}

impl NameBefore {
    /// Sees that it is so again. Where another fault is in effect, that cannot be told.
    pub(super) async fn is_back(
        &self,
        fault: &str,
        machines: &[(String, PathBuf)],
    ) -> Result<(), FaultError> {
        let now = self
            .resolver
            .look_up(&self.look_up.name, PATIENCE + RESOLVER)
            .await?;
        if now.found == self.look_up.found || others_are_in_effect(machines).await? {
            return Ok(());
        }
        Err(FaultError::NameStillInEffect {
            fault: fault.to_owned(),
            look_up: now.to_string(),
        })
    }
}

impl DnsName<'_> {
    /// Nobody answers for it. Where platform-api's clock is fast, its resolver is told so (SERVFAIL) once it has waited
    /// for five seconds of that clock, for each of the two times that it asks: by its own clock, the true one, it would
    /// wait for five minutes of platform-api's, which no production host does, and hold up all look-ups meanwhile.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn unanswered(&self) -> Result<Fault, FaultError> {
        let wait = self.topology.rate().real(C_LIBRARY);
        let with = if wait < C_LIBRARY.0 {
            NameAnswer::FailureAfter {
                wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            }
        } else {
            NameAnswer::Silence
        };
        self.answer("silence", with).await
    }

    /// There is no such name (NXDOMAIN).
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn unknown(&self) -> Result<Fault, FaultError> {
        self.answer("NXDOMAIN", NameAnswer::Unknown).await
    }

    /// The server fails (SERVFAIL).
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn failing(&self) -> Result<Fault, FaultError> {
        self.answer("SERVFAIL", NameAnswer::Failure).await
    }

    /// It has another address.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn wrong(&self, address: Ipv4Addr) -> Result<Fault, FaultError> {
        self.answer(&format!("address {address}"), NameAnswer::Address { address })
            .await
    }

    /// The answer comes later, by this much real time. The engine's resolver gives up after four seconds.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn late(&self, by: Duration) -> Result<Fault, FaultError> {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.answer(&format!("delay of {by_ms} ms"), NameAnswer::Late { by_ms })
            .await
    }

    async fn answer(&self, word: &str, with: NameAnswer) -> Result<Fault, FaultError> {
        let topology = self.topology;
        let of_machine = topology
            .machines()
            .any(|machine| machine.name().hostname() == self.name);
        let meaning = if of_machine {
            Meaning::may_harm(Bearing::BY_NAME)
        } else {
            Meaning::unknown()
        };
        let mut applying = Applying::new(format!("{word} for the name {}", self.name), meaning);
        let other = if self.name == VPS.hostname() { GPU } else { VPS }.hostname();
        let resolver = Resolver::of(topology, Service::PlatformApi);
        let before = resolver.look_up(&self.name, PATIENCE).await?;
        let other_before = resolver.look_up(&other, PATIENCE).await?;
        let request = Request::Misname {
            name: applying.name.clone(),
            host: self.name.clone(),
            with,
        };
        applying
            .mechanism
            .push(format!("{VPS}: its name server answers {}: {with:?}", self.name));
        applying
            .ask(&VPS, topology.control(&VPS).await?, &request)
            .await?;
        let seen = async {
            let after = resolver.look_up(&self.name, patience(with)).await?;
            if !is_in_effect(with, &before, &after) {
                return Err(not_in_effect(&applying.name, &after));
            }
            let other_after = resolver.look_up(&other, PATIENCE).await?;
            if other_after.found != other_before.found {
                return Err(not_in_effect(&applying.name, &other_after));
            }
            Ok(vec![after.to_string(), other_after.to_string()])
        };
        let observed = match seen.await {
            Ok(observed) => observed,
            Err(error) => return Err(applying.give_up(error).await),
        };
        let mut fault = applying.confirm(&[], topology.deeds().clone()).await?;
        fault.receipt.observed = observed;
        fault.machines = topology.control_directories();
        fault.name_before = Some(NameBefore {
            resolver,
            look_up: before,
        });
        Ok(fault)
    }
}

fn not_in_effect(fault: &str, look_up: &LookUp) -> FaultError {
    FaultError::NameNotInEffect {
        fault: fault.to_owned(),
        look_up: look_up.to_string(),
    }
}

fn patience(with: NameAnswer) -> Duration {
    match with {
        NameAnswer::Late { by_ms } => PATIENCE + Duration::from_millis(by_ms),
        // The resolver asks a failing server again before it says so.
        NameAnswer::Failure => PATIENCE + RESOLVER,
        NameAnswer::FailureAfter { wait_ms } => PATIENCE + RESOLVER + Duration::from_millis(wait_ms),
        _ => PATIENCE,
    }
}

fn is_in_effect(with: NameAnswer, before: &LookUp, after: &LookUp) -> bool {
    match with {
        NameAnswer::Silence => after.found == Found::NoAnswer,
        NameAnswer::Unknown => after.found == Found::Unknown,
        NameAnswer::Failure => after.found == Found::Failure,
        NameAnswer::FailureAfter { wait_ms } => {
            after.found == Found::Failure && after.took >= Duration::from_millis(wait_ms)
        }
        NameAnswer::Address { address } => after.found == Found::Address { address },
        NameAnswer::Late { by_ms } => {
            let late = after.took >= Duration::from_millis(by_ms);
            late && (after.found == before.found || Duration::from_millis(by_ms) >= RESOLVER)
        }
    }
}
