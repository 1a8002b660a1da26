//! What can go wrong between a calibration file and a statistic.

use std::path::PathBuf;

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
    #[error("{} {problem}", place(file, array))]
    Format {
        file: PathBuf,
        array: Option<String>,
        problem: String,
    },
    #[error("{}: {problem}", file.display())]
    Source { file: PathBuf, problem: String },
    #[error("calibration data is needed: none was given")]
    NoSource,
    #[error(
        "{} does not fit input {input}: expected {expected}, found {found}{hint}",
        place(file, array)
    )]
    Mismatch {
        file: PathBuf,
        array: Option<String>,
        input: String,
        expected: String,
        found: String,
        hint: String,
    },
    #[error(
        "{} holds {value} at index {index:?}; calibration data must be finite",
        place(file, array)
    )]
    NotFinite {
        file: PathBuf,
        array: Option<String>,
        index: Vec<usize>,
        value: String,
    },
    #[error(
        "{} holds {value} at index {index:?}, which input {input} of type {expected} cannot hold exactly{hint}",
        place(file, array)
    )]
    Inexact {
        file: PathBuf,
        array: Option<String>,
        input: String,
        expected: String,
        index: Vec<usize>,
        value: String,
        hint: String,
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

/// "FILE" or "FILE: array NAME", as the subject of a message.
fn place(file: &std::path::Path, array: &Option<String>) -> String {
    match array {
        Some(name) => format!("{}: array {name}", file.display()),
        None => file.display().to_string(),
    }
}
