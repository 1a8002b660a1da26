//! Values inside the model, whole: what the loss at the response of a block needs, for a few sequences.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{ArrayD, ArrayViewD};

use crate::calibrate::engine::{Engine, EngineError, TapSink, Wanted};
use crate::calibrate::input::Batch;
use crate::calibrate::tokens::TokenContext;
use crate::onnx::Model;

/// One value of one run, with the place of each of its vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// `[…, C]`.
    pub value: ArrayD<f32>,
    /// Per vector in row-major order: the number of its row over all data; `None` for padding and for what belongs to no
    /// single row.
    pub rows: Vec<Option<u64>>,
}

/// Runs `batch` and returns `values` (names of float values of the main graph), each under its name.
///
/// # Errors
/// What [`Engine::plan`] and [`crate::calibrate::Plan::run`] refuse.
pub fn capture(
    engine: &dyn Engine,
    model: &Model,
    batch: &Batch,
    values: &[String],
) -> Result<BTreeMap<String, Captured>, EngineError> {
    let wanted = Wanted {
        taps: values,
        outputs: false,
    };
    let plan = engine.plan(model, batch, &wanted)?;
    let sink = Arc::new(Keep {
        context: TokenContext::new(batch),
        kept: Mutex::new(vec![None; values.len()]),
    });
    plan.run(batch, Some(sink.clone()))?;
    let mut kept = sink.kept.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = values.iter().cloned().zip(kept.drain(..));
    Ok(kept.filter_map(|(name, c)| Some((name, c?))).collect())
}

struct Keep {
    context: TokenContext,
    kept: Mutex<Vec<Option<Captured>>>,
}

impl TapSink for Keep {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        let places = self.context.places(value.shape());
        let row = |p: &crate::calibrate::tokens::Place| {
            let row = p.row.filter(|_| p.keep);
            row.map(|r| self.context.row(Some(r)))
        };
        let captured = Captured {
            rows: places.iter().map(row).collect(),
            value: value.as_standard_layout().into_owned(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept[tap] = Some(captured);
        Ok(())
    }
}
