//! The golden volume of an image set: made once, by machines that boot for this alone.
//!
//! First an engine loads every image into the volume. Then, for each kind of machine, an engine on
//! those images brings its stack up, waits until all of it is healthy (the database is migrated by
//! then), stops, and keeps its state. A seal is set last: a volume without one is made anew.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use wopr_machine::paths::{self, IMAGES_ENV};
use wopr_machine::protocol::Request;

use super::errand::Errand;
use super::{ImageError, ImageSet};
use crate::control::Control;
use crate::dirs::{self, Dirs};
use crate::engine::{ContainerSpec, Engine, LABEL_IMAGE_SET, LABEL_MAKER, MountSpec, Privilege};
use crate::machine::{Role, engine_socket};
use crate::progress::{Progress, Task};
use crate::service::{Health, Service};
use crate::settings::StackSettings;

/// The slowest, a production platform-api, takes 4 s with its migrations; this is for a busy host.
const HEALTH_PATIENCE: Duration = Duration::from_secs(120);
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Whether a golden volume had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// It was there.
    Before,
    /// It was made.
    Now {
        /// What it takes.
        bytes: u64,
    },
}

/// Makes the volume unless it is there and sealed.
pub(crate) async fn ensure(
    engine: &Engine,
    dirs: &Dirs,
    set: &ImageSet,
    settings: &StackSettings,
    progress: &Progress,
) -> Result<Made, ImageError> {
    let volume = set.golden();
    if engine.image(&set.seal()).await?.is_some() && engine.has_volume(&volume).await? {
        return Ok(Made::Before);
    }
    let label = format!("{LABEL_IMAGE_SET}={}", set.id);
    // What an interrupted making left, and nobody has removed yet: its machines write to the volume.
    for container in engine.containers_with_label(&label).await? {
        engine.remove_container(&container).await?;
    }
    // And the seal of one that somebody removed by hand: it would be this one's before that is whole.
    super::remove(engine, &set.id).await?;
    let maker = Maker {
        engine,
        dirs,
        set,
        settings,
        errand: Errand::begin(engine, dirs, "golden")?,
    };
    let labels = HashMap::from([
        (LABEL_IMAGE_SET.to_owned(), set.id.clone()),
        (LABEL_MAKER.to_owned(), maker.errand.id().to_owned()),
    ]);
    engine.create_volume(&volume, labels).await?;
    let made = maker.make(progress).await;
    maker.remove_machines().await?;
    match made {
        Ok(_) => engine.tag(&set.machine, &set.seal()).await?,
        Err(_) => engine.remove_volume(&volume).await?,
    }
    // Last: until then its keeper removes a volume without a seal, if this process is killed.
    maker.errand.end()?;
    made.map(|bytes| Made::Now { bytes })
}

struct Maker<'a> {
    engine: &'a Engine,
    dirs: &'a Dirs,
    set: &'a ImageSet,
    settings: &'a StackSettings,
    errand: Errand,
}

