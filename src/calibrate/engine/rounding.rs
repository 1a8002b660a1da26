//! QuantizeLinear with one scale, by whole runs of elements.
//!
//! tract rounds element by element with a branch on the exponent, which no compiler vectorizes: in a quantized model that
//! takes as long as all its softmaxes and activation functions. [`Quantize`] gives the same integers.

use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::quant::{QuantizeLinearI8, QuantizeLinearU8};
use tract_onnx::tract_hir::internal::*;

/// Adding it to a number of magnitude up to 2²² leaves no fraction bits: the sum is rounded, half to even.
const ROUNDING: f32 = 12_582_912.0;

/// `saturate(round_half_even(x · factor) + zero_point)` of a float32 `x`.
#[derive(Debug, Clone, PartialEq)]
struct Quantize {
    /// One over the scale.
    factor: f32,
    zero_point: Zero,
}

/// A zero point and the type it is in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Zero {
    U8(u8),
    I8(i8),
}

impl Eq for Quantize {}

/// Puts [`Quantize`] in the place of tract's operators in an optimized model.
pub(super) fn replace_quantize(model: &mut TypedModel) -> TractResult<()> {
    for node in 0..model.nodes().len() {
        let Some(op) = Quantize::instead_of(model, node)? else {
            continue;
        };
        model.node_mut(node).op = Box::new(op);
    }
    Ok(())
}

impl Quantize {
    /// The operator that computes what this node does, if it is one of ours.
    fn instead_of(model: &TypedModel, node: usize) -> TractResult<Option<Quantize>> {
        let node = model.node(node);
        let Some(ElementWiseOp(op, _)) = node.op_as::<ElementWiseOp>() else {
            return Ok(None);
        };
        let unsigned = op.downcast_ref::<QuantizeLinearU8>();
        let signed = op.downcast_ref::<QuantizeLinearI8>();
        let (factor, zero_point) = match (unsigned, signed) {
            (Some(op), _) => (op.scale, Zero::U8(op.zero_point)),
            (_, Some(op)) => (op.scale, Zero::I8(op.zero_point)),
            _ => return Ok(None),
        };
        let floats = model.outlet_fact(node.inputs[0])?.datum_type == f32::datum_type();
        Ok(floats.then_some(Quantize { factor, zero_point }))
    }
}

impl Op for Quantize {
    fn name(&self) -> StaticName {
        "Quantize".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Quantize {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let shape = x.shape();
        let x = x.to_plain_array_view::<f32>()?;
        let x = x.as_standard_layout();
        let x = x
            .as_slice()
            .context("tensors of the engine are contiguous")?;
        let f = self.factor;
        let out = match self.zero_point {
            Zero::U8(zero) => {
                Tensor::from_shape(shape, &quantized(x, f, zero, (0.0, 255.0), |v| v as u8))?
            }
            Zero::I8(zero) => {
                Tensor::from_shape(shape, &quantized(x, f, zero, (-128.0, 127.0), |v| v as i8))?
            }
        };
        Ok(tvec![out.into_tvalue()])
    }
}

impl TypedOp for Quantize {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let datum = match self.zero_point {
            Zero::U8(_) => u8::datum_type(),
            Zero::I8(_) => i8::datum_type(),
        };
        Ok(tvec![datum.fact(inputs[0].shape.clone())])
    }
}

/// Integers from `low` to `high` of `x`. What is no number becomes the zero point.
fn quantized<T>(
    x: &[f32],
    factor: f32,
    zero_point: impl Into<f32>,
    (low, high): (f32, f32),
    cast: impl Fn(i32) -> T,
) -> Vec<T> {
    let zero_point = zero_point.into();
    // Limits and zero point are whole numbers, so that saturating first gives the same.
    let (low, high) = (low - zero_point, high - zero_point);
    let one = |&x: &f32| {
        let v = x * factor;
        let v = if v.is_nan() { 0.0 } else { v };
        let v = if v < low { low } else { v };
        let v = if v > high { high } else { v };
        let sum = (v + ROUNDING) + zero_point;
        // Between 2²³ and 2²⁴ a float's last bits are the integer itself.
        cast((sum.to_bits() & 0x7f_ffff) as i32 - 0x40_0000)
    };
    x.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tract_onnx::tract_core::ops::quant::{quantize_linear_f32_i8, quantize_linear_f32_u8};

    proptest! {
        /// tract's own integers, at halves, beyond the range and for what is no number.
        #[test]
        fn same_as_the_engine(
            x in prop::collection::vec(prop_oneof![-300f32..300.0, Just(f32::NAN), Just(-0.0), Just(1e6), Just(-1e6)], 0..40),
            halves in prop::collection::vec(-600i32..600, 0..40),
            factor in prop_oneof![Just(1.0f32), 0.01f32..50.0],
            zero in any::<u8>(),
        ) {
            let x: Vec<f32> = x.into_iter().chain(halves.into_iter().map(|h| h as f32 / 2.0)).collect();
            let signed = zero as i8;
            let u8s: Vec<u8> = x.iter().map(|&x| quantize_linear_f32_u8(x, factor, zero.into())).collect();
            let i8s: Vec<i8> = x.iter().map(|&x| quantize_linear_f32_i8(x, factor, signed.into())).collect();
            let run = |zero_point| {
                let op = Quantize { factor, zero_point };
                let input = Tensor::from_shape(&[x.len()], &x).unwrap().into_tvalue();
                op.eval(&EvalContext::out_of_plan(), tvec![input]).unwrap().remove(0)
            };
            let (unsigned, signed) = (run(Zero::U8(zero)), run(Zero::I8(signed)));
            let unsigned = unsigned.to_plain_array_view::<u8>().unwrap().iter().copied().collect::<Vec<_>>();
            let signed = signed.to_plain_array_view::<i8>().unwrap().iter().copied().collect::<Vec<_>>();
            prop_assert_eq!((unsigned, signed), (u8s, i8s));
        }
    }
}
