//! The images that are built here: the machine, and one flat image that holds every service, with a
//! name and a configuration for each.

use std::collections::{BTreeMap, HashMap};

use super::{ImageError, base, fixtures, inputs};
use crate::dirs::Dirs;
use crate::disk;
use crate::engine::{BuildContext, Engine};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::service::Service;

/// References of the images that are built here.
pub(crate) struct Built {
    pub(crate) machine: String,
    /// What the images of the services are further names of.
    pub(crate) flat: String,
    pub(crate) toxiproxy: String,
    pub(crate) services: BTreeMap<Service, String>,
}

/// Label of everything that is built here, so that it can be found and removed.
pub(crate) const LABEL_BUILT: &str = "wopr.built";

const MACHINE_INPUTS: [&str; 5] = [
    "fixtures/machine",
    "fixtures/cloud/src",
    "fixtures/wall",
    "Cargo.toml",
    "Cargo.lock",
];
const SERVICE_PACKAGES: [&str; 4] = ["platform-api", "platform-ui", "chatterbox", "wopr-toxiproxy"];
const SERVICE_BINARIES: [&str; 4] = ["platform-api", "platform-ui", "chatterbox", "toxiproxy-server"];
const SERVICE_INPUTS: [&str; 7] = [
    "fixtures/services",
    "fixtures/platform-api",
    "fixtures/platform-ui",
    "fixtures/chatterbox",
    "fixtures/toxiproxy/src",
    "Cargo.toml",
    "Cargo.lock",
];

/// Builds what is missing.
pub(crate) async fn ensure(
    engine: &Engine,
    dirs: &Dirs,
    profile: &Profile,
    progress: &Progress,
) -> Result<Built, ImageError> {
    let machine = format!(
        "wopr/machine:{}",
        inputs::digest(&dirs.root, &MACHINE_INPUTS, "")?
    );
    let flat_id = inputs::digest(&dirs.root, &SERVICE_INPUTS, "")?;
    let flat = format!("wopr/services:{flat_id}");
    let configurations: String = Service::ALL.into_iter().map(configuration).collect();
    let id = inputs::digest(&dirs.root, &SERVICE_INPUTS, &configurations)?;
    let named = |name: &str| format!("wopr/{name}:{id}");
    let built = Built {
        machine,
        flat,
        toxiproxy: named("toxiproxy"),
        services: Service::ALL
            .into_iter()
            .map(|service| (service, named(service.name())))
            .collect(),
    };

    let needs_machine = engine.image(&built.machine).await?.is_none();
    let mut missing = Vec::new();
    for service in Service::ALL
        .into_iter()
        .filter(|service| profile.chosen(*service).is_none())
    {
        if engine.image(&built.services[&service]).await?.is_none() {
            missing.push(service);
        }
    }
    let needs_toxiproxy = engine.image(&built.toxiproxy).await?.is_none();
    let needs_flat = (needs_toxiproxy || !missing.is_empty()) && engine.image(&built.flat).await?.is_none();
    if needs_machine || needs_flat {
        disk::check(&engine.info().await?.root, disk::FOR_IMAGES, "images")?;
        base::ensure(engine, progress).await?;
    }
    if needs_machine {
        build_machine(engine, dirs, &built.machine, progress).await?;
    }
    if needs_flat {
        build_flat(engine, dirs, &built.flat, progress).await?;
    }
    for service in missing {
        let dockerfile = format!("FROM {}\n{}", built.flat, configuration(service));
        configure(engine, &built.services[&service], &dockerfile).await?;
    }
    if needs_toxiproxy {
        configure(
            engine,
            &built.toxiproxy,
            &format!("FROM {}\n{TOXIPROXY}", built.flat),
        )
        .await?;
    }
    Ok(built)
}

fn labels() -> HashMap<String, String> {
    HashMap::from([(LABEL_BUILT.to_owned(), "true".to_owned())])
}

async fn build_machine(
    engine: &Engine,
    dirs: &Dirs,
    image: &str,
    progress: &Progress,
) -> Result<(), ImageError> {
    let task = progress.begin("building the machine image");
    let binaries = fixtures::build(&dirs.root, &["wopr-machine", "wopr-wall"], &task).await?;
    let files = dirs.root.join("fixtures/machine");
    let context = BuildContext::default()
        .file(&files.join("Dockerfile"), "Dockerfile")?
        .file(&files.join("containerd.toml"), "containerd.toml")?
        .file(&files.join("daemon.json"), "daemon.json")?
        .file(&binaries.join("wopr-machine"), "wopr-machine")?
        .file(&binaries.join("libwall.so"), "libwall.so")?;
    engine
        .build(image, context, &[("BASE", base::BASE)], &labels(), |line| {
            task.detail(line)
        })
        .await?;
    task.done();
    Ok(())
}

