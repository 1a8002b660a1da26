//! The validated search for shift, threshold and margin of one site.
//!
//! Candidates are scored by cross-fit: ranges, z and s from one half of the calibration tokens, loss on the other half,
//! both ways, summed. Scoring on the tokens that set the ranges would hide that after scaling many channels touch the
//! range's edge at once, so that an unseen token which exceeds any of them is clipped. "No shift", "no scale" and
//! "neither" are candidates, and doing nothing wins ties.
//!
//! The search goes from coarse to fine: every kind of shift over a coarse grid of thresholds with a few margins, then
//! thresholds around the best, then all margins at the best thresholds. The chosen kind, threshold and margin are then
//! applied to the ranges of all tokens.

use super::loss::{SiteLoss, Trial, migrate};
use super::migration::{Migration, ShiftKind, extremes, shift};
use super::smoothquant;
use super::{CurvePoint, Method, SiteProblem, Solution, SolveSettings};
use rayon::prelude::*;

/// The grid of the search.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Sample tokens used of each fold, at most.
    pub tokens: usize,
    /// Kinds of shift to try besides none.
    pub shifts: Vec<ShiftKind>,
    /// Coarse thresholds, as fractions of the largest extreme after the shift, ascending.
    pub thresholds: Vec<f32>,
    /// Margins tried with every coarse threshold.
    pub probe_margins: Vec<f32>,
    /// How often the step between thresholds is halved around the best.
    pub refinements: usize,
    /// Margins tried with the best thresholds and without a scale.
    pub margins: Vec<f32>,
    /// EXPERIMENT
    pub relative: bool,
    /// EXPERIMENT
    pub margin_rule: u8,
    /// EXPERIMENT
    pub finalists: usize,
    /// EXPERIMENT
    pub kinds_refined: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        let thresholds = (0..10)
            .map(|i| 0.04f32.powf(1.0 - i as f32 / 10.0))
            .collect();
        Self {
            tokens: 256,
            shifts: vec![ShiftKind::OneSided, ShiftKind::MidRange],
            thresholds,
            probe_margins: vec![1.1],
            refinements: 2,
            margins: vec![0.9, 1.0, 1.1, 1.2, 1.35],
            relative: true,
            margin_rule: 0,
            finalists: 3,
            kinds_refined: 2,
        }
    }
}

/// A scored candidate.
#[derive(Debug, Clone, Copy)]
struct Scored {
    shift: ShiftKind,
    threshold: Option<f32>,
    margin: f32,
    loss: f64,
}

/// Finds the migration of one site with the standard [`Recipe`].
pub fn solve_site(problem: &SiteProblem, settings: &SolveSettings) -> Solution {
    solve_site_with(problem, settings, &Recipe::default())
}

/// Finds the migration of one site.
///
/// With fewer than two calibration tokens nothing can be validated, and [`Method::OsPlus`] does nothing.
pub fn solve_site_with(
    problem: &SiteProblem,
    settings: &SolveSettings,
    recipe: &Recipe,
) -> Solution {
    let loss = SiteLoss::new(problem, settings.activation, settings.weight, recipe.tokens);
    let (min, max) = all_tokens(problem);
    match settings.method {
        Method::None => {
            let before = score_all(&loss, vec![nothing(vec![1.0])]);
            finish(&loss, &min, &max, &before, before[0], recipe, settings)
        }
        Method::SmoothQuant { alpha } => smoothquant_site(problem, &loss, &min, &max, alpha),
        Method::OsPlus if loss.directions() == 0 => {
            let before = score_all(&loss, vec![nothing(vec![1.0])]);
            finish(&loss, &min, &max, &before, before[0], recipe, settings)
        }
        Method::OsPlus => {
            let scored = search(problem, &loss, &min, &max, recipe);
            let best = lowest(&scored);
            finish(&loss, &min, &max, &scored, best, recipe, settings)
        }
    }
}

/// Extremes of every channel over both folds; empty folds are left out.
fn all_tokens(problem: &SiteProblem) -> (Vec<f32>, Vec<f32>) {
    let [a, b] = &problem.folds;
    match (a.sample.nrows(), b.sample.nrows()) {
        (0, 0) => (Vec::new(), Vec::new()),
        (0, _) => (b.min.to_vec(), b.max.to_vec()),
        (_, 0) => (a.min.to_vec(), a.max.to_vec()),
        _ => (
            a.min.iter().zip(b.min).map(|(a, b)| a.min(*b)).collect(),
            a.max.iter().zip(b.max).map(|(a, b)| a.max(*b)).collect(),
        ),
    }
}

fn nothing(margins: Vec<f32>) -> Trial {
    Trial {
        shift: ShiftKind::None,
        threshold: None,
        margins,
        relative: true,
    }
}

