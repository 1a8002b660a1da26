//! The solver against an independent NumPy implementation: tests/python/golden_solver.py wrote the numbers.

use ndarray::{Array2, ArrayView2, Axis, concatenate};
use onnx_osplus::solve::loss::{SiteLoss, Trial, migrate};
use onnx_osplus::solve::{
    ActivationSpec, Fold, Method, Recipe, ShiftKind, SiteProblem, SolveSettings, WeightGranularity,
    WeightSpec, fake_quantize, quantize_weight, solve_site_with,
};
use serde_json::Value;

/// f32 sums in another order: relative tolerance of a loss.
const LOSS_TOLERANCE: f64 = 1e-4;

fn number(v: &Value) -> f64 {
    v.as_f64().expect("a number")
}

fn vector(v: &Value) -> Vec<f32> {
    let items = v.as_array().expect("a list").iter();
    items.map(|v| number(v) as f32).collect()
}

fn matrix(v: &Value) -> Array2<f32> {
    let rows: Vec<Vec<f32>> = v.as_array().expect("a list").iter().map(vector).collect();
    Array2::from_shape_fn((rows.len(), rows[0].len()), |(i, j)| rows[i][j])
}

fn kind(v: &Value) -> ShiftKind {
    match v.as_str().expect("a string") {
        "none" => ShiftKind::None,
        "one_sided" => ShiftKind::OneSided,
        "mid_range" => ShiftKind::MidRange,
        other => panic!("unknown kind of shift {other}"),
    }
}

#[track_caller]
fn assert_near(found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance * expected.abs(),
        "found {found}, expected {expected}"
    );
}

#[track_caller]
fn assert_all_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (&found, &expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() <= 1e-5 * expected.abs().max(1e-3),
            "found {found}, expected {expected}"
        );
    }
}

/// One case of the golden file with everything a [`SiteProblem`] borrows.
struct Case {
    folds: Vec<Array2<f32>>,
    extremes: Vec<(Vec<f32>, Vec<f32>)>,
    weights: Vec<Array2<f32>>,
    settings: SolveSettings,
    expected: Value,
}

fn extremes(x: ArrayView2<f32>) -> (Vec<f32>, Vec<f32>) {
    let fold = |start: f32, pick: fn(f32, f32) -> f32| {
        x.fold_axis(Axis(0), start, |a, b| pick(*a, *b)).to_vec()
    };
    (
        fold(f32::INFINITY, f32::min),
        fold(f32::NEG_INFINITY, f32::max),
    )
}

impl Case {
    fn new(v: &Value) -> Self {
        let list = |v: &Value| v.as_array().expect("a list").iter().map(matrix).collect();
        let bits = |v: &Value| v["bits"].as_u64().expect("bits") as u8;
        let folds: Vec<Array2<f32>> = list(&v["folds"]);
        Self {
            extremes: folds.iter().map(|x| extremes(x.view())).collect(),
            folds,
            weights: list(&v["weights"]),
            settings: SolveSettings {
                activation: ActivationSpec::per_tensor(
                    bits(&v["activation"]),
                    v["activation"]["symmetric"] == true,
                ),
                weight: WeightSpec::whole_or_columns(
                    bits(&v["weight"]),
                    v["weight"]["per_channel"] == true,
                ),
                method: Method::OsPlus,
            },
            expected: v["expected"].clone(),
        }
    }

