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
pub const CLEAR_DB: f64 = 0.3;

/// A gain of more than this, and of so many standard errors, is there on other rows too. With four rows and no gain, one
/// case in a hundred looks like that.
const SURE_DB: f64 = 0.5;
const SURE_ERRORS: f64 = 4.0;

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
        let effect = if part.kept {
            best - found
        } else {
            found - best
        };
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

/// The trial to take: of those that are above plain (score 0) by the standard error `clear` of their score and not clearly
/// below the best, the one that keeps most; the better one of equals. `spread(a, b)` is the standard error of the
/// difference of two scores (the rule of one standard error: Breiman et al., Classification and Regression Trees, 1984).
/// `None` if none is: the best of several trials on few rows is above plain by chance alone.
pub fn choose<M>(
    trials: &[Trial<M>],
    score: impl Fn(&M) -> f64,
    clear: impl Fn(&M) -> f64,
    spread: impl Fn(&M, &M) -> f64,
) -> Option<usize> {
    let scores: Vec<f64> = trials.iter().map(|t| score(&t.measured)).collect();
    let good = || (0..trials.len()).filter(|&i| scores[i] >= clear(&trials[i].measured));
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

/// Whether more rows would not change the verdict that `ours` is above plain: it is over all outputs by [`SURE_DB`] and in
/// none of them below by what [`SURE_ERRORS`] standard errors could hide.
pub fn is_clearly_above(ours: &[OutputComparison], plain: &[OutputComparison]) -> bool {
    let sure = |(ours, plain): (&OutputComparison, &OutputComparison)| {
        let (ours, plain) = (std::slice::from_ref(ours), std::slice::from_ref(plain));
        score(ours, plain, None) >= SURE_ERRORS * spread(ours, plain, plain)
    };
    score(ours, plain, None) >= SURE_DB && ours.iter().zip(plain).all(sure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::RowError;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// The search with the score of `f`, and the subset taken; all units together are among the choices.
    fn run(kinds: &[usize], f: impl Fn(&[bool]) -> f64) -> (Vec<Trial<f64>>, Option<usize>) {
        let every = vec![true; kinds.len()];
        let all = f(&every);
        let measure = |kept: &[bool]| Ok::<_, Infallible>(f(kept));
        let mut trials = search(kinds, all, BUDGET, |s| *s, measure).unwrap();
        assert!(trials.len() <= BUDGET, "{}", trials.len());
        trials.push(Trial {
            kept: every,
            measured: all,
        });
        let chosen = choose(&trials, |s| *s, |_| 0.0, |_, _| 0.0);
        (trials, chosen)
    }

    fn sum(effects: &[f64], kept: &[bool]) -> f64 {
        let kept = effects.iter().zip(kept).filter(|(_, k)| **k);
        kept.map(|(e, _)| e).sum()
    }

    /// A level of halving takes one or two measurements: exact for up to 8 units, to within an eighth and one for many.
    #[test]
    fn one_unit_that_hurts_is_found_wherever_it_is() {
        for n in 1..=32 {
            for bad in 0..n {
                let effects: Vec<f64> = (0..n).map(|i| if i == bad { -40. } else { 1. }).collect();
                let (trials, chosen) = run(&vec![0; n], |kept| sum(&effects, kept));
                let kept = &trials[chosen.unwrap()].kept;
                let dropped = kept.iter().filter(|k| !**k).count();
                let most = if n <= 8 { 1 } else { n / 8 + 1 };
                assert!(!kept[bad] && dropped <= most, "{bad} of {n}: {kept:?}");
            }
        }
    }

    #[test]
    fn kinds_are_divided_before_anything_else() {
        assert_eq!(middle(&(0..9), &[0, 0, 0, 1, 1, 3, 3, 3, 3]), 3);
        assert_eq!(middle(&(3..9), &[0, 0, 0, 1, 1, 3, 3, 3, 3]), 5);
        assert_eq!(middle(&(0..5), &[0, 0, 0, 1, 1, 3, 3, 3, 3]), 3);
        assert_eq!(middle(&(5..9), &[0, 0, 0, 1, 1, 3, 3, 3, 3]), 7);
        assert_eq!(middle(&(0..2), &[0, 0]), 1);
    }

    fn trials(list: &[(usize, f64)]) -> Vec<Trial<f64>> {
        let trial = |&(count, score): &(usize, f64)| Trial {
            kept: (0..5).map(|i| i < count).collect(),
            measured: score,
        };
        list.iter().map(trial).collect()
    }

    #[test]
    fn the_largest_that_is_not_clearly_worse() {
        let choose =
            |list: &[(usize, f64)], clear| choose(&trials(list), |s| *s, |_| 0.0, |_, _| clear);
        let list = [(0, 0.0), (5, -0.1), (3, 1.0), (4, 0.8)];
        assert_eq!(choose(&list, 0.1), Some(2));
        assert_eq!(choose(&list, 0.3), Some(3));
        // Below plain is never taken, however little is known.
        assert_eq!(choose(&list, 100.0), Some(3));
        assert_eq!(choose(&[(5, -0.1), (3, -1.0)], 100.0), None);
        assert_eq!(choose(&[(5, f64::NAN), (0, 0.0)], 100.0), Some(1));
    }

    /// One output; reference energy 10⁴ per row, and an error of so many dB below it in each row.
    fn output(db: &[f64]) -> OutputComparison {
        let row = |(row, db): (usize, &f64)| RowError {
            row: row as u64,
            reference: 1e4,
            error: 1e4 * 10f64.powf(-db / 10.0),
        };
        OutputComparison {
            name: String::new(),
            sqnr_db: 0.0,
            cosine: 0.0,
            max_abs_error: 0.0,
            max_relative_error: 0.0,
            range: (0.0, 0.0),
            elements: 0,
            top1: (0, 0),
            rows: db.iter().enumerate().map(row).collect(),
        }
    }

    #[test]
    fn losses_count_twice_and_exact_outputs_have_a_limit() {
        let plain = [output(&[30., 30.]), output(&[f64::INFINITY, 140.])];
        // +4 dB in one output; the other is exact but for float rounding.
        let ours = [output(&[34., 34.]), output(&[120., 120.])];
        assert!((score(&ours, &plain, None) - 2.0).abs() < 1e-9);
        assert!(!is_below(&ours, &plain));
        // −1 dB counts as −2; nothing is above.
        let worse = [output(&[29., 29.]), output(&[120., 120.])];
        assert!((score(&worse, &plain, None) + 1.0).abs() < 1e-9);
        assert!(is_below(&worse, &plain));
        assert_eq!(score(&[], &[], None), 0.0);
        assert!(!is_below(&[], &[]));
    }

    #[test]
    fn a_loss_in_one_output_counts_if_the_rows_agree() {
        let plain = [output(&[30.; 4]), output(&[30.; 4])];
        let agree = [output(&[40.; 4]), output(&[29.; 4])];
        assert!(score(&agree, &plain, None) > 0.0 && is_below(&agree, &plain));
        let differ = [output(&[40.; 4]), output(&[33., 33., 25., 33.])];
        assert!(score(&differ, &plain, None) > 0.0 && !is_below(&differ, &plain));
    }

    #[test]
    fn what_is_clear_on_few_rows() {
        let plain = [output(&[30.; 4]), output(&[f64::INFINITY; 4])];
        let exact = || output(&[f64::INFINITY; 4]);
        assert!(is_clearly_above(
            &[output(&[34., 35., 33., 34.]), exact()],
            &plain
        ));
        // Above, but not by much; above, but rows differ; one output above, the other below.
        assert!(!is_clearly_above(&[output(&[30.4; 4]), exact()], &plain));
        assert!(!is_clearly_above(
            &[output(&[40., 29., 36., 28.]), exact()],
            &plain
        ));
        assert!(!is_clearly_above(
            &[output(&[40.; 4]), output(&[50.; 4])],
            &plain
        ));
        assert!(!is_clearly_above(&[], &[]));
    }

    #[test]
    fn spread_is_the_jackknife() {
        let plain = [output(&[30., 30., 30.])];
        assert_eq!(spread(&[output(&[35.; 3])], &plain, &plain), 0.0);
        assert_eq!(
            spread(&[output(&[35.])], &[output(&[30.])], &[output(&[30.])]),
            CLEAR_DB
        );
        // Without row 0, 1, 2: gains of 3, 3 and 6 dB in the limit of equal errors; by hand from the sums.
        let ours = [output(&[36., 36., 30.])];
        let sums = |e: [f64; 2]| 10.0 * (2.0 / (e[0] + e[1])).log10();
        let small = 10f64.powf(-0.6);
        let d = [sums([small, 1.]), sums([small, 1.]), sums([small, small])];
        let mean = d.iter().sum::<f64>() / 3.0;
        let expected = (d.iter().map(|d| (d - mean).powi(2)).sum::<f64>() * 2.0 / 3.0).sqrt();
        assert!((spread(&ours, &plain, &plain) - expected).abs() < 1e-9);
    }

    proptest! {
        /// Any effects, with any interaction between neighbours: what is taken is never below plain, never worse than
        /// all units or none, and what was measured is what the trial says.
        #[test]
        fn never_below_plain_and_within_the_budget(
            effects in prop::collection::vec(-10.0f64..5.0, 1..40),
            interaction in -6.0f64..6.0,
            bias in -1.0f64..1.0,
            kinds in prop::collection::vec(0usize..4, 40),
        ) {
            let n = effects.len();
            let mut kinds = kinds[..n].to_vec();
            kinds.sort_unstable();
            let f = |kept: &[bool]| {
                let pairs = kept.windows(2).filter(|w| w[0] && w[1]).count();
                sum(&effects, kept) + interaction * pairs as f64 + bias
            };
            let (trials, chosen) = run(&kinds, f);
            prop_assert!(trials.iter().all(|t| f(&t.kept) == t.measured));
            let (all, none) = (f(&vec![true; n]), f(&vec![false; n]));
            match chosen {
                Some(i) => prop_assert!(trials[i].measured >= all.max(none).max(0.0)),
                None => prop_assert!(trials.iter().all(|t| t.measured < 0.0)),
            }
        }
    }
}
