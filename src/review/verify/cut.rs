//! The part of a quantized model that computes the output of one Linear from values that the float model has too.
//!
//! ```text
//! values of the float model ─▶ (norm) ─ Q ─ DQ ─ MatMul(DQ(W)) ─ Add(b) ─▶ y'        against y of the float model
//! └────── fed ──────┘          └────────────── cut out ──────────────┘
//! ```
//!
//! From the output it goes backwards to the nearest values with a name that the float model knows. A part with a second
//! product in it, other than those of a rotation, holds the error of another Linear too, and is no measure of this one.

use std::collections::BTreeMap;

use crate::calibrate::{Batch, InputTensor, Values};
use crate::graph::{Cut, ValueId, View};
use crate::onnx::Model;
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::recognise::rotation_part;

/// More nodes than any Linear has around it, with a decomposed norm before and another after it.
const MOST_NODES: usize = 200;

/// Operators that multiply two values, so that a part with two of them is more than one Linear.
const PRODUCTS: [&str; 20] = [
    op::Attention,
    op::Conv,
    op::ConvInteger,
    op::DynamicQuantizeMatMul,
    op::Einsum,
    op::FusedGemm,
    op::FusedMatMul,
    op::Gemm,
    op::GroupQueryAttention,
    op::MatMul,
    op::MatMulInteger,
    op::MatMulIntegerToFloat,
    op::MatMulNBits,
    op::MultiHeadAttention,
    op::QAttention,
    op::QGemm,
    op::QLinearConv,
    op::QLinearMatMul,
    op::QOrderedMatMul,
    op::RotaryEmbedding,
];

/// The nodes between `output` and the nearest values that `stops` accepts; `output` itself is none of them.
///
/// # Errors
/// Why they cannot be cut out, or are more than one Linear.
pub(super) fn cut(
    view: &View,
    output: ValueId,
    stops: impl Fn(ValueId) -> bool,
) -> Result<Cut, String> {
    let (mut products, mut count) = (0, 0);
    let stops = |value| value != output && stops(value);
    let cut = crate::graph::cut(view, &[output], stops, |node| {
        let proto = view.node(node);
        if subgraphs(proto).next().is_some() {
            return Err("there is control flow before it".to_owned());
        }
        let multiplies = PRODUCTS.contains(&proto.op_type());
        // A rotation has no error of its own, and none without the Linear behind it.
        products += usize::from(multiplies && rotation_part(view, node).is_none());
        if products > 1 {
            return Err("another product lies between it and the values of both models".to_owned());
        }
        count += 1;
        if count > MOST_NODES {
            return Err("too many nodes compute it".to_owned());
        }
        Ok(())
    })?;
    if products == 0 {
        return Err("no product computes it".to_owned());
    }
    Ok(cut)
}

/// The cut as a model, and the batch that feeds it: `values` by name, and the graph inputs of `batch`. `None` if one is
/// missing.
pub(super) fn model_with_batch(
    cut: &Cut,
    view: &View,
    batch: &Batch,
    mut values: BTreeMap<String, Values>,
) -> Option<(Model, Batch)> {
    let mut fed = Batch {
        inputs: BTreeMap::new(),
        ..batch.clone()
    };
    for &i in &cut.inputs {
        let name = view.graph().input[i].name();
        let tensor = batch.inputs.get(name)?.clone();
        fed.inputs.insert(name.to_owned(), tensor);
    }
    for &value in &cut.fed {
        let name = view.name(value);
        let tensor = InputTensor::from_values(values.remove(name)?);
        fed.inputs.insert(name.to_owned(), tensor);
    }
    let shape = |value| fed.inputs.get(view.name(value)).map(InputTensor::shape);
    let model = cut.model(view, shape)?;
    Some((model, fed))
}
