//! Rotations against doing without them.

use super::*;
use crate::pipeline::plan::{Bought, Dropped};
use crate::pipeline::strategy::price::{Market, Offer};
use crate::pipeline::strategy::{Rotated, rotate, rotate_dropped};
use crate::solve::Rotation;
use proptest::prelude::*;

fn rotated() -> Solution {
    Solution {
        rotation: Rotation::of(16, 1),
        loss_after: 0.1,
        validated_gain_db: 13.0,
        ..solution()
    }
}

/// What is written if rotations at two sites make of 20 dB `with`, where plain has 10 in the first and `plain` in the
/// second output.
fn outcome(with: [f64; 2], plain: f64, exact: bool) -> Rotated {
    let sites = table(&[Sink::Norm(0.into()), Sink::Explicit(String::new())], &[]);
    let turned = |plan: &Plan| is_rotated(plan) > 0;
    let outputs = |plan: &Plan, _| match (plan.is_all_plain(), turned(plan)) {
        (true, _) => vec![10.0, plain],
        (_, true) => with.to_vec(),
        _ => vec![20.0, 20.0],
    };
    let mut judge = Script::new(outputs);
    judge.float_error =
        Box::new(move |plan| Some(if turned(plan) && !exact { 1e-2 } else { 1e-7 }));
    let mut plan = searched(&sites, Format::Qdq);
    for site in plan.sites.iter_mut().flatten() {
        site.rotated = vec![rotated()];
    }
    let plain = plan.plain(&sites);
    let offer = |site: usize| Offer {
        sites: vec![site.into()],
        choice: 0,
        instead_of: None,
        relief: 1.0,
        price: 6.0,
    };
    let market = Market {
        offers: vec![offer(0), offer(1)],
        noise: 2.1,
    };
    rotate(&plan, Some(plain), market, (15.0, 15.0), &mut judge).unwrap()
}

fn is_rotated(plan: &Plan) -> usize {
    let sites = plan.sites.iter().flatten();
    sites.filter(|s| s.transform.rotation.is_some()).count()
}

#[test]
fn rotations_are_kept_where_the_outputs_are_better() {
    let Rotated::Better(better) = outcome([25.0, 24.0], 10.0, true) else {
        panic!("4.5 dB are a clear gain");
    };
    assert_eq!(is_rotated(&better.plan), 2);
    let gain = better.account.rotations.unwrap();
    assert_eq!((gain.sqnr_before_db, gain.sqnr_after_db), (20.0, 24.5));
    let sites = better.plan.sites.iter().flatten();
    let bought = sites.map(|s| s.bought.unwrap());
    let bought: Vec<_> = bought.map(|b| b.percent).collect();
    assert_eq!(bought, [6.0, 6.0]);
}

#[test]
fn rotations_that_are_not_clearly_better_are_left_out() {
    // No clear gain; less than a tenth of a dB for each of 12 percent; a loss; an output taken below plain.
    for (with, plain) in [
        ([20.1, 20.1], 10.0),
        ([21.1, 21.1], 10.0),
        ([19.0, 19.0], 10.0),
        ([30.0, 15.0], 20.0),
    ] {
        let Rotated::No { measured, note } = outcome(with, plain, true) else {
            panic!("{with:?} against {plain}");
        };
        assert_eq!((is_rotated(&measured.unwrap().plan), note), (0, None));
    }
    // One that is not exact is not measured.
    let Rotated::No { measured, note } = outcome([25.0, 24.0], 10.0, false) else {
        panic!("it is not exact");
    };
    assert!(measured.is_none() && note.unwrap().starts_with("rotations were left out: "));
}

/// The second rotation takes a thousandth off the noise: it is left out where the held-out rows agree.
#[test]
fn as_few_rotations_as_do_nearly_the_same() {
    for (fewer_db, expected) in [(24.9, 1), (24.0, 2)] {
        let sites = table(&[Sink::Norm(0.into()), Sink::Norm(1.into())], &[]);
        let outputs = move |plan: &Plan, _| match (plan.is_all_plain(), is_rotated(plan)) {
            (true, _) => vec![10.0],
            (_, 0) => vec![20.0],
            (_, 1) => vec![fewer_db],
            _ => vec![25.0],
        };
        let mut judge = Script::new(outputs);
        let mut plan = searched(&sites, Format::Qdq);
        for site in plan.sites.iter_mut().flatten() {
            site.rotated = vec![rotated()];
        }
        let plain = plan.plain(&sites);
        let offer = |site: usize, relief: f64| Offer {
            sites: vec![site.into()],
            choice: 0,
            instead_of: None,
            relief,
            price: 6.0,
        };
        let market = Market {
            offers: vec![offer(0, 1.0), offer(1, 0.001)],
            noise: 1.1,
        };
        let found = rotate(&plan, Some(plain), market, (15.0, 15.0), &mut judge).unwrap();
        let Rotated::Better(better) = found else {
            panic!("4 dB are a clear gain");
        };
        assert_eq!(is_rotated(&better.plan), expected);
    }
}

