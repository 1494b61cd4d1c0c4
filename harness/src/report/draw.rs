//! Lanes as SVG.

use maud::{Markup, html};

use super::lane::{Extent, Lane, Look, Mark};
use super::scale::Scale;
use super::{Meta, seconds};
use crate::history::{History, Status};

const LANE: f64 = 22.0;
/// Height of a bar, in the middle of its lane.
const BAR: f64 = 16.0;
/// Above the first lane: the axis in both times.
const AXIS: f64 = 44.0;
const LABELS: f64 = 190.0;
/// A bar is at least so wide: a connection of a millisecond is to be seen.
const LEAST: f64 = 3.0;
/// Text needs so much room, or is left to the table.
const ROOM: f64 = 28.0;

/// The whole chart: labels that stay, and lanes that scroll beside them.
pub(super) fn timeline(history: &History, meta: &Meta, lanes: &[Lane], scale: &Scale) -> Markup {
    let rows: f64 = lanes.iter().map(|_| LANE).sum();
    let height = AXIS + rows;
    let tops = || (0..lanes.len()).scan(AXIS, |next, _| Some(std::mem::replace(next, *next + LANE)));
    html! {
        div .timeline {
            svg .labels width=(LABELS) height=(height) aria-hidden="true" {
                text x="4" y="16" { "real time" }
                text x="4" y="34" { "platform-api's" }
                @for (lane, top) in lanes.iter().zip(tops()) {
                    text .indented[lane.label.starts_with(' ')] x=(if lane.label.starts_with(' ') { 16 } else { 4 }) y=(top + 15.0) {
                        (lane.label.trim_start())
                    }
                }
            }
            div .scroll tabindex="0" {
                svg .chart width=(px(scale.width)) height=(height) role="group" aria-label="Lanes over time" {
                    (patterns())
                    @for tick in scale.ticks() {
                        @let moment = history.moment(tick.at_us);
                        g .tick {
                            line x1=(px(tick.x)) x2=(px(tick.x)) y1="0" y2=(height) {}
                            text x=(px(tick.x + 3.0)) y="16" { (round(moment.real)) }
                            text x=(px(tick.x + 3.0)) y="34" { (round(moment.platform)) }
                        }
                    }
                    @for (lane, top) in lanes.iter().zip(tops()) {
                        g .lane aria-label=(lane.label.trim_start()) {
                            line .base x1="0" x2=(px(scale.width)) y1=(top + LANE) y2=(top + LANE) {}
                            @for (place, mark) in lane.marks.iter().enumerate() {
                                @let next = lane.marks.get(place + 1).map(|next| scale.x(next.extent.begin()));
                                (drawn(history, mark, top, scale, next))
                            }
                        }
                    }
                    @for failing in &meta.failings {
                        line .failing-moment x1=(px(scale.x(failing.at_us))) x2=(px(scale.x(failing.at_us))) y1="0" y2=(height) {}
                    }
                }
            }
        }
    }
}

/// Fills that tell bars apart without colour.
fn patterns() -> Markup {
    html! {
        defs {
            pattern id="striped" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                line .stroke x1="0" y1="0" x2="0" y2="8" {}
            }
            pattern id="crossed" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                line .stroke x1="0" y1="0" x2="0" y2="8" {}
                line .stroke x1="0" y1="0" x2="8" y2="0" {}
            }
        }
    }
}

/// A mark, which leads to its row of the table.
fn drawn(history: &History, mark: &Mark, top: f64, scale: &Scale, next: Option<f64>) -> Markup {
    let begin = mark.extent.begin();
    let at = history.moment(begin);
    let tip = format!(
        "{} ({} platform-api's): {}",
        seconds(at.real),
        seconds(at.platform),
        mark.text
    );
    let drawing = match mark.extent {
        Extent::At(at) => point(mark, scale.x(at), top, next.unwrap_or(scale.width)),
        Extent::Between(from, to) => bar(mark, scale.x(from), scale.x(to), top),
        Extent::From(from) => bar(mark, scale.x(from), scale.width, top),
    };
    html! {
        @if let Some(event) = mark.event {
            a href={ "#e" (event + 1) } { title { (tip) } (drawing) }
        } @else {
            g { title { (tip) } (drawing) }
        }
    }
}

