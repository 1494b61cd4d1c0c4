//! All events as a table: what the lanes have no room for, and what a reader without pictures reads.

use maud::{Markup, html};

use super::{Failing, Meta, seconds};
use crate::history::{Event, History};

/// A row of the table.
enum Row<'a> {
    Event(usize, &'a Event),
    Failing(&'a Failing),
}

impl Row<'_> {
    fn at_us(&self) -> i64 {
        match self {
            Self::Event(_, event) => event.at_us,
            Self::Failing(failing) => failing.at_us,
        }
    }
}

pub(super) fn table(history: &History, meta: &Meta) -> Markup {
    let events = history.events.iter().enumerate();
    let mut rows: Vec<_> = events.map(|(place, event)| Row::Event(place, event)).collect();
    rows.extend(meta.failings.iter().map(Row::Failing));
    // What happened at the failing moment comes before it: the sort keeps the order of equals.
    rows.sort_by_key(Row::at_us);
    html! {
        table {
            thead {
                tr { th { "№" } th { "real" } th { "platform-api's" } th { "kind" } th { "what" } }
            }
            tbody {
                @for row in &rows {
                    @let moment = history.moment(row.at_us());
                    @match row {
                        Row::Event(place, event) => {
                            tr .(event.what.kind().word()) id={ "e" (place + 1) } {
                                td { (place + 1) }
                                td { (seconds(moment.real)) }
                                td { (format!("{:.1} s", moment.platform)) }
                                td { (event.what.kind().word()) }
                                td .what { (event.what.detail()) }
                            }
                        }
                        Row::Failing(failing) => {
                            tr .failing-row {
                                td { "✗" }
                                td { (seconds(moment.real)) }
                                td { (format!("{:.1} s", moment.platform)) }
                                td { "failed" }
                                td .what { (failing.what) }
                            }
                        }
                    }
                }
            }
        }
    }
}
