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

use super::super::plan::{Dropped, Plan, SitePlan};
use super::super::prepare::Prepared;
use super::super::sites::{SiteId, SiteRow, SiteTable};
use crate::graph::View;
use crate::recognise::{LinearId, Recognised, attentions};
use crate::site::behind;
use crate::solve::{Mixing, Rotation};
use crate::target::Target;

/// What a rotation costs on a target, in the time of one multiplication of a float Linear.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Costs {
    /// Multiplications of a Linear in int8 in that time.
    int8_rate: f64,
    /// The rest of a model (norms, activations, attention), per channel that a Linear reads, and what attention adds to it for
    /// every token of a sequence.
    rest: f64,
    rest_per_token: f64,
    /// Of a rotation per channel, for every multiplication ([`Rotation::cost`]), and for the passes over memory where all
    /// channels are mixed, and where those of blocks are.
    product: f64,
    passes: f64,
    passes_of_blocks: f64,
    /// Of a rotation that mixes all channels, per token, whatever their number: its outer product is one call for every token.
    call: f64,
}

/// Measured on ONNX Runtime's CPU provider: rotations alone for 12 widths from 256 to 4096, and MiniLM-L6, ALBERT and SmolLM2
/// with them: their time grew by 15, 9 and 21 % where this says 15, 9 and 16. Below 384 channels it is the calls that take the time:
/// 32 to 256 channels took 9600 to 17400 in all, 2 to 5 times what the passes explain.
const ONNX_RUNTIME: Costs = Costs {
    int8_rate: 3.6,
    rest: 113.0,
    rest_per_token: 0.35,
    product: 0.9,
    passes: 25.0,
    passes_of_blocks: 8.0,
    call: 8000.0,
};

/// In OpenVINO the same files took 20 and 14 % longer: its other operators are faster, and these are not.
const OPENVINO: Costs = Costs {
    product: 1.3,
    passes: 35.0,
    passes_of_blocks: 11.0,
    ..ONNX_RUNTIME
};

/// What a pass takes beside the calls of [`Costs::call`], per channel.
const CALLED: f64 = 4.0;

/// Channels below which a rotation is no longer dear beside the rest of its model.
const NARROW: f64 = 96.0;

impl Costs {
    /// TensorRT's are taken to be those of ONNX Runtime: no card was at hand. A file for all runtimes is priced for the
    /// slowest.
    fn of(target: Target) -> Costs {
        match target {
            Target::Openvino | Target::Portable => OPENVINO,
            Target::Ort | Target::Tensorrt => ONNX_RUNTIME,
        }
    }

    /// A rotation, per token.
    fn rotation(&self, rotation: &Rotation) -> f64 {
        let channels = rotation.channels() as f64;
        let product = channels * self.product * rotation.cost();
        match rotation.mixing() {
            // In wide ones the passes hide the calls. In a model of few channels all operators are mostly calls, of which `rest`
            // says nothing either.
            Mixing::All => {
                let calls = if channels < NARROW { 0.0 } else { self.call };
                product + (channels * self.passes).max(calls + channels * CALLED)
            }
            Mixing::Blocks => product + channels * self.passes_of_blocks,
            Mixing::Heads => 0.0,
        }
    }

    /// The Linears of a site and the part of the rest that is theirs, per token of sequences of a length.
    /// `attention` of it is attention's, see [`attention_per_site`].
    fn site(&self, row: &SiteRow, found: &Recognised, attention: f64) -> f64 {
        let channels = row.selected(found).map(|l| l.k as f64).fold(0.0, f64::max);
        let multiplications: f64 = row.selected(found).map(|l| (l.k * l.n) as f64).sum();
        let rest = self.rest + self.rest_per_token * attention * length(row);
        multiplications / self.int8_rate + rest * channels
    }
}

/// A rotation that can be had, or a better one in the place of another.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Offer {
    /// Sites that are decided together.
    pub(super) sites: Vec<SiteId>,
    /// Which of the rotations of the sites it is, and the one that must have been bought before it.
    pub(super) choice: usize,
    pub(super) instead_of: Option<usize>,
    /// What it takes off the noise, beyond what the one before it does.
    pub(super) relief: f64,
    /// Percent of the run time, beyond those of the one before it.
    pub(super) price: f64,
}

/// All that is offered for a plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Market {
    pub(super) offers: Vec<Offer>,
    /// The noise of all sites without a rotation.
    pub(super) noise: f64,
}

