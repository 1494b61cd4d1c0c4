//! What machines may do to the host: the smallest set with which an engine runs in a container, and
//! `--privileged` only where that does not do. Found out by trying, once per engine.

use std::collections::BTreeMap;

use crate::dirs::Dirs;
use crate::engine::{ContainerSpec, Engine, EngineError, EngineInfo, MountSpec, Privilege};
use crate::progress::Progress;

/// Neither way lets an engine run in a container.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The engine itself.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Both were tried.
    #[error(
        "this host lets no Docker engine run in a container.\nwith 17 capabilities: {nested}\nwith --privileged: {full}\nrootless engines and engines in a sandbox are known to refuse both"
    )]
    Refused {
        /// What happened with the small set.
        nested: String,
        /// What happened with `--privileged`.
        full: String,
    },
}

/// Finds the privilege; asks the engine once and remembers its answer.
pub(crate) async fn find(
    engine: &Engine,
    info: &EngineInfo,
    dirs: &Dirs,
    machine_image: &str,
    progress: &Progress,
) -> Result<Privilege, PrivilegeError> {
    let file = dirs.state.join("privilege");
    // Another engine, or the same after an upgrade, is asked anew.
    let key = format!("{} {} {}", info.id, info.version, info.kernel);
    if let Some(known) = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| recall(&text, &key))
    {
        return Ok(known);
    }
    let task = progress.begin("finding out what machines need on this host");
    let found = probe(engine, machine_image).await?;
    // Only a shortcut: without it the question is asked again.
    let _ = std::fs::write(&file, format!("{}\n{key}\n", word(found)));
    task.done();
    Ok(found)
}

fn word(privilege: Privilege) -> &'static str {
    match privilege {
        Privilege::Full => "privileged",
        Privilege::Nested | Privilege::Default => "capabilities",
    }
}

fn recall(text: &str, key: &str) -> Option<Privilege> {
    let (word, rest) = text.split_once('\n')?;
    match word {
        _ if rest.trim_end() != key => None,
        "capabilities" => Some(Privilege::Nested),
        "privileged" => Some(Privilege::Full),
        _ => None,
    }
}

async fn probe(engine: &Engine, image: &str) -> Result<Privilege, PrivilegeError> {
    let Err(nested) = try_with(engine, image, Privilege::Nested).await? else {
        return Ok(Privilege::Nested);
    };
    match try_with(engine, image, Privilege::Full).await? {
        Ok(()) => Ok(Privilege::Full),
        Err(full) => Err(PrivilegeError::Refused { nested, full }),
    }
}

/// Starts a machine's engine for a moment; the inner error is the reason why it did not run.
async fn try_with(
    engine: &Engine,
    image: &str,
    privilege: Privilege,
) -> Result<Result<(), String>, EngineError> {
    let name = format!("wopr-probe-{}", std::process::id());
    let spec = ContainerSpec {
        command: vec!["probe".to_owned()],
        environment: BTreeMap::from([("WOPR_MACHINE".to_owned(), "vps".to_owned())]),
        mounts: vec![
            MountSpec::anonymous(wopr_machine::paths::DOCKER_ROOT),
            MountSpec::anonymous(wopr_machine::paths::CONTAINERD_ROOT),
        ],
        tmpfs: vec!["/run".to_owned()],
        ..ContainerSpec::new(&name, image, privilege)
    };
    if let Err(error) = engine.start(&spec, None).await {
        return Ok(Err(error.to_string()));
    }
    let code = engine.until_exit(&name).await;
    let log = engine.log_tail(&name, 5).await;
    engine.remove_container(&name).await?;
    Ok(match code? {
        0 => Ok(()),
        code => Err(format!("ended with {code}: {}", log?.trim())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_for_the_engine_that_gave_it() {
        let text = "capabilities\nABC 20.10 6.1\n";
        assert_eq!(recall(text, "ABC 20.10 6.1"), Some(Privilege::Nested));
        assert_eq!(recall(text, "ABC 28.5 6.1"), None);
        assert_eq!(recall("", "ABC"), None);
    }
}
