//! The noise model that ranks candidates: what quantization does to a site's outputs, without computing them.
//!
//! With `δ = Q(x') − x'` and `Δ = Q(W') − W'`, `W' = diag(s) W`, the error of the outputs is `δ W' + x' Δ`, and
//!
//! ```text
//! ‖δ W' + x' Δ‖² ≈ T ‖mean(δ) W'‖² + Σ_j T var(δ_j) s_j² ‖W_j‖² + T ‖mean(x') Δ‖² + Σ_j T var(x'_j) ‖Δ_j‖²
//! ```
//!
//! if different channels agree in nothing but their means (a channel that is small against the step is rounded the same
//! way for most tokens, and a weight that is small against the step is rounded to 0, as are its neighbours). Where the
//! biases will be corrected ([`super::correction`]), the means do not count. Everything is measured element by element, clipping included. That is `T·C` operations for a candidate instead of
//! `2·T·C·N`, so that the search can look at many, and score only the best of them with [`super::loss::SiteLoss`].

use super::groups::fake_quantize_groups;
use super::loss::{Direction, Trial, all_columns, directions, migrate, side_by_side};
use super::mix::mix;
use super::quantize::{column_scales, limits};
use super::rounding::saturate_round;
use super::spec::QuantParams;
use super::wide::wide;
use super::{
    ActivationQuantizer, ActivationSpec, Migration, SiteProblem, SolveSettings, WeightSpec,
};
use ndarray::{Array2, ArrayView1};

/// Columns of the random projection that measures `‖mean(δ) W'‖²`.
const PROJECTION: usize = 32;

/// Columns whose sums run side by side: as many as the widest vectors hold.
const LANES: usize = 16;

/// The noise model of one site.
pub struct Survey {
    directions: Vec<Direction>,
    /// `‖W_j‖²` over all columns, `[C]`.
    row_energy: Vec<f64>,
    /// W times random signs, `[C, P]`: `E ‖v (W R)‖² = ‖v W‖²` for any v.
    projected: Array2<f32>,
    /// All weights side by side, `[C, N]`.
    w: Array2<f32>,
    /// Where each weight ends in `w`.
    ends: Vec<usize>,
    /// Output columns of the site over those in `w`.
    columns: f64,
    activation: ActivationSpec,
    weight: WeightSpec,
}

impl Survey {
    /// Prepares the model on at most `tokens` sample tokens of each fold and about `columns` output columns.
    pub fn new(
        problem: &SiteProblem,
        settings: &SolveSettings,
        tokens: usize,
        columns: usize,
    ) -> Self {
        let (w, ends) = side_by_side(problem, columns);
        let mut projected = Array2::zeros((w.nrows(), PROJECTION));
        let energy = |(j, row): (usize, ArrayView1<f32>)| {
            let mut energy = 0.0f32;
            for (n, &v) in row.iter().enumerate() {
                let signed = if mix(n as u64) & 1 == 0 { v } else { -v };
                projected[[j, n % PROJECTION]] += signed;
                energy += v * v;
            }
            f64::from(energy)
        };
        Self {
            row_energy: w.rows().into_iter().enumerate().map(energy).collect(),
            projected,
            directions: directions(&problem.folds, tokens),
            columns: all_columns(problem) as f64 / w.ncols().max(1) as f64,
            w,
            ends,
            activation: settings.activation,
            weight: settings.weight,
        }
    }

    /// Estimated loss of a shift and threshold, for each of its margins: the sum of both directions of the cross-fit.
    pub fn evaluate(&self, trial: &Trial) -> Vec<f64> {
        let of = |d: &Direction| migrate(trial.shift, trial.threshold, &d.min, &d.max);
        let fitted: Vec<Migration> = self.directions.iter().map(of).collect();
        self.evaluate_fitted(&fitted, &trial.margins, trial.corrected)
    }

    /// The same for any shift and scale: one for each direction.
    pub(super) fn evaluate_fitted(
        &self,
        fitted: &[Migration],
        margins: &[f32],
        corrected: bool,
    ) -> Vec<f64> {
        let losses = evaluate(self, fitted, margins, corrected);
        losses.into_iter().map(|loss| loss * self.columns).collect()
    }

