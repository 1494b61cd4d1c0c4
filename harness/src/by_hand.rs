//! What the topology by hand needs on disk: local/.env, which tells compose the image set, the ports
//! and the models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use wopr_machine::envfile::{self, EnvFileError, Settings};

use crate::dirs::{self, Dirs, DirsError};
use crate::image::ImageSet;
use crate::machine::{MachineName, PORTS};

/// Why local/.env could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ByHandError {
    /// It is broken.
    #[error(transparent)]
    File(#[from] EnvFileError),
    /// The control directories.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// A port that is none.
    #[error("{variable} is {value:?}, which is no port: a number from 1 to 65535 is")]
    Port {
        /// The setting.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// It could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn file(dirs: &Dirs) -> PathBuf {
    dirs.root.join("local/.env")
}

/// The settings in local/.env; none when there is no such file.
///
/// # Errors
/// [`ByHandError::File`].
pub fn settings(dirs: &Dirs) -> Result<Settings, ByHandError> {
    let path = file(dirs);
    if !path.exists() {
        return Ok(Settings::new());
    }
    Ok(envfile::read(&path)?)
}

/// Ports in place of the usual ones, by the variable that chooses them: from local/.env, and above it from
/// the environment, as compose reads them.
///
/// # Errors
/// [`ByHandError::Port`], [`ByHandError::File`].
pub fn ports(dirs: &Dirs) -> Result<BTreeMap<String, u16>, ByHandError> {
    let file = settings(dirs)?;
    let mut ports = BTreeMap::new();
    for (_, variable) in PORTS {
        let own = std::env::var(variable).ok().filter(|value| !value.is_empty());
        if let Some(value) = own.or_else(|| file.get(variable).cloned()) {
            let port = value.parse().map_err(|_| ByHandError::Port { variable, value })?;
            ports.insert(variable.to_owned(), port);
        }
    }
    Ok(ports)
}

/// Machines beyond the two that compose knows, which `wopr up` made or made room for: each has a directory beside
/// theirs.
pub(crate) fn others(dirs: &Dirs) -> impl Iterator<Item = MachineName> + use<> {
    let entries = std::fs::read_dir(dirs.root.join("local/.run"))
        .into_iter()
        .flatten();
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    names.filter(|name: &MachineName| name.number().is_some_and(|number| number > 1))
}

/// Forgets those.
///
/// # Errors
/// [`ByHandError::Write`] with a directory that would not go.
pub(crate) fn forget_others(dirs: &Dirs) -> Result<(), ByHandError> {
    for name in others(dirs) {
        let path = dirs.root.join("local/.run").join(name.as_str());
        std::fs::remove_dir_all(&path).map_err(|source| ByHandError::Write { path, source })?;
    }
    Ok(())
}

/// Writes into local/.env what compose has to know of an image set. Lines of a person's own stay.
///
/// # Errors
/// [`ByHandError`].
pub fn write_env(dirs: &Dirs, set: &ImageSet) -> Result<(), ByHandError> {
    let path = file(dirs);
    settings(dirs)?;
    // Before compose makes them, which would not make them private.
    for machine in ["vps", "gpu"] {
        dirs::make_private(&dirs.root.join("local/.run").join(machine))?;
    }
    let own = [
        ("WOPR_MACHINE_IMAGE", set.machine.clone()),
        ("WOPR_IMAGE_SET", set.id.clone()),
        ("WOPR_SOCKET_GID", rustix::process::getgid().as_raw().to_string()),
    ];
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let text = if text.is_empty() { HEAD.to_owned() } else { text };
    let is_own = |line: &&str| {
        own.iter()
            .any(|(key, _)| line.trim_start().starts_with(&format!("{key}=")))
    };
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !is_own(line))
        .map(str::to_owned)
        .collect();
    lines.extend(own.iter().map(|(key, value)| format!("{key}={value}")));
    let written = replace(&path, &format!("{}\n", lines.join("\n")));
    written.map_err(|source| ByHandError::Write { path, source })
}

const HEAD: &str = "# Read by docker compose. The WOPR_MACHINE_IMAGE, WOPR_IMAGE_SET and WOPR_SOCKET_GID lines are written\n\
     # by `wopr images build` and `wopr up`; others are yours: WOPR_API_PORT, WOPR_HTTP_PORT, WOPR_LLAMA_PORT,\n\
     # WOPR_CHATTERBOX_PORT, WOPR_WHISPER_PORT, WOPR_QWEN_PORT, WOPR_MODELS_DIR, WOPR_DNS_OTHERS.\n";

/// In one step: an interrupted write leaves the old file.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let partial = path.with_extension(format!("env.{}", std::process::id()));
    std::fs::write(&partial, text)?;
    std::fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persons_own_lines_stay() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("local")).unwrap();
        let dirs = Dirs {
            root: root.path().into(),
            state: "/".into(),
            run: "/".into(),
        };
        let set = |id: &str| ImageSet {
            images: Vec::new(),
            id: id.into(),
            machine: "wopr/machine:1".into(),
            toxiproxy: String::new(),
            services: Default::default(),
        };
        write_env(&dirs, &set("one")).unwrap();
        let path = root.path().join("local/.env");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}WOPR_API_PORT=3101\n")).unwrap();
        write_env(&dirs, &set("two")).unwrap();
        let settings = settings(&dirs).unwrap();
        assert_eq!(settings["WOPR_IMAGE_SET"], "two");
        assert_eq!(settings["WOPR_API_PORT"], "3101");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches("WOPR_IMAGE_SET=").count(), 1, "{text}");
    }
}
