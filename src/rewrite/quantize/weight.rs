//! The weight of a quantized Linear: int8 behind a DequantizeLinear, or one of the forms that some targets or users want
//! in its place.
//!
//! ```text
//! W: int8 ── DequantizeLinear ──                                by default
//! W: INT4 ── Cast(int8) ── DequantizeLinear ──                  4 bits or less, operator set 21, if the target has it
//! q · s: float32 ── QuantizeLinear ── DequantizeLinear ──       WeightStorage::FloatQdq
//! ```

use std::sync::Arc;

use super::Writer;
use crate::graph::{Patch, ValueId, View};
use crate::onnx::node::{int_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm};
use crate::rewrite::RewriteError;
use crate::solve::{QuantizedWeight, WeightGranularity, WeightSpec, quantize_weight};

/// What the file holds of a quantized weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightStorage {
    /// Its integers, behind a DequantizeLinear.
    #[default]
    Integers,
    /// q · s in float32, behind a QuantizeLinear and a DequantizeLinear, for toolchains that take weights in no other form.
    /// QuantizeLinear gives exactly q: rounding q · s to float32 moves q · s / s by less than 2⁻¹⁶.
    FloatQdq,
}

/// The weight of a Linear, rounded to the nearest integers.
///
/// # Errors
/// It cannot be read.
pub fn nearest(
    view: &View,
    linear: &Linear,
    spec: &WeightSpec,
) -> Result<Arc<QuantizedWeight>, RewriteError> {
    let unreadable = || RewriteError::Constant(view.name(linear.weight).to_owned());
    let w = linear.load_weight(view).ok_or_else(unreadable)?;
    Ok(Arc::new(quantize_weight(w.view(), spec)))
}

/// The identity of a weight: what it is made of and how, Gemm's transB, the bits of its alpha, and whether its scales
/// stand behind the product.
pub(super) type WeightKey = ((ValueId, String), bool, u32, bool);

/// The first operator set with INT4 and the first IR version that knows it.
const INT4_OPSET: (i64, i64) = (21, 10);

/// The values that stand for a quantized weight.
#[derive(Clone)]
pub(super) struct WeightNames {
    /// int8, in the layout of the operator.
    pub(super) quantized: String,
    pub(super) scale: String,
    pub(super) zero_point: String,
    /// s_w: [N] or [1].
    pub(super) scales: Vec<f32>,
    /// Whether the DequantizeLinear has an axis.
    pub(super) per_channel: bool,
    /// What the product is multiplied by, [N], if the scales are taken out of the weight; else empty.
    pub(super) behind: Vec<f32>,
}

impl WeightNames {
    /// The axis of the output channels, where there is a scale for each.
    fn axis(&self, transposed: bool) -> Vec<AttributeProto> {
        let axis = if transposed { 0 } else { 1 };
        let per_channel = self.per_channel.then(|| int_attr("axis", axis));
        per_channel.into_iter().collect()
    }

    /// q · s, in the layout of `q`: [K, N], or [N, K] if transposed.
    fn as_float(&self, name: &str, shape: &[usize], q: &[i8], transposed: bool) -> TensorProto {
        let columns = shape.get(1).copied().unwrap_or(1).max(1);
        let scale = |i: usize| {
            let n = if transposed { i / columns } else { i % columns };
            self.scales[if self.per_channel { n } else { 0 }]
        };
        let data: Vec<f32> = q
            .iter()
            .enumerate()
            .map(|(i, &q)| f32::from(q) * scale(i))
            .collect();
        tensor::from_f32(name, shape, &data, DataType::Float)
    }
}

