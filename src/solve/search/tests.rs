use crate::solve::*;
use ndarray::{Array2, Axis, aview1};
use proptest::prelude::*;

/// A problem that owns its arrays.
struct Owned {
    folds: [(Vec<f32>, Vec<f32>, Array2<f32>); 2],
    weights: Vec<Array2<f32>>,
}

fn extremes(x: &Array2<f32>) -> (Vec<f32>, Vec<f32>) {
    let column = |pick: fn(f32, f32) -> f32, start: f32| {
        x.fold_axis(Axis(0), start, |a, b| pick(*a, *b)).to_vec()
    };
    (
        column(f32::min, f32::INFINITY),
        column(f32::max, f32::NEG_INFINITY),
    )
}

impl Owned {
    fn new(folds: [Array2<f32>; 2], weights: Vec<Array2<f32>>) -> Self {
        let folds = folds.map(|x| {
            let (min, max) = extremes(&x);
            (min, max, x)
        });
        Self { folds, weights }
    }

    fn problem(&self) -> SiteProblem<'_> {
        let fold = |i: usize| Fold {
            min: &self.folds[i].0,
            max: &self.folds[i].1,
            sample: self.folds[i].2.view(),
            weights: None,
        };
        SiteProblem {
            folds: [fold(0), fold(1)],
            weights: self.weights.iter().map(|w| w.view()).collect(),
            allow_shift: true,
            allow_scale: true,
            correct_bias: false,
            ties: None,
        }
    }
}

/// Numbers in −1 ..= 1 that depend on `seed`: a small linear congruential generator.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }
}

/// Two folds of `t` tokens; `center` and `spread` give every channel's distribution.
fn sample(seed: u64, t: [usize; 2], n: &[usize], channels: &[(f32, f32)]) -> Owned {
    let mut noise = noise(seed);
    let mut fold = |t: usize| {
        Array2::from_shape_fn((t, channels.len()), |(_, j)| {
            channels[j].0 + channels[j].1 * (noise() + noise() + noise())
        })
    };
    let folds = [fold(t[0]), fold(t[1])];
    let weights = n
        .iter()
        .map(|&n| Array2::from_shape_fn((channels.len(), n), |_| noise()))
        .collect();
    Owned::new(folds, weights)
}

fn settings(symmetric: bool, method: Method) -> SolveSettings {
    SolveSettings {
        activation: ActivationSpec::per_tensor(8, symmetric),
        weight: WeightSpec::per_channel(8),
        method,
    }
}

/// Solves under every method and both activation forms, and checks what must hold for any input.
fn check(owned: &Owned) -> Vec<Solution> {
    let mut solutions = Vec::new();
    for symmetric in [false, true] {
        for method in [
            Method::OsPlus,
            Method::SmoothQuant { alpha: 0.5 },
            Method::None,
        ] {
            let settings = settings(symmetric, method);
            let found = solve_site(&owned.problem(), &settings);
            let (low, high) = found.range;
            assert!(
                low.is_finite() && high.is_finite() && low <= high,
                "{found:?}"
            );
            assert!(settings.activation.params(low, high).scale > 0.0);
            assert!(
                found
                    .scale
                    .iter()
                    .flatten()
                    .all(|s| s.is_finite() && *s > 0.0),
                "{found:?}"
            );
            assert!(
                found.shift.iter().flatten().all(|z| z.is_finite()),
                "{found:?}"
            );
            assert!(found.validated_gain_db.is_finite());
            if method == Method::OsPlus {
                assert!(found.validated_gain_db >= 0.0, "{found:?}");
                assert!(found.loss_after <= found.loss_before);
            }
            if method == Method::None {
                assert_eq!((found.shift.as_ref(), found.scale.as_ref()), (None, None));
                assert_eq!(found.range, found.range_before);
                assert_eq!(found.validated_gain_db, 0.0);
            }
            solutions.push(found);
        }
    }
    solutions
}

const ORDINARY: [(f32, f32); 8] = [(0.0, 1.0); 8];

#[test]
fn one_sided_outliers_are_shifted_and_scaled_away() {
    let mut channels = [(0.0, 1.0); 16];
    channels[3] = (-60.0, 2.0);
    channels[7] = (25.0, 5.0);
    let owned = sample(1, [40, 40], &[12, 5], &channels);
    let found = &check(&owned)[0];
    assert!(found.validated_gain_db > 10.0, "{found:?}");
    assert!(found.shift.is_some() && found.scale.is_some());
    assert!(found.range.1 - found.range.0 < 0.2 * (found.range_before.1 - found.range_before.0));
    assert!(found.curve.len() > 10);
    assert!(found.curve.is_sorted_by(|a, b| a.threshold < b.threshold));
}

