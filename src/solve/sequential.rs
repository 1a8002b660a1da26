//! Rounding a weight for the inputs that quantized Linears before it give.
//!
//! The float model reads x at a Linear, the quantized one x̂: what is to be kept is x W', and what there is to make it from is x̂.
//! So a part of the error that comes in is made up for by the weight before it is rounded,
//!
//! ```text
//! W* = W' + (X̂ᵀX̂ + λI)⁻¹ X̂ᵀ (X − X̂) W'          X, X̂: [T, C], W': [C, N], both less their means if there is a bias
//! Q  = error feedback on W* with X̂ᵀX̂             (`feedback`)
//! e  = mean(X) W' − mean(X̂) Q                     is added to the bias
//! ```
//!
//! and is used if every eighth token, which set nothing, has a smaller error with it. λ is the mean energy of a channel: with a
//! quarter of it MiniLM-L6 gains 0.6 dB in place of 0.8 at W4A8, and 0.2 in place of 0.6 at W4A4. Linears must follow each other
//! one site at a time: where all of a layer are done from one run, each makes up for the same error, and the model loses 8 dB
//! (`benchmarks/sequential.py`). Source: the asymmetric calibration of GPTAQ (Li et al., 2025), as a weight to be rounded.

use super::product::{add_product, product};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::feedback::{BLOCK, Feedback, factor, lower_products};
use super::wide::{add_scaled, row_times};
use super::{QuantizedWeight, WeightSpec};

/// λ over the mean energy of a channel.
const RIDGE: f32 = 1.0;

/// One in so many tokens confirms, and sets nothing.
const CONFIRMS: usize = 8;

/// What the error on those must be of that of the weight as it was.
const CLEARLY: f64 = 0.99;

/// Columns of a weight that are worked on at a time, by one thread.
const COLUMNS: usize = 512;

/// The same tokens at the inputs of a site, in the float model and in the quantized one.
pub struct SeenInputs {
    /// Those that set the weight, each times the root of what its squared error counts, less the means.
    fit: Pair,
    /// Those that confirm it, in the same way.
    other: Pair,
    /// Means over the former, `[C]` each; `None` if there is no bias to take them up.
    means: Option<[Array1<f32>; 2]>,
}

/// `[T, C]` each.
struct Pair {
    float: Array2<f32>,
    seen: Array2<f32>,
}

/// A weight and what is added to the bias of its Linear.
#[derive(Clone, Debug, PartialEq)]
pub struct SequentialWeight {
    /// In integers.
    pub weight: QuantizedWeight,
    /// `[N]`; `None` without a bias.
    pub correction: Option<Vec<f32>>,
}

impl SeenInputs {
    /// Of tokens `float` and, quantized, `seen`: `[T, C]` each; what the squared error of each counts; whether the Linears have a
    /// bias. `None` if there are too few of them.
    pub fn new(
        float: &Array2<f32>,
        seen: &Array2<f32>,
        weights: Option<&[f32]>,
        bias: bool,
    ) -> Option<SeenInputs> {
        if float.dim() != seen.dim() || float.nrows() < 2 * CONFIRMS {
            return None;
        }
        let confirms = |t: &usize| t % CONFIRMS == CONFIRMS - 1;
        let (other, fit): (Vec<usize>, Vec<usize>) = (0..float.nrows()).partition(confirms);
        let means = bias.then_some([float, seen]).map(|all| {
            all.map(|x| {
                let sum = fit
                    .iter()
                    .fold(Array1::zeros(x.ncols()), |sum, &t| sum + x.row(t));
                sum / fit.len() as f32
            })
        });
        let part = |x: &Array2<f32>, mean: Option<&Array1<f32>>, tokens: &[usize]| {
            let mut part = x.select(Axis(0), tokens);
            if let Some(mean) = mean {
                part -= mean;
            }
            if let Some(weights) = weights {
                for (mut row, &t) in part.rows_mut().into_iter().zip(tokens) {
                    row *= weights[t].sqrt();
                }
            }
            part
        };
        let mean = |i: usize| means.as_ref().map(|means| &means[i]);
        let pair = |tokens: &[usize]| Pair {
            float: part(float, mean(0), tokens),
            seen: part(seen, mean(1), tokens),
        };
        Some(SeenInputs {
            fit: pair(&fit),
            other: pair(&other),
            means,
        })
    }

