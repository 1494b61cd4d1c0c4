//! Traffic that shows whether a fault is in effect: a request as platform-api sends it, from its own
//! network namespace, or from a machine's.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::FaultError;
use crate::control::Control;
use crate::engine::Engine;

/// A packet between machines of one host takes microseconds; what takes this long does not arrive.
const CONNECT: Duration = Duration::from_millis(300);
/// A service that answers at all answers well within this.
const ANSWER: Duration = Duration::from_millis(900);
/// An effect that is to come (a service that starts again) is looked for so often.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(10);

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With status 2xx.
    Answered,
    /// With another status.
    OtherStatus,
    /// The connection was refused, or no way leads there.
    Refused,
    /// No connection came about.
    NoConnection,
    /// A connection came about, and no whole answer.
    NoAnswer,
    /// The connection broke.
    Broken,
    /// Something else.
    Strange(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("is answered"),
            Self::OtherStatus => f.write_str("is answered with an error"),
            Self::Refused => f.write_str("is refused"),
            Self::NoConnection => f.write_str("gets no connection"),
            Self::NoAnswer => f.write_str("gets no answer"),
            Self::Broken => f.write_str("is cut off"),
            Self::Strange(code) => write!(f, "ends strangely (curl {code})"),
        }
    }
}

/// A request that was sent to see a fault, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// From where, as `platform-api` or `gpu`.
    pub from: String,
    /// What was asked for.
    pub url: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long that took.
    pub took: Duration,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from,
            url,
            outcome,
            took,
        } = self;
        write!(
            f,
            "{url} asked for from {from} {outcome} ({} ms)",
            took.as_millis()
        )
    }
}

/// A request that can be sent.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// Name of where it is sent from.
    pub(super) from: String,
    /// The machine, and its control directory.
    pub(super) machine: (String, PathBuf),
    /// Container whose network namespace it is sent from, and the engine that runs it. None, or one that
    /// does not run, is the machine's own.
    pub(super) container: Option<(Engine, String)>,
    pub(super) url: String,
    /// What a fault adds to the time of an answer.
    pub(super) slower_by: Duration,
}

impl Question {
    /// The same, with more time for the answer.
    pub(super) fn slower_by(self, slower_by: Duration) -> Self {
        Self { slower_by, ..self }
    }

    pub(super) async fn ask(&self) -> Result<Probe, FaultError> {
        let mut control = Control::connect(&self.machine.0, &self.machine.1).await?;
        let (connect, answer) = (
            CONNECT.as_secs_f64().to_string(),
            (ANSWER + self.slower_by).as_secs_f64().to_string(),
        );
        // Looked up each time: a restart gives it another.
        let pid = match &self.container {
            Some((engine, name)) => engine.container(name).await?.and_then(|state| state.pid),
            None => None,
        };
        let namespace = pid.map(|pid| format!("--net=/proc/{pid}/ns/net"));
        let mut argv = Vec::new();
        if let Some(namespace) = &namespace {
            argv.extend(["nsenter", namespace, "--"]);
        }
        argv.extend([
            "curl",
            "--silent",
            "--output",
            "/dev/null",
            "--fail",
            "--noproxy",
            "*",
        ]);
        argv.extend(["--connect-timeout", &connect, "--max-time", &answer]);
        // Whether a connection came about tells two time-outs apart.
        argv.extend(["--write-out", "%{time_connect}", &self.url]);
        let began = Instant::now();
        let (code, out) = control.run_any(&argv, LIMIT + self.slower_by).await?;
        let connected = out.trim().parse::<f64>().is_ok_and(|at| at > 0.0);
        let outcome = match code {
            0 => Outcome::Answered,
            22 => Outcome::OtherStatus,
            7 => Outcome::Refused,
            28 if connected => Outcome::NoAnswer,
            28 => Outcome::NoConnection,
            18 | 52 | 55 | 56 => Outcome::Broken,
            other => Outcome::Strange(other),
        };
        Ok(Probe {
            from: self.from.clone(),
            url: self.url.clone(),
            outcome,
            took: began.elapsed(),
        })
    }

    /// Asks until it ends as wanted, or often enough; returns the last.
    pub(super) async fn ask_until(&self, wanted: Outcome) -> Result<Probe, FaultError> {
        let mut probe = self.ask().await?;
        for _ in 1..TRIES {
            if probe.outcome == wanted {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            probe = self.ask().await?;
        }
        Ok(probe)
    }
}
