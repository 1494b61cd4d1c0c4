//! Programs inside a container.

use bollard::container::LogOutput;
use bollard::exec::StartExecResults;
use bollard::models::ExecConfig;
use futures_util::StreamExt as _;

use super::{Engine, EngineError};

/// How a program in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: i64,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with 0.
    pub fn is_success(&self) -> bool {
        self.code == 0
    }
}

impl Engine {
    /// Runs a program in a running container, as the image's user, to its end.
    ///
    /// # Errors
    /// [`EngineError::Call`]; a program that fails is no error here.
    pub async fn exec(&self, container: &str, argv: &[&str]) -> Result<Output, EngineError> {
        let failed = || {
            EngineError::call(format!(
                "run {} in {container}",
                argv.first().unwrap_or(&"nothing")
            ))
        };
        let config = ExecConfig {
            cmd: Some(argv.iter().map(|word| (*word).to_owned()).collect()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        let made = self
            .docker()
            .create_exec(container, config)
            .await
            .map_err(failed())?;
        let started = self.docker().start_exec(&made.id, None).await.map_err(failed())?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let StartExecResults::Attached { mut output, .. } = started {
            while let Some(piece) = output.next().await {
                match piece.map_err(failed())? {
                    LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                    other => stdout.extend_from_slice(&other.into_bytes()),
                }
            }
        }
        let ended = self.docker().inspect_exec(&made.id).await.map_err(failed())?;
        Ok(Output {
            code: ended.exit_code.unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }
}
