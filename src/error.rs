//! What can go wrong in a run, as one type.

use thiserror::Error;

/// Why a run failed. Each source error names the file, node or tensor and says what to do; what it says is in terms of
/// this library ([`Options`](crate::Options)), a program adds how its own user does that.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings contradict each other.
    #[error(transparent)]
    Options(#[from] crate::OptionsError),
    /// The model cannot be read.
    #[error(transparent)]
    Load(#[from] crate::onnx::LoadError),
    /// The result cannot be written.
    #[error(transparent)]
    Save(#[from] crate::onnx::SaveError),
    /// The calibration data does not fit the model.
    #[error(transparent)]
    Calibration(#[from] crate::calibrate::CalibError),
    /// The model cannot be worked on block by block.
    #[error("the model cannot be worked on block by block: {reason}; run it as a whole")]
    Streaming {
        /// Why, as a sentence.
        reason: String,
    },
    /// The folder with the finished parts of a run cannot be used.
    #[error("the work folder {} {problem}", path.display())]
    Work {
        /// The folder, or a file in it.
        path: std::path::PathBuf,
        /// What is wrong with it, as the rest of the sentence.
        problem: String,
    },
    /// The model cannot be run.
    #[error(transparent)]
    Engine(#[from] crate::calibrate::EngineError),
    /// The model is no valid graph.
    #[error("the model is not valid: {0}; onnx.checker.check_model finds more such errors")]
    Graph(#[from] crate::graph::GraphError),
    /// The operator set cannot be raised to 13, which per-axis scales need.
    #[error(transparent)]
    Opset(#[from] crate::graph::opset::OpsetError),
    /// Weights in groups need an operator set that the model cannot be raised to.
    #[error(
        "weights in groups are written as DequantizeLinear with blocks, of operator set 21: {error}; or have weights per \
         channel{}",
        in_matmulnbits(*.has_matmulnbits)
    )]
    BlocksOpset {
        /// What stands in the way.
        error: crate::graph::opset::OpsetError,
        /// Whether the target has com.microsoft.MatMulNBits, which needs no operator set.
        has_matmulnbits: bool,
    },
    /// The model cannot be rewritten.
    #[error(transparent)]
    Rewrite(#[from] crate::rewrite::RewriteError),
    /// Two models cannot be compared.
    #[error(transparent)]
    Verify(#[from] crate::review::VerifyError),
    /// Nothing to do.
    #[error("no Linear could be quantized: {0}")]
    NothingToQuantize(String),
    /// A constant that shift, scale or rounding would have to be folded into is no number.
    #[error(
        "the constant `{constant}` holds {value} (element {at}): the model is damaged, export it again; \
         or leave the Linears that use it in float"
    )]
    NotFinite {
        /// The constant's name.
        constant: String,
        /// The position of the first such element, row-major.
        at: usize,
        /// NaN or infinity.
        value: f32,
    },
    /// What was about to be written breaks a rule of the target.
    #[error(
        "internal error: target {target} would not run the result ({rule}, node `{node}`: {message}); nothing was \
         written; please report this with the model, and leave that Linear in float or take another target meanwhile"
    )]
    Lint {
        /// The target's name.
        target: &'static str,
        /// The rule: see [`crate::target::lint`].
        rule: String,
        /// The node that breaks it.
        node: String,
        /// What is wrong.
        message: String,
    },
    /// The constants of the migrated model lose too much in the type of the file.
    #[error(
        "rounding the migrated constants to {dtype}, the type of the file, moves output `{output}` by {error:.1e} of \
         its range, {limit:.0e} is allowed; migrate nothing, leave Linears in float, or give the float32 model"
    )]
    Rounding {
        /// FLOAT16 or BFLOAT16.
        dtype: &'static str,
        /// The output that differs most.
        output: String,
        /// max |difference| / (max − min of the original's output).
        error: f64,
        /// What is allowed.
        limit: f64,
    },
    /// Too much would have to be left in float.
    #[error(
        "the outputs have {best:.2} dB with {kept} of {linears} Linears left in float, {wanted} dB were asked for; \
         leave more in float, ask for less, or give more bits"
    )]
    MinSqnr {
        /// The SQNR asked for, in dB.
        wanted: f64,
        /// The lowest SQNR of an output that was reached.
        best: f64,
        /// Linears left in float then.
        kept: usize,
        /// Linears in all.
        linears: usize,
    },
    /// The model's metric cannot be told.
    #[error(transparent)]
    Metric(#[from] crate::calibrate::MetricError),
    /// The metric falls too far, whatever is left in float.
    #[error("{}", metric_words(.name, *.float, *.best, *.wanted, *.kept))]
    MinMetric {
        /// What it is called.
        name: String,
        /// What it says of the float model.
        float: f64,
        /// What it says of the best model that was found.
        best: f64,
        /// The least that was asked for.
        wanted: f64,
        /// Linears that are in float in that model because of it.
        kept: usize,
    },
    /// An SQNR was asked for, and there is none.
    #[error(
        "an SQNR was asked for, and no output of the model has one: none is float with elements that the model does not fill in \
         itself; ask for none, or make a float value an output"
    )]
    NothingToCompare,
    /// The migrated float model differs from the original.
    #[error(
        "the migrated float model differs from the original: output `{output}` by {error:.1e} of its range, \
         {limit:.0e} is allowed; migrate nothing, or leave Linears in float, and report the model"
    )]
    FloatCheck {
        /// The output that differs most.
        output: String,
        /// max |difference| / (max − min of the original's output).
        error: f64,
        /// What is allowed.
        limit: f64,
    },
}

/// The sentence of [`Error::MinMetric`].
fn metric_words(name: &str, float: f64, best: f64, wanted: f64, kept: usize) -> String {
    let figure = |value| crate::review::MetricReport::figure(name, value);
    let (float, best, wanted) = (figure(float), figure(best), figure(wanted));
    let kept = match kept {
        0 => String::new(),
        1 => " with 1 Linear more left in float".to_owned(),
        kept => format!(" with {kept} Linears more left in float"),
    };
    format!(
        "{name} falls from {float} (float) to {best} (quantized){kept}, and {wanted} was asked for; nothing was written: leave more \
         in float, ask for less, or give more bits"
    )
}

/// The other form of weights in groups, if there is one.
fn in_matmulnbits(has_it: bool) -> &'static str {
    if has_it { ", or in MatMulNBits" } else { "" }
}

impl Error {
    /// Whether a float model was run, and is not the original.
    pub(crate) fn is_of_float_check(&self) -> bool {
        matches!(self, Error::FloatCheck { .. } | Error::Rounding { .. })
    }

    /// Whether the type of the file is too coarse or too small for the migrated constants.
    pub(crate) fn is_of_rounding(&self) -> bool {
        matches!(
            self,
            Error::Rounding { .. } | Error::Rewrite(crate::rewrite::RewriteError::Overflow { .. })
        )
    }
}
