//! What can go wrong between a model and its values.

use crate::calibrate::data::error::CalibError;

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum EngineError {
    #[error(
        "calibration cannot run {}: {}",
        if ops.len() == 1 { "an operator of this model" } else { "some operators of this model" },
        ops.join(", ")
    )]
    UnsupportedOps { ops: Vec<String> },
    #[error("calibration cannot run node {node} ({op}): {reason}")]
    Refused {
        node: String,
        op: String,
        reason: String,
    },
    #[error("constant {name}: {reason}")]
    Constant { name: String, reason: String },
    #[error("the model has no value named {name}")]
    UnknownValue { name: String },
    #[error("value {name} is {found}; statistics need float32")]
    NotFloat { name: String, found: String },
    #[error(
        "value {name} is not finite: {value} in channel {channel} at row {row}, position {position}"
    )]
    NotFinite {
        name: String,
        row: u64,
        position: u64,
        channel: usize,
        value: f32,
    },
    #[error("value {name} has {found} channels here and {expected} in another batch")]
    Channels {
        name: String,
        expected: usize,
        found: usize,
    },
    #[error("value {name}: every calibration token is padding")]
    NoTokens { name: String },
    #[error("the batch gives no data for model input {name}")]
    MissingInput { name: String },
    #[error("batch input {name} has shape {found:?}; the plan was made for {expected:?}")]
    Shape {
        name: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error(
        "{input} holds {value} at row {row}, but {table} (node {node}) has only {rows} rows: \
         is the calibration data made for another vocabulary or length?"
    )]
    IndexRange {
        input: String,
        value: i64,
        row: u64,
        table: String,
        node: String,
        rows: i64,
    },
    #[error("the engine cannot prepare the model for inputs {shapes}: {reason}")]
    Plan { shapes: String, reason: String },
    #[error("the engine failed on the batch of rows {first} to {last}: {reason}")]
    Run {
        first: u64,
        last: u64,
        reason: String,
    },
    #[error("output {name} has shape {reference:?} in one model and {other:?} in the other")]
    OutputShape {
        name: String,
        reference: Vec<usize>,
        other: Vec<usize>,
    },
    #[error("output {name} is missing in one of the models")]
    OutputMissing { name: String },
    #[error("output {name} is {value} at row {row}, where the other model gives {reference}")]
    OutputNotFinite {
        name: String,
        row: u64,
        value: f32,
        reference: f32,
    },
    #[error("cannot start {threads} threads: {reason}")]
    Threads { threads: usize, reason: String },
    #[error(transparent)]
    Data(Box<CalibError>),
}

impl From<CalibError> for EngineError {
    fn from(error: CalibError) -> EngineError {
        EngineError::Data(Box::new(error))
    }
}
