//! What every Linear adds to the error of the outputs: each alone in integers, on a few calibration rows, and run from there on.

use super::super::build::{Folded, Refinement, build_only};
use super::super::plan::Plan;
use super::Sensitivity;
use super::held_out::HeldOut;
use super::rows::first_of_setting;
use crate::calibrate::{
    Batch, Behind, OutputComparison, Reference, RowError, compare_with, judged,
};
use crate::error::Error;
use crate::onnx::Model;
use crate::progress::NoProgress;
use crate::recognise::Linear;

/// Models that are made before they are run: they share the weights that are not quantized.
const AT_ONCE: usize = 4;

/// Calibration batches on which single Linears are measured; held-out rows are for what is written.
const BATCHES: usize = 2;

impl HeldOut<'_> {
    pub(super) fn sensitivities(&mut self, plan: &Plan) -> Result<Vec<Sensitivity>, Error> {
        let mut all = self.candidates(plan);
        // A Linear alone stays in the type of the file in this model, and so do all others.
        let folded = Folded::new(self.source, plan, &Default::default())?.model;
        let refinement = Refinement::of(self.source, &folded, plan);
        let batches = few(self.calibration);
        let base = folded.clone().unflatten();
        let nodes: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
        let engine = self.job.engine;
        let mut behind = Behind::new(engine, &base, &batches, &nodes)?;
        let mut reference = Reference::new(self.job.original, &batches);
        let (progress, threads) = (self.job.progress, self.job.options.threads);
        progress.begin("sensitivity", all.len() as u64);
        let mut measure = |some: &mut [Sensitivity]| -> Result<(), Error> {
            let only = |s: &Sensitivity| {
                let only = build_only(self.source, &folded, &refinement, plan, s.linear);
                only.map(|model| model.unflatten())
            };
            let models: Vec<Model> = some.iter().map(only).collect::<Result<_, _>>()?;
            let models: Vec<&Model> = models.iter().collect();
            behind.advance(some.len());
            let compared = compare_with(&behind, &mut reference, &models, threads, &NoProgress)?;
            for (candidate, outputs) in some.iter_mut().zip(compared) {
                candidate.error = judged(outputs).iter().map(relative_error).sum();
            }
            progress.advance(some.len() as u64);
            Ok(())
        };
        let measured = all.chunks_mut(AT_ONCE).try_for_each(&mut measure);
        progress.end();
        measured?;
        self.job.clock.finish("sensitivity");
        Ok(all)
    }

    /// The Linears that the plan quantizes, with their work.
    fn candidates(&self, plan: &Plan) -> Vec<Sensitivity> {
        let prepared = &self.source.calibrated.prepared;
        let mut all = Vec::new();
        for (_, row) in prepared.sites.iter() {
            let Some(stats) = &row.statistics else {
                continue;
            };
            let tokens = stats.folds.iter().map(|f| f.tokens).sum::<u64>() as f64;
            let linears = row.linears.iter().filter(|l| plan.quantizes(**l));
            all.extend(linears.map(|&linear| {
                let Linear { k, n, name, .. } = &prepared.found.linears[linear];
                Sensitivity {
                    linear,
                    name: name.clone(),
                    error: 0.0,
                    work: tokens * *k as f64 * *n as f64,
                }
            }));
        }
        all.sort_by_key(|c| c.linear);
        all
    }
}

/// One batch for every setting of the switches, and more up to [`BATCHES`], spread over the data.
fn few(batches: &[Batch]) -> Vec<Batch> {
    let firsts = first_of_setting(batches);
    let mut few: Vec<Batch> = firsts.into_iter().map(|i| batches[i].clone()).collect();
    if few.len() < BATCHES && batches.len() >= BATCHES {
        few.push(batches[batches.len() / 2].clone());
    }
    few
}

/// Error energy over the energy of the output.
fn relative_error(output: &OutputComparison) -> f64 {
    let sum = |f: fn(&RowError) -> f64| output.judged_rows().iter().map(f).sum::<f64>();
    let (reference, error) = (sum(|r| r.reference), sum(|r| r.error));
    if reference > 0.0 {
        error / reference
    } else {
        0.0
    }
}