/// All rotations that a plan knows, with their prices.
pub(crate) fn offers(plan: &Plan, prepared: &Prepared, target: Target) -> Market {
    if plan.sites.iter().flatten().all(|s| s.rotated.is_empty()) {
        return Market::default();
    }
    let Prepared { found, sites, .. } = prepared;
    let noises = noises(plan, &prepared.model.view(), found, sites);
    let costs = Costs::of(target);
    let attention = attention_per_site(&prepared.model.view(), sites);
    let time = |(_, row): (_, &SiteRow)| tokens(row) * costs.site(row, found, attention);
    let time: f64 = sites.iter().map(time).sum();
    let mut choices: BTreeMap<SiteId, Vec<Offer>> = BTreeMap::new();
    for ((id, row), site) in sites.iter().zip(&plan.sites) {
        let Some(site) = site else {
            continue;
        };
        let known = choices.entry(sites.leader(id)).or_default();
        for (choice, rotated) in site.rotated.iter().enumerate() {
            let left = rotated.loss_after / loss(site);
            if known.len() <= choice {
                known.push(Offer {
                    sites: Vec::new(),
                    choice,
                    instead_of: None,
                    relief: 0.0,
                    price: 0.0,
                });
            }
            let offer = &mut known[choice];
            offer.sites.push(id);
            offer.relief += noises[id] * (1.0 - left);
            let cost = rotated.rotation.as_ref().map_or(0.0, |r| costs.rotation(r));
            offer.price += 100.0 * cost * tokens(row) / time;
        }
    }
    Market {
        offers: choices.into_values().flat_map(steps).collect(),
        noise: noises.iter().sum(),
    }
}

/// The rotations of sites whose solution without one was dropped.
pub(crate) fn offers_for_dropped(plan: &Plan, prepared: &Prepared, target: Target) -> Market {
    let dropped = |site: &SitePlan| matches!(site.dropped, Some(Dropped::Validation(_)));
    if !plan.sites.iter().flatten().any(dropped) {
        return Market::default();
    }
    let mut market = offers(plan, prepared, target);
    let dropped = |&id: &SiteId| plan.sites[id].as_ref().is_some_and(dropped);
    let all = |offer: &Offer| offer.sites.iter().all(dropped);
    market.offers.retain(all);
    market
}

/// From rotations of the same sites, the cheapest first, to what each adds to the one before it. One that gives less for its
/// price than the next adds for its own is left out: what is left takes off less and less for its price.
fn steps(choices: Vec<Offer>) -> Vec<Offer> {
    let step = |from: Option<&Offer>, to: &Offer| Offer {
        instead_of: from.map(|o| o.choice),
        relief: to.relief - from.map_or(0.0, |o| o.relief),
        price: to.price - from.map_or(0.0, |o| o.price),
        ..to.clone()
    };
    let mut kept: Vec<Offer> = Vec::new();
    for offer in choices {
        if offer.relief <= kept.last().map_or(0.0, |o| o.relief) {
            continue;
        }
        while let Some((last, before)) = kept.split_last()
            && value(&step(Some(last), &offer)) >= value(&step(before.last(), last))
        {
            kept.pop();
        }
        kept.push(offer);
    }
    let before = std::iter::once(None).chain(kept.iter().map(Some));
    before.zip(&kept).map(|(from, to)| step(from, to)).collect()
}

/// What an offer takes off the noise for its price.
fn value(offer: &Offer) -> f64 {
    // A better one that costs no more comes first.
    offer.relief / offer.price.max(1e-9)
}

/// Calibration tokens of a site.
fn tokens(row: &SiteRow) -> f64 {
    let folds = row.statistics.iter().flat_map(|s| &s.folds);
    folds.map(|f| f.tokens as f64).sum()
}

/// How much of a transformer's attention a site has to pay for: all where there is one attention for every four sites, none in a
/// network of convolutions, whose images have as many places as long texts have tokens.
fn attention_per_site(view: &View, sites: &SiteTable) -> f64 {
    let known = attentions(view);
    let count = known.found.len() + known.unmatched().count();
    (4.0 * count as f64 / sites.iter().count().max(1) as f64).min(1.0)
}

/// Tokens of a sequence of a site, about: the last of which something is known, as a mean over the sequences.
fn length(row: &SiteRow) -> f64 {
    let folds = row.statistics.iter().flat_map(|s| &s.folds);
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for &(row, position) in folds.flat_map(|f| &f.places) {
        let last = last.entry(row).or_default();
        *last = (*last).max(position + 1);
    }
    let sum: u64 = last.values().sum();
    sum as f64 / last.len().max(1) as f64
}

/// The loss of what is done at a site.
fn loss(site: &SitePlan) -> f64 {
    match site.dropped {
        None => site.found.loss_after,
        Some(_) => site.found.loss_before,
    }
}

