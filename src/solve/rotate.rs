//! The search for a rotation: "scale, then rotate".
//!
//! ```text
//! x' = ((x − z) / s) R        W' = Rᵀ diag(s) W        z: 0 or the mean, s: a [`Balance`], R: four seeds
//! ```
//!
//! A rotation spreads the error evenly, so that it can be told without outputs. With the step `Δ` of x' and the crest
//! factor c of Gaussian numbers,
//!
//! ```text
//! ‖error‖² ≈ ‖diag(s) W‖² ( T Δ² / 12 + c² ‖x'‖² / (12 K q²) )        q: the largest integer of a weight
//! ```
//!
//! where only Δ needs rotated tokens, and of these only the largest. All pairs of shift and scale are ranked by it, then the
//! seeds. The best is scored by the loss itself, cross-fitted as every candidate ([`super::search`]), at the response of the
//! block where there is one, and must beat the best solution without a rotation.
//!
//! Narrower ranges than that of the tokens are tried, no wider ones.

use ndarray::{Array2, Axis};
use rayon::prelude::*;

use super::balance::{Balance, Channels, row_rms};
use super::joined::Joined;
use super::loss::{SiteLoss, all_columns};
use super::response::{self, Response};
use super::scored::gain_db;
use super::wide::squared_error;
use super::{
    ActivationQuantizer, Fold, Migration, Rotation, ShiftKind, SiteProblem, Solution,
    SolveSettings, migration,
};

/// Seeds of the signs.
const SEEDS: u64 = 4;

/// Shifts and scales of one form that are tried in another.
const TRIED_AGAIN: usize = 3;

/// Tokens that are rotated to find the range: those of most energy.
const LARGEST: usize = 48;

/// Channels of a block, about: half as many leave 1 dB more on a FFN's second Linear, for a third less of the time.
const BLOCK: usize = 32;

/// Thresholds of [`Balance::Threshold`] over the largest extreme.
const THRESHOLDS: [f32; 3] = [0.4, 0.15, 0.05];

/// Factors on the range. After a rotation every channel sees nearly the same distribution: wider ranges only cost.
const MARGINS: [f32; 7] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6];

/// What a rotation may do at a site.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// For every channel one that must have the same shift, scale and sign; `None` if all are free.
    pub ties: Option<&'a [u32]>,
    /// Whether signs can be folded where the scale is.
    pub signs: bool,
    /// Whether the channels can be put into another order at no cost.
    pub reorder: bool,
    /// The channels of a head, if a rotation of each can be folded.
    pub head: Option<usize>,
    /// Whether a rotation may stand before the Linears.
    pub explicit: bool,
    /// What the rotation must gain over the best solution without one, in dB.
    pub least_gain_db: f64,
}

/// One shift, scale and rotation, as functions of the tokens that set them.
#[derive(Debug, Clone, PartialEq)]
struct Candidate {
    shift: bool,
    balance: Balance,
    form: Form,
    seed: u64,
}

/// Which channels are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// All.
    All,
    /// Those of a block of this width, behind an order.
    Ordered(usize),
    /// Those of a head of this width.
    Heads(usize),
}

/// One site whose solution without a rotation is known.
pub(super) struct Site<'a, 'p> {
    problem: &'a SiteProblem<'p>,
    settings: &'a SolveSettings,
    loss: &'a SiteLoss,
    turn: &'a Turn<'a>,
    /// rms of the rows of all weights, `[C]`.
    weights: Vec<f32>,
    /// Half of the tokens of both folds: candidates are ranked on them.
    all: Joined,
}

impl<'a, 'p> Site<'a, 'p> {
    /// Of losses that have a direction at least.
    pub(super) fn new(
        problem: &'a SiteProblem<'p>,
        settings: &'a SolveSettings,
        loss: &'a SiteLoss,
        turn: &'a Turn<'a>,
    ) -> Self {
        let folds = (0..loss.directions()).map(|d| loss.fit(d));
        Self {
            weights: row_rms(loss.weight(), turn.ties),
            all: Joined::of(folds, 2).unwrap_or_default(),
            problem,
            settings,
            loss,
            turn,
        }
    }

