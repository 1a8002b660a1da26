//! Which decisions to keep if all of them together are worse than they should be: a search among subsets with few
//! measurements, and the choice among what was measured. Numbers only; [`super::drop`] makes and measures the models.
//!
//! Quantization errors of different places add up, so the effect of a group is about the sum of the effects of its
//! members. That makes one measurement enough for both halves of a group whose effect is known.

use std::ops::Range;

use crate::calibrate::OutputComparison;

/// Candidate models measured at most.
pub const BUDGET: usize = 8;

/// Ratios beyond ± this many dB count as this much: an error of a thousandth of the signal is no difference that
/// quantization to 8 bits is judged by, and a value that migration restores exactly in real numbers has float rounding.
const LIMIT_DB: f64 = 60.0;

/// Differences below this are none if there are too few rows to tell how much they vary.
const CLEAR_DB: f64 = 0.3;

/// One measured subset.
pub struct Trial<M> {
    /// Which units are kept.
    pub kept: Vec<bool>,
    /// What was measured.
    pub measured: M,
}

/// Units that are kept or dropped together, and what keeping them adds to the score (measured, or estimated by what is
/// left of a larger group's effect).
struct Part {
    units: Range<usize>,
    kept: bool,
    effect: f64,
}

impl Part {
    /// How much is to be gained by doing the contrary, if the effect is right.
    fn promise(&self) -> f64 {
        if self.kept { -self.effect } else { self.effect }
    }
}

/// Measures the empty subset and then up to `budget − 1` others, each one step from the best so far: a group that hurts
/// is dropped, one that was dropped is halved and its better half tried again, down to single units.
///
/// `kinds` has one entry per unit, in ascending order: groups of several kinds are divided by kind first; within a kind
/// the units must be in the order of what is expected of them, lowest first. `all` is the score of all units together.
///
/// # Errors
/// What `measure` returns.
pub fn search<M, E>(
    kinds: &[usize],
    all: f64,
    budget: usize,
    score: impl Fn(&M) -> f64,
    mut measure: impl FnMut(&[bool]) -> Result<M, E>,
) -> Result<Vec<Trial<M>>, E> {
    let mut trials = Vec::new();
    let mut measure = |kept: Vec<bool>| -> Result<f64, E> {
        let measured = measure(&kept)?;
        let score = score(&measured);
        trials.push(Trial { kept, measured });
        Ok(score)
    };
    let n = kinds.len();
    if n == 0 || budget == 0 {
        return Ok(trials);
    }
    let none = measure(vec![false; n])?;
    let mut best = all.max(none);
    let mut kept = vec![all >= none; n];
    let mut parts = vec![Part {
        units: 0..n,
        kept: all >= none,
        effect: all - none,
    }];
    for _ in 1..budget {
        let Some(at) = next(&mut parts, kinds) else {
            break;
        };
        let part = &parts[at];
        let mut candidate = kept.clone();
        candidate[part.units.clone()].fill(!part.kept);
        let found = measure(candidate.clone())?;
        let estimated = part.effect;
        let effect = if part.kept { best - found } else { found - best };
        parts[at].effect = effect;
        // The half that a new part was split from stands before or after it and has the rest of the effect.
        if let Some(other) = parts.iter().position(|p| p.effect.is_nan()) {
            parts[other].effect = estimated - effect;
        }
        if found > best {
            best = found;
            kept = candidate;
            parts[at].kept = !parts[at].kept;
        }
    }
    Ok(trials)
}

/// The part to change next: one that promises something, else half of a larger one. The other half is then left with
/// an effect of NaN, and the chosen half with that of the whole, until it is measured.
fn next(parts: &mut Vec<Part>, kinds: &[usize]) -> Option<usize> {
    let indices = || 0..parts.len();
    let promising = indices()
        .filter(|&i| parts[i].promise() > 0.0)
        .max_by(|&a, &b| parts[a].promise().total_cmp(&parts[b].promise()));
    if promising.is_some() {
        return promising;
    }
    // What is dropped and could come back goes first, then what is kept with the least reason.
    let per_unit = |p: &Part| p.effect / p.units.len() as f64;
    let split = indices()
        .filter(|&i| parts[i].units.len() > 1)
        .min_by(|&a, &b| {
            let (a, b) = (&parts[a], &parts[b]);
            a.kept
                .cmp(&b.kept)
                .then(match a.kept {
                    true => per_unit(a).total_cmp(&per_unit(b)),
                    false => b.units.len().cmp(&a.units.len()),
                })
                .then(a.units.start.cmp(&b.units.start))
        })?;
    let part = &mut parts[split];
    let middle = middle(&part.units, kinds);
    let (low, high) = (part.units.start..middle, middle..part.units.end);
    // The more promising half comes back first; the less promising one goes first.
    let (chosen, other) = if part.kept { (low, high) } else { (high, low) };
    part.units = chosen;
    let other = Part {
        units: other,
        kept: part.kept,
        effect: f64::NAN,
    };
    parts.push(other);
    Some(split)
}

