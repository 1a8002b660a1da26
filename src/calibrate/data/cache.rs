//! The head size of caches that the model leaves open.
//!
//! A past of `[batch, heads, length, head_size]` can be filled with zero length only where the head size is known.
//! Decoders built for ONNX Runtime's GenAI name both last axes; the attention operators that read the past tell the size, or
//! the keys that are joined with it.

use crate::graph::infer::axis_of;
use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::node::{attr_i, attr_ints};
use crate::onnx::op;

/// The size of the last axis of the graph input `name`, if an attention operator of ONNX Runtime reads it as its past, or if it
/// is joined with a value of known size.
pub(super) fn state_head_size(view: &View, name: &str) -> Option<usize> {
    let uses = view.uses(view.value(name)?);
    uses.iter().find_map(|reader| match *reader {
        Use::Node { node, input } => head_size(view, node, input),
        _ => None,
    })
}

fn head_size(view: &View, node: NodeId, slot: usize) -> Option<usize> {
    let proto = view.node(node);
    if proto.op_type() == op::Concat {
        return joined_size(view, node, slot);
    }
    let heads = |name: &str| usize::try_from(attr_i(proto, name).unwrap_or(0)).unwrap_or(0);
    let packed = view.input(node, 1).is_none();
    let count = match (proto.domain(), proto.op_type(), slot) {
        ("com.microsoft", op::GroupQueryAttention, 3 | 4) if packed => {
            heads("num_heads") + 2 * heads("kv_num_heads")
        }
        ("com.microsoft", op::GroupQueryAttention, 3 | 4)
        | ("com.microsoft", op::MultiHeadAttention, 6 | 7)
            if !packed =>
        {
            heads("num_heads")
        }
        _ => return None,
    };
    let channels = channels(view, view.input(node, 0)?)?;
    (count > 0 && channels % count == 0).then(|| channels / count)
}

/// The size of the last axis of what a Concat along another axis puts behind a past.
fn joined_size(view: &View, node: NodeId, slot: usize) -> Option<usize> {
    let axis = attr_i(view.node(node), "axis")?;
    let others = (0..view.node(node).input.len()).filter(|&other| other != slot);
    let shapes = others.filter_map(|other| view.shape(view.input(node, other)?));
    let last = |shape: Vec<Option<usize>>| {
        let behind = axis_of(shape.len(), axis)? + 1;
        shape[behind..].last().copied()?
    };
    shapes.filter_map(last).next()
}

/// The columns of the Linear that a query comes from.
fn channels(view: &View, mut value: ValueId) -> Option<usize> {
    let stated = |value| view.shape(value).and_then(|shape| *shape.last()?);
    if let Some(size) = stated(value) {
        return Some(size);
    }
    // Operators between a projection and its attention are few.
    for _ in 0..16 {
        let (node, output) = view.producer(value)?;
        value = match view.node(node).op_type() {
            op::MatMul => return stated(view.input(node, 1)?),
            op::MatMulNBits => return usize::try_from(attr_i(view.node(node), "N")?).ok(),
            op::Split => return part_of(view, node, output),
            op::Add if view.is_constant(view.input(node, 0)?) => view.input(node, 1)?,
            op::Add
            | op::RotaryEmbedding
            | op::Cast
            | op::Identity
            | op::Reshape
            | op::LayerNormalization
            | op::SimplifiedLayerNormalization => view.input(node, 0)?,
            _ => return None,
        };
    }
    None
}

/// The size of one output of a Split that names its sizes.
fn part_of(view: &View, node: NodeId, output: usize) -> Option<usize> {
    let sizes = match (attr_ints(view.node(node), "split"), view.input(node, 1)) {
        (Some(sizes), _) => sizes.to_vec(),
        (None, sizes) => view.constant(sizes?)?.into_ints()?,
    };
    usize::try_from(*sizes.get(output)?).ok()
}
