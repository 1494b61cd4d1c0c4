//! What the harness makes on an engine for a short while, apart from topologies: a look into an image, machines that
//! make a golden volume.
//!
//! It has a lease, a keeper and the labels of its owner, as a topology has: where the owner is killed, all of it goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::RngExt as _;

use super::ImageError;
use crate::dirs::{Dirs, make_private};
use crate::engine::{Engine, LABEL_OWNER, LABEL_PID, LABEL_TOPOLOGY};
use crate::keeper;
use crate::lease::Held;

/// One that is under way.
pub(super) struct Errand {
    id: String,
    owner: String,
    directory: PathBuf,
    /// Held to the end: what nobody holds is anybody's to remove.
    _lease: Held,
}

impl Errand {
    /// Begins one of a kind, as `look`, before anything of it exists. Its id is its own: what removes a dead one must
    /// not find another under its name.
    pub(super) fn begin(engine: &Engine, dirs: &Dirs, kind: &str) -> Result<Self, ImageError> {
        let id = format!("{kind}-{:06x}", rand::rng().random_range(0..1 << 24));
        let directory = dirs.run.join(&id);
        let keeper = keeper::start(&id, &directory, engine.socket(), Duration::ZERO);
        let keeper = keeper.map_err(ImageError::io("start a keeper for", &directory))?;
        make_private(&directory)?;
        let lease = Held::make(&directory).map_err(ImageError::io("make the lease in", &directory))?;
        drop(keeper);
        Ok(Self {
            id,
            owner: dirs.run.display().to_string(),
            directory,
            _lease: lease,
        })
    }

    /// What its labels and names bear.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Where it keeps its files.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Name of what it makes: of a container, or a volume.
    pub(super) fn name(&self, part: &str) -> String {
        format!("wopr-{}-{part}", self.id)
    }

    /// Labels of its containers.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (LABEL_TOPOLOGY.to_owned(), self.id.clone()),
            (LABEL_OWNER.to_owned(), self.owner.clone()),
            (LABEL_PID.to_owned(), std::process::id().to_string()),
        ])
    }

    /// Ends it, once what it made is removed.
    pub(super) fn end(self) -> Result<(), ImageError> {
        std::fs::remove_dir_all(&self.directory).map_err(ImageError::io("remove", &self.directory))
    }
}
