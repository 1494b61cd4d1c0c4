//! What can go wrong with a fault.

use super::end::End;
use super::probe::Probe;
use crate::clock::ClockError;
use crate::control::ControlError;
use crate::engine::EngineError;
use crate::machine::{BootError, MachineName};
use crate::service::Service;
use crate::topology::TopologyError;

/// Why a fault is not in effect, or not healed.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The machine.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A machine that was to come back.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A fault that needs an engine, on a machine that has none.
    #[error("machine {machine} is light: it has no engine; boot it full for this fault ({fault})")]
    Light {
        /// The fault.
        fault: String,
        /// The machine.
        machine: MachineName,
    },
    /// The machine could not apply it.
    #[error("{fault}: {machine} refused it: {reason}")]
    Refused {
        /// The fault.
        fault: String,
        /// The machine.
        machine: MachineName,
        /// Its reason.
        reason: String,
    },
    /// No packets go that way, or none that could be told apart.
    #[error("there is no link from {from} to {to}: {reason}")]
    NoSuchLink {
        /// Where it was to begin.
        from: End,
        /// Where it was to end.
        to: End,
        /// Why not.
        reason: &'static str,
    },
    /// A service that has no network at the moment.
    #[error("{service} does not run, and so has no network that a fault could be in; start it first")]
    NotRunning {
        /// The service.
        service: Service,
    },
    /// A probe's own address.
    #[error(
        "{url:?} cannot be asked for: it is to be http:// or postgres:// and an IPv4 address with a port"
    )]
    BadUrl {
        /// The address.
        url: String,
    },
    /// A loss that lost nothing.
    #[error("{fault} is applied, and of {requests} requests no packet was lost")]
    NothingLost {
        /// The fault.
        fault: String,
        /// How many requests were sent to see it.
        requests: u32,
    },
    /// A name that is answered as before, or another that is not.
    #[error("{fault} is applied and not in effect: {look_up}")]
    NameNotInEffect {
        /// The fault.
        fault: String,
        /// What was seen.
        look_up: String,
    },
    /// A name that is healed and answered otherwise than before.
    #[error("{fault} is healed and still in effect: {look_up}")]
    NameStillInEffect {
        /// The fault.
        fault: String,
        /// What was seen.
        look_up: String,
    },
    /// platform-api's clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// A change of the clock that the clock does not show.
    #[error(
        "platform-api's clock was to show {expected} and is {ahead:+.0} s ahead: either its image {image} is built on musl, statically or on a C library before 2.34, or nothing is preloaded into it (WOPR_CLOCK_LIBRARY in the vps stack's settings)"
    )]
    ClockNotInEffect {
        /// Its image.
        image: String,
        /// What it was to show.
        expected: String,
        /// Seconds that it is ahead of what it would be without a fault.
        ahead: f64,
    },
    /// A change of the clock that could not be seen.
    #[error(
        "{fault} is too small to be seen: platform-api tells its time in whole seconds; six or more will show"
    )]
    TooSmall {
        /// The fault.
        fault: String,
    },
    /// A clock that is healed and not right.
    #[error("{fault} is healed, and the clock is {ahead:+.0} s ahead")]
    ClockStillOff {
        /// The fault.
        fault: String,
        /// Seconds.
        ahead: f64,
    },
    /// A change that is another fault.
    #[error(
        "{fault} cannot be changed to {asked}: only the attributes of a toxic can be changed; begin another fault"
    )]
    NotThatKind {
        /// The fault.
        fault: String,
        /// What it was to become.
        asked: String,
    },
    /// The Toxiproxy sidecar.
    #[error("the Toxiproxy sidecar could not {action}: {reason}")]
    Sidecar {
        /// What was asked of it.
        action: String,
        /// Its words.
        reason: String,
    },
    /// It was applied, and traffic does not show it.
    #[error("{fault} is applied and not in effect: {probe}")]
    NotInEffect {
        /// The fault.
        fault: String,
        /// What was seen.
        probe: Probe,
    },
    /// It was healed, and traffic still shows it.
    #[error("{fault} is healed and still in effect: {probe}")]
    StillInEffect {
        /// The fault.
        fault: String,
        /// What was seen.
        probe: Probe,
    },
}
