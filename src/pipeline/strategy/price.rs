//! What rotations are to be had, what each costs, and what it takes off the noise.
//!
//! The noise of a site is what its quantization adds to the stream that its Linears write to, over the energy of the stream:
//!
//! ```text
//! noise = loss / energy · share          share: energy of the outputs over that of the stream, per token
//! ```
//!
//! Where the Linears write no stream (Q, K, V, the first of an FFN), the share is that of the site behind them that does. So
//! sites can be compared: a gain of 10 dB where little noise is, is less than one of 3 dB where most is.

use std::collections::BTreeMap;

use oxc_index::IndexVec;

use super::super::plan::{Bought, Plan, SitePlan};
use super::super::prepare::Prepared;
use super::super::sites::{SiteId, SiteRow, SiteTable};
use crate::graph::View;
use crate::recognise::{LinearId, Recognised};
use crate::site::behind;
use crate::solve::Rotation;

/// What a rotation costs, in the time of one multiplication of a float Linear.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Costs {
    /// Multiplications of a Linear in int8 in that time.
    int8_rate: f64,
    /// The rest of a model (attention, norms, activations), per channel that a Linear reads.
    rest: f64,
    /// Of a rotation per channel, for every multiplication ([`Rotation::cost`]), and for the passes over memory.
    product: f64,
    passes: f64,
}

/// Measured on ONNX Runtime's CPU provider: rotations alone for 12 widths from 256 to 4096, and MiniLM-L6, ALBERT and SmolLM2
/// with them: their time grew by 16, 13 and 21 % where this says 18, 11 and 18. Other targets are taken to be alike.
const COSTS: Costs = Costs {
    int8_rate: 3.6,
    rest: 135.0,
    product: 0.9,
    passes: 25.0,
};

impl Costs {
    /// A rotation, per token.
    fn rotation(&self, rotation: &Rotation) -> f64 {
        rotation.channels() as f64 * (self.product * rotation.cost() + self.passes)
    }

    /// The Linears of a site and the part of the rest that is theirs, per token.
    fn site(&self, row: &SiteRow, found: &Recognised) -> f64 {
        let channels = row.selected(found).map(|l| l.k as f64).fold(0.0, f64::max);
        let multiplications: f64 = row.selected(found).map(|l| (l.k * l.n) as f64).sum();
        multiplications / self.int8_rate + self.rest * channels
    }
}

/// A rotation that can be had.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Offer {
    /// Sites that are decided together.
    pub(super) sites: Vec<SiteId>,
    /// Over the best solution without it, in dB.
    pub(super) gain_db: f64,
    /// What it takes off the noise.
    pub(super) relief: f64,
    /// Percent of the run time.
    pub(super) price: f64,
}

impl Offer {
    /// What each of its sites takes of the price, alike: they multiply by the same weights.
    pub(super) fn shares(&self) -> impl Iterator<Item = (SiteId, Bought)> {
        let bought = Bought {
            percent: self.price / self.sites.len() as f64,
            gain_db: self.gain_db,
        };
        self.sites.iter().map(move |&site| (site, bought))
    }
}

/// All that is offered for a plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Market {
    pub(super) offers: Vec<Offer>,
    /// The noise of all sites without a rotation.
    pub(super) noise: f64,
}

/// All rotations that a plan knows, with their prices.
pub(crate) fn offers(plan: &Plan, prepared: &Prepared) -> Market {
    if plan.sites.iter().flatten().all(|s| s.rotated.is_none()) {
        return Market::default();
    }
    let Prepared { found, sites, .. } = prepared;
    let noises = noises(plan, &prepared.model.view(), found, sites);
    let time = |(_, row): (_, &SiteRow)| tokens(row) * COSTS.site(row, found);
    let time: f64 = sites.iter().map(time).sum();
    let mut offers: BTreeMap<SiteId, Offer> = BTreeMap::new();
    for ((id, row), site) in sites.iter().zip(&plan.sites) {
        let Some((site, rotated)) = site.as_ref().and_then(|s| Some((s, s.rotated.as_ref()?)))
        else {
            continue;
        };
        let left = rotated.loss_after / site.found.loss_after;
        let offer = offers.entry(sites.leader(id)).or_insert(Offer {
            sites: Vec::new(),
            gain_db: -10.0 * left.log10(),
            relief: 0.0,
            price: 0.0,
        });
        offer.sites.push(id);
        offer.relief += noises[id] * (1.0 - left);
        let cost = rotated.rotation.as_ref().map_or(0.0, |r| COSTS.rotation(r));
        offer.price += 100.0 * cost * tokens(row) / time;
    }
    Market {
        offers: offers.into_values().collect(),
        noise: noises.iter().sum(),
    }
}

