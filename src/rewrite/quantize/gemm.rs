//! Linears that are, or become, a Gemm: the bias is the third factor's business.

use ndarray::Array1;

use super::{Activation, WeightNames, Writer};
use crate::graph::{NodeId, Patch, ValueId};
use crate::onnx::node::{float_attr, int_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm};
use crate::rewrite::RewriteError;
use crate::rewrite::linear::NewConstant;
use crate::target::GemmBias;

impl Writer<'_, '_> {
    /// A Gemm over quantized factors. Its bias takes the form that the target fuses.
    pub(super) fn gemm(
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
        let output = self.output_name(linear.node);
        let stopped = self.product_stops_gemm(linear, activation);
        if linear.bias.is_none() {
            // A computed bias stays, in the type of the other two.
            if linear.odd_bias && linear.dtype != DataType::Float {
                node.input[2] = self.widen(linear, &node.input[2], patch);
            }
            node.output[0] = self.product(linear, weight, &output, None, patch)?;
            if stopped && !linear.odd_bias && linear.dtype == DataType::Float {
                self.zero_bias(linear, &mut node, patch)?;
            }
            patch.replace(linear.node, node);
            return Ok(());
        }
        let inside = weight.behind.is_empty() && linear.dtype == DataType::Float;
        if self.plan.profile.gemm_bias == GemmBias::AsItWas && inside {
            patch.replace(linear.node, node);
            return Ok(());
        }
        node.attribute.retain(|a| a.name.as_deref() != Some("beta"));
        match self.plan.profile.gemm_bias {
            GemmBias::Int32 if !stopped && self.bias_fits(linear, activation, weight)? => {
                // ONNX Runtime fuses only what has beta written out.
                node.attribute.push(float_attr("beta", 1.0));
                node.input[2] = self.int32_bias(linear, activation, weight, linear.node, patch)?;
                node.output[0] = self.product(linear, weight, &output, None, patch)?;
                patch.replace(linear.node, node);
            }
            _ => {
                node.input.truncate(2);
                let product = self.names.derive(&output, "product");
                node.output[0] = self.product(linear, weight, &product, None, patch)?;
                patch.replace(linear.node, node);
                let bias = self.float_bias(linear, patch)?;
                let add = self.names.derive(&linear.name, "bias");
                let add = make_node(op::Add, &add, &[&product, &bias], &[&output], vec![]);
                patch.insert_after(linear.node, add);
            }
        }
        Ok(())
    }

    /// MatMul + Add over rank 2 is what ONNX Runtime fuses to a Gemm of its own, in float: written as the Gemm it can
    /// quantize, under the MatMul's name.
    pub(super) fn matmul_of_rank_2(
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
        node.op_type = Some(op::Gemm.to_owned());
        node.input = vec![x.to_owned(), w.to_owned()];
        let sum = self.view.output(bias.node, 0);
        let stopped = sum.is_some_and(|value| self.stops_gemm(value, activation));
        if self.plan.profile.gemm_bias == GemmBias::Int32
            && !stopped
            && self.bias_fits(linear, activation, weight)?
        {
            node.input
                .push(self.int32_bias(linear, activation, weight, linear.node, patch)?);
            node.attribute.push(float_attr("beta", 1.0));
            node.output[0] = self.output_name(bias.node);
            patch.remove(bias.node);
        }
        node.output[0] = self.product(linear, weight, &node.output[0], None, patch)?;
        patch.replace(linear.node, node);
        Ok(())
    }

    /// [`Writer::stops_gemm`] for what the node of `linear` itself gives.
    pub(super) fn product_stops_gemm(&self, linear: &Linear, activation: &Activation) -> bool {
        let product = self.view.output(linear.node, 0);
        product.is_some_and(|value| self.stops_gemm(value, activation))
    }

    /// An Add of zeros after `node`, the Gemm of `linear` to be, under its old output name.
    pub(super) fn zero_bias(
        &mut self,
        linear: &Linear,
        node: &mut NodeProto,
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let output = self.output_name(linear.node);
        let zeros = self.names.derive(self.view.name(linear.weight), "no_bias");
        let new = NewConstant {
            shape: vec![linear.n],
            data: vec![0.0; linear.n],
            dtype: linear.dtype,
        };
        patch.add_initializer(new.into_tensor(&zeros)?);
        node.output[0] = self.names.derive(&output, "product");
        let add = self.names.derive(&linear.name, "no_bias");
        let inputs = [node.output[0].as_str(), &zeros];
        let add = make_node(op::Add, &add, &inputs, &[&output], vec![]);
        patch.insert_after(linear.node, add);
        Ok(())
    }