    /// The best solutions with a rotation before the Linears whose loss is below that of `best`, without one, by
    /// [`Turn::least_gain_db`]: the cheapest first, each better than the one before.
    /// `estimate` is what the survey's noise model says of `best`, per token.
    pub(super) fn explicit(
        &self,
        estimate: f64,
        best: &Solution,
        response: Option<&dyn Response>,
    ) -> Vec<Solution> {
        let channels = self.weights.len();
        if !self.turn.explicit || Rotation::of(channels, 0).is_none() {
            return Vec::new();
        }
        let Some(all) = self.ranked(Form::All, None) else {
            return Vec::new();
        };
        let width = block_width(channels).filter(|_| self.turn.reorder);
        // What is good for all channels is good for blocks of them, if it does not come out in the same order.
        let blocks = width.and_then(|w| self.ranked(Form::Ordered(w), Some(&all)));
        let mut solutions: Vec<Solution> = Vec::new();
        for ranked in blocks.into_iter().chain([all]) {
            let found = self.best_of(&ranked, estimate, best, response);
            let last = solutions.last().map_or(f64::INFINITY, |s| s.loss_after);
            solutions.extend(found.filter(|s| s.loss_after < last));
        }
        solutions
    }

    /// The best solution with a rotation that folds.
    pub(super) fn folded(
        &self,
        estimate: f64,
        best: &Solution,
        response: Option<&dyn Response>,
    ) -> Option<Solution> {
        let ranked = self.ranked(Form::Heads(self.turn.head?), None)?;
        self.best_of(&ranked, estimate, best, response)
    }

    /// The first of ranked candidates, if it is as good as it seems.
    fn best_of(
        &self,
        ranked: &[(Candidate, f64)],
        estimate: f64,
        best: &Solution,
        response: Option<&dyn Response>,
    ) -> Option<Solution> {
        let (candidate, noise) = ranked.first()?;
        if gain_db(estimate, *noise) < self.turn.least_gain_db {
            return None;
        }
        let (margin, after) = self.score(candidate, response)?;
        if gain_db(best.loss_after, after) < self.turn.least_gain_db {
            return None;
        }
        Some(self.solution(candidate, margin, after, best))
    }

    /// Candidates, the best first, with what the noise model says of them per token. Of those that have been ranked in another
    /// form, `known`, only the best are tried.
    fn ranked(
        &self,
        form: Form,
        known: Option<&[(Candidate, f64)]>,
    ) -> Option<Vec<(Candidate, f64)>> {
        let fold = self.all.fold();
        let channels = Channels::of(&fold, self.turn.ties);
        let noise = |candidate: Candidate| {
            let migration = self.migration_by(&candidate, &channels, &fold);
            let noise = self.noise(&migration, &self.all.x, fold.weights);
            (candidate, noise)
        };
        let candidates = match known {
            None => self.candidates(form, &fold),
            Some(known) => {
                let best = known.iter().filter(|(c, _)| c.seed == 0).take(TRIED_AGAIN);
                best.map(|(c, _)| Candidate { form, ..c.clone() }).collect()
            }
        };
        let mut ranked: Vec<_> = candidates.into_par_iter().map(noise).collect();
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        let best = ranked.first()?.0.clone();
        let seeds = (1..SEEDS).filter(|_| self.turn.signs).collect::<Vec<_>>();
        let others = seeds.into_par_iter().map(|seed| Candidate {
            seed,
            ..best.clone()
        });
        ranked.extend(others.map(noise).collect::<Vec<_>>());
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        Some(ranked)
    }

