//! A model of what the contract allows the InferenceWatchdog to do, judging a history after the fact. It has
//! no clock and no I/O, and shares nothing with the reference platform-api.
//!
//! It replays a node's polls, as its row tells them, and says what has to follow from each: a status, a
//! notification, a reboot. What the history holds beyond that, or lacks, is a breach. A restart of platform-api
//! loses the memory of counts and reboots, as the contract says (its defects 1 and 2).

use std::fmt;

use crate::clock::{PlatformTime, Rate, minutes, polls, seconds};
use crate::history::{History, NodeRow, Status, Upset, What, Window};

/// Silent polls in a row that degrade a node.
const SILENT_POLLS: u32 = 2;
/// A write may follow its poll by so much of platform-api's time: it is the same moment to the contract, and a
/// few milliseconds of a busy host are seconds on a fast clock.
const MOMENT: f64 = 20.0;

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

/// A status that has to follow, or may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    status: Status,
    since: i64,
    /// Whether its absence is a breach: at the edge of ten minutes a failure may come a poll later.
    must: bool,
}

/// What the watchdog may remember of the node, and what is due.
struct Model {
    rate: Rate,
    silent: u32,
    rebooted_at: Option<i64>,
    due: Option<Due>,
    notifications: Vec<(i64, &'static str)>,
    reboots: Vec<i64>,
    breaches: Vec<Breach>,
}

impl Model {
    fn micros(&self, time: PlatformTime) -> i64 {
        i64::try_from(self.rate.real(time).as_micros()).unwrap_or(i64::MAX)
    }

    fn breach(&mut self, at_us: i64, what: impl Into<String>) {
        self.breaches.push(Breach {
            at_us,
            what: what.into(),
        });
    }

    fn forget(&mut self) {
        (self.silent, self.rebooted_at, self.due) = (0, None, None);
    }

    /// A poll began: what was due from the one before should be there.
    fn settle(&mut self, at: i64) {
        if let Some(due) = self.due.take().filter(|due| due.must) {
            self.breach(at, format!("the node should have become {:?}", due.status));
        }
    }

    fn poll(&mut self, at: i64, row: &NodeRow) {
        self.settle(at);
        if !row.is_silent() {
            let remembered = self.silent > 0 || self.rebooted_at.is_some();
            self.forget();
            if remembered && row.status == Status::Degraded {
                self.due = Some(Due {
                    status: Status::Active,
                    since: at,
                    must: true,
                });
            }
            return;
        }
        self.silent += 1;
        match self.rebooted_at {
            None if self.silent >= SILENT_POLLS => {
                self.rebooted_at = Some(at);
                self.notifications.push((at, "gpu_node_degraded"));
                self.reboots.push(at);
                let changes = row.status != Status::Degraded;
                self.due = changes.then_some(Due {
                    status: Status::Degraded,
                    since: at,
                    must: true,
                });
            }
            None => {}
            Some(since) => {
                let (window, edge) = (self.micros(minutes(10)), self.micros(seconds(MOMENT)));
                if at - since >= window - edge {
                    let must = at - since >= window + edge;
                    self.due = Some(Due {
                        status: Status::Failed,
                        since: at,
                        must,
                    });
                }
            }
        }
    }

    fn changed(&mut self, at: i64, from: Status, to: Status) {
        let due = self.due.take().filter(|due| due.status == to);
        let Some(due) = due else {
            return self.breach(at, format!("nothing led from {from:?} to {to:?}"));
        };
        if at - due.since > self.micros(polls(1)) {
            self.breach(at, format!("{to:?} came more than a poll after what led to it"));
        }
        if to == Status::Failed {
            self.notifications.push((at, "gpu_node_failed"));
            self.forget();
        }
    }
}

/// Judges what a history says of a node.
///
/// # Errors
/// [`Judgement`] with every breach.
pub fn judge(rate: Rate, history: &History, node: &str) -> Result<(), Judgement> {
    let mut model = Model {
        rate,
        silent: 0,
        rebooted_at: None,
        due: None,
        notifications: Vec::new(),
        reboots: Vec::new(),
        breaches: Vec::new(),
    };
    let mut last: Option<&NodeRow> = None;
    for event in &history.events {
        match &event.what {
            What::Deed(deed) if deed.meaning.has(&[Upset::Memory]) => model.forget(),
            What::Row(row) if row.id == node => {
                replay(&mut model, event.at_us, last, row);
                last = Some(row);
            }
            _ => {}
        }
    }
    // Not a log line, which may be newer than the rows that were read before it.
    let told = history.events.iter().rfind(|event| event.what.kind().is_told());
    let end = told.map_or(0, |event| event.at_us);
    if model
        .due
        .is_some_and(|due| end - due.since > model.micros(polls(1)))
    {
        model.settle(end);
    }
    compare_notifications(&mut model, history, node, end);
    compare_reboots(&mut model, history, last, end);
    if model.breaches.is_empty() {
        return Ok(());
    }
    model.breaches.sort_by_key(|breach| breach.at_us);
    Err(Judgement {
        breaches: model.breaches,
        history: Box::new(history.clone()),
    })
}

fn replay(model: &mut Model, at: i64, last: Option<&NodeRow>, row: &NodeRow) {
    let Some(before) = last else {
        return if row.service_health.is_some() {
            model.poll(at, row)
        };
    };
    let polled = row.is_poll_after(Some(before));
    if row.status != before.status {
        // A seeder, a test or a registration: not the watchdog's doing, and the start of something new.
        let foreign = row.updated_at == before.updated_at && row.service_health != before.service_health
            || row.provision_stage != before.provision_stage
            || row.host != before.host
            || row.droplet_id != before.droplet_id;
        if foreign {
            model.forget()
        } else {
            model.changed(at, before.status, row.status)
        }
    }
    if polled {
        model.poll(at, row);
    }
}

/// Whether something that follows from a poll at `at` may still be on its way when the history ends.
fn is_recent(model: &Model, at: i64, end: i64) -> bool {
    end - at < model.micros(polls(1))
}

fn compare_notifications(model: &mut Model, history: &History, node: &str, end: i64) {
    let told = history.notifications(node);
    let expected: Vec<&str> = model.notifications.iter().map(|(_, what)| *what).collect();
    let on_its_way = model
        .notifications
        .last()
        .is_some_and(|(at, _)| is_recent(model, *at, end));
    let missing_last = on_its_way && told.len() + 1 == expected.len() && told == expected[..told.len()];
    if told != expected && !missing_last {
        model.breach(
            end,
            format!("notifications were to be {expected:?} and are {told:?}"),
        );
    }
}

fn compare_reboots(model: &mut Model, history: &History, last: Option<&NodeRow>, end: i64) {
    let Some(droplet) = last.and_then(|row| row.droplet_id.as_deref()) else {
        return;
    };
    let (asked, expected) = (history.reboots(droplet), model.reboots.len());
    let on_its_way = model.reboots.last().is_some_and(|at| is_recent(model, *at, end));
    if asked != expected && !(on_its_way && asked + 1 == expected) {
        model.breach(
            end,
            format!("reboots of droplet {droplet} were to be {expected} and are {asked}"),
        );
    }
}

#[cfg(test)]
mod tests;
