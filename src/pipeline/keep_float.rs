//! Leaves in float what hurts most: every Linear's part of the error is measured, and as many are taken as the user
//! allows, or as the outputs need.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::{Candidate, order, predict, smallest, total, within};
use super::drop::{plain, units};
use super::portion::first_of_setting;
use super::subset::{mean_sqnr, score};
use super::{Blocks, Run, Solutions};
use crate::Error;
use crate::calibrate::{Batch, ChannelStats, OutputComparison, Reference, compare_with};
use crate::graph::branches::unflatten;
use crate::onnx::Model;
use crate::progress::NoProgress;
use crate::recognise::Linear;
use crate::review::{Decision, KeptFloat, KeptLinear, output_reports};

/// Models that are made before they are run: they share the weights that are not quantized.
const AT_ONCE: usize = 4;

/// Calibration batches on which single Linears are measured; held-out rows are for what is written.
const BATCHES: usize = 2;

/// A model with some Linears in float.
struct Variant {
    model: Model,
    compared: Vec<OutputComparison>,
    /// Sites all of whose Linears are in float, so that nothing is migrated there.
    unmigrated: Vec<usize>,
}

impl Run<'_> {
    /// `written` with Linears in float as the options say: at most so many, or as few as reach the SQNR asked for.
    ///
    /// # Errors
    /// The SQNR asked for is not reached; what making and running models can meet.
    pub fn keep_float(
        &mut self,
        written: Model,
        model: &Model,
        blocks: &mut Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &Solutions,
    ) -> Result<Model, Error> {
        let wanted = self.options.min_sqnr_db;
        let reached =
            |compared: &[OutputComparison]| wanted.is_none_or(|db| lowest(compared) >= db);
        let budget = self.options.keep_float;
        if budget.is_none() && reached(&self.written) {
            return Ok(written);
        }
        let before = self.written.clone();
        // What validation has dropped already.
        let mut solutions = solutions.clone();
        for &site in self.dropped.keys() {
            solutions[site] = solutions[site].take().map(plain);
        }
        let solutions = &solutions;
        let candidates = self.sensitivity(model, blocks, statistics, solutions)?;
        let order = order(&candidates);
        // One Linear at least is quantized.
        let mut chosen = budget.map_or(order.clone(), |budget| within(&order, budget));
        chosen.truncate(candidates.len() - 1);
        let error = total(&candidates, |c| c.error);
        let mut best: Option<(usize, Variant)> = None;
        let mut measure = |n: usize| -> Result<bool, Error> {
            let kept = chosen[..n].iter().map(|c| c.linear).collect();
            let variant = self.variant(&kept, model, blocks, statistics, solutions)?;
            let enough = reached(&variant.compared);
            let nearer =
                |(_, b): &(usize, Variant)| lowest(&variant.compared) > lowest(&b.compared);
            if enough || best.as_ref().is_none_or(nearer) {
                best = Some((n, variant));
            }
            Ok(enough)
        };
        match wanted {
            _ if chosen.is_empty() => {}
            // Without a figure to reach, all that the budget allows.
            None => _ = measure(chosen.len())?,
            Some(_) if reached(&before) => {}
            Some(db) => {
                let start = predict(&chosen, error, db - lowest(&before));
                smallest(start, chosen.len(), measure)?;
            }
        }
        let after = best.as_ref().map_or(&before, |(_, v)| &v.compared);
        if let Some(db) = wanted.filter(|_| !reached(after)) {
            return Err(Error::MinSqnr {
                wanted: db,
                best: lowest(after),
                kept: best.as_ref().map_or(0, |(n, _)| *n),
                linears: candidates.len(),
            });
        }
        let (share, work) = (error.max(f64::MIN_POSITIVE), total(&candidates, |c| c.work));
        let entry = |c: &Candidate| KeptLinear {
            name: blocks.found.linears[c.linear].name.clone(),
            error: c.error / share,
            work: c.work / work.max(1.0),
        };
        let mut sensitivity: Vec<KeptLinear> = candidates.iter().map(entry).collect();
        sensitivity.sort_by(|a, b| b.error.total_cmp(&a.error).then(a.name.cmp(&b.name)));
        // Nothing is left in float for nothing.
        let better =
            |(_, v): &(usize, Variant)| wanted.is_some() || score(&v.compared, &before, None) > 0.0;
        let best = best.filter(better);
        let kept = best.as_ref().map_or(&[][..], |(n, _)| &chosen[..*n]);
        self.report.kept_float = Some(KeptFloat {
            linears: kept.iter().map(entry).collect(),
            sensitivity,
            work: total(kept, |c| c.work) / work.max(1.0),
            sqnr_before_db: mean_sqnr(&before),
            sqnr_after_db: best
                .as_ref()
                .map_or(mean_sqnr(&before), |(_, v)| mean_sqnr(&v.compared)),
        });
        let Some((_, variant)) = best else {
            return Ok(written);
        };
        for candidate in kept {
            let entry = entry(candidate);
            let reason = format!(
                "left in float: {:.0} % of the error, {:.1} % of the multiplications",
                100.0 * entry.error,
                100.0 * entry.work
            );
            blocks.skipped[candidate.linear] = Some(reason);
        }
        for site in variant.unmigrated {
            let reason = "all of its Linears are left in float".to_owned();
            self.dropped.entry(site).or_insert(reason);
        }
        self.report.outputs = output_reports(&variant.compared, self.plain.as_deref());
        self.written = variant.compared;
        self.finish_step("keep float");
        Ok(variant.model)
    }

    /// What every quantized Linear adds to the error of the outputs, on a few calibration rows.
    fn sensitivity(
        &mut self,
        model: &Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &Solutions,
    ) -> Result<Vec<Candidate>, Error> {
        let mut candidates = Vec::new();
        for (site, value) in blocks.sites.iter().zip(&blocks.values) {
            let Some(stats) = statistics.get(value) else {
                continue;
            };
            let tokens = stats.folds.iter().map(|f| f.tokens).sum::<u64>() as f64;
            candidates.extend(blocks.selected_indices(site).map(|linear| {
                let Linear { k, n, .. } = blocks.found.linears[linear];
                Candidate {
                    linear,
                    error: 0.0,
                    work: tokens * k as f64 * n as f64,
                }
            }));
        }
        candidates.sort_by_key(|c| c.linear);
        // A Linear alone stays in the type of the file in this model, and so do all others.
        let folded = match self.writes_plain() {
            true => model.clone(),
            false => self.fold_for(model, blocks, solutions, &|_| false)?.model,
        };
        let refined = self.refine(&folded, blocks, statistics, solutions);
        let batches = few(&self.calibration);
        let mut reference = Reference::new(self.original, &batches);
        self.progress.begin("sensitivity", candidates.len() as u64);
        let (engine, threads) = (self.engine, self.options.threads);
        let mut measure = |some: &mut [Candidate]| -> Result<(), Error> {
            let mut models = Vec::new();
            for candidate in some.iter() {
                let only = |l| l == candidate.linear;
                let model = match self.writes_plain() {
                    true => self.quantize_min_max(model, blocks, statistics, &only)?,
                    false => {
                        let (of, base) = ((solutions, &refined), folded.clone());
                        self.quantize_refined(base, blocks, statistics, of, &only)?
                    }
                };
                models.push(unflatten(&model));
            }
            let models: Vec<&Model> = models.iter().collect();
            let compared = compare_with(engine, &mut reference, &models, threads, &NoProgress)?;
            for (candidate, outputs) in some.iter_mut().zip(compared) {
                candidate.error = outputs.iter().map(relative_error).sum();
            }
            self.progress.advance(some.len() as u64);
            Ok(())
        };
        let measured = candidates.chunks_mut(AT_ONCE).try_for_each(&mut measure);
        self.progress.end();
        measured?;
        self.finish_step("sensitivity");
        Ok(candidates)
    }

    /// The model to be written if the Linears `kept` are left in float, and how it compares on the held-out rows.
    fn variant(
        &mut self,
        kept: &BTreeSet<usize>,
        model: &Model,
        blocks: &mut Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &Solutions,
    ) -> Result<Variant, Error> {
        let in_float = |site: usize| {
            blocks
                .selected_indices(&blocks.sites[site])
                .all(|l| kept.contains(&l))
        };
        let units = units(blocks, solutions).into_iter();
        let units = units.filter(|unit| unit.sites.iter().all(|&site| in_float(site)));
        let unmigrated: Vec<usize> = units.flat_map(|unit| unit.sites).collect();
        let quantizes = |l: usize| !kept.contains(&l);
        let model = if self.writes_plain() {
            self.quantize_min_max(model, blocks, statistics, &quantizes)?
        } else {
            let mut solutions = solutions.clone();
            for &site in &unmigrated {
                solutions[site] = solutions[site].take().map(plain);
            }
            let folded = self.fold_for(model, blocks, &solutions, &quantizes)?;
            self.check_float(&folded)?;
            let refined = self.refine(&folded.model, blocks, statistics, &solutions);
            let of = (&solutions, &refined);
            self.quantize_refined(folded.model, blocks, statistics, of, &quantizes)?
        };
        let compared = self.compare(&[&model])?.remove(0);
        Ok(Variant {
            model,
            compared,
            unmigrated,
        })
    }

    /// Whether what is written is plain min-max, because that was better.
    fn writes_plain(&self) -> bool {
        self.report.decision == Decision::PlainWasBetter
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
    let sum = |f: fn(&crate::calibrate::RowError) -> f64| output.rows.iter().map(f).sum::<f64>();
    let (reference, error) = (sum(|r| r.reference), sum(|r| r.error));
    if reference > 0.0 {
        error / reference
    } else {
        0.0
    }
}

/// The SQNR of the worst output, in dB.
fn lowest(compared: &[OutputComparison]) -> f64 {
    let all = compared.iter().map(|o| o.sqnr_db);
    all.fold(f64::INFINITY, f64::min)
}
