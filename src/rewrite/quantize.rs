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
//!
//! Fewer than 8 bits are levels of an 8-bit type, because that is what runtimes have products for: a Clip before the
//! QuantizeLinear cuts the activation to its levels, and the weight uses as many as it has. What is saved is memory:
//! from operator set 21 on, a weight of at most 4 bits is stored as INT4, two per byte, with a Cast to int8 before its
//! DequantizeLinear, unless the target's profile says otherwise. ONNX Runtime evaluates that Cast once, when it loads the file, and multiplies in int8; a
//! DequantizeLinear of INT4 itself it would compute in float at every run.
//!
//! A Linear in float16, bfloat16 or float64 is computed between two Casts:
//!
//! ```text
//! x ── Cast(float32) ── Q ── DQ ──┐
//! W: int8 ── DQ ──────────────────┴─ MatMul ── Cast(float16) ── Add(b: float16) ── y
//! ```
//!
//! All scales are float32, so none can underflow; ONNX Runtime fuses this and not the form with float16 scales. TensorRT-RTX
//! fuses both, but hands the integer sums on in the type of the scales, and they go beyond float16.

mod behind;
mod gemm;
mod per_token;
mod qoperator;

pub use qoperator::{IntegerProduct, IntegerProducts, quantize_as_operators};
mod weight;

use weight::{WeightKey, WeightNames};
pub use weight::{WeightStorage, nearest};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use oxc_index::IndexVec;

use super::RewriteError;
use super::linear::{Copies, NewConstant};
use crate::graph::{Names, NodeId, Patch, Use, ValueId, View};
use crate::onnx::op;
use crate::onnx::proto::TensorProto;

use crate::onnx::node::{int_attr, make_node};
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm, LinearId, Recognised};
use crate::solve::{QuantParams, QuantizedWeight, WeightSpec};
use crate::target::{GemmBias, Profile};

/// What every token of an input is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Magnitude {
    /// Its largest magnitude.
    Symmetric,
    /// The same, where what is below 0 has only so many integers and counts as many times more.
    OneSided {
        /// Integers below the one that stands for 0, at least 1.
        below: i32,
    },
}

/// How the input of one Linear is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// Scale, zero point and integer range; where every token has a scale, those of the input over its magnitude.
    pub params: QuantParams,
    /// What every token of the input is divided by first, if by anything.
    pub per_token: Option<Magnitude>,
    /// The rank of the input at run time; it decides the form of the bias.
    pub rank: usize,
}

/// What to quantize: one entry per Linear of `Recognised::linears`, `None` to leave it in float.
pub struct QuantizePlan {
    /// Per Linear.
    pub activations: IndexVec<LinearId, Option<Activation>>,
    /// Bits and granularity of the weights.
    pub weight: WeightSpec,
    /// The weights that have more bits than `weight` says, by the nodes of their Linears.
    pub raised: BTreeMap<NodeId, WeightSpec>,
    /// What the file holds of them.
    pub storage: WeightStorage,
    /// Weights that have been quantized already, by the number of their Linear; the others are rounded to the nearest.
    /// Linears that share a weight get that of the first.
    pub rounded: Rounded,
    /// The rules of the target.
    pub profile: Profile,
}

/// Quantized weights by the numbers of their Linears.
pub type Rounded = BTreeMap<LinearId, Arc<QuantizedWeight>>;

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
    write(view, found, plan, None, names)
}

/// [`quantize`], or [`quantize_as_operators`] with these products.
fn write(
    view: &View,
    found: &Recognised,
    plan: &QuantizePlan,
    products: Option<&IntegerProducts>,
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    let planned = found.linears.iter().zip(&plan.activations);
    let planned = planned.filter(|(_, activation)| activation.is_some());
    let mut writer = Writer {
        view,
        planned: planned.map(|(linear, _)| linear.node).collect(),
        plan,
        products,
        names,
        copies: Copies::new(),
        shared: BTreeMap::new(),
        normalized: BTreeMap::new(),
        weights: BTreeMap::new(),
    };
    let linears = found.linears.iter_enumerated().zip(&plan.activations);
    linears
        .filter_map(|((l, linear), activation)| Some((l, linear, activation.as_ref()?)))
        .filter_map(|(l, linear, activation)| {
            let rounded = plan.rounded.get(&l);
            let Some(products) = products else {
                return Some(writer.quantize(linear, activation, rounded));
            };
            let product = products.get(&l)?;
            Some(writer.integer_product(linear, activation, product, rounded))
        })
        .collect()
}

/// The identity of an input's quantization: two Linears with the same key can share one pair.
type ActivationKey = (String, u32, i32, i32, i32);

/// The values that stand for a quantized input.
#[derive(Clone)]
struct InputNames {
    quantized: String,
    scale: String,
    zero_point: String,
    /// What the DequantizeLinear gives; integer operators read no such value, and it is not written then.
    dequantized: String,
}

