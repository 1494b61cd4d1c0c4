//! The lease of a topology: a file in its directory that whoever uses it holds locked.
//!
//! The kernel lets go of the lock however the holder ends, SIGKILL included. Three look at it: whoever wants
//! the topology next, the keeper that removes what a dead holder left, and the topology's own machines,
//! which end by themselves when nobody has held it for a while. A holder's lock is exclusive and a look's is shared,
//! so that the one is told from the other.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Name of the file in a topology's directory.
pub(crate) const FILE: &str = "lease";
/// Name of the file that is there while the topology is whole, clean, and nobody's. What has no holder
/// and no such file is a dead holder's.
const IDLE: &str = "idle";
/// Name of the file that says who holds it, for people.
const HOLDER: &str = "holder";
/// How long whoever wants a lease waits for those that look at it, which a busy host may stop in the middle of a look.
const LOOKS: Duration = Duration::from_secs(2);
/// How long it waits between two attempts.
const PAUSE: Duration = Duration::from_millis(1);

/// A lease that this process holds; let go when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    lock: File,
    directory: PathBuf,
}

impl Held {
    /// Makes the lease of a new topology, and takes it.
    pub(crate) fn make(directory: &Path) -> std::io::Result<Self> {
        let lock = File::create(directory.join(FILE))?;
        lock.try_lock()?;
        let held = Self {
            lock,
            directory: directory.to_owned(),
        };
        held.say_who()?;
        Ok(held)
    }

    /// Takes a topology that nobody holds, whatever its state; `None` where somebody does, or it is gone.
    pub(crate) fn take(directory: &Path) -> Option<Self> {
        let lock = File::options().write(true).open(directory.join(FILE)).ok()?;
        lock_past_looks(&lock).ok()?;
        // Whoever removed it held it until now: the name leads nowhere any more.
        directory.join(FILE).exists().then(|| Self {
            lock,
            directory: directory.to_owned(),
        })
    }

    /// Takes a topology that is idle.
    pub(crate) fn take_idle(directory: &Path) -> Option<Self> {
        let held = Self::take(directory)?;
        // From here on a holder that dies leaves something that is not idle.
        std::fs::remove_file(directory.join(IDLE)).ok()?;
        held.lock.set_modified(SystemTime::now()).ok()?;
        held.say_who().ok()?;
        Some(held)
    }

    /// Lets go of a topology that is clean, for the next to take.
    pub(crate) fn let_go(self) -> std::io::Result<()> {
        let _ = std::fs::remove_file(self.directory.join(HOLDER));
        self.lock.set_modified(SystemTime::now())?;
        File::create(self.directory.join(IDLE)).map(drop)
    }

    fn say_who(&self) -> std::io::Result<()> {
        std::fs::write(self.directory.join(HOLDER), who())
    }
}

/// Locks a lease that nobody holds; those that just look at it are waited for.
fn lock_past_looks(lease: &File) -> Result<(), TryLockError> {
    let began = Instant::now();
    loop {
        match lease.try_lock() {
            Err(TryLockError::WouldBlock) if began.elapsed() < LOOKS => {
                // Nobody looks at what somebody holds: that is what ends this.
                lease.try_lock_shared()?;
                lease.unlock().map_err(TryLockError::Error)?;
                std::thread::sleep(PAUSE);
            }
            settled => return settled,
        }
    }
}

/// Lets a topology that is idle last as long again. One that somebody takes meanwhile is renewed by that.
pub(crate) fn renew(directory: &Path) {
    // Without the lock, which would keep those away who want it. Neither file is made anew.
    for file in [IDLE, FILE] {
        let opened = File::options().write(true).open(directory.join(file));
        // What cannot be renewed goes when its time is over.
        let _ = opened.and_then(|file| file.set_modified(SystemTime::now()));
    }
}

