//! Traffic that shows whether a fault is in effect: a request as a service sends it, from its own network
//! namespace, or from a machine's; on a new connection, or on one that was open before.

use std::fmt;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use wopr_machine::protocol::{Reply, Request, Talk};

use super::FaultError;
use crate::control::{Control, ControlError};
use crate::engine::Engine;

pub use wopr_machine::protocol::Outcome;

/// A packet between machines of one host takes microseconds; what takes this long does not arrive.
pub(super) const CONNECT: Duration = Duration::from_millis(300);
/// A service that answers at all answers well within this.
pub(super) const ANSWER: Duration = Duration::from_millis(900);
/// An effect that is to come (a service that starts again) is looked for so often.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// The connection that a request was sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// One that was opened for it.
    New,
    /// One that was open, and had been answered on, before the fault began.
    Flowing,
}

/// A request that was sent to see a fault, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// From where, as `platform-api` or `gpu`.
    pub from: String,
    /// What was asked for.
    pub url: String,
    /// On what.
    pub connection: Connection,
    /// How it ended.
    pub outcome: Outcome,
    /// How long that took.
    pub took: Duration,
}

fn words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Answered => "is answered",
        Outcome::OtherStatus => "is answered with an error",
        Outcome::Refused => "is refused",
        Outcome::NoConnection => "gets no connection",
        Outcome::NoAnswer => "gets no answer",
        Outcome::Broken => "is cut off",
        Outcome::Closed => "finds its connection closed",
    }
}

impl Probe {
    /// Whether it ended as wanted. Where no answer was to come, the other end may have closed the connection for its
    /// part: a server does so that takes its answer for sent, and hears nothing more for its keep-alive time.
    pub(super) fn ended_as(&self, wanted: Outcome) -> bool {
        self.outcome == wanted || (wanted == Outcome::NoAnswer && self.outcome == Outcome::Broken)
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, url, .. } = self;
        let on = match self.connection {
            Connection::New => "",
            Connection::Flowing => " on a flowing connection",
        };
        let (outcome, took) = (words(self.outcome), self.took.as_millis());
        write!(f, "{url} asked for from {from}{on} {outcome} ({took} ms)")
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
    /// `http://address:port/path`, or `postgres://address:port`.
    pub(super) url: String,
    /// What a fault adds to the time of an answer.
    pub(super) slower_by: Duration,
}

/// A connection that is open, and can be asked again.
pub(super) struct Flow {
    question: Question,
    control: Control,
    /// In whose network it was opened; none is the machine's own.
    process: Option<i64>,
}

impl Question {
    /// The same, with more time for the answer.
    pub(super) fn slower_by(self, slower_by: Duration) -> Self {
        Self { slower_by, ..self }
    }

    /// Asks on a new connection.
    pub(super) async fn ask(&self) -> Result<Probe, FaultError> {
        Ok(self.open().await?.1)
    }

    /// Asks on a new connection, which stays open where it came about.
    pub(super) async fn open(&self) -> Result<(Flow, Probe), FaultError> {
        let mut control = Control::connect(&self.machine.0, &self.machine.1).await?;
        // Looked up each time: a restart gives it another.
        let process = self.process().await?;
        let (to, talk) = self.understood().ok_or_else(|| FaultError::BadUrl {
            url: self.url.clone(),
        })?;
        let request = Request::Ask {
            from: process.and_then(|process| u32::try_from(process).ok()),
            to,
            talk,
            connect_ms: millis(CONNECT),
            answer_ms: millis(ANSWER + self.slower_by),
        };
        let probe = self.probe(&mut control, &request, Connection::New).await?;
        let question = self.clone();
        let flow = Flow {
            question,
            control,
            process,
        };
        Ok((flow, probe))
    }

    /// The container's first process; none where it has none, or none is asked from.
    async fn process(&self) -> Result<Option<i64>, FaultError> {
        match &self.container {
            Some((engine, name)) => Ok(engine.container(name).await?.and_then(|state| state.pid)),
            None => Ok(None),
        }
    }

