//! Int8 attention: Q/DQ on Q Kᵀ and P V of the quantized model, as far as its outputs allow.
//!
//! ```text
//! quantized model ─ attentions ─ ranges of Q, K, V (calibration rows) ─ Q/DQ ─▶ outputs (held-out rows) ─▶ keep, thin out, or leave
//! ```
//!
//! The last step of a run, on the model that would be written without it. What is allowed is a share of the error that is
//! there already, so that a block can be asked what it uses of it ([`Allowance`]): errors of different places add up, and
//! if all attentions together use more than 1, [`keep_within`] looks for those that use most.

use std::ops::Range;

use super::Run;
use crate::Error;
use crate::calibrate::{EngineError, OutputComparison, Ranged, ranges};
use crate::graph::{self, Names, View};
use crate::onnx::{DataType, Model};
use crate::options::AttentionMode;
use crate::recognise::{Attention, Attentions, attentions};
use crate::review::{AttentionCost, AttentionReport, Decision, output_reports};
use crate::rewrite::{self, AttentionParams, FLOAT16_OPSET};

use super::subset::mean_sqnr;

/// Models measured at most when all attentions together cost too much.
const BUDGET: usize = 8;

/// Measurements that are kept for models which might be written.
const RESERVED: usize = 3;

/// An output whose error is this many dB below it is good enough, whatever was lost.
const GOOD_DB: f64 = 30.0;

/// What `auto` may lose: the squared error doubles, that is, attention costs as much as all Linears.
const AUTO_LOSS_DB: f64 = 3.0;

/// What `int8` may lose: more is no choice between speed and accuracy but a broken model.
const ASKED_LOSS_DB: f64 = 10.0;

/// Ranges of Q, K and V as their products read them.
#[derive(Clone, Copy, Debug)]
struct Ranges {
    query: (f32, f32),
    key: (f32, f32),
    value: (f32, f32),
    /// Whether no row was without keys, padding included: then a guard against NaN did nothing.
    no_nan: bool,
}

