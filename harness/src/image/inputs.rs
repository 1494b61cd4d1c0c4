//! What an image is made from, as a digest.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::ImageError;

/// Reads a file of the checkout.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    std::fs::read(path).map_err(ImageError::io("read", path))
}

/// Digest of files and directories, by name, mode and content: twelve hex digits.
pub(crate) fn digest(root: &Path, inputs: &[&str], salt: &str) -> Result<String, ImageError> {
    let mut hash = Sha256::new();
    hash.update(salt);
    for input in inputs {
        for file in files(&root.join(input))? {
            let name = file
                .strip_prefix(root)
                .unwrap_or(&file)
                .to_string_lossy()
                .into_owned();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            let content = read(&file)?;
            hash.update((content.len() as u64).to_le_bytes());
            hash.update(content);
        }
    }
    Ok(hex::encode(hash.finalize())[..12].to_owned())
}

fn files(path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(ImageError::io("list", path))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        found.extend(files(&path)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_or_renamed_file_changes_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let of = || digest(dir.path(), &["src"], "").unwrap();
        std::fs::create_dir(dir.path().join("src")).unwrap();
        std::fs::write(dir.path().join("src/a"), "1").unwrap();
        let first = of();
        assert_eq!(of(), first);
        std::fs::write(dir.path().join("src/a"), "2").unwrap();
        let second = of();
        assert_ne!(second, first);
        std::fs::rename(dir.path().join("src/a"), dir.path().join("src/b")).unwrap();
        assert_ne!(of(), second);
    }

    #[test]
    fn a_missing_input_is_named() {
        let error = digest(Path::new("/nowhere"), &["x"], "").unwrap_err().to_string();
        assert!(error.contains("/nowhere/x"), "{error}");
    }
}
