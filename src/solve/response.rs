//! The loss at the response of a block: attention's output for Q, K and V, act(gate) · up for a gated FFN.
//!
//! ```text
//! loss = Σ ‖ f(Q(x') Q(diag(s) Wᵢ) + z Wᵢ, …) − f(x Wᵢ, …) ‖²          f: the block, with its biases
//! ```
//!
//! (Outlier Suppression+, section 4.2.) f mixes tokens, so it needs whole sequences, and it has to be run; this module
//! does not know how, a [`Response`] does. An evaluation costs as much as one with the outputs of the Linears, but few
//! sequences are there, so the survey is left to the cheaper loss, and what it finds is where a line search starts:
//! thresholds first, then margins. The cross-fit is the same: every token is quantized by what the other half of the
//! calibration tokens say.

use super::loss::{MeanError, migrate};
use super::migration::Migration;
use super::product::product;
use super::quantize::fake_quantize_weight_into;
use super::scored::Scored;
use super::wide::row_times;
use super::{ActivationQuantizer, Fold, SiteProblem, SolveSettings};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

/// A block that can be run on whole sequences.
pub trait Response: Sync {
    /// The tokens of the sequences, `[T, C]`, padding included.
    fn x(&self) -> ArrayView2<'_, f32>;

    /// The half of the calibration tokens, 0 or 1, that each token belongs to; `None` for padding, which stays in float.
    fn halves(&self) -> &[Option<usize>];

    /// Squared error of the response if Linear number i of the site gives `products[i]: [T, Nᵢ]` in place of `x Wᵢ`,
    /// summed over all tokens that are no padding. `None` if it cannot be computed.
    fn loss(&self, products: Vec<Array2<f32>>) -> Option<f64>;

    /// Sum of squares of the response over the same tokens.
    fn energy(&self) -> f64;
}

/// The steps of the line search.
pub(super) struct Steps<'a> {
    /// The factor between thresholds.
    pub threshold: f32,
    /// Margins, ascending.
    pub margins: &'a [f32],
    /// How many steps in one direction, at most.
    pub most: usize,
}

/// Scores doing nothing, `nothing`, and what is found around the `starts`; `None` if the block cannot be run.
pub(super) fn search(
    response: &dyn Response,
    problem: &SiteProblem,
    settings: &SolveSettings,
    (nothing, starts): (Scored, &[Scored]),
    steps: &Steps,
) -> Option<Vec<Scored>> {
    let block = Block::new(response, problem, settings);
    let mut scored = vec![block.score(nothing)?];
    for start in starts {
        let mut best = block.score(*start)?;
        scored.push(best);
        for factor in [1.0 / steps.threshold, steps.threshold] {
            let from = best.threshold;
            for _ in 0..steps.most {
                let Some(threshold) = best.threshold.map(|t| t * factor) else {
                    break;
                };
                let next = block.score(Scored {
                    threshold: Some(threshold),
                    ..best
                })?;
                scored.push(next);
                if next.loss >= best.loss {
                    break;
                }
                best = next;
            }
            // What was better on one side is not looked for on the other.
            if best.threshold != from {
                break;
            }
        }
        let above = |margin: f32| steps.margins.iter().copied().find(|m| *m > margin);
        let below = |margin: f32| steps.margins.iter().rev().copied().find(|m| *m < margin);
        let directions: [&dyn Fn(f32) -> Option<f32>; 2] = [&above, &below];
        for direction in directions {
            let from = best.margin;
            for _ in 0..steps.most {
                let Some(margin) = direction(best.margin) else {
                    break;
                };
                let next = block.score(Scored { margin, ..best })?;
                scored.push(next);
                if next.loss >= best.loss {
                    break;
                }
                best = next;
            }
            if best.margin != from {
                break;
            }
        }
    }
    Some(scored)
}

/// Migration and quantizer from one half of the calibration tokens: its number, and what is known of it.
pub(super) type Fitted<'a> = dyn Fn(usize, &Fold) -> (Migration, ActivationQuantizer) + Sync + 'a;

/// The loss of one candidate, a function of the half that sets the ranges; `None` if the block cannot be run.
pub(super) fn score(
    response: &dyn Response,
    problem: &SiteProblem,
    settings: &SolveSettings,
    fitted: &Fitted,
    corrected: bool,
) -> Option<f64> {
    Block::new(response, problem, settings).loss(fitted, corrected)
}

/// What is the same for all candidates.
struct Block<'a, 'p> {
    response: &'a dyn Response,
    problem: &'a SiteProblem<'p>,
    settings: &'a SolveSettings,
    /// Per half: which tokens, and their x.
    halves: [(Vec<usize>, Array2<f32>); 2],
    /// `x Wᵢ`, `[T, Nᵢ]`.
    products: Vec<Array2<f32>>,
}

