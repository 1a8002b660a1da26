//! Quantization: a QuantizeLinear/DequantizeLinear pair at the input of every Linear and an int8 weight behind a
//! DequantizeLinear. Nothing on outputs, residuals, masks or biases.
//!
//! ```text
//! x ── QuantizeLinear ── DequantizeLinear ──┐
//! W: int8 [K, N] ─────── DequantizeLinear ──┴─ MatMul ── Add(b: [1, N]) ── y
//! ```
//!
//! This is the form that runtimes fuse to one integer product (ONNX Runtime: MatMulIntegerToFloat). The details
//! that decide whether they do come from the target's [`Profile`].

use std::collections::BTreeMap;

use ndarray::Array1;

use super::RewriteError;
use super::linear::{Copies, NewConstant};
use crate::graph::{Names, NodeId, Patch, ValueId, View};
use crate::onnx::proto::NodeProto;

use crate::onnx::node::{float_attr, int_attr, make_node};
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm, Recognised};
use crate::solve::{QuantParams, WeightSpec, quantize_weight};
use crate::target::{GemmBias, Profile};

/// How the input of one Linear is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// Scale, zero point and integer range.
    pub params: QuantParams,
    /// The rank of the input at run time; it decides the form of the bias.
    pub rank: usize,
}

/// What to quantize: one entry per Linear of `Recognised::linears`, `None` to leave it in float.
pub struct QuantizePlan {
    /// Indexed like `Recognised::linears`.
    pub activations: Vec<Option<Activation>>,
    /// Bits and granularity of the weights.
    pub weight: WeightSpec,
    /// The rules of the target.
    pub profile: Profile,
}

/// The patches that quantize the planned Linears, one per Linear.
///
/// # Errors
/// A constant that cannot be read.
pub fn quantize(
    view: &View,
    found: &Recognised,
    plan: &QuantizePlan,
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    let mut writer = Writer {
        view,
        plan,
        names,
        copies: Copies::new(),
        shared: BTreeMap::new(),
        weights: BTreeMap::new(),
    };
    found
        .linears
        .iter()
        .zip(&plan.activations)
        .filter_map(|(linear, activation)| Some((linear, activation.as_ref()?)))
        .map(|(linear, activation)| writer.quantize(linear, activation))
        .collect()
}

/// The identity of an input's quantization: two Linears with the same key can share one pair.
type ActivationKey = (ValueId, u32, i32, i32, i32);

/// The initializers of a quantized weight.
#[derive(Clone)]
struct WeightNames {
    quantized: String,
    scale: String,
    zero_point: String,
    /// s_w: [N] or [1].
    scales: Vec<f32>,
}

struct Writer<'a, 'm> {
    view: &'a View<'m>,
    plan: &'a QuantizePlan,
    names: &'a mut Names,
    copies: Copies,
    /// The dequantized input that Linears with the same key read.
    shared: BTreeMap<ActivationKey, String>,
    /// Weights already written: one initializer serves every Linear that reads it.
    weights: BTreeMap<(ValueId, bool, u32), WeightNames>,
}

impl Writer<'_, '_> {
    fn quantize(
        &mut self,
        linear: &Linear,
        activation: &Activation,
    ) -> Result<Patch, RewriteError> {
        let mut patch = Patch::new(format!("quantize `{}`", linear.name));
        let x = self.activation(linear, &activation.params, &mut patch);
        let weight = self.weight(linear, &mut patch)?;
        let (w, dequantize) = self.dequantize_weight(linear, &weight);
        patch.insert_before(linear.node, dequantize);
        match (linear.form, linear.added_bias()) {
            (LinearForm::Gemm { .. }, _) => {
                self.gemm(linear, activation, &weight, [&x, &w], &mut patch)?
            }
            (LinearForm::MatMul, Some(bias))
                if activation.rank == 2 && self.rank_of_constant(bias.value) <= 2 =>
            {
                self.matmul_of_rank_2(linear, activation, &weight, [&x, &w], &mut patch)?;
            }
            (LinearForm::MatMul, _) => {
                patch.rewire(linear.node, 0, x);
                patch.rewire(linear.node, 1, w);
                if activation.rank >= 3 {
                    self.bias_as_row(linear, &mut patch)?;
                    self.bias_before_clip(linear, &mut patch)?;
                }
            }
        }
        Ok(patch)
    }