    /// All shifts and scales, with one seed.
    fn candidates(&self, form: Form, fold: &Fold) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for shift in [false, true] {
            if shift && !self.problem.allow_shift {
                continue;
            }
            let largest = migration::extremes(fold.min, fold.max, None);
            let largest = largest.iter().fold(0.0f32, |a, &b| a.max(b));
            // A threshold on what is left of the mean has never been the best.
            let thresholds = THRESHOLDS.iter().filter(|_| !shift);
            let thresholds = thresholds.map(|t| Balance::Threshold(t * largest));
            let closed = [Balance::None, Balance::Both, Balance::Activation];
            let balances = closed.into_iter().chain(thresholds);
            let scales = |b: &Balance| self.problem.allow_scale || *b == Balance::None;
            candidates.extend(balances.filter(scales).map(|balance| Candidate {
                shift,
                balance,
                form,
                seed: 0,
            }));
        }
        candidates
    }

    /// The rotation of a candidate for tokens that are `x: [T, C]` before it.
    fn rotation(&self, candidate: &Candidate, x: impl FnOnce() -> Array2<f32>) -> Option<Rotation> {
        let channels = self.weights.len();
        let rotation = match candidate.form {
            Form::All => Rotation::of(channels, candidate.seed),
            Form::Ordered(width) => Rotation::blocks(channels, width, candidate.seed),
            Form::Heads(width) => Rotation::heads(channels, width, candidate.seed),
        }?;
        let rotation = match self.turn.ties {
            Some(ties) => rotation.tied(ties),
            None => rotation,
        };
        let rotation = match self.turn.signs {
            true => rotation,
            false => rotation.unsigned(),
        };
        Some(match candidate.form {
            Form::All | Form::Heads(_) => rotation,
            Form::Ordered(_) => rotation.balanced(&energies(&x())),
        })
    }

    /// What the noise model says of tokens `x: [T, C]` that count `weights: [T]`, per token.
    fn noise(&self, migration: &Migration, x: &Array2<f32>, weights: Option<&[f32]>) -> f64 {
        let before = Migration {
            rotation: None,
            ..migration.clone()
        };
        let (tokens, channels) = x.dim();
        let x = before.tokens(x, false);
        let energy_of = |row: ndarray::ArrayView1<f32>| row.dot(&row);
        let energies: Vec<f32> = x.rows().into_iter().map(energy_of).collect();
        let square_step = self.square_step(migration, &x, weights);
        let scale = |j: usize| migration.scale.as_ref().map_or(1.0, |s| f64::from(s[j]));
        let rows = self.weights.iter().enumerate();
        let weight: f64 = rows.map(|(j, w)| (scale(j) * f64::from(*w)).powi(2)).sum();
        let weight = weight * all_columns(self.problem) as f64;
        let count = |t: usize| weights.map_or(1.0, |w| f64::from(w[t]));
        let counts = (0..tokens).map(count).sum::<f64>() / tokens as f64;
        let energies = energies.iter().enumerate();
        let mut energy =
            energies.map(|(t, e)| count(t) * f64::from(*e)).sum::<f64>() / tokens as f64;
        if self.problem.correct_bias
            && let Some(mean) = x.mean_axis(Axis(0))
        {
            energy -= counts * mean.iter().map(|m| f64::from(*m).powi(2)).sum::<f64>();
        }
        let channels = channels as f64;
        let sharing = self.settings.weight.group().map_or(channels, |g| g as f64);
        let crest = 2.0 * (2.0 * sharing).ln();
        let limit = f64::from(self.settings.weight.qmax());
        weight / 12.0 * (square_step + crest * energy / (channels * limit * limit))
    }

    /// The square of the step of tokens that are `x: [T, C]` before the rotation, times what they count: the mean over them.
    fn square_step(&self, migration: &Migration, x: &Array2<f32>, weights: Option<&[f32]>) -> f64 {
        let activation = &self.settings.activation;
        // A constant range is set by the largest tokens.
        let mut turned = match activation.has_range() {
            true => largest_tokens(x),
            false => x.clone(),
        };
        if let (Some(r), Some(x)) = (&migration.rotation, turned.as_slice_mut()) {
            r.rotate_tokens(x);
        }
        let range = |(low, high): (f32, f32), &v: &f32| (low.min(v), high.max(v));
        let (low, high) = turned.iter().fold((0.0, 0.0), range);
        let known = match activation.has_range() {
            true => x,
            false => &turned,
        };
        let rows = known.as_slice().unwrap_or(&[]);
        let quantizer = activation.quantizer(low, high);
        quantizer.mean_square_step(rows, x.ncols(), weights)
    }

    /// The margin at which a candidate rounds and clips the tokens of the other half least, with what the tokens of each half
    /// make of it.
    ///
    /// Every direction of rotated tokens counts nearly the same, so this needs no product with the weights.
    fn margin(&self, fitted: &[Migration]) -> f32 {
        if !self.settings.activation.has_range() {
            return 1.0;
        }
        let turned = |(direction, migration): (usize, &Migration)| {
            let (fit, other) = (self.loss.fit(direction), self.loss.fit(1 - direction));
            let x = migration.tokens(&other.sample.to_owned(), false);
            (migration.range_of(&fit), x, other.weights)
        };
        let turned: Vec<_> = fitted.par_iter().enumerate().map(turned).collect();
        let error = |margin: f32| {
            let errors = turned.par_iter().map(|((low, high), x, weights)| {
                let activation = &self.settings.activation;
                let quantizer = activation.quantizer(low * margin, high * margin);
                rounding_error(x, *weights, &quantizer)
            });
            errors.collect::<Vec<f64>>().iter().sum::<f64>()
        };
        let mut best = (MARGINS[0], error(MARGINS[0]));
        for margin in MARGINS.into_iter().skip(1) {
            let error = error(margin);
            // Once clipping costs more than smaller steps save, it goes on to.
            if error >= best.1 {
                break;
            }
            best = (margin, error);
        }
        best.0
    }

    /// The best margin of a candidate, and its cross-fitted loss.
    fn score(&self, candidate: &Candidate, response: Option<&dyn Response>) -> Option<(f32, f64)> {
        let directions = (0..self.loss.directions()).into_par_iter();
        let fitted = directions.map(|d| self.migration(candidate, &self.loss.fit(d)));
        let fitted: Vec<Migration> = fitted.collect();
        // Nothing is validated with less than two halves.
        if fitted.len() < 2 {
            return None;
        }
        let margin = self.margin(&fitted);
        let corrected = self.problem.correct_bias;
        let loss = match response {
            Some(response) => {
                let fitted = |half: usize, fold: &Fold| {
                    let migration = fitted[half].clone();
                    let (low, high) = migration.range_of(fold);
                    let activation = &self.settings.activation;
                    (migration, activation.quantizer(low * margin, high * margin))
                };
                response::score(response, self.problem, self.settings, &fitted, corrected)?
            }
            None => {
                let evaluate = |(direction, migration): (usize, &Migration)| {
                    let of = (candidate.kind(), migration);
                    let losses = self
                        .loss
                        .evaluate_migration(of, &[margin], corrected, direction);
                    losses.iter().sum::<f64>()
                };
                let losses = fitted.par_iter().enumerate().map(evaluate);
                losses.collect::<Vec<f64>>().iter().sum()
            }
        };
        Some((margin, loss))
    }

    /// A candidate as the tokens of a fold set it.
    fn migration(&self, candidate: &Candidate, fold: &Fold) -> Migration {
        let channels = Channels::of(fold, self.turn.ties);
        self.migration_by(candidate, &channels, fold)
    }

    /// The same where the channels of the fold are known.
    fn migration_by(&self, candidate: &Candidate, channels: &Channels, fold: &Fold) -> Migration {
        let shift = candidate.shift.then(|| channels.mean.clone());
        let balance = candidate.balance;
        let of = (fold, self.turn.ties);
        let scale = balance.scale(channels, &self.weights, shift.as_deref(), of);
        let before = Migration {
            shift,
            scale,
            rotation: None,
        };
        let rotation = self.rotation(candidate, || before.tokens(&fold.sample.to_owned(), false));
        Migration { rotation, ..before }
    }

    /// A candidate applied to all tokens.
    fn solution(
        &self,
        candidate: &Candidate,
        margin: f32,
        after: f64,
        best: &Solution,
    ) -> Solution {
        let folds = self.problem.folds;
        let known = folds.iter().filter(|f| f.sample.nrows() > 0);
        let all = Joined::of(known.copied(), 1).unwrap_or_default();
        let migration = self.migration(candidate, &all.fold());
        let (low, high) = migration.range_of_all(folds);
        Solution {
            range: (low * margin, high * margin),
            range_after: (low, high),
            threshold: match candidate.balance {
                Balance::Threshold(t) => migration.scale.is_some().then_some(t),
                _ => None,
            },
            margin,
            shift_kind: candidate.kind(),
            loss_after: after,
            loss_without: best.loss_without.or(Some(best.loss_after)),
            validated_gain_db: gain_db(best.loss_before, after),
            shift: migration.shift,
            scale: migration.scale,
            rotation: migration.rotation,
            // A rotation makes both sides alike.
            levels_below: None,
            ..best.clone()
        }
    }
}