/// The values that stand for an input divided by its magnitudes.
#[derive(Clone)]
struct Normalized {
    /// a, `[.., 1]`.
    magnitude: String,
    /// x / a.
    value: String,
}

struct Writer<'a, 'm> {
    view: &'a View<'m>,
    plan: &'a QuantizePlan,
    /// The operators that take the place of the Linears; `None` to write Q/DQ.
    products: Option<&'a IntegerProducts>,
    names: &'a mut Names,
    copies: Copies,
    /// The nodes of the Linears that are quantized.
    planned: BTreeSet<NodeId>,
    /// The quantized input that Linears with the same key read.
    shared: BTreeMap<ActivationKey, InputNames>,
    /// Inputs over the magnitudes of their tokens, by value and whether it is transposed first.
    normalized: BTreeMap<(ValueId, bool), Normalized>,
    /// Weights already written: one initializer serves every Linear that reads it.
    weights: BTreeMap<WeightKey, WeightNames>,
}

impl Writer<'_, '_> {
    fn quantize(
        &mut self,
        linear: &Linear,
        activation: &Activation,
        rounded: Option<&Arc<QuantizedWeight>>,
    ) -> Result<Patch, RewriteError> {
        let mut patch = Patch::new(format!("quantize `{}`", linear.name));
        if let Some(magnitude) = activation.per_token {
            self.per_token(linear, (activation, magnitude), rounded, &mut patch)?;
            return Ok(patch);
        }
        let x = self.quantize_input(linear, &activation.params, &mut patch);
        let x = x.dequantized;
        let weight = self.weight(linear, rounded, &mut patch)?;
        let (w, dequantize) = self.dequantize_weight(linear, &weight);
        patch.insert_before(linear.node, dequantize);
        // What follows for a MatMul keeps ONNX Runtime from making a Gemm of it that stays in float.
        let on_ort = self.plan.profile.gemm_bias != GemmBias::AsItWas;
        match (linear.form, linear.added_bias()) {
            (LinearForm::Gemm { .. }, _) => {
                self.gemm(linear, activation, &weight, [&x, &w], &mut patch)?
            }
            (LinearForm::MatMul, Some(bias))
                if on_ort && activation.rank == 2 && self.rank_of_constant(bias.value) <= 2 =>
            {
                self.matmul_of_rank_2(linear, activation, &weight, [&x, &w], &mut patch)?;
            }
            (LinearForm::MatMul, None)
                if on_ort
                    && activation.rank == 2
                    && linear.dtype == DataType::Float
                    && self.product_stops_gemm(linear, activation) =>
            {
                let mut node = self.view.node(linear.node).clone();
                node.op_type = Some(op::Gemm.to_owned());
                node.input = vec![x, w];
                self.zero_bias(linear, &mut node, &mut patch)?;
                patch.replace(linear.node, node);
            }
            (LinearForm::MatMul, _) => {
                patch.rewire(linear.node, 0, x);
                patch.rewire(linear.node, 1, w);
                let output = self.output_name(linear.node);
                let product = self.product(linear, &weight, &output, None, &mut patch)?;
                if product != output {
                    patch.rename_output(linear.node, 0, product);
                }
                if on_ort && activation.rank >= 3 {
                    self.bias_as_row(linear, &mut patch)?;
                    self.bias_before_clip(linear, activation, &mut patch)?;
                }
            }
        }
        Ok(patch)
    }

    /// The quantized input of `linear`: a new QuantizeLinear, with its DequantizeLinear where Q/DQ is written, or what is there
    /// already.
    fn quantize_input(
        &mut self,
        linear: &Linear,
        params: &QuantParams,
        patch: &mut Patch,
    ) -> InputNames {
        let narrow = linear.dtype != DataType::Float;
        self.quantize_value(linear, self.view.name(linear.input), narrow, params, patch)
    }