impl<'a, 'p> Block<'a, 'p> {
    fn new(
        response: &'a dyn Response,
        problem: &'a SiteProblem<'p>,
        settings: &'a SolveSettings,
    ) -> Self {
        let x = response.x();
        let half = |half: usize| {
            let tokens = response.halves().iter().enumerate();
            let tokens = tokens.filter(|(_, h)| **h == Some(half)).map(|(t, _)| t);
            let tokens: Vec<usize> = tokens.collect();
            let x = x.select(Axis(0), &tokens);
            (tokens, x)
        };
        Self {
            response,
            problem,
            settings,
            halves: [half(0), half(1)],
            products: problem.weights.iter().map(|w| product(&x, w)).collect(),
        }
    }

    /// The candidate with its loss here.
    fn score(&self, candidate: Scored) -> Option<Scored> {
        let Scored {
            shift,
            threshold,
            margin,
            corrected,
            ..
        } = candidate;
        let fitted = |_, fit: &Fold| {
            let migration = migrate(shift, threshold, fit.min, fit.max);
            let (low, high) = migration.range(fit.min, fit.max);
            let quantizer = self
                .settings
                .activation
                .quantizer(low * margin, high * margin);
            (migration, quantizer)
        };
        let loss = self.loss(&fitted, corrected)?;
        Some(Scored { loss, ..candidate })
    }

    /// The loss of what is `fitted` to one half of the calibration tokens and quantizes the other.
    fn loss(&self, fitted: &Fitted, corrected: bool) -> Option<f64> {
        let halves: Vec<Vec<Array2<f32>>> = (0..2)
            .into_par_iter()
            .map(|half| self.outputs(fitted, corrected, half))
            .collect();
        let mut products = self.products.clone();
        for ((tokens, _), outputs) in self.halves.iter().zip(&halves) {
            for (product, outputs) in products.iter_mut().zip(outputs) {
                for (&token, row) in tokens.iter().zip(outputs.rows()) {
                    product.row_mut(token).assign(&row);
                }
            }
        }
        let loss = self.response.loss(products)?;
        loss.is_finite().then_some(loss)
    }

    /// What every Linear gives for the tokens of one half, `[T, Nᵢ]`.
    fn outputs(&self, fitted: &Fitted, corrected: bool, half: usize) -> Vec<Array2<f32>> {
        let (_, x) = &self.halves[half];
        let (_, fit_x) = &self.halves[1 - half];
        let (migration, quantizer) = fitted(1 - half, &self.problem.folds[1 - half]);
        let mut migrated = Array2::zeros(x.raw_dim());
        let mut quantized = Array2::zeros(x.raw_dim());
        // `select` gives standard layout.
        if let (Some(x), Some(migrated), Some(quantized)) = (
            x.as_slice(),
            migrated.as_slice_mut(),
            quantized.as_slice_mut(),
        ) {
            migration.apply_rows(x, migrated);
            quantizer.apply(migrated, quantized, fit_x.ncols());
        }
        let weights = self.problem.weights.iter();
        weights
            .map(|w| {
                let corrected = (corrected && fit_x.nrows() > 0).then_some(fit_x);
                quantized_product(
                    &quantized,
                    *w,
                    (&migration, &quantizer),
                    self.settings,
                    corrected,
                )
            })
            .collect()
    }
}

/// `Q(x') Q(diag(s) W) + z W`, `[T, N]`, from `Q(x')`; less the mean error over the tokens `fit`, if given.
fn quantized_product(
    x: &Array2<f32>,
    w: ArrayView2<f32>,
    (migration, quantizer): (&Migration, &ActivationQuantizer),
    settings: &SolveSettings,
    fit: Option<&Array2<f32>>,
) -> Array2<f32> {
    let w = w.as_standard_layout();
    let mut quantized = Array2::zeros(w.raw_dim());
    let mut steps = vec![0.0; w.ncols()];
    let scale = migration.scale.as_deref();
    let rotation = migration.rotation.as_ref();
    let rotated = rotation.map(|r| r.rotate_weight(w.view(), scale));
    let (before, scale) = match &rotated {
        Some(w) => (w.view(), None),
        None => (w.view(), scale),
    };
    if let (Some(w), Some(quantized)) = (before.as_slice(), quantized.as_slice_mut()) {
        let ends = [steps.len()];
        fake_quantize_weight_into(w, scale, &settings.weight, &ends, &mut steps, quantized);
    }
    let mut outputs = product(x, &quantized);
    if let Some(z) = &migration.shift {
        outputs += &row_times(z, w.view());
    }
    if let Some(fit) = fit {
        let error = MeanError::new(fit, migration, w.view()).of(quantizer, Some(quantized.view()));
        outputs -= &ndarray::aview1(&error);
    }
    outputs
}
