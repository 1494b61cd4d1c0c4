//! The base image: Debian's, pulled, or the same made here from Debian's packages.

use std::process::Stdio;

use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio_util::io::ReaderStream;

use super::ImageError;
use crate::engine::Engine;
use crate::progress::Progress;

/// The suite whose packages hold all the engines that the services need.
const SUITE: &str = "forky";
/// Name of the base, pulled or made.
pub(crate) const BASE: &str = "debian:forky-slim";

/// Makes sure that the base is there.
pub(crate) async fn ensure(engine: &Engine, progress: &Progress) -> Result<(), ImageError> {
    if engine.image(BASE).await?.is_some() {
        return Ok(());
    }
    let task = progress.begin(format!("getting the base image {BASE}"));
    if let Err(pull) = engine.pull(BASE, None).await {
        task.detail("it cannot be pulled; making it from Debian's packages");
        bootstrap(engine, pull.to_string()).await?;
    }
    task.done();
    Ok(())
}

/// mmdebstrap writes a root file system to its standard output, straight into the engine.
async fn bootstrap(engine: &Engine, pull: String) -> Result<(), ImageError> {
    let no_base = |mmdebstrap: String| ImageError::NoBase {
        image: BASE,
        pull: pull.clone(),
        mmdebstrap,
    };
    let mut child = Command::new("mmdebstrap")
        .args([
            "--variant=minbase",
            "--quiet",
            "--aptopt=Acquire::Check-Valid-Until \"false\"",
        ])
        .args([SUITE, "-"])
        .arg(format!("deb http://deb.debian.org/debian {SUITE} main"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| no_base(format!("could not be run: {error}")))?;
    let (Some(root), Some(mut words)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(no_base("has no output".to_owned()));
    };
    let said = tokio::spawn(async move {
        let mut text = String::new();
        let _ = words.read_to_string(&mut text).await;
        text
    });
    let imported = engine
        .import_root(BASE, ReaderStream::new(root).map(|piece| piece))
        .await;
    let status = child
        .wait()
        .await
        .map_err(|error| no_base(format!("could not be waited for: {error}")))?;
    if !status.success() {
        // What the engine made of half a file system must not be taken for the base.
        engine.remove_image(BASE).await?;
        let words = said.await.unwrap_or_default();
        return Err(no_base(format!("ended with {status}: {}", words.trim())));
    }
    Ok(imported?)
}
