//! Which Linears to leave in float, by numbers alone; [`super::keep_float`] asks the judge.
//!
//! Errors of different Linears add up at the outputs, nearly: each one's part is measured with that Linear alone
//! quantized, and a choice is predicted by the sum of what is left.

use super::super::judge::Sensitivity;
use crate::options::KeepFloat;

/// The candidates in the order in which they should be left in float: most error for the least work first, but those
/// with less than the mean error only after all others, however little they cost.
pub(super) fn order(candidates: &[Sensitivity]) -> Vec<Sensitivity> {
    let mean = total(candidates, |c| c.error) / candidates.len().max(1) as f64;
    let gain = |c: &Sensitivity| c.error / c.work.max(1.0);
    let mut order = candidates.to_vec();
    order.sort_by(|a, b| {
        let (small_a, small_b) = (a.error < mean, b.error < mean);
        let by_gain = gain(b).total_cmp(&gain(a));
        small_a
            .cmp(&small_b)
            .then(by_gain)
            .then(a.linear.cmp(&b.linear))
    });
    order
}

/// Those of `order` that a budget has room for: what does not fit is passed over, not the end.
pub(super) fn within(order: &[Sensitivity], budget: KeepFloat) -> Vec<Sensitivity> {
    match budget {
        KeepFloat::Linears(n) => order.iter().take(n).cloned().collect(),
        KeepFloat::Work(part) => {
            let room = part * total(order, |c| c.work);
            let mut used = 0.0;
            let fits = |c: &&Sensitivity| {
                let fits = used + c.work <= room;
                used += if fits { c.work } else { 0.0 };
                fits
            };
            order.iter().filter(fits).cloned().collect()
        }
    }
}

/// How many of `chosen`, from the first on, are needed to raise the SQNR by `gain_db`, if errors add up: at least 1.
pub(super) fn predict(chosen: &[Sensitivity], all: f64, gain_db: f64) -> usize {
    let allowed = all * 10f64.powf(-gain_db / 10.0);
    let mut left = all;
    let enough = chosen.iter().position(|c| {
        left -= c.error;
        left <= allowed
    });
    enough.map_or(chosen.len(), |at| at + 1).max(1)
}

/// The smallest number from 1 to `most` that is `enough`, which is asked for few numbers, `start` first; `None` if not
/// even `most` is. What is enough stays so with more.
///
/// # Errors
/// What `enough` returns.
pub(super) fn smallest<E>(
    start: usize,
    most: usize,
    mut enough: impl FnMut(usize) -> Result<bool, E>,
) -> Result<Option<usize>, E> {
    let (mut low, mut high) = (0, start.clamp(1, most));
    while !enough(high)? {
        if high == most {
            return Ok(None);
        }
        low = high;
        high = (high + (high / 2).max(1)).min(most);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        match enough(middle)? {
            true => high = middle,
            false => low = middle,
        }
    }
    Ok(Some(high))
}

/// The sum of one figure.
pub(super) fn total(candidates: &[Sensitivity], figure: impl Fn(&Sensitivity) -> f64) -> f64 {
    candidates.iter().map(figure).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn candidates(list: &[(f64, f64)]) -> Vec<Sensitivity> {
        let candidate = |(linear, &(error, work)): (usize, &(f64, f64))| Sensitivity {
            linear: linear.into(),
            name: String::new(),
            error,
            work,
        };
        list.iter().enumerate().map(candidate).collect()
    }

    fn numbers(chosen: &[Sensitivity]) -> Vec<usize> {
        chosen.iter().map(|c| c.linear.index()).collect()
    }

    #[test]
    fn most_error_for_least_work_first_and_trifles_last() {
        // 2 costs next to nothing and brings next to nothing.
        let list = candidates(&[(4.0, 4.0), (6.0, 2.0), (0.1, 0.001), (5.9, 2.0), (1.0, 0.1)]);
        assert_eq!(numbers(&order(&list)), [1, 3, 0, 4, 2]);
    }

    #[test]
    fn a_budget_is_kept() {
        let list = candidates(&[(4.0, 4.0), (6.0, 2.0), (5.0, 3.0), (3.0, 1.0)]);
        let order = [1, 3, 2, 0].map(|i: usize| list[i].clone());
        assert_eq!(numbers(&within(&order, KeepFloat::Linears(2))), [1, 3]);
        assert_eq!(within(&order, KeepFloat::Linears(9)).len(), 4);
        // 5 of 10: 2 + 1, and 3 no more.
        assert_eq!(numbers(&within(&order, KeepFloat::Work(0.5))), [1, 3]);
        assert_eq!(numbers(&within(&order, KeepFloat::Work(0.6))), [1, 3, 2]);
        // 1 of 10: the first is passed over.
        assert_eq!(numbers(&within(&order, KeepFloat::Work(0.1))), [3]);
        assert!(within(&order, KeepFloat::Work(0.05)).is_empty());
    }

    #[test]
    fn half_the_error_is_three_decibels() {
        let list = candidates(&[(4.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, 1.0)]);
        assert_eq!(predict(&list, 8.0, 3.0), 1);
        assert_eq!(predict(&list, 8.0, 3.1), 2);
        assert_eq!(predict(&list, 8.0, 60.0), 4);
        assert_eq!(predict(&list, 8.0, -1.0), 1);
    }

    proptest! {
        #[test]
        fn the_smallest_that_is_enough(start in 0usize..50, most in 1usize..40, needed in 1usize..50) {
            let mut asked = 0;
            let found = smallest(start, most, |n| {
                asked += 1;
                Ok::<_, Infallible>(n >= needed)
            });
            prop_assert_eq!(found.unwrap(), (needed <= most).then_some(needed));
            prop_assert!(asked <= 16, "{}", asked);
        }
    }
}