#[test]
fn what_the_site_cannot_take_is_not_used() {
    let mut channels = ORDINARY;
    channels[2] = (-60.0, 8.0);
    let owned = sample(2, [30, 30], &[6], &channels);
    let with = |allow_shift, allow_scale| {
        let problem = SiteProblem {
            allow_shift,
            allow_scale,
            ..owned.problem()
        };
        solve_site(&problem, &settings(false, Method::OsPlus))
    };
    let neither = with(false, false);
    assert_eq!(
        (neither.shift, neither.scale, neither.threshold),
        (None, None, None)
    );
    assert!(neither.curve.is_empty());
    assert!(with(true, false).shift.is_some());
    assert_eq!(with(true, false).scale, None);
    assert!(with(false, true).scale.is_some());
    assert_eq!(with(false, true).shift, None);
}

#[test]
fn constant_and_zero_channels() {
    check(&sample(
        3,
        [10, 10],
        &[4],
        &[(2.0, 0.0), (0.0, 1.0), (-3.0, 0.0)],
    ));
    check(&sample(3, [10, 10], &[4], &[(0.0, 0.0), (0.0, 1.0)]));
    let zero = sample(3, [10, 10], &[4], &[(0.0, 0.0); 3]);
    assert!(
        check(&zero)
            .iter()
            .all(|s| s.loss_before == 0.0 && s.range == (0.0, 0.0))
    );
}

#[test]
fn all_zero_weight_columns_and_rows() {
    let mut owned = sample(4, [10, 10], &[4], &ORDINARY);
    owned.weights[0].column_mut(1).fill(0.0);
    owned.weights[0].row_mut(2).fill(0.0);
    check(&owned);
    owned.weights[0].fill(0.0);
    assert!(check(&owned).iter().all(
        |s| s.validated_gain_db == 0.0 && s.scale.is_none() || s.shift_kind == ShiftKind::None
    ));
}

#[test]
fn single_channel_single_output_and_single_tokens() {
    check(&sample(5, [10, 10], &[1], &[(3.0, 1.0)]));
    check(&sample(5, [1, 1], &[4], &ORDINARY));
    check(&sample(5, [1, 7], &[1], &ORDINARY));
}

#[test]
fn huge_outliers_and_ranges_on_one_side_of_zero() {
    let mut channels = ORDINARY;
    channels[5] = (1e4, 3e3);
    let found = &check(&sample(6, [30, 30], &[6], &channels))[0];
    assert!(found.validated_gain_db > 10.0, "{found:?}");
    check(&sample(6, [30, 30], &[6], &[(50.0, 1.0); 5]));
    check(&sample(6, [30, 30], &[6], &[(-50.0, 1.0); 5]));
}

#[test]
fn an_empty_fold_is_replaced_by_half_of_the_other() {
    let mut channels = ORDINARY;
    channels[1] = (-40.0, 6.0);
    let full = sample(7, [24, 24], &[6], &channels);
    let problem = full.problem();
    let empty = Array2::zeros((0, channels.len()));
    let never = (vec![f32::INFINITY; 8], vec![f32::NEG_INFINITY; 8]);
    let none = Fold {
        min: &never.0,
        max: &never.1,
        sample: empty.view(),
        weights: None,
    };
    for folds in [[problem.folds[0], none], [none, problem.folds[0]]] {
        let problem = SiteProblem {
            folds,
            ..problem.clone()
        };
        let found = solve_site(&problem, &settings(false, Method::OsPlus));
        assert!(found.validated_gain_db > 5.0);
        assert!(found.range.0.is_finite() && found.range_before.0 >= -60.0);
    }
}

/// With one token or none there is nothing to validate on: a mid-range shift would look perfect.
#[test]
fn too_few_tokens_to_validate_means_doing_nothing() {
    for tokens in [0, 1] {
        let owned = sample(8, [tokens, 0], &[3], &[(5.0, 1.0), (0.0, 1.0)]);
        for found in check(&owned) {
            assert_eq!(found.shift, None);
            assert_eq!(found.validated_gain_db, 0.0);
        }
        let found = solve_site(&owned.problem(), &settings(false, Method::OsPlus));
        assert_eq!((found.scale, found.margin), (None, 1.0));
    }
}

#[test]
fn doing_nothing_wins_ties() {
    let owned = sample(9, [20, 20], &[4], &[(0.0, 0.0); 4]);
    let found = solve_site(&owned.problem(), &settings(true, Method::OsPlus));
    assert_eq!(
        (found.shift_kind, found.threshold, found.margin),
        (ShiftKind::None, None, 1.0)
    );
}

/// SmoothQuant's equation with alpha 0.5: `s_j = sqrt(max|x_j| / max|w_j|)`, and its loss is reported unvalidated.
#[test]
fn smoothquant_is_its_equation() {
    let owned = sample(10, [20, 20], &[3, 2], &ORDINARY);
    let found = solve_site(
        &owned.problem(),
        &settings(false, Method::SmoothQuant { alpha: 0.5 }),
    );
    let scale = found.scale.expect("SmoothQuant always scales");
    for (j, &s) in scale.iter().enumerate() {
        let largest = |x: &Array2<f32>, axis| {
            x.index_axis(Axis(axis), j)
                .iter()
                .fold(0.0f32, |a, v| a.max(v.abs()))
        };
        let x = largest(&owned.folds[0].2, 1).max(largest(&owned.folds[1].2, 1));
        let w = largest(&owned.weights[0], 0).max(largest(&owned.weights[1], 0));
        assert!((s - (x / w).sqrt()).abs() < 1e-5 * s);
    }
    assert_eq!((found.shift, found.margin), (None, 1.0));
    assert!(found.loss_after > 0.0 && found.loss_after != found.loss_before);
}