    #[inline(always)]
    fn estimate(&self, fitted: &[Migration], margins: &[f32], corrected: bool) -> Vec<f64> {
        let mut total = vec![0.0; margins.len()];
        for (d, migration) in self.directions.iter().zip(fitted) {
            let (t, c) = d.x.dim();
            let (low, high) = migration.range(&d.min, &d.max);
            let mut x = vec![0.0; t * c];
            migration.apply_rows(d.x.as_slice().unwrap_or(&[]), &mut x);
            let (mut sums, mut squares) = (vec![0.0; c], vec![0.0; c]);
            let weights = d.weights.clone().unwrap_or_else(|| vec![1.0; t]);
            let t = weights.iter().map(|w| f64::from(*w)).sum::<f64>();
            moments((&x, &weights), &mut sums, &mut squares);
            let scale = migration.scale.as_deref();
            let from_weights = self.weight_error((&sums, &squares), t, scale, corrected);
            for (total, margin) in total.iter_mut().zip(margins) {
                match self.activation.quantizer(low * margin, high * margin) {
                    ActivationQuantizer::Constant(params) => {
                        error_moments((&x, &weights), &params, &mut sums, &mut squares);
                    }
                    quantizer => {
                        let mut error = vec![0.0; x.len()];
                        quantizer.apply(&x, &mut error, c);
                        error.iter_mut().zip(&x).for_each(|(q, x)| *q -= x);
                        moments((&error, &weights), &mut sums, &mut squares);
                    }
                }
                *total += from_weights + self.output_energy((&sums, &squares), t, scale, corrected);
            }
        }
        total
    }

    /// `T ‖mean(x') Δ‖² + Σ_j T var(x'_j) ‖Δ_j‖²`.
    ///
    /// `sums, squares: [C]` are those of x' over all tokens, `tokens` their number; all weighted.
    #[inline(always)]
    fn weight_error(
        &self,
        (sums, squares): (&[f32], &[f32]),
        tokens: f64,
        scale: Option<&[f32]>,
        corrected: bool,
    ) -> f64 {
        if let Some(group) = self.weight.group() {
            return self.weight_error_in_groups((sums, squares), tokens, scale, corrected, group);
        }
        let n = self.w.ncols();
        let s = |j: usize| scale.map_or(1.0, |s| s[j]);
        let mut steps = vec![0.0f32; n];
        for (j, row) in rows(&self.w).enumerate() {
            let s = s(j);
            for (step, w) in steps.iter_mut().zip(row) {
                let v = w.abs() * s;
                *step = if v > *step { v } else { *step };
            }
        }
        column_scales(&mut steps, &self.weight, &self.ends);
        let inverse: Vec<f32> = steps.iter().map(|step| 1.0 / step).collect();
        // No weight is larger than its column's largest, so nothing saturates.
        let limit = self.weight.qmax() as f32;
        let mut common = vec![0.0f32; n];
        let mut own = 0.0;
        for (j, row) in rows(&self.w).enumerate() {
            let (s, mean) = (s(j), sums[j] / tokens as f32);
            let mut lanes = [0.0f32; LANES];
            let mut add = |w: f32, (step, inverse): (f32, f32), lane: usize, common: &mut f32| {
                let v = w * s;
                let error = saturate_round(v * inverse, -limit, limit) * step - v;
                lanes[lane] += error * error;
                *common += mean * error;
            };
            // Lengths that are known make the loop one over vectors.
            let (w, w_rest) = row.as_chunks::<LANES>();
            let (step, step_rest) = steps.as_chunks::<LANES>();
            let (inverse, inverse_rest) = inverse.as_chunks::<LANES>();
            let (common, common_rest) = common.as_chunks_mut::<LANES>();
            let scales = step.iter().zip(inverse);
            for ((w, common), (step, inverse)) in w.iter().zip(common).zip(scales) {
                for i in 0..LANES {
                    add(w[i], (step[i], inverse[i]), i, &mut common[i]);
                }
            }
            for (i, common) in common_rest.iter_mut().enumerate() {
                add(w_rest[i], (step_rest[i], inverse_rest[i]), i, common);
            }
            let scatter = (squares[j] - mean * sums[j]).max(0.0);
            own += f64::from(scatter) * f64::from(lanes.iter().sum::<f32>());
        }
        let common: f64 = common.iter().map(|&v| f64::from(v).powi(2)).sum();
        if corrected {
            own
        } else {
            own + tokens * common
        }
    }