impl Candidate {
    fn kind(&self) -> ShiftKind {
        match self.shift {
            true => ShiftKind::Mean,
            false => ShiftKind::None,
        }
    }
}

/// The width of blocks: a divisor of the channels near to [`BLOCK`].
fn block_width(channels: usize) -> Option<usize> {
    let fits = |width: &usize| channels.is_multiple_of(*width) && channels / width > 1;
    let near = |width: &usize| (width.abs_diff(BLOCK), *width);
    (BLOCK / 2..=BLOCK * 3 / 2).filter(fits).min_by_key(near)
}

/// What every channel has of the tokens of most energy: they set the range.
fn energies(x: &Array2<f32>) -> Vec<f64> {
    let largest = largest_tokens(x);
    let of = |c: ndarray::ArrayView1<f32>| c.iter().map(|v| f64::from(*v).powi(2)).sum();
    largest.columns().into_iter().map(of).collect()
}

/// The tokens of most energy, of `x: [T, C]`.
fn largest_tokens(x: &Array2<f32>) -> Array2<f32> {
    let energies: Vec<f32> = x.rows().into_iter().map(|row| row.dot(&row)).collect();
    let mut order: Vec<usize> = (0..x.nrows()).collect();
    order.sort_by(|&a, &b| energies[b].total_cmp(&energies[a]).then(a.cmp(&b)));
    order.truncate(LARGEST);
    x.select(Axis(0), &order)
}

