//! Lanes out of small histories.

use pretty_assertions::assert_eq;
use serde_json::json;

use super::super::Failing;
use super::*;
use crate::clock::Rate;
use crate::history::{Deed, Heal, Meaning, NodeRow};

fn event(at_us: i64, what: What) -> Event {
    Event { at_us, what }
}

fn row(at_us: i64, status: Status, health: &str) -> Event {
    let row = NodeRow {
        id: "gpu-1".into(),
        host: None,
        droplet_id: None,
        status,
        provision_stage: "done".into(),
        service_health: Some(health.into()),
        last_health_at: Some(at_us),
        last_error: None,
        updated_at: at_us,
    };
    event(at_us, What::Row(Box::new(row)))
}

fn begun(at_us: i64, fault: &str) -> Event {
    event(at_us, What::Deed(Deed::begun(fault, Meaning::unknown())))
}

fn healed(at_us: i64, fault: &str) -> Event {
    event(at_us, What::Deed(Deed::healed(fault, Heal::Seen)))
}

fn connection(opened_us: i64, closed_us: Option<i64>, toxics: &[&str]) -> Event {
    let connection = Connection {
        proxy: "link-20000".into(),
        client: "10.0.0.2:1".into(),
        opened_us,
        closed_us,
        bytes_up: 1,
        bytes_down: 2,
        toxics: toxics.iter().map(|toxic| (*toxic).to_owned()).collect(),
    };
    event(opened_us, What::Connection(connection))
}

/// Each lane as a line: its label, and each mark as `begin..end text`.
fn shown(events: Vec<Event>, failings: Vec<Failing>) -> Vec<String> {
    let meta = Meta {
        title: String::new(),
        topology: String::new(),
        failings,
        notes: Vec::new(),
    };
    let mark = |mark: &Mark| {
        let extent = match mark.extent {
            Extent::At(at) => at.to_string(),
            Extent::Between(from, to) => format!("{from}..{to}"),
            Extent::From(from) => format!("{from}.."),
        };
        format!("{extent} {}", mark.text.trim())
    };
    let lanes = lanes(&History::new(Rate::FAST, events), &meta);
    let line = |lane: &Lane| {
        let marks: Vec<_> = lane.marks.iter().map(mark).collect();
        format!("{}: {}", lane.label, marks.join(", "))
    };
    lanes.iter().map(line).collect()
}

#[test]
fn a_nodes_lane_has_a_bar_for_each_status_and_its_services_a_sign_for_each_poll() {
    let events = vec![
        row(1, Status::Active, r#"{"llama":"ok"}"#),
        row(2, Status::Active, r#"{"llama":"down"}"#),
        row(3, Status::Degraded, r#"{"llama":"down","qwen":"ok"}"#),
        event(5, What::Deleted("gpu-1".into())),
    ];
    assert_eq!(
        shown(events, vec![]),
        [
            "gpu-1: 1..3 active, 3..5 degraded",
            "  llama: 1 ok, 2 down, 3 down",
            "  qwen: 3 ok"
        ]
    );
}

#[test]
fn a_fault_spans_from_its_begin_to_its_first_heal() {
    let events = vec![
        begun(1, "drop on vps → gpu"),
        begun(2, "pause of whisper"),
        event(3, What::Deed("restarted platform-api".into())),
        healed(4, "drop on vps → gpu"),
        begun(5, "drop on vps → gpu"),
        healed(6, "of nothing that was begun"),
    ];
    assert_eq!(
        shown(events, vec![]),
        [
            "faults: 1..4 drop on vps → gpu, 5.. drop on vps → gpu",
            ": 2.. pause of whisper",
            "harness: 3 restarted platform-api",
        ]
    );
}

#[test]
fn connections_lie_side_by_side_by_link_and_show_their_toxics() {
    let events = vec![
        connection(1, Some(4), &[]),
        connection(2, None, &["latency_downstream"]),
        connection(5, Some(6), &[]),
    ];
    assert_eq!(
        shown(events, vec![]),
        [
            "link-20000: 1..4 1 B up, 2 B down, 5..6 1 B up, 2 B down",
            ": 2.. 1 B up, 2 B down latency_downstream"
        ]
    );
}

#[test]
fn of_many_connections_at_a_time_the_last_lane_takes_what_is_left() {
    let events = (0..40).map(|at| connection(at, None, &[])).collect();
    let lanes = shown(events, vec![]);
    assert_eq!(lanes.len(), MOST_ABREAST);
    assert_eq!(
        lanes[MOST_ABREAST - 1].matches("B up").count(),
        40 - MOST_ABREAST + 1
    );
}

#[test]
fn webhooks_and_cloud_calls_go_by_their_type() {
    let record = |caller, path: &str, body| Record {
        at_us: 1,
        caller,
        method: "POST".into(),
        path: path.into(),
        body,
        status: Some(200),
    };
    use wopr_machine::protocol::Caller;
    let hook = record(
        Caller::Webhook,
        "/hooks/gpu",
        json!({ "type": "gpu_node_degraded" }),
    );
    let call = record(Caller::Cloud, "/v2/droplets", json!({ "name": "x" }));
    let line = What::Log {
        service: Service::Whisper,
        line: r#"{"level":"INFO","message":"ready"}"#.into(),
    };
    assert_eq!(
        shown(
            vec![
                event(1, What::Webhook(hook)),
                event(2, What::Cloud(call)),
                event(3, line)
            ],
            vec![]
        ),
        [
            "webhooks: 1 gpu_node_degraded",
            "cloud calls: 2 POST /v2/droplets",
            "log whisper: 3 ready"
        ]
    );
}

#[test]
fn what_failed_comes_first() {
    let waited = Failing {
        what: "status Failed".into(),
        from_us: 2,
        at_us: 9,
    };
    let breached = Failing {
        what: "nothing led there".into(),
        from_us: 9,
        at_us: 9,
    };
    assert_eq!(
        shown(vec![], vec![waited, breached]),
        ["failed: 2..9 status Failed, 9 nothing led there"]
    );
}
