//! Room on the disk that the engine keeps its things on: too little is told of before anything is started.

use std::path::{Path, PathBuf};

use crate::env;

/// What making images and a golden volume takes, in bytes.
pub(crate) const FOR_IMAGES: u64 = 6 << 30;
/// What two machines write at their boot and while tests run, in MiB, unless `WOPR_DISK_FREE` says otherwise.
const FOR_BOOT_MIB: u64 = 1024;

/// There is not enough room.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} has {} MiB free, and {} MiB are needed for {purpose}: free some, as with `wopr prune` and `wopr down --all`",
    .path.display(), .free >> 20, .needed >> 20
)]
pub struct DiskFull {
    path: PathBuf,
    free: u64,
    needed: u64,
    purpose: &'static str,
}

/// Bytes that are free below a directory; `None` where this user cannot look at it, or it is on another host.
pub(crate) fn free(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Bytes that a boot needs.
pub(crate) fn for_boot() -> Result<u64, env::BadNumber> {
    Ok(env::number("WOPR_DISK_FREE")?.unwrap_or(FOR_BOOT_MIB) << 20)
}

/// Looks whether there are `needed` bytes.
pub(crate) fn check(path: &Path, needed: u64, purpose: &'static str) -> Result<(), DiskFull> {
    match free(path) {
        Some(free) if free < needed => Err(DiskFull {
            path: path.to_owned(),
            free,
            needed,
            purpose,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_told_with_both_numbers() {
        let error = check(Path::new("/tmp"), u64::MAX, "a boot")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/tmp has ") && error.contains(&format!("{} MiB are needed", u64::MAX >> 20)),
            "{error}"
        );
        assert!(check(Path::new("/tmp"), 1, "a boot").is_ok());
        assert!(check(Path::new("/nowhere"), u64::MAX, "a boot").is_ok());
    }
}