    /// What weights quantized so are rounded by; `None` if what is seen has no energy.
    pub fn rounding(&self, spec: &WeightSpec) -> Option<SeenRounding<'_>> {
        let seen = &self.fit.seen;
        let energy: f32 = seen.iter().map(|v| v * v).sum();
        let ridge = RIDGE * energy / seen.ncols().max(1) as f32;
        // Whichever is smaller: (X̂ᵀX̂ + λI)⁻¹ X̂ᵀ = X̂ᵀ (X̂X̂ᵀ + λI)⁻¹.
        let transposed = (seen.nrows() < seen.ncols()).then(|| standard(seen.t()));
        Some(SeenRounding {
            inputs: self,
            spec: *spec,
            feedback: Feedback::new(seen, spec)?,
            inverse: Inverse::new(transposed.as_ref().unwrap_or(seen), ridge)?,
            transposed,
        })
    }
}

/// What the weights of one site are rounded by.
pub struct SeenRounding<'a> {
    inputs: &'a SeenInputs,
    spec: WeightSpec,
    feedback: Feedback,
    /// Of X̂ᵀX̂ + λI, or of X̂X̂ᵀ + λI, if X̂ᵀ is there.
    inverse: Inverse,
    transposed: Option<Array2<f32>>,
}

impl SeenRounding<'_> {
    /// The weight `w: [C, N]` rounded for what is seen, if that is clearly better than `before` on the other tokens.
    pub fn round(&self, w: ArrayView2<f32>, before: &QuantizedWeight) -> Option<SequentialWeight> {
        let weight = self.feedback.quantize(self.wanted(w).view(), &self.spec);
        let left = self.error(w, &weight);
        // A NaN is no gain.
        let better = left < CLEARLY * self.error(w, before);
        if !better {
            return None;
        }
        let correction = self.inputs.means.as_ref().map(|[float, seen]| {
            let error = row_times(float, w) - row_times(seen, weight.dequantize().view());
            error.to_vec()
        });
        Some(SequentialWeight { weight, correction })
    }

    /// W*.
    fn wanted(&self, w: ArrayView2<f32>) -> Array2<f32> {
        let Pair { float, seen } = &self.inputs.fit;
        let missing = float - seen;
        let change = |w: ArrayView2<f32>| {
            let missing = product(&missing, &w);
            match &self.transposed {
                Some(transposed) => product(transposed, &self.inverse.times(missing)),
                None => self.inverse.times(product(&seen.t(), &missing)),
            }
        };
        let parts: Vec<ArrayView2<f32>> = w.axis_chunks_iter(Axis(1), COLUMNS).collect();
        let parts: Vec<Array2<f32>> = parts.into_par_iter().map(change).collect();
        let mut wanted = w.to_owned();
        for (mut wanted, part) in wanted.axis_chunks_iter_mut(Axis(1), COLUMNS).zip(parts) {
            wanted += &part;
        }
        wanted
    }

    /// `‖X W' − X̂ Q‖²` over the tokens that confirm.
    fn error(&self, w: ArrayView2<f32>, weight: &QuantizedWeight) -> f64 {
        let Pair { float, seen } = &self.inputs.other;
        let difference = product(float, &w) - product(seen, &weight.dequantize());
        difference.iter().map(|&v| f64::from(v).powi(2)).sum()
    }
}

/// `(xᵀx + λI)⁻¹` for `x: [T, C]`, as the factors of `L D Lᵀ`.
struct Inverse {
    /// Unit lower.
    l: Array2<f32>,
    /// Lᵀ from the other end, which is unit lower too.
    reversed: Array2<f32>,
    d: Vec<f32>,
}

impl Inverse {
    /// `None` if there is none.
    fn new(x: &Array2<f32>, ridge: f32) -> Option<Inverse> {
        let mut l = lower_products(x);
        l.diag_mut().map_inplace(|d| *d += ridge);
        let d = factor(&mut l)?;
        Some(Inverse {
            reversed: standard(l.slice(s![..;-1, ..;-1]).reversed_axes()),
            l,
            d,
        })
    }

    /// The inverse times `b: [C, N]`.
    fn times(&self, mut b: Array2<f32>) -> Array2<f32> {
        eliminate(self.l.view(), &mut b);
        for (mut row, d) in b.rows_mut().into_iter().zip(&self.d) {
            row /= *d;
        }
        let mut b = standard(b.slice(s![..;-1, ..]));
        eliminate(self.reversed.view(), &mut b);
        standard(b.slice(s![..;-1, ..]))
    }
}

fn standard(x: ArrayView2<f32>) -> Array2<f32> {
    x.as_standard_layout().into_owned()
}

