//! What the harness did, as spans of time: when it may have harmed polls, and when it did for certain.

use crate::history::{Deed, Heal, History, Impact, Meaning, Part, Upset, What};

/// When it ends that something is so, and nobody said that it does.
const NEVER: i64 = i64::MAX / 2;

/// How long polls may still show what is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aftermath {
    /// What was harmed was seen to be well again.
    Short,
    /// It has to start first, or to be found out.
    Long,
}

/// Something that the harness did, and how long it was so. Both ends included, in microseconds since 1970.
#[derive(Debug, Clone)]
pub(super) struct Span<'a> {
    pub(super) name: &'a str,
    pub(super) meaning: &'a Meaning,
    /// From when it was set about until it was over.
    pub(super) may: (i64, i64),
    pub(super) aftermath: Aftermath,
    /// In effect for certain.
    certain: Option<(i64, i64)>,
}

impl Span<'_> {
    /// From when it was set about until it was seen to be done.
    pub(super) fn setting_about(&self) -> (i64, i64) {
        let done = self.certain.map_or(self.may.1, |(begun, _)| begun);
        (self.may.0, done)
    }

    /// Whether it was in effect all that time.
    pub(super) fn is_certain(&self, from: i64, to: i64) -> bool {
        self.meaning.impact == Impact::Cuts
            && self
                .certain
                .is_some_and(|(begun, ended)| begun <= from && to <= ended)
    }

    /// Whether it may have shown at some moment between these, or may still show then.
    pub(super) fn may_show(&self, from: i64, to: i64, after: impl Fn(Aftermath) -> i64) -> bool {
        self.may.0 <= to && from <= self.may.1.saturating_add(after(self.aftermath))
    }
}

/// All spans of a history.
pub(super) fn spans(history: &History) -> Vec<Span<'_>> {
    let deeds: Vec<(i64, &Deed)> = history
        .events
        .iter()
        .filter_map(|event| match &event.what {
            What::Deed(deed) => Some((event.at_us, deed)),
            _ => None,
        })
        .collect();
    let spans = deeds.iter().enumerate().filter_map(|(place, (at, deed))| {
        let (from, later) = (deed.from_us.min(*at), &deeds[place + 1..]);
        let span = |ended, aftermath, certain| Span {
            name: &deed.name,
            meaning: &deed.meaning,
            may: (from, ended),
            aftermath,
            certain,
        };
        match deed.part {
            Part::Begun => {
                let (ended, aftermath) = end(deed, later);
                Some(span(ended, aftermath, Some((*at, doubt(deed, later)))))
            }
            Part::Onward => Some(span(NEVER, Aftermath::Long, None)),
            Part::Over => Some(span(*at, Aftermath::Long, None)),
            Part::Changed | Part::Healed(_) | Part::Ended => None,
        }
    });
    spans
        .filter(|span| span.meaning.impact != Impact::None || !span.meaning.upsets.is_empty())
        .collect()
}

/// When a fault was over, by what was done after its begin.
fn end(begun: &Deed, later: &[(i64, &Deed)]) -> (i64, Aftermath) {
    let heal = later.iter().find_map(|(at, deed)| match deed.part {
        Part::Healed(heal) if deed.is_about(begun) => Some((*at, heal)),
        Part::Ended if deed.is_about(begun) => Some((*at, Heal::Unseen)),
        _ => None,
    });
    match heal {
        Some((at, Heal::Seen)) => (at, Aftermath::Short),
        Some((at, Heal::Unseen)) => (at, Aftermath::Long),
        None => (NEVER, Aftermath::Long),
    }
}

/// From when on it is no longer certain that a fault is in effect: it, or one of its name, was set about to be
/// healed or changed, or what it was made of may be gone.
fn doubt(begun: &Deed, later: &[(i64, &Deed)]) -> i64 {
    let doubted = later.iter().filter(|(_, deed)| match deed.part {
        Part::Healed(_) | Part::Ended | Part::Changed => deed.name == begun.name || deed.is_about(begun),
        _ => deed.meaning.has(&[Upset::Rules, Upset::Unknown]),
    });
    let times = doubted.map(|(at, deed)| deed.from_us.min(*at));
    times.min().unwrap_or(NEVER)
}
