//! Settings of the two stacks as tests run them: made once per user from local/*/.env.example, with
//! secrets of their own, so that no test sees what is in a person's `.env`.

mod secrets;

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use wopr_machine::envfile::{self, EnvFileError, Settings};
use wopr_machine::paths::{self, STACK_ENV};

use crate::dirs::{Dirs, DirsError};
use crate::machine::Role;

pub use secrets::{MASK, Secrets, is_secret};

/// Why settings could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file of settings.
    #[error(transparent)]
    File(#[from] EnvFileError),
    /// The directory that it lies in.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// A setting that has to be there is not.
    #[error("the {role} stack's settings have no {name}; see local/{role}/.env.example")]
    Missing {
        /// Which stack.
        role: Role,
        /// The variable.
        name: &'static str,
    },
    /// They could not be handed to a machine.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Settings of both stacks. Holds secrets: it is shown without values.
#[derive(Clone, PartialEq, Eq)]
pub struct StackSettings {
    stacks: BTreeMap<Role, Settings>,
}

impl std::fmt::Debug for StackSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |settings: &Settings| settings.keys().cloned().collect::<Vec<_>>();
        f.debug_map()
            .entries(self.stacks.iter().map(|(role, settings)| (role, names(settings))))
            .finish()
    }
}

impl StackSettings {
    /// Those of the tests of this user; made when they are not there.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn for_tests(dirs: &Dirs) -> Result<Self, SettingsError> {
        let mut stacks = BTreeMap::new();
        for role in [Role::Vps, Role::Gpu] {
            let example = dirs.root.join(format!("local/{role}/.env.example"));
            let text = std::fs::read(&example).unwrap_or_default();
            // A changed example gets a file of its own: an older one would lack what it adds.
            let id = &hex::encode(Sha256::digest(&text))[..8];
            let file = dirs.state.join(format!("{role}-{id}.env"));
            envfile::generate_once(&example, &file)?;
            stacks.insert(role, envfile::read(&file)?);
        }
        Ok(for_observation(Self { stacks }))
    }

    /// Those of the topology by hand: `local/vps/.env` and `local/gpu/.env`, made when they are not
    /// there and never overwritten.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn by_hand(dirs: &Dirs) -> Result<Self, SettingsError> {
        let mut stacks = BTreeMap::new();
        for role in [Role::Vps, Role::Gpu] {
            let directory = dirs.root.join(format!("local/{role}"));
            let file = directory.join(".env");
            envfile::generate_once(&directory.join(".env.example"), &file)?;
            stacks.insert(role, envfile::read(&file)?);
        }
        Ok(Self { stacks })
    }

    /// A stack's settings.
    pub fn of(&self, role: Role) -> Settings {
        self.stacks.get(&role).cloned().unwrap_or_default()
    }

    /// One value, which must be there.
    ///
    /// # Errors
    /// [`SettingsError::Missing`].
    pub fn value(&self, role: Role, name: &'static str) -> Result<&str, SettingsError> {
        let found = self.stacks.get(&role).and_then(|settings| settings.get(name));
        found
            .map(String::as_str)
            .ok_or(SettingsError::Missing { role, name })
    }

    /// The same with one value changed.
    #[must_use]
    pub fn with(mut self, role: Role, name: &str, value: &str) -> Self {
        self.stacks
            .entry(role)
            .or_default()
            .insert(name.to_owned(), value.to_owned());
        self
    }

    /// Digest of all values: part of what a golden volume is made from.
    pub(crate) fn digest(&self) -> Vec<u8> {
        let mut hash = Sha256::new();
        for (role, settings) in &self.stacks {
            hash.update(format!("{role:?} {settings:?}"));
        }
        hash.finalize().to_vec()
    }

    /// Writes a stack's settings into a machine's control directory, which is private; the file is
    /// private itself.
    pub(crate) fn hand_over(&self, role: Role, control: &Path) -> Result<(), SettingsError> {
        let path = control.join(STACK_ENV);
        let written = envfile::write_private(&path, &self.of(role));
        written.map_err(|source| SettingsError::Write { path, source })
    }
}

/// What tests look at: platform-api's time can run faster, and its webhooks and cloud calls go to the
/// VPS machine's recorder. By address: no fault of names is to touch them.
fn for_observation(settings: StackSettings) -> StackSettings {
    let recorder = format!("http://{}:{}", paths::DNS_ADDRESS, paths::RECORDER_PORT);
    let library = |name: &str| format!("{}/{}/{name}", paths::CONTROL, paths::CLOCK);
    let preloaded = [paths::WALL_LIBRARY, paths::CLOCK_LIBRARY].map(library).join(":");
    settings
        .with(Role::Vps, "ADMIN_WEBHOOK_URL", &format!("{recorder}/hooks/gpu"))
        .with(Role::Vps, "WOPR_CLOCK_LIBRARY", &preloaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_shown_without_their_values() {
        let settings = StackSettings {
            stacks: BTreeMap::new(),
        }
        .with(Role::Vps, "TOKEN", "hunter2");
        let shown = format!("{settings:?}");
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_is_handed_over_reads_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let settings = StackSettings {
            stacks: BTreeMap::new(),
        }
        .with(Role::Gpu, "A", "two words # not a note")
        .with(Role::Gpu, "B", "say \"hi\"");
        settings.hand_over(Role::Gpu, dir.path()).unwrap();
        let back = envfile::read(&dir.path().join(STACK_ENV)).unwrap();
        assert_eq!(back, settings.of(Role::Gpu));
    }
}
