//! A history as text: the whole of it, or what lies round the moments that matter.

use std::fmt;

use super::{Event, History, Kind, What};
use crate::clock::PlatformTime;
use crate::service::Service;

/// So many lines of platform-api's log an excerpt shows: the last ones.
const LINES: usize = 40;

/// A span of time, both ends included, in microseconds since 1970 by the host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its begin.
    pub from_us: i64,
    /// Its end.
    pub to_us: i64,
}

impl Window {
    /// Whether a time lies in it.
    pub fn holds(&self, at_us: i64) -> bool {
        (self.from_us..=self.to_us).contains(&at_us)
    }
}

/// A part of a history, as text.
///
/// It shows what lies in its windows, with platform-api's log lines there, and the harness's deeds whenever
/// they were: a fault that began long before is why something fails now.
#[derive(Debug, Clone)]
pub struct Excerpt<'a> {
    history: &'a History,
    windows: Vec<Window>,
    /// Log lines before this are left out.
    lines_from_us: i64,
}

impl History {
    /// What lies in any of these windows.
    pub fn excerpt(&self, windows: &[Window]) -> Excerpt<'_> {
        let inside = |at_us| windows.iter().any(|window| window.holds(at_us));
        let of_platform_api = |event: &&Event| {
            let service = Service::PlatformApi;
            matches!(event.what, What::Log { service: of, .. } if of == service) && inside(event.at_us)
        };
        let last = self.events.iter().rev().filter(of_platform_api).take(LINES);
        Excerpt {
            history: self,
            windows: windows.to_vec(),
            lines_from_us: last.last().map_or(i64::MAX, |event| event.at_us),
        }
    }

    /// A window round a time, by platform-api's clock.
    pub fn window(&self, from_us: i64, before: PlatformTime, to_us: i64, after: PlatformTime) -> Window {
        let micros = |time| i64::try_from(self.rate.real(time).as_micros()).unwrap_or(i64::MAX);
        Window {
            from_us: from_us.saturating_sub(micros(before)),
            to_us: to_us.saturating_add(micros(after)),
        }
    }

    fn write_event(&self, f: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
        let moment = self.moment(event.at_us);
        writeln!(
            f,
            "  {:>8.3} s  {:>6.1} s  {}",
            moment.real, moment.platform, event.what
        )
    }

    /// What is not shown, and what was never there.
    fn write_end(&self, f: &mut fmt::Formatter<'_>, hidden: usize) -> fmt::Result {
        if hidden > 0 {
            writeln!(f, "  (log lines and connections that are not shown: {hidden})")?;
        }
        for gap in &self.gaps {
            writeln!(f, "  missing: {gap}")?;
        }
        Ok(())
    }
}

/// All of it but log lines and connections, of which there may be hundreds.
impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (told, beside): (Vec<_>, Vec<_>) =
            self.events.iter().partition(|event| event.what.kind().is_told());
        if told.is_empty() {
            f.write_str("  nothing has happened\n")?;
        }
        for event in told {
            self.write_event(f, event)?;
        }
        self.write_end(f, beside.len())
    }
}

/// A history as text with every line of every log that it holds.
#[derive(Debug, Clone)]
pub struct Whole<'a>(&'a History);

impl History {
    /// All of it.
    pub fn whole(&self) -> Whole<'_> {
        Whole(self)
    }
}

impl fmt::Display for Whole<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.events.is_empty() {
            f.write_str("  nothing has happened\n")?;
        }
        for event in &self.0.events {
            self.0.write_event(f, event)?;
        }
        self.0.write_end(f, 0)
    }
}

impl Excerpt<'_> {
    fn shows(&self, event: &Event) -> bool {
        let inside = self.windows.iter().any(|window| window.holds(event.at_us));
        match &event.what {
            What::Deed(_) => true,
            What::Log { service, .. } => {
                inside && *service == Service::PlatformApi && event.at_us >= self.lines_from_us
            }
            _ => inside,
        }
    }
}

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut hidden, mut skipped, mut shown) = (0, 0, 0);
        let skip = |f: &mut fmt::Formatter<'_>, skipped: usize| match skipped {
            0 => Ok(()),
            1 => writeln!(f, "         … one event"),
            more => writeln!(f, "         … {more} events"),
        };
        for event in &self.history.events {
            if self.shows(event) {
                skip(f, std::mem::take(&mut skipped))?;
                self.history.write_event(f, event)?;
                shown += 1;
            } else if matches!(event.what.kind(), Kind::Log | Kind::Connection) {
                hidden += 1;
            } else {
                skipped += 1;
            }
        }
        skip(f, skipped)?;
        if shown == 0 && skipped == 0 {
            f.write_str("  nothing has happened\n")?;
        }
        self.history.write_end(f, hidden)
    }
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::clock::{Rate, polls};

    fn deed(at_us: i64, what: &str) -> Event {
        Event {
            at_us,
            what: What::Deed(what.into()),
        }
    }

    fn line(at_us: i64, service: Service, line: &str) -> Event {
        Event {
            at_us,
            what: What::Log {
                service,
                line: line.into(),
            },
        }
    }

    fn deleted(at_us: i64) -> Event {
        Event {
            at_us,
            what: What::Deleted("a".into()),
        }
    }

    #[test]
    fn an_excerpt_shows_its_window_and_every_deed() {
        let events = vec![
            line(0, Service::PlatformApi, "listens"),
            deed(1_000_000, "begun:  drop"),
            deleted(2_000_000),
            deleted(3_000_000),
            deleted(9_000_000),
            line(9_100_000, Service::PlatformApi, "poll ended"),
            line(9_200_000, Service::Whisper, "GET /health"),
            deleted(12_000_000),
        ];
        let history = History::new(Rate::FAST, events);
        let window = history.window(9_500_000, polls(1), 9_500_000, polls(0));
        assert_eq!(
            history.excerpt(&[window]).to_string(),
            "     0.000 s     0.0 s  harness  begun:  drop\n         \
             … 2 events\n     \
             8.000 s   240.0 s  row      a deleted\n     \
             8.100 s   243.0 s  log      platform-api | poll ended\n         \
             … one event\n  \
             (log lines and connections that are not shown: 2)\n"
        );
    }

    #[test]
    fn of_many_log_lines_the_last_are_shown() {
        let lines = (0..100).map(|at| line(at, Service::PlatformApi, &format!("line {at}")));
        let history = History::new(Rate::FAST, lines.collect());
        let all = Window {
            from_us: 0,
            to_us: 100,
        };
        let text = history.excerpt(&[all]).to_string();
        assert!(
            !text.contains("line 59\n") && text.contains("line 60\n"),
            "{text}"
        );
        assert!(text.contains("not shown: 60)"), "{text}");
    }

    #[test]
    fn a_history_tells_what_it_leaves_out_and_what_it_lacks() {
        let events = vec![deed(5, "seeded"), line(7, Service::PlatformApi, "listens")];
        let history = History::new(Rate::FAST, events).lacking(["the log of whisper: no answer".to_owned()]);
        assert_eq!(
            history.to_string(),
            "     0.000 s     0.0 s  harness  seeded\n  \
             (log lines and connections that are not shown: 1)\n  \
             missing: the log of whisper: no answer\n"
        );
        assert_eq!(
            history.whole().to_string(),
            "     0.000 s     0.0 s  harness  seeded\n     \
             0.000 s     0.0 s  log      platform-api | listens\n  \
             missing: the log of whisper: no answer\n"
        );
    }
}