impl Maker<'_> {
    /// Returns what the volume takes, in bytes.
    async fn make(&self, progress: &Progress) -> Result<u64, ImageError> {
        let task = progress.begin("loading the images into a golden volume");
        self.load_images(&task).await?;
        task.done();
        let mut bytes = 0;
        for role in [Role::Vps, Role::Gpu] {
            let task = progress.begin(format!("booting a golden {role} machine"));
            bytes = self.boot_stack(role, &task).await?;
            task.done();
        }
        Ok(bytes)
    }

    async fn load_images(&self, task: &Task) -> Result<(), ImageError> {
        let (mut control, directory) = self.start("images", "golden-images", Role::Vps, task).await?;
        let inner = Engine::at(engine_socket(&directory)).await?;
        let images: Vec<String> = self.set.services.values().cloned().collect();
        task.detail("carrying the images from engine to engine");
        self.engine.carry_images(&images, &inner).await?;
        let lines = self
            .set
            .services
            .iter()
            .map(|(service, image)| format!("{}={image}\n", service.image_variable()));
        let file = directory.join(IMAGES_ENV);
        std::fs::write(&file, lines.collect::<String>()).map_err(ImageError::io("write", &file))?;
        control.ask(&Request::Capture).await?;
        Ok(())
    }

    /// Returns what the volume takes with it.
    async fn boot_stack(&self, role: Role, task: &Task) -> Result<u64, ImageError> {
        let (mut control, directory) = self.start(&role.to_string(), "golden-stack", role, task).await?;
        let inner = Engine::at(engine_socket(&directory)).await?;
        for service in Service::of(role) {
            task.detail(&format!("waiting for {service}"));
            self.until_healthy(service, &mut control, &inner).await?;
        }
        control.ask(&Request::Capture).await?;
        let listed = control
            .run(&["du", "--summarize", "--bytes", paths::GOLDEN], STOP_GRACE)
            .await?;
        let bytes = listed
            .split_whitespace()
            .next()
            .and_then(|bytes| bytes.parse().ok());
        Ok(bytes.unwrap_or_default())
    }

    /// Starts a machine on the golden volume, which it may write to.
    async fn start(
        &self,
        part: &str,
        task_name: &str,
        role: Role,
        task: &Task,
    ) -> Result<(Control, PathBuf), ImageError> {
        let directory = self.errand.directory().join(part);
        dirs::make_private(&directory)?;
        let mut labels = self.errand.labels();
        labels.insert(LABEL_IMAGE_SET.to_owned(), self.set.id.clone());
        self.settings
            .hand_over(role, &directory)
            .map_err(|error| ImageError::Io {
                action: "write the settings in",
                path: directory.clone(),
                source: std::io::Error::other(error),
            })?;
        let local = |what: &str| self.dirs.root.join("local").join(what);
        let spec = ContainerSpec {
            name: self.errand.name(part),
            image: self.set.machine.clone(),
            hostname: format!("wopr-{role}"),
            command: vec![task_name.to_owned()],
            environment: BTreeMap::from([
                ("WOPR_MACHINE".to_owned(), role.to_string()),
                (
                    "WOPR_SOCKET_GID".to_owned(),
                    rustix::process::getgid().as_raw().to_string(),
                ),
            ]),
            labels,
            hosts: BTreeMap::new(),
            ports: Vec::new(),
            mounts: vec![
                MountSpec::volume(self.set.golden(), paths::GOLDEN),
                MountSpec::volume(
                    self.errand.name(&format!("{part}-docker-data")),
                    paths::DOCKER_ROOT,
                ),
                MountSpec::volume(
                    self.errand.name(&format!("{part}-containerd-data")),
                    paths::CONTAINERD_ROOT,
                ),
                MountSpec::directory(local(&role.to_string()), &format!("{}/{role}", paths::WORKSPACE)),
                MountSpec::directory(&directory, paths::CONTROL),
                MountSpec::directory(self.dirs.tiny_models(), paths::MODELS).read_only(),
            ],
            tmpfs: vec!["/run".to_owned()],
            dns: vec![paths::DNS_ADDRESS],
            privilege: Privilege::Nested,
        };
        self.engine.start(&spec, None).await?;
        let mut control = Control::connect(part, &directory).await?;
        control
            .until_ready(|status| task.detail(&status.phase.to_string()))
            .await?;
        Ok((control, directory))
    }

    async fn until_healthy(
        &self,
        service: Service,
        control: &mut Control,
        inner: &Engine,
    ) -> Result<(), ImageError> {
        // The database has been migrated once platform-api answers, which is asked for as well.
        let Health::Get { port, path, host } = service.health() else {
            return Ok(());
        };
        let url = format!("http://127.0.0.1:{port}{path}");
        let header = format!("Host: {}", host.unwrap_or("localhost"));
        let ask = [
            "curl",
            "--fail",
            "--silent",
            "--show-error",
            "--max-time",
            "5",
            "--output",
            "/dev/null",
            "--header",
            &header,
            &url,
        ];
        let deadline = Instant::now() + HEALTH_PATIENCE;
        loop {
            let answer = match control.run(&ask, Duration::from_secs(10)).await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                let log = inner.log_tail(&service.container(), 20).await;
                return Err(ImageError::Unhealthy {
                    service: service.to_string(),
                    machine: service.role().to_string(),
                    patience: HEALTH_PATIENCE,
                    answer,
                    log: log.unwrap_or_else(|error| error.to_string()),
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Takes away the machines; the volume stays.
    async fn remove_machines(&self) -> Result<(), ImageError> {
        for part in ["images", "vps", "gpu"] {
            let name = self.errand.name(part);
            let state = self.engine.container(&name).await?;
            if state.is_some_and(|state| state.running) {
                self.engine.stop(&name, STOP_GRACE).await?;
            }
            self.engine.remove_container(&name).await?;
            for what in ["docker-data", "containerd-data"] {
                let volume = self.errand.name(&format!("{part}-{what}"));
                self.engine.remove_volume(&volume).await?;
            }
        }
        Ok(())
    }
}
