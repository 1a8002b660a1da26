//! Rotations are bought: each costs run time, and what all of them cost together is limited. They are kept if the outputs
//! on held-out rows are clearly better with them.

use std::collections::BTreeMap;

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::{Plan, SitePlan};
use super::super::prepare::Prepared;
use super::super::sites::{SiteId, SiteRow, SiteTable};
use super::super::verdict::{CLEAR_DB, breaks_promise, mean_sqnr, score};
use crate::error::Error;
use crate::graph::View;
use crate::recognise::{LinearId, Recognised};
use crate::site::behind;
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
    /// What it takes off the noise in the streams of the model, over their energy.
    pub(super) relief: f64,
    /// Percent of the run time.
    pub(super) price: f64,
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
    let sites: Vec<SiteId> = bought
        .iter()
        .flat_map(|offer| offer.sites.clone())
        .collect();
    for &site in &sites {
        // What was dropped stays so.
        if let Some(site) = plan.sites[site].as_mut().filter(|s| s.dropped.is_none()) {
            site.rotate();
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
    let price: f64 = bought.iter().map(|offer| offer.price).sum();
    let (before, after) = (mean_sqnr(&written.outputs), mean_sqnr(&rotated.outputs));
    rotated.plan.notes.push(format!(
        "rotations before the Linears of {} sites: {before:.2} dB -> {after:.2} dB for about {price:.1} % of the run time",
        sites.len()
    ));
    Ok(rotated)
}

/// All rotations of a plan, with their prices.
pub(crate) fn offers(plan: &Plan, prepared: &Prepared) -> Vec<Offer> {
    let Prepared { found, sites, .. } = prepared;
    let view = prepared.model.view();
    let writer = writers(&view, found, sites);
    let share = |id: SiteId, site: &SitePlan| {
        let behind = writer(id).and_then(|w| plan.sites[w].as_ref()?.found.share);
        site.found.share.or(behind).unwrap_or(1.0)
    };
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
            relief: 0.0,
            price: 0.0,
        });
        let relief = (site.found.loss_after - rotated.loss_after) / site.found.energy;
        offer.relief += relief * share(id, site);
        if std::env::var("DBG").is_ok() {
            eprintln!(
                "OFFER {} {relief:.2e} share {:.2e} = {:.2e} price {:.2}",
                row.name,
                share(id, site),
                relief * share(id, site),
                100.0 * SPEED_UP * RATE * multiplications(rotated) * tokens(row) / work
            );
        }
        offer.sites.push(id);
        offer.price += 100.0 * SPEED_UP * RATE * multiplications(rotated) * tokens(row) / work;
    }
    offers.into_values().collect()
}

/// For every site the one behind it whose Linears write what its outputs have become to a stream: that of the output
/// projection for Q, K and V.
fn writers<'a>(
    view: &'a View,
    found: &'a Recognised,
    sites: &'a SiteTable,
) -> impl Fn(SiteId) -> Option<SiteId> + 'a {
    let owners = sites
        .iter()
        .flat_map(|(id, row)| row.linears.iter().map(move |&l| (l, id)));
    let owners: BTreeMap<LinearId, SiteId> = owners.collect();
    move |id| {
        let behind = behind(view, found, &sites.row(id).linears);
        behind.iter().find_map(|l| owners.get(l)).copied()
    }
}

/// What a rotation costs per token, in multiplications of a float Linear.
fn multiplications(rotated: &Solution) -> f64 {
    let rotation = rotated.rotation.as_ref();
    rotation.map_or(0.0, |r| r.channels() as f64 * (r.cost() as f64 + PASSES))
}

/// The offers that gain most for their price, within a budget; what does not fit is passed over.
fn affordable(mut offers: Vec<Offer>, budget: f64) -> Vec<Offer> {
    let value = |o: &Offer| o.relief / o.price;
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
        let offer = |site: usize, relief: f64, price: f64| Offer {
            sites: vec![site.into()],
            relief,
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
