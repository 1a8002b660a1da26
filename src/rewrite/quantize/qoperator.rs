//! Linears as integer operators, for ONNX Runtime.
//!
//! ```text
//! x ── QuantizeLinear ── QLinearMatMul(W: int8, s_w / t; output s, zero point) ── DequantizeLinear ── Mul(t) ── Add(b) ── y
//! x ── QuantizeLinear ── QGemm(W: int8, b: int32) ── y                                        x of two axes
//! ```
//!
//! QLinearMatMul (ONNX) has an integer output of one scale; t, `[N]`, gives each column a step of its own
//! ([`crate::solve::output`]), and the Mul is left out where t = 1. QGemm (com.microsoft) gives float32 if it is given no
//! scale for its output, and adds the bias to its accumulator (scale s_x s_w), so nothing but its inputs is rounded; it
//! takes matrices alone.
//!
//! Activations are uint8: ONNX Runtime has no fast kernel for int8 ones on x86, and none at all for most mixtures.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Activation, InputNames, QuantizePlan, WeightNames, Writer, write};
use crate::graph::{Names, Patch, View};
use crate::onnx::node::{int_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm, LinearId, Recognised};
use crate::rewrite::linear::NewConstant;
use crate::rewrite::{RewriteError, microsoft};
use crate::solve::QuantizedWeight;
use crate::solve::output::OutputGrid;

/// The operator that takes the place of a Linear.
#[derive(Clone, Debug, PartialEq)]
pub enum IntegerProduct {
    /// QGemm with a float output, for an x of two axes.
    Gemm,
    /// QLinearMatMul, whose output is quantized like this.
    MatMul(OutputGrid),
}

/// The operators by the numbers of their Linears.
pub type IntegerProducts = BTreeMap<LinearId, IntegerProduct>;

/// The patches that put integer operators in the place of the planned Linears, one per Linear; those without an entry in
/// `products` are left in float.
///
/// # Errors
/// A constant that cannot be read.
pub fn quantize_as_operators(
    view: &View,
    found: &Recognised,
    plan: &QuantizePlan,
    products: &IntegerProducts,
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    write(view, found, plan, Some(products), names)
}

impl Writer<'_, '_> {
    /// One Linear as an integer operator.
    pub(super) fn integer_product(
        &mut self,
        linear: &Linear,
        activation: &Activation,
        product: &IntegerProduct,
        rounded: Option<&Arc<QuantizedWeight>>,
    ) -> Result<Patch, RewriteError> {
        let mut patch = Patch::new(format!("`{}` as an integer operator", linear.name));
        let x = self.quantize_input(linear, &activation.params, &mut patch);
        let weight = self.weight(linear, rounded, &mut patch)?;
        match product {
            IntegerProduct::Gemm => self.qgemm(linear, activation, &weight, &x, &mut patch)?,
            IntegerProduct::MatMul(grid) => {
                self.qlinear_matmul(linear, grid, &weight, &x, &mut patch)
            }
        }
        Ok(patch)
    }

    /// QLinearMatMul ── DequantizeLinear ── Mul under the name of the product. A bias is added behind, as it was.
    fn qlinear_matmul(
        &mut self,
        linear: &Linear,
        grid: &OutputGrid,
        weight: &WeightNames,
        x: &InputNames,
        patch: &mut Patch,
    ) {
        let output = self.output_name(linear.node);
        let mut derive = |suffix: &str| self.names.derive(&output, suffix);
        let (scale, zero_point) = (derive("scale"), derive("zero_point"));
        let (quantized, dequantize) = (derive("quantized"), derive(op::DequantizeLinear));
        let dequantized = match (&grid.factors, linear.dtype) {
            (None, DataType::Float) => output.clone(),
            _ => derive("dequantized"),
        };
        let float = |name: &str, dims: &[usize], data: &[f32]| {
            tensor::from_f32(name, dims, data, DataType::Float)
        };
        patch.add_initializer(float(&scale, &[], &[grid.params.scale]));
        let zero = super::zero_point_tensor(&zero_point, grid.params.zero_point, false);
        patch.add_initializer(zero);

        let mut weight_scale = weight.scale.clone();
        if let Some(factors) = &grid.factors {
            let per_channel = weight.scales.len() > 1;
            let of = |(n, t): (usize, &f32)| weight.scales[if per_channel { n } else { 0 }] / t;
            let scales: Vec<f32> = factors.iter().enumerate().map(of).collect();
            weight_scale = derive("weight_scale");
            patch.add_initializer(float(&weight_scale, &[scales.len()], &scales));
        }
        let zeros = match (&grid.factors, weight.scales.len()) {
            // One scale for the weight, and now one per column: as many zero points.
            (Some(factors), 1) if factors.len() > 1 => {
                let zeros = derive("weight_zero_point");
                let none = vec![0; factors.len()];
                patch.add_initializer(tensor::from_i8(&zeros, &[factors.len()], &none));
                zeros
            }
            _ => weight.zero_point.clone(),
        };
        let mut node = self.view.node(linear.node).clone();
        node.op_type = Some(op::QLinearMatMul.to_owned());
        node.attribute.clear();
        node.input = vec![
            x.quantized.clone(),
            x.scale.clone(),
            x.zero_point.clone(),
            weight.quantized.clone(),
            weight_scale,
            zeros,
            scale.clone(),
            zero_point.clone(),
        ];
        node.output = vec![quantized.clone()];
        patch.replace(linear.node, node);

        let inputs = [quantized.as_str(), &scale, &zero_point];
        let node = make_node(
            op::DequantizeLinear,
            &dequantize,
            &inputs,
            &[&dequantized],
            vec![],
        );
        patch.insert_after(linear.node, node);
        let mut value = dequantized;
        if let Some(factors) = &grid.factors {
            let (name, mul) = (derive("factors"), derive(op::Mul));
            patch.add_initializer(float(&name, &[factors.len()], factors));
            let product = match linear.dtype {
                DataType::Float => output.clone(),
                _ => derive("float32"),
            };
            let node = make_node(op::Mul, &mul, &[&value, &name], &[&product], vec![]);
            patch.insert_after(linear.node, node);
            value = product;
        }
        if value != output {
            let cast = self.cast_of(linear, &value, &output);
            patch.insert_after(linear.node, cast);
        }
    }

