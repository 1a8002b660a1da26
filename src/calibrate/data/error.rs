//! What can go wrong between a calibration file and a statistic.

use std::path::{Path, PathBuf};

/// Calibration data that cannot be used. A `place` is a file or, of a file with several arrays, `FILE: array NAME`;
/// `inputs` are all inputs of the model with their types and shapes, one per line.
#[derive(Debug, thiserror::Error)]
pub enum CalibError {
    /// The file or folder cannot be opened.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The path.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what its name says. Write it again.
    #[error("{place} {problem}")]
    Format {
        /// The file, or the array in it.
        place: String,
        /// What is wrong with it, as the rest of the sentence.
        problem: String,
    },
    /// The file can be read, but it is no calibration data of this model.
    #[error("{}: {problem}", file.display())]
    Source {
        /// The path.
        file: PathBuf,
        /// Why, and what is taken instead.
        problem: String,
    },
    /// No source was given, or none that holds an array.
    #[error("calibration data is needed: none was given")]
    NoSource,
    /// An array has another type or shape than its input. Convert it, or give another.
    #[error("{place} does not fit input {input}: expected {expected}, found {found}{hint}")]
    Mismatch {
        /// The file, or the array in it.
        place: String,
        /// The model input that it feeds.
        input: String,
        /// What the model declares.
        expected: String,
        /// What the array has.
        found: String,
        /// What to do, after a semicolon; or nothing.
        hint: String,
    },
    /// NaN or infinity in the data. Mend or leave out the row.
    #[error("{place} holds {value} at index {index:?}; calibration data must be finite")]
    NotFinite {
        /// The file, or the array in it.
        place: String,
        /// Where the element is: one index per axis.
        index: Vec<usize>,
        /// NaN or an infinity.
        value: String,
    },
    /// A number that the type of the input cannot hold: out of its range, or finer than its steps.
    #[error(
        "{place} holds {value}, which input {input} of type {expected} cannot hold exactly{hint}"
    )]
    Inexact {
        /// The file, or the array in it.
        place: String,
        /// The model input that it feeds.
        input: String,
        /// The type of the input.
        expected: String,
        /// The value and its index.
        value: String,
        /// What to do, after a semicolon; or nothing.
        hint: &'static str,
    },
    /// An array has a name that no input of the model has. Name it after one, or leave it out.
    #[error("{} has no input of the model's: {name} is not one of them\n{inputs}", file.display())]
    UnknownInput {
        /// The file.
        file: PathBuf,
        /// The name of the array, or of the source.
        name: String,
        /// The model's inputs.
        inputs: String,
    },
    /// A single array without a name could be for any of several inputs. Set
    /// [`CalibSource::name`](crate::calibrate::CalibSource::name), or give a `.npz` whose arrays are named.
    #[error(
        "{} has no name, and the model has {count} inputs that must be given: name the input that it feeds\n{inputs}",
        file.display()
    )]
    Ambiguous {
        /// The `.npy` file.
        file: PathBuf,
        /// How many inputs cannot be filled in.
        count: usize,
        /// The model's inputs.
        inputs: String,
    },
    /// No source feeds an input for which no rule ([`FillRule`](crate::calibrate::FillRule)) stands in.
    #[error(
        "input {missing} is not in {} and cannot be filled in: give a source that is named after it, or an array of a .npz\n{inputs}",
        file.display()
    )]
    Missing {
        /// The file beside which it is missing.
        file: PathBuf,
        /// The input.
        missing: String,
        /// The model's inputs.
        inputs: String,
    },
    /// Arrays that belong together have axes 0 of different lengths.
    #[error(
        "the arrays of one calibration set must have equally many rows: {first} has {first_rows}, {second} has {second_rows}"
    )]
    Rows {
        /// One input.
        first: String,
        /// The rows of its array.
        first_rows: usize,
        /// Another input.
        second: String,
        /// The rows of its array.
        second_rows: usize,
    },
    /// The model runs only whole batches of one size, and the rows do not fill the last one.
    #[error("{} has {rows} rows, but the model's batch size is fixed to {batch}: give a multiple of it", file.display())]
    FixedBatch {
        /// The file.
        file: PathBuf,
        /// Its rows.
        rows: usize,
        /// The batch size that the model fixes.
        batch: usize,
    },
    /// Text cannot be made into inputs.
    #[error(transparent)]
    Prepare(#[from] crate::prepare::PrepareError),
    /// The model has an input that no array can feed: a sequence, text, a complex number. Export it without.
    #[error("model input {name} is not a tensor of numbers ({found}); calibration cannot feed it")]
    InputType {
        /// The input's name.
        name: String,
        /// What it is.
        found: String,
    },
}

impl CalibError {
    /// The list of the model's inputs that ends the message, a line for each, where there is one.
    pub fn inputs(&self) -> Option<&str> {
        match self {
            CalibError::UnknownInput { inputs, .. }
            | CalibError::Ambiguous { inputs, .. }
            | CalibError::Missing { inputs, .. } => Some(inputs),
            _ => None,
        }
    }
}

/// "FILE" or "FILE: array NAME", the subject of a message.
pub(super) fn place(file: &Path, array: Option<&str>) -> String {
    match array {
        Some(name) => format!("{}: array {name}", file.display()),
        None => file.display().to_string(),
    }
}
