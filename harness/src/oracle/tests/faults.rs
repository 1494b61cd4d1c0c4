//! The simulation with faults, whose polls find what the faults leave.

use std::collections::BTreeMap;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Poll,
    /// A poll that a busy host loses for one service.
    Unlucky,
    Cut,
    StopLlama,
    Heal,
    Restart,
    /// The new process polls before the restart is told of.
    SlowRestart,
    Register,
}

/// What is in effect, and since when.
#[derive(Default)]
struct Harmed {
    cut: Option<u64>,
    stopped: Option<u64>,
}

impl Harmed {
    fn found(&self) -> Found {
        let all = self.cut.is_none();
        [all && self.stopped.is_none(), all, all, all]
    }
}

fn cut() -> Deed {
    Deed::begun("partition on vps → gpu", Meaning::cuts(Bearing::at(HOST, None)))
}

fn stop() -> Deed {
    Deed::begun("stop of llama-cpp", Meaning::cuts(Bearing::at(HOST, Some(8080))))
}

fn simulate(acts: &[Act]) -> Vec<Event> {
    let (mut simulation, mut harmed) = (Simulation::new(), Harmed::default());
    simulation.write(0);
    for act in acts {
        // Deeds are between two polls.
        let (from, at) = (simulation.at() - POLL_US / 2, simulation.at() - POLL_US / 4);
        let id = u64::try_from(at).unwrap_or_default();
        match act {
            Act::Poll => {
                simulation.poll(harmed.found());
                simulation.number += 1;
            }
            Act::Unlucky => {
                let mut found = harmed.found();
                found[2] = false;
                simulation.poll(found);
                simulation.number += 1;
                simulation.poll(harmed.found());
                simulation.number += 1;
            }
            Act::Cut if harmed.cut.is_none() => {
                harmed.cut = Some(id);
                simulation.note(at, cut().since(from).of(id));
            }
            Act::StopLlama if harmed.stopped.is_none() => {
                harmed.stopped = Some(id + 1);
                simulation.note(at, stop().since(from).of(id + 1));
            }
            Act::Heal => {
                let healed = |name| Deed::healed(name, Heal::Seen).since(from);
                if let Some(id) = harmed.cut.take() {
                    simulation.note(at, healed("partition on vps → gpu").of(id));
                }
                if let Some(id) = harmed.stopped.take() {
                    simulation.note(at, healed("stop of llama-cpp").of(id));
                }
            }
            Act::Restart => {
                simulation.forget();
                simulation.note(at, restart().since(from));
            }
            Act::SlowRestart => {
                simulation.forget();
                simulation.poll(harmed.found());
                let told = simulation.at() + POLL_US / 4;
                simulation.note(told, restart().since(from));
                simulation.number += 1;
            }
            Act::Register => {
                simulation.status = Status::Active;
                simulation.events.push(stage_done(at));
                simulation.write_registered(at);
            }
            Act::Cut | Act::StopLlama => {}
        }
    }
    simulation.events
}

impl Simulation {
    /// As [`Simulation::write`], by a registration: it dates the row, and no poll.
    fn write_registered(&mut self, at_us: i64) {
        let mut event = row(at_us, self.status, self.found, self.polled * 30);
        if let What::Row(row) = &mut event.what {
            row.updated_at = self.number * 30 - 8;
        }
        self.events.push(event);
    }
}

fn stage_done(at_us: i64) -> Event {
    let what = What::Log {
        service: Service::PlatformApi,
        line: "GPU node a stage updated to done".into(),
    };
    Event { at_us, what }
}

fn history(mut events: Vec<Event>) -> History {
    // platform-api logs, so that a registration would show.
    let what = What::Log {
        service: Service::PlatformApi,
        line: "listens".into(),
    };
    events.push(Event { at_us: 0, what });
    let served = BTreeMap::from([(HOST, vec![8080, 8081, 8082, 8083])]);
    History::new(Rate::FAST, events).serving(served)
}

fn judged(events: Vec<Event>) -> Result<(), Judgement> {
    judge_all(&history(events))
}

/// Changes what the polls between these say of a service, and what is written with them.
fn forge(events: &mut [Event], polls: std::ops::Range<i64>, service: &str, word: &str) {
    for event in events {
        let What::Row(row) = &mut event.what else { continue };
        if polls.contains(&(event.at_us / POLL_US)) {
            let text = row.service_health.as_deref().unwrap_or_default();
            let mut health: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
            health[service] = word.into();
            row.service_health = Some(health.to_string());
        }
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        12 => Just(Act::Poll),
        1 => Just(Act::Unlucky),
        2 => Just(Act::Cut),
        1 => Just(Act::StopLlama),
        3 => Just(Act::Heal),
        1 => Just(Act::Restart),
        1 => Just(Act::SlowRestart),
        1 => Just(Act::Register),
    ];
    let stretch = (1_usize..26).prop_map(|length| vec![Act::Poll; length]);
    let part = prop_oneof![3 => prop::collection::vec(act, 1..8), 1 => stretch];
    prop::collection::vec(part, 1..8).prop_map(|parts| parts.concat())
}