/// Rotations of the first sites, each at its price; what they take off a noise of 1, and what the rows say of those that are
/// written, in dB over the plan without.
struct Shop<'a> {
    offers: Vec<(f64, f64)>,
    gain: &'a dyn Fn(&[bool]) -> f64,
}

impl Shop<'_> {
    /// What a budget ends with, in dB, and which sites are rotated.
    fn outcome(&self, percent: f64, usual: f64) -> (f64, Vec<bool>) {
        let sinks: Vec<Sink> = (0..self.offers.len())
            .map(|i| Sink::Norm(i.into()))
            .collect();
        let sites = table(&sinks, &[]);
        let turned = |plan: &Plan| -> Vec<bool> {
            let sites = plan.sites.iter().flatten();
            sites.map(|s| s.transform.rotation.is_some()).collect()
        };
        let outputs = |plan: &Plan, _| match plan.is_all_plain() {
            true => vec![5.0],
            false => vec![20.0 + (self.gain)(&turned(plan))],
        };
        let mut judge = Script::new(outputs);
        let mut plan = searched(&sites, Format::Qdq);
        for site in plan.sites.iter_mut().flatten() {
            site.rotated = vec![rotated()];
        }
        let plain = plan.plain(&sites);
        let offer = |(site, &(relief, price)): (usize, &(f64, f64))| Offer {
            sites: vec![site.into()],
            choice: 0,
            instead_of: None,
            relief,
            price,
        };
        let market = Market {
            offers: self.offers.iter().enumerate().map(offer).collect(),
            noise: 1.0,
        };
        let budgets = (percent, usual);
        match rotate(&plan, Some(plain), market, budgets, &mut judge).unwrap() {
            Rotated::Better(better) => {
                let turned = turned(&better.plan);
                ((self.gain)(&turned), turned)
            }
            Rotated::No { .. } => (0.0, vec![false; self.offers.len()]),
        }
    }
}

/// What the noise that is left tells.
fn consistent(offers: &[(f64, f64)], turned: &[bool]) -> f64 {
    let off = offers.iter().zip(turned).filter(|(_, t)| **t);
    -10.0 * (1.0 - off.map(|(o, _)| o.0).sum::<f64>()).log10()
}

/// Three take off half of the noise for 6 percent, a fourth nearly nothing for 35: all together are not worth 41 percent.
#[test]
fn where_all_are_too_dear_as_many_as_are_worth_their_price() {
    let mut offers = vec![(0.2, 2.0), (0.15, 2.0), (0.15, 2.0)];
    offers.extend([(0.04, 35.0), (0.03, 35.0)]);
    let gain = |turned: &[bool]| consistent(&offers, turned);
    let shop = Shop {
        offers: offers.clone(),
        gain: &gain,
    };
    let expected = vec![true, true, true, false, false];
    for (percent, usual) in [(50.0, 0.0), (50.0, 15.0), (15.0, 15.0)] {
        assert_eq!(shop.outcome(percent, usual).1, expected, "{percent}");
    }
    // Not even one is worth its price.
    let gain = |turned: &[bool]| 0.02 * consistent(&offers, turned);
    let shop = Shop {
        offers: offers.clone(),
        gain: &gain,
    };
    assert_eq!(shop.outcome(50.0, 15.0), (0.0, vec![false; 5]));
}

/// The rows may say the contrary of the estimate.
#[test]
fn what_the_usual_budget_buys_is_tried_for_a_larger_one() {
    let offers = vec![(0.5, 5.0), (0.1, 5.0), (0.1, 30.0)];
    let gain = |turned: &[bool]| match (turned[0], turned[2]) {
        (_, true) => -4.0,
        (true, _) => 3.0,
        _ => 0.0,
    };
    let shop = Shop {
        offers,
        gain: &gain,
    };
    let (gain, turned) = shop.outcome(50.0, 15.0);
    assert_eq!((gain, turned[2]), (3.0, false));
}