fn bar(mark: &Mark, from: f64, to: f64, top: f64) -> Markup {
    let (y, width) = (top + (LANE - BAR) / 2.0, (to - from).max(LEAST));
    html! {
        rect .bar .(class(mark.look)) x=(px(from)) y=(y) width=(px(width)) height=(BAR) {}
        @if let Some(pattern) = pattern(mark.look) {
            rect .pattern x=(px(from)) y=(y) width=(px(width)) height=(BAR) fill={ "url(#" (pattern) ")" } {}
        }
        (words(&mark.text, from + 4.0, top, width - 6.0))
    }
}

fn point(mark: &Mark, x: f64, top: f64, next: f64) -> Markup {
    html! {
        (sign(mark.look, x, top + LANE / 2.0))
        (words(&mark.text, x + 9.0, top, next - x - 16.0))
    }
}

/// Text that is cut where its room ends: a view of its own does that.
fn words(text: &str, x: f64, top: f64, room: f64) -> Markup {
    html! {
        @if room >= ROOM {
            svg x=(px(x)) y=(top) width=(px(room)) height=(LANE) { text .words x="0" y="15" { (shown(text, room)) } }
        }
    }
}

/// No more of a text than could be seen: a line of a log may be long, and there are many.
fn shown(text: &str, room: f64) -> String {
    const NARROWEST: f64 = 3.0;
    let mut left = room;
    let fits = text.chars().take_while(|_| {
        left -= NARROWEST;
        left > 0.0
    });
    fits.collect()
}

/// The sign of a moment; each has a form of its own.
pub(super) fn sign(look: Look, x: f64, y: f64) -> Markup {
    let path = match look {
        Look::Ok => "M-4,0 A4,4 0 1 0 4,0 A4,4 0 1 0 -4,0",
        Look::Down => "M-4,-4 L4,4 M-4,4 L4,-4",
        Look::Deed => "M0,-6 L6,0 L0,6 L-6,0 Z",
        Look::Webhook => "M0,-6 L6,5 L-6,5 Z",
        Look::Cloud => "M-5,-5 H5 V5 H-5 Z",
        Look::Failing => "M-6,-6 L6,6 M-6,6 L6,-6 M0,-8 V8",
        Look::Line | Look::Status(_) | Look::Fault | Look::Connection | Look::Harmed => "M0,-6 V6",
    };
    html! {
        path .sign .(class(look)) d=(path) transform={ "translate(" (px(x)) " " (px(y)) ")" } {}
    }
}

fn class(look: Look) -> &'static str {
    match look {
        Look::Failing => "failing",
        Look::Status(Status::Active) => "active",
        Look::Status(Status::Degraded) => "degraded",
        Look::Status(Status::Failed) => "dead",
        Look::Status(_) => "other",
        Look::Ok => "ok",
        Look::Down => "down",
        Look::Fault => "fault",
        Look::Deed => "deed",
        Look::Webhook => "webhook",
        Look::Cloud => "cloud",
        Look::Connection => "connection",
        Look::Harmed => "harmed",
        Look::Line => "line",
    }
}

fn pattern(look: Look) -> Option<&'static str> {
    match look {
        Look::Status(Status::Degraded) | Look::Fault | Look::Harmed => Some("striped"),
        Look::Status(Status::Failed) => Some("crossed"),
        _ => None,
    }
}

/// Pixels to a tenth.
fn px(pixels: f64) -> String {
    format!("{pixels:.1}")
}

/// Seconds without needless zeros.
fn round(seconds: f64) -> String {
    let text = format!("{seconds:.3}");
    format!("{} s", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_look_of_a_moment_has_a_form_of_its_own() {
        let looks = [
            Look::Ok,
            Look::Down,
            Look::Deed,
            Look::Webhook,
            Look::Cloud,
            Look::Line,
            Look::Failing,
        ];
        let mut forms: Vec<_> = looks
            .map(|look| {
                sign(look, 0.0, 0.0)
                    .into_string()
                    .split(" d=")
                    .nth(1)
                    .map(str::to_owned)
            })
            .to_vec();
        forms.sort();
        forms.dedup();
        assert_eq!(forms.len(), looks.len());
    }

    #[test]
    fn a_tick_says_no_needless_zeros() {
        assert_eq!(round(2.0), "2 s");
        assert_eq!(round(-0.5), "-0.5 s");
        assert_eq!(round(1000.0), "1000 s");
    }

    #[test]
    fn text_without_room_is_left_to_the_table() {
        assert_eq!(words("degraded", 0.0, 0.0, ROOM - 1.0).into_string(), "");
        assert!(
            words("degraded", 0.0, 0.0, ROOM)
                .into_string()
                .contains("degraded")
        );
        assert!(shown(&"x".repeat(5000), 300.0).len() <= 100);
    }
}
