//! What this host has and lacks for running machines.

use std::path::Path;
use std::process::Command;

use crate::by_hand;
use crate::dirs::Dirs;
use crate::disk;
use crate::engine::{Engine, Privilege, port_holder};
use crate::machine::{PORTS, Role};
use crate::privilege;
use crate::profile::Profile;
use crate::progress::Progress;
use crate::settings::StackSettings;
use crate::topology::Topology;
use crate::{image, models};

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is as it should be.
    Ok(String),
    /// It is not needed, and not there.
    Absent(String),
    /// It is needed; what to do.
    Missing {
        /// What was found.
        found: String,
        /// What to do.
        remedy: String,
    },
}

impl Finding {
    /// `ok`, `absent` or `missing`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ok(_) => "ok",
            Self::Absent(_) => "absent",
            Self::Missing { .. } => "missing",
        }
    }

    /// What was found, and what to do.
    pub fn detail(&self) -> String {
        match self {
            Self::Ok(found) | Self::Absent(found) => found.clone(),
            Self::Missing { found, remedy } => format!("{found}; {remedy}"),
        }
    }

    fn missing(found: impl ToString, remedy: &str) -> Self {
        Self::Missing {
            found: found.to_string(),
            remedy: remedy.to_owned(),
        }
    }
}

/// Each nested engine takes some; the default of 128 lasts for about ten machines.
const INOTIFY: u64 = 512;

/// Looks at everything.
pub async fn examine() -> Vec<(&'static str, Finding)> {
    let mut findings = Vec::new();
    let dirs = match Dirs::find() {
        Ok(dirs) => dirs,
        Err(error) => return vec![("checkout", Finding::missing(error, "run wopr from its checkout"))],
    };
    match Engine::connect().await {
        Ok(engine) => about_engine(&engine, &dirs, &mut findings).await,
        Err(error) => findings.push(("engine", Finding::missing(error, "run ./ci/up"))),
    }
    findings.push(("inotify", inotify()));
    findings.push((
        "base image tools",
        tool(
            "mmdebstrap",
            "install mmdebstrap, or let the engine reach a registry",
        ),
    ));
    findings.push(("ports", ports(&dirs).await));
    about_settings(&dirs, &mut findings);
    findings.push(("nvidia toolkit", nvidia()));
    findings
}

async fn about_engine(engine: &Engine, dirs: &Dirs, findings: &mut Vec<(&'static str, Finding)>) {
    let info = match engine.info().await {
        Ok(info) => info,
        Err(error) => return findings.push(("engine", Finding::missing(error, "run ./ci/up"))),
    };
    let text = format!(
        "{} (API {}) at {}",
        info.version,
        info.api_version,
        engine.socket().display()
    );
    findings.push(("engine", Finding::Ok(text)));
    findings.push(("cgroups", Finding::Ok(format!("version {}", info.cgroup_version))));
    let driver = format!("storage driver {}", info.storage_driver);
    findings.push(("storage", Finding::Ok(driver)));
    findings.push(("disk", disk(&info.root)));
    match image::list(engine, dirs).await {
        Ok(sets) if sets.is_empty() => {
            findings.push((
                "images",
                Finding::missing("none is built", "run `wopr images build`, or `wopr up`"),
            ));
        }
        Ok(sets) => findings.push(("images", Finding::Ok(shown(&sets)))),
        Err(error) => findings.push(("images", Finding::missing(error, "look at the engine's log"))),
    }
    findings.push(("privilege", privilege(engine, dirs).await));
}

fn shown(sets: &[image::Stocked]) -> String {
    let ids: Vec<&str> = sets.iter().map(|set| set.id.as_str()).collect();
    format!("image sets {}", ids.join(", "))
}

async fn privilege(engine: &Engine, dirs: &Dirs) -> Finding {
    let machine = match engine.references("wopr/machine").await {
        Ok(images) => images.into_iter().next(),
        Err(error) => return Finding::missing(error, "look at the engine's log"),
    };
    let Some(machine) = machine else {
        return Finding::Absent("not known before the images are built".to_owned());
    };
    let info = match engine.info().await {
        Ok(info) => info,
        Err(error) => return Finding::missing(error, "look at the engine's log"),
    };
    match privilege::find(engine, &info, dirs, &machine, &Progress::silent()).await {
        Ok(Privilege::Full) => Finding::Ok("--privileged (17 capabilities do not do here)".to_owned()),
        Ok(_) => Finding::Ok("17 capabilities, no --privileged".to_owned()),
        Err(error) => Finding::missing(error, "use an engine that runs as root on the host itself"),
    }
}

fn disk(root: &Path) -> Finding {
    let Some(free) = disk::free(root) else {
        return Finding::Absent(format!("{} cannot be looked at by this user", root.display()));
    };
    let text = format!("{} GiB free at {}", free >> 30, root.display());
    if free < disk::FOR_IMAGES {
        return Finding::missing(
            text,
            "6 GiB are needed: free some (`wopr prune`; `docker system df` shows what is used)",
        );
    }
    Finding::Ok(text)
}

fn inotify() -> Finding {
    let file = "/proc/sys/fs/inotify/max_user_instances";
    let limit = std::fs::read_to_string(file)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match limit {
        Some(limit) if limit < INOTIFY => Finding::Absent(format!(
            "{limit} instances a user: enough for a few topologies; for more, sysctl fs.inotify.max_user_instances={INOTIFY}"
        )),
        Some(limit) => Finding::Ok(format!("{limit} instances a user")),
        None => Finding::Absent("its limit cannot be read".to_owned()),
    }
}

fn tool(name: &str, remedy: &str) -> Finding {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&paths)
        .map(|path| path.join(name))
        .find(|path| path.is_file())
    {
        Some(path) => Finding::Ok(path.display().to_string()),
        None => Finding::missing(format!("no {name}"), remedy),
    }
}