/// All candidates with their losses. The first is "do nothing".
fn search(
    problem: &SiteProblem,
    loss: &SiteLoss,
    min: &[f32],
    max: &[f32],
    recipe: &Recipe,
) -> Vec<Scored> {
    let mut kinds = vec![ShiftKind::None];
    if problem.allow_shift {
        kinds.extend(
            recipe
                .shifts
                .iter()
                .filter(|kind| shift(**kind, min, max).is_some()),
        );
    }
    let mut margins = vec![1.0];
    margins.extend(recipe.margins.iter().filter(|&&m| m != 1.0));
    let mut trials: Vec<Trial> = kinds
        .iter()
        .map(|&shift| Trial {
            shift,
            threshold: None,
            margins: margins.clone(),
            relative: recipe.relative,
        })
        .collect();
    if !problem.allow_scale {
        return score_all(loss, trials);
    }
    let unit = |kind: ShiftKind| {
        if recipe.relative {
            1.0
        } else {
            let z = shift(kind, min, max);
            extremes(min, max, z.as_deref())
                .iter()
                .fold(0.0f32, |a, &b| a.max(b))
        }
    };
    for &kind in &kinds {
        for &t in &recipe.thresholds {
            trials.push(Trial {
                shift: kind,
                threshold: Some(t * unit(kind)),
                margins: recipe.probe_margins.clone(),
                relative: recipe.relative,
            });
        }
    }
    let mut scored = score_all(loss, trials);
    // Refine
    let mut step = match recipe.thresholds.as_slice() {
        [a, b, ..] => (b / a).sqrt(),
        _ => 1.0,
    };
    for _ in 0..recipe.refinements {
        let mut best: Vec<Scored> = kinds
            .iter()
            .filter_map(|&kind| {
                scored
                    .iter()
                    .filter(|s| s.shift == kind && s.threshold.is_some())
                    .copied()
                    .min_by(|a, b| a.loss.total_cmp(&b.loss))
            })
            .collect();
        best.sort_by(|a, b| a.loss.total_cmp(&b.loss));
        best.truncate(recipe.kinds_refined);
        let trials = best
            .iter()
            .flat_map(|b| {
                [1.0 / step, step].map(|f| Trial {
                    shift: b.shift,
                    threshold: b.threshold.map(|t| t * f),
                    margins: vec![b.margin],
                    relative: recipe.relative,
                })
            })
            .collect();
        scored.extend(score_all(loss, trials));
        step = step.sqrt();
    }
    // Margins
    let mut order: Vec<Scored> = scored
        .iter()
        .filter(|s| s.threshold.is_some())
        .copied()
        .collect();
    order.sort_by(|a, b| a.loss.total_cmp(&b.loss));
    let mut finalists: Vec<Scored> = Vec::new();
    for s in order {
        if finalists.len() < recipe.finalists
            && !finalists
                .iter()
                .any(|f| f.shift == s.shift && f.threshold == s.threshold)
        {
            finalists.push(s);
        }
    }
    let trials = finalists
        .iter()
        .map(|f| Trial {
            shift: f.shift,
            threshold: f.threshold,
            margins: recipe
                .margins
                .iter()
                .copied()
                .filter(|&m| {
                    !scored
                        .iter()
                        .any(|s| s.shift == f.shift && s.threshold == f.threshold && s.margin == m)
                })
                .collect(),
            relative: recipe.relative,
        })
        .collect();
    scored.extend(score_all(loss, trials));
    scored
}

/// Scores every trial in both directions, in parallel; one result per trial and margin, in order.
fn score_all(loss: &SiteLoss, trials: Vec<Trial>) -> Vec<Scored> {
    let jobs: Vec<(usize, usize)> = (0..trials.len())
        .flat_map(|trial| (0..loss.directions()).map(move |direction| (trial, direction)))
        .collect();
    let losses: Vec<Vec<f64>> = jobs
        .par_iter()
        .map(|&(trial, direction)| loss.evaluate(&trials[trial], direction))
        .collect();
    let mut scored = Vec::new();
    for (i, trial) in trials.iter().enumerate() {
        for (k, &margin) in trial.margins.iter().enumerate() {
            let directions = loss.directions();
            let total = losses[i * directions..(i + 1) * directions]
                .iter()
                .map(|l| l[k])
                .sum();
            scored.push(Scored {
                shift: trial.shift,
                threshold: trial.threshold,
                margin,
                loss: total,
            });
        }
    }
    scored
}

/// The first candidate with the lowest loss: an earlier one wins ties, so "do nothing" does.
fn lowest(scored: &[Scored]) -> Scored {
    scored[1..].iter().fold(
        scored[0],
        |best, s| if s.loss < best.loss { *s } else { best },
    )
}

