//! Named volumes.

use std::collections::HashMap;

use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptionsBuilder};

use super::error::absent_is_fine;
use super::{Engine, EngineError};

impl Engine {
    /// Makes a volume with labels; one of that name that is there already is kept as it is.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn create_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), EngineError> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..Default::default()
        };
        let made = self.docker().create_volume(request).await;
        made.map(drop)
            .map_err(EngineError::call(format!("make volume {name}")))
    }

    /// Whether a volume is there.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn has_volume(&self, name: &str) -> Result<bool, EngineError> {
        let found = self.docker().inspect_volume(name).await;
        match found.map_err(EngineError::call(format!("look at volume {name}"))) {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(404) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a volume; one that is not there is fine.
    ///
    /// # Errors
    /// [`EngineError::Call`], as when a container uses it.
    pub async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveVolumeOptionsBuilder::new().build();
        let removed = self.docker().remove_volume(name, Some(options)).await;
        absent_is_fine(removed.map_err(EngineError::call(format!("remove volume {name}"))))
    }

    /// Names of the volumes that begin so.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn volumes_with_prefix(&self, prefix: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("name", vec![prefix])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let listed = self.docker().list_volumes(Some(options)).await;
        let volumes = listed
            .map_err(EngineError::call("list volumes"))?
            .volumes
            .unwrap_or_default();
        // The engine looks for it anywhere in the name.
        Ok(volumes
            .into_iter()
            .map(|volume| volume.name)
            .filter(|name| name.starts_with(prefix))
            .collect())
    }

    /// Names of the volumes with a label, newest first.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn volumes_by_age(&self, label: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let listed = self.docker().list_volumes(Some(options)).await;
        let mut volumes = listed
            .map_err(EngineError::call("list volumes"))?
            .volumes
            .unwrap_or_default();
        // RFC 3339 in one zone: the order of the text is that of time.
        volumes.sort_by_key(|volume| std::cmp::Reverse(volume.created_at.as_ref().map(ToString::to_string)));
        Ok(volumes.into_iter().map(|volume| volume.name).collect())
    }

    /// Names of the volumes with a label, `key=value` or `key`.
    ///
    /// # Errors
    /// [`EngineError::Call`].
    pub async fn volumes_with_label(&self, label: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let listed = self.docker().list_volumes(Some(options)).await;
        let listed = listed.map_err(EngineError::call("list volumes"))?;
        Ok(listed
            .volumes
            .unwrap_or_default()
            .into_iter()
            .map(|v| v.name)
            .collect())
    }
}
