//! A history as one page of HTML: lanes over time, and a table of all events below. Nothing is fetched and
//! nothing runs, so that the page reads the same from a CI's artifacts as from a disk, years later.
//!
//! What is in the page comes from a history alone: the same history makes the same page.

mod draw;
mod keep;
mod lane;
mod scale;
mod table;

use std::time::{Duration, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

use crate::history::{History, Kind};
use scale::Scale;

pub use keep::{Timeline, write_private};
pub(crate) use keep::{test_name, write};

const STYLE: &str = include_str!("report/style.css");
/// Of the page itself nothing may be loaded from anywhere, whatever a log line tries.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// What a page says beside the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its title: the test's name, or what else the history is of.
    pub title: String,
    /// Id of the topology.
    pub topology: String,
    /// What failed, oldest first.
    pub failings: Vec<Failing>,
    /// Sentences for the reader.
    pub notes: Vec<String>,
}

/// Something that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// What was waited for in vain, or what was wrong.
    pub what: String,
    /// When the wait for it began, in microseconds since 1970; `at_us` where nothing was waited for.
    pub from_us: i64,
    /// The failing moment.
    pub at_us: i64,
}

/// The page.
pub fn html(history: &History, meta: &Meta) -> String {
    let lanes = lane::lanes(history, meta);
    let scale = Scale::of(history, meta);
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (meta.title) " · WOPR timeline" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (meta.title) }
                (head(history, meta))
                section aria-label="Timeline" { (draw::timeline(history, meta, &lanes, &scale)) }
                (legend())
                section aria-label="Events" { (table::table(history, meta)) }
            }
        }
    };
    page.into_string()
}

fn head(history: &History, meta: &Meta) -> Markup {
    let zero = Duration::from_micros(u64::try_from(history.zero_us()).unwrap_or(0));
    markup! {
        p {
            "Topology " code { (meta.topology) } ". Zero is "
            (humantime::format_rfc3339_millis(UNIX_EPOCH + zero))
            " by the host's clock; platform-api's time runs at " (history.rate()) "."
        }
        @if !meta.failings.is_empty() {
            ul .failings {
                @for failing in &meta.failings {
                    li { strong { "Failed" } " at " (seconds(history.moment(failing.at_us).real)) ": " (failing.what) }
                }
            }
        }
        @if !(history.gaps.is_empty() && meta.notes.is_empty()) {
            ul .notes {
                @for gap in &history.gaps { li { "Missing: " (gap) } }
                @for note in &meta.notes { li { (note) } }
            }
        }
    }
}

fn legend() -> Markup {
    let signs = [
        (lane::Look::Ok, "ok"),
        (lane::Look::Down, "down"),
        (lane::Look::Deed, "the harness"),
        (lane::Look::Webhook, "webhook"),
        (lane::Look::Cloud, "cloud call"),
        (lane::Look::Line, "log line"),
    ];
    markup! {
        p .legend {
            @for (look, word) in signs {
                span { svg width="16" height="16" aria-hidden="true" { (draw::sign(look, 8.0, 8.0)) } (word) }
            }
            "Striped: degraded, a fault, or a connection with a toxic. Crossed: failed. Each mark leads to its row of the table."
        }
        fieldset {
            legend { "Hide in the table" }
            @for kind in Kind::ALL {
                label { input type="checkbox" id={ "hide-" (kind.word()) }; (kind.word()) }
            }
        }
    }
}

/// Seconds to the millisecond.
fn seconds(seconds: f64) -> String {
    format!("{seconds:.3} s")
}

#[cfg(test)]
mod tests;
