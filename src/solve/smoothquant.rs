//! SmoothQuant's scale, for comparison on the same sites with the same arithmetic.

use ndarray::ArrayView2;

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
