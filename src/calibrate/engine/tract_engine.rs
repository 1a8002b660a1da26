//! tract as the calibration engine.
//!
//! Way of a model: functions and branches resolved → calibration copy → check of the operators → tract's parser → constants put in → taps wired →
//! typed → decluttered → optimized → plan. tract panics on some models, so every call into it is caught.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use prost::Message;
use tract_onnx::pb;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::konst::Const;

use crate::calibrate::data::input::{Batch, Shapes};
use crate::calibrate::engine::copy::{Copy, IndexLimit, Known, shapes_text};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::node::{is_standard, node_label};
use crate::calibrate::engine::plan::{Engine, Plan, Wanted};
use crate::calibrate::engine::resolve::resolve;
use crate::calibrate::engine::shapes::{copy_of, products};
use crate::calibrate::engine::tap::Tap;
use crate::calibrate::engine::tract_plan::{TractPlan, error_text, panic_text};
use crate::calibrate::engine::tract_tensor::{Tables, blocked_tensor, constant_tensor, datum_name};
use crate::calibrate::engine::{broadcast, gelu, round_blocks, rounding};
use crate::graph::axes::Axes;
use crate::graph::work::Product;
use crate::onnx::Model;
use crate::onnx::node::subgraphs;
use crate::onnx::proto::GraphProto;
use crate::onnx::{op, tensor};

/// Runs models with tract, in float32, each batch on one thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct TractEngine;

impl Engine for TractEngine {
    fn plan(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
    ) -> Result<Box<dyn Plan>, EngineError> {
        Sharing::default().plan(model, like, wanted)
    }

    fn shapes(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
    ) -> Result<Option<Shapes>, EngineError> {
        Sharing::default().shapes(model, like, values)
    }

    fn products(&self, model: &Model, like: &Batch) -> Result<Vec<Product>, EngineError> {
        Sharing::default().products(model, like)
    }

    fn axes(&self, model: &Model, like: &Batch) -> Result<Arc<Axes>, EngineError> {
        Sharing::default().axes(model, like)
    }

    fn sharing(&self) -> Box<dyn Engine> {
        Box::new(Sharing::default())
    }
}

/// tract, with the tables of the last plan at hand for the next one.
#[derive(Default)]
struct Sharing {
    tables: Tables,
}

impl Engine for Sharing {
    fn plan(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
    ) -> Result<Box<dyn Plan>, EngineError> {
        let weights = Weights::Read(&self.tables);
        let plan = self.prepare(
            model,
            like,
            wanted,
            weights,
            &Known::new(),
            |typed, copy| {
                let shapes = like.shapes();
                let axes = Arc::new(copy.axes(&shapes, &like.by_row()));
                Ok(Box::new(typed.into_plan(axes)?) as Box<dyn Plan>)
            },
        );
        self.tables.forget_unused();
        plan
    }

    fn shapes(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
    ) -> Result<Option<Shapes>, EngineError> {
        self.shapes_beside(model, like, values, &Known::new())
    }

    fn products(&self, model: &Model, like: &Batch) -> Result<Vec<Product>, EngineError> {
        let resolved = resolve(self, model, like)?;
        let copy = self.copy(
            resolved.model.as_ref().unwrap_or(model),
            like,
            &Known::new(),
        )?;
        products(self, &copy, model, like)
    }

    fn axes(&self, model: &Model, like: &Batch) -> Result<Arc<Axes>, EngineError> {
        let resolved = resolve(self, model, like)?;
        let copy = self.copy(
            resolved.model.as_ref().unwrap_or(model),
            like,
            &Known::new(),
        )?;
        Ok(Arc::new(copy.axes(&like.shapes(), &like.by_row())))
    }

    fn sharing(&self) -> Box<dyn Engine> {
        Box::new(Sharing::default())
    }
}

