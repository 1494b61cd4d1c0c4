//! What loads an image's program: only glibc's loader takes the libraries that platform-api's clock is run by.

use bollard::models::{ContainerCreateBody, ImageInspect};
use bollard::query_parameters::{CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder};
use futures_util::TryStreamExt as _;
use std::io::Read as _;

use super::ImageError;
use super::errand::Errand;
use crate::dirs::Dirs;
use crate::engine::{Engine, EngineError};

/// How much of a program is looked at: its headers, and the name of its loader, lie at the beginning.
const LOOKED_AT: usize = 64 << 10;
/// Links and scripts that are followed from an entry point to a program.
const FOLLOWED: usize = 16;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What loads a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// glibc's: takes what is preloaded.
    Glibc,
    /// musl's: libraries built on glibc do not load in it.
    Musl,
    /// None: a static binary loads nothing.
    Static,
    /// None of these, or not to be found out: what the clock shows after the boot decides.
    Unknown,
}

impl std::fmt::Display for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Glibc => "built on glibc",
            Self::Musl => "built on musl",
            Self::Static => "a static binary",
            Self::Unknown => "of an unknown kind",
        })
    }
}

/// Refuses an image whose clock cannot be made to run fast.
pub(super) async fn check(engine: &Engine, dirs: &Dirs, image: &str) -> Result<(), ImageError> {
    let Some(found) = engine.image(image).await? else {
        return Ok(());
    };
    // Never started: a file system to look into.
    let look = Errand::begin(engine, dirs, "look")?;
    let container = look.name("image");
    let options = CreateContainerOptionsBuilder::new().name(&container).build();
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        // An image that names no program is looked into as well.
        cmd: Some(vec!["true".to_owned()]),
        labels: Some(look.labels().into_iter().collect()),
        ..Default::default()
    };
    let created = engine.docker().create_container(Some(options), body).await;
    let looked = match created.map_err(EngineError::call(format!("look into image {image}"))) {
        Ok(_) => program(engine, &container, &found).await,
        Err(error) => Err(error),
    };
    engine.remove_container(&container).await?;
    look.end()?;
    let (program, loader) = looked?;
    match loader {
        Loader::Musl | Loader::Static => Err(ImageError::NotPreloadable {
            image: image.to_owned(),
            program,
            loader,
        }),
        Loader::Glibc | Loader::Unknown => Ok(()),
    }
}

/// The program that an image runs, and what loads it.
async fn program(
    engine: &Engine,
    container: &str,
    image: &ImageInspect,
) -> Result<(String, Loader), EngineError> {
    let config = image.config.clone().unwrap_or_default();
    let argv = config.entrypoint.into_iter().chain(config.cmd).flatten().next();
    let path = config.env.into_iter().flatten().find_map(|pair| {
        let value = pair.strip_prefix("PATH=")?;
        Some(value.to_owned())
    });
    let path = path.unwrap_or_else(|| DEFAULT_PATH.to_owned());
    let mut at = argv.unwrap_or_default();
    for _ in 0..FOLLOWED {
        let Some((place, file)) = find(engine, container, &at, &path).await? else {
            break;
        };
        match file {
            File::Link(target) => at = resolve(&place, &target),
            File::Plain(bytes) => match interpreter(&bytes) {
                Some(next) => at = next,
                None => return Ok((place, loader(&bytes))),
            },
        }
    }
    Ok((at, Loader::Unknown))
}

enum File {
    Link(String),
    /// Its beginning.
    Plain(Vec<u8>),
}

/// A program as a shell would find it.
async fn find(
    engine: &Engine,
    container: &str,
    program: &str,
    path: &str,
) -> Result<Option<(String, File)>, EngineError> {
    let places: Vec<String> = if program.contains('/') {
        vec![program.to_owned()]
    } else {
        path.split(':')
            .map(|directory| format!("{directory}/{program}"))
            .collect()
    };
    for place in places {
        if let Some(file) = read(engine, container, &place).await? {
            return Ok(Some((place, file)));
        }
    }
    Ok(None)
}