    /// [`Writer::quantize_input`] of the value `x`, which is `narrow` if it has to become float32 first.
    fn quantize_value(
        &mut self,
        linear: &Linear,
        x: &str,
        narrow: bool,
        params: &QuantParams,
        patch: &mut Patch,
    ) -> InputNames {
        let key = (
            x.to_owned(),
            params.scale.to_bits(),
            params.zero_point,
            params.qmin,
            params.qmax,
        );
        if self.plan.profile.share_activations
            && let Some(names) = self.shared.get(&key)
        {
            return names.clone();
        }
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
        if narrow {
            let (wide, name) = (derive("float32"), derive(op::Cast));
            let to = vec![int_attr("to", DataType::Float as i64)];
            let cast = make_node(op::Cast, &name, &[&input], &[&wide], to);
            patch.insert_before(linear.node, cast);
            input = wide;
        }
        if let Some((low, high)) = narrow_range(params, signed) {
            // QuantizeLinear saturates at 8 bits; fewer bits need the range cut before it, which is exact.
            let clipped = derive("clipped");
            let (min, max) = (derive("clip_min"), derive("clip_max"));
            patch.add_initializer(tensor::from_f32(&min, &[], &[low], DataType::Float));
            patch.add_initializer(tensor::from_f32(&max, &[], &[high], DataType::Float));
            let name = derive(op::Clip);
            patch.insert_before(
                linear.node,
                make_node(op::Clip, &name, &[&input, &min, &max], &[&clipped], vec![]),
            );
            input = clipped;
        }
        let (q, dq) = (derive(op::QuantizeLinear), derive(op::DequantizeLinear));
        let inputs = [input.as_str(), &scale, &zero_point];
        patch.insert_before(
            linear.node,
            make_node(op::QuantizeLinear, &q, &inputs, &[&quantized], vec![]),
        );
        if self.products.is_none() {
            let inputs = [quantized.as_str(), &scale, &zero_point];
            patch.insert_before(
                linear.node,
                make_node(op::DequantizeLinear, &dq, &inputs, &[&dequantized], vec![]),
            );
        }
        let names = InputNames {
            quantized,
            scale,
            zero_point,
            dequantized,
        };
        self.shared.insert(key, names.clone());
        names
    }

    /// The bias of a MatMul as [1, N]: with a bias of rank 1 ONNX Runtime turns the pair into a Gemm that stays
    /// in float, as soon as the shapes are known (0.6 times the speed of float32). What ONNX Runtime makes of a bias of
    /// rank 1, BiasGelu and the bias of a SkipLayerNormalization, is not faster there than the operators alone.
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
            super::linear::Precision::OfFile,
            self.view,
            patch,
            (&mut *self.names, &mut self.copies),
            (bias.node, bias.slot),
            bias.value,
            new,
        )
    }

    /// Whether a Relu or Clip of the model reads `value` and nothing else does.
    fn is_clipped(&self, value: ValueId) -> bool {
        let reader = self.view.only_reader(value);
        reader.is_some_and(|(node, _)| matches!(self.view.op(node), op::Relu | op::Clip))
    }

    /// Whether ONNX Runtime would look through a Relu or Clip after the Gemm that gives `value`, and leave it in float
    /// because no QuantizeLinear behind makes that redundant. A Clip may be ours: the next Linear's, of fewer bits.
    fn stops_gemm(&self, value: ValueId, activation: &Activation) -> bool {
        let quantized = |value| {
            let mut uses = self.view.uses(value).iter();
            uses.any(|u| matches!(u, Use::Node { node, input: 0 } if self.planned.contains(node)))
        };
        if self.plan.profile.gemm_bias == GemmBias::AsItWas {
            return false;
        }
        let narrow = narrow_range(&activation.params, self.plan.profile.symmetric).is_some();
        if !self.is_clipped(value) {
            return narrow && quantized(value);
        }
        let relu = self.view.only_reader(value).map(|(node, _)| node);
        let relu = relu.filter(|&node| self.view.op(node) == op::Relu);
        let output = relu.and_then(|node| self.view.output(node, 0));
        // A Relu is redundant where its zero is the smallest integer.
        narrow || self.plan.profile.symmetric || !output.is_some_and(quantized)
    }

    /// A zero bias between a MatMul without one and a Relu or Clip.
    ///
    /// ONNX Runtime looks through a Relu for a QuantizeLinear that makes it redundant. If there is none, or it has
    /// another zero point, the MatMul is left in float; with an Add in between it fuses, and the Add with it.
    fn bias_before_clip(
        &mut self,
        linear: &Linear,
        activation: &Activation,
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let view = self.view;
        let product = view.output(linear.node, 0);
        let stops = product.is_some_and(|p| self.is_clipped(p) || self.stops_gemm(p, activation));
        // The Cast of another float type is in between already.
        if linear.bias.is_some() || linear.dtype != DataType::Float || !stops {
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
}

/// A scalar zero point of the type that `signed` says.
pub(super) fn zero_point_tensor(name: &str, zero_point: i32, signed: bool) -> TensorProto {
    // The zero point is within the integer range of its type by construction; saturate all the same.
    if signed {
        tensor::from_i8(name, &[], &[zero_point.clamp(-128, 127) as i8])
    } else {
        tensor::from_u8(name, &[], &[zero_point.clamp(0, 255) as u8])
    }
}

/// The real numbers at qmin and qmax if the integers between them are fewer than the 8-bit type holds.
pub(super) fn narrow_range(params: &QuantParams, signed: bool) -> Option<(f32, f32)> {
    let full = if signed { (-128, 127) } else { (0, 255) };
    let real = |q: i32| (q - params.zero_point) as f32 * params.scale;
    ((params.qmin, params.qmax) != full).then(|| (real(params.qmin), real(params.qmax)))
}
