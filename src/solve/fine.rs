//! The search where ranges are made at run time: a scale per token or per group of activations, weights in groups.
//!
//! No range is calibrated, so there are no margins, and what is best is another migration: one that was searched for constant
//! scales can be worse than none (4-bit weights behind per-token activations on SmolLM2: −3 dB). Candidates are judged by the
//! form's own quantizers, activations included, and cross-fitted as everywhere ([`super::search`]).
//!
//! ```text
//! s_j = max(1, extreme_j / t)        s_j = extreme_j^α        s_j = (mean |x_j − z_j|)^α        s_j = √(rms(x_j − z_j) / rms(W_j))
//! ```

use rayon::prelude::*;

use super::balance::{Balance, Channels, row_rms};
use super::joined::Joined;
use super::loss::SiteLoss;
use super::migration::{self, ShiftKind, extremes, shift};
use super::response::{self, Response};
use super::scored::{CLEAR_GAIN, gain_db};
use super::survey::Survey;
use super::{ActivationGranularity, ActivationSpec};
use super::{Fold, Migration, Recipe, SiteProblem, Solution, SolveSettings};

/// Exponents of the families of powers.
const POWERS: [f32; 7] = [0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0];

/// How far around the best power others are tried.
const NEAR: [f32; 2] = [-0.07, 0.07];

/// Thresholds over the largest extreme.
const THRESHOLDS: [f32; 8] = [0.015, 0.03, 0.06, 0.1, 0.17, 0.28, 0.45, 0.7];

/// Integers below 0 that are tried where tokens are one-sided: half of all over these.
const BELOW: [i32; 4] = [2, 4, 8, 128];

/// Candidates that are scored by the loss itself, besides doing nothing.
const FINALISTS: usize = 4;

/// One shift and one scale, as functions of the tokens that set them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    shift: ShiftKind,
    balance: Balance,
}

const NOTHING: Candidate = Candidate {
    shift: ShiftKind::None,
    balance: Balance::None,
};

/// One site.
struct Site<'a, 'p> {
    problem: &'a SiteProblem<'p>,
    settings: &'a SolveSettings,
    /// rms of the rows of all weights, `[C]`.
    weights: Vec<f32>,
}

/// The best migration of a site without a rotation, and the noise model's estimate of it, summed over its tokens.
pub(super) fn solve(
    problem: &SiteProblem,
    settings: &SolveSettings,
    recipe: &Recipe,
    loss: &SiteLoss,
    response: Option<&dyn Response>,
) -> (Solution, f64) {
    let site = Site {
        weights: row_rms(loss.weight(), problem.ties),
        problem,
        settings,
    };
    let survey = Survey::new(
        problem,
        settings,
        recipe.survey_tokens,
        recipe.survey_columns,
    );
    let ranked = site.ranked(&survey, loss);
    let finalists: Vec<Candidate> = ranked.iter().take(FINALISTS).map(|(c, _)| *c).collect();
    let trials = [&[NOTHING][..], &finalists].concat();
    let at_response = response.and_then(|r| site.at_response(r, &trials));
    let found_at_response = at_response.is_some();
    let losses = at_response.unwrap_or_else(|| site.at_outputs(loss, &trials));
    let mut best = 0;
    for (i, loss) in losses.iter().enumerate() {
        if *loss < losses[best] {
            best = i;
        }
    }
    if losses[best] >= losses[0] * CLEAR_GAIN {
        best = 0;
    }
    let (before, after) = (losses[0], losses[best]);
    let mut solution = site.solution(trials[best], before, after);
    solution.at_response = found_at_response;
    if let Some((below, of_symmetric)) = site.levels_below(loss, &trials[best]) {
        solution.levels_below = Some(below);
        if !found_at_response {
            // With it or without, a migration gains what it gains; a rotation has to be better than both together.
            solution.loss_before *= of_symmetric;
            solution.loss_after *= of_symmetric;
        }
    }
    let estimate = |c: &Candidate| ranked.iter().find(|(r, _)| r == c).map(|(_, e)| *e);
    let estimate = estimate(&trials[best]).unwrap_or(f64::INFINITY);
    (solution, estimate)
}