impl Sharing {
    /// Shapes of values, others being known.
    fn shapes_beside(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
        known: &Known,
    ) -> Result<Option<Shapes>, EngineError> {
        let wanted = Wanted {
            taps: values,
            outputs: false,
        };
        let shapes = |weights| {
            self.prepare(model, like, &wanted, weights, known, |typed, _| {
                Ok(typed.tap_shapes(values)?)
            })
        };
        match shapes(Weights::Stated) {
            // An operator that asks for the numbers of a weight, or what the file is at fault for.
            Ok(None) => {}
            Err(error) if !matches!(error, EngineError::NotFloat { .. }) => {}
            found => return found,
        }
        shapes(Weights::Read(&self.tables))
    }

    /// Everything up to the typed model, then `finish`.
    fn prepare<T>(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
        weights: Weights<'_>,
        known: &Known,
        finish: impl FnOnce(Typed, &Copy<'_>) -> Result<T, Failure>,
    ) -> Result<T, EngineError> {
        let shapes = like.shapes();
        let resolved = resolve(self, model, like)?;
        let copy = self.copy(resolved.model.as_ref().unwrap_or(model), like, known)?;
        let taps = resolved.computed(wanted.taps);
        let fail = |reason| EngineError::Plan {
            shapes: shapes_text(&shapes),
            reason,
        };
        match catch_unwind(AssertUnwindSafe(|| {
            let typed = build(&copy, &shapes, &taps, wanted.outputs, weights)?;
            finish(typed, &copy)
        })) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Failure::Engine(error))) => Err(error),
            Ok(Err(Failure::Tract(error))) => Err(fail(explained(error_text(&error)))),
            Err(panic) => Err(fail(panic_text(panic.as_ref()))),
        }
    }
}

impl Sharing {
    /// The copy of a model for batches like one, some shapes being known.
    fn copy<'m>(
        &self,
        model: &'m Model,
        like: &Batch,
        known: &Known,
    ) -> Result<Copy<'m>, EngineError> {
        copy_of(model, like, known, &|part, value, known| {
            let found = self.shapes_beside(part, like, std::slice::from_ref(value), known);
            found.ok()??.remove(value)
        })
    }
}

/// tract gives every If the same name and then refuses the second.
fn explained(error: String) -> String {
    match error.contains("Duplicate node name: If") {
        true => "it runs only one If whose condition depends on the data".to_owned(),
        false => error,
    }
}

/// An error of ours or of tract's while a plan is made.
enum Failure {
    Engine(EngineError),
    Tract(TractError),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        Failure::Engine(error)
    }
}

impl From<TractError> for Failure {
    fn from(error: TractError) -> Failure {
        Failure::Tract(error)
    }
}

/// What is made of large float constants.
#[derive(Clone, Copy)]
enum Weights<'t> {
    /// Their numbers; of tables those at hand.
    Read(&'t Tables),
    /// Values of their type and shape, of which nothing else is known: shapes seldom depend on more.
    Stated,
}

/// Elements of a large constant.
const LARGE: usize = 1 << 16;

