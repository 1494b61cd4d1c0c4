//! What happened, on one timeline: every version of every row, webhooks, cloud calls, faults.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use sqlx::{Connection as _, Row as _};
use wopr_machine::protocol::{Caller, Record, Reply, Request};

use crate::VPS;
use crate::clock::Rate;
use crate::topology::{Topology, TopologyError};

/// The trigger that records row versions.
pub(crate) const TRIGGER: &str = include_str!("../../fixtures/sql/history.sql");
/// What the trigger notifies.
pub(crate) const CHANNEL: &str = "wopr_harness";

/// A node's status, as the contract names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the contract's own words")]
pub enum Status {
    Provisioning,
    Bootstrapping,
    Active,
    Degraded,
    Failed,
    Destroying,
}

/// Health of one service, as the watchdog writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the contract's own words")]
pub enum Health {
    Ok,
    Down,
}

/// A version of a node's row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NodeRow {
    /// Its id.
    pub id: String,
    /// What the watchdog polls.
    pub host: Option<String>,
    /// Its droplet.
    pub droplet_id: Option<String>,
    /// Its status.
    pub status: Status,
    /// How far its set-up is.
    pub provision_stage: String,
    /// JSON in a text column.
    pub service_health: Option<String>,
    /// Epoch seconds of the last poll, in platform-api's time.
    pub last_health_at: Option<i64>,
    /// What went wrong.
    pub last_error: Option<String>,
    /// Epoch seconds of the last write, in platform-api's time.
    pub updated_at: i64,
}

/// Writes of one poll are closer together than this, in seconds of platform-api's; polls are not.
const ONE_POLL: i64 = 10;

impl NodeRow {
    /// Health of each service by its key; empty where nothing, or something else, is written.
    pub fn health(&self) -> BTreeMap<String, Health> {
        let text = self.service_health.as_deref().unwrap_or("{}");
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Whether this version, which came after `last`, is what a poll wrote. Each poll writes the health;
    /// a change of status follows in a write of its own. A platform-api that dates good polls alone writes
    /// the same again: that is told by the time since.
    pub fn is_poll_after(&self, last: Option<&NodeRow>) -> bool {
        let Some(last) = last else {
            return self.service_health.is_some();
        };
        let found = self.last_health_at != last.last_health_at || self.service_health != last.service_health;
        let again = self.status == last.status
            && self.provision_stage == last.provision_stage
            && self.updated_at - last.updated_at >= ONE_POLL;
        self.service_health.is_some() && (found || again)
    }

    /// Whether every service of a poll was down.
    pub fn is_silent(&self) -> bool {
        let health = self.health();
        !health.is_empty() && health.values().all(|health| *health == Health::Down)
    }
}

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
    Deed(String),
}

/// What the harness did, as it notes it down. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deeds(Arc<Mutex<Vec<Event>>>);

impl Deeds {
    /// Notes a deed, done now.
    pub(crate) fn note(&self, what: impl Into<String>) {
        let event = Event {
            at_us: now_us(),
            what: What::Deed(what.into()),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Keeps events whose own record is about to be lost; those that are kept already are not kept twice.
    pub(crate) fn keep(&self, events: Vec<Event>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            if !kept.contains(&event) {
                kept.push(event);
            }
        }
    }

    fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Everything that happened, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    rate: Rate,
    /// The events.
    pub events: Vec<Event>,
}

impl History {
    /// A history of these events, which are brought into order.
    pub fn new(rate: Rate, mut events: Vec<Event>) -> Self {
        events.sort_by_key(|event| event.at_us);
        Self { rate, events }
    }

    /// The versions of a node's row, with their times.
    pub fn rows<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (i64, &'a NodeRow)> {
        self.events.iter().filter_map(move |event| match &event.what {
            What::Row(row) if row.id == node => Some((event.at_us, row.as_ref())),
            _ => None,
        })
    }

    /// A node's status, each time it changed.
    pub fn statuses(&self, node: &str) -> Vec<Status> {
        let mut statuses: Vec<_> = self.rows(node).map(|(_, row)| row.status).collect();
        statuses.dedup();
        statuses
    }

    /// The polls of a node: each row version that dates a poll or writes another health.
    pub fn polls<'a>(&'a self, node: &'a str) -> Vec<(i64, &'a NodeRow)> {
        let mut last: Option<&NodeRow> = None;
        let mut polls = Vec::new();
        for (at, row) in self.rows(node) {
            if row.is_poll_after(last) {
                polls.push((at, row));
            }
            last = Some(row);
        }
        polls
    }

    /// Types of the webhooks about a node, in order.
    pub fn notifications(&self, node: &str) -> Vec<String> {
        let hooks = self.events.iter().filter_map(|event| match &event.what {
            What::Webhook(record) if record.body["node_id"] == node => record.body["type"].as_str(),
            _ => None,
        });
        hooks.map(str::to_owned).collect()
    }

