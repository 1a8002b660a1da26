//! What int8 attention may cost, and which attentions to keep within that.
//!
//! What is allowed is a share of the error that is there already, so that a block can be asked what it uses of it
//! ([`Allowance`]): errors of different places add up, and if all attentions together use more than 1, [`keep_within`] looks
//! for those that use most.

use std::ops::Range;

use crate::calibrate::{OutputComparison, RowError};

/// Measurements that are kept for models which might be written.
const RESERVED: usize = 3;

/// An output whose error is this many dB below it is good enough, whatever was lost: plain min-max quantization, which has
/// attention in float, may then be better, and that is said.
const GOOD_DB: f64 = 30.0;

/// What the outputs may lose by int8 attention.
pub(super) struct Allowance<'a> {
    /// In dB, of what they have without.
    pub loss_db: f64,
    /// What they must not fall below.
    pub floor: Option<&'a [OutputComparison]>,
    /// The SQNR in dB that was asked for.
    pub asked_db: Option<f64>,
}

impl Allowance<'_> {
    /// The share of the allowed additional squared error that is used: 1 and below is allowed. That of the output that
    /// uses most; outputs are in the same order.
    ///
    /// With R the squares of an output and E its squared error, E may become `max(R · 10^(−GOOD_DB / 10),
    /// min(E · 10^(loss_db / 10), E of the floor))`, and no more than leaves what was asked for.
    pub(super) fn used(&self, with: &[OutputComparison], without: &[OutputComparison]) -> f64 {
        let energies = |o: &OutputComparison| {
            let sum = |f: fn(&RowError) -> f64| o.judged_rows().iter().map(f).sum::<f64>();
            (sum(|r| r.reference), sum(|r| r.error))
        };
        let used = |(i, (with, without)): (usize, (&OutputComparison, &OutputComparison))| {
            let ((reference, before), (_, after)) = (energies(without), energies(with));
            let mut limit = before * 10f64.powf(self.loss_db / 10.0);
            if let Some(floor) = self.floor.and_then(|floor| floor.get(i)) {
                limit = limit.min(energies(floor).1);
            }
            let error = |db: f64| reference * 10f64.powf(-db / 10.0);
            let limit = limit.max(error(GOOD_DB));
            let limit = self.asked_db.map_or(limit, |db| limit.min(error(db)));
            match after - before {
                added if added <= 0.0 => 0.0,
                added => added / (limit - before).max(f64::MIN_POSITIVE),
            }
        };
        let all = with.iter().zip(without).enumerate().map(used);
        all.fold(0.0, |most, used| if used > most { used } else { most })
    }
}

/// The units to keep so that `measure` of them is at most 1: all of them if that is so, else all but those that use most.
/// `None` if that leaves nothing. At most `budget` measurements; the last one is that of the units returned.
///
/// What units use adds up, about. So a group's use is divided by measuring one half of it, and parts are left out, those
/// that use most per unit first, until what is left should fit.
///
/// # Errors
/// What `measure` returns.
pub(super) fn keep_within<E>(
    units: usize,
    budget: usize,
    mut measure: impl FnMut(&[bool]) -> Result<f64, E>,
) -> Result<Option<Vec<bool>>, E> {
    let every = vec![true; units];
    let all = measure(&every)?;
    if all <= 1.0 {
        return Ok(Some(every));
    }
    let mut parts: Vec<(Range<usize>, f64)> = vec![(0..units, all)];
    let mut left = budget.saturating_sub(1);
    while left > RESERVED {
        let divisible = parts.iter().enumerate().filter(|(_, p)| p.0.len() > 1);
        let most = divisible.max_by(|a, b| a.1.1.total_cmp(&b.1.1).then(b.0.cmp(&a.0)));
        let Some((at, _)) = most else {
            break;
        };
        let (range, used) = parts[at].clone();
        let middle = range.start + range.len() / 2;
        let first = measure(&only(units, range.start..middle))?;
        left -= 1;
        let second = match (used.is_finite(), first.is_finite()) {
            (false, false) => 0.0,
            _ => (used - first).max(0.0),
        };
        parts[at] = (range.start..middle, first);
        parts.push((middle..range.end, second));
    }
    let per_unit = |p: &(Range<usize>, f64)| p.1 / p.0.len() as f64;
    parts.sort_by(|a, b| {
        per_unit(b)
            .total_cmp(&per_unit(a))
            .then(a.0.start.cmp(&b.0.start))
    });
    let mut kept = every;
    for (i, (range, _)) in parts.iter().enumerate() {
        if i + 1 == parts.len() || left == 0 {
            return Ok(None);
        }
        kept[range.clone()].fill(false);
        if parts[i + 1..].iter().map(|p| p.1).sum::<f64>() <= 1.0 {
            left -= 1;
            if measure(&kept)? <= 1.0 {
                return Ok(Some(kept));
            }
        }
    }
    Ok(None)
}