/// `taps`: those of the wanted values that are computed, with their numbers.
fn build(
    copy: &Copy<'_>,
    shapes: &Shapes,
    taps: &[(usize, &String)],
    with_outputs: bool,
    weights: Weights<'_>,
) -> Result<Typed, Failure> {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    round_blocks::register(&mut onnx);
    check_ops(copy, |op| onnx.op_register.0.contains_key(op))?;
    let proto = pb::ModelProto::decode(copy.proto.encode_to_vec().as_slice())
        .map_err(|e| Failure::Tract(e.into()))?;
    let parsed = onnx.parse(&proto, None)?;
    let outlets = parsed.outlets_by_name;
    let mut model = parsed.model;

    for name in &parsed.unresolved_inputs {
        let outlet = outlets[name];
        if let Weights::Stated = weights
            && let Some(shape) = stated(copy, name)
        {
            let fact = InferenceFact::dt_shape(f32::datum_type(), shape);
            model.node_mut(outlet.node).outputs[0].fact = fact;
            continue;
        }
        let value = match (copy.constants.get(name.as_str()), copy.blocked.get(name)) {
            (Some(constant), _) => {
                let is_table = copy.index_limits.iter().any(|l| l.table == *name);
                match weights {
                    Weights::Read(tables) => tables.tensor(constant, is_table)?,
                    Weights::Stated => constant_tensor(constant)?.into_arc_tensor(),
                }
            }
            (None, Some(weight)) => blocked_tensor(weight)?.into_arc_tensor(),
            (None, None) => return Err(EngineError::UnknownValue { name: name.clone() }.into()),
        };
        let fact = InferenceFact::from(TypedFact::try_from(value.clone())?);
        let node = model.node_mut(outlet.node);
        node.op = Box::new(Const::new(value)?);
        node.outputs[0].fact = fact;
    }
    let graph_inputs = copy.proto.graph.iter().flat_map(|graph| &graph.input);
    let inputs: Vec<(String, Vec<usize>)> = graph_inputs
        .filter_map(|input| {
            let name = input.name().to_owned();
            shapes.get(&name).map(|shape| (name, shape.clone()))
        })
        .collect();
    let input_outlets: Vec<OutletId> = inputs.iter().map(|(name, _)| outlets[name]).collect();
    model.set_input_outlets(&input_outlets)?;

    let mut ends = Vec::new();
    for &(index, name) in taps {
        let outlet = match outlets.get(name) {
            Some(outlet) => *outlet,
            None if copy.constants.contains_key(name.as_str()) => {
                return Err(EngineError::NotFloat {
                    name: name.clone(),
                    found: "a constant".into(),
                }
                .into());
            }
            None => return Err(EngineError::UnknownValue { name: name.clone() }.into()),
        };
        ends.extend(model.wire_node(
            format!("onnx-osplus.tap.{index}"),
            Tap { index },
            &[outlet],
        )?);
    }
    let mut output_names = Vec::new();
    if with_outputs {
        for output in copy.proto.graph.iter().flat_map(|graph| &graph.output) {
            let outlet = outlets
                .get(output.name())
                .ok_or_else(|| EngineError::UnknownValue {
                    name: output.name().to_owned(),
                })?;
            ends.push(*outlet);
            output_names.push(output.name().to_owned());
        }
    }
    drop((outlets, proto));
    model.select_output_outlets(&ends)?;
    // Drops what no tap and no wanted output needs, e.g. a language model's head.
    model.compact()?;

    let typed = model.into_typed()?;
    check_taps(&typed, taps)?;
    let mut outputs = Vec::new();
    let (mut integers, mut skipped) = (Vec::new(), Vec::new());
    for (i, name) in output_names.into_iter().enumerate() {
        let at = taps.len() + i;
        let found = typed.output_fact(at)?.datum_type;
        let integer =
            found.is_integer() || found == bool::datum_type() || found == TDim::datum_type();
        if found == f32::datum_type() {
            outputs.push((at, name));
        } else if integer {
            integers.push(name.clone());
            outputs.push((at, name));
        } else {
            skipped.push(name);
        }
    }
    Ok(Typed {
        model: typed,
        inputs,
        taps: taps.iter().map(|(index, _)| *index).collect(),
        outputs,
        integers,
        skipped,
        index_limits: copy.index_limits.clone(),
    })
}

/// The shape of a large float constant.
fn stated(copy: &Copy<'_>, name: &str) -> Option<Vec<usize>> {
    let shape = match (copy.constants.get(name), copy.blocked.get(name)) {
        (Some(constant), _) => {
            let float = tensor::dtype(constant).is_some_and(tensor::is_float);
            tensor::shape(constant).ok().filter(|_| float)?
        }
        (None, weight) => weight?.shape.clone(),
    };
    (shape.iter().product::<usize>() >= LARGE).then_some(shape)
}

