//! From what people have to what a model is fed with: sentences to token ids.
//!
//! Nothing here knows a model beyond the inputs that it wants ([`Wanted`]). The way of each kind of data is that of the
//! Python package `transformers`, whose configuration files lie beside a model; tests compare the two, number by number.

mod config;
mod error;
mod rows;
mod settings;
mod text;

use std::collections::BTreeMap;
use std::path::Path;

pub use error::{PrepareError, Setting};
pub use settings::Settings;

/// A model input, as far as its data depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its name.
    pub(crate) name: String,
    /// Its axes, `None` for a size that the model leaves open; `None` for all where it does not even state their number.
    pub(crate) shape: Option<Vec<Option<usize>>>,
    /// Whether its elements are floats.
    pub(crate) is_float: bool,
}

/// The elements of an array, in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Elements {
    /// For inputs of integers and booleans.
    Ints(Vec<i64>),
}

/// What one input is fed with: rows along axis 0.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    /// Sizes of the axes.
    pub(crate) shape: Vec<usize>,
    /// As many as the shape holds.
    pub(crate) elements: Elements,
}

/// Arrays by the input that each feeds, all with equally many rows.
pub(crate) type Arrays = BTreeMap<String, Array>;

/// Data for a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Prepared {
    /// Rows of one shape each.
    pub(crate) tables: Vec<Arrays>,
    /// What was found and decided that the user did not ask for.
    pub(crate) notes: Vec<String>,
}

/// What kind of data a file holds, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sentences, one a line or in columns.
    Text,
}

/// The kind of data in `path`; `None` for what is none of them.
pub(crate) fn kind(path: &Path) -> Option<Kind> {
    match extension(path).as_str() {
        "txt" | "tsv" | "csv" | "jsonl" | "ndjson" | "json" | "parquet" => Some(Kind::Text),
        _ => None,
    }
}

/// Makes what `inputs` are fed with from one file of data.
///
/// # Errors
/// [`PrepareError`] names the file, and what is wrong with it or missing beside it.
pub(crate) fn prepare(
    path: &Path,
    kind: Kind,
    inputs: &[Wanted],
    settings: &Settings,
) -> Result<Prepared, PrepareError> {
    match kind {
        Kind::Text => text::prepare(path, inputs, settings),
    }
}

/// The numbers of `count` of `all` rows, evenly spread: `⌊i · all / count⌋`.
fn spread(all: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(all);
    // 128 bits, so that no product overflows.
    (0..count).map(move |i| (i as u128 * all as u128 / count as u128) as usize)
}

/// What is said where not all rows are used and nobody asked for so few.
fn sampled(path: &Path, count: usize, all: usize, what: &str) -> String {
    format!(
        "{count} of the {all} {what} of {} are used, evenly spread; a number of samples asks for more or fewer",
        path.display()
    )
}

/// The extension of `path` in lower case.
fn extension(path: &Path) -> String {
    path.extension()
        .map(|e| e.to_string_lossy().to_lowercase())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_evenly() {
        let of = |all, count| spread(all, count).collect::<Vec<_>>();
        assert_eq!(of(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(of(3, 5), [0, 1, 2]);
        assert_eq!(of(7, 3), [0, 2, 4]);
        assert!(of(0, 3).is_empty());
    }
}