fn only(units: usize, range: Range<usize>) -> Vec<bool> {
    (0..units).map(|i| range.contains(&i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn output(reference: f64, error: f64) -> OutputComparison {
        OutputComparison {
            name: String::new(),
            sqnr_db: 0.0,
            cosine: 0.0,
            max_abs_error: 0.0,
            max_relative_error: 0.0,
            range: (0.0, 0.0),
            elements: 0,
            filled: 0,
            agreement: None,
            top1: (0, 0),
            token_sqnr_db: None,
            rows: vec![RowError {
                row: 0,
                reference,
                error,
                tokens: (0, 0.0),
            }],
            logarithms: None,
        }
    }

    #[test]
    fn the_allowance_by_hand() {
        let used = |with, without, floor: Option<f64>| {
            let floor = floor.map(|e| vec![output(1e4, e)]);
            let allowance = Allowance {
                loss_db: 10.0 * 2f64.log10(),
                floor: floor.as_deref(),
                asked_db: None,
            };
            allowance.used(&[output(1e4, with)], &[output(1e4, without)])
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        // 20 dB; the error may double, and half of that was used.
        near(used(150.0, 100.0, None), 0.5);
        near(used(250.0, 100.0, None), 1.5);
        // Plain min-max is at 120.
        near(used(150.0, 100.0, Some(120.0)), 2.5);
        // 30 dB are good enough, whatever plain gives.
        near(used(10.0, 1.0, Some(2.0)), 1.0);
        near(used(4.0, 2.0, None), 0.25);
        // A gain uses nothing; where there is no room, everything is too much.
        near(used(90.0, 100.0, Some(50.0)), 0.0);
        assert!(used(101.0, 100.0, Some(50.0)) > 1e9);
        near(
            Allowance {
                loss_db: 3.0,
                floor: None,
                asked_db: None,
            }
            .used(&[], &[]),
            0.0,
        );
    }

    fn run(effects: &[f64]) -> (Option<Vec<bool>>, Vec<Vec<bool>>) {
        let mut measured = Vec::new();
        let kept = keep_within(effects.len(), 8, |kept| {
            measured.push(kept.to_vec());
            let used = effects.iter().zip(kept).filter(|(_, k)| **k);
            Ok::<_, Infallible>(used.map(|(e, _)| e).sum())
        });
        (kept.unwrap(), measured)
    }

    #[test]
    fn one_bad_block_is_left_out() {
        for bad in [50.0, f64::INFINITY] {
            for at in 0..6 {
                let effects: Vec<f64> = (0..6).map(|i| if i == at { bad } else { 0.1 }).collect();
                let kept = run(&effects).0.unwrap();
                assert!(!kept[at], "{at}");
                assert_eq!(kept.iter().filter(|k| **k).count(), 5, "{at}");
            }
        }
    }

    #[test]
    fn nothing_is_left_of_what_is_bad_throughout() {
        assert_eq!(run(&[2.0]).0, None);
        assert_eq!(run(&[3.0; 12]).0, None);
        assert_eq!(run(&[f64::INFINITY; 4]).0, None);
    }

    proptest! {
        /// Whatever the blocks use: what is kept was measured last, is within, and the budget is kept.
        #[test]
        fn within_the_allowance_and_the_budget(effects in prop::collection::vec(0.0f64..1.5, 1..40)) {
            let (kept, measured) = run(&effects);
            prop_assert!(measured.len() <= 8);
            let sum: f64 = effects.iter().sum();
            prop_assert!(sum > 1.0 || measured.len() == 1);
            prop_assert_eq!(sum <= 1.0, kept == Some(vec![true; effects.len()]));
            if let Some(kept) = kept {
                let used = effects.iter().zip(&kept).filter(|(_, k)| **k).map(|(e, _)| e);
                prop_assert!(used.sum::<f64>() <= 1.0);
                prop_assert_eq!(measured.last(), Some(&kept));
                prop_assert!(kept.contains(&true));
            }
        }
    }
}
