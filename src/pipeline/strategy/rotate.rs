//! Rotations are bought: each costs run time, and what all of them cost together is limited. They are kept if the outputs
//! on held-out rows are clearly better with them, and as few of them as do nearly the same.

use std::collections::BTreeMap;

use super::super::judge::{Gain, Judge, Measured, measure};
use super::super::plan::{Bought, Dropped, Plan, SitePlan};
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

/// Models that are tried at most where all that was bought is not worth its price.
const MOST_TRIALS: usize = 3;

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
/// if that is clearly better than the plan without, and than `plain`. Where not all of them are worth their price, as many as
/// are; and what `usual` percent would buy, where that is better than what more does.
///
/// # Errors
/// Those of [`Judge::measure`]; a float model that is not the original is not taken.
pub(crate) fn rotate(
    plan: &Plan,
    plain: Option<Plan>,
    market: Market,
    (percent, usual): (f64, f64),
    judge: &mut dyn Judge,
) -> Result<Rotated, Error> {
    let no = |measured, note| Ok(Rotated::No { measured, note });
    let basket = Basket::of(&market, percent);
    let Some(plain) = plain.filter(|_| !basket.bought.is_empty()) else {
        return no(None, None);
    };
    let every = with_rotations(plan, &basket.bought);
    if let Err(error) = judge.float_check(&every) {
        return match error.is_of_float_check() {
            true => no(None, Some(format!("rotations were left out: {error}"))),
            false => Err(error),
        };
    }
    let fewer = basket.fewer().map(|fewer| with_rotations(plan, fewer));
    // Neighbours are alike: what is rounded for one need not be rounded again for the next.
    let plans = fewer.into_iter().chain([every, plan.clone(), plain]);
    let mut measured = measure_surely(plans.collect(), judge)?;
    let (Some(plain), Some(base)) = (measured.pop(), measured.pop()) else {
        unreachable!("three plans at least were measured");
    };
    let scale = Scale {
        base: &base,
        plain: &plain,
    };
    let mut best = scale.choose(plan, &basket, measured, judge)?;
    if percent > usual {
        let other = scale.choose_of_smaller(plan, Basket::of(&market, usual), &basket, judge)?;
        let gain = |m: &Option<Measured>| m.as_ref().map_or(0.0, |m| scale.gain(m));
        if gain(&other) > gain(&best) {
            best = other;
        }
    }
    if let Some(best) = &mut best {
        best.account.rotations = Some(Gain {
            sqnr_before_db: mean_sqnr(&base.outputs),
            sqnr_after_db: mean_sqnr(&best.outputs),
        });
    }
    judge.set_plain(plain);
    match best {
        Some(best) => Ok(Rotated::Better(best)),
        None => no(Some(base), None),
    }
}

/// What would be written with rotations at sites whose solution without one was dropped, for what is left of `percent`, if that is
/// clearly better.
///
/// # Errors
/// Those of [`rotate`].
pub(crate) fn rotate_dropped(
    written: Measured,
    market: Market,
    percent: f64,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let spent: f64 = written.plan.bought().map(|b| b.percent).sum();
    let bought = affordable(market.offers, percent - spent);
    let Some(plain) = judge.plain().cloned().filter(|_| !bought.is_empty()) else {
        return Ok(written);
    };
    let plan = with_rotations(&written.plan, &bought);
    if let Err(error) = judge.float_check(&plan) {
        return match error.is_of_float_check() {
            true => Ok(written),
            false => Err(error),
        };
    }
    let mut rotated = measure(judge, plan)?;
    let scale = Scale {
        base: &written,
        plain: &plain,
    };
    if !scale.is_better(&rotated) {
        return Ok(written);
    }
    let before = written.account.rotations.map(|gain| gain.sqnr_before_db);
    rotated.account.rotations = Some(Gain {
        sqnr_before_db: before.unwrap_or_else(|| mean_sqnr(&written.outputs)),
        sqnr_after_db: mean_sqnr(&rotated.outputs),
    });
    Ok(rotated)
}

/// What a budget buys, the best for its price first.
struct Basket {
    bought: Vec<Offer>,
    /// How many of them take off nearly as much, and save enough to be tried.
    fewer: Option<usize>,
    /// The noise of all sites without any.
    noise: f64,
}

impl Basket {
    fn of(market: &Market, percent: f64) -> Basket {
        let bought = affordable(market.offers.clone(), percent);
        let mut basket = Basket {
            fewer: None,
            noise: market.noise,
            bought,
        };
        let (all, left) = (basket.bought.len(), basket.left(basket.bought.len()));
        let fewer = enough(&basket.bought, left, ESTIMATED_DB);
        let saves = basket.price(fewer) <= (1.0 - WORTH_A_TRIAL) * basket.price(all);
        basket.fewer = (saves && fewer > 0).then_some(fewer);
        basket
    }

