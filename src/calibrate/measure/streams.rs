//! Models side by side, each on values of its own: what a part of a model makes of what the parts before it made.
//!
//! ```text
//! float      x₀ ─ part 1 ─ x₁ ─ part 2 ─ x₂ …
//! quantized  x₀ ─ part 1' ─ x₁' ─ part 2' ─ x₂' …      compared with the first at every output
//! ```

use std::collections::BTreeMap;

use ndarray::ArrayD;

use crate::calibrate::data::input::Batch;
use crate::calibrate::data::tokens::TokenContext;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, Plan};
use crate::calibrate::measure::compare::{output_plan, position};
use crate::calibrate::measure::fills::fills;
use crate::calibrate::measure::parallel::{groups, in_parallel, with_threads};
use crate::calibrate::measure::sums::{Known, OutputComparison, RowSums, compare_batch, finish};
use crate::onnx::Model;
use crate::progress::Progress;

/// Bytes of reference outputs that are kept at a time.
const BUDGET: usize = 128 << 20;

/// A model and what it is run on.
#[derive(Clone, Copy)]
pub struct Stream<'a> {
    /// The model.
    pub model: &'a Model,
    /// Batches of the same rows as those of the other streams, in the same order.
    pub batches: &'a [Batch],
}

/// The outputs of one batch, by name.
type Found = BTreeMap<String, ArrayD<f32>>;

/// Takes the outputs of one batch of a stream, by the stream's number: 0 is the first.
pub type Keep<'a> =
    dyn Fn(usize, &Batch, &BTreeMap<String, ArrayD<f32>>) -> std::io::Result<()> + Sync + 'a;

/// Runs all `streams`, hands the outputs of every batch to `keep`, and compares those of every stream but the first with the
/// first one's: a list per stream, in the order of its graph outputs. Elements of padding that are not finite are handed on as 0.
///
/// # Errors
/// Those of [`compare`](crate::calibrate::compare()), and of `keep`.
pub fn run_streams(
    engine: &dyn Engine,
    streams: &[Stream],
    keep: &Keep,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<OutputComparison>>, EngineError> {
    let Some((first, others)) = streams.split_first() else {
        return Ok(Vec::new());
    };
    let rows: usize = first.batches.iter().map(|batch| batch.rows.len()).sum();
    progress.begin("streams", (rows * streams.len()) as u64);
    let outputs = first.model.graph().output.iter();
    let fills = fills(
        first.model,
        first.batches,
        outputs.map(|output| output.name()),
    );
    // Sums per batch, added up in the order of the batches: the same for any number of threads.
    let mut sums: Vec<Vec<BTreeMap<String, RowSums>>> =
        vec![vec![BTreeMap::new(); others.len()]; first.batches.len()];
    let run = |number: usize, stream: &Stream, at: &[usize], kept: Option<&[Found]>| {
        let batches: Vec<&Batch> = at.iter().map(|&i| &stream.batches[i]).collect();
        let plan = output_plan(engine, stream.model, batches[0])?;
        in_parallel(&batches, |i, batch| {
            let mut found = plan.run(batch, None)?;
            let sums = match kept {
                None => BTreeMap::new(),
                Some(kept) => {
                    let known = Known {
                        axes: plan.axes(),
                        fills: &fills,
                        integers: plan.integer_outputs(),
                    };
                    compare_batch(batch, &known, &kept[i], &found)?
                }
            };
            without_padding(&mut found, batch, plan.as_ref());
            keep(number, batch, &found).map_err(|source| EngineError::Store { source })?;
            progress.advance(batch.rows.len() as u64);
            Ok((found, sums))
        })
    };
    let result = with_threads(threads, || {
        for group in groups(first.batches) {
            let at: Vec<usize> = group
                .iter()
                .map(|batch| position(first.batches, batch))
                .collect();
            let mut rest = &at[..];
            while !rest.is_empty() {
                let now = rest.len().min(fitting(first.batches, rest));
                let (now, later) = rest.split_at(now);
                rest = later;
                let kept: Vec<Found> = run(0, first, now, None)?
                    .into_iter()
                    .map(|(f, _)| f)
                    .collect();
                for (number, other) in others.iter().enumerate() {
                    let found = run(number + 1, other, now, Some(&kept))?;
                    for (&batch, (_, found)) in now.iter().zip(found) {
                        sums[batch][number] = found;
                    }
                }
            }
        }
        Ok::<(), EngineError>(())
    });
    progress.end();
    result??;
    Ok((0..others.len())
        .map(|number| total(first.model, &sums, number))
        .collect())
}

/// How many of the batches are run before the other streams follow.
fn fitting(batches: &[Batch], at: &[usize]) -> usize {
    let inputs = batches[at[0]].inputs.values();
    let bytes: usize = inputs
        .map(|input| input.shape().iter().product::<usize>() * size_of::<f32>())
        .sum();
    // Outputs are about as large as inputs; those over a vocabulary are larger.
    (BUDGET / (bytes * 16).max(1)).max(rayon::current_num_threads())
}

fn total(
    model: &Model,
    sums: &[Vec<BTreeMap<String, RowSums>>],
    number: usize,
) -> Vec<OutputComparison> {
    let outputs = model.graph().output.iter();
    let one = |name: &str| {
        let mut total = RowSums::new();
        for (row, sums) in sums
            .iter()
            .filter_map(|batch| batch[number].get(name))
            .flatten()
        {
            total.entry(*row).or_default().add(sums);
        }
        (!total.is_empty()).then(|| finish(&total, name))
    };
    outputs.filter_map(|output| one(output.name())).collect()
}

/// What stands at padding need not be a number: nothing reads it. What is stored must be one.
fn without_padding(found: &mut Found, batch: &Batch, plan: &dyn Plan) {
    if batch.masks.is_empty() || found.values().flatten().all(|v| v.is_finite()) {
        return;
    }
    let context = TokenContext::new(batch, plan.axes());
    for (name, array) in found.iter_mut() {
        let channels = array.shape().last().copied().unwrap_or(1).max(1);
        let places = context.places(name, array.shape(), false);
        let Some(values) = array.as_slice_mut() else {
            continue;
        };
        for (place, vector) in places.iter().zip(values.chunks_exact_mut(channels)) {
            if !place.keep {
                vector
                    .iter_mut()
                    .filter(|v| !v.is_finite())
                    .for_each(|v| *v = 0.0);
            }
        }
    }
}
