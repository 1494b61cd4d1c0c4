//! Where a boot's time goes: the steps that it tells of, by when they began.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wopr_harness::progress::{Event, Progress};

use super::figure::{Figure, Unit};

/// Steps that begin with this are one machine's; others are of the whole.
const OF_A_MACHINE: [&str; 2] = ["vps: ", "gpu: "];

/// Before a boot begins, it is decided what from.
const PLAN: &str = "images and settings looked up";
/// What a boot begins with; from then on the machines speak for themselves.
const MACHINES: &str = "network, volumes, containers";

/// Listens to boots.
#[derive(Clone, Default)]
pub(super) struct Profile(Arc<Mutex<Vec<(Instant, String)>>>);

impl Profile {
    /// Where a boot tells how far it is.
    pub(super) fn progress(&self) -> Progress {
        let steps = Arc::clone(&self.0);
        Progress::new(move |event| {
            let step = match event {
                Event::Began { .. } => MACHINES,
                Event::Detail { text, .. } => text,
                Event::Waits { .. } | Event::Done { .. } => return,
            };
            let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
            steps.push((Instant::now(), step.to_owned()));
        })
    }

    /// Ends a boot that was asked for at `began`: how long each of its steps took, in their order.
    pub(super) fn end(&self, began: Instant) -> Vec<(String, Duration)> {
        let ended = Instant::now();
        let steps = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        spans(&steps, began, ended)
    }
}

/// A machine's step lasts until its next one; when it is ready, it waits for what is of the whole.
fn spans(steps: &[(Instant, String)], began: Instant, ended: Instant) -> Vec<(String, Duration)> {
    let lane = |text: &str| OF_A_MACHINE.into_iter().find(|name| text.starts_with(name));
    let first = steps.first().map_or(ended, |(at, _)| *at);
    let mut spans = vec![(PLAN.to_owned(), first - began)];
    for (index, (at, text)) in steps.iter().enumerate() {
        let next = steps[index + 1..].iter().find(|(_, other)| {
            let (own, other) = (lane(text), lane(other));
            own.is_none() || other.is_none() || own == other
        });
        let until = next.map_or(ended, |(at, _)| *at);
        spans.push((text.clone(), until - *at));
    }
    spans
}

/// The figures of several boots' steps.
#[derive(Default)]
pub(super) struct Spans(Vec<(String, Figure)>);

impl Spans {
    pub(super) fn add(&mut self, spans: Vec<(String, Duration)>) {
        for (step, took) in spans {
            let known = self.0.iter_mut().find(|(name, _)| *name == step);
            if let Some((_, figure)) = known {
                figure.took(took);
            } else {
                let mut figure = Figure::new(&step, Unit::Milliseconds);
                figure.took(took);
                self.0.push((step, figure));
            }
        }
    }

    pub(super) fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.0.iter().map(|(_, figure)| figure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_step_lasts_until_its_next_though_the_other_machine_spoke() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let told = [(10, "vps: a"), (20, "gpu: a"), (50, "vps: b"), (90, "waiting")];
        let steps = told.map(|(ms, text)| (at(ms), text.to_owned()));
        let lasted: Vec<_> = spans(&steps, began, at(100))
            .into_iter()
            .map(|(step, took)| (step, took.as_millis()))
            .collect();
        let expected = [("vps: a", 40), ("gpu: a", 70), ("vps: b", 40), ("waiting", 10)];
        assert_eq!(lasted[0].1, 10);
        assert_eq!(lasted[1..], expected.map(|(step, took)| (step.to_owned(), took)));
    }
}