    /// The same for weights in groups.
    fn weight_error_in_groups(
        &self,
        (sums, squares): (&[f32], &[f32]),
        tokens: f64,
        scale: Option<&[f32]>,
        corrected: bool,
        group: usize,
    ) -> f64 {
        let n = self.w.ncols();
        let mut rounded = vec![0.0f32; self.w.len()];
        let w = self.w.as_slice().unwrap_or(&[]);
        fake_quantize_groups(w, scale, &self.weight, (group, n), &mut rounded);
        let (mut common, mut own) = (vec![0.0f32; n], 0.0);
        let all = rows(&self.w).zip(rounded.chunks_exact(n.max(1)));
        for (j, (row, rounded)) in all.enumerate() {
            let (s, mean) = (scale.map_or(1.0, |s| s[j]), sums[j] / tokens as f32);
            let mut energy = 0.0f32;
            for ((w, rounded), common) in row.iter().zip(rounded).zip(&mut common) {
                let error = rounded - w * s;
                energy += error * error;
                *common += mean * error;
            }
            own += f64::from((squares[j] - mean * sums[j]).max(0.0)) * f64::from(energy);
        }
        let common: f64 = common.iter().map(|&v| f64::from(v).powi(2)).sum();
        if corrected {
            own
        } else {
            own + tokens * common
        }
    }

    /// `T ‖mean(δ) W'‖² + Σ_j T var(δ_j) s_j² ‖W_j‖²`.
    ///
    /// `sums, squares: [C]` are those of δ over all t tokens; all weighted.
    #[inline(always)]
    fn output_energy(
        &self,
        (sums, squares): (&[f32], &[f32]),
        t: f64,
        scale: Option<&[f32]>,
        corrected: bool,
    ) -> f64 {
        let mut common = [0.0f32; PROJECTION];
        let mut own = 0.0;
        for (j, (&sum, &square)) in sums.iter().zip(squares).enumerate() {
            let s = scale.map_or(1.0, |s| s[j]);
            let mean = f64::from(sum) / t;
            let scatter = (f64::from(square) - t * mean * mean).max(0.0);
            own += scatter * f64::from(s).powi(2) * self.row_energy[j];
            let mean = mean as f32 * s;
            for (sum, &w) in common.iter_mut().zip(self.projected.row(j)) {
                *sum += mean * w;
            }
        }
        let common: f64 = common.iter().map(|&v| f64::from(v).powi(2)).sum();
        if corrected { own } else { own + t * common }
    }
}

wide! {
    fn evaluate(
        survey: &Survey,
        fitted: &[Migration],
        margins: &[f32],
        corrected: bool,
    ) -> Vec<f64> = Survey::estimate;
}

/// The rows of an array that this module made itself, so that it is in standard layout.
#[inline(always)]
fn rows(w: &Array2<f32>) -> impl Iterator<Item = &[f32]> {
    w.as_slice().unwrap_or(&[]).chunks_exact(w.ncols().max(1))
}

/// Weighted sum and sum of squares over the tokens of x, `[C]` each, for `x: [T, C]` and weights `[T]`.
#[inline(always)]
fn moments(tokens: (&[f32], &[f32]), sums: &mut [f32], squares: &mut [f32]) {
    add_up(tokens, |v| v, sums, squares);
}

/// Weighted sum and sum of squares over the tokens of `Q(x) − x`, `[C]` each, for `x: [T, C]` and weights `[T]`.
#[inline(always)]
fn error_moments(
    tokens: (&[f32], &[f32]),
    params: &QuantParams,
    sums: &mut [f32],
    squares: &mut [f32],
) {
    let (scale, low, high) = limits(params);
    // A reciprocal here, a division in the loss: candidates are ranked, not scored.
    let inverse = 1.0 / scale;
    let error = |v: f32| saturate_round(v * inverse, low, high) * scale - v;
    add_up(tokens, error, sums, squares);
}

/// Channels whose sums stay in registers while all tokens are added.
const WIDTH: usize = 16;

/// Weighted sum and sum of squares of `f(x)`, `[C]` each, over the tokens of `x: [T, C]` with weights `[T]`.
#[inline(always)]
fn add_up(
    (x, weights): (&[f32], &[f32]),
    f: impl Fn(f32) -> f32,
    sums: &mut [f32],
    squares: &mut [f32],
) {
    let channels = sums.len().max(1);
    let parts = sums.chunks_mut(WIDTH).zip(squares.chunks_mut(WIDTH));
    for (i, (sums, squares)) in parts.enumerate() {
        let (start, width) = (i * WIDTH, sums.len());
        let (mut sum, mut square) = ([0.0f32; WIDTH], [0.0f32; WIDTH]);
        for (row, &w) in x.chunks_exact(channels).zip(weights) {
            let row = &row[start..start + width];
            // The common case has a length that is known: its loop vectorizes.
            match <&[f32; WIDTH]>::try_from(row) {
                Ok(row) => add_token(row, w, &f, &mut sum, &mut square),
                Err(_) => add_token(row, w, &f, &mut sum, &mut square),
            }
        }
        sums.copy_from_slice(&sum[..width]);
        squares.copy_from_slice(&square[..width]);
    }
}

