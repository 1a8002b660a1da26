//! Leaves in float what hurts most: every Linear's part of the error is measured, and as many are taken as the user
//! allows, or as the outputs need.

use std::collections::BTreeSet;

use super::super::judge::{Judge, Measured, Sensitivity, measure};
use super::super::plan::{Dropped, Plan, Precision};
use super::super::sites::SiteTable;
use super::super::verdict::{breaks_promise, mean_sqnr, score};
use super::budget::{order, predict, smallest, total, within};
use super::drop::Unit;
use crate::calibrate::OutputComparison;
use crate::error::Error;
use crate::options::KeepFloat;
use crate::recognise::LinearId;
use crate::review::{KeptFloat, KeptLinear};

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish {
    /// At most so much is left in float.
    pub budget: Option<KeepFloat>,
    /// The SQNR that every output must have, in dB.
    pub min_sqnr_db: Option<f64>,
}

impl Wish {
    /// Whether every output has the SQNR asked for, if one was.
    fn is_reached(self, outputs: &[OutputComparison]) -> bool {
        let wanted = self.min_sqnr_db;
        wanted.is_none_or(|db| lowest(outputs) >= db)
    }

    /// The same, and whether the caller's metric is content.
    fn is_met(self, measured: &Measured, judge: &mut dyn Judge) -> Result<bool, Error> {
        Ok(self.is_reached(&measured.outputs) && judge.metric_allows(measured)?)
    }
}

/// What is written with Linears in float as was asked: at most so many, or as few as reach the SQNR and the metric asked for.
///
/// # Errors
/// The SQNR or the metric asked for is not reached; those of [`Judge::measure`].
pub(crate) fn keep_float(
    mut written: Measured,
    wish: Wish,
    sites: &SiteTable,
    units: &[Unit],
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let float = |o: &OutputComparison| o.agreement.is_none() && o.elements > 0;
    if wish.min_sqnr_db.is_some() && !written.outputs.iter().any(float) {
        return Err(Error::NothingToCompare);
    }
    if wish.budget.is_none() && wish.is_met(&written, judge)? {
        return Ok(written);
    }
    let sensitivity = judge.sensitivity(&written.plan)?;
    let chosen = choose(&sensitivity, wish.budget);
    let best = {
        let without = |n: usize| in_float(&written.plan, &chosen[..n], sites, units);
        search(&written, &chosen, &sensitivity, wish, &without, judge)?
    };
    let after = best.as_ref().map_or(&written, |(_, m)| m);
    if let Some(db) = wish
        .min_sqnr_db
        .filter(|_| !wish.is_reached(&after.outputs))
    {
        return Err(Error::MinSqnr {
            wanted: db,
            best: lowest(&after.outputs),
            kept: best.as_ref().map_or(0, |(n, _)| *n),
            linears: sensitivity.len(),
        });
    }
    let after = after.clone();
    if !judge.metric_allows(&after)? {
        judge.metric_refuses(&after, best.as_ref().map_or(0, |(n, _)| *n))?;
    }
    // Nothing is left in float for nothing, nor for the loss of an output.
    let plain = judge.plain().map(|plain| plain.outputs.clone());
    let plain = plain.unwrap_or_default();
    let asks = wish.min_sqnr_db.is_some() || judge.asks_metric();
    let better = |(_, m): &(usize, Measured)| {
        asks || (score(&m.outputs, &written.outputs, None) > 0.0
            && !breaks_promise(&m.outputs, &written.outputs, &plain))
    };
    let best = best.filter(better);
    let kept = best.as_ref().map_or(&[][..], |(n, _)| &chosen[..*n]);
    let outputs = best.as_ref().map_or(&written.outputs, |(_, m)| &m.outputs);
    let account = account(&sensitivity, kept, [&written.outputs, outputs]);
    if let Some((_, mut variant)) = best {
        give_reasons(&mut variant.plan, &account, kept);
        match judge.float_check(&variant.plan) {
            Ok(_) => written = variant,
            Err(error) if error.is_of_float_check() && !asks => {
                let note = format!("nothing was left in float: {error}");
                written.plan.notes.push(note);
                return Ok(written);
            }
            Err(error) => return Err(error),
        }
    }
    written.account.kept_float = Some(account);
    Ok(written)
}

