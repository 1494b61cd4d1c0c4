//! A process beside each topology that outlives a killed owner, and then removes what that left; one that is
//! idle in the pool it removes when its time is over.
//!
//! It waits for the topology's lease, which the kernel lets go of however the holder ends, in a session of its
//! own and with no stream of the holder's open: the end of a test's process group does not reach it, and no test
//! runner takes it for a leak. Where it is killed as well, the machines end by themselves, and the next boot
//! sweeps the rest.

use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

/// Arguments: the topology's id, its directory, seconds that it may be idle. The removal is bounded: an engine
/// that removes nothing for ten minutes is the next boot's to deal with.
const SCRIPT: &str = r#"
command -v docker >/dev/null || exit
# Seconds that it may be idle yet.
left() {
  echo $(($(stat --format %Y "$2/idle" 2>/dev/null || echo 0) + $3 - $(date +%s)))
}
# Until the owner holds the lease, or has ended before that.
read -r _
# For reading: opened for writing, a lease that its holder is just removing would be made anew. `command`, since
# a shell ends where exec cannot open.
while command exec 9<"$2/lease"; do
  # As the machines do: it waits for as long as somebody holds it, and takes nothing from who comes next.
  flock --shared 9
  flock --unlock 9
  left=$(left "$@")
  if [ $left -le 0 ]; then
    # Somebody else may have it by now.
    flock --nonblock 9 || continue
    # Whoever removed it held it until now, and removes the rest.
    [ -e "$2/lease" ] || break
    [ $(left "$@") -le 0 ] || continue
    echo "its keeper, which removes it" >"$2/holder"
    rm -f "$2/idle"
    break
  fi
  exec 9<&-
  # In steps: somebody else may remove the topology long before.
  while [ $left -gt 0 ] && [ -e "$2/lease" ]; do
    step=$((left < 5 ? left : 5))
    sleep $step
    left=$((left - step))
  done
done
label="label=wopr.topology=$1" empty=0 round=0
while [ $empty -lt 2 ] && [ $round -lt 600 ]; do
  round=$((round + 1))
  # By name: a container that was being made while its volumes were removed makes them anew, without labels.
  if ! containers=$(docker ps --all --quiet --filter "$label") ||
    ! networks=$(docker network ls --quiet --filter "$label") ||
    ! volumes=$(docker volume ls --quiet --filter "name=^wopr-$1-") ||
    ! made=$(docker volume ls --quiet --filter "label=wopr.maker=$1"); then
    # An engine that does not answer, as while it restarts, is none that holds nothing.
    empty=0
    sleep 1
    continue
  fi
  # A golden volume goes with its maker until it has its seal.
  for volume in $made; do
    seal=$(docker image ls --quiet "wopr/golden:${volume#wopr-golden-}") || continue
    [ -n "$seal" ] || volumes="$volumes $volume"
  done
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
    for network in $networks; do
      docker network rm $network && continue
      # An engine forgets at times to detach a container that it removes; the name still does it.
      for ghost in $(docker network inspect --format '{{range .Containers}}{{.Name}} {{end}}' $network); do
        docker container inspect $ghost >/dev/null || docker network disconnect --force $network $ghost
      done
    done
    [ -n "$volumes" ] && docker volume rm $volumes
  fi
  sleep 1
done
# Else it stays, for the next boot to find what it belongs to.
[ $empty -lt 2 ] || rm -rf "$2"
"#;

/// A keeper that was started before there is anything to keep, so that at no moment there is something without one.
/// From when this is dropped, however that comes about, it waits for the lease.
#[must_use = "it keeps nothing yet"]
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Its end is what it waits for.
    _line: Option<ChildStdin>,
}