fn finish(
    loss: &SiteLoss,
    min: &[f32],
    max: &[f32],
    scored: &[Scored],
    best: Scored,
    recipe: &Recipe,
    settings: &SolveSettings,
) -> Solution {
    let (migration, threshold) = migrate(best.shift, best.threshold, recipe.relative, min, max);
    let mut curve: Vec<CurvePoint> = Vec::new();
    for s in scored.iter().filter(|s| s.shift == best.shift) {
        let (_, Some(threshold)) = migrate(s.shift, s.threshold, recipe.relative, min, max) else {
            continue;
        };
        match curve.iter_mut().find(|p| p.threshold == threshold) {
            Some(point) => point.loss = point.loss.min(s.loss),
            None => curve.push(CurvePoint {
                threshold,
                loss: s.loss,
            }),
        }
    }
    curve.sort_by(|a, b| a.threshold.total_cmp(&b.threshold));
    let width = |(low, high): (f32, f32)| {
        if settings.activation.symmetric {
            high.max(-low)
        } else {
            high.max(0.0) - low.min(0.0)
        }
    };
    let half: f32 = (0..loss.directions())
        .map(|d| {
            let (min, max) = loss.fit_range(d);
            width(
                migrate(best.shift, best.threshold, recipe.relative, min, max)
                    .0
                    .range(min, max),
            )
        })
        .sum::<f32>()
        / 2.0;
    let ratio = width(migration.range(min, max)) / half;
    let m = best.margin;
    let margin = match recipe.margin_rule {
        0 => m,
        1 => {
            if ratio.is_finite() && m > 1.0 {
                (m / ratio).max(1.0)
            } else {
                m
            }
        }
        2 => 1.0 + (m - 1.0) * 0.5,
        3 => {
            if ratio.is_finite() && m > 1.0 {
                (m / ratio.sqrt()).max(1.0)
            } else {
                m
            }
        }
        4 => {
            if m > 1.0 {
                1.0 + (m - 1.0) * 0.5
            } else {
                m
            }
        }
        5 => {
            if m > 1.0 {
                1.0 + (m - 1.0) * 0.7
            } else {
                m
            }
        }
        6 => m.max(1.0),
        _ => 1.0,
    };
    solution(
        min,
        max,
        migration,
        Solution {
            threshold: threshold.filter(|_| best.threshold.is_some()),
            margin,
            shift_kind: best.shift,
            curve,
            ..empty(scored[0].loss, best.loss)
        },
    )
}

fn empty(before: f64, after: f64) -> Solution {
    Solution {
        shift: None,
        scale: None,
        range: (0.0, 0.0),
        range_before: (0.0, 0.0),
        range_after: (0.0, 0.0),
        threshold: None,
        margin: 1.0,
        shift_kind: ShiftKind::None,
        loss_before: before,
        loss_after: after,
        validated_gain_db: gain_db(before, after),
        curve: Vec::new(),
    }
}

fn solution(min: &[f32], max: &[f32], migration: Migration, rest: Solution) -> Solution {
    let (low, high) = migration.range(min, max);
    Solution {
        range: (low * rest.margin, high * rest.margin),
        range_before: Migration::default().range(min, max),
        range_after: (low, high),
        shift: migration.shift,
        scale: migration.scale,
        ..rest
    }
}

/// `10 · log10(before / after)`, within ±120 dB so that a loss of 0 gives a number.
fn gain_db(before: f64, after: f64) -> f64 {
    if before == after {
        0.0
    } else {
        (10.0 * (before / after).log10()).clamp(-120.0, 120.0)
    }
}

fn smoothquant_site(
    problem: &SiteProblem,
    loss: &SiteLoss,
    min: &[f32],
    max: &[f32],
    alpha: f32,
) -> Solution {
    let weight = loss.weight();
    let migration = |min: &[f32], max: &[f32]| Migration {
        shift: None,
        scale: problem
            .allow_scale
            .then(|| smoothquant::scale(min, max, weight, alpha)),
    };
    let total = |migration: &(dyn Fn(&[f32], &[f32]) -> Migration + Sync)| -> f64 {
        (0..loss.directions())
            .into_par_iter()
            .map(|d| {
                let (min, max) = loss.fit_range(d);
                loss.evaluate_migration(ShiftKind::None, &migration(min, max), &[1.0], d)[0]
            })
            .collect::<Vec<f64>>()
            .iter()
            .sum()
    };
    let (before, after) = (total(&|_, _| Migration::default()), total(&migration));
    solution(min, max, migration(min, max), empty(before, after))
}
