//! The page as a whole.

use pretty_assertions::assert_eq;
use wopr_machine::protocol::{Caller, Record};

use super::*;
use crate::clock::Rate;
use crate::history::{Connection, Deed, Event, Heal, Meaning, NodeRow, Status, What};
use crate::service::Service;

const HOSTILE: &str = r#"</title></style><script>alert(1)</script><img src=x onerror="alert(2)">'&"#;

fn row(at_us: i64, id: &str, status: Status) -> Event {
    let row = NodeRow {
        id: id.into(),
        host: None,
        droplet_id: None,
        status,
        provision_stage: "done".into(),
        service_health: Some(r#"{"llama":"down"}"#.into()),
        last_health_at: Some(at_us),
        last_error: None,
        updated_at: at_us / 1_000_000,
    };
    let what = What::Row(Box::new(row));
    Event { at_us, what }
}

fn deed(at_us: i64, deed: Deed) -> Event {
    let what = What::Deed(deed);
    Event { at_us, what }
}

fn line(at_us: i64, line: &str) -> Event {
    let what = What::Log {
        service: Service::PlatformApi,
        line: line.into(),
    };
    Event { at_us, what }
}

fn history() -> History {
    let events = vec![
        line(500_000, "platform-api listens"),
        deed(1_000_000, Deed::begun("reset on vps → gpu", Meaning::unknown())),
        row(2_000_000, "gpu-1", Status::Active),
        row(3_000_000, "gpu-1", Status::Degraded),
        deed(5_000_000, Deed::healed("reset on vps → gpu", Heal::Seen)),
    ];
    History::new(Rate::FAST, events)
}

fn meta() -> Meta {
    Meta {
        title: "two_polls".into(),
        topology: "3f2a10".into(),
        failings: vec![Failing {
            what: "status Failed did not happen to gpu-1 within 60.0 s".into(),
            from_us: 1_500_000,
            at_us: 4_000_000,
        }],
        notes: vec!["a note".into()],
    }
}

/// What stands between two marks of a page.
fn between<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let begun = page
        .split_once(from)
        .unwrap_or_else(|| panic!("no {from} in {page}"))
        .1;
    begun
        .split_once(to)
        .unwrap_or_else(|| panic!("no {to} in {begun}"))
        .0
}

/// The words of a piece of markup, without its tags.
fn words(markup: &str) -> Vec<&str> {
    let texts = markup.split('<').filter_map(|piece| piece.split_once('>'));
    texts
        .map(|(_, text)| text)
        .filter(|text| !text.is_empty())
        .collect()
}

#[test]
fn the_page_says_what_failed_when_and_of_which_topology() {
    let page = html(&history(), &meta());
    let head = between(&page, "<body>", "<section");
    assert_eq!(
        words(head).concat(),
        "two_pollsTopology 3f2a10. Zero is 1970-01-01T00:00:01.000Z by the host's clock; platform-api's time \
         runs at ×30.Failed at 3.000 s: status Failed did not happen to gpu-1 within 60.0 sa note"
    );
}

#[test]
fn the_labels_name_each_lane_in_order() {
    let page = html(&history(), &meta());
    let labels = words(between(&page, "<svg class=\"labels\"", "</svg>")).join("|");
    assert_eq!(
        labels,
        "real time|platform-api's|failed|gpu-1|llama|faults|log platform-api"
    );
}

#[test]
fn the_axis_is_in_both_times() {
    let page = html(&history(), &meta());
    let ticks: Vec<_> = page
        .split("<g class=\"tick\">")
        .skip(1)
        .take(3)
        .map(|tick| words(between(tick, "</line>", "</g>")).join(" "))
        .collect();
    assert_eq!(ticks, ["-0.5 s -15 s", "0 s 0 s", "0.5 s 15 s"]);
}

