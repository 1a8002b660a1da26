//! The size of tokens, as a norm sees it.

use ndarray::{ArrayD, ArrayView1, ArrayViewD, Axis};

/// `Σ_c (x_c − mean(x))²` over the last axis, which becomes one.
pub(super) fn sizes(value: &ArrayViewD<f32>) -> ArrayD<f32> {
    let axis = Axis(value.ndim().saturating_sub(1));
    value.map_axis(axis, size).insert_axis(axis)
}

/// `Σ_c (x_c − mean(x))²` of one token `x: [C]`.
pub(super) fn size(x: ArrayView1<f32>) -> f32 {
    let mean = x.mean().unwrap_or(0.0);
    let sum = x.fold(0.0, |sum, v| sum + (v - mean) * (v - mean));
    // Too large for the type is as good as the largest; NaN stays what it is.
    if sum > f32::MAX { f32::MAX } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn sizes_of_any_rank() {
        let x = array![[[1.0f32, 3.0], [2.0, 2.0]]].into_dyn();
        assert_eq!(sizes(&x.view()), array![[[2.0], [0.0]]].into_dyn());
        let huge = array![[1e30f32, -1e30]].into_dyn();
        assert_eq!(sizes(&huge.view()), array![[f32::MAX]].into_dyn());
        let broken = array![[f32::NAN, 1.0]].into_dyn();
        assert!(sizes(&broken.view())[[0, 0]].is_nan());
    }
}
