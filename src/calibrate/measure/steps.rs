//! A model run in steps, where a caller computes some values: what lies between them is run, and what is read later kept.
//!
//! ```text
//! inputs ─ nodes ─▶ x₁   y₁ ─ nodes ─▶ x₂   y₂ ─ nodes ─▶ x₃       the caller makes y from x
//!             └───── kept ──────▲ └── kept ──────▲
//! ```
//!
//! Several streams of values go through the same steps, for every batch: all of the model is run once per stream, and only what
//! the steps behind read is in memory.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::ArrayD;

use crate::calibrate::data::array::Values;
use crate::calibrate::data::input::{Batch, InputTensor};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::Engine;
use crate::calibrate::measure::compare::{output_plan, position};
use crate::calibrate::measure::parallel::{groups, in_parallel};
use crate::graph::infer::Facts;
use crate::graph::{Cut, ValueId, View, cut, reached};
use crate::onnx::{Model, tensor};

/// A model on its way.
pub struct Steps<'m> {
    engine: &'m dyn Engine,
    view: View<'m>,
    /// The batches of one stream after those of another.
    batches: Vec<Batch>,
    /// What the caller computes.
    outside: BTreeSet<ValueId>,
    /// Float values that depend on that: everything else is computed again where it is read.
    deep: BTreeSet<ValueId>,
    /// Per batch of `batches`, what later steps read.
    kept: Vec<BTreeMap<ValueId, InputTensor>>,
}

