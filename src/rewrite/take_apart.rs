//! Linears that are inside of an operator of ONNX Runtime's are taken out of it, so that they can be quantized.
//!
//! ```text
//! Attention(x, W, b, mask, past)   q, k, v = x W_q + b_q, x W_k + b_k, x W_v + b_v
//!                                  MultiHeadAttention(q, k, v, mask, past[0], past[1])
//! FusedMatMul(x, W)                MatMul(x, alpha · op(W))
//! FusedGemm(x, W, c)               activation(Gemm(x, W, c))
//! ```
//!
//! The result is the same. ONNX Runtime 1.31 runs Q/DQ around an Attention as two DequantizeLinear and the float
//! operator, slower than float alone (3.2 ms for 8 × 64 tokens of 384 channels on one thread, float 2.4 ms); with the
//! projections outside they become MatMulIntegerToFloat (1.5 ms). Source: the definitions of these operators in ONNX
//! Runtime's ContribOperators.md.

use ndarray::{Array2, ArrayD, Axis, Ix2, Slice};

use super::RewriteError;
use super::linear::NewConstant;
use crate::graph::{Names, NodeId, Patch, ValueId, View};
use crate::onnx::node::{attr_f, float_attr, int_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, tensor};
use crate::recognise::{Composite, composite};

