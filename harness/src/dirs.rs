//! Where the harness keeps things on the host.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A directory that the harness cannot use.
#[derive(Debug, thiserror::Error)]
pub enum DirsError {
    /// No place to keep state.
    #[error(
        "no directory for state: none of WOPR_STATE_DIR, XDG_STATE_HOME and HOME is set; set WOPR_STATE_DIR"
    )]
    NoHome,
    /// The directory is somebody else's.
    #[error("{path} belongs to user {owner}, not to {us}; remove it, or point {variable} elsewhere")]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this.
        us: u32,
        /// What moves it.
        variable: &'static str,
    },
    /// The file system said no.
    #[error("cannot make {path} a private directory: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The checkout is not where it was at build time.
    #[error(
        "no checkout of this project at {0}: fixtures/ and local/ are not there; set WOPR_ROOT to its root"
    )]
    NoCheckout(PathBuf),
}

/// The harness's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Root of the checkout: `fixtures/`, `local/` and `models/` are below it.
    pub root: PathBuf,
    /// Locks and generated settings; survives a reboot.
    pub state: PathBuf,
    /// Control directories of running machines. Short, since a Unix socket's path has 107 bytes.
    pub run: PathBuf,
}

impl Dirs {
    /// Finds and makes them: `WOPR_ROOT`, `WOPR_STATE_DIR` and `WOPR_RUN_DIR` override the defaults.
    ///
    /// # Errors
    /// [`DirsError`] when one cannot be made, or is not private to this user.
    pub fn find() -> Result<Self, DirsError> {
        let env = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let root = env("WOPR_ROOT").unwrap_or_else(|| {
            let package = Path::new(env!("CARGO_MANIFEST_DIR"));
            package.parent().unwrap_or(package).to_owned()
        });
        if !root.join("local/docker-compose.yml").is_file() {
            return Err(DirsError::NoCheckout(root));
        }
        let state = env("WOPR_STATE_DIR")
            .or_else(|| Some(env("XDG_STATE_HOME")?.join("wopr")))
            .or_else(|| Some(env("HOME")?.join(".local/state/wopr")))
            .ok_or(DirsError::NoHome)?;
        let uid = rustix::process::getuid().as_raw();
        let run = env("WOPR_RUN_DIR")
            .or_else(|| Some(env("XDG_RUNTIME_DIR")?.join("wopr")))
            .unwrap_or_else(|| PathBuf::from(format!("/tmp/wopr-{uid}")));
        private(&state, "WOPR_STATE_DIR")?;
        private(&run, "WOPR_RUN_DIR")?;
        Ok(Self { root, state, run })
    }

    /// The same with the control directories elsewhere.
    ///
    /// # Errors
    /// [`DirsError`] when that cannot be made, or is not private to this user.
    pub(crate) fn running_in(mut self, run: PathBuf) -> Result<Self, DirsError> {
        private(&run, "the topology's run directory")?;
        self.run = run;
        Ok(self)
    }

    /// Control directories of the topology by hand, under a short name: those in the checkout may lie
    /// too deep for a socket's path.
    ///
    /// # Errors
    /// [`DirsError::Io`].
    pub fn by_hand_control(&self) -> Result<PathBuf, DirsError> {
        let (target, link) = (self.root.join("local/.run"), self.run.join("by-hand"));
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| DirsError::Io { path, source }
        };
        private(&target, "WOPR_ROOT")?;
        if std::fs::read_link(&link).ok().as_ref() != Some(&target) {
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(&target, &link).map_err(io(&link))?;
        }
        Ok(link)
    }

    /// Where the tiny models are.
    pub fn tiny_models(&self) -> PathBuf {
        self.root.join("models/tiny")
    }
}

/// Makes `path`, readable by its owner alone, and insists that it is this user's: /tmp is open to
/// all, and whoever owned the directory could take the engines' sockets.
fn private(path: &Path, variable: &'static str) -> Result<(), DirsError> {
    let io = |source| DirsError::Io {
        path: path.to_owned(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io)?;
    let owner = std::fs::symlink_metadata(path).map_err(io)?.uid();
    let us = rustix::process::getuid().as_raw();
    if owner != us {
        return Err(DirsError::NotOurs {
            path: path.to_owned(),
            owner,
            us,
            variable,
        });
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(io)
}

/// Makes a directory below one of ours, private.
///
/// # Errors
/// [`DirsError::Io`].
pub(crate) fn make_private(path: &Path) -> Result<(), DirsError> {
    private(path, "WOPR_RUN_DIR")
}
