//! What happened, on one timeline: every version of every row, webhooks, cloud calls, faults, connections
//! through the sidecar, and what the services wrote.

mod connections;
mod deed;
mod deeds;
mod event;
mod excerpt;
mod logs;
mod read;
mod row;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::clock::Rate;

pub use deed::{Bearing, Deed, Heal, Impact, Meaning, Part, Upset};
pub(crate) use deeds::{Deeds, now_us};
pub use event::{Connection, Event, Kind, What};
pub use excerpt::{Excerpt, Whole, Window};
pub(crate) use read::CHANNEL;
pub use read::{Scope, UNRECORDED};
pub use row::{Health, NodeRow, Status};

/// Everything that happened, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    rate: Rate,
    /// Where services answer polls unless something was done to them, and at which ports.
    served: BTreeMap<Ipv4Addr, Vec<u16>>,
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// What it lacks, and why: each fit to follow "missing: ".
    pub gaps: Vec<String>,
}

/// A moment of a history, in seconds since its zero; before that negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// In real time.
    pub real: f64,
    /// In platform-api's.
    pub platform: f64,
}

impl History {
    /// A history of these events, which are brought into order.
    pub fn new(rate: Rate, mut events: Vec<Event>) -> Self {
        events.sort_by_key(|event| event.at_us);
        Self {
            rate,
            served: BTreeMap::new(),
            events,
            gaps: Vec::new(),
        }
    }

    /// The same, which lacks something.
    #[must_use]
    pub fn lacking(mut self, gaps: impl IntoIterator<Item = String>) -> Self {
        self.gaps.extend(gaps);
        self
    }

    /// The same of a topology that serves these ports at these addresses.
    #[must_use]
    pub fn serving(mut self, served: BTreeMap<Ipv4Addr, Vec<u16>>) -> Self {
        self.served = served;
        self
    }

    /// Whether a service is to answer there.
    pub fn serves(&self, host: Ipv4Addr, port: u16) -> bool {
        self.served.get(&host).is_some_and(|ports| ports.contains(&port))
    }

    /// Whether any service is to answer there.
    pub(crate) fn serves_at(&self, host: Ipv4Addr) -> bool {
        self.served.contains_key(&host)
    }

    /// The same without the versions of rows from before a time.
    #[must_use]
    pub(crate) fn with_rows_since(mut self, from_us: i64) -> Self {
        self.events
            .retain(|event| event.what.kind() != Kind::Row || event.at_us >= from_us);
        self
    }

    /// How fast platform-api's time ran.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Where its time begins, in microseconds since 1970: at the first event that is not about what goes
    /// on anyway, which log lines and connections are.
    pub fn zero_us(&self) -> i64 {
        let told = self.events.iter().find(|event| event.what.kind().is_told());
        told.or(self.events.first()).map_or(0, |event| event.at_us)
    }

    /// A time of the host's clock, in microseconds since 1970, as a moment of this history.
    pub fn moment(&self, at_us: i64) -> Moment {
        #[expect(clippy::cast_precision_loss, reason = "a history is shorter than a century")]
        let real = (at_us - self.zero_us()) as f64 / 1e6;
        let whole = std::time::Duration::from_secs(1);
        Moment {
            real,
            platform: real * self.rate.platform(whole).0.as_secs_f64(),
        }
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