/// The noise of every site as it is.
pub(super) fn noises(
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
        let known = |site: &SitePlan| loss(site) / site.found.energy;
        let noise = plan.sites[id].as_ref().map_or(0.0, known);
        let share = share_of(id).or_else(|| behind(row)).unwrap_or(1.0);
        // Where nothing could be validated there is no energy.
        Some(noise * share).filter(|n| n.is_finite()).unwrap_or(0.0)
    };
    sites.iter().map(noise).collect()
}

/// The offers that take most off the noise for their price, within a budget; what does not fit is passed over.
pub(super) fn affordable(mut offers: Vec<Offer>, budget: f64) -> Vec<Offer> {
    offers.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.sites.cmp(&b.sites)));
    let mut left = budget;
    let mut bought: Vec<Offer> = Vec::new();
    for offer in offers {
        let ready = match offer.instead_of {
            Some(choice) => bought
                .iter()
                .any(|o| o.sites == offer.sites && o.choice == choice),
            None => true,
        };
        if ready && offer.price <= left {
            left -= offer.price;
            bought.push(offer);
        }
    }
    bought
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
    use proptest::prelude::*;

    fn offer(site: usize, relief: f64, price: f64) -> Offer {
        Offer {
            sites: vec![site.into()],
            choice: 0,
            instead_of: None,
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

    /// What rotations alone took in ONNX Runtime, in the time of one multiplication of a float Linear per token
    /// (`[2048, C]`, one thread): the estimate is within a quarter of it, and the more of the run time the narrower.
    #[test]
    fn narrow_rotations_cost_their_calls() {
        for (channels, measured) in [
            (96, 11300.0),
            (128, 12600.0),
            (192, 14900.0),
            (256, 17500.0),
        ] {
            let rotation = Rotation::of(channels, 0).unwrap();
            let ratio = ONNX_RUNTIME.rotation(&rotation) / measured;
            assert!((0.75..1.25).contains(&ratio), "{channels}: {ratio}");
        }
    }

    fn choice(choice: usize, relief: f64, price: f64) -> Offer {
        Offer {
            choice,
            ..offer(0, relief, price)
        }
    }

    #[test]
    fn a_better_rotation_is_a_step_from_the_cheaper_one() {
        let both = steps(vec![choice(0, 6.0, 1.0), choice(1, 8.0, 3.0)]);
        let expected = Offer {
            instead_of: Some(0),
            ..choice(1, 2.0, 2.0)
        };
        assert_eq!(both, [choice(0, 6.0, 1.0), expected]);
        // It is never bought alone.
        let choices = |budget| {
            let mut offers = both.clone();
            offers.push(offer(1, 9.0, 0.5));
            let bought = affordable(offers, budget);
            bought
                .iter()
                .map(|o| (o.sites[0].index(), o.choice))
                .collect::<Vec<_>>()
        };
        assert_eq!(choices(3.5), [(1, 0), (0, 0), (0, 1)]);
        assert_eq!(choices(3.0), [(1, 0), (0, 0)]);
        assert_eq!(choices(0.9), [(1, 0)]);
        let mut alone = both.clone();
        alone[0].price = 5.0;
        assert_eq!(affordable(alone, 4.0), []);
    }

    #[test]
    fn what_gives_less_for_its_price_than_the_next_is_left_out() {
        let steps = steps(vec![
            choice(0, 1.0, 1.0),
            choice(1, 8.0, 3.0),
            choice(2, 7.0, 9.0),
        ]);
        assert_eq!(steps, [choice(1, 8.0, 3.0)]);
    }

    proptest! {
        /// Whatever the choices are: every step takes off less for its price than the one before, is one from there, and all of
        /// them are the choice that takes off most.
        #[test]
        fn steps_get_worse_and_end_at_the_best(
            choices in prop::collection::vec((-1.0f64..9.0, 0.1f64..5.0), 1..6),
        ) {
            let mut price = 0.0;
            let offers = choices.iter().enumerate().map(|(i, &(relief, more))| {
                price += more;
                choice(i, relief, price)
            });
            let offers: Vec<Offer> = offers.collect();
            let found = steps(offers.clone());
            prop_assert!(found.windows(2).all(|w| value(&w[0]) > value(&w[1])));
            prop_assert!(found.windows(2).all(|w| w[1].instead_of == Some(w[0].choice)));
            prop_assert!(found.first().is_none_or(|o| o.instead_of.is_none()));
            let relief: f64 = found.iter().map(|o| o.relief).sum();
            let best = offers.iter().map(|o| o.relief).fold(0.0, f64::max);
            prop_assert!((relief - best).abs() < 1e-9);
            let paid: f64 = found.iter().map(|o| o.price).sum();
            let last = found.last().map_or(0.0, |o| offers[o.choice].price);
            prop_assert!((paid - last).abs() < 1e-9);
        }
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
