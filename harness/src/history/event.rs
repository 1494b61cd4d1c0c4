//! One event of a history, and how it reads.

use std::fmt;

use wopr_machine::protocol::Record;

use super::{Deed, NodeRow};
use crate::service::Service;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When, in microseconds since 1970 by the host's clock.
    pub at_us: i64,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A row was written; its version after that.
    Row(Box<NodeRow>),
    /// A row was deleted.
    Deleted(String),
    /// platform-api sent a webhook.
    Webhook(Record),
    /// platform-api called the cloud.
    Cloud(Record),
    /// The harness did something: a fault, a heal, a restart.
    Deed(Deed),
    /// A service wrote a line. When is told by the engine, not by the service, whose clock may run faster.
    Log {
        /// The service.
        service: Service,
        /// The line, without secrets and control characters.
        line: String,
    },
    /// A connection was opened through the Toxiproxy sidecar.
    Connection(Connection),
}

/// A connection through the Toxiproxy sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The sidecar's name of the proxy, as `link-20000`.
    pub proxy: String,
    /// Address and port that it came from.
    pub client: String,
    /// When it was opened, in microseconds since 1970 by the host's clock, to the millisecond.
    pub opened_us: i64,
    /// When it was closed; none while it is open.
    pub closed_us: Option<i64>,
    /// Bytes that the client sent and that were handed on.
    pub bytes_up: u64,
    /// Bytes that it was sent.
    pub bytes_down: u64,
    /// Names of the toxics that applied to it, as `latency_downstream`.
    pub toxics: Vec<String>,
}

/// Of what kind an event is: how a reader tells apart and filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A row of gpu_nodes.
    Row,
    /// A webhook.
    Webhook,
    /// A call of the cloud.
    Cloud,
    /// A deed of the harness.
    Harness,
    /// A connection through the sidecar.
    Connection,
    /// A line of a service's log.
    Log,
}

impl Kind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Kind; 6] = [
        Self::Row,
        Self::Webhook,
        Self::Cloud,
        Self::Harness,
        Self::Connection,
        Self::Log,
    ];

    /// Whether a history is told by it. Log lines and connections come in any number, and go on anyway: they
    /// stand beside what is told.
    pub fn is_told(self) -> bool {
        !matches!(self, Self::Connection | Self::Log)
    }

    /// Its word, as a history shows it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Webhook => "webhook",
            Self::Cloud => "cloud",
            Self::Harness => "harness",
            Self::Connection => "link",
            Self::Log => "log",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl What {
    /// Of what kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Row(_) | Self::Deleted(_) => Kind::Row,
            Self::Webhook(_) => Kind::Webhook,
            Self::Cloud(_) => Kind::Cloud,
            Self::Deed(_) => Kind::Harness,
            Self::Connection(_) => Kind::Connection,
            Self::Log { .. } => Kind::Log,
        }
    }

    /// What happened, without the word for its kind.
    pub fn detail(&self) -> String {
        match self {
            Self::Row(row) => {
                let health = row.service_health.as_deref().unwrap_or("never polled");
                let mut text = format!("{} {:?} {health}", row.id, row.status);
                if row.provision_stage != "done" {
                    text.push_str(&format!(" stage {}", row.provision_stage));
                }
                text
            }
            Self::Deleted(id) => format!("{id} deleted"),
            Self::Webhook(record) => format!("{} → {}", record.body, answered(record)),
            Self::Cloud(record) => {
                let Record {
                    method, path, body, ..
                } = record;
                format!("{method} {path} {body} → {}", answered(record))
            }
            Self::Deed(deed) => deed.to_string(),
            Self::Log { service, line } => format!("{service} | {line}"),
            Self::Connection(connection) => connection.to_string(),
        }
    }
}

fn answered(record: &Record) -> String {
    match record.status {
        Some(status) => status.to_string(),
        None => "closed without an answer".to_owned(),
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {}", self.kind(), self.detail())
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.proxy, self.client)?;
        match self.closed_us {
            Some(closed) => write!(f, ", {} ms", (closed - self.opened_us) / 1000)?,
            None => f.write_str(", still open")?,
        }
        write!(f, ", {} B up, {} B down", self.bytes_up, self.bytes_down)?;
        if !self.toxics.is_empty() {
            write!(f, ", {}", self.toxics.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_says_its_way_its_time_its_bytes_and_its_toxics() {
        let connection = Connection {
            proxy: "link-20000".into(),
            client: "10.87.0.2:4711".into(),
            opened_us: 1_000_000,
            closed_us: Some(1_042_000),
            bytes_up: 80,
            bytes_down: 120,
            toxics: vec!["latency_downstream".into()],
        };
        assert_eq!(
            What::Connection(connection).to_string(),
            "link     link-20000 from 10.87.0.2:4711, 42 ms, 80 B up, 120 B down, latency_downstream"
        );
    }

    #[test]
    fn a_line_of_a_log_names_its_service() {
        let what = What::Log {
            service: Service::PlatformApi,
            line: "listens".into(),
        };
        assert_eq!(what.to_string(), "log      platform-api | listens");
    }
}
