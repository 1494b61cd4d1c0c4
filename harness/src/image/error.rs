//! What can go wrong in the making of images.

use std::path::PathBuf;

use crate::control::ControlError;
use crate::dirs::DirsError;
use crate::engine::EngineError;

/// Why an image or a golden volume could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The engine's part failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A machine's part failed.
    #[error("making the golden volume failed: {0}")]
    Machine(#[from] ControlError),
    /// A directory's part failed.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// The disk has no room for it.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskFull),
    /// An input cannot be read.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The binaries that go into the images did not build.
    #[error("`{command}` ended with {status}:\n{stderr}")]
    Cargo {
        /// The command.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its last lines.
        stderr: String,
    },
    /// There is no base image, and no way to make one.
    #[error(
        "no base image {image}: it could not be pulled ({pull}), and mmdebstrap {mmdebstrap}; install the Debian package mmdebstrap and run as root, or load the image"
    )]
    NoBase {
        /// The image.
        image: &'static str,
        /// Why it could not be pulled.
        pull: String,
        /// How mmdebstrap ended.
        mmdebstrap: String,
    },
    /// platform-api's clock cannot be run fast in this image.
    #[error(
        "platform-api's clock cannot run at another rate in image {image}: its program {program} is {loader}, and what is preloaded for that needs glibc; run it at WOPR_CLOCK_RATE=1, or choose an image that is built on glibc 2.34 or later"
    )]
    NotPreloadable {
        /// The image.
        image: String,
        /// The program that it runs.
        program: String,
        /// What it is.
        loader: super::Loader,
    },
    /// The tiny models could not be made.
    #[error(transparent)]
    Models(#[from] wopr_models::tiny::TinyError),
    /// A service did not become healthy on a machine that makes a golden volume.
    #[error("while the golden volume was made, {service} on {machine} did not become healthy within {} s ({answer}); its last words:\n{log}", .patience.as_secs())]
    Unhealthy {
        /// The service.
        service: String,
        /// The machine.
        machine: String,
        /// How long it was given.
        patience: std::time::Duration,
        /// The last answer to the question for its health.
        answer: String,
        /// The end of its log.
        log: String,
    },
}

impl ImageError {
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
