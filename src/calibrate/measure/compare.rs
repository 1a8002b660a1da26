//! Runs models and compares their outputs.
//!
//! With `r` the reference's output and `o` the other model's, over all real tokens of all batches:
//!
//! ```text
//! SQNR   = 10 log₁₀( Σ r² / Σ (r − o)² )  dB
//! cosine = Σ r·o / √( Σ r² · Σ o² )
//! error  = max |r − o| / (max r − min r)
//! ```
//!
//! Elements that both fill in with a constant are left out; of integer and boolean outputs it is counted how many agree.
//!
//! Outputs of the reference are kept only up to a budget: batches are run through the reference until the budget is
//! used, then through the other models, then the next batches follow. One plan is alive at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::ArrayD;

use crate::calibrate::data::input::Batch;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, Plan, Wanted};
use crate::calibrate::measure::fills::fills;
use crate::calibrate::measure::parallel::{groups, in_parallel, with_threads};
use crate::calibrate::measure::sums::{Known, OutputComparison, RowSums, compare_batch, finish};
use crate::onnx::Model;
use crate::progress::Progress;

/// Bytes of reference outputs that [`compare`] keeps at a time.
pub(super) const OUTPUT_BUDGET: usize = 64 << 20;

/// Bytes of reference outputs that a [`Reference`] remembers from one comparison to the next: less than that and what it runs again,
/// plan included, costs as much as the model that it is compared with.
const REMEMBERED: usize = OUTPUT_BUDGET;

/// The float outputs of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    /// Output name → array, one map per batch, in the order of the batches.
    pub batches: Vec<BTreeMap<String, ArrayD<f32>>>,
    /// Graph outputs that are not float.
    pub skipped: Vec<String>,
}

/// Runs `batches` and returns every float output of the graph.
///
/// # Errors
/// What [`Engine::plan`] and [`Plan::run`] refuse.
pub fn outputs(
    engine: &dyn Engine,
    model: &Model,
    batches: &[Batch],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Outputs, EngineError> {
    let keep = |_: &Batch, outputs| outputs;
    let (batches, skipped) = reduce_outputs(engine, model, batches, (threads, progress), &keep)?;
    Ok(Outputs { batches, skipped })
}

/// What is made of the float outputs of a batch, by name.
pub type Reduce<'a, T> = dyn Fn(&Batch, BTreeMap<String, ArrayD<f32>>) -> T + Sync + 'a;

/// Runs `batches`, and makes of the float outputs of each what `reduce` says: all need not be in memory at a time. Gives that in
/// the order of the batches, and the graph outputs that are not float.
///
/// # Errors
/// Those of [`outputs`].
pub fn reduce_outputs<T: Send>(
    engine: &dyn Engine,
    model: &Model,
    batches: &[Batch],
    (threads, progress): (usize, &dyn Progress),
    reduce: &Reduce<'_, T>,
) -> Result<(Vec<T>, Vec<String>), EngineError> {
    progress.begin("outputs", row_count(batches));
    let result = with_threads(threads, || {
        let mut by_rows = Vec::with_capacity(batches.len());
        let mut skipped = Vec::new();
        for group in groups(batches) {
            let plan = output_plan(engine, model, group[0])?;
            let integers = plan.integer_outputs().to_vec();
            skipped = plan
                .skipped_outputs()
                .iter()
                .chain(&integers)
                .cloned()
                .collect();
            let results = in_parallel(&group, |_, batch| {
                let mut outputs = plan.run(batch, None)?;
                outputs.retain(|name, _| !integers.contains(name));
                progress.advance(batch.rows.len() as u64);
                Ok(reduce(batch, outputs))
            })?;
            by_rows.extend(group.iter().map(|b| position(batches, b)).zip(results));
        }
        by_rows.sort_by_key(|(at, _)| *at);
        let reduced = by_rows.into_iter().map(|(_, reduced)| reduced).collect();
        Ok((reduced, skipped))
    });
    progress.end();
    result?
}

/// The model that others are compared with. Its outputs are remembered, as far as they are small: it runs once for
/// several comparisons on the same batches.
pub struct Reference<'a> {
    model: &'a Model,
    batches: Arc<[Batch]>,
    /// Per batch.
    outputs: Vec<Option<Found>>,
    bytes: usize,
    /// Constants that it fills in, by output.
    fills: BTreeMap<String, Vec<f32>>,
}