    /// QGemm with a float output under the name of the sum, or of the product where the bias cannot be in it.
    fn qgemm(
        &mut self,
        linear: &Linear,
        activation: &Activation,
        weight: &WeightNames,
        x: &InputNames,
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let mut node = self.view.node(linear.node).clone();
        let of_gemm = matches!(linear.form, LinearForm::Gemm { .. });
        let computed = node.input.get(2).filter(|c| of_gemm && !c.is_empty());
        let computed = computed.filter(|_| linear.bias.is_none()).cloned();
        microsoft(&mut node, op::QGemm, patch);
        // alpha is in the quantized weight, beta in the bias.
        let transposes = |name: Option<&str>| matches!(name, Some("transA" | "transB"));
        node.attribute.retain(|a| transposes(a.name.as_deref()));
        node.input = vec![
            x.quantized.clone(),
            x.scale.clone(),
            x.zero_point.clone(),
            weight.quantized.clone(),
            weight.scale.clone(),
            weight.zero_point.clone(),
        ];
        let mut output = self.output_name(linear.node);
        let added = linear.added_bias().filter(|_| !of_gemm);
        // A bias of more axes than the product makes the sum no matrix.
        let added = added.filter(|bias| self.rank_of_constant(bias.value) <= 2);
        let fits = linear.bias.is_none() || self.bias_fits(linear, activation, weight)?;
        // What does not fit stays in float: the Add of a MatMul where it is, the bias of a Gemm in one behind.
        let added = added.filter(|_| fits);
        if of_gemm && !fits {
            let product = self.names.derive(&output, "product");
            node.output = vec![self.product(linear, weight, &product, None, patch)?];
            patch.replace(linear.node, node);
            let bias = self.float_bias(linear, patch)?;
            let add = self.names.derive(&linear.name, "bias");
            let add = make_node(op::Add, &add, &[&product, &bias], &[&output], vec![]);
            patch.insert_after(linear.node, add);
            return Ok(());
        }
        if (of_gemm && linear.bias.is_some()) || added.is_some() {
            let (q, _) = self.bias_steps(linear, activation, weight)?;
            let base = linear.bias.map_or("", |b| self.view.name(b.value));
            let name = self.names.derive(base, "quantized");
            patch.add_initializer(tensor::from_i32(&name, &[linear.n], &q));
            node.input.push(name);
        }
        if let Some(bias) = added {
            output = self.output_name(bias.node);
            patch.remove(bias.node);
        }
        if let Some(computed) = computed {
            let product = self.names.derive(&output, "product");
            node.output = vec![self.product(linear, weight, &product, None, patch)?];
            patch.replace(linear.node, node);
            return self.add_computed(linear, [&product, &computed], &output, patch);
        }
        node.output = vec![self.product(linear, weight, &output, None, patch)?];
        patch.replace(linear.node, node);
        Ok(())
    }

    /// `output = product + beta · c` behind the node of `linear`.
    fn add_computed(
        &mut self,
        linear: &Linear,
        [product, c]: [&str; 2],
        output: &str,
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let mut c = c.to_owned();
        if let LinearForm::Gemm { beta, .. } = linear.form
            && beta != 1.0
        {
            let factor = self.names.derive(&linear.name, "beta");
            let new = NewConstant {
                shape: vec![],
                data: vec![beta],
                dtype: linear.dtype,
            };
            patch.add_initializer(new.into_tensor(&factor)?);
            let (scaled, mul) = (
                self.names.derive(&c, "scaled"),
                self.names.derive(&c, op::Mul),
            );
            let node = make_node(op::Mul, &mul, &[&c, &factor], &[&scaled], vec![]);
            patch.insert_before(linear.node, node);
            c = scaled;
        }
        let add = self.names.derive(&linear.name, "bias");
        let node = make_node(op::Add, &add, &[product, &c], &[output], vec![]);
        patch.insert_after(linear.node, node);
        Ok(())
    }

    /// The Cast of `wide`, in float32, to `output`, in the type of the file.
    fn cast_of(&mut self, linear: &Linear, wide: &str, output: &str) -> NodeProto {
        let cast = self.names.derive(output, op::Cast);
        let to = int_attr("to", linear.dtype as i64);
        make_node(op::Cast, &cast, &[wide], &[output], vec![to])
    }
}
