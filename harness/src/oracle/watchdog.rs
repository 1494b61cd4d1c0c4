//! Replays a node's polls, as its row tells them, and says what has to follow from each.
//!
//! A restart of platform-api loses the memory of counts and reboots, as the contract says (its defects 1 and 2);
//! a registration does not touch it. When exactly a process ended is not known: the replay goes on both ways from
//! each poll that may have been written by the old one or the new, and a history is a breach when it is one on
//! every way.

use super::spans::{Span, spans};
use super::{Breach, end_of, micros};
use crate::clock::{minutes, polls, seconds};
use crate::history::{History, NodeRow, Status, Upset, What};
use crate::service::Service;

/// Silent polls in a row that degrade a node.
const SILENT_POLLS: u32 = 2;
/// A write may follow its poll by so much of platform-api's time: it is the same moment to the contract, and a
/// few milliseconds of a busy host are seconds on a fast clock.
const MOMENT: f64 = 20.0;
/// The same for a host that is very busy, in microseconds.
const BUSY: i64 = 1_000_000;
/// More ways than this are not followed: the likeliest are kept.
const WAYS: usize = 32;

/// A status that has to follow, or may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    status: Status,
    since: i64,
    need: Need,
}

/// Whether the absence of something is a breach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Must,
    /// At the edge of ten minutes a failure may come a poll later; and what was interrupted may be left out.
    May,
}

/// Something that platform-api sends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    at: i64,
    /// Type of a notification, or a droplet that is to be rebooted.
    what: String,
    need: Need,
}

/// What the watchdog may remember of the node, and what is due: one way of replaying it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Way {
    silent: u32,
    rebooted_at: Option<i64>,
    due: Option<Due>,
    notifications: Vec<Sent>,
    reboots: Vec<Sent>,
    breaches: Vec<Breach>,
    /// Whether the memory that is being lost is lost already.
    lost: bool,
}

/// What is known of the times round a poll.
struct Times<'a> {
    history: &'a History,
    spans: Vec<Span<'a>>,
}

impl Times<'_> {
    fn moment(&self) -> i64 {
        micros(self.history, seconds(MOMENT))
    }

    /// When memory was lost: within each of these.
    fn losses(&self) -> Vec<(i64, i64)> {
        // A fault lasts; the process is gone when it has begun, and what comes after its heal begins anew.
        let losses = self
            .spans
            .iter()
            .filter(|span| span.meaning.has(&[Upset::Memory]));
        losses.map(Span::setting_about).collect()
    }

    /// Whether what follows from a poll at this time may have been kept from following.
    fn need(&self, at: i64) -> Need {
        let upsets = [Upset::Memory, Upset::Running, Upset::Database];
        let (from, to) = (at - self.moment(), at + self.moment());
        let interrupted = self
            .spans
            .iter()
            .any(|span| span.meaning.has(&upsets) && span.may_show(from, to, |_| 0));
        if interrupted { Need::May } else { Need::Must }
    }

    fn clock_was_right(&self, from: i64, to: i64) -> bool {
        let off = |span: &Span| span.meaning.has(&[Upset::Clock]) && span.may_show(from, to, |_| BUSY);
        !self.spans.iter().any(off)
    }
}

impl Way {
    fn breach(&mut self, at_us: i64, what: impl Into<String>) {
        self.breaches.push(Breach {
            at_us,
            what: what.into(),
        });
    }

    fn forget(&mut self) {
        (self.silent, self.rebooted_at, self.due) = (0, None, None);
    }

    /// The same after its memory was lost.
    fn without_memory(&self) -> Self {
        let mut way = self.clone();
        way.forget();
        way.lost = true;
        way
    }

    /// A poll began: what was due from the one before should be there.
    fn settle(&mut self, at: i64) {
        if let Some(due) = self.due.take().filter(|due| due.need == Need::Must) {
            self.breach(at, format!("the node should have become {:?}", due.status));
        }
    }

    fn poll(&mut self, at: i64, row: &NodeRow, times: &Times) {
        self.settle(at);
        let need = times.need(at);
        if !row.is_silent() {
            let remembered = self.silent > 0 || self.rebooted_at.is_some();
            self.forget();
            if remembered && row.status == Status::Degraded {
                self.due = Some(Due {
                    status: Status::Active,
                    since: at,
                    need,
                });
            }
            return;
        }
        self.silent += 1;
        match self.rebooted_at {
            None if self.silent >= SILENT_POLLS => self.degrade(at, row, need),
            None => {}
            Some(since) => {
                let (window, edge) = (micros(times.history, minutes(10)), times.moment());
                let by_its_clock = !times.clock_was_right(since, at);
                if by_its_clock || at - since >= window - edge {
                    let sure = !by_its_clock && at - since >= window + edge;
                    self.due = Some(Due {
                        status: Status::Failed,
                        since: at,
                        need: if sure { need } else { Need::May },
                    });
                }
            }
        }
    }

