//! [`inspect`]: only the first step of a run.

use super::job::{Clock, Job};
use super::prepare::{Prepared, any_candidate, nothing_because};
use crate::calibrate::{Dataset, Engine, with_threads};
use crate::error::Error;
use crate::graph;
use crate::graph::branches::FlatModel;
use crate::onnx::Model;
use crate::options::Options;
use crate::progress::Progress;
use crate::recognise::{Recognised, recognise};
use crate::review::NearMissReport;
use crate::site::Site;

/// What [`super::run`] works on: the graph as it is recognised, and where each affine can go.
#[derive(Debug)]
pub struct Inspection {
    /// The model in the form that is recognised: raised to [`crate::target::MIN_OPSET`], functions and operators that hold
    /// Linears opened, both branches of an If in one list (see [`crate::graph::branches`]).
    pub model: FlatModel,
    /// Norms, Linears and near misses; its numbers of nodes and values are those of [`FlatModel::view`].
    pub found: Recognised,
    /// Values that Linears read, each with its sink.
    pub sites: Vec<Site>,
    /// Functions and branches that were left closed, with the reason.
    pub closed: Vec<NearMissReport>,
}

/// Only the first steps of [`super::run`]: nothing is calibrated or changed. Two rows of `data` give the shapes.
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
    with_threads(options.threads, || {
        let job = Job {
            original,
            engine,
            options,
            progress,
            clock: &Clock::start(),
            known: None,
            evaluation: None,
        };
        let (prepared, ..) = Prepared::with_rows(&job, data)?;
        Ok(Inspection {
            model: prepared.model,
            found: prepared.found,
            sites: prepared.sites.into_sites(),
            closed: prepared.changes.closed,
        })
    })?
}

/// Whether a model has anything that could be quantized, before there is data.
///
/// # Errors
/// [`Error::NothingToQuantize`] if it has not, whatever data may show: no product with a weight in float. A graph that is none.
pub fn check_quantizable(original: &Model) -> Result<(), Error> {
    graph::check(original)?;
    // What functions hold is known once the operator sets are raised and they are opened.
    if !original.proto.functions.is_empty() {
        return Ok(());
    }
    let model = FlatModel::of(original.clone());
    let view = model.view();
    if any_candidate(&view) {
        return Ok(());
    }
    let because = nothing_because(std::iter::empty(), &recognise(&view));
    Err(Error::NothingToQuantize(because))
}