/// `Σ_t w_t ‖Q(x_t) − x_t‖²` for tokens `x: [T, C]` that count `weights: [T]`.
fn rounding_error(
    x: &Array2<f32>,
    weights: Option<&[f32]>,
    quantizer: &ActivationQuantizer,
) -> f64 {
    let mut quantized = vec![0.0; x.ncols()];
    let errors = x.rows().into_iter().enumerate().map(|(t, row)| {
        let row = row.to_slice().unwrap_or(&[]);
        quantizer.apply(row, &mut quantized[..row.len()], row.len());
        squared_error(row, &quantized[..row.len()]) * weights.map_or(1.0, |w| f64::from(w[t]))
    });
    errors.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::mix::noise;
    use crate::solve::{
        ActivationSpec, Method, WeightSpec, fake_quantize, quantize_weight, solve_both,
    };

    /// What GELU gives: most values just below 0, some channels large, one token in sixteen larger.
    fn activations(tokens: usize, channels: usize, seed: u64) -> Array2<f32> {
        let mut x = noise(tokens, channels, seed) + noise(tokens, channels, seed + 50_000_000);
        for ((t, j), v) in x.indexed_iter_mut() {
            let size = if j % 37 == 0 { 9.0 } else { 0.7 } * if t % 16 == 0 { 2.5 } else { 1.0 };
            *v = (*v * size).max(-0.17);
        }
        x
    }

    struct Owned {
        folds: [(Vec<f32>, Vec<f32>, Array2<f32>); 2],
        weight: Array2<f32>,
    }

    impl Owned {
        fn new(channels: usize, make: fn(usize, usize, u64) -> Array2<f32>) -> Self {
            let fold = |seed| {
                let x = make(200, channels, seed);
                let pick = |start: f32, f: fn(f32, f32) -> f32| {
                    x.fold_axis(Axis(0), start, |a, b| f(*a, *b)).to_vec()
                };
                (
                    pick(f32::INFINITY, f32::min),
                    pick(f32::NEG_INFINITY, f32::max),
                    x,
                )
            };
            Self {
                folds: [fold(1), fold(9_000_000)],
                weight: noise(channels, 96, 3),
            }
        }

        fn problem(&self) -> SiteProblem<'_> {
            let fold = |i: usize| Fold {
                min: &self.folds[i].0,
                max: &self.folds[i].1,
                sample: self.folds[i].2.view(),
                weights: None,
            };
            SiteProblem {
                folds: [fold(0), fold(1)],
                weights: vec![self.weight.view()],
                allow_shift: true,
                allow_scale: true,
                correct_bias: true,
                ties: None,
            }
        }
    }

    fn settings(bits: u8) -> SolveSettings {
        SolveSettings {
            activation: ActivationSpec::per_tensor(bits, false),
            weight: WeightSpec::per_channel(bits),
            method: Method::OsPlus,
        }
    }

    const FREE: Turn = Turn {
        ties: None,
        signs: true,
        reorder: false,
        head: None,
        explicit: true,
        least_gain_db: 1.0,
    };

    /// Sum of squared errors of the outputs on tokens that no one has seen.
    fn unseen_error(owned: &Owned, solution: &Solution, settings: &SolveSettings) -> f64 {
        let x = activations(300, owned.weight.nrows(), 70_000_000);
        let migration = Migration {
            shift: solution.shift.clone(),
            scale: solution.scale.clone(),
            rotation: solution.rotation.clone(),
        };
        let scale = solution.scale.as_deref();
        let weight = match &solution.rotation {
            Some(r) => r.rotate_weight(owned.weight.view(), scale),
            None => {
                let s = scale.map_or(vec![1.0; x.ncols()], <[f32]>::to_vec);
                &owned.weight * &ndarray::aview1(&s).insert_axis(Axis(1))
            }
        };
        let mut migrated = migration.tokens(&x, false);
        let float = migrated.dot(&weight);
        let params = settings
            .activation
            .params(solution.range.0, solution.range.1);
        fake_quantize(migrated.as_slice_mut().unwrap(), &params);
        let weight = quantize_weight(weight.view(), &settings.weight).dequantize();
        let error = migrated.dot(&weight) - float;
        let error = &error - &error.mean_axis(Axis(0)).unwrap();
        error.iter().map(|e| f64::from(*e).powi(2)).sum()
    }

    /// The ranking means nothing if the noise model is far from the loss.
    #[test]
    fn the_noise_model_predicts_the_loss() {
        for channels in [96, 384, 512] {
            let owned = Owned::new(channels, activations);
            let (problem, settings) = (owned.problem(), settings(8));
            let loss = SiteLoss::new(&problem, &settings, 256, 4096);
            let site = Site::new(&problem, &settings, &loss, &FREE);
            for (candidate, noise) in site.ranked(Form::All, None).unwrap() {
                let (_, real) = site.score(&candidate, None).unwrap();
                let ratio = noise * 400.0 / real;
                assert!(
                    (0.5..2.0).contains(&ratio),
                    "{channels} {candidate:?}: {ratio}"
                );
            }
        }
    }

    #[test]
    fn outlier_tokens_are_what_a_scale_cannot_cure() {
        for bits in [8, 6] {
            let owned = Owned::new(192, activations);
            let settings = settings(bits);
            let (plain, rotated) = solve_both(&owned.problem(), &settings, None, Some(&FREE));
            let rotated = rotated.first().cloned().expect("a gain");
            assert!(rotated.rotation.is_some() && plain.rotation.is_none());
            assert!(gain_db(plain.loss_after, rotated.loss_after) > 3.0);
            let [plain, turned] = [&plain, &rotated].map(|s| unseen_error(&owned, s, &settings));
            assert!(
                gain_db(plain, turned) > 3.0,
                "{bits} bits: {plain} -> {turned}"
            );
            // The same again, on any thread.
            let again = solve_both(&owned.problem(), &settings, None, Some(&FREE)).1;
            assert_eq!(again, [rotated]);
        }
    }

    /// Channels and tokens alike: nothing to spread. And a prime number of channels has no rotation.
    #[test]
    fn no_rotation_without_a_reason() {
        for (channels, make) in [(96, noise as fn(usize, usize, u64) -> _), (97, activations)] {
            let owned = Owned::new(channels, make);
            let (_, rotated) = solve_both(&owned.problem(), &settings(8), None, Some(&FREE));
            assert_eq!(rotated, []);
        }
        let owned = Owned::new(96, activations);
        assert_eq!(solve_both(&owned.problem(), &settings(8), None, None).1, []);
    }

    #[test]
    fn tied_channels_and_walls_for_signs() {
        let owned = Owned::new(192, activations);
        let ties: Vec<u32> = (0..192).map(|j| j / 2 * 2).collect();
        let turn = Turn {
            ties: Some(&ties),
            signs: true,
            reorder: false,
            head: None,
            explicit: true,
            least_gain_db: -60.0,
        };
        let (_, rotated) = solve_both(&owned.problem(), &settings(8), None, Some(&turn));
        let rotated = rotated[0].clone();
        let signs = rotated.rotation.as_ref().unwrap().signs();
        let pairs = |v: &[f32]| v.chunks(2).all(|pair| pair[0] == pair[1]);
        assert!(pairs(&signs) && pairs(rotated.scale.as_ref().unwrap()));
        assert!(rotated.shift.is_none_or(|z| pairs(&z)));
        let turn = Turn {
            signs: false,
            ..turn
        };
        let (_, rotated) = solve_both(&owned.problem(), &settings(8), None, Some(&turn));
        assert_eq!(rotated[0].rotation.as_ref().unwrap().signs(), [1.0; 192]);
    }

    /// A channel that is dead in one half and fires in the other does not get all the precision.
    #[test]
    fn bursts_do_not_take_the_gain_away() {
        let mut owned = Owned::new(192, activations);
        for half in 0..2 {
            let (min, max, sample) = &mut owned.folds[half];
            for j in (half..192).step_by(12) {
                sample.column_mut(j).fill(-0.01);
                (min[j], max[j]) = (-0.17, 6.0);
                sample[[7, (j + 6) % 192]] = 6.0;
                max[(j + 6) % 192] = max[(j + 6) % 192].max(6.0);
            }
        }
        let (plain, rotated) = solve_both(&owned.problem(), &settings(8), None, Some(&FREE));
        let rotated = rotated.first().expect("a gain");
        assert!(gain_db(plain.loss_after, rotated.loss_after) > 2.0);
    }
}