    fn degrade(&mut self, at: i64, row: &NodeRow, need: Need) {
        self.rebooted_at = Some(at);
        let sent = |what: &str| Sent {
            at,
            what: what.to_owned(),
            need,
        };
        self.notifications.push(sent("gpu_node_degraded"));
        self.reboots.extend(row.droplet_id.as_deref().map(sent));
        let changes = row.status != Status::Degraded;
        self.due = changes.then_some(Due {
            status: Status::Degraded,
            since: at,
            need,
        });
    }

    /// Somebody else wrote the row: a registration, a seeder, a test. The memory is as it was, and what was about to
    /// be written may be written over.
    fn overtaken(&mut self, to: Status) {
        self.due = self.due.filter(|due| due.status != to).map(|due| Due {
            need: Need::May,
            ..due
        });
    }

    fn changed(&mut self, at: i64, from: Status, to: Status, times: &Times) {
        let due = self.due.take().filter(|due| due.status == to);
        let Some(due) = due else {
            return self.breach(at, format!("nothing led from {from:?} to {to:?}"));
        };
        if at - due.since > micros(times.history, polls(1)) + BUSY {
            self.breach(at, format!("{to:?} came more than a poll after what led to it"));
        }
        if to == Status::Failed {
            self.notifications.push(Sent {
                at,
                what: "gpu_node_failed".to_owned(),
                need: times.need(at),
            });
            self.forget();
        }
    }

    /// What the end of the history says.
    fn end(&mut self, node: &Node, times: &Times) {
        let (history, end) = (times.history, node.end);
        let recent = |at: i64| end - at < micros(history, polls(1));
        if self
            .due
            .is_some_and(|due| end - due.since > micros(history, polls(1)))
        {
            self.settle(end);
        }
        for sent in self.notifications.iter_mut().chain(&mut self.reboots) {
            if recent(sent.at) {
                sent.need = Need::May;
            }
        }
        let told = history.notifications(node.id);
        if !explains(&self.notifications, &told) {
            let expected: Vec<&str> = self.notifications.iter().map(|sent| &*sent.what).collect();
            self.breach(
                end,
                format!("notifications were to be {expected:?} and are {told:?}"),
            );
        }
        for droplet in &node.droplets {
            let of_it = || self.reboots.iter().filter(|sent| sent.what == *droplet);
            let must = of_it().filter(|sent| sent.need == Need::Must).count();
            let (most, asked) = (of_it().count(), history.reboots(droplet));
            if asked < must || asked > most {
                self.breach(
                    end,
                    format!("reboots of droplet {droplet} were to be {most} and are {asked}"),
                );
            }
        }
    }
}

/// Whether what was sent is what was to be sent, in this order; what may be left out may be.
fn explains(expected: &[Sent], told: &[String]) -> bool {
    match (expected.split_first(), told.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((sent, rest)), told_first) => {
            let came = told_first.is_some_and(|(first, later)| *first == sent.what && explains(rest, later));
            came || (sent.need == Need::May && explains(rest, told))
        }
    }
}

/// The node, as its whole history has it.
struct Node<'a> {
    id: &'a str,
    end: i64,
    /// Its droplets that no other node has: of those, each reboot is on its account.
    droplets: Vec<&'a str>,
}

impl<'a> Node<'a> {
    fn of(history: &'a History, id: &'a str) -> Self {
        let mut droplets = Vec::new();
        let mut of_others = Vec::new();
        for event in &history.events {
            let What::Row(row) = &event.what else { continue };
            let Some(droplet) = row.droplet_id.as_deref() else {
                continue;
            };
            match row.id == id {
                true => droplets.push(droplet),
                false => of_others.push(droplet),
            }
        }
        droplets.sort_unstable();
        droplets.dedup();
        droplets.retain(|droplet| !of_others.contains(droplet));
        let end = end_of(history);
        Self { id, end, droplets }
    }
}

