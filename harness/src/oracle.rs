//! A model of what the contract allows platform-api to do, judging a history after the fact. It has no clock and
//! no I/O, and shares nothing with the reference platform-api.
//!
//! Three judges look at each node. One believes its polls, and says what has to follow from each: a status, a
//! notification, a reboot. Another holds the polls themselves against what the harness did to the services and to the
//! ways to them. The third looks at how a node comes about and goes: its stages, its droplet, the reason of a failure.
//! Where what was done leaves it open, nothing is a breach.

mod provisioning;
mod spans;
mod verdict;
mod watchdog;

use std::collections::BTreeSet;
use std::fmt;

use crate::clock::{PlatformTime, polls};
use crate::history::{History, What, Window};

/// Says what a history breaches about a node.
type Judge = fn(&History, &str) -> Vec<Breach>;

const JUDGES: [Judge; 3] = [watchdog::judge, verdict::judge, provisioning::judge];

/// Something that the contract does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// When, in microseconds since 1970.
    pub at_us: i64,
    /// What was wrong.
    pub what: String,
}

/// What a history breaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The breaches, oldest first.
    pub breaches: Vec<Breach>,
    history: Box<History>,
}

impl Judgement {
    /// The history that was judged.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// A span round each breach, in which its cause may be seen.
    pub fn windows(&self) -> Vec<Window> {
        let round = |breach: &Breach| {
            self.history
                .window(breach.at_us, polls(3), breach.at_us, polls(1))
        };
        self.breaches.iter().map(round).collect()
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the contract does not allow this history:\n")?;
        for breach in &self.breaches {
            let at = self.history.moment(breach.at_us).real;
            writeln!(f, "  at {at:.3} s: {}", breach.what)?;
        }
        write!(
            f,
            "what happened round that:\n{}",
            self.history.excerpt(&self.windows())
        )
    }
}

impl std::error::Error for Judgement {}

/// Judges what a history says of a node.
///
/// # Errors
/// [`Judgement`] with every breach.
pub fn judge(history: &History, node: &str) -> Result<(), Judgement> {
    settle(history, breaches(history, node))
}

/// Judges what a history says of every node in it.
///
/// # Errors
/// [`Judgement`] with every breach.
pub fn judge_all(history: &History) -> Result<(), Judgement> {
    let rows = history.events.iter().filter_map(|event| match &event.what {
        What::Row(row) => Some(row.id.as_str()),
        _ => None,
    });
    let nodes: BTreeSet<&str> = rows.collect();
    let breaches = nodes.into_iter().flat_map(|node| {
        let of_node = move |breach: Breach| Breach {
            what: format!("{node}: {}", breach.what),
            ..breach
        };
        breaches(history, node).into_iter().map(of_node)
    });
    settle(history, breaches.collect())
}

fn breaches(history: &History, node: &str) -> Vec<Breach> {
    JUDGES.iter().flat_map(|judge| judge(history, node)).collect()
}

fn settle(history: &History, mut breaches: Vec<Breach>) -> Result<(), Judgement> {
    if breaches.is_empty() {
        return Ok(());
    }
    breaches.sort_by_key(|breach| breach.at_us);
    Err(Judgement {
        breaches,
        history: Box::new(history.clone()),
    })
}

/// How long a time of platform-api's takes, in microseconds.
fn micros(history: &History, time: PlatformTime) -> i64 {
    i64::try_from(history.rate().real(time).as_micros()).unwrap_or(i64::MAX)
}

/// When a history ends. Not with a log line, which may be newer than the rows that were read before it.
fn end_of(history: &History) -> i64 {
    let told = history.events.iter().rfind(|event| event.what.kind().is_told());
    told.map_or(0, |event| event.at_us)
}

#[cfg(test)]
mod tests;
