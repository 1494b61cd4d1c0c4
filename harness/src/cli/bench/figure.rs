//! A figure of the table: what was measured, how often, and what was hoped for.

use std::time::Duration;

use serde_json::{Value, json};

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Milliseconds,
    Mebibytes,
    Topologies,
}

impl Unit {
    fn word(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::Topologies => "",
        }
    }
}

/// What was hoped for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// A line of the table.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    what: String,
    unit: Unit,
    target: Option<Target>,
    values: Vec<f64>,
}

impl Figure {
    pub(super) fn new(what: &str, unit: Unit) -> Self {
        Self {
            what: what.to_owned(),
            unit,
            target: None,
            values: Vec::new(),
        }
    }

    pub(super) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    pub(super) fn add(&mut self, value: f64) {
        self.values.push(value);
        self.values.sort_by(f64::total_cmp);
    }

    pub(super) fn took(&mut self, took: Duration) {
        self.add(took.as_secs_f64() * 1e3);
    }

    /// The middle one; of an even number the mean of the two in the middle.
    pub(super) fn median(&self) -> Option<f64> {
        let (count, middle) = (self.values.len(), self.values.len() / 2);
        let upper = *self.values.get(middle)?;
        if count % 2 == 1 {
            return Some(upper);
        }
        Some(f64::midpoint(self.values[middle - 1], upper))
    }

    /// Whether the median is as was hoped.
    pub(super) fn is_met(&self) -> Option<bool> {
        Some(match (self.target?, self.median()?) {
            (Target::AtMost(most), median) => median <= most,
            (Target::AtLeast(least), median) => median >= least,
        })
    }

    /// Median, least, most, target, and whether it is met.
    pub(super) fn row(&self) -> [String; 6] {
        let shown = |value: Option<f64>| match value {
            Some(value) => format!("{value:.0} {}", self.unit.word()).trim_end().to_owned(),
            None => "-".to_owned(),
        };
        let target = self.target.map_or_else(String::new, |target| match target {
            Target::AtMost(most) => format!("≤ {}", shown(Some(most))),
            Target::AtLeast(least) => format!("≥ {}", shown(Some(least))),
        });
        let met = match self.is_met() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        [
            self.what.clone(),
            shown(self.median()),
            shown(self.values.first().copied()),
            shown(self.values.last().copied()),
            target,
            met.to_owned(),
        ]
    }

    pub(super) fn to_json(&self) -> Value {
        let target = self.target.map(|target| match target {
            Target::AtMost(most) => json!({ "at_most": most }),
            Target::AtLeast(least) => json!({ "at_least": least }),
        });
        json!({
            "what": self.what, "unit": self.unit.word(), "median": self.median(),
            "least": self.values.first(), "most": self.values.last(), "rounds": self.values.len(),
            "target": target, "met": self.is_met(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Figure {
        let mut figure = Figure::new("boot", Unit::Milliseconds).target(Target::AtMost(20.0));
        values.iter().for_each(|value| figure.add(*value));
        figure
    }

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(of(&[30.0, 10.0, 20.0]).median(), Some(20.0));
        assert_eq!(of(&[40.0, 10.0, 20.0, 30.0]).median(), Some(25.0));
        assert_eq!(of(&[]).median(), None);
    }

    #[test]
    fn a_row_shows_the_target_beside_the_figures() {
        let row = of(&[30.0, 10.0, 21.0]).row();
        assert_eq!(row, ["boot", "21 ms", "10 ms", "30 ms", "≤ 20 ms", "missed"]);
    }
}