/// Says at every Linear that is left in float what it would have cost.
fn give_reasons(plan: &mut Plan, account: &KeptFloat, kept: &[Sensitivity]) {
    for (entry, linear) in account.linears.iter().zip(kept) {
        plan.linears[linear.linear] = Precision::Float(format!(
            "left in float: {:.0} % of the error, {:.1} % of the multiplications",
            100.0 * entry.error,
            100.0 * entry.work
        ));
    }
}

/// What may be left in float, in the order in which it should be; one Linear at least is quantized.
fn choose(sensitivity: &[Sensitivity], budget: Option<KeepFloat>) -> Vec<Sensitivity> {
    let order = order(sensitivity);
    let mut chosen = match budget {
        Some(budget) => within(&order, budget),
        None => order,
    };
    chosen.truncate(sensitivity.len().saturating_sub(1));
    chosen
}

/// The best number of `chosen` Linears in float, with its model; `None` if none was tried.
fn search(
    written: &Measured,
    chosen: &[Sensitivity],
    sensitivity: &[Sensitivity],
    wish: Wish,
    without: &dyn Fn(usize) -> Plan,
    judge: &mut dyn Judge,
) -> Result<Option<(usize, Measured)>, Error> {
    let by_metric = judge.asks_metric();
    let met = wish.is_met(written, judge)?;
    let mut best: Option<(usize, Measured)> = None;
    let mut found = false;
    let mut try_with = |n: usize| -> Result<bool, Error> {
        let variant = measure(judge, without(n))?;
        let enough = wish.is_met(&variant, judge)?;
        let nearer = |(_, b): &(usize, Measured)| lowest(&variant.outputs) > lowest(&b.outputs);
        // What is not enough takes the place of nothing that is, however near: a metric need not agree with the outputs.
        if enough || (!found && best.as_ref().is_none_or(nearer)) {
            best = Some((n, variant));
        }
        found |= enough;
        Ok(enough)
    };
    match wish.min_sqnr_db {
        _ if chosen.is_empty() => {}
        // Without a figure to reach, all that the budget allows.
        None if !by_metric => _ = try_with(chosen.len())?,
        _ if met => {}
        Some(db) if lowest(&written.outputs) < db => {
            let gain = db - lowest(&written.outputs);
            let start = predict(chosen, total(sensitivity, |c| c.error), gain);
            smallest(start, chosen.len(), try_with)?;
        }
        // What a metric will say is not predicted.
        _ => _ = smallest(1, chosen.len(), try_with)?,
    }
    Ok(best)
}

/// The plan with some Linears in float; what is decided for their sites alone is dropped.
fn in_float(plan: &Plan, kept: &[Sensitivity], sites: &SiteTable, units: &[Unit]) -> Plan {
    let mut plan = plan.clone();
    let kept: BTreeSet<LinearId> = kept.iter().map(|c| c.linear).collect();
    for &linear in &kept {
        plan.linears[linear] = Precision::Float(String::new());
    }
    let all_in_float = |unit: &&Unit| {
        let mut linears = unit.sites.iter().flat_map(|&site| &sites.row(site).linears);
        linears.all(|l| kept.contains(l))
    };
    for &site in units.iter().filter(all_in_float).flat_map(|u| &u.sites) {
        if let Some(site) = plan.sites[site].as_mut().filter(|s| s.dropped.is_none()) {
            site.drop(Dropped::InFloat);
        }
    }
    plan
}

/// What was bought: the Linears in float, and the outputs before and after.
fn account(
    sensitivity: &[Sensitivity],
    kept: &[Sensitivity],
    [before, after]: [&Vec<OutputComparison>; 2],
) -> KeptFloat {
    let error = total(sensitivity, |c| c.error).max(f64::MIN_POSITIVE);
    let work = total(sensitivity, |c| c.work).max(1.0);
    let entry = |c: &Sensitivity| KeptLinear {
        name: c.name.clone(),
        error: c.error / error,
        work: c.work / work,
    };
    let mut all: Vec<KeptLinear> = sensitivity.iter().map(entry).collect();
    all.sort_by(|a, b| b.error.total_cmp(&a.error).then(a.name.cmp(&b.name)));
    KeptFloat {
        linears: kept.iter().map(entry).collect(),
        sensitivity: all,
        work: total(kept, |c| c.work) / work,
        sqnr_before_db: mean_sqnr(before),
        sqnr_after_db: mean_sqnr(after),
    }
}

/// The SQNR of the worst output, in dB.
pub(super) fn lowest(compared: &[OutputComparison]) -> f64 {
    let all = compared.iter().map(|o| o.sqnr_db);
    all.fold(f64::INFINITY, f64::min)
}
