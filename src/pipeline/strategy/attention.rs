//! Int8 attention: Q/DQ on Q Kᵀ and P V of the quantized model, as far as its outputs allow.
//!
//! ```text
//! quantized model ─ attentions ─ ranges of Q, K, V (calibration rows) ─ Q/DQ ─▶ outputs (held-out rows) ─▶ keep, thin out, or leave
//! ```
//!
//! The last step of a run, on the model that would be written without it.

use super::super::judge::{Judge, Measured};
use super::super::plan::{
    AttentionPlan, AttentionRanges, AttentionType, Dropped, Guard, Plan, Precision,
};
use super::super::verdict::{losses, mean_sqnr};
use super::allowance::{Allowance, keep_within};
use crate::calibrate::{EngineError, OutputComparison};
use crate::error::Error;
use crate::onnx::DataType;
use crate::options::{AttentionMode, Options};
use crate::recognise::{Attention, Attentions, NearMiss, attentions};
use crate::review::AttentionCost;
use crate::rewrite::FLOAT16_OPSET;

/// Models measured at most when all attentions together cost too much.
const BUDGET: usize = 8;

/// What `auto` may lose: the squared error doubles, that is, attention costs as much as all Linears.
const AUTO_LOSS_DB: f64 = 3.0;

/// What `int8` may lose: more is no choice between speed and accuracy but a broken model.
const ASKED_LOSS_DB: f64 = 10.0;

/// Quantizes the products of attention in what is to be written, unless the target or the user has them in float; the plan
/// says what becomes of every one.
///
/// # Errors
/// What making and running models refuses, but for what only this step needs: then attention stays in float.
pub(crate) fn quantize_attention(
    mut written: Measured,
    options: &Options,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let step = Step {
        options,
        opset: written.model.as_model().opset(),
    };
    let view = written.model.view();
    let all = attentions(&view);
    // A classifier's Softmax is none, whatever it almost is.
    let near_misses: Vec<NearMiss> = all.unmatched().cloned().collect();
    let Attentions { found, .. } = all;
    let left = options.leaves_attention();
    let entry = |attention: &Attention| AttentionPlan {
        softmax: view.node_name(attention.softmax).to_owned(),
        products: vec![
            attention.scores.name.clone(),
            attention.context.name.clone(),
        ],
        ..left_in_float(left.clone().unwrap_or_default())
    };
    let mut plans: Vec<AttentionPlan> = found.iter().map(entry).collect();
    drop(view);
    let missed = near_misses.into_iter().map(|miss: NearMiss| AttentionPlan {
        softmax: miss.name,
        ..left_in_float(miss.reason)
    });
    let missed: Vec<AttentionPlan> = missed.collect();
    if left.is_none() && !found.is_empty() {
        written = step.quantize(written, &found, &mut plans, judge)?;
    }
    plans.extend(missed);
    written.plan.attention = plans;
    Ok(written)
}

fn left_in_float(reason: String) -> AttentionPlan {
    AttentionPlan {
        softmax: String::new(),
        products: Vec::new(),
        precision: Precision::Float(reason),
        ranges: None,
        guard: None,
        dtype: AttentionType::Float32,
    }
}

/// What is the same for all attentions of a model.
struct Step<'a> {
    options: &'a Options,
    opset: i64,
}

/// An attention that could be in int8: its number, and itself.
type Able<'a> = (usize, &'a Attention, AttentionRanges);

