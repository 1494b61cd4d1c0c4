//! An image set in one file, for a cache that makes a fresh machine fast.
//!
//! The file is a tar as `docker save` makes it, of all images of the set. The golden volume is not in it: it
//! holds what only an engine of the same kind can read, and is made of the images in a quarter of a minute.

use std::path::Path;

use super::{ImageError, ImageSet};
use crate::engine::Engine;

/// Writes all images of a set into a file; returns its length in bytes. What was there before is replaced once
/// the new file is whole.
///
/// # Errors
/// [`ImageError::Io`] for the file, [`ImageError::Engine`].
pub async fn save(engine: &Engine, set: &ImageSet, file: &Path) -> Result<u64, ImageError> {
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let target = tokio::fs::File::create(partial).await;
    let mut target = target.map_err(ImageError::io("make", partial))?;
    let saved = engine.export_images(&set.images, &mut target).await;
    let written = match saved {
        Ok(written) => written,
        Err(error) => {
            let _ = std::fs::remove_file(partial);
            return Err(error.into());
        }
    };
    std::fs::rename(partial, file).map_err(ImageError::io("write", file))?;
    Ok(written)
}

/// Loads images from a file that [`save`] wrote.
///
/// # Errors
/// [`ImageError::Io`] when it cannot be read, [`ImageError::Engine`] when it is no such file.
pub async fn load(engine: &Engine, file: &Path) -> Result<(), ImageError> {
    let source = tokio::fs::File::open(file).await;
    let source = source.map_err(ImageError::io("read", file))?;
    Ok(engine.import_images(source, &file.display().to_string()).await?)
}
