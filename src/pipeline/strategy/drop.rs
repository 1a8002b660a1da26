//! Decisions that lower the model's outputs are dropped: if the quantized model is below plain min-max on the held-out
//! rows, over all outputs or clearly in one, models without some of the decisions are made and measured
//! ([`super::subset`] says which), and the best subset is kept.
//!
//! The promise is kept here ([`prefers_safe`]): where a subset, or plain, avoids an output that is clearly below plain and
//! does not ruin another by that, it is taken.

use std::collections::BTreeSet;

use oxc_index::IndexVec;

use super::super::judge::{Account, Gain, Judge, Measured, measure};
use super::super::plan::{Dropped, Plan};
use super::super::sites::{SiteId, SiteTable};
use super::super::verdict::{is_below, losses, mean_sqnr, prefers_safe, score, spread};
use super::subset::{BUDGET, Trial, choose, search};
use crate::calibrate::OutputComparison;
use crate::error::Error;
use crate::site::Sink;

/// Sites that are decided together, and whose decision is not plain min-max.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    pub kind: usize,
    pub gain: f64,
    pub sites: Vec<SiteId>,
    /// The numbers of the graph outputs that depend on them.
    pub reaches: BTreeSet<usize>,
}

type Outputs = Vec<OutputComparison>;

/// What would be written, without the decisions that hurt, if `ours` is below plain.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn drop_what_hurts(
    ours: Measured,
    units: &[Unit],
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let Some(plain) = judge.plain().cloned() else {
        return Ok(ours);
    };
    if !is_below(&ours.outputs, &plain.outputs) {
        return Ok(ours);
    }
    let trials = trials(&ours, units, &plain.outputs, judge)?;
    let every = trials.len() - 1;
    let best = best_of(&trials, &plain.outputs, |_| true);
    let safe = best_of(&trials, &plain.outputs, |outputs| {
        losses(outputs, &plain.outputs).is_empty()
    });
    let chosen = match (best, safe) {
        // All of them together are no trial that was above plain; they stay if they are above it over all outputs.
        (None, _) if score(&ours.outputs, &plain.outputs, None) < 0.0 => None,
        (None, _) => Some(every),
        (Some(best), Some(safe)) => {
            let (a, b) = (&trials[best].measured, &trials[safe].measured);
            let safe_it_is = best == safe || prefers_safe(b, a, &plain.outputs);
            Some(if safe_it_is { safe } else { best })
        }
        (Some(best), None) => Some(best),
    };
    // Plain avoids every loss, and may be the only one that does.
    let chosen = chosen.filter(|&i| {
        let outputs = &trials[i].measured;
        let lost = !losses(outputs, &plain.outputs).is_empty();
        !(lost && prefers_safe(&plain.outputs, outputs, &plain.outputs))
    });
    match chosen {
        None => Ok(plain),
        Some(i) if i == every => Ok(ours),
        Some(i) => take(ours, units, trials.into_iter().nth(i), judge),
    }
}

/// The trial to take of those whose outputs are `fit`.
fn best_of(
    trials: &[Trial<Outputs>],
    plain: &[OutputComparison],
    fit: impl Fn(&Outputs) -> bool,
) -> Option<usize> {
    choose(
        trials,
        |o| match fit(o) {
            true => score(o, plain, None),
            false => f64::NEG_INFINITY,
        },
        |a| spread(a, plain, plain),
        |a, b| spread(a, b, plain),
    )
}

/// Subsets of the decisions, measured; the last is that of all.
fn trials(
    ours: &Measured,
    units: &[Unit],
    plain: &[OutputComparison],
    judge: &mut dyn Judge,
) -> Result<Vec<Trial<Outputs>>, Error> {
    let score = |outputs: &Outputs| score(outputs, plain, None);
    let all = score(&ours.outputs);
    let mut run = |kept: &[bool]| -> Result<Outputs, Error> {
        let plan = without(&ours.plan, units, kept, Dropped::Validation(String::new()));
        Ok(measure(judge, plan)?.outputs)
    };
    let mut trials = Vec::new();
    // What reaches nothing but the outputs that lose can go without touching the others.
    let lost: BTreeSet<usize> = losses(&ours.outputs, plain)
        .iter()
        .map(|l| l.output)
        .collect();
    let harmless = |unit: &Unit| !unit.reaches.is_empty() && unit.reaches.is_subset(&lost);
    let kept: Vec<bool> = units.iter().map(|unit| !harmless(unit)).collect();
    if kept.contains(&true) && kept.contains(&false) {
        let measured = run(&kept)?;
        trials.push(Trial { kept, measured });
    }
    let kinds: Vec<usize> = units.iter().map(|u| u.kind).collect();
    trials.extend(search(&kinds, all, BUDGET, score, run)?);
    trials.push(Trial {
        kept: vec![true; units.len()],
        measured: ours.outputs.clone(),
    });
    Ok(trials)
}