/// Calibration tokens of a site.
fn tokens(row: &SiteRow) -> f64 {
    let folds = row.statistics.iter().flat_map(|s| &s.folds);
    folds.map(|f| f.tokens as f64).sum()
}

/// The noise of every site without a rotation.
fn noises(
    plan: &Plan,
    view: &View,
    found: &Recognised,
    sites: &SiteTable,
) -> IndexVec<SiteId, f64> {
    let owners = sites.iter();
    let owners = owners.flat_map(|(id, row)| row.linears.iter().map(move |&l| (l, id)));
    let owners: BTreeMap<LinearId, SiteId> = owners.collect();
    let share_of = |id: SiteId| plan.sites[id].as_ref()?.found.share;
    let behind = |row: &SiteRow| {
        let linears = behind(view, found, &row.linears);
        let mut sites = linears.iter().filter_map(|l| owners.get(l));
        sites.find_map(|&id| share_of(id))
    };
    let noise = |(id, row): (SiteId, &SiteRow)| {
        let known = |site: &SitePlan| site.found.loss_after / site.found.energy;
        let noise = plan.sites[id].as_ref().map_or(0.0, known);
        let share = share_of(id).or_else(|| behind(row)).unwrap_or(1.0);
        // Where nothing could be validated there is no energy.
        Some(noise * share).filter(|n| n.is_finite()).unwrap_or(0.0)
    };
    sites.iter().map(noise).collect()
}

/// The offers that take most off the noise for their price, within a budget; what does not fit is passed over.
pub(super) fn affordable(mut offers: Vec<Offer>, budget: f64) -> Vec<Offer> {
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

/// How many of the offers, the first of which take most off the noise for their price, are enough: without the others the
/// noise grows by `most_db`, at most. `noise` is what is left with all of them.
pub(super) fn enough(offers: &[Offer], noise: f64, most_db: f64) -> usize {
    let limit = noise * 10f64.powf(most_db / 10.0);
    let mut left = noise;
    let needed = offers.iter().rev().take_while(|offer| {
        left += offer.relief;
        left <= limit
    });
    offers.len() - needed.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(site: usize, relief: f64, price: f64) -> Offer {
        Offer {
            sites: vec![site.into()],
            gain_db: 1.0,
            relief,
            price,
        }
    }

    fn sites(offers: &[Offer]) -> Vec<usize> {
        let sites = offers.iter().flat_map(|o| &o.sites);
        sites.map(|s| s.index()).collect()
    }

    #[test]
    fn most_relief_for_the_price_within_the_budget() {
        let offers = vec![
            offer(0, 2.0, 4.0),
            offer(1, 9.0, 3.0),
            offer(2, 5.0, 1.0),
            offer(3, 1.0, 0.4),
        ];
        let bought = |budget| sites(&affordable(offers.clone(), budget));
        assert_eq!(bought(100.0), [2, 1, 3, 0]);
        assert_eq!(bought(4.0), [2, 1]);
        assert_eq!(bought(1.5), [2, 3]);
        assert_eq!(bought(0.0), [] as [usize; 0]);
    }

    #[test]
    fn what_hardly_helps_is_not_needed() {
        let offers = [offer(0, 9.0, 3.0), offer(1, 0.02, 1.0), offer(2, 0.01, 1.0)];
        // 1 dB is a quarter of the noise, 0.1 dB a fortieth.
        assert_eq!(enough(&offers, 1.0, 1.0), 1);
        assert_eq!(enough(&offers, 1.0, 0.1), 2);
        assert_eq!(enough(&offers, 1.0, 0.01), 3);
        assert_eq!(enough(&offers, 0.0, 1.0), 3);
        assert_eq!(enough(&[], 1.0, 1.0), 0);
    }
}
