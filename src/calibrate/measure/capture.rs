//! Values inside the model, whole: what the loss at the response of a block needs, for a few sequences.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{ArrayD, ArrayViewD, Axis, Slice};

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
    /// A few sequences.
    batch: &'a Batch,
    /// What is run for them: the same, or a batch whose first rows they are.
    pub(super) within: &'a Batch,
    /// Names of float values of the main graph.
    pub(super) values: &'a [String],
}

impl<'a> Keep<'a> {
    /// Values of a batch that is run with the first of `others` that begins with it: that is run anyway.
    pub fn among(batch: &'a Batch, others: &'a [Batch], values: &'a [String]) -> Keep<'a> {
        let within = others.iter().find(|other| other.begins_with(batch));
        Keep {
            batch,
            within: within.unwrap_or(batch),
            values,
        }
    }

    /// Runs what has to be run with a plan of its own.
    ///
    /// # Errors
    /// What [`Engine::plan`] and [`Plan::run`] refuse.
    pub fn capture(&self, engine: &dyn Engine, model: &Model) -> Result<Kept, EngineError> {
        match self.run(engine, model, self.within)? {
            Some(kept) => Ok(kept),
            None => self.alone(engine, model),
        }
    }

    /// Runs the batch by itself: where it is run with more, a value cannot be told apart by rows.
    pub(super) fn alone(&self, engine: &dyn Engine, model: &Model) -> Result<Kept, EngineError> {
        Ok(self.run(engine, model, self.batch)?.unwrap_or_default())
    }

    fn run(
        &self,
        engine: &dyn Engine,
        model: &Model,
        run: &Batch,
    ) -> Result<Option<Kept>, EngineError> {
        let wanted = Wanted {
            taps: self.values,
            outputs: false,
        };
        let plan = engine.plan(model, run, &wanted)?;
        let sink = Arc::new(self.sink(run, plan.as_ref(), self.values));
        plan.run(run, Some(sink.clone()))?;
        Ok(sink.kept())
    }

    /// Takes the values out of a run of `run`, the batch or the one it is within, with a plan that taps `taps`.
    pub(super) fn sink(&self, run: &Batch, plan: &dyn Plan, taps: &[String]) -> KeepSink {
        KeepSink {
            context: TokenContext::new(run, plan.axes()),
            names: taps.to_vec(),
            wanted: taps.iter().map(|t| self.values.contains(t)).collect(),
            rows: self.batch.rows.len(),
            kept: Mutex::new(Some(Kept::new())),
        }
    }
}

/// Takes values, or of each what belongs to the first rows.
pub(super) struct KeepSink {
    names: Vec<String>,
    context: TokenContext,
    wanted: Vec<bool>,
    /// How many rows are kept.
    rows: usize,
    /// `None` once a value has not been told apart by rows.
    kept: Mutex<Option<Kept>>,
}

impl KeepSink {
    /// What was taken; `None` if a value cannot be told apart by rows.
    pub(super) fn kept(&self) -> Option<Kept> {
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many vectors of a value, the first of them, belong to the rows that are kept; all of what belongs to no row.
    fn vectors(&self, shape: &[usize], places: &[Place]) -> Option<usize> {
        let of_no_row = || shape.first() == Some(&1) && places.iter().all(|p| p.row.is_none());
        if self.rows == self.context.rows.len() || of_no_row() {
            return Some(places.len());
        }
        let own = |place: &&Place| place.row.is_some_and(|row| row < self.rows);
        let (first, rest) = places.split_at(places.iter().take_while(own).count());
        let apart = rest
            .iter()
            .all(|p| p.row.is_some_and(|row| row >= self.rows));
        let of_one = places.len().checked_div(*shape.first()?)?;
        (apart && of_one > 0 && first.len().is_multiple_of(of_one)).then_some(first.len())
    }
}

impl TapSink for KeepSink {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        if !self.wanted.get(tap).is_some_and(|wanted| *wanted) {
            return Ok(());
        }
        let places = self.context.places(&self.names[tap], value.shape(), false);
        let captured = self.vectors(value.shape(), &places).map(|own| {
            let value = match own < places.len() {
                true => {
                    let size = value.shape()[0] * own / places.len();
                    value.slice_axis_move(Axis(0), Slice::from(..size))
                }
                false => value,
            };
            Captured {
                halves: halves(&self.context, &places[..own]),
                value: value.as_standard_layout().into_owned(),
            }
        });
        let mut kept = self.lock();
        match captured {
            Some(captured) => {
                let name = self.names[tap].clone();
                kept.as_mut().map(|kept| kept.insert(name, captured));
            }
            None => *kept = None,
        }
        Ok(())
    }
}

/// Two sinks for one run.
pub(super) struct Both<A, B>(pub Arc<A>, pub Arc<B>);

impl<A: TapSink, B: TapSink> TapSink for Both<A, B> {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        self.0.take(tap, value.view())?;
        self.1.take(tap, value)
    }
}

/// [`Captured::halves`] of vectors.
fn halves(context: &TokenContext, places: &[Place]) -> Vec<Option<usize>> {
    let half = |p: &Place| {
        let number = p.row.map_or(p.position, |r| context.row(Some(r)));
        p.keep.then_some((number % 2) as usize)
    };
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
        Keep::among(batch, &[], values).capture(self.engine, self.model)
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
            let halves = halves(
                &self.context,
                &self.context.places(name, value.shape(), false),
            );
            Some((name.clone(), Captured { value, halves }))
        };
        values.iter().zip(now).map(captured).collect()
    }
}