impl<'m> Steps<'m> {
    /// Runs nothing yet. The caller computes `outside`, float values all of them.
    pub fn new(
        engine: &'m dyn Engine,
        model: &'m Model,
        batches: &[Batch],
        streams: usize,
        outside: BTreeSet<ValueId>,
    ) -> Steps<'m> {
        let view = View::new(model);
        Steps {
            engine,
            deep: behind(&view, &outside),
            view,
            batches: (0..streams).flat_map(|_| batches.iter().cloned()).collect(),
            outside,
            kept: vec![BTreeMap::new(); streams * batches.len()],
        }
    }

    /// Runs nothing yet. All is computed here, in one stream, and nothing twice.
    pub(super) fn inside(engine: &'m dyn Engine, model: &'m Model, batches: &[Batch]) -> Steps<'m> {
        let mut steps = Steps::new(engine, model, batches, 1, BTreeSet::new());
        let inputs = steps.view.graph().input.iter();
        let inputs = inputs.filter_map(|input| steps.view.value(input.name()));
        steps.deep = behind(&steps.view, &inputs.collect());
        steps
    }

    /// The value of a name in the model.
    pub(super) fn id(&self, name: &str) -> Option<ValueId> {
        self.view.value(name)
    }

    /// What the graph outputs that `changed` values reach are computed of besides, as far as that is not computed again where it is
    /// read.
    pub(super) fn beside(&self, changed: &BTreeSet<ValueId>) -> Vec<ValueId> {
        let reached = reached(&self.view, changed.clone());
        let outputs = self.view.graph().output.iter();
        let outputs = outputs.filter_map(|output| self.view.value(output.name()));
        let outputs: Vec<ValueId> = outputs.filter(|v| reached.contains(v)).collect();
        let stops = |v: ValueId| self.deep.contains(&v) && !reached.contains(&v);
        // A value that no one defines is met when the model is run.
        cut(&self.view, &outputs, stops, |_| Ok(())).map_or_else(|_| vec![], |part| part.fed)
    }

    /// A float value that is not computed outside, for every batch of the first stream, then of the next. What `later` values
    /// need is kept, and nothing else.
    ///
    /// # Errors
    /// That it depends on a value which has not been [put](Steps::put) yet, in words; what the engine refuses.
    pub fn value(
        &mut self,
        value: ValueId,
        later: &[ValueId],
    ) -> Result<Vec<ArrayD<f32>>, StepError> {
        let found = self.values(&[value], later)?.into_iter();
        let missing = || StepError::Order(format!("`{}` is not computed", self.view.name(value)));
        let of = |mut found: BTreeMap<ValueId, ArrayD<f32>>| found.remove(&value);
        found.map(of).collect::<Option<_>>().ok_or_else(missing)
    }

    /// Several [values](Steps::value), which one run gives: per batch.
    ///
    /// # Errors
    /// Those of [`Steps::value`].
    pub(super) fn values(
        &mut self,
        values: &[ValueId],
        later: &[ValueId],
    ) -> Result<Vec<BTreeMap<ValueId, ArrayD<f32>>>, StepError> {
        let known = |kept: &BTreeMap<ValueId, InputTensor>| kept.keys().copied().collect();
        let known: BTreeSet<ValueId> = self.kept.first().map(known).unwrap_or_default();
        let mut found = vec![BTreeMap::new(); self.kept.len()];
        for &value in values.iter().filter(|v| known.contains(v)) {
            for (found, kept) in found.iter_mut().zip(&self.kept) {
                let array = kept.get(&value).map(InputTensor::values);
                let Some(Ok(Values::F32(array))) = array else {
                    return Err(StepError::Order("batches differ".to_owned()));
                };
                found.insert(value, array);
            }
        }
        let unknown = values.iter().copied().filter(|v| !known.contains(v));
        let unknown: Vec<ValueId> = unknown.collect();
        if unknown.is_empty() {
            return Ok(found);
        }
        let outputs = self.advance(&unknown, &known, later)?;
        for (found, mut outputs) in found.iter_mut().zip(outputs) {
            for &value in &unknown {
                found.extend(
                    outputs
                        .remove(self.view.name(value))
                        .map(|made| (value, made)),
                );
            }
        }
        Ok(found)
    }

    /// Runs what lies between the `known` values and `values`, and keeps what `later` ones need. The outputs, per batch.
    fn advance(
        &mut self,
        values: &[ValueId],
        known: &BTreeSet<ValueId>,
        later: &[ValueId],
    ) -> Result<Vec<BTreeMap<String, ArrayD<f32>>>, StepError> {
        let stops = |v: ValueId| known.contains(&v) || self.outside.contains(&v);
        let mut part = cut(&self.view, values, stops, |_| Ok(())).map_err(StepError::Order)?;
        if let Some(&early) = part.fed.iter().find(|v| !known.contains(v)) {
            let name = self.view.name(early);
            return Err(StepError::Order(format!("`{name}` is not known yet")));
        }
        let made: BTreeSet<ValueId> = part
            .nodes
            .iter()
            .flat_map(|&node| self.view.node(node).output.iter())
            .filter_map(|name| self.view.value(name))
            .filter(|v| self.deep.contains(v))
            .collect();
        let stops = |v: ValueId| stops(v) || made.contains(&v);
        let needed = cut(&self.view, later, stops, |_| Ok(())).map_err(StepError::Order)?;
        let needed: BTreeSet<ValueId> = needed.fed.into_iter().collect();
        let more = needed.iter().copied();
        let more = more.filter(|v| made.contains(v) && !values.contains(v));
        part.outputs.extend(more);
        let outputs = self.run(&part)?;
        for (kept, outputs) in self.kept.iter_mut().zip(&outputs) {
            kept.retain(|v, _| needed.contains(v));
            for &v in &part.outputs {
                let made = outputs
                    .get(self.view.name(v))
                    .filter(|_| needed.contains(&v));
                if let Some(made) = made {
                    let made = Values::F32(made.clone());
                    kept.insert(v, InputTensor::from_values(made));
                }
            }
        }
        Ok(outputs)
    }

    /// What the caller has computed, for the batches of the first stream, then of the next.
    pub fn put(&mut self, value: ValueId, computed: Vec<ArrayD<f32>>) {
        for (kept, computed) in self.kept.iter_mut().zip(computed) {
            kept.insert(value, InputTensor::from_values(Values::F32(computed)));
        }
    }

    /// Runs a part on all batches.
    fn run(&self, part: &Cut) -> Result<Vec<BTreeMap<String, ArrayD<f32>>>, StepError> {
        let batch = |(batch, kept): (&Batch, &BTreeMap<ValueId, InputTensor>)| {
            let name = |i: usize| self.view.graph().input[i].name().to_owned();
            let inputs = part.inputs.iter().map(|&i| name(i));
            let inputs =
                inputs.filter_map(|name| Some((name.clone(), batch.inputs.get(&name)?.clone())));
            let fed = part.fed.iter();
            let fed =
                fed.filter_map(|v| Some((self.view.name(*v).to_owned(), kept.get(v)?.clone())));
            Batch {
                inputs: inputs.chain(fed).collect(),
                ..batch.clone()
            }
        };
        let batches: Vec<Batch> = self.batches.iter().zip(&self.kept).map(batch).collect();
        let mut all = vec![BTreeMap::new(); batches.len()];
        for group in groups(&batches) {
            let shape = |v| Some(group[0].inputs.get(self.view.name(v))?.shape());
            let model = part.model(&self.view, shape);
            let model = model.ok_or_else(|| StepError::Order("a shape is not known".to_owned()))?;
            let plan = output_plan(self.engine, &model, group[0])?;
            let outputs = in_parallel(&group, |_, batch| plan.run(batch, None))?;
            for (batch, outputs) in group.into_iter().zip(outputs) {
                all[position(&batches, batch)] = outputs;
            }
        }
        Ok(all)
    }
}

/// Float values that are computed from those of `outside`.
fn behind(view: &View, outside: &BTreeSet<ValueId>) -> BTreeSet<ValueId> {
    let facts = Facts::of_graph(view.graph());
    let mut behind = reached(view, outside.clone());
    behind.retain(|&v| facts.dtype(view.name(v)).is_some_and(tensor::is_float));
    behind
}

/// Why a step cannot be made.
#[derive(Debug)]
pub enum StepError {
    /// In words: values are not asked for in an order in which they can be computed.
    Order(String),
    /// What the engine refuses.
    Engine(EngineError),
}

impl From<EngineError> for StepError {
    fn from(error: EngineError) -> StepError {
        StepError::Engine(error)
    }
}