    /// `value` as float32, by a Cast before `linear`.
    fn widen(&mut self, linear: &Linear, value: &str, patch: &mut Patch) -> String {
        let wide = self.names.derive(value, "float32");
        let cast = self.names.derive(value, op::Cast);
        let to = vec![int_attr("to", DataType::Float as i64)];
        let cast = make_node(op::Cast, &cast, &[value], &[&wide], to);
        patch.insert_before(linear.node, cast);
        wide
    }

    /// More than 2 gives the product of two matrices more axes, which no Gemm does.
    pub(super) fn rank_of_constant(&self, value: ValueId) -> usize {
        let constant = self.view.constant(value).and_then(|c| c.into_float());
        constant.map_or(0, |(array, _)| array.ndim())
    }

    pub(super) fn output_name(&self, node: NodeId) -> String {
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
    pub(super) fn float_bias(
        &mut self,
        linear: &Linear,
        patch: &mut Patch,
    ) -> Result<String, RewriteError> {
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

    /// q_b: [N] with b ≈ q_b · s_x · s_w, and s_x · s_w: [N] or [1].
    pub(super) fn bias_steps(
        &self,
        linear: &Linear,
        activation: &Activation,
        weight: &WeightNames,
    ) -> Result<(Vec<i32>, Vec<f32>), RewriteError> {
        let b = self.load_bias(linear)?;
        let per_channel = weight.scales.len() > 1;
        let scale =
            |i: usize| activation.params.scale * weight.scales[if per_channel { i } else { 0 }];
        // `as` saturates; whoever writes the steps asks `bias_fits` first.
        let q = b
            .iter()
            .enumerate()
            .map(|(i, &b)| (f64::from(b) / f64::from(scale(i))).round() as i32)
            .collect();
        Ok((q, (0..weight.scales.len()).map(scale).collect()))
    }

    /// Whether the int32 form holds the bias, and the sum of products beside it: |q_b| + K · 255 · 127 < 2^31.
    ///
    /// A column of a weight that is nearly zero has nearly no scale, and its bias as many steps: those beyond int32 would
    /// be cut off, without a word. Such a bias stays in float, in an Add behind the product.
    pub(super) fn bias_fits(
        &self,
        linear: &Linear,
        activation: &Activation,
        weight: &WeightNames,
    ) -> Result<bool, RewriteError> {
        let (q, _) = self.bias_steps(linear, activation, weight)?;
        let sums = linear.k.saturating_mul(255 * 127);
        let room = u32::try_from(sums).map_or(0, |sums| (i32::MAX as u32).saturating_sub(sums));
        // A K beyond that overflows with any bias; there half of the range is as good as any other part.
        let room = room.max(1 << 30);
        Ok(q.iter().all(|q| q.unsigned_abs() <= room))
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
        let (q, scales) = self.bias_steps(linear, activation, weight)?;
        let base = linear.bias.map_or("", |b| self.view.name(b.value));
        let mut derive = |suffix: &str| self.names.derive(base, suffix);
        let (quantized, scale, output, node) = (
            derive("quantized"),
            derive("scale"),
            derive("dequantized"),
            derive(op::DequantizeLinear),
        );
        let dims: &[usize] = if weight.per_channel {
            &[scales.len()]
        } else {
            &[]
        };
        patch.add_initializer(tensor::from_i32(&quantized, &[linear.n], &q));
        patch.add_initializer(tensor::from_f32(&scale, dims, &scales, DataType::Float));
        let attributes = if weight.per_channel {
            vec![int_attr("axis", 0)]
        } else {
            vec![]
        };
        let inputs = [quantized.as_str(), &scale];
        patch.insert_before(
            anchor,
            make_node(op::DequantizeLinear, &node, &inputs, &[&output], attributes),
        );
        Ok(output)
    }
}
