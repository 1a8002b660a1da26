//! Products with a constant per channel beside Erf or Tanh, which tract could take for a part of a GELU.
//!
//! ```text
//! x · (1 + erf(x / √2)) · [½, ½ s₁, ½ s₂, …]
//! ```
//!
//! tract asks of such a constant whether it is ½, and looks at its first element alone: with s₀ = 1 it computes the GELU, and the
//! scales of all other channels are lost. A migrated model has that constant where tract has merged ½ with the scale behind it. So
//! these products and sums are computed by [`Broadcast`], which tract does not look into.

use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::math::{Add, Erf, Mul, Tanh};
use tract_onnx::tract_hir::internal::*;

use crate::calibrate::engine::broadcast::Broadcast;

/// Operators between Erf and the constant, at most: a GELU that is written out has five behind it.
const STEPS: usize = 8;

/// Puts [`Broadcast`] where a constant per channel could be taken for a number, in a model that is not optimized yet.
pub(super) fn keep_channels(model: &mut TypedModel) -> TractResult<()> {
    for node in 0..model.nodes().len() {
        let Some((op, inputs)) = product(model, model.node(node))? else {
            continue;
        };
        TypedModelPatch::replace_single_op(model, model.node(node), &inputs, op)?.apply(model)?;
    }
    Ok(())
}

/// Our operator for a product or a sum of this kind, and its inputs.
fn product(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<(Broadcast, [OutletId; 2])>> {
    let op = match node.op_as::<TypedBinOp>() {
        Some(TypedBinOp(op, _)) if op.is::<Mul>() => Broadcast::Mul,
        Some(TypedBinOp(op, _)) if op.is::<Add>() => Broadcast::Add,
        _ => return Ok(None),
    };
    let facts = model.node_input_facts(node.id)?;
    let per_channel = |(fact, input): (&&TypedFact, &OutletId)| {
        let elements = fact.shape.volume();
        !elements.is_one()
            && fact.datum_type == f32::datum_type()
            && is_constant(model, input.node, STEPS)
    };
    let Some(constant) = facts.iter().zip(&node.inputs).position(per_channel) else {
        return Ok(None);
    };
    let inputs = [node.inputs[1 - constant], node.inputs[constant]];
    let fits = model.outlet_fact(inputs[0])?.shape == node.outputs[0].fact.shape;
    let beside = is_behind(model, inputs[0].node, STEPS)
        || (op == Broadcast::Mul && is_before(model, node.id, STEPS));
    Ok((fits && beside).then_some((op, inputs)))
}

/// Whether a node is a constant, or one with other axes: that it is one, tract does not know before it optimizes.
fn is_constant(model: &TypedModel, node: usize, steps: usize) -> bool {
    let node = model.node(node);
    let computed = || match node.inputs[..] {
        [input] => is_constant(model, input.node, steps - 1),
        _ => false,
    };
    node.op_is::<Const>() || (steps > 0 && computed())
}

/// Whether a node computes Erf or Tanh, or is at most so many elementwise operators behind one.
fn is_behind(model: &TypedModel, node: usize, steps: usize) -> bool {
    let node = model.node(node);
    let inputs = || node.inputs.iter().map(|input| input.node);
    is_curve(node)
        || (steps > 0 && is_elementwise(node) && inputs().any(|n| is_behind(model, n, steps - 1)))
}

/// The same of what reads it.
fn is_before(model: &TypedModel, node: usize, steps: usize) -> bool {
    let readers = model.node(node).outputs.iter().flat_map(|o| &o.successors);
    readers.into_iter().any(|reader| {
        let next = model.node(reader.node);
        is_curve(next)
            || (steps > 0 && is_elementwise(next) && is_before(model, next.id, steps - 1))
    })
}

fn is_curve(node: &TypedNode) -> bool {
    let op = node.op_as::<ElementWiseOp>();
    op.is_some_and(|ElementWiseOp(op, _)| op.is::<Erf>() || op.is::<Tanh>())
}

fn is_elementwise(node: &TypedNode) -> bool {
    node.op_is::<TypedBinOp>() || node.op_is::<ElementWiseOp>() || node.op_is::<Identity>()
}
