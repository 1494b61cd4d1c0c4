//! What is drawn: lanes of marks, out of a history.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use wopr_machine::protocol::Record;

use super::Meta;
use crate::history::{Connection, Deed, Event, Health, History, Part, Status, What};
use crate::service::Service;

/// More connections of one link than this at a time share the last lane.
const MOST_ABREAST: usize = 6;

/// One line of the timeline.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lane {
    pub(super) label: String,
    pub(super) marks: Vec<Mark>,
}

/// Something in a lane.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    pub(super) extent: Extent,
    pub(super) look: Look,
    /// Shown beside or in it, where there is room.
    pub(super) text: String,
    /// Place in the history of the event that began it; none for what is no event.
    pub(super) event: Option<usize>,
}

/// How far a mark reaches, in microseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    At(i64),
    Between(i64, i64),
    /// It goes on when the history ends.
    From(i64),
}

impl Extent {
    pub(super) fn begin(self) -> i64 {
        match self {
            Self::At(at) | Self::Between(at, _) | Self::From(at) => at,
        }
    }

    fn end(self) -> i64 {
        match self {
            Self::At(at) | Self::Between(_, at) => at,
            Self::From(_) => i64::MAX,
        }
    }
}

/// How a mark is told from others: by form or pattern as well as by colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Failing,
    Status(Status),
    Ok,
    Down,
    Fault,
    Deed,
    Webhook,
    Cloud,
    Connection,
    Harmed,
    Line,
}

/// All lanes, from top to bottom.
pub(super) fn lanes(history: &History, meta: &Meta) -> Vec<Lane> {
    let mut lanes = vec![failings(meta)];
    for node in nodes(history) {
        lanes.push(statuses(history, node));
        lanes.extend(health(history, node));
    }
    lanes.extend(abreast("faults", faults(history), usize::MAX));
    let lane = |label: &str, marks| Lane {
        label: label.to_owned(),
        marks,
    };
    lanes.push(lane("harness", points(history, deed)));
    lanes.push(lane("webhooks", points(history, webhook)));
    lanes.push(lane("cloud calls", points(history, cloud)));
    for (proxy, marks) in connections(history) {
        lanes.extend(abreast(&proxy, marks, MOST_ABREAST));
    }
    for (service, marks) in logs(history) {
        lanes.push(lane(&format!("log {service}"), marks));
    }
    lanes.retain(|lane| !lane.marks.is_empty());
    lanes
}

fn failings(meta: &Meta) -> Lane {
    let mark = |failing: &super::Failing| Mark {
        extent: match failing.from_us < failing.at_us {
            true => Extent::Between(failing.from_us, failing.at_us),
            false => Extent::At(failing.at_us),
        },
        look: Look::Failing,
        text: failing.what.clone(),
        event: None,
    };
    Lane {
        label: "failed".to_owned(),
        marks: meta.failings.iter().map(mark).collect(),
    }
}

fn nodes(history: &History) -> BTreeSet<&str> {
    let rows = history.events.iter().filter_map(|event| match &event.what {
        What::Row(row) => Some(row.id.as_str()),
        _ => None,
    });
    rows.collect()
}

/// A bar for each stretch of one status.
fn statuses(history: &History, node: &str) -> Lane {
    let mut marks: Vec<Mark> = Vec::new();
    let close = |marks: &mut Vec<Mark>, at_us| {
        if let Some(Mark { extent, .. }) = marks.last_mut()
            && let Extent::From(from) = *extent
        {
            *extent = Extent::Between(from, at_us);
        }
    };
    let mut now = None;
    for (place, event) in history.events.iter().enumerate() {
        match &event.what {
            What::Row(row) if row.id == node && now != Some(row.status) => {
                close(&mut marks, event.at_us);
                now = Some(row.status);
                marks.push(Mark {
                    extent: Extent::From(event.at_us),
                    look: Look::Status(row.status),
                    text: format!("{:?}", row.status).to_lowercase(),
                    event: Some(place),
                });
            }
            What::Deleted(id) if id == node => {
                close(&mut marks, event.at_us);
                now = None;
            }
            _ => {}
        }
    }
    Lane {
        label: node.to_owned(),
        marks,
    }
}

/// A lane for each service that the watchdog asks, with a sign for each poll.
fn health(history: &History, node: &str) -> Vec<Lane> {
    let mut lanes: BTreeMap<String, Vec<Mark>> = BTreeMap::new();
    let mut last = None;
    for (place, event) in history.events.iter().enumerate() {
        let What::Row(row) = &event.what else { continue };
        if row.id != node {
            continue;
        }
        if row.is_poll_after(last) {
            for (service, health) in row.health() {
                let (look, text) = match health {
                    Health::Ok => (Look::Ok, "ok"),
                    Health::Down => (Look::Down, "down"),
                };
                lanes.entry(service).or_default().push(Mark {
                    extent: Extent::At(event.at_us),
                    look,
                    text: text.to_owned(),
                    event: Some(place),
                });
            }
        }
        last = Some(row.as_ref());
    }
    let lane = |(service, marks)| Lane {
        label: format!("  {service}"),
        marks,
    };
    lanes.into_iter().map(lane).collect()
}