/// The patches that take the Linears out of every operator of which `wanted` accepts the name, each with its reason.
///
/// # Errors
/// A weight or bias that cannot be read.
pub fn take_apart(
    view: &View,
    names: &mut Names,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Patch>, RewriteError> {
    let mut writer = Writer { view, names };
    let mut patches = Vec::new();
    for (node, _) in view.nodes() {
        let Some(Ok(parts)) = composite(view, node) else {
            continue;
        };
        if wanted(view.node_name(node)) {
            patches.push(writer.take_apart(node, &parts)?);
        }
    }
    Ok(patches)
}

struct Writer<'a, 'm> {
    view: &'a View<'m>,
    names: &'a mut Names,
}

impl Writer<'_, '_> {
    fn take_apart(&mut self, node: NodeId, parts: &Composite) -> Result<Patch, RewriteError> {
        let name = self.view.node_name(node);
        let op = self.view.node(node).op_type();
        let mut patch = Patch::new(format!(
            "take the Linears of com.microsoft.{op} `{name}` out of it"
        ));
        match *parts {
            Composite::Attention {
                weight,
                bias,
                sizes,
            } => self.attention(node, weight, bias, sizes, &mut patch)?,
            Composite::MatMul {
                weight,
                trans_b,
                alpha,
            } => self.matmul(node, weight, trans_b, alpha, &mut patch)?,
            Composite::Gemm {
                activation,
                parameters,
            } => self.gemm(node, activation, parameters, &mut patch),
        }
        Ok(patch)
    }

    /// Q, K and V as Linears of their own; the node becomes a MultiHeadAttention under its old name.
    fn attention(
        &mut self,
        node: NodeId,
        weight: ValueId,
        bias: Option<ValueId>,
        sizes: [usize; 3],
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let view = self.view;
        let proto = view.node(node);
        let (w, dtype) = self.float(weight)?;
        let b = bias.map(|b| self.float(b)).transpose()?;
        let base = view.node_name(node);
        let mut inputs = Vec::new();
        let mut start = 0;
        for (part, size) in ["query", "key", "value"].into_iter().zip(sizes) {
            let columns = |a: &ArrayD<f32>| {
                let last = Axis(a.ndim() - 1);
                let slice = a.slice_axis(last, Slice::from(start..start + size));
                NewConstant {
                    shape: slice.shape().to_vec(),
                    data: slice.iter().copied().collect(),
                    dtype,
                }
            };
            let constant = self.names.derive(view.name(weight), part);
            patch.add_initializer(columns(&w).into_tensor(&constant)?);
            let output = self.names.derive(base, &format!("{part}_output"));
            let linear = self.names.derive(base, part);
            let product = match b {
                Some(_) => self.names.derive(base, &format!("{part}_product")),
                None => output.clone(),
            };
            let x = &proto.input[0];
            let matmul = make_node(op::MatMul, &linear, &[x, &constant], &[&product], vec![]);
            patch.insert_before(node, matmul);
            if let (Some((b, _)), Some(bias)) = (&b, bias) {
                let constant = self.names.derive(view.name(bias), part);
                patch.add_initializer(columns(b).into_tensor(&constant)?);
                let add = self.names.derive(&linear, "bias");
                let add = make_node(op::Add, &add, &[&product, &constant], &[&output], vec![]);
                patch.insert_before(node, add);
            }
            inputs.push(output);
            start += size;
        }
        let slot = |slot: usize| proto.input.get(slot).cloned().unwrap_or_default();
        // bias, key_padding_mask, attention_bias
        inputs.extend([String::new(), slot(3), slot(5)]);
        let mut outputs: Vec<String> = proto.output.iter().take(1).cloned().collect();
        let past = slot(4);
        if !past.is_empty() {
            inputs.extend(self.split_past(node, &past, patch));
        }
        if let Some(present) = proto.output.get(1).filter(|p| !p.is_empty()) {
            outputs.extend(self.join_present(node, present, patch));
        }
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        let mut attention = NodeProto {
            op_type: Some(op::MultiHeadAttention.to_owned()),
            input: inputs,
            output: outputs,
            ..proto.clone()
        };
        attention.attribute.retain(|a| {
            matches!(
                a.name(),
                "num_heads" | "scale" | "mask_filter_value" | "unidirectional"
            )
        });
        patch.replace(node, attention);
        Ok(())
    }

    /// past: [2, B, H, P, D] → past_key, past_value.
    fn split_past(&mut self, node: NodeId, past: &str, patch: &mut Patch) -> [String; 2] {
        [("past_key", 0), ("past_value", 1)].map(|(what, at)| {
            let base = self.view.node_name(node);
            let index = self.names.derive(base, &format!("{what}_index"));
            patch.add_initializer(tensor::from_i64(&index, &[], &[at]));
            let output = self.names.derive(base, what);
            let gather = self.names.derive(base, &format!("{what}_Gather"));
            let axis = vec![int_attr("axis", 0)];
            let gather = make_node(op::Gather, &gather, &[past, &index], &[&output], axis);
            patch.insert_before(node, gather);
            output
        })
    }

    /// present_key, present_value → present: [2, B, H, T, D].
    fn join_present(&mut self, node: NodeId, present: &str, patch: &mut Patch) -> [String; 2] {
        let base = self.view.node_name(node);
        let axes = self.names.derive(base, "present_axes");
        patch.add_initializer(tensor::from_i64(&axes, &[1], &[0]));
        let mut stacked = Vec::new();
        let outputs = ["present_key", "present_value"].map(|what| {
            let output = self.names.derive(base, what);
            let row = self.names.derive(base, &format!("{what}_row"));
            let unsqueeze = self.names.derive(base, &format!("{what}_Unsqueeze"));
            let inputs = [output.as_str(), &axes];
            stacked.push((
                make_node(op::Unsqueeze, &unsqueeze, &inputs, &[&row], vec![]),
                row,
            ));
            output
        });
        let concat = self.names.derive(base, "present_Concat");
        let rows: Vec<String> = stacked.iter().map(|(_, row)| row.clone()).collect();
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        let axis = vec![int_attr("axis", 0)];
        let concat = make_node(op::Concat, &concat, &rows, &[present], axis);
        let nodes = stacked.into_iter().map(|(unsqueeze, _)| unsqueeze);
        nodes
            .chain([concat])
            .for_each(|n| patch.insert_after(node, n));
        outputs
    }

    fn matmul(
        &mut self,
        node: NodeId,
        weight: ValueId,
        trans_b: bool,
        alpha: f32,
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let view = self.view;
        let mut matmul = NodeProto {
            op_type: Some(op::MatMul.to_owned()),
            domain: None,
            attribute: vec![],
            ..view.node(node).clone()
        };
        if trans_b || alpha != 1.0 {
            let (w, dtype) = self.float(weight)?;
            let unreadable = |_| RewriteError::Constant(view.name(weight).to_owned());
            let mut w: Array2<f32> = w.into_dimensionality::<Ix2>().map_err(unreadable)?;
            if trans_b {
                w = w.reversed_axes();
            }
            let new = NewConstant {
                shape: w.shape().to_vec(),
                data: w.iter().map(|x| x * alpha).collect(),
                dtype,
            };
            let suffix = if trans_b { "transposed" } else { "scaled" };
            let name = self.names.derive(view.name(weight), suffix);
            patch.add_initializer(new.into_tensor(&name)?);
            matmul.input[1] = name;
        }
        patch.replace(node, matmul);
        Ok(())
    }

    /// The Gemm keeps the name, the activation the output.
    fn gemm(&mut self, node: NodeId, activation: &str, parameters: &[&str], patch: &mut Patch) {
        let proto = self.view.node(node);
        let mut gemm = NodeProto {
            op_type: Some(op::Gemm.to_owned()),
            domain: None,
            ..proto.clone()
        };
        gemm.attribute
            .retain(|a| matches!(a.name(), "alpha" | "beta" | "transA" | "transB"));
        let output = std::mem::take(&mut gemm.output[0]);
        gemm.output[0] = self.names.derive(&output, "gemm");
        let attributes = parameters
            .iter()
            .zip(["activation_alpha", "activation_beta"])
            .filter_map(|(&name, stored)| Some(float_attr(name, attr_f(proto, stored)?)))
            .collect();
        let name = self.names.derive(self.view.node_name(node), activation);
        let act = make_node(
            activation,
            &name,
            &[&gemm.output[0]],
            &[&output],
            attributes,
        );
        patch.replace(node, gemm);
        patch.insert_after(node, act);
    }

    fn float(&self, value: ValueId) -> Result<(ArrayD<f32>, DataType), RewriteError> {
        let constant = self.view.constant(value).and_then(|c| c.into_float());
        constant.ok_or_else(|| RewriteError::Constant(self.view.name(value).to_owned()))
    }
}