/// A model whose types and shapes are known, not yet optimized.
struct Typed {
    model: TypedModel,
    inputs: Vec<(String, Vec<usize>)>,
    /// The numbers of the wanted values that are computed.
    taps: Vec<usize>,
    outputs: Vec<(usize, String)>,
    integers: Vec<String>,
    skipped: Vec<String>,
    index_limits: Vec<IndexLimit>,
}

impl Typed {
    fn into_plan(mut self, axes: Arc<Axes>) -> TractResult<TractPlan> {
        gelu::keep_channels(&mut self.model)?;
        // What `into_optimized` does after it has decluttered once more.
        let mut optimized = self.model.into_decluttered()?;
        optimized.optimize()?;
        broadcast::replace_general(&mut optimized)?;
        rounding::replace_quantize(&mut optimized)?;
        Ok(TractPlan {
            plan: SimplePlan::new(optimized)?,
            inputs: self.inputs,
            taps: self.taps.len(),
            outputs: self.outputs,
            integers: self.integers,
            skipped: self.skipped,
            index_limits: self.index_limits,
            axes,
        })
    }

    /// The shapes of the tapped ones of `values`; `None` if one depends on the data.
    fn tap_shapes(&self, values: &[String]) -> TractResult<Option<Shapes>> {
        let mut shapes = Shapes::new();
        for (outlet, &index) in self.model.output_outlets()?.iter().zip(&self.taps) {
            let value = self.model.node(outlet.node).inputs[0];
            let fact = self.model.outlet_fact(value)?;
            let Some(shape) = fact.shape.as_concrete() else {
                return Ok(None);
            };
            shapes.insert(values[index].clone(), shape.to_vec());
        }
        Ok(Some(shapes))
    }
}

/// Refuses taps on values that are not float32.
fn check_taps(model: &TypedModel, taps: &[(usize, &String)]) -> Result<(), Failure> {
    for (index, outlet) in model.output_outlets()?.iter().enumerate() {
        let Some((_, name)) = taps.get(index) else {
            break;
        };
        let input = model.node(outlet.node).inputs[0];
        let found = model.outlet_fact(input)?.datum_type;
        if found != f32::datum_type() {
            let found = datum_name(found);
            return Err(EngineError::NotFloat {
                name: (*name).clone(),
                found,
            }
            .into());
        }
    }
    Ok(())
}

/// Operators of Microsoft's domain that tract implements with Microsoft's meaning. Others are decomposed in the copy.
const MICROSOFT: [&str; 2] = [op::DequantizeLinear, op::QuantizeLinear];

/// Refuses operators that tract does not know. Its own registry ignores the domain and would take
/// `com.microsoft.Attention` for the standard `Attention`.
fn check_ops(copy: &Copy<'_>, known: impl Fn(&str) -> bool) -> Result<(), EngineError> {
    fn walk<'g>(
        graph: &'g GraphProto,
        known: &dyn Fn(&str) -> bool,
        missing: &mut BTreeMap<(&'g str, &'g str), String>,
    ) {
        for node in &graph.node {
            let (domain, op) = (node.domain(), node.op_type());
            let supported = known(op)
                && match domain {
                    "com.microsoft" => MICROSOFT.contains(&op),
                    "ai.onnx.ml" => true,
                    _ => is_standard(domain),
                };
            if !supported {
                missing
                    .entry((domain, op))
                    .or_insert_with(|| node_label(node));
            }
            for subgraph in subgraphs(node) {
                walk(subgraph, known, missing);
            }
        }
    }
    let mut missing = BTreeMap::new();
    if let Some(graph) = &copy.proto.graph {
        walk(graph, &known, &mut missing);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let ops = missing
        .into_iter()
        .map(|((domain, op), node)| match domain {
            "" => format!("{op} (node {node})"),
            _ => format!("{domain}.{op} (node {node})"),
        })
        .collect();
    Err(EngineError::UnsupportedOps { ops })
}
