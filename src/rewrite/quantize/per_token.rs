//! A scale for every token, in standard operators: the input is divided by its largest magnitude, quantized with a constant
//! scale, and the product multiplied by the magnitude again (the paper's fine-grained setting, section 5).
//!
//! ```text
//! a = Max(ReduceMax(Abs(x)), 1e-6)                    one per input, [.., 1]
//! x ── Div(a) ── QuantizeLinear(1 / qmax) ── DequantizeLinear ──┐
//! W: int8 ─────────────────────────────── DequantizeLinear ─────┴─ MatMul ── Mul(a) ── Add(b) ── y
//! ```
//!
//! The products are those of the static form, so runtimes fuse them as they do that (ONNX Runtime: MatMulIntegerToFloat), and
//! no token is ever clipped. Where tokens are one-sided, as behind GELU, LeakyRelu(alpha = −qmax / below) stands in the place of Abs: what
//! is below 0 has `below` integers and makes the magnitude as many times larger. A Gemm is written as MatMul and Add, because its bias is not to be multiplied by a.

use std::sync::Arc;

use super::{Activation, Magnitude, Normalized, Writer};
use crate::graph::{Patch, ValueId};
use crate::onnx::node::{float_attr, int_attr, ints_attr, make_node};
use crate::onnx::op;
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm};
use crate::rewrite::RewriteError;
use crate::rewrite::linear::times;
use crate::solve::QuantizedWeight;
use crate::solve::activation::LEAST_MAGNITUDE;

/// The first operator set in which ReduceMax reads its axes from an input.
const AXES_ARE_AN_INPUT: i64 = 18;

impl Writer<'_, '_> {
    /// One Linear with a scale for every token of its input.
    pub(super) fn per_token(
        &mut self,
        linear: &Linear,
        (activation, magnitude): (&Activation, Magnitude),
        rounded: Option<&Arc<QuantizedWeight>>,
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let weight = self.rounded(linear, rounded)?;
        let plain = untransposed(linear);
        let Normalized { magnitude, value } =
            self.normalized(linear, (activation, magnitude), patch);
        let x = self.quantize_value(linear, &value, false, &activation.params, patch);
        let weight = self.weight(&plain, Some(&weight), patch)?;
        let (w, dequantize) = self.dequantize_weight(&plain, &weight);
        patch.insert_before(linear.node, dequantize);
        let mut node = self.view.node(linear.node).clone();
        let computed = node.input.get(2).filter(|c| !c.is_empty()).cloned();
        node.op_type = Some(op::MatMul.to_owned());
        node.attribute.clear();
        node.input = vec![x.dequantized, w];
        let output = self.output_name(linear.node);
        let bias = match linear.form {
            LinearForm::MatMul => None,
            LinearForm::Gemm { beta, .. } => match (linear.bias, computed) {
                (Some(_), _) => Some(self.float_bias(linear, patch)?),
                (None, Some(c)) => Some(times(linear, &c, beta, patch, self.names)),
                (None, None) => None,
            },
        };
        let sum = match &bias {
            Some(_) => self.names.derive(&output, "product"),
            None => output.clone(),
        };
        node.output[0] = self.product(linear, &weight, &sum, Some(&magnitude), patch)?;
        patch.replace(linear.node, node);
        if let Some(bias) = bias {
            let add = self.names.derive(&linear.name, "bias");
            let add = make_node(op::Add, &add, &[&sum, &bias], &[&output], vec![]);
            patch.insert_after(linear.node, add);
        }
        Ok(())
    }

    /// The input of `linear` over the largest magnitude of every token: new nodes, or what is there already.
    fn normalized(
        &mut self,
        linear: &Linear,
        (activation, magnitude): (&Activation, Magnitude),
        patch: &mut Patch,
    ) -> Normalized {
        let transposed = !linear.channels_last();
        let key: (ValueId, bool) = (linear.input, transposed);
        if let Some(known) = self.normalized.get(&key) {
            return known.clone();
        }
        let x = self.view.name(linear.input).to_owned();
        let mut input = x.clone();
        let mut node = |writer: &mut Self, op: &str, inputs: &[&str], output: &str, attributes| {
            let output = writer.names.derive(&x, output);
            let name = writer.names.derive(&x, op);
            let node = make_node(op, &name, inputs, &[&output], attributes);
            patch.insert_before(linear.node, node);
            output
        };
        if transposed {
            let perm = vec![ints_attr("perm", &[1, 0])];
            input = node(self, op::Transpose, &[&input], "rows", perm);
        }
        if linear.dtype != DataType::Float {
            let to = vec![int_attr("to", DataType::Float as i64)];
            input = node(self, op::Cast, &[&input], "float32", to);
        }
        let sizes = match magnitude {
            Magnitude::Symmetric => node(self, op::Abs, &[&input], "abs", vec![]),
            Magnitude::OneSided { below } => {
                // The largest integer is 1 over the scale: x < 0 becomes qmax / below times as large, and positive.
                let times = 1.0 / (activation.params.scale * below as f32);
                let alpha = vec![float_attr("alpha", -times)];
                node(self, op::LeakyRelu, &[&input], "sizes", alpha)
            }
        };
        let keep = int_attr("keepdims", 1);
        let largest = if self.view.model().opset() >= AXES_ARE_AN_INPUT {
            let axes = self.names.derive(&x, "last_axis");
            let reduced = node(self, op::ReduceMax, &[&sizes, &axes], "largest", vec![keep]);
            patch.add_initializer(tensor::from_i64(&axes, &[1], &[-1]));
            reduced
        } else {
            let axes = ints_attr("axes", &[-1]);
            node(self, op::ReduceMax, &[&sizes], "largest", vec![axes, keep])
        };
        let least = self.names.derive(&x, "least");
        let mut node = |writer: &mut Self, op: &str, inputs: &[&str], output: &str| {
            let output = writer.names.derive(&x, output);
            let name = writer.names.derive(&x, op);
            let node = make_node(op, &name, inputs, &[&output], vec![]);
            patch.insert_before(linear.node, node);
            output
        };
        let magnitude = node(self, op::Max, &[&largest, &least], "magnitude");
        let value = node(self, op::Div, &[&input, &magnitude], "normalized");
        patch.add_initializer(tensor::from_f32(
            &least,
            &[],
            &[LEAST_MAGNITUDE],
            DataType::Float,
        ));
        let known = Normalized { magnitude, value };
        self.normalized.insert(key, known.clone());
        known
    }
}

/// The Linear with its weight as `[K, N]` and its input as `[.., K]`.
fn untransposed(linear: &Linear) -> Linear {
    let form = match linear.form {
        LinearForm::Gemm { alpha, beta, .. } => LinearForm::Gemm {
            trans_a: false,
            trans_b: false,
            alpha,
            beta,
        },
        LinearForm::MatMul => LinearForm::MatMul,
    };
    Linear {
        form,
        ..linear.clone()
    }
}
