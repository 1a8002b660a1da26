//! Rotations against doing without them.

use super::*;
use crate::pipeline::strategy::rotate;
use crate::pipeline::strategy::rotate::Offer;
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
fn outcome(with: [f64; 2], plain: f64, exact: bool) -> Measured {
    let sites = table(&[Sink::Norm(0.into()), Sink::Explicit(String::new())], &[]);
    let turned = |plan: &Plan| {
        plan.sites
            .iter()
            .flatten()
            .any(|s| s.transform.rotation.is_some())
    };
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
        site.rotated = Some(Box::new(rotated()));
    }
    let plain = plan.plain(&sites);
    let written = super::super::open(plan, Some(plain), &mut judge).unwrap();
    let offer = |site: usize| Offer {
        sites: vec![site.into()],
        gain: 10.0,
        price: 6.0,
    };
    let offers = vec![offer(0), offer(1)];
    rotate(written, offers, 15.0, &mut judge).unwrap()
}

#[test]
fn rotations_are_kept_where_the_outputs_are_better() {
    let is_rotated = |m: &Measured| {
        let sites = m.plan.sites.iter().flatten();
        sites.filter(|s| s.transform.rotation.is_some()).count()
    };
    let better = outcome([25.0, 24.0], 10.0, true);
    assert_eq!(is_rotated(&better), 2);
    let gain = better.account.rotations.unwrap();
    assert_eq!((gain.sqnr_before_db, gain.sqnr_after_db), (20.0, 24.5));
    let bought = better
        .plan
        .sites
        .iter()
        .flatten()
        .map(|s| s.bought.unwrap());
    let bought: Vec<_> = bought.map(|b| (b.percent, b.gain_db)).collect();
    assert_eq!(bought, [(6.0, 10.0), (6.0, 10.0)]);
    // No clear gain; a loss; one that is not exact; an output taken below plain.
    assert_eq!(is_rotated(&outcome([20.1, 20.1], 10.0, true)), 0);
    assert_eq!(is_rotated(&outcome([19.0, 19.0], 10.0, true)), 0);
    assert_eq!(is_rotated(&outcome([30.0, 15.0], 20.0, true)), 0);
    let inexact = outcome([25.0, 24.0], 10.0, false);
    assert_eq!(is_rotated(&inexact), 0);
    assert!(inexact.plan.notes[0].starts_with("rotations were left out: "));
}
