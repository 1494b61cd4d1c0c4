//! What can go wrong between the harness and an engine.

use std::path::PathBuf;

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine is on another host.
    #[error(
        "DOCKER_HOST is {host}: machines share directories with the tests, so the engine has to be local; unset it or point it at a unix:// socket"
    )]
    NotLocal {
        /// The value of `DOCKER_HOST`.
        host: String,
    },
    /// Nothing answers at the socket.
    #[error(
        "no Docker engine answers at {socket}: {source}; start one (./ci/up does), or set DOCKER_HOST, or join the group that owns the socket"
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: bollard::errors::Error,
    },
    /// A machine that has no engine.
    #[error("machine {machine} is light: it has no engine; boot it full to look into its containers")]
    Light {
        /// The machine.
        machine: String,
    },
    /// A call failed.
    #[error("the engine could not {action}: {}", words(.source))]
    Call {
        /// What was asked of it.
        action: String,
        /// Why it failed.
        source: bollard::errors::Error,
    },
    /// A container could not be started.
    #[error("the engine could not start {container}: {source}")]
    Start {
        /// Name of the container.
        container: String,
        /// Why.
        source: Box<testcontainers::TestcontainersError>,
    },
    /// A port of the host is in use.
    #[error(
        "port {port} on 127.0.0.1 is taken{holder}: {container} needs it; free it, or choose another with {variable}"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// ` by nginx (pid 7)` where that can be known, else empty.
        holder: String,
        /// The container that wants it.
        container: String,
        /// The setting that moves it.
        variable: &'static str,
    },
    /// An image is not there.
    #[error("image {image} is not on this host and could not be pulled: {reason}")]
    NoImage {
        /// The image.
        image: String,
        /// The engine's words.
        reason: String,
    },
    /// A container has no address.
    #[error("{container} has no address: it does not run, or is on no network")]
    NoAddress {
        /// The container.
        container: String,
    },
    /// An image's build failed.
    #[error("building image {image} failed at {step}: {reason}")]
    Build {
        /// The image.
        image: String,
        /// The last step that began.
        step: String,
        /// The engine's words and the last lines of output.
        reason: String,
    },
    /// Every subnet is in use.
    #[error("no free /26 in {range}: {taken} networks are in use; `wopr ps` lists the topologies")]
    NoSubnet {
        /// The range that subnets are taken from.
        range: String,
        /// How many are taken.
        taken: usize,
    },
    /// Every address of a network is in use.
    #[error("no free address on network {network}: {taken} are in use")]
    NoFreeAddress {
        /// The network.
        network: String,
        /// How many are taken.
        taken: usize,
    },
    /// A file of ours could not be used.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The client's own words for a connection that cannot be made or ends, `client error (Connect)`, do not say why.
fn words(error: &bollard::errors::Error) -> String {
    if matches!(error, bollard::errors::Error::DockerResponseServerError { .. }) {
        return error.to_string();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let (outer, inner) = (error.to_string(), cause.to_string());
    if outer.ends_with(&inner) {
        outer
    } else {
        format!("{outer}: {inner}")
    }
}

impl EngineError {
    pub(crate) fn call(action: impl Into<String>) -> impl FnOnce(bollard::errors::Error) -> Self {
        let action = action.into();
        move |source| Self::Call { action, source }
    }

    /// The status code of the engine's answer, where there was one.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Call {
                source: bollard::errors::Error::DockerResponseServerError { status_code, .. },
                ..
            } => Some(*status_code),
            _ => None,
        }
    }
}

impl EngineError {
    /// Whether what was to be removed is in use.
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }

    /// Whether the engine refuses to remove a network that something is attached to.
    pub(crate) fn is_in_use(&self) -> bool {
        self.status() == Some(403)
    }
}

/// Takes "it is not there" (404) for done: what is removed may be gone already.
pub(crate) fn absent_is_fine(result: Result<(), EngineError>) -> Result<(), EngineError> {
    match result {
        Err(error) if error.status() == Some(404) => Ok(()),
        other => other,
    }
}