fn channel() -> impl Strategy<Value = (f32, f32)> {
    prop_oneof![
        4 => (-1.0f32..1.0, 0.1f32..2.0),
        1 => (-50.0f32..50.0, 0.0f32..5.0),
        1 => (Just(0.0f32), 5.0f32..40.0),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn never_worse_than_doing_nothing(
        seed: u64, t in (1usize..12, 1usize..12), n in prop::collection::vec(1usize..5, 1..3),
        channels in prop::collection::vec(channel(), 1..8), bits in 2u8..=8, symmetric: bool, per_channel: bool,
    ) {
        let owned = sample(seed, [t.0, t.1], &n, &channels);
        let settings = SolveSettings {
            activation: ActivationSpec::per_tensor(bits, symmetric),
            weight: WeightSpec::whole_or_columns(bits, per_channel),
            method: Method::OsPlus,
        };
        let found = solve_site(&owned.problem(), &settings);
        let plain = solve_site(&owned.problem(), &SolveSettings { method: Method::None, ..settings });
        prop_assert_eq!(found.loss_before, plain.loss_after);
        prop_assert!(found.loss_after <= plain.loss_after);
        prop_assert!(found.validated_gain_db >= 0.0);
    }

    #[test]
    fn folding_keeps_the_output(
        seed: u64, z in prop::collection::vec(-20.0f32..20.0, 6), s in prop::collection::vec(0.05f32..30.0, 6),
    ) {
        let owned = sample(seed, [9, 1], &[4], &[(0.0, 3.0); 6]);
        let (x, w) = (&owned.folds[0].2, &owned.weights[0]);
        let migration = Migration { shift: Some(z.clone()), scale: Some(s.clone()), rotation: None };
        let mut migrated = x.clone();
        migration.apply_rows(x.as_slice().unwrap(), migrated.as_slice_mut().unwrap());
        for ((t, j), &v) in migrated.indexed_iter() {
            prop_assert_eq!(v, migration.apply(j, x[[t, j]]));
        }
        let folded = migrated.dot(&(w * &aview1(&s).insert_axis(Axis(1)))) + aview1(&z).dot(w);
        for (a, b) in folded.iter().zip(&x.dot(w)) {
            prop_assert!((a - b).abs() < 1e-3, "{} and {}", a, b);
        }
    }

    #[test]
    fn same_bits_with_one_and_two_threads(seed: u64, channels in prop::collection::vec(channel(), 2..8)) {
        let owned = sample(seed, [11, 8], &[5, 3], &channels);
        let [one, two] = [1, 2].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| solve_site(&owned.problem(), &settings(false, Method::OsPlus)))
        });
        prop_assert_eq!(one.loss_after.to_bits(), two.loss_after.to_bits());
        prop_assert_eq!(one, two);
    }
}

/// A token of weight 2 is that token twice, for the loss and for the noise model that ranks candidates.
#[test]
fn weights_count_tokens() {
    let owned = sample(
        3,
        [40, 5],
        &[6, 4],
        &[(0.0, 1.0), (2.0, 0.3), (0.0, 7.0), (-1.0, 0.5)],
    );
    let weights = [1.0f32, 2.0, 1.0, 3.0, 0.0];
    let repeated: Vec<usize> = (0..5).flat_map(|i| vec![i; weights[i] as usize]).collect();
    let twice = owned.folds[1].2.select(Axis(0), &repeated);
    let ones = vec![1.0; 40];
    let mut weighed = owned.problem();
    weighed.folds[0].weights = Some(&ones);
    weighed.folds[1].weights = Some(&weights);
    let mut repeated = owned.problem();
    repeated.folds[1].sample = twice.view();
    let settings = settings(false, Method::OsPlus);
    for shift in [ShiftKind::None, ShiftKind::MidRange] {
        for threshold in [None, Some(0.8)] {
            let trial = loss::Trial {
                shift,
                threshold,
                margins: vec![1.0, 0.7],
                corrected: false,
            };
            let of = |problem: &SiteProblem| {
                let loss = loss::SiteLoss::new(problem, &settings, 100, 100);
                let survey = survey::Survey::new(problem, &settings, 100, 100);
                (loss.evaluate(&trial, 0), survey.evaluate(&trial))
            };
            let ((a, surveyed_a), (b, surveyed_b)) = (of(&weighed), of(&repeated));
            for (a, b) in a.iter().zip(&b).chain(surveyed_a.iter().zip(&surveyed_b)) {
                assert!((a / b - 1.0).abs() < 1e-4, "{trial:?}: {a} {b}");
            }
        }
    }
}
