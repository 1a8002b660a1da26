//! Models that differ from another in few nodes: of each only what lies behind the difference is run.
//!
//! ```text
//! base   inputs ─ nodes ─▶ v ─ nodes ──▶ outputs      v is kept, for every batch
//! other                    v ─ others ─▶ outputs
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ndarray::ArrayD;

use crate::calibrate::data::array::Values;
use crate::calibrate::data::input::{Batch, InputTensor, Shapes};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, Plan, TapSink, Wanted};
use crate::calibrate::measure::compare::{Found, OUTPUT_BUDGET, bytes, output_plan};
use crate::calibrate::measure::steps::Steps;
use crate::graph::axes::Axes;
use crate::graph::work::Product;
use crate::graph::{Source, ValueId, View, cut, names_read, reached};
use crate::onnx::Model;
use crate::onnx::proto::TensorProto;

/// An engine for models that are a base but for some nodes, on given batches. Where a difference is not among those that were
/// announced, or what is behind it cannot be run alone, the whole model is run.
pub struct Behind<'m> {
    engine: &'m dyn Engine,
    base: View<'m>,
    batches: &'m [Batch],
    /// Of each difference that is still to come, the values beside it.
    needed: VecDeque<Vec<ValueId>>,
    /// `None` once a part of the base could not be run.
    steps: Option<Steps<'m>>,
    /// What the models that are run now need, per batch.
    kept: Vec<BTreeMap<String, InputTensor>>,
    whole: Whole,
}

/// The outputs of the base, which are those of a model that does not reach them; a single output is always reached.
#[derive(Default)]
struct Whole {
    outputs: Arc<[Found]>,
    integers: Vec<String>,
    skipped: Vec<String>,
}

impl<'m> Behind<'m> {
    /// Keeps nothing yet. `nodes` are the names of the nodes that differ, of each model one, in the order in which they will be run.
    ///
    /// # Errors
    /// What [`Engine::plan`] and [`Plan::run`] refuse of the base.
    pub fn new(
        engine: &'m dyn Engine,
        base: &'m Model,
        batches: &'m [Batch],
        nodes: &[&str],
    ) -> Result<Behind<'m>, EngineError> {
        let whole = match base.graph().output.len() {
            0 | 1 => Some(Whole::default()),
            _ => Whole::of(engine, base, batches)?,
        };
        let steps = whole
            .is_some()
            .then(|| Steps::inside(engine, base, batches));
        let view = View::new(base);
        let needed = |name: &&str| {
            let changed = view.nodes().find(|(_, node)| node.name() == *name);
            let outputs = changed.into_iter().flat_map(|(_, node)| &node.output);
            let outputs: BTreeSet<ValueId> = outputs.filter_map(|name| view.value(name)).collect();
            steps.as_ref().map(|steps| steps.beside(&outputs))
        };
        Ok(Behind {
            needed: nodes
                .iter()
                .map(|n| needed(n).unwrap_or_default())
                .collect(),
            kept: vec![BTreeMap::new(); batches.len()],
            whole: whole.unwrap_or_default(),
            engine,
            base: view,
            batches,
            steps,
        })
    }

    /// Goes on to the next `count` models.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.needed.len());
        let now: BTreeSet<ValueId> = self.needed.drain(..count).flatten().collect();
        let now: Vec<ValueId> = now.into_iter().collect();
        let later: Vec<ValueId> = self.needed.iter().flatten().copied().collect();
        let found = self.steps.as_mut().map(|steps| steps.values(&now, &later));
        let named = |found: BTreeMap<ValueId, ArrayD<f32>>| {
            let tensor = |array| InputTensor::from_values(Values::F32(array));
            let named = found
                .into_iter()
                .map(|(v, array)| (self.base.name(v).to_owned(), tensor(array)));
            named.collect()
        };
        match found {
            Some(Ok(found)) => self.kept = found.into_iter().map(named).collect(),
            _ => {
                self.steps = None;
                self.kept = vec![BTreeMap::new(); self.batches.len()];
            }
        }
    }

    /// The plan of what lies behind the nodes that differ; `None` if it cannot be made, or is all of the model.
    fn part(&self, model: &Model, like: &Batch) -> Option<PartPlan> {
        let at = self.batches.iter().position(|b| b.rows == like.rows)?;
        let kept = Some(&self.kept[at]).filter(|kept| !kept.is_empty())?;
        let view = View::new(model);
        let reached = reached(&view, self.differing(&view));
        let outputs = view.graph().output.iter();
        let outputs = outputs.filter_map(|output| view.value(output.name()));
        let outputs: Vec<ValueId> = outputs.filter(|v| reached.contains(v)).collect();
        let stops = |v| !reached.contains(&v) && kept.contains_key(view.name(v));
        let part = cut(&view, &outputs, stops, |_| Ok(())).ok()?;
        let fed: Vec<String> = part.fed.iter().map(|&v| view.name(v).to_owned()).collect();
        if fed.is_empty() {
            return None;
        }
        let inputs = part.inputs.iter();
        let inputs = inputs.map(|&i| view.graph().input[i].name().to_owned());
        let inputs: BTreeSet<String> = inputs.collect();
        let feeds = self.batches.iter().zip(&self.kept).map(|(batch, kept)| {
            let mut feeds = batch.clone();
            feeds.inputs.retain(|name, _| inputs.contains(name));
            let of_fed = |name: &String| Some((name.clone(), kept.get(name)?.clone()));
            feeds.inputs.extend(fed.iter().filter_map(of_fed));
            feeds
        });
        let feeds: Vec<Batch> = feeds.collect();
        let alone = part.model(&view, |v| Some(kept.get(view.name(v))?.shape()))?;
        let plan = output_plan(self.engine, &alone, &feeds[at]).ok()?;
        let (mut integers, mut skipped) = (self.whole.integers.clone(), self.whole.skipped.clone());
        if view.graph().output.len() == 1 {
            integers = plan.integer_outputs().to_vec();
            skipped = plan.skipped_outputs().to_vec();
        }
        Some(PartPlan {
            axes: self.engine.axes(model, like).ok()?,
            whole: self.whole.outputs.clone(),
            plan,
            feeds,
            integers,
            skipped,
        })
    }

    /// The values that nodes compute which the base has not.
    fn differing(&self, view: &View) -> BTreeSet<ValueId> {
        let same = |name: &str| match (constant(view, name), constant(&self.base, name)) {
            (Some(ours), Some(theirs)) => same_tensor(ours, theirs),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        let nodes = view.nodes().filter(|(_, node)| {
            let output = node.output.iter().find(|name| !name.is_empty());
            let theirs = output.and_then(|name| self.base.producer(self.base.value(name)?));
            let equal = theirs.is_some_and(|(theirs, _)| self.base.node(theirs) == *node);
            !equal || !names_read(node).all(same)
        });
        let outputs = nodes.flat_map(|(_, node)| &node.output);
        outputs.filter_map(|name| view.value(name)).collect()
    }
}

