//! A look into an image: a container that is never started, whose files can be read.
//!
//! It has a lease and the labels of its owner, as a topology has: where the owner is killed, the next sweep finds
//! that nobody holds it, and removes it.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::CreateContainerOptionsBuilder;
use rand::RngExt as _;

use super::ImageError;
use crate::dirs::{Dirs, make_private};
use crate::engine::{Engine, EngineError, LABEL_OWNER, LABEL_PID, LABEL_TOPOLOGY};
use crate::lease::Held;

/// One that is under way.
pub(super) struct Look<'a> {
    engine: &'a Engine,
    container: String,
    directory: PathBuf,
    /// Held to the end: what nobody holds is anybody's to remove.
    _lease: Held,
}

impl<'a> Look<'a> {
    /// Makes the container.
    pub(super) async fn into(engine: &'a Engine, dirs: &Dirs, image: &str) -> Result<Self, ImageError> {
        let id = format!("look-{:06x}", rand::rng().random_range(0..1 << 24));
        let directory = dirs.run.join(&id);
        make_private(&directory)?;
        // Before anything of it exists.
        let lease = Held::make(&directory).map_err(ImageError::io("make the lease in", &directory))?;
        let look = Self {
            engine,
            container: format!("wopr-{id}"),
            directory,
            _lease: lease,
        };
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            // An image that names no program is looked into as well.
            cmd: Some(vec!["true".to_owned()]),
            labels: Some(HashMap::from([
                (LABEL_TOPOLOGY.to_owned(), id),
                (LABEL_OWNER.to_owned(), dirs.run.display().to_string()),
                (LABEL_PID.to_owned(), std::process::id().to_string()),
            ])),
            ..Default::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(&look.container).build();
        let created = engine.docker().create_container(Some(options), body).await;
        match created.map_err(EngineError::call(format!("look into image {image}"))) {
            Ok(_) => Ok(look),
            Err(error) => {
                look.end().await?;
                Err(error.into())
            }
        }
    }

    /// Its name.
    pub(super) fn container(&self) -> &str {
        &self.container
    }

    /// Removes all of it.
    pub(super) async fn end(self) -> Result<(), ImageError> {
        self.engine.remove_container(&self.container).await?;
        std::fs::remove_dir_all(&self.directory).map_err(ImageError::io("remove", &self.directory))
    }
}
