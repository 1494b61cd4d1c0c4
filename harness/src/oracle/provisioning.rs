//! Judges how a node comes about and goes: its row's stages, what the cloud was asked for, and what is told of a
//! failure. Like all judges it holds platform-api to the contract, and speaks up where that leaves no doubt.

use super::Breach;
use crate::history::{History, NodeRow, Status, What};

/// A stage of platform-api's own, before the machine registers the others.
const CREATING: &str = "creating";
const WAITING_ACTIVE: &str = "waiting_active";
const WAITING_AGENT: &str = "waiting_agent";
const DONE: &str = "done";

/// What was seen of the node's present life, from its first row to its removal.
#[derive(Default)]
struct Life {
    /// It began with a row that is being provisioned: somebody asked platform-api for the node.
    ordered: bool,
    /// Creations of its droplet that the cloud accepted.
    created: usize,
    waited: bool,
    /// When its provisioning failed, until its row says why: in the same write or another.
    unexplained: Option<i64>,
    last: Option<NodeRow>,
}

/// Judges one node's provisioning and removal.
pub(super) fn judge(history: &History, node: &str) -> Vec<Breach> {
    let (mut breaches, mut life) = (Vec::new(), Life::default());
    for event in &history.events {
        let mut breach = |what: String| {
            breaches.push(Breach {
                at_us: event.at_us,
                what,
            });
        };
        match &event.what {
            What::Cloud(record) if record.method == "POST" && record.path.ends_with("/droplets") => {
                let for_it = life.ordered && record.body["name"] == format!("wopr-{node}");
                let accepted = matches!(record.status, Some(200..=299));
                if for_it && accepted {
                    life.created += 1;
                    if life.created > 1 {
                        breach("a second droplet was created for it".to_owned());
                    }
                }
            }
            What::Row(row) if row.id == node => {
                life.row(event.at_us, row, &mut breach);
                life.last = Some((**row).clone());
            }
            What::Deleted(id) if id == node => {
                let removed = life.last.take().filter(|row| row.status == Status::Destroying);
                if let Some(droplet) = removed.and_then(|row| row.droplet_id)
                    && deletions(history, &droplet, event.at_us) == 0
                {
                    breach(format!(
                        "its row was removed before the cloud had removed droplet {droplet}"
                    ));
                }
                breaches.extend(life.silence());
                life = Life::default();
            }
            _ => {}
        }
    }
    breaches.extend(life.silence());
    breaches
}

impl Life {
    /// A failure that nobody was told the reason of.
    fn silence(&self) -> Option<Breach> {
        self.unexplained.map(|at_us| Breach {
            at_us,
            what: "its provisioning failed, and its row does not say why".to_owned(),
        })
    }

    fn row(&mut self, at: i64, row: &NodeRow, breach: &mut impl FnMut(String)) {
        let before = self.last.as_ref();
        if before.is_none() {
            self.ordered = row.status == Status::Provisioning && row.provision_stage == CREATING;
            return;
        }
        let (Some(before), true) = (before, self.ordered) else {
            return;
        };
        let stage = row.provision_stage.as_str();
        if stage != before.provision_stage {
            match stage {
                CREATING => breach(format!(
                    "it went back from {} to creating",
                    before.provision_stage
                )),
                WAITING_ACTIVE if self.created == 0 => {
                    breach("it waits for a droplet that was never created".to_owned());
                }
                WAITING_AGENT if !self.waited => {
                    breach("it waits for its machine, and did not wait for its droplet".to_owned());
                }
                _ => {}
            }
            self.waited |= stage == WAITING_ACTIVE;
        }
        if before.status.is_in_the_making() && row.status != before.status {
            if row.status == Status::Failed {
                self.unexplained = Some(at);
            }
            if row.status == Status::Active && stage != DONE {
                breach(format!(
                    "it became active at stage {stage}, and was not registered as done"
                ));
            }
        }
        if row.last_error.is_some() {
            self.unexplained = None;
        }
    }
}

