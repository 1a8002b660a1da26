//! The quantization of what a Linear gives, where the integer product has an integer output (QLinearMatMul).
//!
//! The product p = x' W', `[T, N]`, before the bias, is stored in 8 bits:
//!
//! ```text
//! q = saturate(round_half_even(p_n / (s t_n)) + zero point) in 0 ..= 255        p_n ≈ (q − zero point) s t_n
//! ```
//!
//! The operator has one scale s. With t = 1 it has to cover the largest column, and the columns of a transformer differ
//! as its channels do: ordinary ones are left with a handful of levels. But the scale of each column of the *weight* is
//! free, and dividing it by t_n divides the column's output by t_n, in the integer operator itself: only a Mul by t, `[N]`,
//! is left to do, behind the DequantizeLinear. That is the migration of Outlier Suppression+ with roles exchanged, of the
//! outputs into the weight.
//!
//! [`search_grid`] chooses among both, and how far the range may clip, on tokens that did not set the ranges.

use ndarray::Array2;

use super::rounding::saturate_round;
use super::{ActivationSpec, QuantParams};

/// Factors on the range: below 1 the extremes are clipped, above 1 there is room for unseen ones.
const MARGINS: [f32; 7] = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25];

/// What factors of columns must gain to be worth the Mul that takes them off again.
const MUL_GAIN_DB: f64 = 1.0;

/// A column's factor is at least this, whatever is in it.
const SMALLEST_FACTOR: f32 = 1e-6;

/// The largest integer.
const QMAX: i32 = 255;

/// How the product of one Linear is quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputGrid {
    /// s, zero point and the integers 0 ..= 255.
    pub params: QuantParams,
    /// t, `[N]`, in (0, 1]; `None` = 1.
    pub factors: Option<Vec<f32>>,
}

/// One half of the calibration tokens of a product.
#[derive(Debug, Clone)]
pub struct ProductFold {
    /// Smallest value of every column over all tokens, `[N]`.
    pub min: Vec<f32>,
    /// Largest value of every column over all tokens, `[N]`.
    pub max: Vec<f32>,
    /// Some tokens of every `stride`-th column: `[T, ⌈N / stride⌉]`.
    pub sample: Array2<f32>,
}

/// Where the steps come from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Steps {
    /// One step that covers all columns.
    Tensor,
    /// A step per column; zero is at this integer.
    Columns { zero_point: i32 },
}

/// The grid of one step that covers every value of both halves: plain min-max.
pub fn min_max_grid(folds: &[ProductFold; 2]) -> OutputGrid {
    let (min, max) = joint(folds);
    grid(Steps::Tensor, &min, &max, 1.0)
}

/// The grid with the lowest error ‖Q(p) − p‖² on tokens of the half that did not set its ranges, summed over both ways of
/// choosing that half; its final ranges are those of both halves. A step per column is tried if `columns`.
pub fn search_grid(folds: &[ProductFold; 2], stride: usize, columns: bool) -> OutputGrid {
    let (min, max) = joint(folds);
    let error = |(steps, margin): (Steps, f32)| -> f64 {
        let halves = [(&folds[0], &folds[1]), (&folds[1], &folds[0])];
        let of_half = |(fit, other): (&ProductFold, &ProductFold)| {
            squared_error(
                &grid(steps, &fit.min, &fit.max, margin),
                &other.sample,
                stride,
            )
        };
        halves.map(of_half).iter().sum()
    };
    let best = |steps: &[Steps]| {
        let candidates = steps.iter().flat_map(|&s| MARGINS.map(|m| (s, m)));
        let scored = candidates.map(|c| (c, error(c)));
        scored.min_by(|a, b| a.1.total_cmp(&b.1))
    };
    let plain = ((Steps::Tensor, 1.0), f64::INFINITY);
    let (tensor, of_tensor) = best(&[Steps::Tensor]).unwrap_or(plain);
    let (steps, margin) = match best(&zero_points(&min, &max)).filter(|_| columns) {
        Some((found, error)) if error * 10f64.powf(MUL_GAIN_DB / 10.0) < of_tensor => found,
        _ => tensor,
    };
    grid(steps, &min, &max, margin)
}

/// Steps per column with zero in the middle, and where it is for the range of all columns.
fn zero_points(min: &[f32], max: &[f32]) -> Vec<Steps> {
    let all = grid(Steps::Tensor, min, max, 1.0).params.zero_point;
    let mut points = vec![QMAX / 2 + 1, all.clamp(1, QMAX - 1)];
    points.dedup();
    let columns = |zero_point| Steps::Columns { zero_point };
    points.into_iter().map(columns).collect()
}

/// The grid for columns between `min` and `max`, `[N]` each.
fn grid(steps: Steps, min: &[f32], max: &[f32], margin: f32) -> OutputGrid {
    let spec = ActivationSpec::per_tensor(8, false);
    let zero_point = match steps {
        Steps::Tensor => {
            let low = min.iter().fold(0.0f32, |a, &b| a.min(b));
            let high = max.iter().fold(0.0f32, |a, &b| a.max(b));
            return OutputGrid {
                params: spec.params(low * margin, high * margin),
                factors: None,
            };
        }
        Steps::Columns { zero_point } => zero_point,
    };
    // The step that each column needs on its longer side.
    let (below, above) = (zero_point as f32, (QMAX - zero_point) as f32);
    let step = |(&min, &max): (&f32, &f32)| (-min / below).max(max / above).max(0.0);
    let needed: Vec<f32> = min.iter().zip(max).map(step).collect();
    let largest = needed.iter().fold(0.0f32, |a, &b| a.max(b));
    let mut params = spec.params(0.0, largest * margin * QMAX as f32);
    params.zero_point = zero_point;
    let factor = |&step: &f32| match largest > 0.0 && step > 0.0 {
        true => (step / largest).max(SMALLEST_FACTOR),
        // A column of zeros is exact with any step.
        false => 1.0,
    };
    OutputGrid {
        params,
        factors: Some(needed.iter().map(factor).collect()),
    }
}

