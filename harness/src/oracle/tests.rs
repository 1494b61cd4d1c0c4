//! The oracle against a simulation of its own: what that does is allowed, and what is changed in it is not.

use proptest::prelude::*;
use serde_json::json;
use wopr_machine::protocol::{Caller, Record};

use super::*;
use crate::clock::Rate;
use crate::history::{Bearing, Deed, Event, Heal, Meaning, NodeRow, Status, Upset};
use crate::service::Service;

mod faults;

const POLL_US: i64 = 1_000_000;
const DROPLET: &str = "4";
const HOST: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 87, 0, 3);

/// What happens between two polls.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Silent,
    Well,
    Restart,
}

/// The contract in the plainest words: one thing after another, everything written down.
struct Simulation {
    events: Vec<Event>,
    status: Status,
    down: u32,
    rebooted: Option<i64>,
    /// The poll that is next.
    number: i64,
    /// What its last poll found, and its number.
    found: Found,
    polled: i64,
}

type Found = [bool; 4];

impl Simulation {
    fn new() -> Self {
        Self {
            events: Vec::new(),
            status: Status::Active,
            down: 0,
            rebooted: None,
            number: 1,
            found: [true; 4],
            polled: 0,
        }
    }

    fn at(&self) -> i64 {
        self.number * POLL_US
    }

    fn note(&mut self, at_us: i64, deed: Deed) {
        let what = What::Deed(deed);
        self.events.push(Event { at_us, what });
    }

    fn write(&mut self, at_us: i64) {
        let row = row(at_us, self.status, self.found, self.polled * 30);
        self.events.push(row);
    }

    fn poll(&mut self, found: Found) {
        let at = self.at();
        if self.status == Status::Failed {
            return;
        }
        (self.found, self.polled) = (found, self.number);
        self.write(at);
        let mut next = None;
        if found.contains(&true) {
            if self.status == Status::Degraded && (self.down > 0 || self.rebooted.is_some()) {
                next = Some(Status::Active);
            }
            self.forget();
        } else {
            self.down += 1;
            match self.rebooted {
                None if self.down >= 2 => {
                    self.rebooted = Some(at);
                    next = Some(Status::Degraded).filter(|next| *next != self.status);
                    self.events.push(webhook(at + 11_000, "gpu_node_degraded"));
                    self.events.push(reboot(at + 12_000));
                }
                Some(since) if at - since >= 20 * POLL_US => {
                    next = Some(Status::Failed);
                    self.events.push(webhook(at + 11_000, "gpu_node_failed"));
                }
                _ => {}
            }
        }
        if let Some(to) = next {
            self.status = to;
            self.write(at + 10_000);
        }
        if self.status == Status::Failed {
            self.forget();
        }
    }

    fn forget(&mut self) {
        (self.down, self.rebooted) = (0, None);
    }
}

fn simulate(steps: &[Step]) -> Vec<Event> {
    let mut simulation = Simulation::new();
    for step in steps {
        match step {
            Step::Silent => simulation.poll([false; 4]),
            Step::Well => simulation.poll([true; 4]),
            Step::Restart => {
                simulation.forget();
                simulation.note(simulation.at(), restart().since(simulation.at() - POLL_US / 4));
            }
        }
        simulation.number += 1;
    }
    simulation.events
}

fn restart() -> Deed {
    let meaning = Meaning::upsets([Upset::Memory, Upset::Running, Upset::Rules]);
    Deed::over("restarted platform-api", meaning)
}

fn row(at_us: i64, status: Status, found: Found, polled: i64) -> Event {
    let word = |service: usize| if found[service] { "ok" } else { "down" };
    let health = json!({ "llama": word(0), "chatterbox": word(1), "whisper": word(2), "qwen": word(3) });
    let row = NodeRow {
        id: "a".into(),
        host: Some(HOST.to_string()),
        droplet_id: Some(DROPLET.into()),
        status,
        provision_stage: "done".into(),
        service_health: Some(health.to_string()),
        last_health_at: Some(polled),
        last_error: None,
        updated_at: polled,
    };
    Event {
        at_us,
        what: What::Row(Box::new(row)),
    }
}

fn record(at_us: i64, caller: Caller, path: &str, body: serde_json::Value) -> Record {
    Record {
        at_us,
        caller,
        method: "POST".into(),
        path: path.into(),
        body,
        status: Some(200),
    }
}

fn webhook(at_us: i64, what: &str) -> Event {
    let body = json!({ "type": what, "node_id": "a" });
    Event {
        at_us,
        what: What::Webhook(record(at_us, Caller::Webhook, "/hooks/gpu", body)),
    }
}

fn reboot(at_us: i64) -> Event {
    let path = format!("/v2/droplets/{DROPLET}/actions");
    Event {
        at_us,
        what: What::Cloud(record(at_us, Caller::Cloud, &path, json!({ "type": "reboot" }))),
    }
}

