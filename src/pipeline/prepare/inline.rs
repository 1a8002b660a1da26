//! Which calls of model-local functions are replaced by their bodies before anything is recognised.
//!
//! Norms, Linears, and what lies between them, are looked for in a trial copy in which every call is replaced. A call
//! stays in the model as it is unless something that the run needs to see comes out of it.

use std::collections::BTreeSet;

use super::changes::Changes;
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::graph::inline::RefusedCall;
use crate::graph::{self, NodeId, ValueId, View};
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::recognise::{Recognised, recognise};
use crate::review::{InlinedReport, NearMissReport};
use crate::rewrite::RewriteError;
use crate::site::wanted_shapes;

/// The operators that start a Linear or a norm.
const BLOCKS: [&str; 6] = [
    op::Gemm,
    op::LayerNormalization,
    op::MatMul,
    op::RMSNormalization,
    op::SimplifiedLayerNormalization,
    op::Sqrt,
];

/// More steps than any decomposition of a norm has.
const NORM_STEPS: usize = 16;

/// Replaces the calls that Linears and norms are inside of. Returns whether one had to be left alone.
pub(super) fn inline(model: &mut FlatModel, changes: &mut Changes) -> Result<bool, Error> {
    if model.as_model().proto.functions.is_empty() {
        return Ok(false);
    }
    let mut trial = model.as_model().clone();
    let all = graph::inline(&mut trial, &|_| true).map_err(RewriteError::from)?;
    let view = View::new(&trial);
    let found = recognise(&view);
    let mut wanted: BTreeSet<&[usize]> = BTreeSet::new();
    for name in needed(&view, &found) {
        // Everything that the innermost call is inside of goes with it.
        let path = all.origin.get(&name).map_or(&[][..], Vec::as_slice);
        wanted.extend((1..=path.len()).map(|n| &path[..n]));
    }
    let done = model
        .edit(|m| graph::inline(m, &|path| wanted.contains(path)))
        .map_err(RewriteError::from)?;
    let report = done.calls.into_iter().map(|call| InlinedReport {
        node: call.node,
        function: call.function,
    });
    changes.inlined.extend(report);
    let hides_block = |r: &RefusedCall| BLOCKS.iter().any(|op| r.operators.contains(*op));
    let misses = all.refused.into_iter().filter(hides_block);
    let misses: Vec<NearMissReport> = misses
        .map(|call| NearMissReport {
            name: call.node,
            kind: format!("call of {}", call.function),
            reason: call.reason,
        })
        .collect();
    let hidden = !misses.is_empty();
    // A second attempt, after raising the functions, replaces what the first had to say.
    changes.closed = misses;
    Ok(hidden)
}

/// If nodes that are not in the flat form although a weight is multiplied in one of their branches.
pub(super) fn undecided(view: &View) -> Vec<NearMissReport> {
    let miss = |(id, _): (NodeId, &NodeProto)| NearMissReport {
        name: view.node_name(id).to_owned(),
        kind: op::If.to_owned(),
        reason:
            "which branch runs depends on the data, so the Linears in its branches stay in float"
                .to_owned(),
    };
    view.nodes()
        .filter(|&(id, node)| view.op(id) == op::If && multiplies_weight(view, node))
        .map(miss)
        .collect()
}

fn multiplies_weight(view: &View, node: &NodeProto) -> bool {
    subgraphs(node).any(|graph| {
        let stored = |name: &String| {
            graph.initializer.iter().any(|t| t.name() == name)
                || view.value(name).is_some_and(|v| view.is_constant(v))
        };
        graph.node.iter().any(|inner| {
            let product = matches!(inner.op_type(), op::MatMul | op::Gemm);
            (product && inner.input.get(1).is_some_and(stored)) || multiplies_weight(view, inner)
        })
    })
}

/// The values that the nodes of norms and Linears compute, and those between a Linear's input and its sink.
fn needed(view: &View, found: &Recognised) -> BTreeSet<String> {
    let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
    for linear in &found.linears {
        nodes.insert(linear.node);
        nodes.extend(linear.bias.map(|b| b.node));
        constants_behind(view, linear.weight, &mut nodes);
        linear
            .bias
            .iter()
            .for_each(|b| constants_behind(view, b.value, &mut nodes));
    }
    for norm in &found.norms {
        nodes.extend([norm.node, norm.last, norm.gamma.node]);
        constants_behind(view, norm.gamma.value, &mut nodes);
        if let Some(beta) = norm.beta {
            nodes.insert(beta.node);
            constants_behind(view, beta.value, &mut nodes);
        }
        if !norm.fused {
            let mut seen = BTreeSet::new();
            steps_behind(view, norm.last, NORM_STEPS, &mut seen);
            nodes.extend(seen);
        }
    }
    let computed = nodes
        .iter()
        .flat_map(|&n| view.node(n).output.iter().cloned());
    computed.chain(ways(view, found)).collect()
}

/// The values on the ways from Linear inputs back to norms and Linears; not those on ways that end elsewhere.
fn ways(view: &View, found: &Recognised) -> BTreeSet<String> {
    let linears = found.linears.iter().filter_map(|l| l.output(view));
    let sinks = linears.chain(found.norms.iter().map(|n| n.output));
    let mut leading: BTreeSet<ValueId> = sinks.collect();
    let names = wanted_shapes(view, found);
    let values: BTreeSet<ValueId> = names.iter().filter_map(|n| view.value(n)).collect();
    loop {
        let before = leading.len();
        for &value in &values {
            let Some((node, _)) = view.producer(value) else {
                continue;
            };
            let mut inputs = (0..view.node(node).input.len()).filter_map(|s| view.input(node, s));
            // A wall's input is on another way, if on any.
            if inputs.any(|input| leading.contains(&input) && values.contains(&input)) {
                leading.insert(value);
            }
        }
        if leading.len() == before {
            break;
        }
    }
    let on_the_way = |v: &&ValueId| leading.contains(*v);
    values
        .iter()
        .filter(on_the_way)
        .map(|&v| view.name(v).to_owned())
        .collect()
}

/// The nodes that make a constant of another.
fn constants_behind(view: &View, value: ValueId, nodes: &mut BTreeSet<NodeId>) {
    if let Some((node, _)) = view.producer(value)
        && nodes.insert(node)
    {
        let inputs = (0..view.node(node).input.len()).filter_map(|slot| view.input(node, slot));
        inputs.for_each(|input| constants_behind(view, input, nodes));
    }
}

/// The operators of decomposed norms before `node`.
fn steps_behind(view: &View, node: NodeId, steps: usize, nodes: &mut BTreeSet<NodeId>) {
    if steps == 0 || !nodes.insert(node) {
        return;
    }
    for slot in 0..view.node(node).input.len() {
        let producer = view.input(node, slot).and_then(|v| view.producer(v));
        if let Some((before, _)) = producer
            && matches!(
                view.op(before),
                op::Add
                    | op::Cast
                    | op::Constant
                    | op::Div
                    | op::Identity
                    | op::Mul
                    | op::Pow
                    | op::ReduceMean
                    | op::Reciprocal
                    | op::Sqrt
                    | op::Sub
            )
        {
            steps_behind(view, before, steps - 1, nodes);
        }
    }
}
