//! What stands right behind the product of a quantized Linear: a Cast to the type of the file, and for some targets the
//! scales of the weight.
//!
//! ```text
//! x ── Q ── DQ ─────────┐
//! W: int8 ── DQ(max s) ─┴─ MatMul ── Mul(s / max s: [N]) ── Add(b) ── Split ── q, k, v
//! ```
//!
//! TensorRT-RTX moves a split of the output above the product, and cuts the weight instead. With one scale per column it
//! does that on the dequantized weight, and the whole Linear runs in float (kernels `…SlicSlicSlicConc`, `CastMulFc`).
//! With the scales behind the product nothing is in the way of the integer product, and the Mul is fused with the bias
//! and the split. The numbers are the same to float32 rounding.

use super::{WeightNames, Writer};
use crate::graph::{Patch, Use, ValueId};
use crate::onnx::DataType;
use crate::onnx::node::{int_attr, make_node};
use crate::onnx::op;
use crate::recognise::Linear;
use crate::rewrite::RewriteError;
use crate::rewrite::linear::NewConstant;

impl WeightNames {
    /// One scale for the weight, the largest, and the rest of each column's scale for the product.
    pub(super) fn take_scales_out(&mut self) {
        let largest = self.scales.iter().copied().fold(0.0, f32::max);
        self.behind = self.scales.iter().map(|s| s / largest).collect();
        self.scales = vec![largest];
        self.per_channel = false;
    }
}

impl Writer<'_, '_> {
    /// Whether the target wants the scales of the weight of `linear` behind its product.
    pub(super) fn scales_go_behind(&self, linear: &Linear) -> bool {
        // A computed bias is inside of its Gemm, before any Mul.
        self.plan.profile.scales_behind_split
            && !linear.odd_bias
            && self
                .view
                .output(linear.node, 0)
                .is_some_and(|product| self.is_split(product))
    }

    /// Whether `value` is cut into parts that its readers share, perhaps after a bias, a Cast or another shape.
    fn is_split(&self, mut value: ValueId) -> bool {
        loop {
            let mut readers = Vec::new();
            for reader in self.view.uses(value) {
                match *reader {
                    Use::Node { node, .. } if self.view.op(node) == op::Shape => {}
                    Use::Node { node, input } => readers.push((node, input)),
                    _ => return false,
                }
            }
            let cuts = |op| matches!(op, op::Split | op::Slice | op::Gather);
            match readers[..] {
                [(node, 0)] if self.view.op(node) == op::Split => return true,
                [(node, _)] => match (self.view.op(node), self.view.output(node, 0)) {
                    (
                        op::Add
                        | op::Cast
                        | op::Identity
                        | op::Reshape
                        | op::Squeeze
                        | op::Transpose
                        | op::Unsqueeze,
                        Some(next),
                    ) => {
                        value = next;
                    }
                    _ => return false,
                },
                [] => return false,
                _ => {
                    return readers
                        .iter()
                        .all(|&(node, input)| input == 0 && cuts(self.view.op(node)));
                }
            }
        }
    }

    /// The name under which `linear` gives its product in float32, such that `output` becomes what it was: `output`
    /// itself, or a new one with the `magnitude` of the tokens, the scales of the weight and a Cast to the type of the file after it.
    pub(super) fn product(
        &mut self,
        linear: &Linear,
        weight: &WeightNames,
        output: &str,
        magnitude: Option<&str>,
        patch: &mut Patch,
    ) -> Result<String, RewriteError> {
        let mut after = Vec::new();
        let mut value = output.to_owned();
        if linear.dtype != DataType::Float {
            let wide = self.names.derive(output, "float32");
            let cast = self.names.derive(output, op::Cast);
            let to = vec![int_attr("to", linear.dtype as i64)];
            after.push(make_node(op::Cast, &cast, &[&wide], &[&value], to));
            value = wide;
        }
        if !weight.behind.is_empty() {
            let factors = self.names.derive(&linear.name, "weight_scale");
            let new = NewConstant {
                shape: vec![linear.n],
                data: weight.behind.clone(),
                dtype: DataType::Float,
            };
            patch.add_initializer(new.into_tensor(&factors)?);
            let unscaled = self.names.derive(output, "unscaled");
            let mul = self.names.derive(&linear.name, op::Mul);
            let inputs = [unscaled.as_str(), &factors];
            after.push(make_node(op::Mul, &mul, &inputs, &[&value], vec![]));
            value = unscaled;
        }
        if let Some(magnitude) = magnitude {
            let normalized = self.names.derive(output, "normalized");
            let mul = self.names.derive(&linear.name, "magnitude");
            let inputs = [normalized.as_str(), magnitude];
            after.push(make_node(op::Mul, &mul, &inputs, &[&value], vec![]));
            value = normalized;
        }
        for node in after.into_iter().rev() {
            patch.insert_after(linear.node, node);
        }
        Ok(value)
    }
}