/// ‖Q(p) − p‖² over `sample: [T, ⌈N / stride⌉]`.
fn squared_error(grid: &OutputGrid, sample: &Array2<f32>, stride: usize) -> f64 {
    let scale = grid.params.scale;
    let columns = sample.ncols();
    let steps: Vec<f32> = match &grid.factors {
        Some(factors) => factors.iter().step_by(stride).map(|t| scale * t).collect(),
        None => vec![scale; columns],
    };
    let low = (grid.params.qmin - grid.params.zero_point) as f32;
    let high = (grid.params.qmax - grid.params.zero_point) as f32;
    let mut error = 0.0;
    for row in sample.rows() {
        let errors = row.iter().zip(&steps).map(|(&p, &step)| {
            let e = saturate_round(p / step, low, high) * step - p;
            e * e
        });
        error += f64::from(errors.sum::<f32>());
    }
    error
}

/// The extremes of every column over both halves.
fn joint(folds: &[ProductFold; 2]) -> (Vec<f32>, Vec<f32>) {
    let [a, b] = folds;
    let pairs = |a: &[f32], b: &[f32], f: fn(f32, f32) -> f32| -> Vec<f32> {
        a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()
    };
    (
        pairs(&a.min, &b.min, f32::min),
        pairs(&a.max, &b.max, f32::max),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use proptest::prelude::*;

    fn fold(sample: Array2<f32>, stride: usize) -> ProductFold {
        let extremes = |start: f32, pick: fn(f32, f32) -> f32| {
            let of = |c: ndarray::ArrayView1<f32>| c.iter().fold(start, |a, &b| pick(a, b));
            sample.columns().into_iter().map(of).collect()
        };
        ProductFold {
            min: extremes(f32::INFINITY, f32::min),
            max: extremes(f32::NEG_INFINITY, f32::max),
            sample: sample.slice(ndarray::s![.., ..;stride]).to_owned(),
        }
    }

    /// Numbers in −1..1 without a pattern.
    fn noise(i: usize) -> f32 {
        (super::super::mix::mix(i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn folds(columns: &[f32], stride: usize) -> [ProductFold; 2] {
        [0, 1].map(|f| {
            let at = |(t, n): (usize, usize)| columns[n] * noise(f * 7919 + t * columns.len() + n);
            fold(Array2::from_shape_fn((64, columns.len()), at), stride)
        })
    }

    #[test]
    fn columns_of_one_size_need_no_mul() {
        let grid = search_grid(&folds(&[1.0; 6], 1), 1, true);
        assert_eq!(grid.factors, None);
        assert_eq!(grid.params.qmax, 255);
    }

    #[test]
    fn an_outlier_column_gets_a_step_of_its_own_if_a_mul_is_allowed() {
        let folds = folds(&[1.0, 1.0, 100.0, 1.0, 0.0], 1);
        let without = search_grid(&folds, 1, false);
        assert_eq!(without.factors, None);
        let with = search_grid(&folds, 1, true);
        let factors = with.factors.clone().expect("a factor per column");
        assert!((factors[2] - 1.0).abs() < 1e-6, "{factors:?}");
        assert!(factors[0] < 0.011 && factors[0] > 0.009, "{factors:?}");
        assert_eq!(factors[4], 1.0, "a column of zeros");
        let error = |grid| squared_error(grid, &folds[0].sample, 1);
        assert!(error(&with) < error(&without));
    }

    #[test]
    fn min_max_covers_everything_and_zero() {
        let a = fold(ndarray::array![[-1.0f32, 2.0]], 1);
        let b = fold(ndarray::array![[3.0f32, 1.0]], 1);
        let grid = min_max_grid(&[a, b]);
        assert_eq!(grid.params.zero_point, 64);
        assert!((grid.params.scale - 4.0 / 255.0).abs() < 1e-9);
    }

    proptest! {
        /// Whatever the columns: steps are finite and positive, factors in (0, 1], and what is within the ranges of both
        /// halves is at most half a step off if the margin does not clip.
        #[test]
        fn grids_are_sound(columns in prop::collection::vec(0.0f32..1e4, 1..9), stride in 1usize..3) {
            let folds = folds(&columns, stride);
            let (min, max) = joint(&folds);
            let all = zero_points(&min, &max).into_iter().chain([Steps::Tensor]);
            for grid in all.map(|s| grid(s, &min, &max, 1.0)) {
                prop_assert!(grid.params.scale.is_normal() && grid.params.scale > 0.0);
                let zero_point = grid.params.zero_point;
                for n in 0..columns.len() {
                    let t = grid.factors.as_ref().map_or(1.0, |t| t[n]);
                    prop_assert!(t > 0.0 && t <= 1.0);
                    let step = grid.params.scale * t;
                    for p in [min[n], max[n]] {
                        let q = (p / step).round_ties_even() as i32 + zero_point;
                        let error = ((q.clamp(0, QMAX) - zero_point) as f32 * step - p).abs();
                        prop_assert!(error <= step * 0.5001, "{p} with {step}: {error}");
                    }
                }
            }
            let found = search_grid(&folds, stride, true);
            prop_assert!(found.params.scale.is_normal());
        }
    }
}
