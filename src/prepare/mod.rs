//! From what people have to what a model is fed with: sentences to token ids.
//!
//! Nothing here knows a model beyond the inputs that it wants ([`Wanted`]). The way of each kind of data is that of the
//! Python package `transformers`, whose configuration files lie beside a model; tests compare the two, number by number.

mod arrays;
mod config;
mod error;
mod rows;
mod sampling;
mod settings;
mod text;

use std::path::Path;

pub(crate) use arrays::{Array, Elements, Prepared, Wanted};
pub use error::{PrepareError, Setting};
pub use settings::Settings;

/// What kind of data a file holds, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sentences, one a line or in columns.
    Text,
}

/// The kind of data in `path`; `None` for what is none of them.
pub(crate) fn kind(path: &Path) -> Option<Kind> {
    match sampling::extension(path).as_str() {
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