/// Where the solution without a rotation was dropped, the rotation is tried: for what is left of the budget.
#[test]
fn a_rotation_where_the_site_was_dropped() {
    for (with, spent, expected) in [(25.0, 0.0, 1), (20.1, 0.0, 0), (25.0, 12.0, 0)] {
        let sites = table(&[Sink::Norm(0.into()), Sink::Norm(1.into())], &[]);
        let outputs = move |plan: &Plan, _| match (plan.is_all_plain(), is_rotated(plan)) {
            (true, _) => vec![10.0],
            (_, 0) => vec![20.0],
            _ => vec![with],
        };
        let mut judge = Script::new(outputs);
        let mut plan = searched(&sites, Format::Qdq);
        let [kept, dropped] = [0usize, 1].map(SiteId::from);
        let bought = Some(Bought { percent: spent });
        plan.sites[kept].as_mut().unwrap().bought = bought.filter(|_| spent > 0.0);
        plan.sites[kept].as_mut().unwrap().transform.rotation =
            Rotation::of(16, 1).filter(|_| spent > 0.0);
        let site = plan.sites[dropped].as_mut().unwrap();
        site.rotated = vec![rotated()];
        site.drop(Dropped::Validation("it hurts".to_owned()));
        let plain = crate::pipeline::judge::measure(&mut judge, plan.plain(&sites)).unwrap();
        judge.set_plain(plain);
        let written = crate::pipeline::judge::measure(&mut judge, plan.clone()).unwrap();
        let market = Market {
            offers: vec![Offer {
                sites: vec![dropped],
                choice: 0,
                instead_of: None,
                relief: 1.0,
                price: 6.0,
            }],
            noise: 1.1,
        };
        let found = rotate_dropped(written, market, 15.0, &mut judge).unwrap();
        let site = found.plan.sites[dropped].as_ref().unwrap();
        assert_eq!(
            usize::from(site.dropped.is_none()),
            expected,
            "{with} {spent}"
        );
        assert_eq!(site.transform.rotation.is_some(), expected == 1);
        assert_eq!(found.account.rotations.is_some(), expected == 1);
    }
}

proptest! {
    /// Whatever the rows say of rotations, alone and of neighbours together: a larger budget than the usual one never ends worse.
    #[test]
    fn more_time_than_usual_is_never_worse(
        offers in prop::collection::vec((0.001f64..0.12, 0.5f64..9.0, -1.0f64..2.0), 1..8),
        interaction in -2.0f64..2.0,
        more in 1.0f64..5.0,
    ) {
        let gain = |turned: &[bool]| {
            let alone = offers.iter().zip(turned).filter(|(_, t)| **t).map(|(o, _)| o.2);
            let pairs = turned.windows(2).filter(|w| w[0] && w[1]).count();
            alone.sum::<f64>() + interaction * pairs as f64
        };
        let prices = offers.iter().map(|o| (o.0, o.1)).collect();
        let shop = Shop { offers: prices, gain: &gain };
        let [(usual, _), (larger, _)] = [15.0, 15.0 * more].map(|b| shop.outcome(b, 15.0));
        prop_assert!(usual >= 0.0 && larger >= usual, "{} {}", usual, larger);
    }

    /// Where the estimate is true but for a factor, no budget ends worse than a smaller one, by more than what is given up for
    /// fewer rotations.
    #[test]
    fn more_time_is_never_worse_where_the_estimate_is_true(
        reliefs in prop::collection::vec(0.001f64..0.12, 1..8),
        price in 0.5f64..9.0,
        factor in 0.05f64..1.5,
        budgets in (1.0f64..60.0, 1.0f64..60.0),
    ) {
        let offers: Vec<(f64, f64)> = reliefs.iter().map(|r| (*r, price)).collect();
        let gain = |turned: &[bool]| factor * consistent(&offers, turned);
        let shop = Shop { offers: offers.clone(), gain: &gain };
        let (small, large) = (budgets.0.min(budgets.1), budgets.0.max(budgets.1));
        let [(small, _), (large, _)] = [small, large].map(|b| shop.outcome(b, 15.0));
        prop_assert!(large >= small - 0.2, "{} {}", small, large);
    }
}