/// The model of a trial, if its float model is the original.
fn take(
    ours: Measured,
    units: &[Unit],
    trial: Option<Trial<Outputs>>,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let Some(Trial { kept, measured }) = trial else {
        return Ok(ours);
    };
    let dropped: usize = units
        .iter()
        .zip(&kept)
        .filter(|(_, kept)| !**kept)
        .map(|(unit, _)| unit.sites.len())
        .sum();
    let others = match dropped {
        1 => String::new(),
        n => format!(" (together with {} other sites)", n - 1),
    };
    let (with, without_it) = (mean_sqnr(&ours.outputs), mean_sqnr(&measured));
    let reason = format!("dropped after validation: {with:.2} dB -> {without_it:.2} dB{others}");
    let plan = without(&ours.plan, units, &kept, Dropped::Validation(reason));
    if let Err(error) = judge.float_check(&plan) {
        if !error.is_of_float_check() {
            return Err(error);
        }
        let mut ours = ours;
        let note = format!("no part of the migrations was tried alone: {error}");
        ours.plan.notes.push(note);
        return Ok(ours);
    }
    let candidate = judge.build(plan)?;
    // Some of the rotations may be left.
    let left = candidate.plan.bought().next();
    let rotations = ours.account.rotations.zip(left).map(|(gain, _)| Gain {
        sqnr_after_db: without_it,
        ..gain
    });
    Ok(Measured {
        plan: candidate.plan,
        model: candidate.model,
        outputs: measured,
        account: Account {
            rotations,
            ..Account::default()
        },
    })
}

/// The plan with plain min-max at the sites of every unit that is not kept.
fn without(plan: &Plan, units: &[Unit], kept: &[bool], why: Dropped) -> Plan {
    let mut plan = plan.clone();
    let dropped = units.iter().zip(kept).filter(|(_, kept)| !**kept);
    for &site in dropped.flat_map(|(unit, _)| &unit.sites) {
        if let Some(site) = &mut plan.sites[site] {
            site.drop(why.clone());
        }
    }
    plan
}

/// The decisions of a plan that differ from plain min-max, those that belong together as one. `reaches` says which outputs
/// depend on a site.
pub(crate) fn units(
    plan: &Plan,
    sites: &SiteTable,
    reaches: &IndexVec<SiteId, BTreeSet<usize>>,
) -> Vec<Unit> {
    let decision = |((id, row), site): ((SiteId, &super::super::sites::SiteRow), &Option<_>)| {
        let site: &super::super::plan::SitePlan = site.as_ref()?;
        let kind = match &row.site.sink {
            _ if site.is_plain() => return None,
            // A margin alone.
            _ if !site.migrates() => 2,
            Sink::Explicit(_) => 0,
            Sink::Traced(_) => 1,
            Sink::Norm(_) | Sink::None(_) => 3,
        };
        Some(Unit {
            kind,
            gain: site.found.validated_gain_db,
            sites: vec![id],
            reaches: reaches[id].clone(),
        })
    };
    let decisions = sites.iter().zip(&plan.sites).filter_map(decision);
    grouped(decisions, |id| sites.leader(id))
}

/// Sites of one leader as one unit, in the order of kind (the one that costs or assumes most first) and then of gain, lowest
/// first.
fn grouped(decisions: impl Iterator<Item = Unit>, leader: impl Fn(SiteId) -> SiteId) -> Vec<Unit> {
    let mut units: std::collections::BTreeMap<SiteId, Unit> = Default::default();
    for decision in decisions {
        for &site in &decision.sites {
            let unit = units.entry(leader(site)).or_insert(Unit {
                sites: Vec::new(),
                ..decision.clone()
            });
            unit.sites.push(site);
            unit.kind = unit.kind.min(decision.kind);
            unit.gain = unit.gain.min(decision.gain);
            unit.reaches.extend(&decision.reaches);
        }
    }
    let mut units: Vec<Unit> = units.into_values().collect();
    units.sort_by(|a, b| a.kind.cmp(&b.kind).then(a.gain.total_cmp(&b.gain)));
    units
}
