//! What can go wrong between a model and its values.

use crate::calibrate::data::error::CalibError;

/// Why a model cannot be run, or its values not be measured. Where a node is named, a node without a name is called by
/// its first output.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The library of another engine cannot be used.
    #[error("{} cannot be used as ONNX Runtime: {reason}; it is libonnxruntime.so of version 1.17 or newer, as in the Python package \
             (onnxruntime/capi)", path.display())]
    Library {
        /// The library.
        path: std::path::PathBuf,
        /// What the system, or the library, says.
        reason: String,
    },
    /// A value that a later part of the model needs cannot be written to the disk.
    #[error(
        "cannot keep what later parts of the model need: {source}; free space where OUT is written"
    )]
    Store {
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Operators that the engine does not have and that are not written with others. Export them decomposed, or take them
    /// out of the model.
    #[error(
        "calibration cannot run {}: {}",
        if ops.len() == 1 { "an operator of this model" } else { "some operators of this model" },
        ops.join(", ")
    )]
    UnsupportedOps {
        /// Each with its domain and one node that has it: `com.example.Op (node NAME)`.
        ops: Vec<String>,
    },
    /// A node in a form that the engine would refuse, or compute something else for. Export it in another form.
    #[error("calibration cannot run node {node} ({op}): {reason}")]
    Refused {
        /// The node, or the constant, by its name.
        node: String,
        /// Its operator.
        op: String,
        /// What about it cannot be run.
        reason: String,
    },
    /// A node whose form depends on a shape that is not known before the model runs.
    #[error("calibration cannot run node {node} ({op}): the shape of `{value}` is not known")]
    UnknownShape {
        /// The node that asks for the shape.
        node: String,
        /// Its operator.
        op: String,
        /// The value whose shape is not known.
        value: String,
    },
    /// A constant that cannot be read: of an unknown type, or of another size than its shape says. The model is damaged.
    #[error("constant {name}: {reason}")]
    Constant {
        /// The constant's name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A value was asked for that no node of the main graph computes.
    #[error("the model has no value named {name}")]
    UnknownValue {
        /// The name that was asked for.
        name: String,
    },
    /// A value was asked for that holds integers, booleans or text. Leave it out.
    #[error("value {name} is {found}; statistics need float32")]
    NotFloat {
        /// The value's name.
        name: String,
        /// Its element type.
        found: String,
    },
    /// NaN or infinity inside the model. The model overflows on this row; a range of such a value means nothing.
    #[error(
        "value {name} is not finite: {value} in channel {channel} at row {row}, position {position}"
    )]
    NotFinite {
        /// The value's name.
        name: String,
        /// The row in the data, counted over all files.
        row: u64,
        /// The token within its row.
        position: u64,
        /// The channel: the index on the last axis, or on the first where channels are first.
        channel: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The last axis of a value depends on the data, so it holds no channels. Leave the value out.
    #[error("value {name} has {found} channels here and {expected} in another batch")]
    Channels {
        /// The value's name.
        name: String,
        /// Channels in the batches before.
        expected: usize,
        /// Channels in this batch.
        found: usize,
    },
    /// All positions are excluded by the mask. Give rows with real tokens, or a mask of another form.
    #[error("value {name}: every calibration token is padding")]
    NoTokens {
        /// The value's name.
        name: String,
    },
    /// A batch that was made for another model.
    #[error("the batch gives no data for model input {name}")]
    MissingInput {
        /// The input's name.
        name: String,
    },
    /// A plan runs only batches of the shapes that it was made for. Make another for these.
    #[error("batch input {name} has shape {found:?}; the plan was made for {expected:?}")]
    Shape {
        /// The input's name.
        name: String,
        /// Its shape in the plan.
        expected: Vec<usize>,
        /// Its shape in the batch.
        found: Vec<usize>,
    },
    /// The data picks a row that a table of the model, such as the embedding of its vocabulary, does not have. Give data
    /// that was made for this model.
    #[error(
        "{input} holds {value} at row {row}, but {table} (node {node}) has only {rows} rows: \
         is the calibration data made for another vocabulary or length?"
    )]
    IndexRange {
        /// The model input with the index.
        input: String,
        /// The index.
        value: i64,
        /// The row in the data, counted over all files.
        row: u64,
        /// The constant it would select from.
        table: String,
        /// The node that selects.
        node: String,
        /// Rows of the table; indices go from −rows to rows − 1.
        rows: i64,
    },
    /// The engine cannot make a plan. The reason is the engine's own; where it names shapes, rows of another length may do.
    #[error("the engine cannot prepare the model for inputs {shapes}: {reason}")]
    Plan {
        /// Every input with its shape.
        shapes: String,
        /// What the engine says.
        reason: String,
    },
    /// The engine made a plan and failed while it ran. The reason is the engine's own; other rows may do.
    #[error("the engine failed on the batch of rows {first} to {last}: {reason}")]
    Run {
        /// The first row of the batch, counted over all files.
        first: u64,
        /// Its last row.
        last: u64,
        /// What the engine says.
        reason: String,
    },
    /// An output has another shape in the other model, so the two are no forms of one model.
    #[error("output {name} has shape {reference:?} in one model and {other:?} in the other")]
    OutputShape {
        /// The output's name.
        name: String,
        /// Its shape in the reference.
        reference: Vec<usize>,
        /// Its shape in the other model.
        other: Vec<usize>,
    },
    /// Only one of the models gives this output as float, so the two are no forms of one model.
    #[error("output {name} is missing in one of the models")]
    OutputMissing {
        /// The output's name.
        name: String,
    },
    /// An element is NaN or infinite in one model alone, so no error can be given as a number.
    #[error("output {name} is {value} at row {row}, where the other model gives {reference}")]
    OutputNotFinite {
        /// The output's name.
        name: String,
        /// The row in the data, counted over all files.
        row: u64,
        /// The element in the other model.
        value: f32,
        /// The element in the reference.
        reference: f32,
    },
    /// The system does not give as many threads as were asked for. Ask for fewer.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many were asked for; 0 for one per core.
        threads: usize,
        /// What the system says.
        reason: String,
    },
    /// The data of a batch cannot be read.
    #[error(transparent)]
    Data(Box<CalibError>),
}

impl From<CalibError> for EngineError {
    fn from(error: CalibError) -> EngineError {
        EngineError::Data(Box::new(error))
    }
}