impl Writer<'_, '_> {
    /// The int8 weight of `linear` in the layout of its operator.
    pub(super) fn weight(
        &mut self,
        linear: &Linear,
        rounded: Option<&Arc<QuantizedWeight>>,
        patch: &mut Patch,
    ) -> Result<WeightNames, RewriteError> {
        let (transposed, alpha) = match linear.form {
            LinearForm::Gemm { trans_b, alpha, .. } => (trans_b, alpha),
            LinearForm::MatMul => (false, 1.0),
        };
        let derivation = self.view.derivation(linear.weight);
        let behind = self.per_channel() && self.scales_go_behind(linear);
        let key = (derivation, transposed, alpha.to_bits(), behind);
        if let Some(weight) = self.weights.get(&key) {
            return Ok(weight.clone());
        }
        let name = self.view.name(linear.weight);
        let quantized = self.rounded(linear, rounded)?;
        let q = if transposed {
            quantized.q.t()
        } else {
            quantized.q.view()
        };
        let shape = q.shape().to_vec();
        let q = q.as_standard_layout();
        let q = q.as_slice().unwrap_or(&[]);
        let mut weight = WeightNames {
            quantized: self.names.derive(name, "quantized"),
            scale: self.names.derive(name, "scale"),
            zero_point: self.names.derive(name, "zero_point"),
            scales: quantized.scale.clone(),
            per_channel: self.per_channel(),
            behind: Vec::new(),
        };
        if behind {
            weight.take_scales_out();
        }
        let count = weight.scales.len();
        let dims: &[usize] = if weight.per_channel { &[count] } else { &[] };
        if self.plan.storage == WeightStorage::FloatQdq {
            let float = self.names.derive(name, "rounded");
            patch.add_initializer(weight.as_float(&float, &shape, q, transposed));
            patch.insert_before(
                linear.node,
                self.quantize_constant(name, &float, &weight, transposed),
            );
        } else if self.has_int4() && self.spec(linear).bits <= 4 {
            patch.add_initializer(tensor::from_i4(&weight.quantized, &shape, q));
            let (wide, cast) = (
                self.names.derive(name, "int8"),
                self.names.derive(name, op::Cast),
            );
            let to = vec![int_attr("to", DataType::Int8 as i64)];
            let cast = make_node(op::Cast, &cast, &[&weight.quantized], &[&wide], to);
            patch.insert_before(linear.node, cast);
            weight.quantized = wide;
        } else {
            patch.add_initializer(tensor::from_i8(&weight.quantized, &shape, q));
        }
        patch.add_initializer(tensor::from_f32(
            &weight.scale,
            dims,
            &weight.scales,
            DataType::Float,
        ));
        patch.add_initializer(tensor::from_i8(&weight.zero_point, dims, &vec![0; count]));
        self.weights.insert(key, weight.clone());
        Ok(weight)
    }

    /// The weight of `linear` that was `rounded` before, or else to the nearest integers.
    pub(super) fn rounded(
        &self,
        linear: &Linear,
        rounded: Option<&Arc<QuantizedWeight>>,
    ) -> Result<Arc<QuantizedWeight>, RewriteError> {
        match rounded {
            Some(rounded) => Ok(rounded.clone()),
            None => nearest(self.view, linear, &self.spec(linear)),
        }
    }

    /// How the weight of `linear` is quantized.
    pub(super) fn spec(&self, linear: &Linear) -> WeightSpec {
        let raised = self.plan.raised.get(&linear.node);
        *raised.unwrap_or(&self.plan.weight)
    }

    fn per_channel(&self) -> bool {
        self.plan.weight.granularity == WeightGranularity::PerChannel
    }

    fn has_int4(&self) -> bool {
        let model = self.view.model();
        self.plan.profile.int4_weights
            && model.opset() >= INT4_OPSET.0
            && model.proto.ir_version() >= INT4_OPSET.1
    }

    /// The QuantizeLinear that makes the integers of a weight from its float constant.
    fn quantize_constant(
        &mut self,
        name: &str,
        float: &str,
        weight: &WeightNames,
        transposed: bool,
    ) -> NodeProto {
        let node = self.names.derive(name, op::QuantizeLinear);
        let inputs = [float, &weight.scale, &weight.zero_point];
        let outputs = [weight.quantized.as_str()];
        make_node(
            op::QuantizeLinear,
            &node,
            &inputs,
            &outputs,
            weight.axis(transposed),
        )
    }

    pub(super) fn dequantize_weight(
        &mut self,
        linear: &Linear,
        weight: &WeightNames,
    ) -> (String, NodeProto) {
        let name = self.view.name(linear.weight);
        let output = self.names.derive(name, "dequantized");
        let node = self.names.derive(name, op::DequantizeLinear);
        let transposed = matches!(linear.form, LinearForm::Gemm { trans_b: true, .. });
        let attributes = weight.axis(transposed);
        let inputs = [weight.quantized.as_str(), &weight.scale, &weight.zero_point];
        let node = make_node(op::DequantizeLinear, &node, &inputs, &[&output], attributes);
        (output, node)
    }
}
