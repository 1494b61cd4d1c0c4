//! What can go wrong with the cloud.

use crate::control::ControlError;
use crate::engine::EngineError;
use crate::machine::{BootError, MachineName};
use crate::topology::TopologyError;

/// Why the cloud was not reached, or an order not followed.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// A machine's first process.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A machine that was to be made.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A machine that was to come back.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// More droplets than places.
    #[error(
        "no machine is free for droplet {droplet}: the rack has {places} places; ask the builder for more"
    )]
    NoRoom {
        /// The droplet.
        droplet: u64,
        /// Places of the rack, taken ones too.
        places: usize,
    },
    /// A droplet that a test wrote into a row by hand.
    #[error("no machine is droplet {droplet}: tell the operator which, by Conduct::machine")]
    NoMachine {
        /// The droplet.
        droplet: u64,
    },
    /// What cloud-init was to run.
    #[error("the user_data of {machine} is not what cloud-init takes: {reason}")]
    UserData {
        /// The machine.
        machine: MachineName,
        /// Why.
        reason: String,
    },
    /// A file of the machine's.
    #[error("cannot {action} for {machine}: {source}")]
    File {
        /// The machine.
        machine: MachineName,
        /// As `write cloud-init's script`.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Something of a machine that was removed is there when it is read back.
    #[error("{what} of droplet {droplet} is removed and still there")]
    Left {
        /// The droplet.
        droplet: u64,
        /// Container or volume.
        what: String,
    },
}
