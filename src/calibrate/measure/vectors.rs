//! What is known of the vectors of a value besides their numbers: which half they are of, and how large they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::ArrayViewD;

use crate::calibrate::data::input::Batch;
use crate::calibrate::data::tokens::TokenContext;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, TapSink, Wanted};
use crate::calibrate::measure::compare::position;
use crate::calibrate::measure::parallel::{groups, in_parallel};
use crate::calibrate::measure::sizes::sizes;
use crate::onnx::Model;

/// The vectors of one value in one batch, in row-major order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vectors {
    /// False for padding.
    pub real: Vec<bool>,
    /// `Σ_c (x_c − mean(x))²`.
    pub sizes: Vec<f32>,
}

/// By the name of the value.
pub type VectorsOf = BTreeMap<String, Vectors>;

/// The vectors of float `values`, per batch.
///
/// # Errors
/// What [`Engine::plan`] and [`Plan::run`](crate::calibrate::Plan::run) refuse.
pub fn vectors(
    engine: &dyn Engine,
    model: &Model,
    batches: &[Batch],
    values: &[String],
) -> Result<Vec<VectorsOf>, EngineError> {
    let wanted = Wanted {
        taps: values,
        outputs: false,
    };
    let mut all = vec![VectorsOf::new(); batches.len()];
    for group in groups(batches) {
        let plan = engine.plan(model, group[0], &wanted)?;
        let run = |_, batch: &Batch| {
            let sink = Arc::new(VectorSink {
                context: TokenContext::new(batch, plan.axes()),
                names: values.to_vec(),
                found: Mutex::new(VectorsOf::new()),
            });
            plan.run(batch, Some(sink.clone()))?;
            let mut found = sink.found.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(std::mem::take(&mut *found))
        };
        let found = in_parallel(&group, run)?;
        for (batch, found) in group.into_iter().zip(found) {
            all[position(batches, batch)] = found;
        }
    }
    Ok(all)
}

struct VectorSink {
    context: TokenContext,
    names: Vec<String>,
    found: Mutex<VectorsOf>,
}

impl TapSink for VectorSink {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        let name = &self.names[tap];
        let places = self.context.places(name, value.shape(), false);
        let vectors = Vectors {
            real: places.iter().map(|place| place.keep).collect(),
            sizes: sizes(&value).iter().copied().collect(),
        };
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(name.clone(), vectors);
        Ok(())
    }
}
