//! Figures: medians of repeats, as a table and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

/// Minimum, median and maximum of a set of figures.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

pub(crate) fn spread(figures: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let figures = sorted(figures);
    Some(Spread { min: *figures.first()?, median: figures[figures.len() / 2], max: *figures.last()? })
}

fn sorted(figures: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures
}

pub(crate) type Unit = (f64, &'static str);

pub(crate) const TOKENS: Unit = (1.0, "tokens/s");
pub(crate) const MILLISECONDS: Unit = (1e-3, "ms");
pub(crate) const PERCENT: Unit = (0.01, "%");
pub(crate) const TIMES: Unit = (1.0, "x");
pub(crate) const COUNT: Unit = (1.0, "");

/// A measured figure, with its names in JSON and in the table, and its unit in the table.
pub(crate) struct Figure {
    key: String,
    name: String,
    unit: Unit,
    spread: Spread,
}

impl Figure {
    pub(crate) fn new(key: &str, name: &str, unit: Unit, spread: Option<Spread>) -> Option<Self> {
        Some(Figure { key: key.into(), name: name.into(), unit, spread: spread? })
    }

    /// The 50th, 90th and 99th percentiles of `values`, as a figure each.
    pub(crate) fn percentiles(key: &str, name: &str, unit: Unit, values: impl IntoIterator<Item = f64>) -> Vec<Self> {
        let values = sorted(values);
        let at = |percent: usize| values.get((values.len() * percent / 100).min(values.len().saturating_sub(1)));
        let figure = |percent: usize| {
            let value = [*at(percent)?];
            Figure::new(&format!("{key}_p{percent}"), &format!("{name}, p{percent}"), unit, spread(value))
        };
        [50, 90, 99].into_iter().filter_map(figure).collect()
    }
}

/// Everything that is printed.
pub(crate) struct Report {
    /// What was measured, for JSON: an object.
    pub(crate) facts: Value,
    /// The same for the table.
    pub(crate) heading: String,
    pub(crate) figures: Vec<Figure>,
}

impl Report {
    pub(crate) fn json(&self) -> Value {
        let mut object = self.facts.clone();
        for Figure { key, spread, .. } in &self.figures {
            object[key.as_str()] = json!(spread.median);
            object["spread"][key.as_str()] = json!([spread.min, spread.max]);
        }
        object
    }

    pub(crate) fn table(&self) -> String {
        let mut out = self.heading.clone();
        for Figure { name, unit: (scale, unit), spread: Spread { min, median, max }, .. } in &self.figures {
            let (min, median, max) = (min / scale, median / scale, max / scale);
            // Writing to a string cannot fail.
            let _ = write!(out, "\n{name:<34} {median:9.2} {unit}");
            if min < max {
                let _ = write!(out, "  [{min:.2} to {max:.2}]");
            }
        }
        out
    }
}