/// Polls before and after a time in which something is forged.
fn around(before: &[Act], length: usize) -> (Vec<Act>, i64) {
    let polls = |count| vec![Act::Poll; count];
    let begin = [before, &polls(16)].concat();
    let number = 1 + begin
        .iter()
        .map(|act| match act {
            Act::Poll | Act::SlowRestart => 1,
            Act::Unlucky => 2,
            _ => 0,
        })
        .sum::<i64>();
    ([begin, polls(length), polls(2)].concat(), number)
}

proptest! {
    #[test]
    fn what_the_simulation_does_is_allowed(acts in acts()) {
        let judgement = judged(simulate(&acts));
        prop_assert!(judgement.is_ok(), "{}", judgement.unwrap_err());
    }

    #[test]
    fn a_service_that_answers_through_a_cut_is_a_breach(before in 0_usize..20, after in 3_usize..15) {
        let acts = [vec![Act::Poll; before], vec![Act::Cut], vec![Act::Poll; after]].concat();
        let mut events = simulate(&acts);
        let last = i64::try_from(before + after).unwrap_or_default();
        forge(&mut events, last..last + 1, "whisper", "ok");
        let told = judged(events).unwrap_err().to_string();
        prop_assert!(told.contains("a: whisper was found ok during the partition on vps → gpu"), "{told}");
    }

    #[test]
    fn a_service_that_is_down_for_no_reason_is_a_breach(before in acts(), length in 3_usize..6) {
        let (acts, begin) = around(&[before, vec![Act::Heal, Act::Register]].concat(), length);
        let mut events = simulate(&acts);
        let end = begin + i64::try_from(length).unwrap_or_default();
        forge(&mut events, begin..end, "qwen", "down");
        let told = judged(events).unwrap_err().to_string();
        prop_assert!(told.contains("qwen was found down 3 times in a row"), "{told}");
    }

    #[test]
    fn polls_that_do_not_come_are_a_breach(before in acts()) {
        let (acts, begin) = around(&[before, vec![Act::Heal, Act::Register]].concat(), 8);
        let mut events = simulate(&acts);
        events.retain(|event| !(begin..begin + 8).contains(&(event.at_us / POLL_US)));
        let told = judged(events).unwrap_err().to_string();
        prop_assert!(told.contains("no poll since"), "{told}");
    }

    #[test]
    fn a_second_reboot_is_a_breach(before in acts()) {
        // A poll that two processes may have written leaves it open.
        let before: Vec<_> = before.into_iter().filter(|act| *act != Act::SlowRestart).collect();
        let mut events = simulate(&before);
        let end = events.last().map_or(0, |event| event.at_us);
        events.push(reboot(end + 3 * POLL_US));
        prop_assert!(judged(events).is_err());
    }
}

#[test]
fn a_poll_that_a_busy_host_loses_twice_is_no_breach() {
    let mut events = simulate(&[Act::Poll; 20]);
    forge(&mut events, 8..10, "llama", "down");
    assert_eq!(judged(events), Ok(()));
}

#[test]
fn nothing_is_said_of_a_cut_that_may_have_been_lost_with_its_machine() {
    let acts = [
        vec![Act::Cut],
        vec![Act::Poll; 3],
        vec![Act::Restart],
        vec![Act::Poll; 6],
    ]
    .concat();
    let mut events = simulate(&acts);
    forge(&mut events, 6..7, "llama", "ok");
    let told = judged(events).err().map(|judgement| judgement.to_string());
    assert!(!told.unwrap_or_default().contains("was found ok during"));
}

#[test]
fn after_a_deed_that_nobody_described_no_verdict_is_judged() {
    let mut events = simulate(&[Act::Poll; 40]);
    let what = What::Deed("something that nobody described".into());
    events.push(Event { at_us: POLL_US, what });
    forge(&mut events, 20..30, "llama", "down");
    assert_eq!(judged(events), Ok(()));
}

#[test]
fn a_registration_leaves_the_reboot_mark_as_it_is() {
    let acts = [
        vec![Act::Cut],
        vec![Act::Poll; 4],
        vec![Act::Register],
        vec![Act::Poll; 4],
    ]
    .concat();
    let mut events = simulate(&acts);
    assert_eq!(judged(events.clone()), Ok(()));
    // Forgetting it would degrade the node anew.
    let end = events.last().map_or(0, |event| event.at_us);
    events.push(row(end + 10_000, Status::Degraded, [false; 4], 8 * 30));
    let told = judged(events).unwrap_err().to_string();
    assert!(told.contains("nothing led from Active to Degraded"), "{told}");
}

#[test]
fn a_node_that_nobody_registered_does_not_become_active_by_itself() {
    let acts = [
        vec![Act::Cut],
        vec![Act::Poll; 4],
        vec![Act::Register],
        vec![Act::Poll; 2],
    ]
    .concat();
    let mut events = simulate(&acts);
    events.retain(|event| !matches!(event.what, What::Log { .. }));
    let told = judged(events).unwrap_err().to_string();
    assert!(told.contains("nothing led from Degraded to Active"), "{told}");
}