impl Run<'_> {
    /// Quantizes the products of attention in the model that is to be written, unless the target or the user has them in
    /// float, and reports every one.
    ///
    /// # Errors
    /// What making and running models refuses, but for what only this step needs: then attention stays in float.
    pub fn quantize_attention(&mut self, quantized: Model) -> Result<Model, Error> {
        let Attentions { found, near_misses } = attentions(&View::new(&quantized));
        let left = self.options.leaves_attention();
        let entry = |attention: &Attention| AttentionReport {
            softmax: View::new(&quantized)
                .node_name(attention.softmax)
                .to_owned(),
            products: vec![
                attention.scores.name.clone(),
                attention.context.name.clone(),
            ],
            status: "float".to_owned(),
            reason: left.as_ref().map(ToString::to_string),
            ..AttentionReport::default()
        };
        let mut reports: Vec<AttentionReport> = found.iter().map(entry).collect();
        let result = match left {
            None if !found.is_empty() => self.int8_attention(quantized, &found, &mut reports)?,
            _ => quantized,
        };
        reports.extend(near_misses.into_iter().map(|miss| AttentionReport {
            softmax: miss.name,
            status: "float".to_owned(),
            reason: Some(miss.reason),
            ..AttentionReport::default()
        }));
        self.report.attention = reports;
        self.finish_step("attention");
        Ok(result)
    }

    fn int8_attention(
        &mut self,
        model: Model,
        found: &[Attention],
        reports: &mut [AttentionReport],
    ) -> Result<Model, Error> {
        let ranges = match self.attention_ranges(&model, found) {
            Ok(ranges) => ranges,
            Err(error) => {
                let reason = format!("the ranges of Q, K and V cannot be measured: {error}");
                reports
                    .iter_mut()
                    .for_each(|r| r.reason = Some(reason.clone()));
                return Ok(model);
            }
        };
        let mut able: Vec<(usize, &Attention, Ranges)> = Vec::new();
        for (i, (attention, ranges)) in found.iter().zip(ranges).enumerate() {
            let products = [&attention.scores, &attention.context];
            let refused = products
                .iter()
                .find_map(|p| self.options.refuses(&p.name).map(str::to_owned));
            match (refused, ranges) {
                (None, Ok(ranges)) => match self.stopped(attention, &ranges) {
                    Some(reason) => reports[i].reason = Some(reason),
                    None => able.push((i, attention, ranges)),
                },
                (Some(reason), _) | (None, Err(reason)) => reports[i].reason = Some(reason),
            }
        }
        if able.is_empty() {
            return Ok(model);
        }
        let (ours, plain) = (self.written.clone(), self.plain.clone());
        let auto = self.options.attention == AttentionMode::Auto;
        let migrated = matches!(
            self.report.decision,
            Decision::Migrated | Decision::PartlyMigrated
        );
        let allowance = Allowance {
            loss_db: if auto { AUTO_LOSS_DB } else { ASKED_LOSS_DB },
            floor: plain.as_deref().filter(|_| auto && migrated),
            asked_db: self.options.min_sqnr_db,
        };
        let mut best: Option<(Model, Vec<OutputComparison>)> = None;
        let mut all_db = None;
        let kept = keep_within(able.len(), BUDGET, |kept| {
            let chosen = able.iter().zip(kept).filter(|(_, kept)| **kept);
            let chosen: Vec<(&Attention, &Ranges)> = chosen.map(|((_, a, r), _)| (*a, r)).collect();
            let candidate = self.with_int8_attention(&model, &chosen)?;
            let compared = match self.compare(&[&candidate]) {
                Ok(mut compared) => compared.remove(0),
                Err(Error::Engine(EngineError::OutputNotFinite { .. })) => {
                    return Ok(f64::INFINITY);
                }
                Err(error) => return Err(error),
            };
            if kept.iter().all(|k| *k) {
                all_db = Some(mean_sqnr(&compared));
            }
            let used = allowance.used(&compared, &ours);
            best = Some((candidate, compared));
            Ok::<_, Error>(used)
        })?;
        let float_db = mean_sqnr(&ours);
        let all = match all_db {
            Some(db) => format!("all in int8 give {db:.2} dB, none {float_db:.2} dB"),
            None => "with all in int8 an output is not finite".to_owned(),
        };
        // What was kept is what was measured last.
        let (result, kept) = match (kept, best) {
            (Some(kept), Some((candidate, compared))) => {
                self.report.attention_cost = Some(AttentionCost {
                    float_sqnr_db: float_db,
                    int8_sqnr_db: mean_sqnr(&compared),
                });
                self.report.outputs = output_reports(&compared, plain.as_deref());
                self.written = compared;
                (candidate, kept)
            }
            _ => (model, vec![false; able.len()]),
        };
        for ((i, attention, ranges), kept) in able.iter().zip(kept) {
            let report = &mut reports[*i];
            (report.query, report.key) = (Some(ranges.query), Some(ranges.key));
            (report.value, report.probabilities) = (Some(ranges.value), Some((0.0, 1.0)));
            if kept {
                let guard = match self.drops_guard(attention, ranges) {
                    true => "dropped",
                    false => "kept",
                };
                report.nan_guard = attention.unguarded.map(|_| guard.to_owned());
                (report.status, report.reason) = ("int8".to_owned(), None);
            } else {
                report.reason = Some(format!("dropped after validation: {all}"));
            }
        }
        Ok(result)
    }

    /// Whether the guard of an attention against NaN is left out: the target is stopped by it, and it did nothing.
    fn drops_guard(&self, attention: &Attention, ranges: &Ranges) -> bool {
        self.options.profile().nan_guard_stops_attention
            && attention.unguarded.is_some()
            && ranges.no_nan
    }

    /// Whether a float16 attention is quantized in float16: where the target has a kernel for all of it.
    fn in_float16(&self, attention: &Attention) -> bool {
        self.options.profile().int8_attention
            && self.report.settings.opset >= FLOAT16_OPSET
            && attention.scores.dtype == DataType::Float16
            && attention.context.dtype == DataType::Float16
    }

    /// Why int8 gains nothing for this attention, though it does for others.
    fn stopped(&self, attention: &Attention, ranges: &Ranges) -> Option<String> {
        if self.options.attention != AttentionMode::Auto {
            return None;
        }
        if self.stopped_by_guard(attention, ranges) {
            let why = "some rows have no key at all, so its guard against NaN must stay, and stops the fused kernel";
            return Some(why.to_owned());
        }
        let products = [&attention.scores, &attention.context];
        let narrow = products.iter().any(|p| p.dtype != DataType::Float);
        (narrow && !self.in_float16(attention)).then(|| {
            format!(
                "the fused kernel forms with Q/DQ in float32, or in float16 from opset {FLOAT16_OPSET} on; this is {} \
                 in opset {}",
                attention.scores.dtype.as_str_name(),
                self.report.settings.opset
            )
        })
    }

    /// Whether its guard must stay.
    fn stopped_by_guard(&self, attention: &Attention, ranges: &Ranges) -> bool {
        self.options.profile().nan_guard_stops_attention
            && attention.unguarded.is_some()
            && !ranges.no_nan
    }

    /// The ranges of each attention, or why it has none.
    fn attention_ranges(
        &self,
        model: &Model,
        found: &[Attention],
    ) -> Result<Vec<Result<Ranges, String>>, EngineError> {
        let view = View::new(model);
        // The left side of a product has its tokens on the last axis but one; the right side, Kᵀ, on the last; V is summed
        // over its tokens.
        let value_axis = |a: &Attention| if a.probabilities == 0 { 2 } else { 1 };
        let wanted: Vec<Ranged> = found
            .iter()
            .flat_map(|a| {
                let [query, key] = a.scores.operands;
                let value = a.context.operands[1 - a.probabilities];
                // Of the probabilities every row counts, because NaN would spread from padding, too.
                let probabilities = a.unguarded.unwrap_or(a.context.operands[a.probabilities]);
                [
                    (query, 2),
                    (key, 1),
                    (value, value_axis(a)),
                    (probabilities, 0),
                ]
            })
            .map(|(value, axis)| Ranged {
                value: view.name(value).to_owned(),
                axis,
            })
            .collect();
        let (rows, threads) = (&self.calibration, self.options.threads);
        let found = ranges(self.engine, model, rows, &wanted, threads, self.progress)?;
        let known = |range: Option<(f32, f32)>, at: usize| match range {
            None => Err(format!("no calibration data reach `{}`", wanted[at].value)),
            Some((low, _)) if low.is_nan() => Err(format!(
                "`{}` is not finite on the calibration data",
                wanted[at].value
            )),
            Some(range) => Ok(range),
        };
        let blocks = found.chunks_exact(4).enumerate();
        let ranges = blocks.map(|(i, block)| {
            Ok(Ranges {
                query: known(block[0], 4 * i)?,
                key: known(block[1], 4 * i + 1)?,
                value: known(block[2], 4 * i + 2)?,
                no_nan: block[3].is_some_and(|(low, _)| !low.is_nan()),
            })
        });
        Ok(ranges.collect())
    }

    fn with_int8_attention(
        &self,
        model: &Model,
        chosen: &[(&Attention, &Ranges)],
    ) -> Result<Model, Error> {
        let view = View::new(model);
        let mut names = Names::new(model);
        let spec = self.options.activation();
        let params = |(low, high): (f32, f32)| spec.params(low, high);
        let patches = chosen.iter().map(|(attention, ranges)| {
            // A softmax is within 0..1 on any data.
            let mut context = [params((0.0, 1.0)), params(ranges.value)];
            if attention.probabilities == 1 {
                context.reverse();
            }
            let params = AttentionParams {
                scores: [params(ranges.query), params(ranges.key)],
                context,
                drop_guard: self.drops_guard(attention, ranges),
                in_float16: self.in_float16(attention),
            };
            rewrite::quantize_attention(&view, attention, &params, spec.symmetric, &mut names)
        });
        let patches = patches.collect();
        let mut candidate = model.clone();
        graph::apply(&mut candidate, patches).map_err(rewrite::RewriteError::from)?;
        Ok(candidate)
    }
}