async fn build_flat(
    engine: &Engine,
    dirs: &Dirs,
    image: &str,
    progress: &Progress,
) -> Result<(), ImageError> {
    let task = progress.begin("building the image of the services");
    let binaries = fixtures::build(&dirs.root, &SERVICE_PACKAGES, &task).await?;
    let files = dirs.root.join("fixtures/services");
    let mut context = BuildContext::default()
        .file(&files.join("Dockerfile"), "Dockerfile")?
        .file(&files.join("collect.sh"), "collect.sh")?
        .file(&files.join("postgres-entrypoint.sh"), "postgres-entrypoint.sh")?;
    for binary in SERVICE_BINARIES {
        context = context.file(&binaries.join(binary), &format!("bin/{binary}"))?;
    }
    engine
        .build(image, context, &[("BASE", base::BASE)], &labels(), |line| {
            task.detail(line)
        })
        .await?;
    task.done();
    Ok(())
}

/// A further name for the flat image, with a configuration; adds no layer.
async fn configure(engine: &Engine, image: &str, dockerfile: &str) -> Result<(), ImageError> {
    let context = BuildContext::default().text("Dockerfile", dockerfile)?;
    Ok(engine.build(image, context, &[], &labels(), |_| {}).await?)
}

/// What makes the flat image that of one service, in a Dockerfile's words. A compose file can then
/// name a production image in its place without another command line.
fn configuration(service: Service) -> String {
    let lines: &[&str] = match service {
        Service::Postgres => &[
            "USER postgres",
            "ENV PGDATA=/var/lib/postgresql/data",
            // Fast shutdown: a client that stays connected does not hold up the machine's end.
            "STOPSIGNAL SIGINT",
            r#"ENTRYPOINT ["/usr/local/bin/postgres-entrypoint"]"#,
        ],
        Service::PlatformApi => &[
            r#"ENTRYPOINT ["/usr/local/bin/platform-api"]"#,
            r#"HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["/usr/local/bin/platform-api", "healthcheck"]"#,
        ],
        Service::PlatformUi => &[
            r#"ENTRYPOINT ["/usr/local/bin/platform-ui"]"#,
            r#"HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["/usr/local/bin/platform-ui", "healthcheck"]"#,
        ],
        Service::Caddy => &[
            "ENV XDG_DATA_HOME=/tmp XDG_CONFIG_HOME=/tmp GOMAXPROCS=2",
            r#"CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]"#,
            r#"HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["curl", "-fsS", "-o", "/dev/null", "-H", "Host: api.localhost", "http://127.0.0.1/health"]"#,
        ],
        Service::LlamaCpp | Service::QwenEmbeddings => &[
            // Tiny models need no more, and eight engines share the host.
            "ENV LLAMA_ARG_THREADS=1 LLAMA_ARG_UI=0 LLAMA_ARG_WARMUP=0",
            r#"ENTRYPOINT ["llama-server"]"#,
            r#"HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:8080/health"]"#,
        ],
        Service::Chatterbox => &[
            r#"ENTRYPOINT ["/usr/local/bin/chatterbox"]"#,
            r#"HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["/usr/local/bin/chatterbox", "healthcheck"]"#,
        ],
        Service::Whisper => &[
            // The production engine takes its model from the environment; this one from a flag.
            r#"ENTRYPOINT ["/bin/sh", "-c", "exec whisper-server --model \"/models/${WHISPER_MODEL}\" --host 0.0.0.0 --port 8000 --threads 1 --inference-path /v1/audio/transcriptions \"$@\"", "whisper"]"#,
            r#"HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:8000/health"]"#,
        ],
    };
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// As the official image has it.
const TOXIPROXY: &str = "ENTRYPOINT [\"/usr/local/bin/toxiproxy-server\"]\nCMD [\"-host=0.0.0.0\"]\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_says_how_its_health_is_seen() {
        for service in Service::ALL
            .into_iter()
            .filter(|service| *service != Service::Postgres)
        {
            assert!(configuration(service).contains("HEALTHCHECK"), "{service}");
        }
        let compose = include_str!("../../../local/vps/docker-compose.yml");
        assert!(
            compose.contains("pg_isready"),
            "postgres has its check in the compose file"
        );
    }
}
