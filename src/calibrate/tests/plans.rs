//! What is kept from one plan to the next.

use std::collections::BTreeMap;

use ndarray::array;

use super::engine::{embedding, ids_batch, shifted};
use super::*;
use crate::calibrate::compare::Reference;
use crate::calibrate::{
    Engine, EngineError, Plan, Shapes, TractEngine, Wanted, compare_with, outputs,
};
use crate::onnx::tensor;
use crate::progress::NoProgress;

/// tract, with a count of the plans per model (told apart by their first initializer).
#[derive(Default)]
struct Counting(std::sync::Mutex<BTreeMap<Vec<u8>, usize>>);

impl Engine for Counting {
    fn plan(
        &self,
        model: &Model,
        like: &Batch,
        wanted: &Wanted<'_>,
    ) -> Result<Box<dyn Plan>, EngineError> {
        let key = model.graph().initializer[0].raw_data().to_vec();
        *self.0.lock().unwrap().entry(key).or_default() += 1;
        TractEngine.plan(model, like, wanted)
    }

    fn shapes(
        &self,
        model: &Model,
        like: &Batch,
        values: &[String],
    ) -> Result<Option<Shapes>, EngineError> {
        TractEngine.shapes(model, like, values)
    }

    fn sharing(&self) -> Box<dyn Engine> {
        Box::new(Counting::default())
    }
}

#[test]
fn a_reference_runs_once_for_several_comparisons() {
    let batches: Vec<Batch> = (0..3)
        .map(|i| f32_batch("x", wave(&[2, 3, 2]) + i as f32 * 0.1, 2 * i as u64))
        .collect();
    let (same, other) = (shifted(0.), shifted(0.3));
    let engine = Counting::default();
    let mut reference = Reference::new(&same, &batches);
    let mut compared = || compare_with(&engine, &mut reference, &[&other], 2, &NoProgress).unwrap();
    let first = compared();
    assert_eq!(compared(), first);
    let plans: Vec<usize> = engine.0.lock().unwrap().values().copied().collect();
    assert_eq!(plans, [1, 2]);
}

#[test]
fn plans_that_share_tables_run_as_if_they_did_not() {
    let shared = TractEngine.sharing();
    let other = {
        let mut other = embedding();
        let table = [10f32, 11., 12., 13., 14., 15.];
        other.proto.graph.as_mut().unwrap().initializer[0] =
            tensor::from_f32("table", &[3, 2], &table, DataType::Float);
        other
    };
    for (model, first) in [(embedding(), 0.), (other, 10.), (embedding(), 0.)] {
        for ids in [array![[0i64, 2]], array![[0, 2, 1]]] {
            let found = outputs(shared.as_ref(), &model, &[ids_batch(ids)], 1, &NoProgress);
            let y = &found.unwrap().batches[0]["y"];
            assert_eq!(
                y.iter().take(4).copied().collect::<Vec<f32>>(),
                [0., 1., 4., 5.].map(|v: f32| v + first)
            );
        }
    }
}