    /// What the first `n` cost, in percent.
    fn price(&self, n: usize) -> f64 {
        self.bought[..n].iter().map(|offer| offer.price).sum()
    }

    /// The noise that the first `n` leave.
    fn left(&self, n: usize) -> f64 {
        self.noise - self.bought[..n].iter().map(|o| o.relief).sum::<f64>()
    }

    /// What the first `n` should gain, in dB; 60 at most.
    fn estimate(&self, n: usize) -> f64 {
        10.0 * (self.noise / self.left(n).max(self.noise * 1e-6)).log10()
    }

    fn fewer(&self) -> Option<&[Offer]> {
        self.fewer.map(|n| &self.bought[..n])
    }
}

/// What plans with rotations are held against.
struct Scale<'a> {
    /// Without them.
    base: &'a Measured,
    plain: &'a Measured,
}

impl Scale<'_> {
    /// In dB over the plan without rotations.
    fn gain(&self, of: &Measured) -> f64 {
        let score = |m: &Measured| score(&m.outputs, &self.plain.outputs, None);
        score(of) - score(self.base)
    }

    fn is_broken(&self, of: &Measured) -> bool {
        breaks_promise(&of.outputs, &self.base.outputs, &self.plain.outputs)
    }

    /// The standard error of a gain over the rows.
    fn doubt(&self, of: &Measured) -> f64 {
        spread(&of.outputs, &self.base.outputs, &self.plain.outputs)
    }

    /// Whether a gain is clear, there on other rows too, and worth its price.
    fn is_better(&self, of: &Measured) -> bool {
        let percent: f64 = of.plan.bought().map(|b| b.percent).sum();
        self.gain(of) >= least(self.doubt(of), percent) && !self.is_broken(of)
    }

    /// The plan to take of what a basket holds, where all of it was `measured`, behind as few of it as do nearly the same: one of
    /// those, or as many as are worth their price.
    fn choose(
        &self,
        plan: &Plan,
        basket: &Basket,
        mut measured: Vec<Measured>,
        judge: &mut dyn Judge,
    ) -> Result<Option<Measured>, Error> {
        let (every, fewer) = (measured.pop(), measured.pop());
        let Some(every) = every else {
            return Ok(None);
        };
        let nearly = |m: &Measured| self.gain(m) >= self.gain(&every) - GIVEN_UP_DB;
        if let Some(fewer) = fewer.as_ref().filter(|m| nearly(m))
            && self.is_better(fewer)
        {
            return Ok(Some(fewer.clone()));
        }
        if self.is_better(&every) {
            return Ok(Some(every));
        }
        let found = match self.is_broken(&every) {
            true => None,
            false => self.worth_their_price(plan, basket, every, judge)?,
        };
        Ok(found.or(fewer.filter(|m| self.is_better(m))))
    }

    /// [`Scale::choose`] of what a smaller budget buys, if that is not the same.
    fn choose_of_smaller(
        &self,
        plan: &Plan,
        small: Basket,
        than: &Basket,
        judge: &mut dyn Judge,
    ) -> Result<Option<Measured>, Error> {
        if small.bought.is_empty() || small.bought == than.bought {
            return Ok(None);
        }
        let plans = [small.fewer(), Some(&small.bought[..])]
            .into_iter()
            .flatten();
        let plans = plans.map(|offers| with_rotations(plan, offers));
        let measured = judge.measure(plans.collect())?;
        self.choose(plan, &small, measured, judge)
    }

    /// As many of a basket as are worth their price, the first of them, where `all` of it is not.
    ///
    /// How much of the estimate is true is told by what was measured last.
    fn worth_their_price(
        &self,
        plan: &Plan,
        basket: &Basket,
        all: Measured,
        judge: &mut dyn Judge,
    ) -> Result<Option<Measured>, Error> {
        let (mut last, mut count) = (all, basket.bought.len());
        for _ in 0..MOST_TRIALS {
            let truth = self.gain(&last) / basket.estimate(count);
            let doubt = self.doubt(&last);
            let worth = |&n: &usize| truth * basket.estimate(n) >= least(doubt, basket.price(n));
            let Some(n) = (1..count).rev().find(worth) else {
                break;
            };
            last = measure(judge, with_rotations(plan, &basket.bought[..n]))?;
            count = n;
            if self.is_better(&last) {
                return Ok(Some(last));
            }
        }
        Ok(None)
    }
}

/// What must be gained for a price in percent, in dB, where the rows leave a doubt of so many dB.
fn least(doubt: f64, percent: f64) -> f64 {
    // What may be gone on other rows is no gain.
    CLEAR_DB.max(DOUBT * doubt).max(WORTH_DB * percent)
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
        // What plain is better for, or is left in float, stays so.
        let open = |s: &&mut SitePlan| matches!(s.dropped, None | Some(Dropped::Validation(_)));
        if let Some(site) = plan.sites[site].as_mut().filter(open) {
            site.rotate(choice, bought);
        }
    }
    plan
}
