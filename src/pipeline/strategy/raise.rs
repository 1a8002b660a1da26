//! Linears whose weights have 8 bits where the others have fewer: those that add most to the noise for the bytes they take.
//!
//! What a site adds to the stream is known from the search ([`super::price`]); nearly all of it is gone with 8 bits. So no model
//! is run to find an order, and the outputs on held-out rows say whether it was worth it. An SQNR that was asked for is tried to
//! be reached so first: a weight of 8 bits is cheaper than one in float.

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::{Plan, Precision};
use super::super::prepare::Prepared;
use super::super::sites::SiteId;
use super::super::verdict::{CLEAR_DB, breaks_promise, score};
use super::budget::smallest;
use super::keep_float::{Wish, lowest};
use super::price::noises;
use crate::error::Error;
use crate::recognise::LinearId;

/// What every percent of the weights' bytes must gain, in dB.
const WORTH_DB: f64 = 0.05;

/// The weights of sites that are decided together, in 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Raise {
    /// Their Linears.
    pub(super) linears: Vec<LinearId>,
    /// What they take off the noise.
    pub(super) relief: f64,
    /// By how many percent all weights together grow.
    pub(super) percent: f64,
}

/// All weights that could have more bits, those first that take most off the noise for their bytes.
pub(crate) fn raises(plan: &Plan, prepared: &Prepared, bits: u8) -> Vec<Raise> {
    if bits >= 8 || !plan.format.quantizes() {
        return Vec::new();
    }
    let Prepared { found, sites, .. } = prepared;
    let noises = noises(plan, &prepared.model.view(), found, sites);
    let elements = |l: &LinearId| (found.linears[*l].k * found.linears[*l].n) as f64;
    let integers = || found.linears.iter_enumerated().map(|(l, _)| l);
    let all: f64 = integers()
        .filter(|l| plan.quantizes(*l))
        .map(|l| elements(&l))
        .sum();
    let growth = f64::from(8 - bits) / f64::from(bits) * 100.0;
    let mut raises: Vec<Raise> = Vec::new();
    let leaders: Vec<SiteId> = sites.iter().map(|(id, _)| sites.leader(id)).collect();
    for ((id, _), leader) in sites.iter().zip(&leaders).filter(|((id, _), l)| id == *l) {
        let members = sites.iter().zip(&leaders).filter(|(_, l)| *l == leader);
        let (mut linears, mut relief) = (Vec::new(), 0.0);
        for ((member, row), _) in members {
            linears.extend(row.linears.iter().filter(|l| plan.quantizes(**l)));
            relief += noises[member];
        }
        linears.sort_unstable();
        // Members of a group share their weights.
        let own = sites.row(id).linears.iter().filter(|l| plan.quantizes(**l));
        let percent = growth * own.map(elements).sum::<f64>() / all.max(1.0);
        if !linears.is_empty() && percent > 0.0 {
            raises.push(Raise {
                linears,
                relief,
                percent,
            });
        }
    }
    let value = |r: &Raise| r.relief / r.percent;
    raises.sort_by(|a, b| {
        value(b)
            .total_cmp(&value(a))
            .then(a.linears.cmp(&b.linears))
    });
    raises
}

/// What is written with the weights of some Linears in 8 bits: within `percent` of all weights if that is clearly better, and
/// as many as the SQNR asked for needs.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn raise_bits(
    written: Measured,
    raises: &[Raise],
    percent: f64,
    wish: Wish,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let affordable = affordable(raises, percent);
    let written = match affordable.is_empty() {
        true => written,
        false => better(written, &affordable, judge)?,
    };
    match wish.min_sqnr_db {
        Some(db) if !raises.is_empty() && lowest(&written.outputs) < db => {
            reach(written, raises, db, judge)
        }
        _ => Ok(written),
    }
}

/// Those that a budget has room for; what does not fit is passed over.
fn affordable(raises: &[Raise], percent: f64) -> Vec<&Raise> {
    let mut left = percent;
    let fits = |raise: &&Raise| {
        let fits = raise.percent <= left;
        left -= if fits { raise.percent } else { 0.0 };
        fits
    };
    raises.iter().filter(fits).collect()
}

/// What is written, or that with raised weights if they are worth their bytes.
fn better(written: Measured, raises: &[&Raise], judge: &mut dyn Judge) -> Result<Measured, Error> {
    let raised = Measured {
        account: written.account.clone(),
        ..measure(judge, raised(&written.plan, raises))?
    };
    let plain = judge.plain().map(|plain| plain.outputs.clone());
    let plain = plain.unwrap_or_default();
    let percent: f64 = raises.iter().map(|r| r.percent).sum();
    let gain = score(&raised.outputs, &written.outputs, None);
    let worth = gain >= CLEAR_DB.max(WORTH_DB * percent)
        && !breaks_promise(&raised.outputs, &written.outputs, &plain);
    Ok(if worth { raised } else { written })
}

/// The model with the fewest raised weights that reaches an SQNR, or the nearest; all are raised before anything stays in float.
fn reach(
    written: Measured,
    raises: &[Raise],
    db: f64,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let base = written.plan.clone();
    let mut best = written;
    let all: Vec<&Raise> = raises.iter().collect();
    // More bits make nothing worse.
    smallest(all.len(), all.len(), |count| -> Result<bool, Error> {
        let plan = lowered(raised(&base, &all[..count]), &all[count..]);
        let tried = Measured {
            account: best.account.clone(),
            ..measure(judge, plan)?
        };
        let enough = lowest(&tried.outputs) >= db;
        if enough || lowest(&tried.outputs) > lowest(&best.outputs) {
            best = tried;
        }
        Ok(enough)
    })?;
    Ok(best)
}

/// A plan with more bits for some weights.
fn raised(plan: &Plan, raises: &[&Raise]) -> Plan {
    with_precision(plan.clone(), raises, &Precision::Raised)
}

/// A plan with as many bits for some weights as the options say.
fn lowered(plan: Plan, raises: &[&Raise]) -> Plan {
    with_precision(plan, raises, &Precision::Integer)
}

fn with_precision(mut plan: Plan, raises: &[&Raise], precision: &Precision) -> Plan {
    for &linear in raises.iter().flat_map(|raise| &raise.linears) {
        if plan.quantizes(linear) {
            plan.linears[linear] = precision.clone();
        }
    }
    plan
}
