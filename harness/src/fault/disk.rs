//! The database's disk is full.
//!
//! Its write-ahead log is shown through an overlay whose upper side is a memory file system of 64 KiB that
//! is filled to the last page. Any write to the log is copied up first, and the kernel refuses that with the true
//! ENOSPC; reads go through. Nothing of the database is moved: no byte can be written while the fault lasts, and
//! to heal is to take the overlay away. A power cut in between heals it as well, and loses nothing. The host's
//! disk is never filled. (A quota needs a mount option of the host's own file system, RLIMIT_FSIZE is another
//! error, and a small file system in the log's place would hold the only copy of what was committed.)
//!
//! The overlay has to be there when the container is made to run, so the database is shut down and started
//! again on both ways. PostgreSQL panics at its first write to such a disk, and then at the end of each recovery:
//! it either tries again and again, or ends and is started again by its engine.

use super::query::Query;
use super::service::command;
use super::{Applying, Fault, FaultError, Outcome};
use crate::history::{Meaning, Upset};
use crate::machine::VPS;
use crate::service::Service;
use crate::topology::Topology;

/// A server that recovers, in vain and for ever, or one that has ended and is about to be started again.
const DOWN: [Outcome; 3] = [Outcome::OtherStatus, Outcome::Refused, Outcome::Broken];
/// Where the memory file system is mounted in the machine; its /run is fresh at each boot.
const FULL: &str = "/run/full";

/// Prints where the machine has the database's log. Argument: the container.
const LOG: &str = r#"wal=$(docker inspect --format '{{range .Mounts}}{{if eq .Destination "/var/lib/postgresql/data"}}{{.Source}}{{end}}{{end}}' "$1")/pg_wal"#;
/// A memory file system that is full, with what an overlay wants in it.
const FILL: &str = r#"
mkdir -p "$2" && mount -t tmpfs -o size=64k,mode=700 none "$2" && mkdir "$2/upper" "$2/work" || exit
chown --reference="$wal" "$2/upper" && chmod --reference="$wal" "$2/upper" || exit
cat /dev/zero > "$2/filler" 2> /dev/null
if sh -c 'echo more > "$1/one-more"' sh "$2" 2> /dev/null; then echo "$2 is not full" >&2; exit 1; fi
"#;
const COVER: &str = r#"mount -t overlay -o "lowerdir=$wal,upperdir=$2/upper,workdir=$2/work" none "$wal""#;
const UNCOVER: &str = r#"umount "$wal""#;
/// The database itself has to say so, since it was started last. A clean start alone need not write; a checkpoint does.
const MEET: &str = r#"
since=$(docker inspect --format '{{.State.StartedAt}}' "$1")
for i in $(seq 80); do
  docker logs --since "$since" "$1" 2>&1 | grep --quiet 'No space left on device' && exit 0
  docker exec "$1" psql --username wopr --dbname wopr_platform --command CHECKPOINT > /dev/null 2>&1
  sleep 0.05
done
echo "postgres has not met the full disk: $(docker logs --tail 5 "$1" 2>&1)" >&2
exit 1
"#;

impl Topology {
    /// Fills the disk that the database's write-ahead log is on, and restarts the database on it: it answers no
    /// query until this heals, and nothing that was committed is lost.
    ///
    /// # Errors
    /// [`FaultError`].
    pub async fn fill_disk(&self) -> Result<Fault, FaultError> {
        let postgres = Service::Postgres.container();
        let shell = |script: &str| {
            let script = format!("{LOG}\n{script}");
            ["sh", "-c", &script, "disk", &postgres, FULL].map(str::to_owned)
        };
        let run = |apply: &str, undo: &str| {
            let (apply, undo) = (shell(apply), shell(undo));
            command(
                apply.each_ref().map(String::as_str),
                undo.each_ref().map(String::as_str),
            )
        };
        let stop = ["docker", "stop", "--timeout", "5", &postgres];
        let kill = ["docker", "kill", &postgres];
        let start = ["docker", "start", &postgres];
        let steps = vec![
            command(stop, start),
            run(FILL, r#"umount "$2""#),
            run(COVER, UNCOVER),
            command(start, kill),
            run(MEET, "true"),
        ];
        let mut applying = Applying::new(
            "full disk of postgres".to_owned(),
            Meaning::upsets([Upset::Database]),
        );
        applying.hold(&VPS, self.control(&VPS).await?, steps).await?;
        applying.mechanism = vec![
            format!("{VPS}: an overlay over pg_wal, whose upper side is full"),
            format!("{VPS}: postgres was restarted, and logs: No space left on device"),
        ];
        let full = applying.confirm(&[], self.deeds().clone()).await?;
        full.seen_by(Query(self.database_options()?), &DOWN).await
    }
}