    fn problem(&self) -> SiteProblem<'_> {
        let fold = |i: usize| Fold {
            min: &self.extremes[i].0,
            max: &self.extremes[i].1,
            sample: self.folds[i].view(),
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

    fn loss(&self, problem: &SiteProblem) -> SiteLoss {
        SiteLoss::new(problem, &self.settings, usize::MAX, usize::MAX)
    }
}

/// The file's grid of fractions and margins, and its cases.
fn golden() -> (Vec<f32>, Vec<f32>, Vec<Case>) {
    let file: Value = serde_json::from_str(include_str!("data/solver_golden.json")).expect("JSON");
    let cases = file["cases"].as_array().expect("cases").iter();
    (
        vector(&file["fractions"]),
        vector(&file["margins"]),
        cases.map(Case::new).collect(),
    )
}

#[test]
fn quantizers_agree() {
    for case in golden().2 {
        let expected = &case.expected;
        let (low, high) = case
            .extremes
            .iter()
            .fold((0.0f32, 0.0f32), |(low, high), (min, max)| {
                (
                    min.iter().fold(low, |a, &b| a.min(b)),
                    max.iter().fold(high, |a, &b| a.max(b)),
                )
            });
        let params = case.settings.activation.params(low, high);
        let numbers: Vec<f64> = expected["params"]
            .as_array()
            .expect("params")
            .iter()
            .map(number)
            .collect();
        assert_near(f64::from(params.scale), numbers[0], 1e-7);
        let whole = [params.zero_point, params.qmin, params.qmax].map(f64::from);
        assert_eq!(whole, numbers[1..]);
        let mut x = case.folds[0].clone();
        fake_quantize(x.as_slice_mut().expect("standard layout"), &params);
        assert_eq!(x, matrix(&expected["fake_quantized"]));
        let w = quantize_weight(case.weights[0].view(), &case.settings.weight);
        let scale = |n: usize| {
            w.scale[if case.settings.weight.granularity == WeightGranularity::PerChannel {
                n
            } else {
                0
            }]
        };
        let dequantized =
            Array2::from_shape_fn(w.q.dim(), |(j, n)| f32::from(w.q[[j, n]]) * scale(n));
        assert_eq!(dequantized, matrix(&expected["fake_quantized_weight"]));
    }
}

#[test]
fn cross_fitted_losses_agree() {
    for case in golden().2 {
        let problem = case.problem();
        let loss = case.loss(&problem);
        for point in case.expected["cross_fit"].as_array().expect("a list") {
            let trial = Trial {
                shift: kind(&point["kind"]),
                threshold: point["threshold"].as_f64().map(|t| t as f32),
                margins: vec![number(&point["margin"]) as f32],
                corrected: false,
            };
            let found = loss.evaluate(&trial, 0)[0] + loss.evaluate(&trial, 1)[0];
            assert_near(found, number(&point["loss"]), LOSS_TOLERANCE);
        }
    }
}

/// The paper's search, ranges and loss on the same tokens, is the cross-fit of two equal folds.
#[test]
fn plain_threshold_search_agrees() {
    for case in golden().2 {
        let x =
            concatenate(Axis(0), &[case.folds[0].view(), case.folds[1].view()]).expect("same C");
        let (min, max) = extremes(x.view());
        let fold = Fold {
            min: &min,
            max: &max,
            sample: x.view(),
            weights: None,
        };
        let problem = SiteProblem {
            folds: [fold, fold],
            ..case.problem()
        };
        let loss = case.loss(&problem);
        for point in case.expected["plain_search"].as_array().expect("a list") {
            let trial = Trial {
                shift: ShiftKind::MidRange,
                threshold: Some(number(&point[0]) as f32),
                margins: vec![1.0],
                corrected: false,
            };
            assert_near(
                loss.evaluate(&trial, 0)[0],
                number(&point[1]),
                LOSS_TOLERANCE,
            );
        }
    }
}

#[test]
fn the_search_finds_the_same_solution() {
    let (fractions, margins, cases) = golden();
    // All candidates go to the final: the search is then the exhaustive one of the script.
    let recipe = Recipe {
        thresholds: fractions,
        refinements: 0,
        survey_margins: margins.clone(),
        margins,
        finalists: usize::MAX,
        final_margins: usize::MAX,
        ..Recipe::default()
    };
    for case in cases {
        let found = solve_site_with(&case.problem(), &case.settings, &recipe);
        let expected = &case.expected["solution"];
        assert_near(
            found.loss_before,
            number(&expected["loss_before"]),
            LOSS_TOLERANCE,
        );
        assert_near(
            found.loss_after,
            number(&expected["loss_after"]),
            LOSS_TOLERANCE,
        );
        assert_eq!(found.shift_kind, kind(&expected["kind"]));
        assert_eq!(
            found.threshold,
            expected["threshold"].as_f64().map(|t| t as f32)
        );
        assert_near(f64::from(found.margin), number(&expected["margin"]), 1e-5);
        let (z, s) = (vector(&expected["shift"]), vector(&expected["scale"]));
        assert_all_near(found.shift.as_deref().unwrap_or(&vec![0.0; z.len()]), &z);
        assert_all_near(found.scale.as_deref().unwrap_or(&vec![1.0; s.len()]), &s);
        assert_all_near(&[found.range.0, found.range.1], &vector(&expected["range"]));
        let gain =
            10.0 * (number(&expected["loss_before"]) / number(&expected["loss_after"])).log10();
        assert!((found.validated_gain_db - gain).abs() < 1e-3);
    }
}

/// The equations themselves, on the numbers of the paper's figure 1: a channel from −97 to −58 moves to ±19.5.
#[test]
fn shift_and_scale_of_a_known_channel() {
    let (min, max) = ([-97.0, -1.0], [-58.0, 3.0]);
    let found = migrate(ShiftKind::MidRange, Some(5.0), &min, &max);
    assert_eq!(found.shift, Some(vec![-77.5, 1.0]));
    assert_eq!(found.scale, Some(vec![3.9, 1.0]));
    assert_eq!(found.range(&min, &max), (-5.0, 5.0));
}
