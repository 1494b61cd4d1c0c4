//! The binaries of fixtures/, built from the checkout.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::ImageError;
use crate::progress::Task;

/// The last lines of cargo's output that an error shows.
const SHOWN: usize = 30;

/// Builds packages of the workspace and returns the directory that holds their binaries and libraries. A target
/// directory of its own: the one of the `cargo test` that called is locked while its tests run, and
/// features unified with theirs would not be those of the images.
pub(crate) async fn build(root: &Path, packages: &[&str], task: &Task) -> Result<PathBuf, ImageError> {
    let target = root.join("target/fixtures");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command
        .current_dir(root)
        .args(["build", "--locked", "--profile", "fixture", "--target-dir"])
        .arg(&target);
    for package in packages {
        command.args(["--package", package]);
    }
    let shown = format!(
        "cargo build --profile fixture --package {}",
        packages.join(" --package ")
    );
    let mut child = command
        // Set by an outer cargo for the package under test; they would mislead the inner one.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(ImageError::io("run", Path::new(&cargo)))?;
    let mut tail = std::collections::VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            task.detail(line.trim());
            tail.push_back(line);
            if tail.len() > SHOWN {
                tail.pop_front();
            }
        }
    }
    let status = child
        .wait()
        .await
        .map_err(ImageError::io("wait for", Path::new(&cargo)))?;
    if status.success() {
        return Ok(target.join("fixture"));
    }
    Err(ImageError::Cargo {
        command: shown,
        status,
        stderr: Vec::from(tail).join("\n"),
    })
}