fn judged(events: Vec<Event>) -> Result<(), Judgement> {
    judge(&History::new(Rate::FAST, events), "a")
}

#[test]
fn a_log_line_that_is_newer_than_the_rows_makes_nothing_late() {
    let mut events = simulate(&[Step::Silent, Step::Silent]);
    events.retain(|event| matches!(event.what, What::Row(_)));
    assert_eq!(
        judged(events.clone()),
        Ok(()),
        "webhook and reboot are on their way"
    );
    events.push(Event {
        at_us: 9 * POLL_US,
        what: What::Log {
            service: Service::PlatformApi,
            line: "read after the rows".into(),
        },
    });
    assert_eq!(judged(events), Ok(()));
}

#[test]
fn a_breach_is_shown_with_what_happened_round_it() {
    let mut events = simulate(&[Step::Silent; 30]);
    let told = events
        .iter()
        .rposition(|event| matches!(event.what, What::Webhook(_)));
    let end = events.last().map_or(0, |event| event.at_us);
    events.remove(told.unwrap());
    events.push(Event {
        at_us: end + 3 * POLL_US,
        what: What::Deed("the end".into()),
    });
    let text = judged(events).unwrap_err().to_string();
    assert!(text.contains("notifications were to be"), "{text}");
    // The last polls, and not those of the begin.
    assert!(text.contains("a Failed") && !text.contains("a Active"), "{text}");
    assert!(text.contains("the end"), "{text}");
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![6 => Just(Step::Silent), 3 => Just(Step::Well), 1 => Just(Step::Restart)];
    let outage = (1_usize..26).prop_map(|length| vec![Step::Silent; length]);
    let part = prop_oneof![3 => prop::collection::vec(step, 1..6), 1 => outage];
    prop::collection::vec(part, 1..8).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn what_the_simulation_does_is_allowed(steps in steps()) {
        let judgement = judged(simulate(&steps));
        prop_assert!(judgement.is_ok(), "{}", judgement.unwrap_err());
    }

    #[test]
    fn a_reboot_too_many_is_a_breach(steps in steps()) {
        let mut events = simulate(&steps);
        let end = events.last().map_or(0, |event| event.at_us);
        prop_assume!(events.iter().any(|event| matches!(event.what, What::Row(_))));
        events.push(reboot(end + 3 * POLL_US));
        prop_assert!(judged(events).is_err());
    }

    #[test]
    fn a_missing_notification_is_a_breach(steps in steps()) {
        let mut events = simulate(&steps);
        let told = events.iter().position(|event| matches!(event.what, What::Webhook(_)));
        prop_assume!(told.is_some());
        events.remove(told.unwrap());
        // Long after, so that it is not on its way.
        let end = events.last().map_or(0, |event| event.at_us);
        events.push(Event { at_us: end + 3 * POLL_US, what: What::Deed("the end".into()) });
        prop_assert!(judged(events).is_err());
    }
}

#[test]
fn one_silent_poll_does_not_degrade() {
    let events = vec![
        row(0, Status::Active, [false; 4], 30),
        row(10_000, Status::Degraded, [false; 4], 30),
    ];
    let breaches = judged(events).unwrap_err().breaches;
    assert_eq!(breaches[0].what, "nothing led from Active to Degraded");
}

#[test]
fn two_silent_polls_must_degrade() {
    let events: Vec<_> = (1..=3)
        .map(|n| row(n * POLL_US, Status::Active, [false; 4], n * 30))
        .collect();
    let breaches = judged(events).unwrap_err().breaches;
    assert_eq!(breaches[0].what, "the node should have become Degraded");
}

#[test]
fn five_minutes_do_not_fail_a_node() {
    let mut events = simulate(&[Step::Silent; 12]);
    events.push(row(12 * POLL_US + 20_000, Status::Failed, [false; 4], 360));
    assert!(judged(events).is_err());
}

#[test]
fn a_node_that_is_never_failed_is_a_breach() {
    let mut events = simulate(&[Step::Silent; 21]);
    events.extend((22..26).map(|n| row(n * POLL_US, Status::Degraded, [false; 4], n * 30)));
    let judgement = judged(events).unwrap_err();
    assert!(
        judgement.to_string().contains("should have become Failed"),
        "{judgement}"
    );
}

#[test]
fn a_removal_is_not_the_watchdogs() {
    let told = |status, error: Option<&str>| {
        let mut event = row(2 * POLL_US + 20_000, status, [true; 4], 61);
        if let What::Row(row) = &mut event.what {
            row.last_error = error.map(str::to_owned);
        }
        event
    };
    let well = simulate(&[Step::Well; 2]);
    let with = |event| [well.clone(), vec![event]].concat();
    assert_eq!(judged(with(told(Status::Destroying, None))), Ok(()));
    assert_eq!(judged(with(told(Status::Failed, Some("no droplet")))), Ok(()));
    assert!(judged(with(told(Status::Failed, None))).is_err());
}
