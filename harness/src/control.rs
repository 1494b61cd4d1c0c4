//! The harness's end of a machine's control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Error as JsonError;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use wopr_machine::paths::CONTROL_SOCKET;
use wopr_machine::protocol::{Phase, Reply, Request, Status};

/// A machine's first process makes its socket within milliseconds; this is for a host on its knees.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// Why a machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket is not there.
    #[error("machine {machine} does not answer at {socket}: {source}")]
    Unreachable {
        /// The machine.
        machine: String,
        /// Its control socket.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection ended before the answer.
    #[error("machine {machine} ended before it answered")]
    Ended {
        /// The machine.
        machine: String,
    },
    /// An answer that cannot be read: the machine image is another version's.
    #[error("machine {machine} answered {line:?}, which is not of this version's protocol: {source}")]
    Protocol {
        /// The machine.
        machine: String,
        /// What it said.
        line: String,
        /// Why that is not an answer.
        source: JsonError,
    },
    /// An answer to another question: the machine image is another version's.
    #[error("machine {machine} answered {reply}, which is no answer to what it was asked")]
    Unexpected {
        /// The machine.
        machine: String,
        /// What it said.
        reply: String,
    },
    /// The machine said no.
    #[error("machine {machine} refused: {reason}")]
    Refused {
        /// The machine.
        machine: String,
        /// Its reason.
        reason: String,
    },
    /// The boot failed.
    #[error("machine {machine} did not boot: {reason}")]
    Boot {
        /// The machine.
        machine: String,
        /// Its reason.
        reason: String,
    },
    /// A program in the machine failed.
    #[error("`{program}` in machine {machine} {outcome}: {stderr}")]
    Program {
        /// The machine.
        machine: String,
        /// The program.
        program: String,
        /// `ended with 1`, `ran into its time-out of 5 s`.
        outcome: String,
        /// What it wrote to standard error.
        stderr: String,
    },
}

impl ControlError {
    pub(crate) fn unexpected(machine: &str, reply: &Reply) -> Self {
        Self::Unexpected {
            machine: machine.to_owned(),
            reply: format!("{reply:?}"),
        }
    }
}

/// An open conversation with a machine.
pub struct Control {
    machine: String,
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Control {
    /// Connects to the socket in a machine's control directory, waiting for it to appear.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`].
    pub async fn connect(machine: &str, directory: &Path) -> Result<Self, ControlError> {
        let socket = directory.join(CONTROL_SOCKET);
        let connected = tokio::time::timeout(CONNECT_PATIENCE, async {
            loop {
                match UnixStream::connect(&socket).await {
                    // Not made yet, or the last boot's: the machine makes it anew before all else.
                    Err(error)
                        if matches!(
                            error.kind(),
                            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                        ) =>
                    {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    other => return other,
                }
            }
        });
        let stream = connected.await.unwrap_or_else(|elapsed| Err(elapsed.into()));
        let stream = stream.map_err(|source| ControlError::Unreachable {
            machine: machine.to_owned(),
            socket,
            source,
        })?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            machine: machine.to_owned(),
            lines: BufReader::new(reader).lines(),
            writer,
        })
    }

    fn ended(&self) -> ControlError {
        ControlError::Ended {
            machine: self.machine.clone(),
        }
    }

    async fn send(&mut self, request: &Request) -> Result<(), ControlError> {
        let mut line = serde_json::to_vec(request).unwrap_or_default();
        line.push(b'\n');
        self.writer.write_all(&line).await.map_err(|_| self.ended())
    }

    async fn receive(&mut self) -> Result<Reply, ControlError> {
        let line = self
            .lines
            .next_line()
            .await
            .ok()
            .flatten()
            .ok_or_else(|| self.ended())?;
        match serde_json::from_str(&line) {
            Ok(Reply::Refused { reason }) => Err(ControlError::Refused {
                machine: self.machine.clone(),
                reason,
            }),
            Ok(reply) => Ok(reply),
            Err(source) => Err(ControlError::Protocol {
                machine: self.machine.clone(),
                line,
                source,
            }),
        }
    }

    /// Asks and waits for the one answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        self.send(request).await?;
        self.receive().await
    }

    /// Waits until the machine is ready; tells of each phase on the way.
    ///
    /// # Errors
    /// [`ControlError::Boot`] with the machine's reason.
    pub async fn until_ready(&mut self, mut on_phase: impl FnMut(&Status)) -> Result<(), ControlError> {
        self.send(&Request::AwaitReady).await?;
        loop {
            let Reply::Status(status) = self.receive().await? else {
                continue;
            };
            on_phase(&status);
            match status.phase {
                Phase::Ready => return Ok(()),
                Phase::Failed { error } => {
                    return Err(ControlError::Boot {
                        machine: self.machine.clone(),
                        reason: error,
                    });
                }
                _ => {}
            }
        }
    }

    /// Runs a program in the machine; returns its exit code (-1 for a signal) and what it printed.
    ///
    /// # Errors
    /// [`ControlError`]; a program that fails is no error here.
    pub async fn run_any(&mut self, argv: &[&str], limit: Duration) -> Result<(i32, String), ControlError> {
        let (code, stdout, _, _) = self.start(argv, limit).await?;
        Ok((code.unwrap_or(-1), stdout))
    }

    async fn start(
        &mut self,
        argv: &[&str],
        limit: Duration,
    ) -> Result<(Option<i32>, String, String, bool), ControlError> {
        let request = Request::Run {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            stdin: None,
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        };
        match self.ask(&request).await? {
            Reply::Exited {
                code,
                stdout,
                stderr,
                timed_out,
            } => Ok((code, stdout, stderr, timed_out)),
            _ => Err(self.ended()),
        }
    }

    /// Runs a program in the machine and returns what it printed.
    ///
    /// # Errors
    /// [`ControlError::Program`] unless it ended with 0.
    pub async fn run(&mut self, argv: &[&str], limit: Duration) -> Result<String, ControlError> {
        let (code, stdout, stderr, timed_out) = self.start(argv, limit).await?;
        if code == Some(0) {
            return Ok(stdout);
        }
        let outcome = match code {
            _ if timed_out => format!("ran into its time-out of {} s", limit.as_secs_f32()),
            Some(code) => format!("ended with {code}"),
            None => "was ended by a signal".to_owned(),
        };
        Err(ControlError::Program {
            machine: self.machine.clone(),
            program: argv.join(" "),
            outcome,
            stderr: stderr.trim().to_owned(),
        })
    }
}