    fn understood(&self) -> Option<(SocketAddrV4, Talk)> {
        let (scheme, rest) = self.url.split_once("://")?;
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let talk = match scheme {
            "postgres" => Talk::Postgres,
            _ => Talk::Http {
                path: format!("/{path}"),
            },
        };
        Some((place.parse().ok()?, talk))
    }

    async fn probe(
        &self,
        control: &mut Control,
        request: &Request,
        connection: Connection,
    ) -> Result<Probe, FaultError> {
        let began = Instant::now();
        let (outcome, took) = match control.ask(request).await {
            Ok(Reply::Asked { outcome, took_us }) => (outcome, Duration::from_micros(took_us)),
            Ok(other) => return Err(ControlError::unexpected(&self.machine.0, &other).into()),
            // The process ended between two looks: nothing of it opens connections.
            Err(ControlError::Refused { .. }) => (Outcome::NoConnection, began.elapsed()),
            Err(error) => return Err(error.into()),
        };
        Ok(Probe {
            from: self.from.clone(),
            url: self.url.clone(),
            connection,
            outcome,
            took,
        })
    }

    /// Asks until it ends as wanted, or often enough; returns the last.
    pub(super) async fn ask_until(&self, wanted: Outcome) -> Result<Probe, FaultError> {
        let mut probe = self.ask().await?;
        for _ in 1..TRIES {
            if probe.ended_as(wanted) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            probe = self.ask().await?;
        }
        Ok(probe)
    }
}

impl Flow {
    /// Whether the container that it was opened from has ended since, and its network with it.
    pub(super) async fn is_orphaned(&self) -> Result<bool, FaultError> {
        Ok(self.question.process().await? != self.process)
    }

    /// Sends a further request on the open connection.
    pub(super) async fn ask(&mut self, patience: Duration) -> Result<Probe, FaultError> {
        let request = Request::AskAgain {
            answer_ms: millis(patience),
        };
        self.question
            .probe(&mut self.control, &request, Connection::Flowing)
            .await
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(url: &str) -> Question {
        Question {
            from: "platform-api".into(),
            machine: ("vps".into(), PathBuf::new()),
            container: None,
            url: url.into(),
            slower_by: Duration::ZERO,
        }
    }

    #[test]
    fn a_connection_that_the_other_end_closes_brought_no_answer_either() {
        let ended = |outcome| Probe {
            from: "gpu".into(),
            url: "http://10.87.0.2:3100/health".into(),
            connection: Connection::New,
            outcome,
            took: Duration::from_millis(209),
        };
        assert!(ended(Outcome::Broken).ended_as(Outcome::NoAnswer));
        assert!(!ended(Outcome::Answered).ended_as(Outcome::NoAnswer));
        assert!(!ended(Outcome::NoAnswer).ended_as(Outcome::Broken));
    }

    #[test]
    fn a_url_says_where_to_and_what() {
        let (to, talk) = question("http://10.87.0.3:8080/health").understood().unwrap();
        assert_eq!(to.to_string(), "10.87.0.3:8080");
        let path = "/health".to_owned();
        assert_eq!(talk, Talk::Http { path });
        let (_, talk) = question("postgres://10.86.1.2:5432").understood().unwrap();
        assert_eq!(talk, Talk::Postgres);
        assert!(question("http://wopr-gpu:8080/health").understood().is_none());
    }

    #[test]
    fn a_probe_says_which_connection_it_was_sent_on() {
        let probe = Probe {
            from: "platform-api".into(),
            url: "http://10.87.0.3:8080/health".into(),
            connection: Connection::Flowing,
            outcome: Outcome::Broken,
            took: Duration::from_millis(1),
        };
        assert_eq!(
            probe.to_string(),
            "http://10.87.0.3:8080/health asked for from platform-api on a flowing connection is cut off (1 ms)"
        );
    }
}