/// What the outputs may lose by int8 attention.
struct Allowance<'a> {
    /// In dB, of what they have without.
    loss_db: f64,
    /// What they must not fall below.
    floor: Option<&'a [OutputComparison]>,
    /// The SQNR in dB that was asked for.
    asked_db: Option<f64>,
}

impl Allowance<'_> {
    /// The share of the allowed additional squared error that is used: 1 and below is allowed. That of the output that
    /// uses most; outputs are in the same order.
    ///
    /// With R the squares of an output and E its squared error, E may become `max(R · 10^(−GOOD_DB / 10),
    /// min(E · 10^(loss_db / 10), E of the floor))`, and no more than leaves what was asked for.
    fn used(&self, with: &[OutputComparison], without: &[OutputComparison]) -> f64 {
        let energies = |o: &OutputComparison| {
            let sum = |f: fn(&crate::calibrate::RowError) -> f64| o.rows.iter().map(f).sum::<f64>();
            (sum(|r| r.reference), sum(|r| r.error))
        };
        let used = |(i, (with, without)): (usize, (&OutputComparison, &OutputComparison))| {
            let ((reference, before), (_, after)) = (energies(without), energies(with));
            let mut limit = before * 10f64.powf(self.loss_db / 10.0);
            if let Some(floor) = self.floor.and_then(|floor| floor.get(i)) {
                limit = limit.min(energies(floor).1);
            }
            let error = |db: f64| reference * 10f64.powf(-db / 10.0);
            let limit = limit.max(error(GOOD_DB));
            let limit = self.asked_db.map_or(limit, |db| limit.min(error(db)));
            match after - before {
                added if added <= 0.0 => 0.0,
                added => added / (limit - before).max(f64::MIN_POSITIVE),
            }
        };
        let all = with.iter().zip(without).enumerate().map(used);
        all.fold(0.0, |most, used| if used > most { used } else { most })
    }
}

