//! Images: what the machines and their services are made of, and the golden volume that a machine
//! boots from. Made when their inputs change, and only then.

mod base;
mod built;
mod errand;
mod error;
mod fixtures;
mod golden;
mod inputs;
mod loader;
mod parcel;
mod stock;

use std::collections::BTreeMap;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::dirs::Dirs;
use crate::engine::{Engine, EngineError, LABEL_MAKER};
use crate::machine::{GOLDEN_PREFIX, golden_volume};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::service::Service;
use crate::settings::StackSettings;

pub use error::ImageError;
pub use loader::Loader;
pub use parcel::{load, save};
pub use stock::{Policy, Stocked, list};

/// Images that belong together, and the golden volume made of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    /// Twelve hex digits: a digest of every image and of all that shaped the golden volume.
    pub id: String,
    /// Image of a machine.
    pub machine: String,
    /// Image of the Toxiproxy sidecar: ours, or that of `WOPR_TOXIPROXY_IMAGE`.
    pub toxiproxy: String,
    /// Image of each service.
    pub services: BTreeMap<Service, String>,
    /// All of them, and what they are made from.
    pub(crate) images: Vec<String>,
}

impl ImageSet {
    /// Name of its golden volume.
    pub fn golden(&self) -> String {
        golden_volume(&self.id)
    }

    /// The image that says, by being there, that the golden volume is complete.
    fn seal(&self) -> String {
        seal(&self.id)
    }
}

fn seal(id: &str) -> String {
    format!("wopr/golden:{id}")
}

/// Golden volumes that `maker` began and has not sealed; the keeper looks for them in the same way.
pub(crate) async fn half_made(engine: &Engine, maker: &str) -> Result<Vec<String>, EngineError> {
    let mut half_made = Vec::new();
    for volume in engine
        .volumes_with_label(&format!("{LABEL_MAKER}={maker}"))
        .await?
    {
        let id = volume.strip_prefix(GOLDEN_PREFIX).unwrap_or(&volume);
        if engine.image(&seal(id)).await?.is_none() {
            half_made.push(volume);
        }
    }
    Ok(half_made)
}

/// Makes what is missing of the images and the golden volume of a profile. Takes seconds to minutes
/// the first time, and milliseconds when all is there. Several processes may call it at once: one
/// builds, the others wait.
///
/// # Errors
/// [`ImageError`] with what failed and what to do; nothing half-made is taken for whole later.
pub async fn ensure(
    engine: &Engine,
    dirs: &Dirs,
    profile: &Profile,
    settings: &StackSettings,
    progress: &Progress,
) -> Result<ImageSet, ImageError> {
    let _held = crate::engine::lock_file(&lock(dirs)).await?;
    // The golden GPU machine boots on them, and so does every topology that chooses no other.
    wopr_models::tiny::write_all(&dirs.tiny_models())?;
    let built = built::ensure(engine, dirs, profile, progress).await?;
    let mut services = BTreeMap::new();
    let mut digest = Sha256::new();
    digest.update(&built.machine);
    for service in Service::ALL {
        let image = match profile.chosen(service) {
            Some(image) => image.to_owned(),
            None => built.services.get(&service).cloned().unwrap_or_default(),
        };
        digest.update(service.name());
        digest.update(&image);
        digest.update(chosen_id(engine, profile, service, &image, progress).await?);
        services.insert(service, image);
    }
    for file in ["local/vps/docker-compose.yml", "local/gpu/docker-compose.yml"] {
        digest.update(inputs::read(&dirs.root.join(file))?);
    }
    digest.update(settings.digest());
    let set = ImageSet {
        id: hex::encode(digest.finalize())[..12].to_owned(),
        machine: built.machine.clone(),
        toxiproxy: profile.toxiproxy().unwrap_or(&built.toxiproxy).to_owned(),
        images: all_images(&built, &services),
        services,
    };
    match golden::ensure(engine, dirs, &set, settings, progress).await? {
        golden::Made::Before => stock::note(dirs, &set, None)?,
        golden::Made::Now { bytes } => {
            stock::note(dirs, &set, Some(bytes))?;
            stock::prune(engine, dirs, Policy::AUTOMATIC).await?;
        }
    }
    Ok(set)
}

/// Refuses a profile whose platform-api cannot be told the time: one that somebody chose and that is built on musl
/// or statically. By looking into the image, before anything is booted from it.
///
/// # Errors
/// [`ImageError::NotPreloadable`], [`ImageError::Engine`].
pub async fn check_clock(
    engine: &Engine,
    dirs: &Dirs,
    profile: &Profile,
    progress: &Progress,
) -> Result<(), ImageError> {
    let Some(image) = profile.chosen(Service::PlatformApi) else {
        return Ok(());
    };
    let _held = crate::engine::lock_file(&lock(dirs)).await?;
    chosen_id(engine, profile, Service::PlatformApi, image, progress).await?;
    loader::check(engine, dirs, image).await
}

fn all_images(built: &built::Built, services: &BTreeMap<Service, String>) -> Vec<String> {
    let own = [&built.machine, &built.flat, &built.toxiproxy];
    let mut images: Vec<String> = own.into_iter().chain(services.values()).cloned().collect();
    images.sort();
    images.dedup();
    images
}

/// The id of a chosen image, which is pulled when it is not on the host: `:latest` moves, and a set
/// made of an older one must not be taken for this one.
async fn chosen_id(
    engine: &Engine,
    profile: &Profile,
    service: Service,
    image: &str,
    progress: &Progress,
) -> Result<String, ImageError> {
    if let Some(found) = engine.image(image).await? {
        return Ok(found.id.unwrap_or_default());
    }
    let task = progress.begin(format!("pulling {image} for {service}"));
    let login = profile.login().map(|login| bollard::auth::DockerCredentials {
        username: Some(login.username.clone()),
        password: Some(login.password.clone()),
        serveraddress: login.server.clone(),
        ..Default::default()
    });
    engine.pull(image, login).await?;
    task.done();
    Ok(engine
        .image(image)
        .await?
        .and_then(|found| found.id)
        .unwrap_or_default())
}

/// Removes image sets that a policy does not keep and nothing runs on, with those of their images that no other
/// set has; returns them.
///
/// # Errors
/// [`ImageError::Engine`].
pub async fn prune(engine: &Engine, dirs: &Dirs, policy: Policy) -> Result<Vec<Stocked>, ImageError> {
    let _held = crate::engine::lock_file(&lock(dirs)).await?;
    stock::prune(engine, dirs, policy).await
}

/// Processes that make or remove images hold it.
fn lock(dirs: &Dirs) -> PathBuf {
    dirs.state.join("images.lock")
}

/// Removes an image set's golden volume; its images stay, since other sets share them.
///
/// # Errors
/// [`ImageError::Engine`], as when a topology runs on it.
pub async fn remove(engine: &Engine, id: &str) -> Result<(), ImageError> {
    // The seal first: a volume without one is never taken for whole.
    engine.remove_image(&seal(id)).await?;
    Ok(engine.remove_volume(&golden_volume(id)).await?)
}
