//! What can go wrong between a calibration file and a statistic.

use std::path::{Path, PathBuf};

/// Calibration data that cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CalibError {
    #[error("cannot read {}: {source}", file.display())]
    Read {
        file: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{place} {problem}")]
    Format { place: String, problem: String },
    #[error("{}: {problem}", file.display())]
    Source { file: PathBuf, problem: String },
    #[error("calibration data is needed: none was given")]
    NoSource,
    #[error("{place} does not fit input {input}: expected {expected}, found {found}{hint}")]
    Mismatch {
        place: String,
        input: String,
        expected: String,
        found: String,
        hint: String,
    },
    #[error("{place} holds {value} at index {index:?}; calibration data must be finite")]
    NotFinite {
        place: String,
        index: Vec<usize>,
        value: String,
    },
    #[error(
        "{place} holds {value}, which input {input} of type {expected} cannot hold exactly{hint}"
    )]
    Inexact {
        place: String,
        input: String,
        expected: String,
        /// The value and its index.
        value: String,
        hint: &'static str,
    },
    #[error("{} has no input of the model's: {name} is not one of them\n{inputs}", file.display())]
    UnknownInput {
        file: PathBuf,
        name: String,
        inputs: String,
    },
    #[error(
        "{} has no name, and the model has {count} inputs that must be given; write NAME={}\n{inputs}",
        file.display(),
        file.display()
    )]
    Ambiguous {
        file: PathBuf,
        count: usize,
        inputs: String,
    },
    #[error("input {missing} is not in {} and cannot be filled in; give it with NAME=FILE.npy or as an array of an .npz\n{inputs}", file.display())]
    Missing {
        file: PathBuf,
        missing: String,
        inputs: String,
    },
    #[error(
        "the arrays of one calibration set must have equally many rows: {first} has {first_rows}, {second} has {second_rows}"
    )]
    Rows {
        first: String,
        first_rows: usize,
        second: String,
        second_rows: usize,
    },
    #[error("{} has {rows} rows, but the model's batch size is fixed to {batch}: give a multiple of it", file.display())]
    FixedBatch {
        file: PathBuf,
        rows: usize,
        batch: usize,
    },
    #[error("model input {name} is not a tensor of numbers ({found}); calibration cannot feed it")]
    InputType { name: String, found: String },
}

/// "FILE" or "FILE: array NAME", the subject of a message.
pub(super) fn place(file: &Path, array: Option<&str>) -> String {
    match array {
        Some(name) => format!("{}: array {name}", file.display()),
        None => file.display().to_string(),
    }
}