    /// How often a reboot of a droplet was asked for.
    pub fn reboots(&self, droplet: &str) -> usize {
        let path = format!("/droplets/{droplet}/actions");
        let calls = self.events.iter().filter(|event| match &event.what {
            What::Cloud(record) => record.path.ends_with(&path) && record.body["type"] == "reboot",
            _ => false,
        });
        calls.count()
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.events.first() else {
            return f.write_str("  nothing has happened\n");
        };
        for event in &self.events {
            let since = u64::try_from(event.at_us - first.at_us).unwrap_or(0);
            let since = std::time::Duration::from_micros(since);
            let platform = self.rate.platform(since);
            writeln!(
                f,
                "  {:>8.3} s  {:>8}  {}",
                since.as_secs_f64(),
                platform.to_string(),
                event.what
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(row) => {
                write!(f, "row      {} {:?}", row.id, row.status)?;
                let health = row.service_health.as_deref().unwrap_or("never polled");
                write!(f, " {health}")?;
                if row.provision_stage != "done" {
                    write!(f, " stage {}", row.provision_stage)?;
                }
                Ok(())
            }
            Self::Deleted(id) => write!(f, "row      {id} deleted"),
            Self::Webhook(record) => write!(f, "webhook  {} → {:?}", record.body, record.status),
            Self::Cloud(record) => {
                write!(
                    f,
                    "cloud    {} {} {} → {:?}",
                    record.method, record.path, record.body, record.status
                )
            }
            Self::Deed(what) => write!(f, "harness  {what}"),
        }
    }
}

impl Topology {
    /// Installs the trigger that records row versions; doing it again changes nothing.
    pub(crate) async fn record_rows(&self) -> Result<(), TopologyError> {
        let mut database = self.database().await?;
        let installed = sqlx::raw_sql(TRIGGER).execute(&mut database).await;
        installed.map_err(TopologyError::database("record the versions of gpu_nodes"))?;
        database
            .close()
            .await
            .map_err(TopologyError::database("close the connection to postgres"))
    }

    /// Everything that has happened until now: row versions since the first watch, and all the rest since
    /// the boot.
    ///
    /// # Errors
    /// [`TopologyError`] when database or recorder cannot be read.
    pub async fn history(&self) -> Result<History, TopologyError> {
        let mut events = self.deeds().all();
        events.extend(self.row_versions(0).await?.into_iter().map(|(_, event)| event));
        let records = self.records().await?;
        let fresh: Vec<_> = records
            .into_iter()
            .filter(|record| !events.contains(record))
            .collect();
        events.extend(fresh);
        Ok(History::new(self.rate(), events))
    }

    /// Row versions after a number.
    pub(crate) async fn row_versions(&self, after: i64) -> Result<Vec<(i64, Event)>, TopologyError> {
        let mut database = self.database().await?;
        let query = "SELECT seq, at_us, node_id, version::text FROM wopr_harness.row_versions WHERE seq > $1 ORDER BY seq";
        let rows = sqlx::query(query).bind(after).fetch_all(&mut database).await;
        let rows = rows.map_err(TopologyError::database("read the versions of gpu_nodes"))?;
        let event = |row: &sqlx::postgres::PgRow| {
            let version: Option<String> = row.try_get("version")?;
            let what = match version {
                None => What::Deleted(row.try_get("node_id")?),
                Some(text) => {
                    let version =
                        serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
                    What::Row(Box::new(version))
                }
            };
            Ok((
                row.try_get("seq")?,
                Event {
                    at_us: row.try_get("at_us")?,
                    what,
                },
            ))
        };
        let events: Result<_, sqlx::Error> = rows.iter().map(event).collect();
        events.map_err(TopologyError::database("understand the versions of gpu_nodes"))
    }

    /// What the recorder on the VPS machine got since that booted: it keeps it in memory.
    pub(crate) async fn records(&self) -> Result<Vec<Event>, TopologyError> {
        let asked = self
            .control(&VPS)
            .await?
            .ask(&Request::Records { from: 0, wait: false })
            .await?;
        let Reply::Records { records } = asked else {
            return Ok(Vec::new());
        };
        let event = |record: Record| Event {
            at_us: record.at_us,
            what: match record.caller {
                Caller::Webhook => What::Webhook(record),
                Caller::Cloud => What::Cloud(record),
            },
        };
        Ok(records.into_iter().map(event).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at_us: i64, status: Status, health: &str, polled: i64) -> Event {
        let row = NodeRow {
            id: "a".into(),
            host: None,
            droplet_id: None,
            status,
            provision_stage: "done".into(),
            service_health: Some(health.into()),
            last_health_at: Some(polled),
            last_error: None,
            updated_at: at_us / 1_000_000,
        };
        Event {
            at_us,
            what: What::Row(Box::new(row)),
        }
    }

    #[test]
    fn a_status_that_stays_is_told_once() {
        let events = vec![
            row(3, Status::Degraded, "{}", 60),
            row(1, Status::Active, "{}", 30),
            row(2, Status::Active, "{}", 60),
        ];
        let history = History::new(Rate::FAST, events);
        assert_eq!(history.statuses("a"), [Status::Active, Status::Degraded]);
        // The change of status is no poll of its own.
        assert_eq!(history.polls("a").len(), 2);
    }

    #[test]
    fn it_is_told_in_both_times() {
        let history = History::new(
            Rate::FAST,
            vec![
                row(0, Status::Active, "{}", 1),
                row(500_000, Status::Active, "{}", 2),
            ],
        );
        let text = history.to_string();
        assert!(
            text.ends_with("     0.500 s    15.0 s  row      a Active {}\n"),
            "{text}"
        );
    }
}