#[inline(always)]
fn add_token(
    row: &[f32],
    weight: f32,
    f: impl Fn(f32) -> f32,
    sum: &mut [f32; WIDTH],
    square: &mut [f32; WIDTH],
) {
    for ((sum, square), &v) in sum.iter_mut().zip(square).zip(row) {
        let v = f(v);
        *sum += weight * v;
        *square += weight * v * v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::loss::SiteLoss;
    use crate::solve::{Fold, Method, ShiftKind};

    /// Post-GELU-like and ordinary channels, some of them large: noise in [-1, 1] from a small generator.
    fn sample(tokens: usize, channels: usize, seed: u64) -> Array2<f32> {
        let noise = |i: usize| (mix(seed + i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        Array2::from_shape_fn((tokens, channels), |(t, j)| {
            let v = noise(t * channels + j) + noise(7_000_000 + t * channels + j);
            match j % 8 {
                0 => (v * 6.0).max(-0.17),
                1 => 9.0 + v,
                _ => v * (0.2 + 0.1 * (j % 5) as f32),
            }
        })
    }

    fn extremes(x: &Array2<f32>) -> (Vec<f32>, Vec<f32>) {
        let fold = |start: f32, pick: fn(f32, f32) -> f32| {
            x.fold_axis(ndarray::Axis(0), start, |a, b| pick(*a, *b))
                .to_vec()
        };
        (
            fold(f32::INFINITY, f32::min),
            fold(f32::NEG_INFINITY, f32::max),
        )
    }

    /// The estimate must be close to the loss itself over the whole range of candidates, or its ranking means nothing.
    #[test]
    fn the_noise_model_predicts_the_loss() {
        let (a, b) = (sample(96, 48, 1), sample(96, 48, 90_000));
        let weights = [sample(48, 40, 3), sample(48, 24, 5)];
        let (ea, eb) = (extremes(&a), extremes(&b));
        let fold = |e: &'static (Vec<f32>, Vec<f32>), x: &'static Array2<f32>| Fold {
            min: &e.0,
            max: &e.1,
            sample: x.view(),
            weights: None,
        };
        let leak = |x: Array2<f32>| -> &'static Array2<f32> { Box::leak(Box::new(x)) };
        let (ea, eb) = (Box::leak(Box::new(ea)), Box::leak(Box::new(eb)));
        let problem = SiteProblem {
            folds: [fold(ea, leak(a)), fold(eb, leak(b))],
            weights: weights.iter().map(|w| w.view()).collect(),
            allow_shift: true,
            allow_scale: true,
            correct_bias: true,
            ties: None,
        };
        for bits in [8, 6, 4] {
            for (symmetric, per_channel) in [(false, true), (true, false)] {
                let settings = SolveSettings {
                    activation: ActivationSpec::per_tensor(bits, symmetric),
                    weight: WeightSpec::whole_or_columns(bits, per_channel),
                    method: Method::OsPlus,
                };
                let loss = SiteLoss::new(&problem, &settings, usize::MAX, usize::MAX);
                let survey = Survey::new(&problem, &settings, usize::MAX, usize::MAX);
                for shift in [ShiftKind::None, ShiftKind::OneSided, ShiftKind::MidRange] {
                    let thresholds = [None, Some(4.0), Some(1.0), Some(0.3)];
                    let forms = thresholds.into_iter().flat_map(|t| [(t, false), (t, true)]);
                    for (threshold, corrected) in forms {
                        let trial = Trial {
                            shift,
                            threshold,
                            margins: vec![0.9, 1.0, 1.35],
                            corrected,
                        };
                        let truth = (0..2).map(|d| loss.evaluate(&trial, d));
                        let truth =
                            truth.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect());
                        for (estimate, truth) in survey.evaluate(&trial).iter().zip(truth.unwrap())
                        {
                            let ratio = estimate / truth;
                            assert!(
                                (0.6..1.7).contains(&ratio),
                                "{bits} bits, {trial:?}: {estimate} for {truth}"
                            );
                        }
                    }
                }
            }
        }
    }
}