async fn ports(dirs: &Dirs) -> Finding {
    if Topology::by_hand().await.is_ok() {
        return Finding::Ok("held by the topology that is up".to_owned());
    }
    let chosen = match by_hand::ports(dirs) {
        Ok(chosen) => chosen,
        Err(error) => return Finding::missing(error, "mend it in local/.env or in the environment"),
    };
    let taken = PORTS.into_iter().filter_map(|(port, variable)| {
        let port = chosen.get(variable).copied().unwrap_or(port);
        let error = std::net::TcpListener::bind(("127.0.0.1", port)).err()?;
        let holder = port_holder(port)
            .map(|holder| format!(" by {holder}"))
            .unwrap_or_default();
        (error.kind() == std::io::ErrorKind::AddrInUse)
            .then(|| format!("{port} is taken{holder} ({variable} moves it)"))
    });
    let taken: Vec<_> = taken.collect();
    if taken.is_empty() {
        return Finding::Ok("3100, 80 and 8080 to 8083 on 127.0.0.1 are free, or moved".to_owned());
    }
    Finding::missing(taken.join("; "), "free it, or set the variable in local/.env")
}

fn about_settings(dirs: &Dirs, findings: &mut Vec<(&'static str, Finding)>) {
    let present = ["vps", "gpu"].map(|role| dirs.root.join(format!("local/{role}/.env")).is_file());
    if present != [true, true] {
        let text = "local/vps/.env and local/gpu/.env are made at the first `wopr up`".to_owned();
        return findings.push(("env files", Finding::Absent(text)));
    }
    let settings = match StackSettings::by_hand(dirs) {
        Ok(settings) => settings,
        Err(error) => return findings.push(("env files", Finding::missing(error, "mend it, or remove it"))),
    };
    findings.push((
        "env files",
        Finding::Ok("local/vps/.env and local/gpu/.env".to_owned()),
    ));
    let (gpu, vps) = (settings.of(Role::Gpu), settings.of(Role::Vps));
    let local = by_hand::settings(dirs).unwrap_or_default();
    let directory = std::env::var("WOPR_MODELS_DIR")
        .ok()
        .or_else(|| local.get("WOPR_MODELS_DIR").cloned());
    let directory = directory.map_or_else(|| dirs.tiny_models(), |path| dirs.root.join("local").join(path));
    findings.push(match models::check(&directory, &gpu) {
        Ok(()) => ("models", Finding::Ok(format!("{}", directory.display()))),
        Err(error) => ("models", Finding::missing(error, "`models verify` says more")),
    });
    findings.push(match Profile::from_settings(&vps).login() {
        Some(login) => ("registry login", Finding::Ok(format!("{login:?}"))),
        None => (
            "registry login",
            Finding::Absent("none; needed for private images alone".to_owned()),
        ),
    });
}

fn nvidia() -> Finding {
    let listed = Command::new("nvidia-ctk").arg("--version").output();
    match listed {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned();
            Finding::Ok(text)
        }
        _ => Finding::Absent("no nvidia-ctk: the engines run on the processor".to_owned()),
    }
}
