//! Rotations are bought: each costs run time, and what all of them cost together is limited. They are kept if the outputs
//! on held-out rows are clearly better with them, and as few of them as do nearly the same.

use std::collections::BTreeMap;

use super::super::judge::{Gain, Judge, Measured};
use super::super::plan::{Bought, Plan};
use super::super::sites::SiteId;
use super::super::verdict::{CLEAR_DB, breaks_promise, mean_sqnr, score, spread};
use super::open::measure_surely;
use super::price::{Market, Offer, affordable, enough};
use crate::error::Error;

/// What may be lost where fewer rotations do, in dB: by the estimate, and on the held-out rows.
const ESTIMATED_DB: f64 = 0.1;
const GIVEN_UP_DB: f64 = 0.2;

/// The standard errors over the rows that a gain must be above.
const DOUBT: f64 = 2.0;

/// What every percent of the run time must gain, in dB.
const WORTH_DB: f64 = 0.1;

/// The part of the price that must be saved for fewer of them to be tried.
const WORTH_A_TRIAL: f64 = 0.15;

/// What becomes of a plan that knows rotations.
pub(crate) enum Rotated {
    /// It is clearly better with them; plain has been measured.
    Better(Measured),
    /// It is not, or nothing can be bought. The plan itself and plain have been measured if they had to be; a note says what a
    /// reader should know.
    No {
        measured: Option<Measured>,
        note: Option<String>,
    },
}

/// The plan with rotations at those sites where they take most off the noise for their run time, for `percent` of it in all,
/// if that is clearly better than the plan without, and than `plain`.
///
/// # Errors
/// Those of [`Judge::measure`]; a float model that is not the original is not taken.
pub(crate) fn rotate(
    plan: &Plan,
    plain: Option<Plan>,
    market: Market,
    percent: f64,
    judge: &mut dyn Judge,
) -> Result<Rotated, Error> {
    let no = |measured, note| Ok(Rotated::No { measured, note });
    let noise = market.noise;
    let bought = affordable(market.offers, percent);
    let Some(plain) = plain.filter(|_| !bought.is_empty()) else {
        return no(None, None);
    };
    let every = with_rotations(plan, &bought);
    if let Err(error) = judge.float_check(&every) {
        return match error.is_of_float_check() {
            true => no(None, Some(format!("rotations were left out: {error}"))),
            false => Err(error),
        };
    }
    let noise = noise - bought.iter().map(|offer| offer.relief).sum::<f64>();
    let fewer = &bought[..enough(&bought, noise, ESTIMATED_DB)];
    let price = |offers: &[Offer]| offers.iter().map(|o| o.price).sum::<f64>();
    let saves = price(fewer) <= (1.0 - WORTH_A_TRIAL) * price(&bought);
    let fewer = (saves && !fewer.is_empty()).then(|| with_rotations(plan, fewer));
    // Neighbours are alike: what is rounded for one need not be rounded again for the next.
    let plans = fewer.into_iter().chain([every, plan.clone(), plain]);
    let mut measured = measure_surely(plans.collect(), judge)?.into_iter().rev();
    let (Some(plain), Some(base), Some(mut rotated)) =
        (measured.next(), measured.next(), measured.next())
    else {
        unreachable!("three plans at least were measured");
    };
    let gain = |m: &Measured| {
        score(&m.outputs, &plain.outputs, None) - score(&base.outputs, &plain.outputs, None)
    };
    let broken = |m: &Measured| breaks_promise(&m.outputs, &base.outputs, &plain.outputs);
    if let Some(fewer) = measured.next()
        && gain(&fewer) >= gain(&rotated) - GIVEN_UP_DB
        && !broken(&fewer)
    {
        rotated = fewer;
    }
    // What may be gone on other rows is no gain.
    let doubt = spread(&rotated.outputs, &base.outputs, &plain.outputs);
    let least = CLEAR_DB
        .max(DOUBT * doubt)
        .max(WORTH_DB * rotated.plan.bought().map(|b| b.percent).sum::<f64>());
    let better = gain(&rotated) >= least && !broken(&rotated);
    judge.set_plain(plain);
    if !better {
        return no(Some(base), None);
    }
    rotated.account.rotations = Some(Gain {
        sqnr_before_db: mean_sqnr(&base.outputs),
        sqnr_after_db: mean_sqnr(&rotated.outputs),
    });
    Ok(Rotated::Better(rotated))
}

/// A plan with the rotations that are offered; of each site the last.
fn with_rotations(plan: &Plan, offers: &[Offer]) -> Plan {
    let mut chosen: BTreeMap<SiteId, (usize, Bought)> = BTreeMap::new();
    for offer in offers {
        for &site in &offer.sites {
            let (_, before) = chosen.get(&site).copied().unzip();
            let before = before.map_or(0.0, |b: Bought| b.percent);
            let bought = Bought {
                // Sites that are decided together take alike of the price: they multiply by the same weights.
                percent: before + offer.price / offer.sites.len() as f64,
            };
            chosen.insert(site, (offer.choice, bought));
        }
    }
    let mut plan = plan.clone();
    for (site, (choice, bought)) in chosen {
        // What was dropped stays so.
        if let Some(site) = plan.sites[site].as_mut().filter(|s| s.dropped.is_none()) {
            site.rotate(choice, bought);
        }
    }
    plan
}
