//! Rounding of activations by blocks, as ONNX Runtime's MatMulNBits does at accuracy_level 4.
//!
//! ```text
//! y = round(x / s) · s        s = max |x| / 127 over a block of the last axis, ties to even, the last block cut short
//! ```
//!
//! It is an operator of the calibration copy alone: written with standard ones it would take six, and a Pad for the last block.

use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::infer::*;
use tract_onnx::tract_hir::internal::*;

/// The name of the operator, which no file has.
pub(super) const ROUND_BLOCKS: &str = "onnx-osplus.RoundBlocks";

/// Lets the parser make the operator.
pub(super) fn register(onnx: &mut tract_onnx::Onnx) {
    onnx.op_register
        .insert(ROUND_BLOCKS, |_, node: &NodeProto| {
            let block: usize = node.get_attr("block_size")?;
            ensure!(block > 0, "block_size is 0");
            Ok((Box::new(RoundBlocks { block }), vec![]))
        });
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
struct RoundBlocks {
    /// Elements of the last axis that share a scale.
    block: usize,
}

/// Rounds one block to 255 levels.
fn round(block: &mut [f32]) {
    let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = largest / 127.0;
    // The reciprocal is multiplied, as in MLAS: a quotient would round other numbers up.
    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
    for v in block {
        *v = (*v * inverse).round_ties_even() * scale;
    }
}

impl Op for RoundBlocks {
    fn name(&self) -> StaticName {
        "RoundBlocks".into()
    }

    op_as_typed_op!();
}

impl EvalOp for RoundBlocks {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut x = args_1!(inputs).into_tensor();
        let row = x.shape().last().copied().unwrap_or(1).max(1);
        let mut plain = x.try_as_plain_ram_mut()?;
        let all = plain.as_slice_mut::<f32>()?;
        for row in all.chunks_mut(row) {
            row.chunks_mut(self.block).for_each(round);
        }
        Ok(tvec![x.into_tvalue()])
    }
}

impl InferenceRulesOp for RoundBlocks {
    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&inputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].shape, &inputs[0].shape)
    }

    as_op!();
    to_typed!();
}

impl TypedOp for RoundBlocks {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![f32::datum_type().fact(inputs[0].shape.clone())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_rounded_by_its_own_largest_and_zeros_stay() {
        let op = RoundBlocks { block: 4 };
        let x = [
            127f32, 1.4, -2.6, 0.5, 12.7, -0.12, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        ];
        let input = Tensor::from_shape(&[2, 6], &x).unwrap().into_tvalue();
        let y = op.eval(&EvalContext::out_of_plan(), tvec![input]).unwrap();
        let y: Vec<f32> = y[0]
            .to_plain_array_view::<f32>()
            .unwrap()
            .iter()
            .copied()
            .collect();
        // Rows of 6: blocks of 4 and 2, and the second row begins with 0, 0, 0, 0.
        let expected = [
            127.0, 1.0, -3.0, 0.0, 12.7, -0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        ];
        assert!(
            y.iter()
                .zip(expected)
                .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-5),
            "{y:?}"
        );
    }
}
