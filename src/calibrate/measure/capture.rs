//! Values inside the model, whole: what the loss at the response of a block needs, for a few sequences.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{ArrayD, ArrayViewD};

use crate::calibrate::data::input::Batch;
use crate::calibrate::data::tokens::{Place, TokenContext};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, Plan, TapSink, Wanted};
use crate::calibrate::measure::steps::Steps;
use crate::graph::ValueId;
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
        let captured = Captured {
            halves: halves(&self.context, &self.names[tap], value.shape()),
            value: value.as_standard_layout().into_owned(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept[tap] = Some(captured);
        Ok(())
    }
}

/// [`Captured::halves`] of a value.
fn halves(context: &TokenContext, name: &str, shape: &[usize]) -> Vec<Option<usize>> {
    let half = |p: &Place| {
        let number = p.row.map_or(p.position, |r| context.row(Some(r)));
        p.keep.then_some((number % 2) as usize)
    };
    let places = context.places(name, shape, false);
    places.iter().map(half).collect()
}

/// Values of one batch in waves: each time only what lies behind the wave before is run, and what is read later kept.
pub struct Walk<'m> {
    engine: &'m dyn Engine,
    model: &'m Model,
    batch: &'m Batch,
    context: TokenContext,
    /// The names of the values that are still to come.
    waves: VecDeque<Vec<String>>,
    /// `None` once a part could not be run alone: the whole model is run then.
    steps: Option<Steps<'m>>,
}

impl<'m> Walk<'m> {
    /// Runs nothing yet. `waves` have the names of float values; the order of the graph costs least.
    ///
    /// # Errors
    /// What [`Engine::axes`] refuses.
    pub fn new(
        engine: &'m dyn Engine,
        model: &'m Model,
        batch: &'m Batch,
        waves: Vec<Vec<String>>,
    ) -> Result<Walk<'m>, EngineError> {
        Ok(Walk {
            context: TokenContext::new(batch, engine.axes(model, batch)?),
            steps: Some(Steps::inside(engine, model, std::slice::from_ref(batch))),
            engine,
            model,
            batch,
            waves: waves.into(),
        })
    }

    /// The values of the next wave; none behind the last.
    ///
    /// # Errors
    /// What [`Engine::plan`] and [`Plan::run`] refuse of the whole model.
    pub fn wave(&mut self) -> Result<Kept, EngineError> {
        let values = self.waves.pop_front().unwrap_or_default();
        if let Some(kept) = self.step(&values) {
            return Ok(kept);
        }
        self.steps = None;
        let (batch, values) = (self.batch, &values[..]);
        Keep { batch, values }.capture(self.engine, self.model)
    }

    fn step(&mut self, values: &[String]) -> Option<Kept> {
        let steps = self.steps.as_mut()?;
        let later = self.waves.iter().flatten();
        let later: Vec<ValueId> = later.map(|name| steps.id(name)).collect::<Option<_>>()?;
        let now = values.iter().map(|name| steps.id(name));
        let now: Vec<ValueId> = now.collect::<Option<_>>()?;
        let found = steps.values(&now, &later).ok()?.pop()?;
        let captured = |(name, id): (&String, ValueId)| {
            let value = found.get(&id)?.clone();
            let halves = halves(&self.context, name, value.shape());
            Some((name.clone(), Captured { value, halves }))
        };
        values.iter().zip(now).map(captured).collect()
    }
}
