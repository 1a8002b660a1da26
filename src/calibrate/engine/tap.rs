//! The tap: a tract operator that shows its input to the batch's [`TapSink`] and yields a scalar.
//!
//! It is wired to a value before any optimization and its scalar is a model output, so the value it reads survives
//! every fusion. What it reports to, [`TapContext`], is installed per run in tract's turn state.

use std::sync::{Arc, Mutex};

use tract_onnx::tract_hir::infer::*;
use tract_onnx::tract_hir::internal::*;

use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::TapSink;

/// Installed for the time of one run.
pub(super) struct TapContext {
    pub sink: Arc<dyn TapSink>,
    /// The sink's error, which tract's own error type cannot carry.
    pub error: Arc<Mutex<Option<EngineError>>>,
}

/// Shows value number `index` to the sink.
#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub(super) struct Tap {
    pub index: usize,
}

impl Op for Tap {
    fn name(&self) -> StaticName {
        "Tap".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Tap {
    // Never folded into a constant, even if the value it reads is one.
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let context = ctx
            .shared
            .and_then(|shared| shared.get::<TapContext>())
            .context("no tap context")?;
        let value = inputs[0].to_plain_array_view::<f32>()?;
        if let Err(error) = context.sink.take(self.index, value) {
            let text = error.to_string();
            if let Ok(mut first) = context.error.lock() {
                first.get_or_insert(error);
            }
            bail!(text);
        }
        Ok(tvec![tensor0(0f32).into_tvalue()])
    }
}

impl InferenceRulesOp for Tap {
    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].rank, 0)?;
        Ok(())
    }

    as_op!();
    to_typed!();
}

impl TypedOp for Tap {
    as_op!();

    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![f32::scalar_fact()])
    }
}