#[test]
fn the_table_has_every_event_and_the_failing_moment_in_its_place() {
    let page = html(&history(), &meta());
    let body = between(&page, "<tbody>", "</tbody>");
    let rows: Vec<_> = body.split("</tr>").map(|row| words(row).join(" ")).collect();
    assert_eq!(
        rows,
        [
            "1 -0.500 s -15.0 s log platform-api | platform-api listens",
            "2 0.000 s 0.0 s harness begun:  reset on vps → gpu",
            "3 1.000 s 30.0 s row gpu-1 Active {&quot;llama&quot;:&quot;down&quot;}",
            "4 2.000 s 60.0 s row gpu-1 Degraded {&quot;llama&quot;:&quot;down&quot;}",
            "✗ 3.000 s 90.0 s failed status Failed did not happen to gpu-1 within 60.0 s",
            "5 4.000 s 120.0 s harness healed: reset on vps → gpu",
            "",
        ]
    );
}

#[test]
fn each_mark_leads_to_a_row_that_is_there() {
    let page = html(&history(), &meta());
    let targets: Vec<_> = page
        .split("href=\"#")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    // Two statuses, two polls, a fault and a line.
    assert_eq!(targets.len(), 6, "{targets:?}");
    for target in targets {
        assert!(
            page.contains(&format!("id=\"{target}\"")),
            "{target} leads nowhere"
        );
    }
}

#[test]
fn a_status_is_told_without_colour_by_its_word_and_its_pattern() {
    let page = html(&history(), &meta());
    let degraded = between(&page, "class=\"bar degraded\"", "</a>");
    assert!(
        degraded.contains("url(#striped)") && degraded.contains(">degraded<"),
        "{degraded}"
    );
}

#[test]
fn nothing_in_a_history_becomes_markup() {
    let record = |caller| Record {
        at_us: 0,
        caller,
        method: HOSTILE.into(),
        path: HOSTILE.into(),
        body: serde_json::json!({ HOSTILE: HOSTILE, "type": HOSTILE }),
        status: None,
    };
    let connection = Connection {
        proxy: HOSTILE.into(),
        client: HOSTILE.into(),
        opened_us: 4,
        closed_us: None,
        bytes_up: 0,
        bytes_down: 0,
        toxics: vec![HOSTILE.into()],
    };
    let whats = vec![
        What::Webhook(record(Caller::Webhook)),
        What::Cloud(record(Caller::Cloud)),
        What::Connection(connection),
        What::Deleted(HOSTILE.into()),
        What::Deed(Deed::begun(HOSTILE, Meaning::unknown())),
        What::Deed(HOSTILE.into()),
    ];
    let mut events: Vec<_> = whats.into_iter().map(|what| Event { at_us: 4, what }).collect();
    events.extend([line(5, HOSTILE), row(6, HOSTILE, Status::Failed)]);
    let meta = Meta {
        title: HOSTILE.into(),
        topology: HOSTILE.into(),
        failings: vec![Failing {
            what: HOSTILE.into(),
            from_us: 0,
            at_us: 7,
        }],
        notes: vec![HOSTILE.into()],
    };
    let page = html(
        &History::new(Rate::FAST, events).lacking([HOSTILE.to_owned()]),
        &meta,
    );
    assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    assert_eq!(page.matches("</title></style>").count(), 0);
    // A quote would end an attribute.
    assert!(!page.contains("onerror=\""), "{page}");
    assert!(page.matches("&lt;script&gt;").count() > 20);
}

#[test]
fn the_page_fetches_nothing_and_runs_nothing() {
    let page = html(&history(), &meta());
    for forbidden in ["<script", "<link", "src=", "http:", "https:", "@import"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("default-src 'none'") && page.contains("prefers-color-scheme: dark"));
}

#[test]
fn the_same_history_makes_the_same_page() {
    assert_eq!(html(&history(), &meta()), html(&history(), &meta()));
}

#[test]
fn a_history_of_nothing_makes_a_page() {
    let page = html(
        &History::new(Rate::TRUE, vec![]),
        &Meta {
            failings: vec![],
            ..meta()
        },
    );
    assert!(
        page.ends_with("</html>") && !page.contains("NaN") && !page.contains("inf"),
        "{page}"
    );
}

#[test]
fn every_kind_can_be_hidden() {
    for kind in Kind::ALL {
        let rule = format!("#hide-{kind}:checked) tr.{kind}");
        assert!(STYLE.contains(&rule), "{rule}");
    }
}