impl Site<'_, '_> {
    /// All candidates by what the noise model says of them, the best first; doing nothing is among them.
    fn ranked(&self, survey: &Survey, loss: &SiteLoss) -> Vec<(Candidate, f64)> {
        let folds = (0..loss.directions()).map(|d| loss.fit(d));
        let folds: Vec<(Fold, Channels)> = folds
            .map(|fold| (fold, Channels::of(&fold, self.problem.ties)))
            .collect();
        let score = |candidate: &Candidate| {
            let fitted = folds.iter();
            let fitted: Vec<Migration> = fitted
                .map(|(fold, channels)| self.migration_by(candidate, channels, fold))
                .collect();
            let losses = survey.evaluate_fitted(&fitted, &[1.0], self.problem.correct_bias);
            (*candidate, losses[0])
        };
        let mut ranked: Vec<_> = self.candidates(loss).par_iter().map(score).collect();
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        let near = ranked.first().map_or_else(Vec::new, |(best, _)| near(best));
        ranked.extend(near.par_iter().map(score).collect::<Vec<_>>());
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        ranked
    }

    /// The coarse grid.
    fn candidates(&self, loss: &SiteLoss) -> Vec<Candidate> {
        let (min, max) = loss.fit_range(0);
        let largest = extremes(min, max, None).into_iter().fold(0.0f32, f32::max);
        let scales = match self.problem.allow_scale {
            true => {
                let thresholds = THRESHOLDS.map(|t| Balance::Threshold(t * largest));
                let powers = POWERS.map(Balance::Largest);
                let means = POWERS.map(Balance::Magnitude);
                let closed = [Balance::None, Balance::Both, Balance::Activation];
                [&closed[..], &thresholds, &powers, &means].concat()
            }
            false => vec![Balance::None],
        };
        let mut kinds = vec![ShiftKind::None];
        // What is not quantized needs no shift.
        let quantized = self.settings.activation.quantizer(-1.0, 1.0);
        if self.problem.allow_shift && quantized != super::ActivationQuantizer::Float {
            let of_range = [ShiftKind::OneSided, ShiftKind::MidRange];
            kinds.extend(of_range.iter().filter(|k| shift(**k, min, max).is_some()));
            kinds.push(ShiftKind::Mean);
        }
        let pairs = kinds.iter().flat_map(|&shift| {
            let of = move |&balance: &Balance| Candidate { shift, balance };
            scales.iter().map(of)
        });
        pairs.collect()
    }

    /// A candidate as the tokens of a fold set it.
    fn migration(&self, candidate: &Candidate, fold: &Fold) -> Migration {
        self.migration_by(candidate, &Channels::of(fold, self.problem.ties), fold)
    }

    /// The same where the channels of the fold are known.
    fn migration_by(&self, candidate: &Candidate, channels: &Channels, fold: &Fold) -> Migration {
        let shift = match candidate.shift {
            ShiftKind::Mean => Some(channels.mean.clone()),
            kind => migration::shift(kind, fold.min, fold.max),
        };
        let of = (fold, self.problem.ties);
        let scale = candidate
            .balance
            .scale(channels, &self.weights, shift.as_deref(), of);
        Migration {
            shift,
            scale,
            rotation: None,
        }
    }

    /// Losses at the outputs of the Linears.
    fn at_outputs(&self, loss: &SiteLoss, trials: &[Candidate]) -> Vec<f64> {
        let directions = loss.directions();
        let score = |job: usize| {
            let (candidate, direction) = (&trials[job / directions], job % directions);
            let migration = self.migration(candidate, &loss.fit(direction));
            let corrected = self.problem.correct_bias && *candidate != NOTHING;
            let of = (candidate.shift, &migration);
            let losses = loss.evaluate_migration(of, &[1.0], corrected, direction);
            losses.iter().sum::<f64>()
        };
        let jobs = (0..trials.len() * directions).into_par_iter();
        let losses: Vec<f64> = jobs.map(score).collect();
        losses
            .chunks(directions.max(1))
            .map(|l| l.iter().sum())
            .collect()
    }

