//! Whether a node can be run at the shapes of one run, asked before the engine is: it would give up without the node's name,
//! or take more memory than there is.

use super::decompose::Scope;
use super::node::node_label;
use crate::graph::infer::axis_of;
use crate::onnx::node::{attr_i, attr_ints};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// Elements of one value: 16 GB of float32.
const MOST_ELEMENTS: usize = 1 << 32;

/// Why a standard node cannot be run: its inputs do not go together, or its output is larger than any.
pub(super) fn problem(node: &NodeProto, scope: &Scope) -> Option<String> {
    let reason = mismatch(node, scope).or_else(|| too_large(node, scope))?;
    let (label, op) = (node_label(node), node.op_type());
    Some(format!("node {label} ({op}): {reason}"))
}

fn mismatch(node: &NodeProto, scope: &Scope) -> Option<String> {
    let shape = |slot: usize| scope.shape(node.input.get(slot)?);
    let first = shape(0);
    let rank = first.as_ref().map(|shape| shape.len() as i64);
    match node.op_type() {
        op::MatMul => {
            let (a, b) = (first?, shape(1)?);
            let (k, rows) = (a.last()?, b.get(b.len().saturating_sub(2))?);
            let k_of_b = if b.len() == 1 { &b[0] } else { rows };
            (k != k_of_b).then(|| format!("it multiplies {a:?} by {b:?}: {k} is not {k_of_b}"))
        }
        op::Gemm => {
            let (a, b) = (first?, shape(1)?);
            let transposed = |name| usize::from(attr_i(node, name).unwrap_or(0) != 0);
            let k = a.get(1 - transposed("transA")).filter(|_| a.len() == 2);
            let k_of_b = b.get(transposed("transB")).filter(|_| b.len() == 2);
            (k.is_none() || k != k_of_b).then(|| {
                format!("it multiplies {a:?} by {b:?}, which are no two matrices with the same K")
            })
        }
        op::Transpose => {
            let (rank, perm) = (rank?, attr_ints(node, "perm")?);
            (perm.len() as i64 != rank)
                .then(|| format!("its perm has {} axes, its input {rank}", perm.len()))
        }
        op::Tile => {
            let repeats = scope.ints(node.input.get(1)?)?;
            let fits = repeats.iter().all(|&n| n >= 0);
            (!fits).then(|| format!("its repeats are {repeats:?}"))
        }
        // The engine looks for its axes without end.
        op::LayerNormalization if rank == Some(0) => {
            Some("its input is one number, without an axis to normalize over".to_owned())
        }
        op::Concat
        | op::Gather
        | op::LayerNormalization
        | op::LogSoftmax
        | op::Softmax
        | op::Split
        | op::ArgMax => {
            let (rank, axis) = (rank?, attr_i(node, "axis")?);
            (!(-rank..rank).contains(&axis) && rank > 0)
                .then(|| format!("its axis is {axis}, and its input has {rank} axes"))
        }
        op::QuantizeLinear | op::DequantizeLinear => scales(node, &first?, &shape(1)?),
        _ => None,
    }
}

/// What is wrong with the scales of a node: there is one, or one for every index of its axis, or they are those of blocks.
fn scales(node: &NodeProto, input: &[usize], scale: &[usize]) -> Option<String> {
    if scale.contains(&0) {
        return Some(format!("its scale has the shape {scale:?}, no element"));
    }
    let blocked = attr_i(node, "block_size").is_some_and(|size| size != 0);
    let &[count] = scale else {
        return None;
    };
    if blocked || count == 1 {
        return None;
    }
    let axis = attr_i(node, "axis").unwrap_or(1);
    let size = axis_of(input.len(), axis).map(|at| input[at]);
    (size != Some(count)).then(|| {
        format!("it has {count} scales along axis {axis} of its input, whose shape is {input:?}")
    })
}

fn too_large(node: &NodeProto, scope: &Scope) -> Option<String> {
    scope.output_shapes(node).into_iter().find_map(|shape| {
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let fits = count.is_some_and(|count| count <= MOST_ELEMENTS) || shape.contains(&0);
        (!fits)
            .then(|| format!("its output would have the shape {shape:?}, more than 2^32 elements"))
    })
}