/// The units to keep so that `measure` of them is at most 1: all of them if that is so, else all but those that use most.
/// `None` if that leaves nothing. At most `budget` measurements; the last one is that of the units returned.
///
/// What units use adds up, about. So a group's use is divided by measuring one half of it, and parts are left out, those
/// that use most per unit first, until what is left should fit.
///
/// # Errors
/// What `measure` returns.
fn keep_within<E>(
    units: usize,
    budget: usize,
    mut measure: impl FnMut(&[bool]) -> Result<f64, E>,
) -> Result<Option<Vec<bool>>, E> {
    let every = vec![true; units];
    let all = measure(&every)?;
    if all <= 1.0 {
        return Ok(Some(every));
    }
    let mut parts: Vec<(Range<usize>, f64)> = vec![(0..units, all)];
    let mut left = budget.saturating_sub(1);
    while left > RESERVED {
        let divisible = parts.iter().enumerate().filter(|(_, p)| p.0.len() > 1);
        let most = divisible.max_by(|a, b| a.1.1.total_cmp(&b.1.1).then(b.0.cmp(&a.0)));
        let Some((at, _)) = most else {
            break;
        };
        let (range, used) = parts[at].clone();
        let middle = range.start + range.len() / 2;
        let first = measure(&only(units, range.start..middle))?;
        left -= 1;
        let second = match (used.is_finite(), first.is_finite()) {
            (false, false) => 0.0,
            _ => (used - first).max(0.0),
        };
        parts[at] = (range.start..middle, first);
        parts.push((middle..range.end, second));
    }
    let per_unit = |p: &(Range<usize>, f64)| p.1 / p.0.len() as f64;
    parts.sort_by(|a, b| {
        per_unit(b)
            .total_cmp(&per_unit(a))
            .then(a.0.start.cmp(&b.0.start))
    });
    let mut kept = every;
    for (i, (range, _)) in parts.iter().enumerate() {
        if i + 1 == parts.len() || left == 0 {
            return Ok(None);
        }
        kept[range.clone()].fill(false);
        if parts[i + 1..].iter().map(|p| p.1).sum::<f64>() <= 1.0 {
            left -= 1;
            if measure(&kept)? <= 1.0 {
                return Ok(Some(kept));
            }
        }
    }
    Ok(None)
}

