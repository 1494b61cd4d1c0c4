//! What can go wrong with a topology.

use std::path::PathBuf;
use std::time::Duration;

use super::Leftovers;
use crate::control::ControlError;
use crate::dirs::DirsError;
use crate::engine::EngineError;
use crate::image::ImageError;
use crate::machine::{BY_HAND, BootError, MachineName};
use crate::privilege::PrivilegeError;
use crate::service::Service;
use crate::settings::SettingsError;

/// Why a topology is not up, or not gone.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// More machines than a topology's network has addresses for.
    #[error("{asked} GPU machines are too many: a topology's network has addresses for {most}")]
    TooManyMachines {
        /// How many were asked for.
        asked: usize,
        /// How many there can be.
        most: usize,
    },
    /// A directory of the harness.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// The host's engine, or a machine's.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The stacks' settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// What machines may do to the host.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// A machine's first process.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A machine that was to come back.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A machine did not boot.
    #[error("{source}\nthe machine's last words:\n{log}")]
    Machine {
        /// Why.
        source: ControlError,
        /// The end of its log.
        log: String,
    },
    /// A model file that the GPU stack is set to use.
    #[error("model {path}, which {variable} in the gpu stack's settings names, {reason}")]
    Model {
        /// The file.
        path: PathBuf,
        /// The setting.
        variable: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A service did not become healthy.
    #[error(
        "{service} on {machine} did not become healthy within {:.0} s: {answer}; its last words:\n{log}",
        .waited.as_secs_f64()
    )]
    Unhealthy {
        /// The service.
        service: Service,
        /// Its machine.
        machine: String,
        /// How long it was given.
        waited: Duration,
        /// The last answer to the question for its health.
        answer: String,
        /// The end of its log.
        log: String,
    },
    /// The database did not do what it was asked.
    #[error("cannot {action}: {source}")]
    Database {
        /// What was asked.
        action: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// platform-api's clock.
    #[error(transparent)]
    Clock(#[from] crate::clock::ClockError),
    /// The disk has no room for two machines.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskFull),
    /// A setting in the environment.
    #[error(transparent)]
    Environment(#[from] crate::env::BadNumber),
    /// local/.env.
    #[error(transparent)]
    ByHand(#[from] crate::by_hand::ByHandError),
    /// No topology was started by hand.
    #[error("no topology is up: `wopr up` starts one")]
    NotUp,
    /// Machines of a test's topology ended by themselves, or were removed.
    #[error("topology {topology} does not run any more: {} ended, as in a restart of the host's engine", names(.machines))]
    Off {
        /// Its id.
        topology: String,
        /// The machines.
        machines: Vec<MachineName>,
    },
    /// A file of the topology could not be made or removed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something of it would not go.
    #[error("topology {topology} is not gone: {leftovers} left{}; {} tries again", because(.refusal), remover(.topology))]
    Leftovers {
        /// Its id.
        topology: String,
        /// What is left.
        leftovers: Box<Leftovers>,
        /// Why the last of it would not go, where the engine said so.
        refusal: Option<Box<EngineError>>,
    },
}

fn because(refusal: &Option<Box<EngineError>>) -> String {
    refusal
        .as_ref()
        .map_or(String::new(), |error| format!(", since {error}"))
}

/// The command that removes a topology.
fn remover(topology: &str) -> &'static str {
    if topology == BY_HAND {
        "`wopr down`"
    } else {
        "`wopr reap`"
    }
}

fn names(machines: &[MachineName]) -> String {
    let names: Vec<_> = machines.iter().map(MachineName::as_str).collect();
    names.join(" and ")
}

impl TopologyError {
    pub(crate) fn database(action: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { action, source }
    }

    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
