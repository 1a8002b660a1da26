//! Q/DQ on the four operands of attention's two products, and on nothing else: not on the scores, the mask, or what
//! comes out.
//!
//! ```text
//! Q  ── Q ── DQ ──┐                                        P ── Q ── DQ ──┐
//!                 MatMul ── scale, mask … ── Softmax ── …                 MatMul ── O
//! Kᵀ ── Q ── DQ ──┘                                        V ── Q ── DQ ──┘
//! ```
//!
//! The pairs stand right before the MatMul, behind every transposition, scale and rotary embedding: ONNX Runtime fuses a
//! MatMul whose two inputs are DequantizeLinear (ONNX Runtime's QDQ selectors), and TensorRT moves them back through
//! transpositions by itself. Each operand has a pair of its own, as int8 activations need in ONNX Runtime.
//!
//! A guard `Where(IsNaN(P), 0, P)` keeps TensorRT from forming its fused kernel, wherever the pair stands. It can be left
//! out: then the pair reads P itself, and what a row without any key gives is up to the runtime.
//!
//! Between two Casts where the type of the file is not float32, as every Linear; or in float16 throughout, for a runtime
//! that fuses no other form (TensorRT-RTX: with Casts there is no fused kernel).

use super::quantize::{narrow_range, zero_point_tensor};
use crate::graph::{Names, Patch, ValueId, View};
use crate::onnx::node::{int_attr, make_node};
use crate::onnx::op;
use crate::onnx::{DataType, tensor};
use crate::recognise::{Attention, Product};
use crate::solve::QuantParams;

/// The first operator set in which QuantizeLinear takes float16.
pub const FLOAT16_OPSET: i64 = 19;

/// The smallest normal float16, 2⁻¹⁴.
const FLOAT16_NORMAL: f32 = 1.0 / 16384.0;

/// How the operands of one attention are quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionParams {
    /// Of the two operands of Q Kᵀ.
    pub scores: [QuantParams; 2],
    /// Of the two operands of P V, in the order in which its MatMul reads them.
    pub context: [QuantParams; 2],
    /// Whether float16 operands are quantized as they are, with float16 scales, instead of between two Casts. Needs operator
    /// set [`FLOAT16_OPSET`].
    pub in_float16: bool,
    /// Whether the probabilities are taken before their guard against NaN, if there is one.
    pub drop_guard: bool,
}

/// The patch that quantizes both products of one attention. `signed`: int8, else uint8.
pub fn quantize_attention(
    view: &View,
    attention: &Attention,
    params: &AttentionParams,
    signed: bool,
    names: &mut Names,
) -> Patch {
    let mut patch = Patch::new(format!(
        "quantize the products of attention `{}`",
        view.node_name(attention.softmax)
    ));
    let context = match attention.probabilities {
        0 => ["probabilities", "value"],
        _ => ["value", "probabilities"],
    };
    let (drop_guard, in_float16) = (params.drop_guard, params.in_float16);
    for (product, params, roles) in [
        (&attention.scores, &params.scores, ["query", "key"]),
        (&attention.context, &params.context, context),
    ] {
        for slot in 0..2 {
            let operand = product.operands[slot];
            let of_context = product.node == attention.context.node;
            let guarded = drop_guard && of_context && slot == attention.probabilities;
            let operand = attention.unguarded.filter(|_| guarded).unwrap_or(operand);
            let pair = Pair {
                product,
                operand,
                slot,
                role: roles[slot],
                params: &params[slot],
                signed,
                in_float16,
            };
            pair.insert(view, names, &mut patch);
        }
        if !in_float16 {
            cast_back(view, product, names, &mut patch);
        }
    }
    patch
}

/// The Q → DQ pair of one operand.
struct Pair<'a> {
    product: &'a Product,
    operand: ValueId,
    slot: usize,
    role: &'a str,
    params: &'a QuantParams,
    signed: bool,
    in_float16: bool,
}

impl Pair<'_> {
    fn insert(&self, view: &View, names: &mut Names, patch: &mut Patch) {
        let Pair { product, slot, .. } = *self;
        let mut derive =
            |suffix: &str| names.derive(&product.name, &format!("{}_{suffix}", self.role));
        let (scale, zero_point) = (derive("scale"), derive("zero_point"));
        let dtype = match self.in_float16 {
            true => DataType::Float16,
            false => DataType::Float,
        };
        let float = |name: &str, x: f32| tensor::from_f32(name, &[], &[x], dtype);
        // A float16 scale must not become zero.
        let smallest = match self.in_float16 {
            true => FLOAT16_NORMAL,
            false => 0.0,
        };
        patch.add_initializer(float(&scale, self.params.scale.max(smallest)));
        let zero = self.params.zero_point;
        patch.add_initializer(zero_point_tensor(&zero_point, zero, self.signed));
        let mut input = view.name(self.operand).to_owned();
        let mut insert = |op: &str, node: String, inputs: &[&str], output: String, attributes| {
            let node = make_node(op, &node, inputs, &[&output], attributes);
            patch.insert_before(product.node, node);
            output
        };
        if product.dtype != DataType::Float && !self.in_float16 {
            let to = vec![int_attr("to", DataType::Float as i64)];
            let wide = derive("float32");
            input = insert(op::Cast, derive(op::Cast), &[&input], wide, to);
        }
        let clip = narrow_range(self.params, self.signed);
        let clip = clip.map(|range| (range, derive("clip_min"), derive("clip_max")));
        if let Some((_, min, max)) = &clip {
            let inputs = [input.as_str(), min, max];
            input = insert(
                op::Clip,
                derive(op::Clip),
                &inputs,
                derive("clipped"),
                vec![],
            );
        }
        let inputs = [input.as_str(), &scale, &zero_point];
        let node = derive(op::QuantizeLinear);
        let quantized = insert(
            op::QuantizeLinear,
            node,
            &inputs,
            derive("quantized"),
            vec![],
        );
        let inputs = [quantized.as_str(), &scale, &zero_point];
        let (node, output) = (derive(op::DequantizeLinear), derive("dequantized"));
        let output = insert(op::DequantizeLinear, node, &inputs, output, vec![]);
        if let Some(((low, high), min, max)) = clip {
            patch.add_initializer(float(&min, low));
            patch.add_initializer(float(&max, high));
        }
        patch.rewire(product.node, slot, output);
    }
}

/// The product in the type of the file again, under its old name.
fn cast_back(view: &View, product: &Product, names: &mut Names, patch: &mut Patch) {
    if product.dtype == DataType::Float {
        return;
    }
    let Some(output) = view.output(product.node, 0).map(|v| view.name(v)) else {
        return;
    };
    let wide = names.derive(output, "float32");
    let to = vec![int_attr("to", product.dtype as i64)];
    let cast = make_node(
        op::Cast,
        &names.derive(output, op::Cast),
        &[&wide],
        &[output],
        to,
    );
    patch.insert_after(product.node, cast);
    patch.rename_output(product.node, 0, wide);
}
