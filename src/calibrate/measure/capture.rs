//! Values inside the model, whole: what the loss at the response of a block needs, for a few sequences.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{ArrayD, ArrayViewD};

use crate::calibrate::data::input::Batch;
use crate::calibrate::data::tokens::{Place, TokenContext};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, Plan, TapSink, Wanted};
use crate::onnx::Model;

/// One value of one run, with the place of each of its vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// `[…, C]`.
    pub value: ArrayD<f32>,
    /// Per vector in row-major order: the half, 0 or 1, of the calibration data that it belongs to, by the number of its row, or,
    /// of what belongs to no single row, by its position; `None` for padding.
    pub halves: Vec<Option<usize>>,
}

/// Values of one run by their names.
pub type Kept = BTreeMap<String, Captured>;

/// What [`statistics`](crate::calibrate::statistics()) keeps whole besides.
#[derive(Debug, Clone, Copy)]
pub struct Keep<'a> {
    /// A few sequences. Where it has the shapes of other batches, their plan runs it.
    pub batch: &'a Batch,
    /// Names of float values of the main graph.
    pub values: &'a [String],
}

impl Keep<'_> {
    /// Runs the batch with a plan of its own.
    ///
    /// # Errors
    /// What [`Engine::plan`] and [`Plan::run`] refuse.
    pub fn capture(&self, engine: &dyn Engine, model: &Model) -> Result<Kept, EngineError> {
        let wanted = Wanted {
            taps: self.values,
            outputs: false,
        };
        let plan = engine.plan(model, self.batch, &wanted)?;
        self.run(plan.as_ref(), self.values)
    }

    /// Runs the batch with a plan of its shapes that taps `taps`, the values among them.
    pub(super) fn run(&self, plan: &dyn Plan, taps: &[String]) -> Result<Kept, EngineError> {
        let sink = Arc::new(KeepSink {
            context: TokenContext::new(self.batch, plan.axes()),
            names: taps.to_vec(),
            wanted: taps.iter().map(|t| self.values.contains(t)).collect(),
            kept: Mutex::new(vec![None; taps.len()]),
        });
        plan.run(self.batch, Some(sink.clone()))?;
        let mut kept = sink.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = taps.iter().cloned().zip(kept.drain(..));
        Ok(kept.filter_map(|(name, c)| Some((name, c?))).collect())
    }
}

struct KeepSink {
    names: Vec<String>,
    context: TokenContext,
    wanted: Vec<bool>,
    kept: Mutex<Vec<Option<Captured>>>,
}

impl TapSink for KeepSink {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        if !self.wanted[tap] {
            return Ok(());
        }
        let places = self.context.places(&self.names[tap], value.shape(), false);
        let half = |p: &Place| {
            let number = p.row.map_or(p.position, |r| self.context.row(Some(r)));
            p.keep.then_some((number % 2) as usize)
        };
        let captured = Captured {
            halves: places.iter().map(half).collect(),
            value: value.as_standard_layout().into_owned(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept[tap] = Some(captured);
        Ok(())
    }
}
