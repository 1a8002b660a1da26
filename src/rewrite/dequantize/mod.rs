//! The float model that a quantized one stands for: what is rounded reads the real numbers again, stored integers become the
//! numbers that they mean, and the operators that multiply integers become those that multiply floats.
//!
//! ```text
//! x ─ Q ─ DQ ─ MatMul(DQ(W))                                        x ─ MatMul((W − z) s)
//! x ─ DynamicQuantizeLinear ─ MatMulInteger(W) ─ Cast ─ Mul(s_x s)  x ─ MatMul((W − z) s)
//! x ─ Q ─ QLinearMatMul(W) ─ QLinearAdd ─ DQ                        x ─ MatMul((W − z) s) ─ Add
//! x ─ MatMulNBits(W, bias)                                          x ─ MatMul((W − z) s) ─ Add
//! ids ─ GatherBlockQuantized(W)                                     ids ─ Gather((W − z) s)
//! x ─ Div(a) ─ Q ─ DQ ─ MatMul(DQ(W)) ─ Mul(a), a per token         x ─ MatMul((W − z) s)
//! ```
//!
//! *Matches* QuantizeLinear, DynamicQuantizeLinear and DequantizeLinear; MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv
//! of ONNX; QGemm, MatMulIntegerToFloat, DynamicQuantizeMatMul, QAttention, MatMulNBits, GatherBlockQuantized and the `QLinear…`
//! operators of ONNX Runtime; between
//! them whatever only picks and rearranges integers.
//!
//! A range that ends at 0 cuts what is negative: ONNX Runtime's quantizer leaves out a Relu before it. It is put back behind
//! what may be negative, so that the result computes what the quantized model does but for the rounding.
//!
//! *Left as it is*, and told: an operator on integers that is none of these, and what only it reads.

mod blocks;
mod integers;
mod operators;
mod per_token;
mod values;
mod writer;

use std::collections::BTreeMap;

use super::{RewriteError, quantized_table};
use crate::graph::branches::FlatModel;
use crate::graph::{Names, NodeId, Patch, Use, View, apply};
use crate::onnx::node::{attr_i, make_node};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, Model};

use writer::Writer;

pub use writer::Dequantized;

/// A quantized model as a float one, and what was done; a model without quantization stays as it is.
///
/// # Errors
/// [`RewriteError::Patch`]: a defect of this tool.
pub fn dequantize(model: &Model) -> Result<(Model, Dequantized), RewriteError> {
    let mut flat = FlatModel::of(model.clone());
    let done = flat.edit(in_list)?;
    Ok((flat.unflatten(), done))
}

/// The same for the main graph of a model.
fn in_list(model: &mut Model) -> Result<Dequantized, RewriteError> {
    let view = View::new(model);
    let mut names = Names::new(model);
    let mut writer = Writer {
        view: &view,
        names: &mut names,
        patch: Patch::new("compute in float again"),
        real: BTreeMap::new(),
        instead: BTreeMap::new(),
        scales: BTreeMap::new(),
        sums: BTreeMap::new(),
        stored: BTreeMap::new(),
        done: Dequantized::default(),
    };
    for (node, _) in view.nodes() {
        writer.node(node);
    }
    let Writer {
        mut patch,
        instead,
        mut done,
        ..
    } = writer;
    for (&value, float) in &instead {
        for reader in view.uses(value) {
            if let Use::Node { node, input } = *reader {
                patch.rewire(node, input, float.clone());
            }
        }
    }
    drop(view);
    apply(model, vec![patch])?;
    if done.weights + done.operators > 0 {
        per_token::without_magnitudes(model)?;
    }
    done.left = left(&View::new(model));
    Ok(done)
}

/// Whether an operator quantizes, dequantizes, or computes with quantized numbers.
pub(super) fn on_integers(op: &str) -> bool {
    let starts = ["QLinear", "QOrdered", "QEmbed", "DynamicQuantize"];
    let others = [
        op::QuantizeLinear,
        op::DequantizeLinear,
        op::MatMulInteger,
        op::MatMulIntegerToFloat,
        op::ConvInteger,
        op::GatherBlockQuantized,
        op::MatMulNBits,
        op::QAttention,
        op::QGemm,
        op::QMoE,
    ];
    others.contains(&op) || starts.iter().any(|start| op.starts_with(start))
}