    /// How many integers below 0 are best for a candidate, if clearly fewer than half, and the loss over that with half of them:
    /// behind GELU few are needed.
    ///
    /// Measured at the outputs of the Linears. Symmetric targets have no such form.
    fn levels_below(&self, loss: &SiteLoss, candidate: &Candidate) -> Option<(i32, f64)> {
        let activation = &self.settings.activation;
        let per_token = activation.granularity == ActivationGranularity::PerToken;
        (per_token && !activation.symmetric).then_some(())?;
        let score = |below: Option<i32>| -> f64 {
            let activation = ActivationSpec {
                levels_below: below,
                ..*activation
            };
            let of = |direction| {
                let migration = self.migration(candidate, &loss.fit(direction));
                let of = (candidate.shift, &migration);
                loss.evaluate_as(
                    &activation,
                    of,
                    &[1.0],
                    self.problem.correct_bias,
                    direction,
                )
            };
            (0..loss.directions()).flat_map(of).sum()
        };
        let most = 1 << (activation.bits - 1);
        let mut tried: Vec<i32> = BELOW.iter().map(|part| (most / part).max(1)).collect();
        tried.dedup();
        let tried: Vec<Option<i32>> = [None]
            .into_iter()
            .chain(tried.into_iter().map(Some))
            .collect();
        let losses: Vec<f64> = tried.par_iter().map(|below| score(*below)).collect();
        let best = (1..tried.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b]))?;
        let clear = losses[best] < losses[0] * CLEAR_GAIN;
        Some((tried[best]?, losses[best] / losses[0])).filter(|_| clear)
    }

    /// Losses at the response of the block; `None` if it cannot be run.
    fn at_response(&self, response: &dyn Response, trials: &[Candidate]) -> Option<Vec<f64>> {
        let score = |candidate: &Candidate| {
            let fitted = |_, fold: &Fold| {
                let migration = self.migration(candidate, fold);
                (migration, self.settings.activation.quantizer(-1.0, 1.0))
            };
            let corrected = self.problem.correct_bias && *candidate != NOTHING;
            response::score(response, self.problem, self.settings, &fitted, corrected)
        };
        trials.iter().map(score).collect()
    }

    /// A candidate applied to all tokens.
    fn solution(&self, candidate: Candidate, before: f64, after: f64) -> Solution {
        let folds = self.problem.folds.iter();
        let known = folds.filter(|f| f.sample.nrows() > 0).copied();
        let all = Joined::of(known, 1).unwrap_or_default();
        let fold = all.fold();
        let migration = self.migration(&candidate, &fold);
        let threshold = match candidate.balance {
            Balance::Threshold(t) => migration.scale.is_some().then_some(t),
            _ => None,
        };
        Solution {
            threshold,
            shift_kind: candidate.shift,
            validated_gain_db: gain_db(before, after),
            ..Solution::of(migration, (fold.min, fold.max), 1.0, before, after)
        }
    }
}

/// Candidates beside one with a power.
fn near(best: &Candidate) -> Vec<Candidate> {
    let other: fn(f32) -> Balance = match best.balance {
        Balance::Largest(_) => Balance::Largest,
        Balance::Magnitude(_) => Balance::Magnitude,
        _ => return Vec::new(),
    };
    let (Balance::Largest(power) | Balance::Magnitude(power)) = best.balance else {
        return Vec::new();
    };
    let beside = NEAR.map(|step| Candidate {
        balance: other(power + step),
        ..*best
    });
    beside.to_vec()
}