fn only(units: usize, range: Range<usize>) -> Vec<bool> {
    (0..units).map(|i| range.contains(&i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::RowError;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn output(reference: f64, error: f64) -> OutputComparison {
        OutputComparison {
            name: String::new(),
            sqnr_db: 0.0,
            cosine: 0.0,
            max_abs_error: 0.0,
            max_relative_error: 0.0,
            range: (0.0, 0.0),
            elements: 0,
            top1: (0, 0),
            rows: vec![RowError {
                row: 0,
                reference,
                error,
            }],
        }
    }

    #[test]
    fn the_allowance_by_hand() {
        let used = |with, without, floor: Option<f64>| {
            let floor = floor.map(|e| vec![output(1e4, e)]);
            let allowance = Allowance {
                loss_db: 10.0 * 2f64.log10(),
                floor: floor.as_deref(),
                asked_db: None,
            };
            allowance.used(&[output(1e4, with)], &[output(1e4, without)])
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        // 20 dB; the error may double, and half of that was used.
        near(used(150.0, 100.0, None), 0.5);
        near(used(250.0, 100.0, None), 1.5);
        // Plain min-max is at 120.
        near(used(150.0, 100.0, Some(120.0)), 2.5);
        // 30 dB are good enough, whatever plain gives.
        near(used(10.0, 1.0, Some(2.0)), 1.0);
        near(used(4.0, 2.0, None), 0.25);
        // A gain uses nothing; where there is no room, everything is too much.
        near(used(90.0, 100.0, Some(50.0)), 0.0);
        assert!(used(101.0, 100.0, Some(50.0)) > 1e9);
        near(
            Allowance {
                loss_db: 3.0,
                floor: None,
                asked_db: None,
            }
            .used(&[], &[]),
            0.0,
        );
    }

    fn run(effects: &[f64]) -> (Option<Vec<bool>>, Vec<Vec<bool>>) {
        let mut measured = Vec::new();
        let kept = keep_within(effects.len(), BUDGET, |kept| {
            measured.push(kept.to_vec());
            let used = effects.iter().zip(kept).filter(|(_, k)| **k);
            Ok::<_, Infallible>(used.map(|(e, _)| e).sum())
        });
        (kept.unwrap(), measured)
    }

    #[test]
    fn one_bad_block_is_left_out() {
        for bad in [50.0, f64::INFINITY] {
            for at in 0..6 {
                let effects: Vec<f64> = (0..6).map(|i| if i == at { bad } else { 0.1 }).collect();
                let kept = run(&effects).0.unwrap();
                assert!(!kept[at], "{at}");
                assert_eq!(kept.iter().filter(|k| **k).count(), 5, "{at}");
            }
        }
    }

    #[test]
    fn nothing_is_left_of_what_is_bad_throughout() {
        assert_eq!(run(&[2.0]).0, None);
        assert_eq!(run(&[3.0; 12]).0, None);
        assert_eq!(run(&[f64::INFINITY; 4]).0, None);
    }

    proptest! {
        /// Whatever the blocks use: what is kept was measured last, is within, and the budget is kept.
        #[test]
        fn within_the_allowance_and_the_budget(effects in prop::collection::vec(0.0f64..1.5, 1..40)) {
            let (kept, measured) = run(&effects);
            prop_assert!(measured.len() <= BUDGET);
            let sum: f64 = effects.iter().sum();
            prop_assert!(sum > 1.0 || measured.len() == 1);
            prop_assert_eq!(sum <= 1.0, kept == Some(vec![true; effects.len()]));
            if let Some(kept) = kept {
                let used = effects.iter().zip(&kept).filter(|(_, k)| **k).map(|(e, _)| e);
                prop_assert!(used.sum::<f64>() <= 1.0);
                prop_assert_eq!(measured.last(), Some(&kept));
                prop_assert!(kept.contains(&true));
            }
        }
    }
}
