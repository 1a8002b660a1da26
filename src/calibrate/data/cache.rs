//! The head size of caches that the model leaves open.
//!
//! A past of `[batch, heads, length, head_size]` can be filled with zero length only where the head size is known.
//! Decoders built for ONNX Runtime's GenAI name both last axes; their attention operators tell the size.

use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;

/// The size of the last axis of the graph input `name`, if an attention operator of ONNX Runtime reads it as its past.
pub(super) fn state_head_size(view: &View, name: &str) -> Option<usize> {
    let uses = view.uses(view.value(name)?);
    uses.iter().find_map(|reader| match *reader {
        Use::Node { node, input } => head_size(view, node, input),
        _ => None,
    })
}

fn head_size(view: &View, node: NodeId, slot: usize) -> Option<usize> {
    let proto = view.node(node);
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

/// The columns of the Linear that a query comes from.
fn channels(view: &View, mut value: ValueId) -> Option<usize> {
    // Operators between a projection and its attention are few.
    for _ in 0..16 {
        let (node, _) = view.producer(value)?;
        value = match view.node(node).op_type() {
            op::MatMul => return *view.shape(view.input(node, 1)?)?.last()?,
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
