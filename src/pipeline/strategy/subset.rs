//! Which decisions to keep if all of them together are worse than they should be: a search among subsets with few
//! measurements, and the choice among what was measured. Numbers only; [`super::drop`] makes and measures the models.
//!
//! Quantization errors of different places add up, so the effect of a group is about the sum of the effects of its
//! members. That makes one measurement enough for both halves of a group whose effect is known.

use std::ops::Range;

/// Candidate models measured at most.
pub(super) const BUDGET: usize = 8;

/// One measured subset.
pub(super) struct Trial<M> {
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
pub(super) fn search<M, E>(
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
pub(super) fn choose<M>(
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

#[cfg(test)]
mod tests {
    use super::*;
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