fn left(view: &View) -> Vec<(String, String)> {
    let nodes = view.nodes().filter(|(_, node)| on_integers(node.op_type()));
    nodes
        .map(|(id, node)| (view.node_name(id).to_owned(), node.op_type().to_owned()))
        .collect()
}

impl Writer<'_, '_> {
    /// What becomes of one node, those before it being done. A node that is nothing to it reads float values in place of others.
    fn node(&mut self, node: NodeId) {
        let view = self.view;
        let proto = view.node(node);
        match proto.op_type() {
            op::QuantizeLinear => self.quantize(node),
            op::DynamicQuantizeLinear => {
                if let (Some(x), Some(q)) = (self.float_input(node, 0), view.output(node, 0)) {
                    self.real.insert(q, x);
                    self.scales.extend(view.output(node, 1).map(|s| (q, s)));
                }
            }
            op::DequantizeLinear => self.dequantize(node),
            op::MatMulInteger | op::ConvInteger => self.integer_product(node),
            op::Cast => {
                let sum = view.input(node, 0).and_then(|x| self.sums.get(&x)).cloned();
                self.sums.extend(view.output(node, 0).zip(sum));
            }
            op::Mul if self.table(node) => {}
            op::Mul => self.scaled_product(node),
            _ => self.operator(node),
        }
    }

    /// A constant is rounded where it is dequantized.
    fn quantize(&mut self, node: NodeId) {
        let view = self.view;
        let (Some(x), Some(scale), Some(q)) = (
            view.input(node, 0),
            view.input(node, 1),
            view.output(node, 0),
        ) else {
            return;
        };
        if view.is_constant(x) {
            return;
        }
        let mut float = self.float_value(x);
        // Without a zero point an attribute may say that the integers have a sign.
        let stated = attr_i(view.node(node), "output_dtype").unwrap_or(0);
        if view.input(node, 2).is_some() || stated == 0 || stated == DataType::Uint8 as i64 {
            let grid = [Some(scale), view.input(node, 2)];
            float = self.not_below_zero(node, Some(x), float, grid);
        }
        self.real.insert(q, float);
        self.scales.insert(q, scale);
    }

    fn dequantize(&mut self, node: NodeId) {
        let view = self.view;
        let (Some(q), Some(scale), Some(y)) = (
            view.input(node, 0),
            view.input(node, 1),
            view.output(node, 0),
        ) else {
            return;
        };
        // The rows of a table are put together where they meet their scales.
        let reader = view.only_reader(y).map(|(reader, _)| reader);
        if reader.is_some_and(|reader| quantized_table(view, reader).is_some()) {
            return;
        }
        let Some(float) = self.float_of(node, q, [Some(scale), view.input(node, 2)], Some(node))
        else {
            return;
        };
        let read_by_name = |reader: &Use| !matches!(reader, Use::Node { .. });
        if view.uses(y).iter().any(read_by_name) {
            let name = view.node_name(node);
            let identity = make_node(op::Identity, name, &[&float], &[view.name(y)], vec![]);
            self.patch.replace(node, identity);
        }
        self.instead.insert(y, float);
    }

    /// Whether a node multiplies the rows of a table in 8 bits by their scales; it then becomes the Gather of the float table.
    fn table(&mut self, node: NodeId) -> bool {
        let view = self.view;
        let Some([ids, q, scales]) = quantized_table(view, node) else {
            return false;
        };
        let Some(table) = self.stored_float(q, [Some(scales), None], 0, 0) else {
            return false;
        };
        let proto = view.node(node);
        let ids = self.float_value(ids);
        let float = NodeProto {
            op_type: Some(op::Gather.to_owned()),
            input: vec![table, ids],
            ..proto.clone()
        };
        self.patch.replace(node, float);
        self.done.operators += 1;
        true
    }
}