/// How often by then the cloud was asked to remove a droplet, and did so, or had none, or did not say.
fn deletions(history: &History, droplet: &str, by: i64) -> usize {
    let path = format!("/droplets/{droplet}");
    let calls = history.events.iter().filter(|event| match &event.what {
        What::Cloud(record) => {
            let asked = record.method == "DELETE" && record.path.ends_with(&path) && event.at_us <= by;
            asked && matches!(record.status, None | Some(200..=299 | 404))
        }
        _ => false,
    });
    calls.count()
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;
    use serde_json::json;
    use wopr_machine::protocol::{Caller, Record};

    use super::*;
    use crate::clock::Rate;
    use crate::history::Event;

    fn row(status: Status, stage: &str, error: Option<&str>) -> What {
        What::Row(Box::new(NodeRow {
            id: "a".into(),
            host: None,
            droplet_id: Some("4".into()),
            status,
            provision_stage: stage.into(),
            service_health: None,
            last_health_at: None,
            last_error: error.map(str::to_owned),
            updated_at: 0,
        }))
    }

    fn call(method: &str, path: &str) -> What {
        What::Cloud(Record {
            at_us: 0,
            caller: Caller::Cloud,
            method: method.into(),
            path: path.into(),
            body: json!({ "name": "wopr-a" }),
            status: Some(202),
        })
    }

    fn refused(method: &str, path: &str) -> What {
        let mut call = call(method, path);
        if let What::Cloud(record) = &mut call {
            record.status = Some(500);
        }
        call
    }

    /// A node that comes about and goes as the contract has it.
    fn whole() -> Vec<What> {
        let making = |stage| row(Status::Provisioning, stage, None);
        vec![
            making("creating"),
            call("POST", "/v2/droplets"),
            making("waiting_active"),
            making("waiting_agent"),
            making("registering"),
            row(Status::Active, "done", None),
            row(Status::Destroying, "done", None),
            call("DELETE", "/v2/droplets/4"),
            What::Deleted("a".into()),
        ]
    }

    fn judged(events: Vec<What>) -> Vec<String> {
        let events = events
            .into_iter()
            .zip(1..)
            .map(|(what, at_us)| Event { at_us, what });
        let history = History::new(Rate::FAST, events.collect());
        judge(&history, "a")
            .into_iter()
            .map(|breach| breach.what)
            .collect()
    }

    /// The same, but one of it is another, or not there.
    fn but(at: usize, other: Option<What>) -> Vec<String> {
        let mut events = whole();
        match other {
            Some(other) => events[at] = other,
            None => drop(events.remove(at)),
        }
        judged(events)
    }

    #[test]
    fn a_node_that_comes_and_goes_as_it_should_is_allowed_and_may_come_again() {
        assert_eq!(judged([whole(), whole()].concat()), Vec::<String>::new());
    }

    #[test]
    fn what_the_contract_does_not_allow_is_told() {
        let told = [
            but(1, None),
            but(2, Some(call("POST", "/v2/droplets"))),
            but(2, Some(row(Status::Provisioning, "creating", None))),
            but(3, Some(row(Status::Provisioning, "creating", None))),
            but(4, Some(row(Status::Active, "registering", None))),
            but(5, Some(row(Status::Failed, "registering", None))),
            but(7, None),
            but(7, Some(refused("DELETE", "/v2/droplets/4"))),
        ];
        let words = [
            "it waits for a droplet that was never created",
            "a second droplet was created for it",
            "it waits for its machine, and did not wait for its droplet",
            "it went back from waiting_active to creating",
            "it became active at stage registering, and was not registered as done",
            "its provisioning failed, and its row does not say why",
            "its row was removed before the cloud had removed droplet 4",
            "its row was removed before the cloud had removed droplet 4",
        ];
        for (told, word) in told.iter().zip(words) {
            assert!(told.iter().any(|told| told == word), "{word}: {told:?}");
        }
    }

    #[test]
    fn a_failure_that_says_why_is_allowed_in_one_write_or_two() {
        let making = row(Status::Provisioning, "creating", None);
        let failed = |error| row(Status::Failed, "creating", error);
        let why = Some("500");
        assert_eq!(judged(vec![making.clone(), failed(why)]), Vec::<String>::new());
        assert_eq!(
            judged(vec![making, failed(None), failed(why)]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_node_may_be_called_bootstrapping_while_it_is_made() {
        let mut events = whole();
        for stage in [3, 4] {
            let What::Row(row) = &mut events[stage] else {
                panic!("a stage is a row")
            };
            row.status = Status::Bootstrapping;
        }
        assert_eq!(judged(events.clone()), Vec::<String>::new());
        events[5] = row(Status::Active, "registering", None);
        let told = "it became active at stage registering, and was not registered as done";
        assert_eq!(judged(events), [told]);
    }

    #[test]
    fn a_row_that_a_seeder_wrote_was_never_ordered() {
        let events = vec![
            row(Status::Provisioning, "done", None),
            row(Status::Active, "registering", None),
        ];
        assert_eq!(judged(events), Vec::<String>::new());
    }
}
