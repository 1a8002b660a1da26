//! What plain min-max quantization does to a Linear: the error that migration is there to lower.
//!
//! ```text
//! signal = ‖x W + b‖²        error = ‖Q(x) Q(W) − x W‖²
//! ```
//!
//! on sample tokens of one half of the data, with the range of the other half, both ways: on the tokens that set a range,
//! nothing would be clipped.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};

use super::product::product;
use super::{ActivationSpec, Fold, WeightSpec, quantize_weight};

/// Tokens of each half, at most.
const TOKENS: usize = 128;
/// Output columns, at most, spread over all of them.
const COLUMNS: usize = 512;

/// Signal and error of one Linear `x W + b`, `W: [C, N]`, `b: [N]`, under plain min-max quantization.
pub fn damage(
    folds: &[Fold<'_>; 2],
    w: ArrayView2<f32>,
    bias: Option<ArrayView1<f32>>,
    (activation, weight): (&ActivationSpec, &WeightSpec),
) -> (f64, f64) {
    let every = w.ncols().div_ceil(COLUMNS).max(1);
    // The scale of a weight as a whole is that of its largest element, wherever that is.
    let rounded = quantize_weight(w, weight).dequantize();
    let rounded = rounded.slice(s![.., ..;every]);
    let w = w.slice(s![.., ..;every]);
    let bias = bias.map(|b| b.slice(s![..;every]).to_owned());
    let (mut signal, mut error) = (0.0, 0.0);
    for (fold, other) in [(&folds[0], &folds[1]), (&folds[1], &folds[0])] {
        if fold.sample.nrows() == 0 || other.sample.nrows() == 0 {
            continue;
        }
        let every = fold.sample.nrows().div_ceil(TOKENS);
        let x = fold.sample.slice(s![..;every, ..]);
        let low = other.min.iter().copied().fold(f32::INFINITY, f32::min);
        let high = other.max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut quantized = Array2::zeros(x.raw_dim());
        let rows = x.as_standard_layout();
        if let (Some(x), Some(out)) = (rows.as_slice(), quantized.as_slice_mut()) {
            activation.quantizer(low, high).apply(x, out, w.nrows());
        }
        let mut float = product(&x, &w);
        let difference = product(&quantized, &rounded) - &float;
        if let Some(bias) = &bias {
            float += &bias.view().insert_axis(Axis(0));
        }
        let energy = |y: &Array2<f32>| y.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        signal += energy(&float);
        error += energy(&difference);
    }
    (signal, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{array, aview1};

    const EIGHT: (ActivationSpec, WeightSpec) = (
        ActivationSpec::per_tensor(8, false),
        WeightSpec::per_channel(8),
    );

    #[test]
    fn what_lies_on_the_grid_has_no_error_and_an_outlier_costs() {
        let w = array![[1.27f32, -0.635], [0.01, 1.27]];
        let grid = array![[255.0f32, 0.0], [3.0, 17.0]];
        let fold = |sample, max| Fold {
            min: &[0.0, 0.0],
            max,
            sample,
            weights: None,
        };
        let on_grid = [
            fold(grid.view(), &[255.0, 17.0]),
            fold(grid.view(), &[255.0, 17.0]),
        ];
        let (signal, error) = damage(&on_grid, w.view(), None, (&EIGHT.0, &EIGHT.1));
        assert!(error < 1e-4 * signal, "{error} of {signal}");
        // Ten times the range is ten times the step, and a hundred times its error.
        let x = array![[3.3f32, 7.7], [1.6, 4.4]];
        let at = |max: &'static [f32]| {
            let folds = [fold(x.view(), max), fold(x.view(), max)];
            let (signal, error) = damage(&folds, w.view(), None, (&EIGHT.0, &EIGHT.1));
            error / signal
        };
        let ratio = at(&[2550.0, 10.0]) / at(&[25.5, 10.0]);
        assert!(ratio > 30.0, "{ratio}");
    }

    #[test]
    fn ranges_are_those_of_the_other_half_and_the_bias_is_signal() {
        let w = array![[1.0f32]];
        let (small, large) = (array![[1.0f32]], array![[100.0f32]]);
        let fold = |sample, max| Fold {
            min: &[0.0],
            max,
            sample,
            weights: None,
        };
        let folds = [fold(small.view(), &[1.0]), fold(large.view(), &[100.0])];
        // 100 is clipped to 1, the range of the other half.
        let (signal, error) = damage(&folds, w.view(), None, (&EIGHT.0, &EIGHT.1));
        assert!(
            (signal - 10_001.0).abs() < 1.0 && (error - 99.0 * 99.0).abs() < 30.0,
            "{error}"
        );
        let (with_bias, same) =
            damage(&folds, w.view(), Some(aview1(&[9.0])), (&EIGHT.0, &EIGHT.1));
        assert_eq!(same, error);
        assert!((with_bias - (10.0 * 10.0 + 109.0 * 109.0)).abs() < 1.0);
    }

    #[test]
    fn no_tokens_have_no_damage() {
        let w = array![[1.0f32]];
        let none = Array2::zeros((0, 1));
        let fold = Fold {
            min: &[],
            max: &[],
            sample: none.view(),
            weights: None,
        };
        assert_eq!(
            damage(&[fold, fold], w.view(), None, (&EIGHT.0, &EIGHT.1)),
            (0.0, 0.0)
        );
    }
}