impl Step<'_> {
    /// The best model with attentions in int8; `plans` say what becomes of each.
    fn quantize(
        &self,
        written: Measured,
        found: &[Attention],
        plans: &mut [AttentionPlan],
        judge: &mut dyn Judge,
    ) -> Result<Measured, Error> {
        let ranges = match judge.attention_ranges(&written, found) {
            Ok(ranges) => ranges,
            Err(error) => {
                let reason = format!("the ranges of Q, K and V cannot be measured: {error}");
                let leave = |p: &mut AttentionPlan| p.precision = Precision::Float(reason.clone());
                plans.iter_mut().for_each(leave);
                return Ok(written);
            }
        };
        let mut able: Vec<Able> = Vec::new();
        for (i, (attention, ranges)) in found.iter().zip(ranges).enumerate() {
            match self.reason_against(attention, ranges) {
                Ok(ranges) => {
                    plans[i].ranges = Some(ranges);
                    able.push((i, attention, ranges));
                }
                Err(reason) => plans[i].precision = Precision::Float(reason),
            }
        }
        match able.is_empty() {
            true => Ok(written),
            false => self.search(written, &able, plans, judge),
        }
    }

    /// The ranges of an attention that may be in int8, or why it may not.
    fn reason_against(
        &self,
        attention: &Attention,
        ranges: Result<AttentionRanges, String>,
    ) -> Result<AttentionRanges, String> {
        let products = [&attention.scores, &attention.context];
        let refused = products.iter().find_map(|p| self.options.refuses(&p.name));
        if let Some(reason) = refused {
            return Err(reason.to_owned());
        }
        let ranges = ranges?;
        match self.stopped(attention, &ranges) {
            Some(reason) => Err(reason),
            None => Ok(ranges),
        }
    }

    fn search(
        &self,
        written: Measured,
        able: &[Able],
        plans: &mut [AttentionPlan],
        judge: &mut dyn Judge,
    ) -> Result<Measured, Error> {
        let auto = self.options.attention == AttentionMode::Auto;
        let plain = judge.plain().map(|plain| plain.outputs.clone());
        let floor = plain.clone().filter(|_| auto && decides(&written.plan));
        let allowance = Allowance {
            loss_db: if auto { AUTO_LOSS_DB } else { ASKED_LOSS_DB },
            floor: floor.as_deref(),
            asked_db: self.options.min_sqnr_db,
        };
        let mut best: Option<Measured> = None;
        let mut all_db = None;
        let kept = keep_within(able.len(), BUDGET, |kept| {
            let plan = Plan {
                attention: self.with(plans, able, kept),
                ..written.plan.clone()
            };
            let measured = match judge.measure_attention(&written, plan) {
                Ok(measured) => measured,
                Err(Error::Engine(EngineError::OutputNotFinite { .. })) => {
                    return Ok(f64::INFINITY);
                }
                Err(error) => return Err(error),
            };
            if kept.iter().all(|k| *k) {
                all_db = Some(mean_sqnr(&measured.outputs));
            }
            let used = allowance.used(&measured.outputs, &written.outputs);
            best = Some(measured);
            Ok::<_, Error>(used)
        })?;
        let float_db = mean_sqnr(&written.outputs);
        let before = written.outputs.clone();
        let all = match all_db {
            Some(db) => format!("all in int8 give {db:.2} dB, none {float_db:.2} dB"),
            None => "with all in int8 an output is not finite".to_owned(),
        };
        // What was kept is what was measured last.
        let (mut result, kept) = match (kept, best) {
            (Some(kept), Some(best)) => (best, kept),
            _ => (written, vec![false; able.len()]),
        };
        if kept.contains(&true) {
            result.account.attention_cost = Some(AttentionCost {
                float_sqnr_db: float_db,
                int8_sqnr_db: mean_sqnr(&result.outputs),
            });
        }
        tell_losses(&mut result, &before, &plain.unwrap_or_default());
        let decided = self.with(plans, able, &kept);
        plans.clone_from_slice(&decided);
        for ((i, ..), kept) in able.iter().zip(kept) {
            if !kept {
                let reason = format!("dropped after validation: {all}");
                plans[*i].precision = Precision::Float(reason);
            }
        }
        Ok(result)
    }

    /// The decisions if those `kept` of the `able` attentions are in int8.
    fn with(&self, plans: &[AttentionPlan], able: &[Able], kept: &[bool]) -> Vec<AttentionPlan> {
        let mut plans = plans.to_vec();
        for ((i, attention, ranges), _) in able.iter().zip(kept).filter(|(_, kept)| **kept) {
            let plan = &mut plans[*i];
            plan.precision = Precision::Integer;
            plan.guard = attention.unguarded.map(|_| self.guard(ranges));
            plan.dtype = match self.in_float16(attention) {
                true => AttentionType::Float16,
                false => AttentionType::Float32,
            };
        }
        plans
    }

    /// What becomes of the guard of an attention against NaN: it is left out if the target is stopped by it, and it did
    /// nothing.
    fn guard(&self, ranges: &AttentionRanges) -> Guard {
        match self.options.profile().nan_guard_stops_attention && ranges.no_nan {
            true => Guard::Dropped,
            false => Guard::Kept,
        }
    }

    /// Whether a float16 attention is quantized in float16: where the target has a kernel for all of it.
    fn in_float16(&self, attention: &Attention) -> bool {
        self.options.profile().int8_attention
            && self.opset >= FLOAT16_OPSET
            && attention.scores.dtype == DataType::Float16
            && attention.context.dtype == DataType::Float16
    }

    /// Why int8 gains nothing for this attention, though it does for others.
    fn stopped(&self, attention: &Attention, ranges: &AttentionRanges) -> Option<String> {
        if self.options.attention != AttentionMode::Auto {
            return None;
        }
        let guarded = attention.unguarded.is_some() && !ranges.no_nan;
        if guarded && self.options.profile().nan_guard_stops_attention {
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
                self.opset
            )
        })
    }
}

/// Names the outputs that are below plain min-max quantization by int8 attention: a plan with attention in float keeps
/// them, and whoever reads this can choose it.
fn tell_losses(result: &mut Measured, before: &[OutputComparison], plain: &[OutputComparison]) {
    let lost_before = losses(before, plain);
    for loss in losses(&result.outputs, plain) {
        if lost_before.iter().any(|l| l.output == loss.output) {
            continue;
        }
        let name = result.outputs[loss.output].name.clone();
        result.plan.notes.push(format!(
            "int8 attention takes output `{name}` to {:.2} dB{}, where plain min-max quantization with attention in float \
             has {:.2} dB; attention float keeps that",
            loss.sqnr_db,
            loss.figure.words(),
            loss.plain_sqnr_db
        ));
        result.account.below_by_attention.insert(name);
    }
}

/// Whether a plan is not plain min-max, so that it has something to lose against that.
fn decides(plan: &Plan) -> bool {
    let dropped = |d: &Option<Dropped>| matches!(d, Some(Dropped::Validation(_)));
    let sites = || plan.sites.iter().flatten();
    !plan.is_all_plain() && sites().any(|s| s.migrates() || dropped(&s.dropped))
}
