//! Rotations against doing without them.

use super::*;
use crate::pipeline::strategy::price::{Market, Offer};
use crate::pipeline::strategy::{Rotated, rotate};
use crate::solve::Rotation;

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
    rotate(&plan, Some(plain), market, 15.0, &mut judge).unwrap()
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
        let found = rotate(&plan, Some(plain), market, 15.0, &mut judge).unwrap();
        let Rotated::Better(better) = found else {
            panic!("4 dB are a clear gain");
        };
        assert_eq!(is_rotated(&better.plan), expected);
    }
}
