//! The image sets on this host: which there are, what they take, and which are to go.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{ImageError, ImageSet, remove};
use crate::dirs::Dirs;
use crate::engine::{Engine, LABEL_IMAGE_SET};
use crate::machine::GOLDEN_PREFIX;

/// An image set on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stocked {
    /// Its id.
    pub id: String,
    /// For how long nothing has been booted from it.
    pub unused: Duration,
    /// What its golden volume takes, in bytes; 0 where that is not known.
    pub bytes: u64,
    /// Its images.
    images: Vec<String>,
}

/// What is kept of a set, in the state directory. The file's time is that of its last use.
#[derive(Default, Serialize, Deserialize)]
struct Noted {
    images: Vec<String>,
    golden_bytes: u64,
}

/// Which sets stay. The newest `keep` always do; of the others, those that were used lately, as long as all
/// together take no more than `most_bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How many stay whatever they take.
    pub keep: usize,
    /// How long one stays that nobody uses.
    pub unused: Duration,
    /// What all may take.
    pub most_bytes: u64,
}

impl Policy {
    /// What happens by itself, after a new set was made: a dozen branches of 400 MB each, for two weeks.
    pub const AUTOMATIC: Policy = Policy {
        keep: 2,
        unused: Duration::from_hours(14 * 24),
        most_bytes: 6 << 30,
    };

    /// Those of `sets`, the one used last first, that are to go.
    fn condemned(self, sets: &[Stocked]) -> Vec<Stocked> {
        let mut taken = 0;
        let goes = |(place, set): &(usize, &Stocked)| {
            taken += set.bytes;
            *place >= self.keep && (set.unused > self.unused || taken > self.most_bytes)
        };
        let gone = sets.iter().enumerate().filter(goes);
        gone.map(|(_, set)| set.clone()).collect()
    }
}

fn file(dirs: &Dirs, id: &str) -> PathBuf {
    dirs.state.join("sets").join(format!("{id}.json"))
}

/// Notes that a set is used now. `made` is what its golden volume takes, if that was made just now.
pub(super) fn note(dirs: &Dirs, set: &ImageSet, made: Option<u64>) -> Result<(), ImageError> {
    let path = file(dirs, &set.id);
    let directory = dirs.state.join("sets");
    std::fs::create_dir_all(&directory).map_err(ImageError::io("make", &directory))?;
    if made.is_none() && path.is_file() {
        let touched = std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        return touched.map_err(ImageError::io("touch", &path));
    }
    let noted = Noted {
        images: set.images.clone(),
        golden_bytes: made.unwrap_or_default(),
    };
    let text = serde_json::to_vec(&noted).unwrap_or_default();
    std::fs::write(&path, text).map_err(ImageError::io("write", &path))
}

/// The image sets whose golden volume is on this host, the one used last first.
///
/// # Errors
/// [`ImageError::Engine`].
pub async fn list(engine: &Engine, dirs: &Dirs) -> Result<Vec<Stocked>, ImageError> {
    let volumes = engine.volumes_by_age(LABEL_IMAGE_SET).await?;
    let ids = volumes.iter().filter_map(|name| name.strip_prefix(GOLDEN_PREFIX));
    let set = |id: &str| {
        let path = file(dirs, id);
        let noted = std::fs::read(&path).ok();
        let noted: Noted = noted
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let used = std::fs::metadata(&path).and_then(|file| file.modified());
        Stocked {
            id: id.to_owned(),
            // One that nobody noted is as good as never used.
            unused: used.map_or(Duration::MAX, |at| at.elapsed().unwrap_or_default()),
            bytes: noted.golden_bytes,
            images: noted.images,
        }
    };
    let mut sets: Vec<_> = ids.map(set).collect();
    sets.sort_by_key(|set| set.unused);
    Ok(sets)
}

/// Removes image sets that a policy does not keep and nothing runs on, with those of their images that no
/// other set has; returns them. The caller holds the lock of the images.
pub(super) async fn prune(engine: &Engine, dirs: &Dirs, policy: Policy) -> Result<Vec<Stocked>, ImageError> {
    let sets = list(engine, dirs).await?;
    let mut gone = Vec::new();
    for set in policy.condemned(&sets) {
        match remove(engine, &set.id).await {
            Ok(()) => {}
            // A topology runs on it.
            Err(ImageError::Engine(error)) if error.is_conflict() => continue,
            Err(error) => return Err(error),
        }
        let _ = std::fs::remove_file(file(dirs, &set.id));
        gone.push(set);
    }
    let stays = |set: &&Stocked| !gone.iter().any(|other| other.id == set.id);
    let kept: BTreeSet<&String> = sets.iter().filter(stays).flat_map(|set| &set.images).collect();
    for image in gone.iter().flat_map(|set| &set.images) {
        // Chosen images are a person's own.
        if image.starts_with("wopr/") && !kept.contains(image) {
            match engine.remove_image(image).await {
                Err(error) if !error.is_conflict() => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn sets(of: &[(u64, u32)]) -> Vec<Stocked> {
        let set = |(place, (bytes, days)): (usize, &(u64, u32))| Stocked {
            id: place.to_string(),
            unused: DAY * *days,
            bytes: *bytes,
            images: Vec::new(),
        };
        of.iter().enumerate().map(set).collect()
    }

    fn gone(policy: Policy, of: &[(u64, u32)]) -> Vec<String> {
        policy
            .condemned(&sets(of))
            .into_iter()
            .map(|set| set.id)
            .collect()
    }

    #[test]
    fn what_is_old_goes_and_the_newest_stays() {
        let policy = Policy {
            keep: 1,
            unused: DAY * 7,
            most_bytes: u64::MAX,
        };
        assert_eq!(gone(policy, &[(1, 30), (1, 40), (1, 50)]), ["1", "2"]);
        assert_eq!(gone(policy, &[(1, 0), (1, 6), (1, 8)]), ["2"]);
    }

    #[test]
    fn what_is_too_much_goes_the_longest_unused_first() {
        let policy = Policy {
            keep: 1,
            unused: DAY * 7,
            most_bytes: 25,
        };
        assert_eq!(gone(policy, &[(10, 0), (10, 1), (10, 2)]), ["2"]);
        assert_eq!(gone(policy, &[(30, 0), (10, 1)]), ["1"]);
    }
}