async fn read(engine: &Engine, container: &str, path: &str) -> Result<Option<File>, EngineError> {
    let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
    let mut chunks = engine.docker().download_from_container(container, Some(options));
    let mut packed = Vec::new();
    while packed.len() < LOOKED_AT {
        let next = chunks.try_next().await;
        match next.map_err(EngineError::call(format!("look at {path} in {container}"))) {
            Ok(Some(chunk)) => packed.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) if error.status() == Some(404) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(unpack(&packed))
}

/// The first file of the beginning of a tar archive.
fn unpack(packed: &[u8]) -> Option<File> {
    let mut archive = tar::Archive::new(packed);
    let entry = archive.entries().ok()?.next()?.ok()?;
    if let Ok(Some(target)) = entry.link_name() {
        return Some(File::Link(target.to_string_lossy().into_owned()));
    }
    if !entry.header().entry_type().is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    // A large file's end was not asked for.
    let _ = entry.take(LOOKED_AT as u64).read_to_end(&mut bytes);
    Some(File::Plain(bytes))
}

fn resolve(link: &str, target: &str) -> String {
    let directory = std::path::Path::new(link)
        .parent()
        .unwrap_or(std::path::Path::new("/"));
    directory.join(target).to_string_lossy().into_owned()
}

/// The program that runs a script: `sh` of `#!/usr/bin/env sh`.
fn interpreter(file: &[u8]) -> Option<String> {
    let line = file.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let program = words.next()?;
    if program.ends_with("/env") {
        return words
            .find(|word| !word.starts_with('-') && !word.contains('='))
            .map(str::to_owned);
    }
    Some(program.to_owned())
}

/// What loads an ELF program, by its header of type `PT_INTERP`.
fn loader(file: &[u8]) -> Loader {
    read_loader(file).unwrap_or(Loader::Unknown)
}

/// `None` for what is no 64-bit little-endian ELF file, or lies beyond what was read of it.
fn read_loader(file: &[u8]) -> Option<Loader> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| {
        let field = file.get(at..at.checked_add(bytes)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let place = |at: usize, bytes: usize| usize::try_from(number(at, bytes)?).ok();
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (first, size, count) = (place(32, 8)?, place(54, 2)?, place(56, 2)?);
    for header in (0..count).map(|index| first.saturating_add(index * size)) {
        if number(header, 4)? != PT_INTERP {
            continue;
        }
        let (from, length) = (
            place(header.checked_add(8)?, 8)?,
            place(header.checked_add(32)?, 8)?,
        );
        let name = String::from_utf8_lossy(file.get(from..from.checked_add(length)?)?).into_owned();
        return Some(match name.as_str() {
            name if name.contains("ld-musl") => Loader::Musl,
            name if name.contains("ld-linux") || name.contains("/ld64.so") => Loader::Glibc,
            _ => Loader::Unknown,
        });
    }
    Some(Loader::Static)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest ELF file with this loader.
    fn elf(interpreter: Option<&str>) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[32] = 64;
        file[54] = 56;
        let Some(name) = interpreter else {
            return file;
        };
        file[56] = 1;
        file.resize(64 + 56, 0);
        file[64] = 3;
        file[64 + 8] = 64 + 56;
        file[64 + 32] = u8::try_from(name.len()).unwrap();
        file.extend_from_slice(name.as_bytes());
        file
    }

    #[test]
    fn a_programs_loader_is_read_from_its_headers() {
        assert_eq!(loader(&elf(Some("/lib64/ld-linux-x86-64.so.2\0"))), Loader::Glibc);
        assert_eq!(loader(&elf(Some("/lib/ld-musl-x86_64.so.1\0"))), Loader::Musl);
        assert_eq!(loader(&elf(Some("/system/bin/linker64\0"))), Loader::Unknown);
        assert_eq!(loader(&elf(None)), Loader::Static);
    }

    #[test]
    fn what_is_cut_off_or_no_program_is_unknown() {
        let whole = elf(Some("/lib64/ld-linux-x86-64.so.2\0"));
        assert_eq!(loader(&whole[..100]), Loader::Unknown);
        assert_eq!(loader(b"MZ"), Loader::Unknown);
    }

    #[test]
    fn a_script_leads_to_what_runs_it() {
        assert_eq!(interpreter(b"#!/bin/sh -e\nexec").as_deref(), Some("/bin/sh"));
        assert_eq!(interpreter(b"#!/usr/bin/env -S node\n").as_deref(), Some("node"));
        assert_eq!(interpreter(b"\x7fELF"), None);
        assert_eq!(resolve("/usr/bin/sh", "dash"), "/usr/bin/dash");
        assert_eq!(resolve("/bin/sh", "/bin/busybox"), "/bin/busybox");
    }
}
