//! Rotations are bought: each costs run time, and what all of them cost together is limited.

use std::collections::BTreeMap;

use super::{Blocks, Run, Solutions};
use crate::Format;
use crate::calibrate::ChannelStats;
use crate::site::{Sink, Site};
use crate::solve::{Solution, Turn};

/// What a rotation must gain at least, in dB: behind a norm, and elsewhere.
const BEHIND_NORM_DB: f64 = 2.0;
const ELSEWHERE_DB: f64 = 1.0;

/// How much faster a model is whose Linears run in int8, about.
const SPEED_UP: f64 = 2.5;

/// The time of a multiplication of a rotation over that of a float Linear.
const RATE: f64 = 0.62;

/// Multiplications that take as long as the Reshapes and the passes over memory, per element.
const PASSES: f64 = 40.0;

impl Run<'_> {
    /// What a rotation may do at sites that are decided together.
    pub(super) fn turn<'b>(&self, blocks: &'b Blocks, members: &[usize]) -> Option<Turn<'b>> {
        let options = self.options;
        // The outputs of integer operators are measured before migration, and would have to be followed through signs; a float
        // model is for another tool, which would take the products for Linears.
        let wanted = options.format == Format::Qdq && options.extra_nodes;
        if !wanted || options.max_slowdown <= 0.0 {
            return None;
        }
        let sites: Vec<&Site> = members.iter().map(|&i| &blocks.sites[i]).collect();
        let ties = |site: &'b Site| match &site.sink {
            Sink::Traced(trace) => trace.ties.as_deref(),
            _ => None,
        };
        let first = ties(&blocks.sites[*members.first()?]);
        let alike = members.iter().all(|&i| ties(&blocks.sites[i]) == first);
        let usable = |i: &usize| blocks.sites[*i].has_sink() && blocks.ranks[*i] > 1;
        if !alike || !members.iter().all(usable) {
            return None;
        }
        let behind_norm = sites.iter().any(|s| matches!(s.sink, Sink::Norm(_)));
        Some(Turn {
            ties: first,
            signs: sites.iter().all(|s| s.allow_signs()),
            least_gain_db: match behind_norm {
                true => BEHIND_NORM_DB,
                false => ELSEWHERE_DB,
            },
        })
    }

    /// Puts the rotated solutions that gain most per run time in the place of the others, as long as there is time for them.
    pub(super) fn buy_rotations(
        &mut self,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &mut Solutions,
        rotated: Solutions,
    ) {
        let offers = offers(blocks, statistics, solutions, &rotated);
        let bought = affordable(offers, self.options.max_slowdown);
        let (mut count, mut price) = (0, 0.0);
        for offer in &bought {
            price += offer.price;
            for &i in &offer.sites {
                count += 1;
                solutions[i] = rotated[i].clone();
            }
        }
        if count > 0 {
            self.report.notes.push(format!(
                "rotations before the Linears of {count} sites, for about {price:.1} % of the run time (--max-slowdown {})",
                self.options.max_slowdown
            ));
        }
    }
}

/// A rotation that can be had.
#[derive(Debug, Clone, PartialEq)]
struct Offer {
    /// Sites that are decided together.
    sites: Vec<usize>,
    /// Over the best solution without it, in dB.
    gain: f64,
    /// Percent of the run time.
    price: f64,
}

/// All rotations, with their prices.
fn offers(
    blocks: &Blocks,
    statistics: &BTreeMap<String, ChannelStats>,
    solutions: &Solutions,
    rotated: &Solutions,
) -> Vec<Offer> {
    let tokens = |i: usize| -> f64 {
        let stats = statistics.get(&blocks.values[i]);
        stats.map_or(0.0, |s| s.folds.iter().map(|f| f.tokens as f64).sum())
    };
    let width = |i: usize| -> f64 {
        let site = &blocks.sites[i];
        let linears = blocks.selected(site);
        linears.map(|l| (l.k * l.n) as f64).sum()
    };
    let work: f64 = (0..blocks.sites.len()).map(|i| tokens(i) * width(i)).sum();
    let leaders = blocks.leaders();
    let mut offers: BTreeMap<usize, Offer> = BTreeMap::new();
    let pairs = solutions.iter().zip(rotated).enumerate();
    for (i, (solution, rotated)) in pairs {
        let (Some(solution), Some(rotated)) = (solution, rotated) else {
            continue;
        };
        let offer = offers
            .entry(leaders.get(&i).copied().unwrap_or(i))
            .or_insert(Offer {
                sites: Vec::new(),
                gain: gain(solution, rotated),
                price: 0.0,
            });
        offer.sites.push(i);
        offer.price += 100.0 * SPEED_UP * RATE * multiplications(rotated) * tokens(i) / work;
    }
    offers.into_values().collect()
}

fn gain(before: &Solution, after: &Solution) -> f64 {
    10.0 * (before.loss_after / after.loss_after).log10()
}

/// What a rotation costs per token, in multiplications of a float Linear.
fn multiplications(rotated: &Solution) -> f64 {
    rotated
        .rotation
        .as_ref()
        .map_or(0.0, |r| r.channels() as f64 * (r.cost() as f64 + PASSES))
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
            sites: vec![site],
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
            bought.iter().flat_map(|o| o.sites.clone()).collect()
        };
        assert_eq!(sites(100.0), [2, 1, 3, 0]);
        assert_eq!(sites(4.0), [2, 1]);
        assert_eq!(sites(1.5), [2, 3]);
        assert_eq!(sites(0.0), [] as [usize; 0]);
    }
}