/// The outputs of one batch, by name.
pub(super) type Found = BTreeMap<String, ArrayD<f32>>;

impl<'a> Reference<'a> {
    /// Runs nothing yet.
    pub fn new(model: &'a Model, batches: &[Batch]) -> Reference<'a> {
        let outputs = model.graph().output.iter();
        Reference {
            model,
            batches: batches.into(),
            outputs: vec![None; batches.len()],
            bytes: 0,
            fills: fills(model, batches, outputs.map(|output| output.name())),
        }
    }

    /// Batches that it is to be run on besides.
    pub fn extend(&mut self, batches: &[Batch]) {
        self.batches = self.batches.iter().chain(batches).cloned().collect();
        self.outputs.resize(self.batches.len(), None);
    }

    /// Outputs of the first of `batches` that are remembered, taken out; nothing if the first is not.
    fn recall(&mut self, batches: &[&Batch]) -> Vec<Found> {
        let at = batches.iter().map(|b| position(&self.batches, b));
        let known: Vec<Found> = at.map_while(|at| self.outputs[at].take()).collect();
        self.bytes -= known.iter().map(bytes).sum::<usize>();
        known
    }

    fn remember(&mut self, batches: &[&Batch], outputs: Vec<Found>) {
        for (batch, outputs) in batches.iter().zip(outputs) {
            let bytes = bytes(&outputs);
            if self.bytes + bytes <= REMEMBERED {
                self.bytes += bytes;
                self.outputs[position(&self.batches, batch)] = Some(outputs);
            }
        }
    }
}

/// Bytes of the outputs of one batch.
pub(super) fn bytes(outputs: &Found) -> usize {
    let sizes = outputs.values().map(|a| a.len() * size_of::<f32>());
    sizes.sum()
}

/// Compares the outputs of each model in `others` with those of `reference`, over the real tokens of `batches`.
/// Returns one list per model, in the order of the reference's graph outputs.
///
/// # Errors
/// What [`Engine::plan`] and [`Plan::run`] refuse; an output that is missing, of another shape, or not finite where the
/// reference is.
pub fn compare(
    engine: &dyn Engine,
    reference: &Model,
    others: &[&Model],
    batches: &[Batch],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<OutputComparison>>, EngineError> {
    let mut reference = Reference::new(reference, batches);
    compare_with(engine, &mut reference, others, threads, progress)
}

/// [`compare`] with a reference that may have run already.
///
/// # Errors
/// Those of [`compare`].
pub fn compare_with(
    engine: &dyn Engine,
    reference: &mut Reference<'_>,
    others: &[&Model],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<OutputComparison>>, EngineError> {
    let limits = (OUTPUT_BUDGET, usize::MAX);
    compare_within(limits, engine, reference, others, threads, progress)
}

/// [`compare_with`] on the first batch of every shape alone: for models that differ in every row if they differ at all.
/// The reference runs on as many rows as it can remember, so that its plan is made once.
///
/// # Errors
/// Those of [`compare`].
pub fn compare_few(
    engine: &dyn Engine,
    reference: &mut Reference<'_>,
    others: &[&Model],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<OutputComparison>>, EngineError> {
    let limits = (REMEMBERED, 1);
    compare_within(limits, engine, reference, others, threads, progress)
}

/// The sums of every other model, by its number, and output.
type ModelSums = BTreeMap<(usize, String), RowSums>;

/// [`compare_with`] with at most `budget` bytes of reference outputs beyond those of one batch per thread, on the first
/// `most` batches of every shape.
pub(in crate::calibrate) fn compare_within(
    (budget, most): (usize, usize),
    engine: &dyn Engine,
    reference: &mut Reference<'_>,
    others: &[&Model],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Vec<OutputComparison>>, EngineError> {
    let batches = reference.batches.clone();
    let compared = groups(&batches)
        .into_iter()
        .flat_map(|g| g.into_iter().take(most));
    let compared: u64 = compared.map(|b| b.rows.len() as u64).sum();
    let steps = row_count(&batches) + compared * others.len() as u64;
    progress.begin("comparison", steps);
    // Sums per batch, added up in the order of the batches: the same for any number of threads.
    let mut sums: Vec<ModelSums> = vec![BTreeMap::new(); batches.len()];
    let compare_group = |group: Vec<&Batch>| -> Result<(), EngineError> {
        let mut rest = group.as_slice();
        let mut left = most;
        while !rest.is_empty() && left > 0 {
            let kept = run_reference(engine, reference, rest, budget, progress)?;
            let (ran, later) = rest.split_at(kept.len());
            rest = later;
            let now = &ran[..ran.len().min(left)];
            left -= now.len();
            for (model, other) in others.iter().enumerate() {
                let found = run_other(engine, (other, &reference.fills), now, &kept, progress)?;
                for (batch, found) in now.iter().zip(found) {
                    let sums = &mut sums[position(&batches, batch)];
                    sums.extend(found.into_iter().map(|(name, s)| ((model, name), s)));
                }
            }
            reference.remember(ran, kept);
        }
        Ok(())
    };
    let result = with_threads(threads, || {
        groups(&batches).into_iter().try_for_each(compare_group)
    });
    progress.end();
    result??;
    let mut total = ModelSums::new();
    for (key, rows) in sums.into_iter().flatten() {
        let total = total.entry(key).or_default();
        for (row, sums) in rows {
            total.entry(row).or_default().add(&sums);
        }
    }
    Ok((0..others.len())
        .map(|model| {
            let outputs = reference.model.graph().output.iter();
            outputs
                .filter_map(|output| {
                    let key = (model, output.name().to_owned());
                    total.get(&key).map(|rows| finish(rows, output.name()))
                })
                .collect()
        })
        .collect())
}

/// Outputs of the first of `batches`, remembered or run: as many as the budget holds and at least one per thread.
fn run_reference(
    engine: &dyn Engine,
    reference: &mut Reference<'_>,
    batches: &[&Batch],
    budget: usize,
    progress: &dyn Progress,
) -> Result<Vec<Found>, EngineError> {
    let known = reference.recall(batches);
    if !known.is_empty() {
        let rows = batches[..known.len()].iter().map(|b| b.rows.len() as u64);
        progress.advance(rows.sum());
        return Ok(known);
    }
    let plan = output_plan(engine, reference.model, batches[0])?;
    let mut kept = Vec::new();
    let mut total = 0;
    for wave in batches.chunks(rayon::current_num_threads()) {
        kept.extend(in_parallel(wave, |_, batch| {
            let outputs = plan.run(batch, None)?;
            progress.advance(batch.rows.len() as u64);
            Ok(outputs)
        })?);
        let added = &kept[kept.len() - wave.len()..];
        let added: usize = added.iter().map(bytes).sum();
        total += added;
        if total + added > budget {
            break;
        }
    }
    Ok(kept)
}

/// Runs a model on `batches`, and compares it with the outputs `kept` of the reference. Per batch its sums by output.
fn run_other(
    engine: &dyn Engine,
    (model, fills): (&Model, &BTreeMap<String, Vec<f32>>),
    batches: &[&Batch],
    kept: &[Found],
    progress: &dyn Progress,
) -> Result<Vec<BTreeMap<String, RowSums>>, EngineError> {
    let plan = output_plan(engine, model, batches[0])?;
    in_parallel(batches, |i, batch| {
        let found = plan.run(batch, None)?;
        progress.advance(batch.rows.len() as u64);
        let known = Known {
            axes: plan.axes(),
            fills,
            integers: plan.integer_outputs(),
        };
        compare_batch(batch, &known, &kept[i], &found)
    })
}

pub(super) fn output_plan(
    engine: &dyn Engine,
    model: &Model,
    like: &Batch,
) -> Result<Arc<dyn Plan>, EngineError> {
    let wanted = Wanted {
        taps: &[],
        outputs: true,
    };
    engine.plan(model, like, &wanted).map(Arc::from)
}

fn row_count(batches: &[Batch]) -> u64 {
    batches.iter().map(|batch| batch.rows.len() as u64).sum()
}

/// The index of `batch`, a member of `batches`.
pub(super) fn position(batches: &[Batch], batch: &Batch) -> usize {
    batches
        .iter()
        .position(|b| std::ptr::eq(b, batch))
        .unwrap_or(0)
}
