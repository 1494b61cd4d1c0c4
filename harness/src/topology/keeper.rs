//! A process beside each topology that outlives a killed owner, and then removes what that left.
//!
//! It waits for the owner's lock, which the kernel lets go of however the owner ends, in a session of its
//! own and with no stream of the owner's open: the end of a test's process group does not reach it, and no test
//! runner takes it for a leak. Where it is killed as well, the next boot sweeps.

use std::path::Path;
use std::process::{Command, Stdio};

use super::TopologyError;

/// Arguments: the lock, the topology's id, its directory. Bounded: an engine that removes nothing for ten
/// minutes is the next boot's to deal with.
const SCRIPT: &str = r#"
flock --shared "$1" true
label="label=wopr.topology=$2" empty=0 round=0
while [ $empty -lt 2 ] && [ $round -lt 600 ]; do
  round=$((round + 1))
  containers=$(docker ps --all --quiet --filter "$label")
  networks=$(docker network ls --quiet --filter "$label")
  # By name: a container that was being made while its volumes were removed makes them anew, without labels.
  volumes=$(docker volume ls --quiet --filter "name=^wopr-$2-")
  if [ -z "$containers$networks$volumes" ]; then
    # A container that was being made when the owner ended comes a moment later.
    empty=$((empty + 1))
  else
    empty=0
    [ -n "$containers" ] && docker rm --force --volumes $containers
    [ -n "$networks" ] && docker network rm $networks
    [ -n "$volumes" ] && docker volume rm $volumes
  fi
  sleep 1
done
rm -rf "$3"
"#;

/// Starts it. The lock has to be held by now. Without `docker`, `setsid` or `flock` there is none, and the
/// next boot's sweep does its work.
pub(super) fn start(
    lock: &Path,
    topology: &str,
    directory: &Path,
    socket: &Path,
) -> Result<(), TopologyError> {
    let started = Command::new("setsid")
        .args(["sh", "-c", SCRIPT, "wopr-keeper"])
        .arg(lock)
        .arg(topology)
        .arg(directory)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(TopologyError::io("start a keeper for", directory)(error)),
    }
}
