//! Holds the polls of a node against what the harness did: to the services, to the ways to them, and to what
//! polls themselves rest on. It speaks up where what was done leaves no doubt: a poll's requests are older than the
//! row that tells of them, a busy host stretches that, and what was healed takes its time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::spans::{Aftermath, Span, spans};
use super::{Breach, end_of, micros};
use crate::clock::{polls, seconds};
use crate::history::{Health, History, Impact, NodeRow, Status, Upset, What};

/// The services that the watchdog asks, and the port of each.
const PORTS: [(&str, u16); 4] = [
    ("llama", 8080),
    ("chatterbox", 8081),
    ("whisper", 8082),
    ("qwen", 8083),
];
/// What a busy host takes beyond platform-api's time, in microseconds.
const BUSY: i64 = 1_000_000;
/// A request's time-out, in seconds of platform-api's. Where that is less than [`BUSY`] a host can be too busy for
/// an answer, and for the one after that.
const TIMEOUT: f64 = 5.0;
/// So many intervals without a poll are too many, and so much of a busy host.
const MISSING: u32 = 4;
const BUSY_FOR_POLLS: i64 = 3 * BUSY;
/// Of so many nodes that do not answer, polls may outlast their interval: finding 3.
const NODES: usize = 6;

/// Judges the polls of a node.
pub(super) fn judge(history: &History, node: &str) -> Vec<Breach> {
    let case = Case {
        history,
        spans: spans(history),
        node,
    };
    let mut breaches = case.answered_though_cut();
    breaches.extend(case.down_without_cause());
    breaches.extend(case.missing());
    breaches
}

struct Case<'a> {
    history: &'a History,
    spans: Vec<Span<'a>>,
    node: &'a str,
}

fn address(row: &NodeRow) -> Option<Ipv4Addr> {
    row.host.as_deref()?.parse().ok()
}

impl<'a> Case<'a> {
    fn polls(&self) -> Vec<(i64, &'a NodeRow)> {
        let mut polls = Vec::new();
        let mut last: Option<&NodeRow> = None;
        for event in &self.history.events {
            match &event.what {
                What::Row(row) if row.id == self.node => {
                    // The first version is a seeder's, with what that made up.
                    if last.is_some() && row.is_poll_after(last) {
                        polls.push((event.at_us, row.as_ref()));
                    }
                    last = Some(row);
                }
                What::Deleted(id) if id == self.node => last = None,
                _ => {}
            }
        }
        polls
    }

    /// A poll that was written then asked no earlier than this.
    fn asked_after(&self, at: i64) -> i64 {
        at - micros(self.history, polls(1)) - BUSY
    }

    fn after(&self, aftermath: Aftermath) -> i64 {
        match aftermath {
            Aftermath::Short => BUSY,
            Aftermath::Long => micros(self.history, polls(6)) + 5 * BUSY,
        }
    }

    fn breach(&self, at_us: i64, what: String) -> Breach {
        Breach { at_us, what }
    }

    /// Services that were ok in a poll though nothing could come through from before it until after it.
    fn answered_though_cut(&self) -> Vec<Breach> {
        let mut breaches = Vec::new();
        for (at, row) in self.polls() {
            let Some(host) = address(row) else { continue };
            let health = row.health();
            let well = PORTS
                .iter()
                .filter(|(key, _)| health.get(*key) == Some(&Health::Ok));
            for (key, port) in well {
                let cut = self.spans.iter().find(|span| {
                    span.is_certain(self.asked_after(at), at)
                        && span.meaning.bearing.may_meet(Some(host), *port)
                });
                if let Some(cut) = cut {
                    breaches.push(self.breach(at, format!("{key} was found ok during the {}", cut.name)));
                }
            }
        }
        breaches
    }

    /// Services that were down for longer than a busy host explains, and nothing was done to them.
    fn down_without_cause(&self) -> Vec<Breach> {
        let (mut breaches, mut runs) = (Vec::new(), BTreeMap::<&str, u32>::new());
        for (at, row) in self.polls() {
            let health = row.health();
            for (key, port) in PORTS {
                let run = runs.entry(key).or_default();
                let served = address(row).filter(|host| self.history.serves(*host, port));
                let down = health.get(key) == Some(&Health::Down);
                match served {
                    Some(host) if down && !self.may_be_harmed(at, host, port) => *run += 1,
                    _ => *run = 0,
                }
                if *run == self.tolerated() + 1 {
                    let what =
                        format!("{key} was found down {run} times in a row, and nothing was done to it");
                    breaches.push(self.breach(at, what));
                }
            }
        }
        breaches
    }

    /// Polls in a row that a busy host may lose.
    fn tolerated(&self) -> u32 {
        if micros(self.history, seconds(TIMEOUT)) < BUSY {
            2
        } else {
            1
        }
    }

    fn may_be_harmed(&self, at: i64, host: Ipv4Addr, port: u16) -> bool {
        let from = self.asked_after(at);
        self.spans.iter().any(|span| {
            let harms =
                span.meaning.impact != Impact::None && span.meaning.bearing.may_meet(Some(host), port);
            (harms || span.meaning.has(&Upset::OF_POLLS))
                && span.may_show(from, at, |after| self.after(after))
        })
    }

    /// Times without a poll, though platform-api and its database were left alone.
    fn missing(&self) -> Vec<Breach> {
        let nodes: std::collections::BTreeSet<_> = self
            .history
            .events
            .iter()
            .filter_map(|event| match &event.what {
                What::Row(row) => Some(&row.id),
                _ => None,
            })
            .collect();
        if nodes.len() > NODES {
            return Vec::new();
        }
        let (mut breaches, mut since, mut last) = (Vec::new(), None::<i64>, None::<&NodeRow>);
        for event in &self.history.events {
            let at = event.at_us;
            match &event.what {
                What::Row(row) if row.id == self.node => {
                    let is_poll = last.is_some() && row.is_poll_after(last);
                    if let Some(from) = since {
                        breaches.extend(self.too_long(from, at));
                    }
                    since = match since {
                        _ if !is_polled(row) => None,
                        Some(from) if !is_poll => Some(from),
                        _ => Some(at),
                    };
                    last = Some(row);
                }
                What::Deleted(id) if id == self.node => (since, last) = (None, None),
                _ => {}
            }
        }
        if let Some(from) = since {
            breaches.extend(self.too_long(from, end_of(self.history)));
        }
        // One that goes on is told once.
        breaches.dedup_by_key(|breach| breach.what.clone());
        breaches
    }

    fn too_long(&self, from: i64, to: i64) -> Option<Breach> {
        let limit = micros(self.history, polls(MISSING)) + BUSY_FOR_POLLS;
        let upset = |span: &Span| {
            span.meaning.has(&Upset::OF_POLLS) && span.may_show(from, to, |after| self.after(after))
        };
        if to - from <= limit || self.spans.iter().any(upset) {
            return None;
        }
        let since = self.history.moment(from).real;
        let what = format!("no poll since {since:.3} s, and platform-api and its database were left alone");
        Some(self.breach(to, what))
    }
}

/// Whether the watchdog polls a node whose row is so.
fn is_polled(row: &NodeRow) -> bool {
    row.host.is_some() && matches!(row.status, Status::Active | Status::Degraded)
}