/// Judges what followed from the polls of a node.
pub(super) fn judge(history: &History, node: &str) -> Vec<Breach> {
    let times = Times {
        history,
        spans: spans(history),
    };
    let of = Node::of(history, node);
    let mut losses = times.losses();
    losses.sort_by_key(|(_, to)| *to);
    let mut ways = vec![Way::default()];
    let mut last: Option<&NodeRow> = None;
    for event in &history.events {
        let at = event.at_us;
        while losses.first().is_some_and(|(_, to)| *to < at) {
            losses.remove(0);
            lose(&mut ways);
        }
        match &event.what {
            What::Row(row) if row.id == node => {
                if losses.iter().any(|(from, _)| *from <= at) {
                    let lost: Vec<_> = ways
                        .iter()
                        .filter(|way| !way.lost)
                        .map(Way::without_memory)
                        .collect();
                    ways.extend(lost);
                }
                for way in &mut ways {
                    replay(way, at, last, row, &times);
                }
                last = Some(row);
            }
            What::Deleted(id) if id == node => {
                // Whether it is remembered under its id the contract leaves open.
                let forgotten: Vec<_> = ways.iter().map(Way::without_memory).collect();
                for way in &mut ways {
                    way.due = None;
                }
                ways.extend(forgotten.into_iter().map(|way| Way { lost: false, ..way }));
                last = None;
            }
            _ => {}
        }
        thin(&mut ways);
    }
    for _ in losses {
        lose(&mut ways);
    }
    for way in &mut ways {
        way.end(&of, &times);
    }
    ways.sort_by_key(|way| way.breaches.len());
    ways.into_iter()
        .next()
        .map(|way| way.breaches)
        .unwrap_or_default()
}

/// By now the memory is lost for certain.
fn lose(ways: &mut [Way]) {
    for way in ways {
        if !std::mem::take(&mut way.lost) {
            way.forget();
        }
    }
}

/// Keeps the ways that may be right, each once.
fn thin(ways: &mut Vec<Way>) {
    if ways.len() == 1 {
        return;
    }
    ways.sort_by_key(|way| way.breaches.len());
    let mut kept: Vec<Way> = Vec::new();
    for way in ways.drain(..).take(WAYS * 4) {
        if !kept.contains(&way) && kept.len() < WAYS {
            kept.push(way);
        }
    }
    *ways = kept;
}

fn replay(way: &mut Way, at: i64, last: Option<&NodeRow>, row: &NodeRow, times: &Times) {
    let Some(before) = last else {
        // A seeder dates no poll.
        return if row.service_health.is_some() && row.last_health_at.is_some() {
            way.poll(at, row, times)
        };
    };
    let changes = row.status != before.status;
    if is_foreign(before, row) || (changes && registered(at, row, times) != Some(false)) {
        way.overtaken(row.status);
    } else if changes {
        way.changed(at, before.status, row.status, times);
    }
    let is_touched = !changes
        && row.last_health_at == before.last_health_at
        && row.service_health == before.service_health
        && registered(at, row, times) == Some(true);
    if row.is_poll_after(Some(before)) && !is_touched {
        way.poll(at, row, times);
    }
}

/// Whether a version of a row was not written by the watchdog.
fn is_foreign(before: &NodeRow, row: &NodeRow) -> bool {
    let made_up = row.updated_at == before.updated_at && row.service_health != before.service_health;
    // A removal is an operator's, and what it fails with is told, as a failed provisioning is.
    let removed = [before.status, row.status].contains(&Status::Destroying);
    let being_made = before.status.is_in_the_making() && row.status.is_in_the_making();
    (row.status != before.status && (made_up || removed || being_made || row.last_error != before.last_error))
        || (row.service_health.is_none() && before.service_health.is_some())
        || row.provision_stage != before.provision_stage
        || row.host != before.host
        || row.droplet_id != before.droplet_id
}

/// Whether a node that was done already was registered as done again, which shows in its status alone, or not at
/// all: platform-api logs each stage, as the contract says. Without its log nobody can tell.
fn registered(at: i64, row: &NodeRow, times: &Times) -> Option<bool> {
    if row.status != Status::Active || row.provision_stage != "done" {
        return Some(false);
    }
    let mut lines = times.history.events.iter().filter_map(|event| match &event.what {
        What::Log {
            service: Service::PlatformApi,
            line,
        } => Some((event.at_us, line)),
        _ => None,
    });
    let mut logs = None;
    let said = lines.any(|(told, line)| {
        logs = Some(false);
        (told - at).abs() <= times.moment() && line.contains(&row.id) && line.contains("updated to done")
    });
    if said { Some(true) } else { logs }
}