/// A bar for each fault, from its begin to its heal.
fn faults(history: &History) -> Vec<Mark> {
    let mut marks: Vec<(Mark, &Deed)> = Vec::new();
    for (place, event) in history.events.iter().enumerate() {
        let What::Deed(deed) = &event.what else { continue };
        match deed.part {
            Part::Begun => {
                let mark = Mark {
                    extent: Extent::From(event.at_us),
                    look: Look::Fault,
                    text: deed.name.clone(),
                    event: Some(place),
                };
                marks.push((mark, deed));
            }
            Part::Healed(_) | Part::Ended => {
                let open = |(mark, begun): &&mut (Mark, &Deed)| {
                    deed.is_about(begun) && matches!(mark.extent, Extent::From(_))
                };
                if let Some((mark, _)) = marks.iter_mut().find(open) {
                    mark.extent = Extent::Between(mark.extent.begin(), event.at_us);
                }
            }
            Part::Changed | Part::Over | Part::Onward => {}
        }
    }
    marks.into_iter().map(|(mark, _)| mark).collect()
}

fn points(history: &History, point: impl Fn(&Event) -> Option<(Look, String)>) -> Vec<Mark> {
    let events = history.events.iter().enumerate();
    let marks = events.filter_map(|(place, event)| {
        let (look, text) = point(event)?;
        Some(Mark {
            extent: Extent::At(event.at_us),
            look,
            text,
            event: Some(place),
        })
    });
    marks.collect()
}

/// What is no fault: those have lanes of their own.
fn deed(event: &Event) -> Option<(Look, String)> {
    match &event.what {
        What::Deed(deed) => match deed.part {
            Part::Begun | Part::Healed(_) | Part::Ended => None,
            Part::Changed | Part::Over | Part::Onward => Some((Look::Deed, deed.to_string())),
        },
        _ => None,
    }
}

fn webhook(event: &Event) -> Option<(Look, String)> {
    match &event.what {
        What::Webhook(record) => Some((Look::Webhook, typed(record))),
        _ => None,
    }
}

fn cloud(event: &Event) -> Option<(Look, String)> {
    match &event.what {
        What::Cloud(record) => Some((Look::Cloud, typed(record))),
        _ => None,
    }
}

/// The type that its body names, else where it went.
fn typed(record: &Record) -> String {
    match &record.body["type"] {
        Value::String(named) => named.clone(),
        _ => format!("{} {}", record.method, record.path),
    }
}

/// By proxy.
fn connections(history: &History) -> BTreeMap<String, Vec<Mark>> {
    let mut proxies: BTreeMap<String, Vec<Mark>> = BTreeMap::new();
    for (place, event) in history.events.iter().enumerate() {
        let What::Connection(connection) = &event.what else {
            continue;
        };
        let Connection {
            bytes_up,
            bytes_down,
            opened_us,
            toxics,
            ..
        } = connection;
        proxies.entry(connection.proxy.clone()).or_default().push(Mark {
            extent: match connection.closed_us {
                Some(closed) => Extent::Between(*opened_us, closed),
                None => Extent::From(*opened_us),
            },
            look: if toxics.is_empty() {
                Look::Connection
            } else {
                Look::Harmed
            },
            text: format!("{bytes_up} B up, {bytes_down} B down {}", toxics.join(" ")),
            event: Some(place),
        });
    }
    proxies
}

fn logs(history: &History) -> BTreeMap<Service, Vec<Mark>> {
    let mut services: BTreeMap<Service, Vec<Mark>> = BTreeMap::new();
    for (place, event) in history.events.iter().enumerate() {
        if let What::Log { service, line } = &event.what {
            services.entry(*service).or_default().push(Mark {
                extent: Extent::At(event.at_us),
                look: Look::Line,
                text: said(line),
                event: Some(place),
            });
        }
    }
    services
}

/// What a line says: where it is a JSON document, its message.
fn said(line: &str) -> String {
    let document: Value = serde_json::from_str(line).unwrap_or_default();
    let message = ["message", "msg"].iter().find_map(|key| document[key].as_str());
    message.unwrap_or(line).to_owned()
}

/// Spreads marks over lanes so that those of a time lie side by side; the first lane has the label.
fn abreast(label: &str, marks: Vec<Mark>, most: usize) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    for mark in marks {
        let is_free = |lane: &Lane| {
            lane.marks
                .last()
                .is_none_or(|last| last.extent.end() <= mark.extent.begin())
        };
        let place = match lanes.iter().position(is_free) {
            Some(place) => place,
            None if lanes.len() >= most => lanes.len() - 1,
            None => {
                let label = if lanes.is_empty() { label } else { "" };
                lanes.push(Lane {
                    label: label.to_owned(),
                    marks: Vec::new(),
                });
                lanes.len() - 1
            }
        };
        lanes[place].marks.push(mark);
    }
    lanes
}

#[cfg(test)]
mod tests;
