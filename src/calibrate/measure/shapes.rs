//! The shapes of values inside the model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ndarray::ArrayViewD;

use crate::calibrate::data::input::Batch;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, TapSink, Wanted};
use crate::onnx::Model;

/// The shapes of `values` (names of values of the main graph) when `batch` is run; those that are not float, or in a
/// branch that does not run, are left out.
///
/// # Errors
/// What [`Engine::plan`] and [`crate::calibrate::Plan::run`] refuse.
pub fn shapes(
    engine: &dyn Engine,
    model: &Model,
    batch: &Batch,
    values: &[String],
) -> Result<BTreeMap<String, Vec<usize>>, EngineError> {
    let mut values = values.to_vec();
    loop {
        if values.is_empty() {
            return Ok(BTreeMap::new());
        }
        match engine.shapes(model, batch, &values) {
            Err(EngineError::NotFloat { name, .. }) if values.contains(&name) => {
                values.retain(|v| *v != name);
            }
            Ok(None) => break,
            shapes => return Ok(shapes?.unwrap_or_default()),
        }
    }
    let wanted = Wanted {
        taps: &values,
        outputs: false,
    };
    let plan = engine.plan(model, batch, &wanted)?;
    let sink = Arc::new(ShapeSink {
        shapes: Mutex::new(vec![None; values.len()]),
    });
    plan.run(batch, Some(sink.clone()))?;
    let shapes = std::mem::take(&mut *sink.shapes.lock().unwrap_or_else(|p| p.into_inner()));
    let seen = |(value, shape): (String, Option<_>)| Some((value, shape?));
    Ok(values.into_iter().zip(shapes).filter_map(seen).collect())
}

struct ShapeSink {
    shapes: Mutex<Vec<Option<Vec<usize>>>>,
}

impl TapSink for ShapeSink {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        let mut shapes = self
            .shapes
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        shapes[tap] = Some(value.shape().to_vec());
        Ok(())
    }
}
