//! Tiny models of random weights that the real engines load. What they answer is canned by
//! construction: they prove the engine's path, not its inference.
//!
//! The bytes are the same on every machine: the random numbers come from ChaCha8 with a fixed seed,
//! and from additions alone, since a platform's logarithm and cosine may differ in the last bit.

mod llama;
mod qwen2;
mod random;
mod whisper;
mod writer;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::{Manifest, Set};

/// Why the models are not there.
#[derive(Debug, thiserror::Error)]
pub enum TinyError {
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What was made is not what the manifest names.
    #[error("{file} came out as {found}, and the manifest has {expected}: the generator has changed")]
    Digest {
        /// The file.
        file: String,
        /// Digest in the manifest.
        expected: String,
        /// Digest of what was made.
        found: String,
    },
    /// The manifest that was built in.
    #[error("models/manifest.toml is broken: {0}")]
    Manifest(#[from] toml::de::Error),
}

/// Makes what is missing of the tiny models in `directory`, and returns their paths. A file that is
/// there with the right content is left alone; one that is being made has another name until it is
/// whole.
///
/// # Errors
/// [`TinyError`].
pub fn write_all(directory: &Path) -> Result<Vec<PathBuf>, TinyError> {
    let write_error = |path: &Path| {
        let path = path.to_owned();
        move |source| TinyError::Write { path, source }
    };
    std::fs::create_dir_all(directory).map_err(write_error(directory))?;
    let manifest = Manifest::load()?;
    let mut paths = Vec::new();
    for model in manifest.models(Set::Tiny) {
        let (Some(file), Some(expected)) = (&model.file, &model.sha256) else {
            continue;
        };
        let path = directory.join(file);
        if digest_of(&path).as_ref() != Some(expected) {
            let bytes = generate(&model.service);
            let found = hex::encode(Sha256::digest(&bytes));
            if found != *expected {
                return Err(TinyError::Digest {
                    file: file.clone(),
                    expected: expected.clone(),
                    found,
                });
            }
            let partial = directory.join(format!(".{file}.{}", std::process::id()));
            let written = std::fs::File::create(&partial)
                .and_then(|mut out| out.write_all(&bytes))
                .and_then(|()| std::fs::rename(&partial, &path));
            if written.is_err() {
                let _ = std::fs::remove_file(&partial);
            }
            written.map_err(write_error(&path))?;
        }
        paths.push(path);
    }
    Ok(paths)
}

fn digest_of(path: &Path) -> Option<String> {
    Some(hex::encode(Sha256::digest(std::fs::read(path).ok()?)))
}

fn generate(service: &str) -> Vec<u8> {
    match service {
        "llama-cpp" => llama::generate(),
        "qwen-embeddings" => qwen2::generate(),
        _ => whisper::generate(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_all(dir.path()).unwrap();
        assert_eq!(paths.len(), 3);
        let written = std::fs::metadata(&paths[0]).unwrap().modified().unwrap();
        write_all(dir.path()).unwrap();
        let again = std::fs::metadata(&paths[0]).unwrap().modified().unwrap();
        assert_eq!(written, again, "a file that is right is left alone");
    }

    #[test]
    fn a_damaged_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_all(dir.path()).unwrap();
        std::fs::write(&paths[1], "half").unwrap();
        write_all(dir.path()).unwrap();
        assert!(std::fs::metadata(&paths[1]).unwrap().len() > 100_000);
    }
}
