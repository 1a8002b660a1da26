//! From what people have to what a model is fed with: sentences to token ids, images to pixels, recordings to features.
//!
//! Nothing here knows a model beyond the inputs that it wants (`Wanted`). The way of each kind of data is that of the
//! Python package `transformers`, whose configuration files lie beside a model; tests compare the two, number by number.

mod arrays;
mod audio;
mod config;
mod error;
mod generation;
mod image;
pub(crate) mod labels;
mod rows;
mod sampling;
mod settings;
mod text;

use std::path::{Path, PathBuf};

pub(crate) use arrays::{Array, Elements, Prepared, Wanted};
pub use error::{PrepareError, Setting};
pub use generation::Generation;
pub use settings::Settings;

/// What kind of data a file holds, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Sentences, one a line or in columns.
    Text,
    /// A file is a row.
    Image,
    /// A file is a row.
    Audio,
}

/// The kind of data in `path`; `None` for what is none of them.
pub(crate) fn kind(path: &Path) -> Option<Kind> {
    match sampling::extension(path).as_str() {
        "txt" | "tsv" | "csv" | "jsonl" | "ndjson" | "json" | "parquet" => Some(Kind::Text),
        image if image::EXTENSIONS.contains(&image) => Some(Kind::Image),
        audio if audio::EXTENSIONS.contains(&audio) => Some(Kind::Audio),
        _ => None,
    }
}

/// Makes what `inputs` are fed with from files of one kind.
///
/// # Errors
/// [`PrepareError`] names the file, and what is wrong with it or missing beside it.
pub(crate) fn prepare(
    paths: &[PathBuf],
    kind: Kind,
    inputs: &[Wanted],
    settings: &Settings,
) -> Result<Prepared, PrepareError> {
    match kind {
        Kind::Image => image::prepare(paths, inputs, settings),
        Kind::Audio => audio::prepare(paths, inputs, settings),
        Kind::Text => {
            let mut all = Prepared::default();
            for path in paths {
                let one = text::prepare(path, inputs, settings)?;
                let before = all.rows;
                let numbered = |rows: Vec<usize>| rows.into_iter().map(|n| before + n).collect();
                all.tables.extend(one.tables);
                all.origins.extend(one.origins.into_iter().map(numbered));
                all.rows += one.rows;
                all.notes.extend(one.notes);
            }
            Ok(all)
        }
    }
}