/// Starts it, before the directory is made. Without `docker`, `setsid` or `flock` there is none, and the next boot's
/// sweep does its work.
pub(crate) fn start(
    topology: &str,
    directory: &Path,
    socket: &Path,
    idle: Duration,
) -> std::io::Result<Waiting> {
    let started = Command::new("setsid")
        .args(["sh", "-c", SCRIPT, "wopr-keeper"])
        .arg(topology)
        .arg(directory)
        .arg(idle.as_secs().to_string())
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        Ok(mut keeper) => Ok(Waiting {
            _line: keeper.stdin.take(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Waiting { _line: None }),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;
    use std::process::Child;

    use super::*;

    /// A keeper's world: a topology's directory, and programs that stand in for others.
    struct World(tempfile::TempDir);

    impl World {
        fn new() -> Self {
            let world = Self(tempfile::tempdir().unwrap());
            std::fs::create_dir(world.topology()).unwrap();
            std::fs::write(world.topology().join("lease"), "").unwrap();
            // No test waits for real.
            world.program("sleep", "");
            world
        }

        fn topology(&self) -> PathBuf {
            self.0.path().join("aa11bb")
        }

        fn note(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// `$world` is the directory of notes, `$topology` the topology's.
        fn program(&self, name: &str, script: &str) {
            let (world, topology) = (self.0.path().display(), self.topology());
            let text = format!(
                "#!/bin/sh\nworld={world} topology={}\n{script}\n",
                topology.display()
            );
            let path = self.note(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn keeper(&self) -> Child {
            self.keeper_at(Stdio::null())
        }

        fn keeper_at(&self, line: Stdio) -> Child {
            let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap());
            let mut keeper = Command::new("sh");
            keeper
                .args(["-c", SCRIPT, "wopr-keeper", "aa11bb"])
                .arg(self.topology())
                .arg("60");
            keeper.env("PATH", path).stdin(line).spawn().unwrap()
        }
    }

    #[test]
    fn an_engine_that_does_not_answer_is_not_taken_for_an_empty_one() {
        let world = World::new();
        world.program(
            "docker",
            r#"
            echo x >>$world/calls
            [ $(wc -l <$world/calls) -gt 8 ] || exit 1
            case $1 in
              ps) [ -e $world/removed ] || echo c0ffee ;;
              rm) touch $world/removed ;;
            esac"#,
        );
        world.keeper().wait().unwrap();
        assert!(world.note("removed").exists(), "the container was left behind");
        assert!(!world.topology().exists());
    }

    #[test]
    fn the_directory_of_what_an_engine_never_told_of_stays_for_the_next_boot() {
        let world = World::new();
        world.program("docker", "exit 1");
        world.keeper().wait().unwrap();
        assert!(world.topology().join("lease").exists());
    }

    #[test]
    fn nothing_is_made_in_a_directory_that_its_owner_is_removing() {
        let world = World::new();
        std::fs::write(world.topology().join("idle"), "").unwrap();
        // While the keeper sleeps, the owner comes as far as the lease.
        world.program("sleep", "rm -f $topology/lease");
        world.program("docker", "ls $topology >>$world/seen");
        world.keeper().wait().unwrap();
        assert_eq!(
            std::fs::read_to_string(world.note("seen"))
                .unwrap()
                .replace("idle\n", ""),
            ""
        );
    }

    #[test]
    fn it_ends_soon_after_somebody_else_has_removed_its_topology() {
        let world = World::new();
        std::fs::write(world.topology().join("idle"), "").unwrap();
        // It is removed while the keeper sleeps for the first time, with nearly all of the idle time to come.
        world.program("sleep", "echo $1 >>$world/slept; rm -rf $topology");
        world.program("docker", "");
        world.keeper().wait().unwrap();
        let slept = std::fs::read_to_string(world.note("slept")).unwrap();
        let first: u64 = slept.lines().next().unwrap().parse().unwrap();
        assert!(first <= 5, "it slept for {first} s");
    }

    #[test]
    fn a_golden_volume_goes_with_its_maker_until_it_is_sealed() {
        let world = World::new();
        world.program(
            "docker",
            r#"
            case "$*" in
              *label=wopr.maker=aa11bb*)
                echo wopr-golden-sealed wopr-golden-unknown
                [ -e $world/removed ] || echo wopr-golden-half ;;
              *wopr/golden:sealed) echo c0ffee ;;
              *wopr/golden:unknown) exit 1 ;;
              "volume rm "*) echo "$*" >>$world/removed ;;
            esac"#,
        );
        world.keeper().wait().unwrap();
        let removed = std::fs::read_to_string(world.note("removed")).unwrap();
        assert_eq!(removed.trim(), "volume rm wopr-golden-half");
    }

    #[test]
    fn what_an_owner_made_who_ended_before_it_had_the_lease_is_removed() {
        let world = World::new();
        let topology = world.topology();
        world.program("docker", "");
        std::fs::remove_dir_all(&topology).unwrap();
        let mut keeper = world.keeper_at(Stdio::piped());
        let line = keeper.stdin.take();
        std::fs::create_dir(&topology).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(keeper.try_wait().unwrap().is_none() && topology.exists());
        drop(line);
        keeper.wait().unwrap();
        assert!(!topology.exists());
    }

    #[test]
    fn it_waits_for_a_lease_that_is_held() {
        let world = World::new();
        world.program("docker", "");
        let held = std::fs::File::open(world.topology().join("lease")).unwrap();
        held.lock().unwrap();
        let mut keeper = world.keeper();
        std::thread::sleep(Duration::from_millis(200));
        assert!(keeper.try_wait().unwrap().is_none());
        drop(held);
        keeper.wait().unwrap();
        assert!(!world.topology().exists());
    }
}
