//! What a model is for one batch: no model-local functions, and of every If that can be decided the branch that runs.
//!
//! The engine knows no functions, and of a merged decoder only one branch is run at a time: the other may not even be
//! valid at these shapes. So calls are replaced by what the functions do, and conditions that follow from the shapes of
//! the inputs and from boolean inputs (`use_cache_branch`) are evaluated before a plan is made; batches share a plan
//! only if they agree on both. Conditions on data stay for the engine.

use std::collections::{BTreeMap, BTreeSet};

use crate::calibrate::data::array::Values;
use crate::calibrate::data::input::Batch;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, Wanted};
use crate::graph::branches::{Branch, FlatModel};
use crate::graph::{inline, opset};
use crate::onnx::node::{int_attr, make_node, subgraphs};
use crate::onnx::op;
use crate::onnx::proto::{NodeProto, ValueInfoProto};
use crate::onnx::{DataType, Model};

/// A model as it runs on one batch.
#[derive(Default)]
pub(super) struct Resolved {
    /// `None` if it is the model itself.
    pub model: Option<Model>,
    /// Values of the branches that do not run.
    pub absent: BTreeSet<String>,
}

impl Resolved {
    /// Those of `values` that are computed, with their numbers.
    pub(super) fn computed<'v>(&self, values: &'v [String]) -> Vec<(usize, &'v String)> {
        let numbered = values.iter().enumerate();
        numbered
            .filter(|(_, name)| !self.absent.contains(*name))
            .collect()
    }
}

/// Resolves `model` for batches of the shapes and switches of `like`.
pub(super) fn resolve(
    engine: &dyn Engine,
    model: &Model,
    like: &Batch,
) -> Result<Resolved, EngineError> {
    let has_if = |m: &Model| m.graph().node.iter().any(|n| n.op_type() == op::If);
    if model.proto.functions.is_empty() && !has_if(model) {
        return Ok(Resolved::default());
    }
    let mut resolved = model.clone();
    without_functions(&mut resolved)?;
    let mut resolved = FlatModel::of(resolved);
    let mut absent = BTreeSet::new();
    while let Some(condition) = resolved.first_condition() {
        let branch = match value(engine, resolved.as_model(), condition, like)? {
            true => Branch::Then,
            false => Branch::Else,
        };
        absent.extend(resolved.take(branch));
    }
    Ok(Resolved {
        model: Some(resolved.into_copy()),
        absent,
    })
}

/// Replaces every call of a model-local function; a function in older operators than the model's is raised first.
fn without_functions(model: &mut Model) -> Result<(), EngineError> {
    let refuse = |node: &str, op: &str, reason: String| EngineError::Refused {
        node: node.to_owned(),
        op: op.to_owned(),
        reason,
    };
    let inlined = |model: &mut Model| {
        inline(model, &|_| true).map_err(|e| refuse("", "model-local functions", e.to_string()))
    };
    let mut done = inlined(model)?;
    if !done.refused.is_empty() && opset::raise(model, opset::TARGET).is_ok() {
        done = inlined(model)?;
    }
    match done.refused.into_iter().next() {
        Some(call) => Err(refuse(&call.node, &call.function, call.reason)),
        None => Ok(()),
    }
}

/// The value of a condition.
fn value(
    engine: &dyn Engine,
    model: &Model,
    condition: &str,
    like: &Batch,
) -> Result<bool, EngineError> {
    if let Some(input) = like.inputs.get(condition)
        && let Values::Bool(values) = input.values()?
    {
        return Ok(values.iter().all(|&v| v));
    }
    let part = part_before(model, condition);
    let wanted = Wanted {
        taps: &[],
        outputs: true,
    };
    let outputs = engine.plan(&part, like, &wanted)?.run(like, None)?;
    let value = outputs.values().next().and_then(|v| v.iter().next());
    value
        .map(|&v| v != 0.0)
        .ok_or_else(|| EngineError::Refused {
            node: condition.to_owned(),
            op: op::If.to_owned(),
            reason: "its condition has no value".to_owned(),
        })
}

/// The part of a model that computes one boolean value, as a float.
fn part_before(model: &Model, condition: &str) -> Model {
    let graph = model.graph();
    let producers: BTreeMap<&str, usize> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)))
        .collect();
    let mut needed = BTreeSet::new();
    let mut todo = vec![condition];
    while let Some(name) = todo.pop() {
        if let Some(&i) = producers.get(name).filter(|_| !name.is_empty())
            && needed.insert(i)
        {
            reads(&graph.node[i], &mut todo);
        }
    }
    let mut part = model.clone();
    let graph = part.graph_mut();
    let mut index = 0;
    graph.node.retain(|_| {
        index += 1;
        needed.contains(&(index - 1))
    });
    let float = format!("{condition}/float");
    let to = vec![int_attr("to", DataType::Float as i64)];
    graph
        .node
        .push(make_node(op::Cast, &float, &[condition], &[&float], to));
    graph.output = vec![ValueInfoProto {
        name: Some(float),
        ..ValueInfoProto::default()
    }];
    part
}

/// What a node and its subgraphs mention; more than they read from outside does no harm.
fn reads<'n>(node: &'n NodeProto, names: &mut Vec<&'n str>) {
    names.extend(node.input.iter().map(String::as_str));
    for graph in subgraphs(node) {
        names.extend(graph.output.iter().map(|o| o.name()));
        graph.node.iter().for_each(|inner| reads(inner, names));
    }
}
