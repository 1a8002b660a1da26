//! Rotations are bought: each costs run time, and what all of them cost together is limited. They are kept if the outputs
//! on held-out rows are clearly better with them.

use std::collections::BTreeMap;

use super::super::judge::{Gain, Judge, Measured, measure};
use super::super::plan::{Bought, Plan};
use super::super::sites::{SiteId, SiteRow, SiteTable};
use super::super::verdict::{CLEAR_DB, breaks_promise, mean_sqnr, score};
use crate::error::Error;
use crate::recognise::Recognised;
use crate::solve::Solution;

/// How much faster a model is whose Linears run in int8, about.
const SPEED_UP: f64 = 2.5;

/// The time of a multiplication of a rotation over that of a float Linear.
const RATE: f64 = 0.62;

/// Multiplications that take as long as the Reshapes and the passes over memory, per element.
const PASSES: f64 = 40.0;

/// A rotation that can be had.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Offer {
    /// Sites that are decided together.
    pub(super) sites: Vec<SiteId>,
    /// Over the best solution without it, in dB.
    pub(super) gain: f64,
    /// Percent of the run time.
    pub(super) price: f64,
}

impl Offer {
    /// What each of its sites takes of the price, alike: they multiply by the same weights.
    fn shares(&self) -> impl Iterator<Item = (SiteId, Bought)> {
        let bought = Bought {
            percent: self.price / self.sites.len() as f64,
            gain_db: self.gain,
        };
        self.sites.iter().map(move |&site| (site, bought))
    }
}

/// What is written with rotations at those sites that gain most per run time, for `percent` of it, if that is clearly
/// better.
///
/// # Errors
/// Those of [`Judge::measure`]; a float model that is not the original is not taken.
pub(crate) fn rotate(
    mut written: Measured,
    offers: Vec<Offer>,
    percent: f64,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let bought = affordable(offers, percent);
    if bought.is_empty() || written.plan.is_all_plain() {
        return Ok(written);
    }
    let mut plan = written.plan.clone();
    for (site, price) in bought.iter().flat_map(Offer::shares) {
        // What was dropped stays so.
        if let Some(site) = plan.sites[site].as_mut().filter(|s| s.dropped.is_none()) {
            site.rotate(price);
        }
    }
    if let Err(error) = judge.float_check(&plan) {
        if !error.is_of_float_check() {
            return Err(error);
        }
        let note = format!("rotations were left out: {error}");
        written.plan.notes.push(note);
        return Ok(written);
    }
    let mut rotated = measure(judge, plan)?;
    let plain = judge.plain().map(|plain| plain.outputs.clone());
    let plain = plain.unwrap_or_default();
    let gain = score(&rotated.outputs, &plain, None) - score(&written.outputs, &plain, None);
    let clear = gain >= CLEAR_DB && !breaks_promise(&rotated.outputs, &written.outputs, &plain);
    if !clear {
        return Ok(written);
    }
    rotated.account.rotations = Some(Gain {
        sqnr_before_db: mean_sqnr(&written.outputs),
        sqnr_after_db: mean_sqnr(&rotated.outputs),
    });
    Ok(rotated)
}

/// All rotations of a plan, with their prices.
pub(crate) fn offers(plan: &Plan, sites: &SiteTable, found: &Recognised) -> Vec<Offer> {
    let tokens = |row: &SiteRow| -> f64 {
        let stats = row.statistics.as_ref();
        stats.map_or(0.0, |s| s.folds.iter().map(|f| f.tokens as f64).sum())
    };
    let width = |row: &SiteRow| -> f64 {
        let linears = row.selected(found);
        linears.map(|l| (l.k * l.n) as f64).sum()
    };
    let work: f64 = sites.iter().map(|(_, row)| tokens(row) * width(row)).sum();
    let mut offers: BTreeMap<SiteId, Offer> = BTreeMap::new();
    for ((id, row), site) in sites.iter().zip(&plan.sites) {
        let Some((site, rotated)) = site.as_ref().and_then(|s| Some((s, s.rotated.as_ref()?)))
        else {
            continue;
        };
        let offer = offers.entry(sites.leader(id)).or_insert(Offer {
            sites: Vec::new(),
            gain: gain(&site.found, rotated),
            price: 0.0,
        });
        offer.sites.push(id);
        offer.price += 100.0 * SPEED_UP * RATE * multiplications(rotated) * tokens(row) / work;
    }
    offers.into_values().collect()
}

fn gain(before: &Solution, after: &Solution) -> f64 {
    10.0 * (before.loss_after / after.loss_after).log10()
}

/// What a rotation costs per token, in multiplications of a float Linear.
fn multiplications(rotated: &Solution) -> f64 {
    let rotation = rotated.rotation.as_ref();
    rotation.map_or(0.0, |r| r.channels() as f64 * (r.cost() as f64 + PASSES))
}

/// The offers that gain most for their price, within a budget; what does not fit is passed over.
fn affordable(mut offers: Vec<Offer>, budget: f64) -> Vec<Offer> {
    let value = |o: &Offer| o.gain / o.price;
    offers.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.sites.cmp(&b.sites)));
    let mut left = budget;
    offers.retain(|offer| {
        let fits = offer.price <= left;
        left -= if fits { offer.price } else { 0.0 };
        fits
    });
    offers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_gain_for_the_price_within_the_budget() {
        let offer = |site: usize, gain: f64, price: f64| Offer {
            sites: vec![site.into()],
            gain,
            price,
        };
        let offers = vec![
            offer(0, 2.0, 4.0),
            offer(1, 9.0, 3.0),
            offer(2, 5.0, 1.0),
            offer(3, 1.0, 0.4),
        ];
        let sites = |budget| -> Vec<usize> {
            let bought = affordable(offers.clone(), budget);
            bought
                .iter()
                .flat_map(|o| o.sites.iter().map(|s| s.index()))
                .collect()
        };
        assert_eq!(sites(100.0), [2, 1, 3, 0]);
        assert_eq!(sites(4.0), [2, 1]);
        assert_eq!(sites(1.5), [2, 3]);
        assert_eq!(sites(0.0), [] as [usize; 0]);
    }
}