/// Solves `L z = b` in place of b, for a unit lower L.
fn eliminate(l: ArrayView2<f32>, b: &mut Array2<f32>) {
    let n = l.nrows();
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let (known, mut rest) = b.view_mut().split_at(Axis(0), start);
        let mut block = rest.slice_mut(s![..end - start, ..]);
        add_product(
            -1.0,
            &l.slice(s![start..end, ..start]),
            &known,
            1.0,
            &mut block,
        );
        for i in start..end {
            let (known, mut rest) = b.view_mut().split_at(Axis(0), i);
            let mut row = rest.row_mut(0);
            // Rows of arrays in standard layout are slices.
            let Some(row) = row.as_slice_mut() else {
                continue;
            };
            for (k, known) in (start..).zip(known.slice(s![start.., ..]).rows()) {
                add_scaled(row, -l[[i, k]], known.to_slice().unwrap_or(&[]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::mix::noise;
    use crate::solve::quantize_weight;

    #[test]
    fn the_solution_solves() {
        for (tokens, channels) in [(9, 5), (200, 3 * BLOCK + 7)] {
            let (x, b) = (noise(tokens, channels, 1), noise(channels, 6, 2_000_000));
            let found = Inverse::new(&x, 0.5).unwrap().times(b.clone());
            let again = x.t().dot(&x.dot(&found)) + &found * 0.5;
            let worst = (&again - &b).iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(worst < 1e-3, "{channels}: {worst}");
        }
    }

    /// Both ways to write the same inverse.
    #[test]
    fn fewer_tokens_than_channels_or_more_are_the_same_to_it() {
        let w = noise(40, 3, 5);
        let of = |tokens: usize| {
            let float = noise(tokens, 40, 7);
            let seen = &float + &(noise(tokens, 40, 1 << 30) * 0.3);
            let inputs = SeenInputs::new(&float, &seen, None, false).unwrap();
            let Pair { float, seen } = &inputs.fit;
            let ridge = RIDGE * seen.iter().map(|v| v * v).sum::<f32>() / 40.0;
            let missing = (float - seen).dot(&w);
            let primal = Inverse::new(seen, ridge)
                .unwrap()
                .times(seen.t().dot(&missing));
            let rounding = inputs.rounding(&WeightSpec::per_channel(4)).unwrap();
            let worst = rounding.wanted(w.view()) - &w - primal;
            worst.iter().fold(0.0f32, |m, v| m.max(v.abs()))
        };
        assert!(of(24) < 1e-4 && of(200) < 1e-4);
    }

    /// Of what comes in, a tenth of each channel and a constant are missing in every token: both can be made up for.
    #[test]
    fn what_is_missing_in_every_token_is_made_up_for() {
        let (float, w, spec) = (
            noise(400, 24, 3),
            noise(24, 5, 9),
            WeightSpec::per_channel(8),
        );
        let seen = &float * 0.9 + 0.2;
        let inputs = SeenInputs::new(&float, &seen, None, true).unwrap();
        let before = quantize_weight(w.view(), &spec);
        let rounding = inputs.rounding(&spec).unwrap();
        let found = rounding.round(w.view(), &before).unwrap();
        let error = |weight: &QuantizedWeight, correction: &[f32]| {
            let got = seen.dot(&weight.dequantize()) + &Array1::from(correction.to_vec());
            (got - float.dot(&w)).iter().map(|v| v * v).sum::<f32>()
        };
        let correction = found.correction.clone().unwrap();
        let (with, without) = (error(&found.weight, &correction), error(&before, &[0.0; 5]));
        assert!(with < 0.3 * without, "{with} of {without}");
    }

    /// Nothing is missing: the weight as it was, rounded with the same feedback, is as good.
    #[test]
    fn nothing_is_changed_without_a_clear_gain() {
        let (float, w, spec) = (
            noise(400, 24, 3),
            noise(24, 5, 9),
            WeightSpec::per_channel(4),
        );
        let inputs = SeenInputs::new(&float, &float, None, true).unwrap();
        let rounding = inputs.rounding(&spec).unwrap();
        let before = rounding.feedback.quantize(w.view(), &spec);
        assert_eq!(rounding.round(w.view(), &before), None);
        assert!(SeenInputs::new(&noise(9, 4, 1), &noise(9, 4, 2), None, true).is_none());
    }

    /// A token that counts nothing has no part in the weight.
    #[test]
    fn tokens_count_by_their_weights() {
        let w = noise(8, 3, 4);
        let float = noise(64, 8, 6);
        let mut seen = &float * 0.9;
        let wanted = |seen: &Array2<f32>, weights: &[f32]| {
            let inputs = SeenInputs::new(&float, seen, Some(weights), false).unwrap();
            let rounding = inputs.rounding(&WeightSpec::per_channel(4)).unwrap();
            rounding.wanted(w.view())
        };
        let mut weights = vec![1.0; 64];
        weights[0] = 0.0;
        let before = wanted(&seen, &weights);
        seen.row_mut(0).fill(50.0);
        assert_eq!(wanted(&seen, &weights), before);
        weights[0] = 1.0;
        assert_ne!(wanted(&seen, &weights), before);
    }
}
