//! Where a time lies on the page.

use super::Meta;
use crate::clock::POLL;
use crate::history::{History, What};

/// One watchdog interval is so wide, whatever the rate, unless the page would be too narrow or too wide.
const POLL_WIDTH: f64 = 72.0;
const WIDTHS: std::ops::RangeInclusive<f64> = 900.0..=16_000.0;
/// Ticks are no closer together.
const APART: f64 = 100.0;
/// Room beside the first mark and the last.
const MARGIN: f64 = 24.0;

/// From times to pixels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    from_us: i64,
    pub(super) to_us: i64,
    zero_us: i64,
    /// Of the whole chart, in pixels.
    pub(super) width: f64,
}

/// A line of the axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tick {
    pub(super) x: f64,
    pub(super) at_us: i64,
}

impl Scale {
    /// From the first event to the last, failing moments and ends of connections included.
    pub(super) fn of(history: &History, meta: &Meta) -> Self {
        let closed = history.events.iter().filter_map(|event| match &event.what {
            What::Connection(connection) => connection.closed_us,
            _ => None,
        });
        let failing = meta
            .failings
            .iter()
            .flat_map(|failing| [failing.from_us, failing.at_us]);
        let times = history.events.iter().map(|event| event.at_us);
        let times: Vec<i64> = times.chain(closed).chain(failing).collect();
        let from_us = times.iter().min().copied().unwrap_or(0);
        // A span of nothing has no scale.
        let to_us = times.iter().max().copied().unwrap_or(0).max(from_us + 1000);
        let poll = history.rate().real(POLL).as_secs_f64();
        let natural = span(from_us, to_us) / poll * POLL_WIDTH;
        Self {
            from_us,
            to_us,
            zero_us: history.zero_us(),
            width: natural.clamp(*WIDTHS.start(), *WIDTHS.end()) + 2.0 * MARGIN,
        }
    }

    /// The place of a time, in pixels from the left.
    pub(super) fn x(&self, at_us: i64) -> f64 {
        MARGIN + span(self.from_us, at_us) * self.per_second()
    }

    fn per_second(&self) -> f64 {
        (self.width - 2.0 * MARGIN) / span(self.from_us, self.to_us)
    }

    /// Ticks at round times since the history's zero.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        let step = step(APART / self.per_second());
        let first = -(self.zero_us - self.from_us).div_euclid(step);
        let last = (self.to_us - self.zero_us).div_euclid(step);
        let tick = |number: i64| {
            let at_us = self.zero_us + number * step;
            Tick {
                x: self.x(at_us),
                at_us,
            }
        };
        (first..=last).map(tick).collect()
    }
}

/// The least round number of microseconds that is that many seconds or more.
fn step(seconds: f64) -> i64 {
    const ROUND: [i64; 15] = [
        1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
        5_000_000, 10_000_000, 30_000_000, 60_000_000,
    ];
    #[expect(clippy::cast_possible_truncation, reason = "a page shows hours, not ages")]
    let least = (seconds * 1e6).ceil() as i64;
    let round = ROUND.into_iter().find(|round| *round >= least);
    round.unwrap_or_else(|| {
        // Whole minutes, doubled as often as it takes.
        let mut minutes = 60_000_000;
        while minutes < least {
            minutes *= 2;
        }
        minutes
    })
}

/// Seconds from one time to another.
#[expect(clippy::cast_precision_loss, reason = "a history is shorter than a century")]
fn span(from_us: i64, to_us: i64) -> f64 {
    (to_us - from_us) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use pretty_assertions::assert_eq;

    use super::*;
    use crate::clock::Rate;
    use crate::history::Event;

    fn of(times: &[i64]) -> Scale {
        let events = times.iter().map(|at_us| Event {
            at_us: *at_us,
            what: What::Deed("".into()),
        });
        let meta = Meta {
            title: String::new(),
            topology: String::new(),
            failings: Vec::new(),
            notes: Vec::new(),
        };
        Scale::of(&History::new(Rate::FAST, events.collect()), &meta)
    }

    #[test]
    fn a_poll_is_as_wide_at_every_length_of_a_test() {
        let scale = of(&[0, 60_000_000]);
        assert_eq!(scale.x(1_000_000) - scale.x(0), POLL_WIDTH);
        assert_eq!(scale.width, 60.0 * POLL_WIDTH + 2.0 * MARGIN);
    }

    #[test]
    fn ticks_are_round_and_not_too_close() {
        let scale = of(&[7_000_000, 67_000_000]);
        let ticks = scale.ticks();
        assert_eq!(ticks[0].at_us, 7_000_000);
        assert_eq!(ticks[1].at_us, 9_000_000);
        assert_eq!(ticks.len(), 31);
        assert!(ticks.windows(2).all(|pair| pair[1].x - pair[0].x >= APART));
    }

    #[test]
    fn a_history_of_one_moment_or_of_none_has_a_scale() {
        for scale in [of(&[5]), of(&[])] {
            assert!(
                scale.x(scale.to_us).is_finite() && scale.ticks().len() < 20,
                "{scale:?}"
            );
        }
    }

    #[test]
    fn a_long_history_fits_its_page() {
        let scale = of(&[0, 86_400_000_000]);
        assert_eq!(scale.width, WIDTHS.end() + 2.0 * MARGIN);
        assert!(scale.ticks().len() <= 160);
    }
}