/// This test or program, as people know it.
pub(crate) fn who() -> String {
    let thread = std::thread::current();
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(Path::file_name).unwrap_or_default();
    let program = program.to_string_lossy();
    // Cargo adds a digest to the names of tests.
    let program = match program.rsplit_once('-') {
        Some((name, digest)) if digest.len() == 16 => name,
        _ => &program,
    };
    // The test runner gives each test a thread of its name.
    let test = thread
        .name()
        .filter(|name| *name != "main" && !name.starts_with("tokio"));
    match test {
        Some(test) => format!("{program} {test} (process {})", std::process::id()),
        None => format!("{program} (process {})", std::process::id()),
    }
}

/// How a topology's lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Somebody holds it.
    Held {
        /// Who, as far as is known.
        by: String,
    },
    /// It is clean, and free to be taken.
    Idle {
        /// For so long.
        since: Duration,
    },
    /// Its holder has ended and left it as it was.
    Dead,
}

/// Looks at the lease of a topology.
pub(crate) fn standing(directory: &Path) -> Standing {
    let lock = File::options().write(true).open(directory.join(FILE));
    if lock.is_ok_and(|lock| lock.try_lock_shared().is_err()) {
        let by = std::fs::read_to_string(directory.join(HOLDER));
        return Standing::Held {
            by: by.unwrap_or_else(|_| "a running process".to_owned()),
        };
    }
    match std::fs::metadata(directory.join(IDLE)).and_then(|idle| idle.modified()) {
        Ok(at) => Standing::Idle {
            since: at.elapsed().unwrap_or_default(),
        },
        Err(_) => Standing::Dead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_one_holders() {
        let dir = tempfile::tempdir().unwrap();
        let held = Held::make(dir.path()).unwrap();
        assert!(
            matches!(standing(dir.path()), Standing::Held { by } if by.contains("a_lease_is_one_holders"))
        );
        assert!(Held::take(dir.path()).is_none());
        held.let_go().unwrap();
        assert!(matches!(standing(dir.path()), Standing::Idle { .. }));
        let again = Held::take_idle(dir.path()).unwrap();
        assert!(Held::take_idle(dir.path()).is_none());
        drop(again);
    }

    #[test]
    fn whoever_looks_at_a_lease_keeps_nobody_from_it() {
        let dir = tempfile::tempdir().unwrap();
        Held::make(dir.path()).unwrap().let_go().unwrap();
        let look = File::open(dir.path().join(FILE)).unwrap();
        look.lock_shared().unwrap();
        assert!(matches!(standing(dir.path()), Standing::Idle { .. }));
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| Held::take_idle(dir.path()));
            std::thread::sleep(Duration::from_millis(50));
            look.unlock().unwrap();
            assert!(taken.join().unwrap().is_some());
        });
    }

    #[test]
    fn what_is_renewed_is_as_if_it_was_let_go_of_now() {
        let dir = tempfile::tempdir().unwrap();
        Held::make(dir.path()).unwrap().let_go().unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(50);
        for file in [IDLE, FILE] {
            let file = File::options().write(true).open(dir.path().join(file)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        renew(dir.path());
        let Standing::Idle { since } = standing(dir.path()) else {
            panic!("{:?}", standing(dir.path()));
        };
        let lease = std::fs::metadata(dir.path().join(FILE))
            .unwrap()
            .modified()
            .unwrap();
        assert!(since < Duration::from_secs(40), "{since:?}");
        assert!(lease > long_ago);
    }

    #[test]
    fn what_is_held_is_not_let_go_of_by_renewing_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = Held::make(dir.path()).unwrap();
        renew(dir.path());
        drop(held);
        assert_eq!(standing(dir.path()), Standing::Dead);
    }

    #[test]
    fn what_its_holder_did_not_let_go_is_not_idle() {
        let dir = tempfile::tempdir().unwrap();
        drop(Held::make(dir.path()).unwrap());
        assert_eq!(standing(dir.path()), Standing::Dead);
        assert!(Held::take_idle(dir.path()).is_none());
    }

    #[test]
    fn what_is_gone_cannot_be_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Held::take(dir.path()).is_none());
        assert_eq!(standing(dir.path()), Standing::Dead);
    }
}
