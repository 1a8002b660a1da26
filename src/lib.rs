//! onnx-osplus makes ONNX transformers survive integer quantization.
//!
//! A few channels of a transformer's Linear inputs are tens to thousands of times larger than the others, and one
//! scale for the tensor must cover them all. Outlier Suppression+ (Wei et al., EMNLP 2023, arXiv 2304.09145) moves
//! the trouble into constants, exactly in float:
//!
//! ```text
//! x' = (x − z) / s        x W + b = x' (diag(s) W) + (b + z W)
//! ```
//!
//! [`run`] is the whole job; the modules it goes through are the chapters of the program, in the order of the data:
//! [`onnx`] reads the file, [`graph`] indexes it, [`recognise`] finds norms and Linears in any export form, [`site`]
//! pairs them up, [`calibrate`] runs the model on real data, [`solve`] finds shift and scale, [`rewrite`] folds them
//! into the constants and quantizes by the rules of a [`target`], [`review`] checks the result and says what was done.
//!
//! [`Quantizer`] is the shortest way to use it; `examples/quantize.rs` shows the whole job of a program.
//!
//! The library never prints, reads the environment or exits.

pub mod calibrate;
mod error;
pub mod graph;
pub mod onnx;
mod options;
mod pipeline;
pub mod progress;
mod quantizer;
pub mod recognise;
pub mod review;
pub mod rewrite;
pub mod site;
pub mod solve;
pub mod target;

pub use error::Error;
pub use options::{AttentionMode, Format, KeepFloat, Options, OptionsError};
pub use quantizer::{CalibratedQuantizer, Quantized, Quantizer};
/// The type of [`Options::include`] and [`Options::exclude`].
pub use regex::Regex;

use calibrate::{Dataset, Engine};
use graph::branches::unflatten;
use onnx::Model;
use progress::Progress;
use review::Report;

/// What [`run`] works on: the graph as it is recognised, and where each affine can go.
#[derive(Debug)]
pub struct Inspection {
    /// The model in the form that is recognised: raised to [`target::MIN_OPSET`], functions and operators that hold Linears
    /// opened, both branches of an If in one list (see [`graph::branches`]).
    pub model: Model,
    /// Norms, Linears and near misses; its numbers of nodes and values are those of a [`graph::View`] of `model`.
    pub found: recognise::Recognised,
    /// Values that Linears read, each with its sink.
    pub sites: Vec<site::Site>,
    /// Functions and branches that were left closed, with the reason.
    pub closed: Vec<review::NearMissReport>,
}

/// Only the first steps of [`run`]: nothing is calibrated or changed. Two rows of `data` give the shapes.
///
/// ```
/// use onnx_osplus::calibrate::{Dataset, TractEngine};
/// use onnx_osplus::progress::NoProgress;
/// use onnx_osplus::{Options, inspect, onnx};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = onnx::load("models/tiny/model.onnx")?;
/// let data = Dataset::synthetic(&model)?;
/// let seen = inspect(&model, &data, &TractEngine, &Options::default(), &NoProgress)?;
/// assert!(seen.sites.iter().all(|site| site.has_sink()));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// No Linear to quantize, an operator set that the target cannot have, whatever the engine cannot run.
pub fn inspect(
    original: &Model,
    data: &Dataset,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Inspection, Error> {
    let mut run = pipeline::Run::new(original, data, engine, options, progress);
    let model = run.raise_opset()?;
    let model = run.take_apart(model)?;
    let blocks = run.recognise(&model)?;
    Ok(run.into_inspection(model, blocks))
}

/// What is seen in a model: its architecture, sites with their sinks, near misses, what is quantized already; with `data`,
/// which channels stick out and what plain quantization would do, too. Without data, zeros of the stated shapes are run.
///
/// ```
/// use onnx_osplus::calibrate::TractEngine;
/// use onnx_osplus::progress::NoProgress;
/// use onnx_osplus::{Options, anatomy, onnx};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = onnx::load("models/tiny/model.onnx")?;
/// let seen = anatomy(&model, None, &TractEngine, &Options::default(), &NoProgress)?;
/// assert_eq!(seen.architecture.norms["LayerNormalization"], 5);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Whatever the engine refuses when it runs `data`. A model that cannot be run at all is inspected as far as the graph
/// tells, and a note says so.
pub fn anatomy(
    original: &Model,
    data: Option<&Dataset>,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<review::Anatomy, Error> {
    pipeline::anatomy(original, data, engine, options, progress)
}

/// Migrates and quantizes `original` by what `data` shows of its activations.
///
/// Returns the new model and the account of what was done to it. The float model after migration has been compared
/// with the original, and the result with plain min-max quantization, on data that set none of its ranges if there is
/// enough.
///
/// # Errors
/// Whatever makes a sound result impossible: see [`Error`]. `original` is never changed.
pub fn run(
    original: &Model,
    data: &Dataset,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(Model, Report), Error> {
    let engine = engine.sharing();
    let mut run = pipeline::Run::new(original, data, engine.as_ref(), options, progress);
    let model = run.raise_opset()?;
    let model = run.take_apart(model)?;
    let mut blocks = run.recognise(&model)?;
    let statistics = run.calibrate(&model, &mut blocks)?;
    let mut solutions = run.solve(&model, &blocks, &statistics);
    let migrated = run.migrate(&model, &blocks, &statistics, &mut solutions)?;
    let result = match options.format {
        Format::Float => run.verify_float(migrated)?,
        Format::Qdq | Format::QOperator => {
            let quantized = run.quantize(migrated, &blocks, &statistics, &solutions)?;
            let plain = run.quantize_plain(&model, &blocks, &statistics)?;
            let source = pipeline::Source {
                model: &model,
                blocks: &blocks,
                statistics: &statistics,
                solutions: &solutions,
            };
            let (better, wider) = run.keep_the_better(quantized, plain, &source)?;
            solutions = wider.unwrap_or(solutions);
            let better = run.keep_float(better, &model, &mut blocks, &statistics, &solutions)?;
            run.quantize_attention(better)?
        }
    };
    let result = unflatten(&result);
    run.lint(&result)?;
    Ok((result, run.into_report(blocks, solutions, &statistics)))
}