    /// The dequantized input of `linear`: a new Q → DQ pair, or one that is there already.
    fn activation(&mut self, linear: &Linear, params: &QuantParams, patch: &mut Patch) -> String {
        let key = (
            linear.input,
            params.scale.to_bits(),
            params.zero_point,
            params.qmin,
            params.qmax,
        );
        if self.plan.profile.share_activations
            && let Some(name) = self.shared.get(&key)
        {
            return name.clone();
        }
        let x = self.view.name(linear.input);
        // A pair of its own per Linear takes the Linear's name, a shared one that of the value.
        let base = if self.plan.profile.share_activations {
            x
        } else {
            &linear.name
        };
        let mut derive = |suffix: &str| self.names.derive(base, suffix);
        let (scale, zero_point) = (derive("scale"), derive("zero_point"));
        let (quantized, dequantized) = (derive("quantized"), derive("dequantized"));
        patch.add_initializer(tensor::from_f32(
            &scale,
            &[],
            &[params.scale],
            DataType::Float,
        ));
        let signed = self.plan.profile.symmetric;
        patch.add_initializer(zero_point_tensor(&zero_point, params.zero_point, signed));
        let mut input = x.to_owned();
        if let Some((low, high)) = narrow_range(params, signed) {
            // QuantizeLinear saturates at 8 bits; fewer bits need the range cut before it, which is exact.
            let clipped = derive("clipped");
            let (min, max) = (derive("clip_min"), derive("clip_max"));
            patch.add_initializer(tensor::from_f32(&min, &[], &[low], DataType::Float));
            patch.add_initializer(tensor::from_f32(&max, &[], &[high], DataType::Float));
            let name = derive("Clip");
            patch.insert_before(
                linear.node,
                make_node("Clip", &name, &[&input, &min, &max], &[&clipped], vec![]),
            );
            input = clipped;
        }
        let (q, dq) = (derive("QuantizeLinear"), derive("DequantizeLinear"));
        let inputs = [input.as_str(), &scale, &zero_point];
        patch.insert_before(
            linear.node,
            make_node("QuantizeLinear", &q, &inputs, &[&quantized], vec![]),
        );
        let inputs = [quantized.as_str(), &scale, &zero_point];
        patch.insert_before(
            linear.node,
            make_node("DequantizeLinear", &dq, &inputs, &[&dequantized], vec![]),
        );
        self.shared.insert(key, dequantized.clone());
        dequantized
    }