impl Engine for Behind<'_> {
    fn plan(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
    ) -> Result<Box<dyn Plan>, EngineError> {
        let part = match wanted.taps {
            [] => self.part(model, like),
            _ => None,
        };
        match part {
            Some(part) => Ok(Box::new(part)),
            None => self.engine.plan(model, like, wanted),
        }
    }

    fn shapes(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
    ) -> Result<Option<Shapes>, EngineError> {
        self.engine.shapes(model, like, values)
    }

    fn products(&self, model: &Model, like: &Batch) -> Result<Vec<Product>, EngineError> {
        self.engine.products(model, like)
    }

    fn axes(&self, model: &Model, like: &Batch) -> Result<Arc<Axes>, EngineError> {
        self.engine.axes(model, like)
    }

    fn sharing(&self) -> Box<dyn Engine> {
        self.engine.sharing()
    }
}

/// A model of which a part is run.
struct PartPlan {
    plan: Arc<dyn Plan>,
    /// What the part is fed with, for every batch.
    feeds: Vec<Batch>,
    /// The outputs of the base, for every batch, if the part does not compute all.
    whole: Arc<[Found]>,
    axes: Arc<Axes>,
    integers: Vec<String>,
    skipped: Vec<String>,
}

impl Plan for PartPlan {
    fn run(&self, batch: &Batch, taps: Option<Arc<dyn TapSink>>) -> Result<Found, EngineError> {
        let at = self.feeds.iter().position(|feeds| feeds.rows == batch.rows);
        let feeds = at.map_or(batch, |at| &self.feeds[at]);
        let mut outputs = self.plan.run(feeds, taps)?;
        for (name, array) in at.and_then(|at| self.whole.get(at)).into_iter().flatten() {
            outputs.entry(name.clone()).or_insert_with(|| array.clone());
        }
        Ok(outputs)
    }

    fn integer_outputs(&self) -> &[String] {
        &self.integers
    }

    fn skipped_outputs(&self) -> &[String] {
        &self.skipped
    }

    fn axes(&self) -> Arc<Axes> {
        self.axes.clone()
    }
}

impl Whole {
    /// `None` if they are too large to be kept.
    fn of(
        engine: &dyn Engine,
        base: &Model,
        batches: &[Batch],
    ) -> Result<Option<Whole>, EngineError> {
        let (mut whole, mut outputs, mut size) = (Whole::default(), Vec::new(), 0);
        for batch in batches {
            let plan = output_plan(engine, base, batch)?;
            let found = plan.run(batch, None)?;
            size += bytes(&found);
            if size > OUTPUT_BUDGET {
                return Ok(None);
            }
            outputs.push(found);
            whole.integers = plan.integer_outputs().to_vec();
            whole.skipped = plan.skipped_outputs().to_vec();
        }
        whole.outputs = outputs.into();
        Ok(Some(whole))
    }
}

fn constant<'v>(view: &'v View, name: &str) -> Option<&'v TensorProto> {
    match view.source(view.value(name)?) {
        Source::Initializer(at) => Some(&view.graph().initializer[at]),
        _ => None,
    }
}

/// Whether two constants are one. Copies of a model share the bytes of what is alike in them.
fn same_tensor(ours: &TensorProto, theirs: &TensorProto) -> bool {
    let (a, b) = (ours.raw_data(), theirs.raw_data());
    let shared = !a.is_empty() && a.as_ptr() == b.as_ptr() && a.len() == b.len();
    match shared {
        true => (&ours.dims, ours.data_type) == (&theirs.dims, theirs.data_type),
        false => ours == theirs,
    }
}
