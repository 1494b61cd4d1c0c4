//! A process beside each topology that outlives a killed owner, and then removes what that left; one that is
//! idle in the pool it removes when its time is over.
//!
//! It waits for the topology's lease, which the kernel lets go of however the holder ends, in a session of its
//! own and with no stream of the holder's open: the end of a test's process group does not reach it, and no test
//! runner takes it for a leak. Where it is killed as well, the machines end by themselves, and the next boot
//! sweeps the rest.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::TopologyError;

/// Arguments: the topology's id, its directory, seconds that it may be idle. The removal is bounded: an engine
/// that removes nothing for ten minutes is the next boot's to deal with.
const SCRIPT: &str = r#"
while [ -e "$2/lease" ]; do
  exec 9<>"$2/lease" && flock 9
  idle_since=$(stat --format %Y "$2/idle" 2>/dev/null || echo 0)
  left=$((idle_since + $3 - $(date +%s)))
  [ $left -gt 0 ] || break
  exec 9>&-
  sleep $left
done
[ ! -e "$2" ] || echo "its keeper, which removes it" >"$2/holder"
label="label=wopr.topology=$1" empty=0 round=0
while [ $empty -lt 2 ] && [ $round -lt 600 ]; do
  round=$((round + 1))
  containers=$(docker ps --all --quiet --filter "$label")
  networks=$(docker network ls --quiet --filter "$label")
  # By name: a container that was being made while its volumes were removed makes them anew, without labels.
  volumes=$(docker volume ls --quiet --filter "name=^wopr-$1-")
  if [ -z "$containers$networks$volumes" ]; then
    # A container that was being made when the owner ended comes a moment later.
    empty=$((empty + 1))
  else
    empty=0
    # What is frozen cannot end, neither a machine nor a service in it.
    for container in $containers; do
      docker unpause $container
      timeout 5 docker exec $container sh -c '
        for state in $(find /sys/fs/cgroup -name freezer.state); do echo THAWED >$state; done
        for state in $(find /sys/fs/cgroup -name cgroup.freeze); do echo 0 >$state; done'
    done
    [ -n "$containers" ] && docker rm --force --volumes $containers
    [ -n "$networks" ] && docker network rm $networks
    [ -n "$volumes" ] && docker volume rm $volumes
  fi
  sleep 1
done
rm -rf "$2"
"#;

/// Starts it. The lease has to be held by now. Without `docker`, `setsid` or `flock` there is none, and the
/// next boot's sweep does its work.
pub(super) fn start(
    topology: &str,
    directory: &Path,
    socket: &Path,
    idle: Duration,
) -> Result<(), TopologyError> {
    let started = Command::new("setsid")
        .args(["sh", "-c", SCRIPT, "wopr-keeper"])
        .arg(topology)
        .arg(directory)
        .arg(idle.as_secs().to_string())
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
