//! The ways to machines that run already.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::sync::OnceCell;

use super::boot::place_of;
use super::{Remains, Topology, TopologyError};
use crate::by_hand;
use crate::clock::{Dial, Rate};
use crate::dirs::Dirs;
use crate::engine::{Engine, Lan, Privilege};
use crate::history::Deeds;
use crate::machine::{BY_HAND, GPU, LABEL_LIGHT, Role, RunningMachine, Setting, VPS, Variant};
use crate::privilege;
use crate::progress::Progress;
use crate::service::Service;
use crate::settings::StackSettings;

/// A service is asked before its machine has a port for it; a connection attempt is cheap to repeat.
const CONNECT: Duration = Duration::from_millis(250);

impl Topology {
    /// The topology that was started by hand, by `wopr up` or by compose.
    ///
    /// # Errors
    /// [`TopologyError::NotUp`] when its machines do not run.
    pub async fn by_hand() -> Result<Self, TopologyError> {
        let dirs = Dirs::find()?;
        let engine = Engine::connect().await?;
        let settings = StackSettings::by_hand(&dirs)?;
        let control = dirs.by_hand_control()?;
        let names = [VPS, GPU].into_iter().chain(by_hand::others(&dirs));
        let addresses = names.map(|name| (name.clone(), place_of(&name, &Lan::BY_HAND)));
        let local = by_hand::settings(&dirs)?;
        let models = local.get("WOPR_MODELS_DIR").filter(|path| !path.is_empty());
        let mut setting = Setting {
            topology: BY_HAND.to_owned(),
            root: dirs.root.clone(),
            control,
            image: String::new(),
            toxiproxy: String::new(),
            // Of account to machines that are yet to be made of droplets.
            image_set: local.get("WOPR_IMAGE_SET").cloned().unwrap_or_default(),
            models: models.map_or_else(|| dirs.tiny_models(), |path| dirs.root.join("local").join(path)),
            gpus: Variant::Full,
            addresses: addresses.collect(),
            privilege: Privilege::Nested,
            gid: rustix::process::getgid().as_raw(),
            chosen_ports: BTreeMap::new(),
            owner: dirs.run.clone(),
            idle: Duration::ZERO,
        };
        if setting.addresses.len() > 2 {
            let (info, image) = (engine.info().await?, local.get("WOPR_MACHINE_IMAGE"));
            let image = image.map_or("", String::as_str);
            setting.privilege = privilege::find(&engine, &info, &dirs, image, &Progress::silent()).await?;
        }
        let remains = Remains::of_another(engine.clone(), BY_HAND, dirs.root.join("local/.run"));
        let topology = Self::attach(dirs, engine, setting, settings, Rate::TRUE, remains);
        topology.await
    }

    /// The ways to machines that run already.
    pub(super) async fn attach(
        dirs: Dirs,
        engine: Engine,
        setting: Setting,
        settings: StackSettings,
        rate: Rate,
        remains: Remains,
    ) -> Result<Self, TopologyError> {
        let mut setting = setting;
        let mut machines = BTreeMap::new();
        let mut off = Vec::new();
        for name in setting.addresses.clone().into_keys() {
            let container = setting.name(name.as_str());
            let Some(state) = engine.container(&container).await? else {
                if !setting.by_hand() {
                    off.push(name);
                    continue;
                }
                if [VPS, GPU].contains(&name) {
                    return Err(TopologyError::NotUp);
                }
                // A place for a droplet's machine.
                let (directory, address) = (setting.control_directory(&name), setting.addresses[&name]);
                let (host, variant) = (engine.clone(), setting.variant(&name));
                let racked =
                    RunningMachine::connect(name.clone(), host, container, directory, address, variant);
                let racked = racked.await?;
                racked.set_racked(true);
                machines.insert(name, racked);
                continue;
            };
            if !state.running && !state.paused {
                off.push(name.clone());
            }
            // A fault may have moved it.
            let address = state.networks.get(&setting.network()).copied().flatten();
            let address = address.unwrap_or(setting.addresses[&name]);
            setting.image = state.image;
            if state.labels.contains_key(LABEL_LIGHT) {
                setting.gpus = Variant::Light;
            }
            let (directory, variant) = (setting.control_directory(&name), setting.variant(&name));
            let (name_of_it, host) = (name.clone(), engine.clone());
            let machine =
                RunningMachine::connect(name_of_it, host, container, directory, address, variant).await?;
            machines.insert(name, machine);
        }
        // By hand, one that a fault put off is there to be healed.
        let racked = machines.values().filter(|machine| machine.is_racked()).count();
        if setting.by_hand() && off.len() + racked == machines.len() {
            return Err(TopologyError::NotUp);
        }
        if !setting.by_hand() && !off.is_empty() {
            return Err(TopologyError::Off {
                topology: setting.topology,
                machines: off,
            });
        }
        Ok(Self {
            dirs,
            engine,
            setting,
            settings,
            machines,
            rate,
            deeds: Deeds::default(),
            sidecar: OnceCell::new(),
            remains,
        })
    }

    /// The same topology for another runtime: its connections end with the runtime that they were made in.
    pub(crate) async fn anew(self) -> Result<Self, TopologyError> {
        let engine = Engine::at(self.engine.socket().to_owned()).await?;
        let remains = self.remains.with_engine(engine.clone());
        Self::attach(self.dirs, engine, self.setting, self.settings, self.rate, remains).await
    }

    /// Lets go of it: it stays as it is, for the next to take.
    pub(crate) fn let_go(self) -> Result<(), TopologyError> {
        self.remains.let_go()
    }

    /// Where platform-api's time is told.
    pub(crate) fn dial(&self) -> Dial {
        Dial::new(self.http(), self.url(3100, "/health"))
    }

    /// Services that the settings ask for: the GPU stack's profiles may leave some out.
    pub fn expected_services(&self) -> Vec<Service> {
        let gpu = self.settings.of(Role::Gpu);
        let profiles = gpu
            .get("COMPOSE_PROFILES")
            .map_or("llm,voice", String::as_str)
            .to_owned();
        let wanted = |service: &Service| match service.profile() {
            Some(profile) => profiles.split(',').any(|given| given.trim() == profile),
            None => true,
        };
        Service::ALL.into_iter().filter(wanted).collect()
    }

    /// A client that opens a new connection for each request: none of before a fault is taken for one of after it.
    pub(crate) fn http(&self) -> reqwest::Client {
        // One for all: with TLS among its features it takes 30 ms to make, which reads every authority of the host.
        static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
            let client = reqwest::Client::builder()
                .no_proxy()
                .pool_max_idle_per_host(0)
                .connect_timeout(CONNECT);
            client.build().unwrap_or_default()
        });
        CLIENT.clone()
    }
}