/// Where to divide units: between kinds, at the place nearest to the middle, or else in the middle.
fn middle(units: &Range<usize>, kinds: &[usize]) -> usize {
    let half = units.start + units.len() / 2;
    (units.start + 1..units.end)
        .filter(|&i| kinds[i - 1] != kinds[i])
        .min_by_key(|i| i.abs_diff(half))
        .unwrap_or(half)
}

/// The trial to take: of those that are not below plain (score 0) and not clearly below the best, the one that keeps
/// most; the better one of equals. `spread(a, b)` is the standard error of the difference of two scores (the rule of one
/// standard error: Breiman et al., Classification and Regression Trees, 1984). `None` if all are below plain.
pub fn choose<M>(
    trials: &[Trial<M>],
    score: impl Fn(&M) -> f64,
    spread: impl Fn(&M, &M) -> f64,
) -> Option<usize> {
    let scores: Vec<f64> = trials.iter().map(|t| score(&t.measured)).collect();
    let good = || (0..trials.len()).filter(|&i| scores[i] >= 0.0);
    let best = good().max_by(|&a, &b| scores[a].total_cmp(&scores[b]))?;
    let count = |i: usize| trials[i].kept.iter().filter(|k| **k).count();
    good()
        .filter(|&i| {
            let clear = spread(&trials[best].measured, &trials[i].measured);
            i == best || scores[best] - scores[i] <= clear
        })
        .max_by(|&a, &b| {
            count(a)
                .cmp(&count(b))
                .then(scores[a].total_cmp(&scores[b]))
        })
}

/// SQNR in dB, within ± [`LIMIT_DB`], of all rows but one.
fn sqnr(output: &OutputComparison, without: Option<u64>) -> f64 {
    let rows = output.rows.iter().filter(|r| Some(r.row) != without);
    let (reference, error) = rows.fold((0.0, 0.0), |(reference, error), r| {
        (reference + r.reference, error + r.error)
    });
    if error == 0.0 {
        return LIMIT_DB;
    }
    (10.0 * (reference / error).log10()).clamp(-LIMIT_DB, LIMIT_DB)
}

/// The mean SQNR of the outputs, in dB.
pub fn mean_sqnr(outputs: &[OutputComparison]) -> f64 {
    outputs.iter().map(|o| sqnr(o, None)).sum::<f64>() / outputs.len().max(1) as f64
}

/// How far `ours` is above `plain`: the mean over the outputs of the gain in SQNR in dB, a loss counted twice. Outputs are
/// in the same order; 0 if there are none.
pub fn score(ours: &[OutputComparison], plain: &[OutputComparison], without: Option<u64>) -> f64 {
    let gains = ours.iter().zip(plain).map(|(ours, plain)| {
        let gain = sqnr(ours, without) - sqnr(plain, without);
        gain.min(2.0 * gain)
    });
    gains.sum::<f64>() / ours.len().max(1) as f64
}

/// The standard error of [`score`]`(a) − score(b)` over the rows, by the jackknife: with d₋ᵢ the difference without row i,
/// `√((n − 1)/n · Σ (d₋ᵢ − mean)²)`. With less than two rows [`CLEAR_DB`].
pub fn spread(a: &[OutputComparison], b: &[OutputComparison], plain: &[OutputComparison]) -> f64 {
    let mut rows: Vec<u64> = a.iter().flat_map(|o| &o.rows).map(|r| r.row).collect();
    rows.sort_unstable();
    rows.dedup();
    let n = rows.len() as f64;
    if n < 2.0 {
        return CLEAR_DB;
    }
    let difference = |row: &u64| score(a, plain, Some(*row)) - score(b, plain, Some(*row));
    let differences: Vec<f64> = rows.iter().map(difference).collect();
    let mean = differences.iter().sum::<f64>() / n;
    let squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
    ((n - 1.0) / n * squares).sqrt()
}

/// Whether `ours` is below plain over all outputs, or in one of them by more than one standard error and 0.1 dB.
pub fn is_below(ours: &[OutputComparison], plain: &[OutputComparison]) -> bool {
    let below = |(ours, plain): (&OutputComparison, &OutputComparison)| {
        let loss = sqnr(plain, None) - sqnr(ours, None);
        let (ours, plain) = (std::slice::from_ref(ours), std::slice::from_ref(plain));
        // A loss counts twice in the score, and so does its standard error.
        loss > 0.1 && loss > spread(ours, plain, plain) / 2.0
    };
    score(ours, plain, None) < 0.0 || ours.iter().zip(plain).any(below)
}
