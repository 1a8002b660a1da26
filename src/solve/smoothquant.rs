//! SmoothQuant's scale, for comparison on the same sites with the same arithmetic.

use super::loss::SiteLoss;
use super::{Migration, ShiftKind, SiteProblem, Solution};
use ndarray::ArrayView2;
use rayon::prelude::*;

/// Smallest magnitude that enters the formula, so that a dead channel or an all-zero row gives a finite scale.
const FLOOR: f32 = 1e-5;

/// `s_j = max|x_j|^alpha / max_n|w[j, n]|^(1 − alpha)` (Xiao et al., ICML 2023, equation 4), `[C]`.
///
/// `min, max: [C]` are the extremes of x, `w: [C, N]` all weights of the site side by side.
pub fn scale(min: &[f32], max: &[f32], w: ArrayView2<f32>, alpha: f32) -> Vec<f32> {
    min.iter()
        .zip(max)
        .zip(w.rows())
        .map(|((min, max), row)| {
            let x = min.abs().max(max.abs()).max(FLOOR);
            let w = row.iter().fold(FLOOR, |a, v| a.max(v.abs()));
            (x.powf(alpha) / w.powf(1.0 - alpha)).max(FLOOR)
        })
        .collect()
}

/// The solution with SmoothQuant's scale (or none, where the site allows none), no shift, no margin.
///
/// Nothing is chosen by the losses: they are taken as for the search, to be reported.
pub(super) fn solve(
    problem: &SiteProblem,
    loss: &SiteLoss,
    (min, max): (&[f32], &[f32]),
    alpha: f32,
) -> Solution {
    let migration = |min: &[f32], max: &[f32]| Migration {
        shift: None,
        scale: problem
            .allow_scale
            .then(|| scale(min, max, loss.weight(), alpha)),
        rotation: None,
    };
    let losses: Vec<[f64; 2]> = (0..loss.directions())
        .into_par_iter()
        .map(|direction| {
            let (min, max) = loss.fit_range(direction);
            [Migration::default(), migration(min, max)].map(|migration| {
                loss.evaluate_migration((ShiftKind::None, &migration), &[1.0], false, direction)[0]
            })
        })
        .collect();
    let total = |i: usize| losses.iter().map(|both| both[i]).sum();
    Solution::of(migration(min, max), (min, max), 1.0, total(0), total(1))
}
