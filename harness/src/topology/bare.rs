//! Machines without a golden volume, as a person starts them who has none: an empty engine in each, which images
//! are loaded into before the stack comes up. What `wopr bench --seeds-way` sets golden boots beside.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::sync::OnceCell;
use wopr_machine::paths::{self, IMAGES_ENV};
use wopr_machine::protocol::Request;

use super::boot::Plan;
use super::{Builder, Topology, TopologyError};
use crate::clock;
use crate::control::Control;
use crate::dirs;
use crate::engine::{Engine, MountSpec};
use crate::history::Deeds;
use crate::machine::{GPU, MachineName, Role, RunningMachine, Setting, VPS, Variant, engine_socket};
use crate::privilege;

/// The words of the machine image for an engine on an empty data root.
const EMPTY_ENGINE: &str = "golden-images";
const LIMIT: Duration = Duration::from_secs(10);

/// A topology that was booted from nothing.
#[derive(Debug)]
pub struct Bare {
    /// It is healthy.
    pub topology: Topology,
    /// How long each step took, in their order.
    pub steps: Vec<(&'static str, Duration)>,
}

impl Builder {
    /// Boots without a golden volume: empty engines, images loaded into them, `docker compose up`, all healthy.
    /// One GPU machine, on true time.
    ///
    /// # Errors
    /// [`TopologyError`]. Nothing is left then.
    pub async fn boot_bare(self) -> Result<Bare, TopologyError> {
        self.plan().await?.boot_bare().await
    }
}

/// Tells how long it has been since the last time.
struct Laps(Instant, Vec<(&'static str, Duration)>);

impl Laps {
    fn lap(&mut self, step: &'static str) {
        self.1.push((step, self.0.elapsed()));
        self.0 = Instant::now();
    }
}

impl Plan {
    async fn boot_bare(mut self) -> Result<Bare, TopologyError> {
        let mut laps = Laps(Instant::now(), Vec::new());
        // From here on, its drop removes what was made.
        let claim = self.claim()?;
        let info = self.engine.info().await?;
        let privilege =
            privilege::find(&self.engine, &info, &self.dirs, &self.set.machine, &self.progress).await?;
        let mut setting = self.setting(
            claim.topology.clone(),
            self.dirs.run.join(&claim.topology),
            privilege,
        );
        let lock = self.dirs.state.join("subnets.lock");
        let labels = setting.network_labels().into_iter().collect();
        let lan = self.engine.create_lan(&setting.network(), labels, &lock).await?;
        setting.addresses = BTreeMap::from([(VPS, lan.address(0)), (GPU, lan.address(1))]);
        let started = [VPS, GPU].map(|name| self.start_empty(&setting, name));
        let started = try_join_all(started).await?;
        laps.lap("machines with empty engines");
        try_join_all(started.iter().map(|machine| self.load_images(machine))).await?;
        laps.lap("images loaded into them");
        try_join_all(started.iter().map(bring_up)).await?;
        laps.lap("docker compose up in them");
        let machines = started
            .into_iter()
            .map(|machine| (machine.name().clone(), machine));
        let topology = Topology {
            machines: machines.collect(),
            dirs: self.dirs,
            engine: self.engine,
            setting,
            settings: self.settings,
            rate: self.rate,
            deeds: Deeds::default(),
            sidecar: OnceCell::new(),
            remains: claim.remains,
        };
        topology.until_all_healthy().await?;
        laps.lap("eight services healthy");
        Ok(Bare {
            topology,
            steps: laps.1,
        })
    }

    async fn start_empty(
        &self,
        setting: &Setting,
        name: MachineName,
    ) -> Result<RunningMachine, TopologyError> {
        let directory = setting.control_directory(&name);
        dirs::make_private(&directory)?;
        self.settings.hand_over(name.role(), &directory)?;
        if name.role() == Role::Vps {
            clock::write(&directory, self.rate).map_err(TopologyError::io("set the clock in", &directory))?;
        }
        let mut spec = setting.machine(&name);
        spec.command = vec![EMPTY_ENGINE.to_owned()];
        let own = setting.name(&format!("{name}-empty"));
        spec.mounts.retain(|mount| mount.target != paths::GOLDEN);
        spec.mounts.push(MountSpec::volume(&own, paths::GOLDEN));
        for (volume, labels) in setting
            .volumes(&name)
            .into_iter()
            .chain([(own, setting.labels())])
        {
            self.engine
                .create_volume(&volume, labels.into_iter().collect())
                .await?;
        }
        let address = setting.addresses[&name];
        self.engine
            .start(&spec, Some((&setting.network(), address)))
            .await?;
        let mut control = Control::connect(name.as_str(), &directory).await?;
        control.until_ready(|_| {}).await?;
        let machine = RunningMachine::connect(
            name,
            self.engine.clone(),
            spec.name,
            directory,
            address,
            Variant::Full,
        );
        Ok(machine.await?)
    }

    async fn load_images(&self, machine: &RunningMachine) -> Result<(), TopologyError> {
        let role = machine.name().role();
        let here = self
            .set
            .services
            .iter()
            .filter(|(service, _)| service.role() == role);
        let (lines, images): (String, Vec<_>) = here
            .map(|(service, image)| (format!("{}={image}\n", service.image_variable()), image.clone()))
            .unzip();
        let inner = Engine::at(engine_socket(machine.control_directory())).await?;
        self.engine.carry_images(&images, &inner).await?;
        let file = machine.control_directory().join(IMAGES_ENV);
        std::fs::write(&file, lines).map_err(TopologyError::io("write", &file))?;
        let copy = format!(
            "cp {}/{IMAGES_ENV} {}/{IMAGES_ENV}",
            paths::CONTROL,
            paths::GOLDEN
        );
        machine.control().await?.run(&["sh", "-c", &copy], LIMIT).await?;
        Ok(())
    }
}

async fn bring_up(machine: &RunningMachine) -> Result<(), TopologyError> {
    machine.control().await?.ask(&Request::ApplyStack).await?;
    Ok(())
}
