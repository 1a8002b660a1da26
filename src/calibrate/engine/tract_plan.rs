//! A plan of tract: checks a batch, runs it, and says what went wrong in words.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use ndarray::{ArrayD, Dimension, IxDyn};
use tract_onnx::tract_hir::internal::*;

use crate::calibrate::data::array::Values;
use crate::calibrate::data::input::Batch;
use crate::calibrate::engine::copy::IndexLimit;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Plan, TapSink, input_of, run_failed};
use crate::calibrate::engine::tap::TapContext;
use crate::calibrate::engine::tract_tensor::values_tensor;
use crate::graph::axes::Axes;

/// A model made ready by tract.
pub(super) struct TractPlan {
    pub plan: Arc<TypedSimplePlan>,
    /// Input names in tract's order, with their shapes.
    pub inputs: Vec<(String, Vec<usize>)>,
    /// How many values are tapped.
    pub taps: usize,
    /// Outputs that are float, integer or boolean: position after the taps, name.
    pub outputs: Vec<(usize, String)>,
    /// Those of them that are not float.
    pub integers: Vec<String>,
    /// Outputs of other types.
    pub skipped: Vec<String>,
    /// Inputs that pick rows of a table.
    pub index_limits: Vec<IndexLimit>,
    /// Where the axes of its values come from.
    pub axes: Arc<Axes>,
}

impl Plan for TractPlan {
    fn run(
        &self,
        batch: &Batch,
        taps: Option<Arc<dyn TapSink>>,
    ) -> Result<BTreeMap<String, ArrayD<f32>>, EngineError> {
        let mut inputs = tvec![];
        for (name, expected) in &self.inputs {
            let values = input_of(batch, name, expected)?.values()?;
            self.check_indices(name, &values, batch)?;
            inputs.push(values_tensor(values).into_tvalue());
        }
        let fail = |reason| run_failed(batch, reason);
        let error = Arc::new(Mutex::new(None));
        let result = catch_unwind(AssertUnwindSafe(|| self.run_tract(inputs, taps, &error)));
        if let Some(error) = error.lock().ok().and_then(|mut e| e.take()) {
            return Err(error);
        }
        match result {
            Ok(Ok(outputs)) => Ok(outputs),
            Ok(Err(error)) => Err(fail(error_text(&error))),
            Err(panic) => Err(fail(panic_text(panic.as_ref()))),
        }
    }

    fn integer_outputs(&self) -> &[String] {
        &self.integers
    }

    fn skipped_outputs(&self) -> &[String] {
        &self.skipped
    }

    fn axes(&self) -> Arc<Axes> {
        self.axes.clone()
    }
}

impl TractPlan {
    fn run_tract(
        &self,
        inputs: TVec<TValue>,
        taps: Option<Arc<dyn TapSink>>,
        error: &Arc<Mutex<Option<EngineError>>>,
    ) -> TractResult<BTreeMap<String, ArrayD<f32>>> {
        let mut state = self.plan.spawn()?;
        ensure!(taps.is_some() || self.taps == 0, "taps without a sink");
        if let Some(sink) = taps {
            state.turn_state.shared.insert(TapContext {
                sink,
                error: error.clone(),
            });
        }
        let values = state.run(inputs)?;
        self.outputs
            .iter()
            .map(|(at, name)| {
                let value = values[*at].cast_to::<f32>()?;
                let view = value.to_plain_array_view::<f32>()?;
                let data: Vec<f32> = view.iter().copied().collect();
                let array = ArrayD::from_shape_vec(IxDyn(view.shape()), data)?;
                Ok((name.clone(), array))
            })
            .collect()
    }

    /// tract panics on a table index out of range; this says which input holds it.
    fn check_indices(&self, name: &str, values: &Values, batch: &Batch) -> Result<(), EngineError> {
        for limit in self.index_limits.iter().filter(|l| l.input == name) {
            let valid = |v: i64| (-limit.rows..limit.rows).contains(&v);
            // Row and value of the first index out of range.
            let bad = match values {
                Values::I64(a) => a
                    .indexed_iter()
                    .find(|(_, v)| !valid(**v))
                    .map(|(index, v)| (index.slice().first().copied(), *v)),
                Values::I32(a) => a
                    .indexed_iter()
                    .find(|(_, v)| !valid(i64::from(**v)))
                    .map(|(index, v)| (index.slice().first().copied(), i64::from(*v))),
                _ => None,
            };
            if let Some((at, value)) = bad {
                let row = at.and_then(|at| batch.rows.get(at));
                return Err(EngineError::IndexRange {
                    input: limit.input.clone(),
                    value,
                    row: row.copied().unwrap_or(0),
                    table: limit.table.clone(),
                    node: limit.node.clone(),
                    rows: limit.rows,
                });
            }
        }
        Ok(())
    }
}

/// The chain of an error on one line, without repetitions.
pub(super) fn error_text(error: &TractError) -> String {
    let mut seen = BTreeSet::new();
    let parts: Vec<String> = error
        .chain()
        .map(|cause| cause.to_string())
        .filter(|text| seen.insert(text.clone()))
        .collect();
    parts.join(": ")
}

/// What a caught panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("it panicked: {}", text.unwrap_or("without a message"))
}
