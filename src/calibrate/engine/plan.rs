//! The engine: whatever can run a model on a batch and show values inside it.
//!
//! An [`Engine`] makes a [`Plan`] for a model at fixed input shapes; a plan runs any number of batches of those shapes,
//! from any number of threads. Values that a caller wants to see are *tapped*: while the model runs, the plan hands each
//! one to a [`TapSink`], which reduces it on the spot, so that no activation outlives its moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD};

use crate::calibrate::data::input::{Batch, InputTensor, Shapes};
use crate::calibrate::engine::error::EngineError;
use crate::graph::axes::Axes;
use crate::graph::work::Product;
use crate::onnx::Model;

/// What a plan must compute.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Names of float values to hand to the [`TapSink`].
    pub taps: &'a [String],
    /// Whether [`Plan::run`] returns the graph's float outputs. If not, what only they need is not computed.
    pub outputs: bool,
}

/// Makes plans.
pub trait Engine: Sync {
    /// Prepares `model` for batches of the shapes of `like`.
    ///
    /// # Errors
    /// Operators that the engine does not know, values that do not exist or are not float, shapes that do not fit.
    fn plan(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
    ) -> Result<Box<dyn Plan>, EngineError>;

    /// The shapes of float `values` at the input shapes of `like`, without a run; those in a branch that does not run are
    /// left out. `None` if a shape depends on the data.
    ///
    /// # Errors
    /// Those of [`Engine::plan`].
    fn shapes(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
    ) -> Result<Option<Shapes>, EngineError>;

    /// What every product of `model` multiplies at the input shapes of `like`, without a run; those in a branch that does not
    /// run are left out, and those whose shapes depend on the data.
    ///
    /// # Errors
    /// Those of [`Engine::plan`].
    fn products(&self, model: &Model, like: &Batch) -> Result<Vec<Product>, EngineError>;

    /// Where the axes of the values of `model` come from at the input shapes of `like`, without a plan: what [`Plan::axes`] says.
    ///
    /// # Errors
    /// Those of [`Engine::plan`] that shapes alone tell.
    fn axes(&self, model: &Model, like: &Batch) -> Result<Arc<Axes>, EngineError>;

    /// An engine that makes the same plans; what one plan holds and the next needs too need not be made again.
    fn sharing(&self) -> Box<dyn Engine>;
}

/// A model ready to run at fixed input shapes.
pub trait Plan: Send + Sync {
    /// Runs one batch. `taps` receives value number `i` of [`Wanted::taps`] as tap `i`. Returns the outputs of the graph that
    /// are float, integer or boolean, or nothing if they are not wanted. Integers come as the nearest float32.
    ///
    /// # Errors
    /// Input data out of the range of a table, an error of the sink, or of the engine.
    fn run(
        &self,
        batch: &Batch,
        taps: Option<Arc<dyn TapSink>>,
    ) -> Result<BTreeMap<String, ArrayD<f32>>, EngineError>;

    /// Graph outputs that are integer or boolean.
    fn integer_outputs(&self) -> &[String];

    /// Graph outputs of other types, as strings, that are never returned.
    fn skipped_outputs(&self) -> &[String];

    /// Where the axes of its values come from: what tells the rows and the padding of a tapped value.
    fn axes(&self) -> Arc<Axes>;
}

/// The data of one input of a batch, of the shape that a plan was made for.
///
/// # Errors
/// There is none, or it has another shape.
pub(super) fn input_of<'b>(
    batch: &'b Batch,
    name: &str,
    expected: &[usize],
) -> Result<&'b InputTensor, EngineError> {
    let missing = || EngineError::MissingInput {
        name: name.to_owned(),
    };
    let found = batch.inputs.get(name).ok_or_else(missing)?;
    match found.shape() == expected {
        true => Ok(found),
        false => Err(EngineError::Shape {
            name: name.to_owned(),
            expected: expected.to_vec(),
            found: found.shape().to_vec(),
        }),
    }
}

/// That a batch could not be run.
pub(super) fn run_failed(batch: &Batch, reason: String) -> EngineError {
    EngineError::Run {
        first: batch.rows.first().copied().unwrap_or(0),
        last: batch.rows.last().copied().unwrap_or(0),
        reason,
    }
}

/// Receives the tapped values of one batch.
pub trait TapSink: Send + Sync {
    /// Takes value number `tap` of [`Wanted::taps`].
    ///
    /// # Errors
    /// Stops the run, e.g. because a value is not finite.
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError>;
}
