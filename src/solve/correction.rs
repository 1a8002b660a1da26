//! Bias correction: quantization errors that agree over the tokens are taken off the bias.
//!
//! Rounding and clipping are not symmetric: a channel that is small against the step is rounded the same way for most
//! tokens, and so is a weight for all of them. The outputs then miss their mean by
//!
//! ```text
//! e = mean(x') W' − mean(Q(x')) Q(W')        x': [T, C], W': [C, N], e: [N]
//! ```
//!
//! and b' + e has the right one (Nagel et al., ICCV 2019, section 4.2, with measured means). It costs nothing at run time.
//! Measured on MiniLM-L6, unseen tokens: +0.21 dB, asymmetric and symmetric.

use super::migration::Migration;
use super::wide::{row_times, wide};
use super::{ActivationQuantizer, QuantizedWeight};
use ndarray::{Array1, Array2, ArrayView2};

/// Means over the tokens of one fold.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    /// Tokens that were averaged.
    tokens: usize,
    /// mean(x'), `[C]`.
    x: Array1<f32>,
    /// mean(Q(x')), `[C]`.
    quantized: Array1<f32>,
}

/// Means of `x' = (x − z) / s` and of its quantized values over the `sample: [T, C]` of a fold.
pub fn means(
    sample: &Array2<f32>,
    migration: &Migration,
    quantizer: &ActivationQuantizer,
) -> Means {
    let (tokens, channels) = sample.dim();
    let (mut x, mut quantized) = (vec![0.0f64; channels], vec![0.0f64; channels]);
    let migrated = migration.tokens(sample, false);
    let mut rounded = vec![0.0; channels];
    for row in migrated.rows() {
        // A row of an array in standard layout is a slice.
        let row = row.to_slice().unwrap_or(&[]);
        quantizer.apply(row, &mut rounded, channels);
        add(row, &rounded, &mut x, &mut quantized);
    }
    let mean = |sums: Vec<f64>| {
        sums.iter()
            .map(|s| (s / tokens.max(1) as f64) as f32)
            .collect()
    };
    Means {
        tokens,
        x: mean(x),
        quantized: mean(quantized),
    }
}

wide! {
    /// Adds one token and its quantized values to sums.
    fn add(x: &[f32], rounded: &[f32], sums: &mut [f64], quantized: &mut [f64]) = add_each;
}

#[inline(always)]
fn add_each(x: &[f32], rounded: &[f32], sums: &mut [f64], quantized: &mut [f64]) {
    let tokens = x.iter().zip(rounded);
    for ((&v, &rounded), (sum, quantized)) in tokens.zip(sums.iter_mut().zip(quantized)) {
        *sum += f64::from(v);
        *quantized += f64::from(rounded);
    }
}

/// What to add to the bias of a Linear with the migrated weight `w: [C, N]` and its `quantized` form; `None` if the correction of each half of the
/// tokens does not lower the error on the other half.
///
/// With mean errors `e_a, e_b` of the halves, correcting b by `e_a` lowers its summed squared error by
/// `T_b (2 e_a·e_b − ‖e_a‖²)`, and the other way round.
pub fn correction(
    w: ArrayView2<f32>,
    quantized: &QuantizedWeight,
    folds: &[Means; 2],
) -> Option<Vec<f32>> {
    let [a, b] = folds;
    if a.tokens == 0 || b.tokens == 0 {
        return None;
    }
    let rounded = quantized.dequantize();
    let error = |m: &Means| row_times(&m.x, w) - row_times(&m.quantized, rounded.view());
    let (ea, eb) = (error(a), error(b));
    let dot = |a: &Array1<f32>, b: &Array1<f32>| -> f64 {
        a.iter()
            .zip(b)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum()
    };
    let (ta, tb) = (a.tokens as f64, b.tokens as f64);
    let gain = 2.0 * (ta + tb) * dot(&ea, &eb) - tb * dot(&ea, &ea) - ta * dot(&eb, &eb);
    (gain > 0.0).then(|| {
        let mean =
            |(&a, &b): (&f32, &f32)| ((ta * f64::from(a) + tb * f64::from(b)) / (ta + tb)) as f32;
        ea.iter().zip(&eb).map(mean).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::{QuantParams, WeightSpec, quantize_weight};
    use ndarray::array;

    const SPEC: WeightSpec = WeightSpec::per_channel(8);

    /// Steps of 1: 0.3 is rounded to 0 for every token, in both halves, so 0.3 W is missing from every output.
    #[test]
    fn an_error_common_to_both_halves_is_corrected() {
        let sample = array![[0.3f32, 2.0], [0.3, -1.0]];
        let params = ActivationQuantizer::Constant(QuantParams {
            scale: 1.0,
            zero_point: 0,
            qmin: -128,
            qmax: 127,
        });
        let w = array![[127.0f32, -127.0, 0.0], [0.0, 0.0, 127.0]];
        let m = means(&sample, &Migration::default(), &params);
        let found = correction(w.view(), &quantize_weight(w.view(), &SPEC), &[m.clone(), m])
            .expect("a gain");
        for (found, expected) in found.iter().zip([0.3 * 127.0, -0.3 * 127.0, 0.0]) {
            assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
        }
    }

    /// Opposite errors in the halves say nothing about other tokens.
    #[test]
    fn errors_that_do_not_agree_are_left_alone() {
        let (a, b) = (array![[0.3f32]], array![[-0.3f32]]);
        let params = ActivationQuantizer::Constant(QuantParams {
            scale: 1.0,
            zero_point: 0,
            qmin: -128,
            qmax: 127,
        });
        let half = |x| means(x, &Migration::default(), &params);
        let w = array![[1.0f32]];
        let q = quantize_weight(w.view(), &SPEC);
        assert_eq!(correction(w.view(), &q, &[half(&a), half(&b)]), None);
        let none = Array2::zeros((0, 1));
        assert_eq!(correction(w.view(), &q, &[half(&a), half(&none)]), None);
    }
}