    /// The int8 weight of `linear` in the layout of its operator.
    fn weight(&mut self, linear: &Linear, patch: &mut Patch) -> Result<WeightNames, RewriteError> {
        let (transposed, alpha) = match linear.form {
            LinearForm::Gemm { trans_b, alpha, .. } => (trans_b, alpha),
            LinearForm::MatMul => (false, 1.0),
        };
        let key = (linear.weight, transposed, alpha.to_bits());
        if let Some(weight) = self.weights.get(&key) {
            return Ok(weight.clone());
        }
        let name = self.view.name(linear.weight);
        let w = linear
            .load_weight(self.view)
            .ok_or_else(|| RewriteError::Constant(name.to_owned()))?;
        let quantized = quantize_weight(w.view(), &self.plan.weight);
        drop(w);
        let q = if transposed {
            quantized.q.reversed_axes()
        } else {
            quantized.q
        };
        let shape = q.shape().to_vec();
        let q: Vec<i8> = q.as_standard_layout().iter().copied().collect();
        let weight = WeightNames {
            quantized: self.names.derive(name, "quantized"),
            scale: self.names.derive(name, "scale"),
            zero_point: self.names.derive(name, "zero_point"),
            scales: quantized.scale,
        };
        let per_channel = self.plan.weight.per_channel;
        let count = weight.scales.len();
        let dims: &[usize] = if per_channel { &[count] } else { &[] };
        patch.add_initializer(tensor::from_i8(&weight.quantized, &shape, &q));
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

    fn dequantize_weight(&mut self, linear: &Linear, weight: &WeightNames) -> (String, NodeProto) {
        let name = self.view.name(linear.weight);
        let output = self.names.derive(name, "dequantized");
        let node = self.names.derive(name, "DequantizeLinear");
        let transposed = matches!(linear.form, LinearForm::Gemm { trans_b: true, .. });
        let axis = if transposed { 0 } else { 1 };
        let attributes = if self.plan.weight.per_channel {
            vec![int_attr("axis", axis)]
        } else {
            vec![]
        };
        let inputs = [weight.quantized.as_str(), &weight.scale, &weight.zero_point];
        let node = make_node("DequantizeLinear", &node, &inputs, &[&output], attributes);
        (output, node)
    }

    /// The bias of a MatMul as [1, N]: with a bias of rank 1 ONNX Runtime turns the pair into a Gemm that stays
    /// in float, as soon as the shapes are known (0.6 times the speed of float32).
    fn bias_as_row(&mut self, linear: &Linear, patch: &mut Patch) -> Result<(), RewriteError> {
        let Some(bias) = linear.added_bias() else {
            return Ok(());
        };
        let name = self.view.name(bias.value);
        let stored = self.view.constant(bias.value).and_then(|c| c.into_float());
        let (array, dtype) = stored.ok_or_else(|| RewriteError::Constant(name.to_owned()))?;
        if array.ndim() != 1 {
            return Ok(());
        }
        let data = array.iter().copied().collect();
        let new = NewConstant {
            shape: vec![1, linear.n],
            data,
            dtype,
        };
        super::linear::set_constant(
            self.view,
            patch,
            (&mut *self.names, &mut self.copies),
            (bias.node, bias.slot),
            bias.value,
            new,
        )
    }

    /// A zero bias between a MatMul without one and a Relu or Clip.
    ///
    /// ONNX Runtime looks through a Relu for a QuantizeLinear that makes it redundant. If there is none, or it has
    /// another zero point, the MatMul is left in float; with an Add in between it fuses, and the Add with it.
    fn bias_before_clip(&mut self, linear: &Linear, patch: &mut Patch) -> Result<(), RewriteError> {
        let view = self.view;
        let clipped = view
            .output(linear.node, 0)
            .and_then(|product| view.only_reader(product))
            .is_some_and(|(reader, _)| matches!(view.op(reader), "Relu" | "Clip"));
        if linear.bias.is_some() || !clipped {
            return Ok(());
        }
        let zeros = self.names.derive(view.name(linear.weight), "no_bias");
        let new = NewConstant {
            shape: vec![1, linear.n],
            data: vec![0.0; linear.n],
            dtype: linear.dtype,
        };
        patch.add_initializer(new.into_tensor(&zeros)?);
        super::linear::add_after(view, linear, "no_bias", &zeros, patch, self.names);
        Ok(())
    }

    /// A Gemm over quantized factors. Its bias takes the form that the target fuses.
    fn gemm(
        &mut self,
        linear: &Linear,
        activation: &Activation,
        weight: &WeightNames,
        [x, w]: [&str; 2],
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let mut node = self.view.node(linear.node).clone();
        // alpha is in the quantized weight; beta goes into the bias where that is rewritten too.
        node.attribute
            .retain(|a| a.name.as_deref() != Some("alpha"));
        node.input[0] = x.to_owned();
        node.input[1] = w.to_owned();
        if linear.bias.is_none() {
            patch.replace(linear.node, node);
            return Ok(());
        }
        node.attribute.retain(|a| a.name.as_deref() != Some("beta"));
        match self.plan.profile.gemm_bias {
            GemmBias::Int32 => {
                // ONNX Runtime fuses only what has beta written out.
                node.attribute.push(float_attr("beta", 1.0));
                node.input[2] = self.int32_bias(linear, activation, weight, linear.node, patch)?;
                patch.replace(linear.node, node);
            }
            GemmBias::SeparateAdd => {
                node.input.truncate(2);
                let output = self.output_name(linear.node);
                let product = self.names.derive(&output, "product");
                node.output[0] = product.clone();
                patch.replace(linear.node, node);
                let bias = self.float_bias(linear, patch)?;
                let add = self.names.derive(&linear.name, "bias");
                let add = make_node("Add", &add, &[&product, &bias], &[&output], vec![]);
                patch.insert_after(linear.node, add);
            }
        }
        Ok(())
    }

    /// MatMul + Add over rank 2 is what runtimes fuse to a Gemm of their own, in float: written as the Gemm they
    /// can quantize, under the MatMul's name.
    fn matmul_of_rank_2(
        &mut self,
        linear: &Linear,
        activation: &Activation,
        weight: &WeightNames,
        [x, w]: [&str; 2],
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let Some(bias) = linear.bias else {
            return Ok(());
        };
        let mut node = self.view.node(linear.node).clone();
        node.op_type = Some("Gemm".to_owned());
        node.input = vec![x.to_owned(), w.to_owned()];
        if self.plan.profile.gemm_bias == GemmBias::Int32 {
            node.input
                .push(self.int32_bias(linear, activation, weight, linear.node, patch)?);
            node.attribute.push(float_attr("beta", 1.0));
            node.output[0] = self.output_name(bias.node);
            patch.remove(bias.node);
        }
        patch.replace(linear.node, node);
        Ok(())
    }

    /// More than 2 gives the product of two matrices more axes, which no Gemm does.
    fn rank_of_constant(&self, value: ValueId) -> usize {
        let constant = self.view.constant(value).and_then(|c| c.into_float());
        constant.map_or(0, |(array, _)| array.ndim())
    }

    fn output_name(&self, node: NodeId) -> String {
        self.view
            .output(node, 0)
            .map_or("", |v| self.view.name(v))
            .to_owned()
    }

    fn load_bias(&self, linear: &Linear) -> Result<Array1<f32>, RewriteError> {
        let name = linear.bias.map_or("", |b| self.view.name(b.value));
        linear
            .load_bias(self.view)
            .ok_or_else(|| RewriteError::Constant(name.to_owned()))
    }

    /// The effective float bias: the constant itself, or a new one with beta in it.
    fn float_bias(&mut self, linear: &Linear, patch: &mut Patch) -> Result<String, RewriteError> {
        let base = linear.bias.map_or("", |b| self.view.name(b.value));
        if !matches!(linear.form, LinearForm::Gemm { beta, .. } if beta != 1.0) {
            return Ok(base.to_owned());
        }
        let b = self.load_bias(linear)?;
        let name = self.names.derive(base, "scaled");
        let new = NewConstant {
            shape: vec![linear.n],
            data: b.to_vec(),
            dtype: linear.dtype,
        };
        patch.add_initializer(new.into_tensor(&name)?);
        Ok(name)
    }

    /// b ≈ q_b · s_x · s_w with q_b int32: [N], behind a DequantizeLinear before `anchor`.
    fn int32_bias(
        &mut self,
        linear: &Linear,
        activation: &Activation,
        weight: &WeightNames,
        anchor: NodeId,
        patch: &mut Patch,
    ) -> Result<String, RewriteError> {
        let b = self.load_bias(linear)?;
        let per_channel = weight.scales.len() > 1;
        let scale =
            |i: usize| activation.params.scale * weight.scales[if per_channel { i } else { 0 }];
        // `as` saturates: a bias beyond 2^31 steps is beyond what the accumulator could hold.
        let q: Vec<i32> = b
            .iter()
            .enumerate()
            .map(|(i, &b)| (f64::from(b) / f64::from(scale(i))).round() as i32)
            .collect();
        let scales: Vec<f32> = (0..weight.scales.len()).map(scale).collect();
        let base = linear.bias.map_or("", |b| self.view.name(b.value));
        let mut derive = |suffix: &str| self.names.derive(base, suffix);
        let (quantized, scale, output, node) = (
            derive("quantized"),
            derive("scale"),
            derive("dequantized"),
            derive("DequantizeLinear"),
        );
        let dims: &[usize] = if self.plan.weight.per_channel {
            &[scales.len()]
        } else {
            &[]
        };
        patch.add_initializer(tensor::from_i32(&quantized, &[linear.n], &q));
        patch.add_initializer(tensor::from_f32(&scale, dims, &scales, DataType::Float));
        let attributes = if self.plan.weight.per_channel {
            vec![int_attr("axis", 0)]
        } else {
            vec![]
        };
        let inputs = [quantized.as_str(), &scale];
        patch.insert_before(
            anchor,
            make_node("DequantizeLinear", &node, &inputs, &[&output], attributes),
        );
        Ok(output)
    }
}

fn zero_point_tensor(name: &str, zero_point: i32, signed: bool) -> crate::onnx::proto::TensorProto {
    // The zero point is within the integer range of its type by construction; saturate all the same.
    if signed {
        tensor::from_i8(name, &[], &[zero_point.clamp(-128, 127) as i8])
    } else {
        tensor::from_u8(name, &[], &[zero_point.clamp(0, 255) as u8])
    }
}

/// The real numbers at qmin and qmax if the integers between them are fewer than the 8-bit type holds.
fn narrow_range(params: &QuantParams, signed: bool) -> Option<(f32, f32)> {
    let full = if signed { (-128, 127) } else { (0, 255) };
    let real = |q: i32| (q - params.zero_point) as f32 * params.scale;
    ((params.qmin, params.qmax) != full).then(|| (real(params.qmin), real(params.qmax)))
}
