//! How two models are compared by their outputs on held-out rows: numbers only.
//!
//! The promise ([`prefers_safe`]): no output that ends clearly below plain min-max quantization is written if there is
//! a plan that avoids it without ruining another.

use crate::calibrate::OutputComparison;

/// Ratios beyond ± this many dB count as this much: an error of a thousandth of the signal is no difference that
/// quantization to 8 bits is judged by, and a value that migration restores exactly in real numbers has float rounding.
const LIMIT_DB: f64 = 60.0;

/// Differences below this are none if there are too few rows to tell how much they vary.
pub(super) const CLEAR_DB: f64 = 0.3;

/// A gain of more than this, and of so many standard errors, is there on other rows too. With four rows and no gain, one
/// case in a hundred looks like that.
const SURE_DB: f64 = 0.5;
const SURE_ERRORS: f64 = 4.0;

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
pub(super) fn mean_sqnr(outputs: &[OutputComparison]) -> f64 {
    outputs.iter().map(|o| sqnr(o, None)).sum::<f64>() / outputs.len().max(1) as f64
}

/// How far `ours` is above `plain`: the mean over the outputs of the gain in SQNR in dB, a loss counted twice. Outputs are
/// in the same order; 0 if there are none.
pub(super) fn score(
    ours: &[OutputComparison],
    plain: &[OutputComparison],
    without: Option<u64>,
) -> f64 {
    let gains = ours.iter().zip(plain).map(|(ours, plain)| {
        let gain = sqnr(ours, without) - sqnr(plain, without);
        gain.min(2.0 * gain)
    });
    gains.sum::<f64>() / ours.len().max(1) as f64
}

/// The standard error of [`score`]`(a) − score(b)` over the rows, by the jackknife: with d₋ᵢ the difference without row i,
/// `√((n − 1)/n · Σ (d₋ᵢ − mean)²)`. With less than two rows [`CLEAR_DB`].
pub(super) fn spread(
    a: &[OutputComparison],
    b: &[OutputComparison],
    plain: &[OutputComparison],
) -> f64 {
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
pub(super) fn is_below(ours: &[OutputComparison], plain: &[OutputComparison]) -> bool {
    score(ours, plain, None) < 0.0 || !losses(ours, plain).is_empty()
}

/// Whether more rows would not change the verdict that `ours` is above plain: it is over all outputs by [`SURE_DB`] and in
/// none of them below by what [`SURE_ERRORS`] standard errors could hide.
pub(super) fn is_clearly_above(ours: &[OutputComparison], plain: &[OutputComparison]) -> bool {
    let sure = |(ours, plain): (&OutputComparison, &OutputComparison)| {
        let (ours, plain) = (std::slice::from_ref(ours), std::slice::from_ref(plain));
        score(ours, plain, None) >= SURE_ERRORS * spread(ours, plain, plain)
    };
    score(ours, plain, None) >= SURE_DB && ours.iter().zip(plain).all(sure)
}

/// Whether one output of `ours` is below that of plain by more than one standard error and 0.1 dB.
fn is_output_below(ours: &OutputComparison, plain: &OutputComparison) -> bool {
    let loss = sqnr(plain, None) - sqnr(ours, None);
    let (ours, plain) = (std::slice::from_ref(ours), std::slice::from_ref(plain));
    // A loss counts twice in the score, and so does its standard error.
    loss > 0.1 && loss > spread(ours, plain, plain) / 2.0
}

/// An output that ends clearly below plain min-max quantization.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Loss {
    /// Its number.
    pub output: usize,
    /// What it has, in dB.
    pub sqnr_db: f64,
    /// What plain min-max quantization gives it.
    pub plain_sqnr_db: f64,
}

/// Every output of `ours` that is clearly below plain.
pub(super) fn losses(ours: &[OutputComparison], plain: &[OutputComparison]) -> Vec<Loss> {
    let pairs = ours.iter().zip(plain).enumerate();
    let below = pairs.filter(|(_, (ours, plain))| is_output_below(ours, plain));
    let loss = |(output, (ours, plain)): (usize, (&OutputComparison, &OutputComparison))| Loss {
        output,
        sqnr_db: ours.sqnr_db,
        plain_sqnr_db: plain.sqnr_db,
    };
    below.map(loss).collect()
}

/// Whether a model in which no output is clearly below plain, `safe`, may be written in place of `best`, in which some are:
/// it must not take more from any other output than `best` takes from those. Where it would, the model with the better
/// worst output is written.
pub(super) fn prefers_safe(
    safe: &[OutputComparison],
    best: &[OutputComparison],
    plain: &[OutputComparison],
) -> bool {
    let largest = |gaps: &mut dyn Iterator<Item = f64>| gaps.fold(0.0, f64::max);
    let below =
        |(high, low): (&OutputComparison, &OutputComparison)| sqnr(high, None) - sqnr(low, None);
    let lost = largest(&mut plain.iter().zip(best).map(below));
    let given_up = largest(&mut best.iter().zip(safe).map(below));
    if given_up <= lost {
        return true;
    }
    let worst = |outputs: &[OutputComparison]| {
        let all = outputs.iter().map(|o| sqnr(o, None));
        all.fold(f64::INFINITY, f64::min)
    };
    worst(safe) > worst(best)
}

/// Whether `new` must not be written in place of `before`: an output is clearly below plain, and `before` or plain avoids that
/// ([`prefers_safe`]).
pub(super) fn breaks_promise(
    new: &[OutputComparison],
    before: &[OutputComparison],
    plain: &[OutputComparison],
) -> bool {
    let avoids = |other: &[OutputComparison]| {
        losses(other, plain).is_empty() && prefers_safe(other, new, plain)
    };
    !losses(new, plain).is_empty() && (avoids(before) || avoids(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::RowError;

    /// One output; reference energy 10⁴ per row, and an error of so many dB below it in each row.
    fn output(db: &[f64]) -> OutputComparison {
        let row = |(row, db): (usize, &f64)| RowError {
            row: row as u64,
            reference: 1e4,
            error: 1e4 * 10f64.powf(-db / 10.0),
        };
        OutputComparison {
            name: String::new(),
            sqnr_db: db.iter().sum::<f64>() / db.len() as f64,
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

    #[test]
    fn the_promise_by_hand() {
        let outputs = |db: [f64; 2]| db.map(|db| output(&[db; 4]));
        let plain = outputs([11.0, 42.0]);
        let loss = losses(&outputs([39.0, 38.5]), &plain);
        assert_eq!(loss.len(), 1);
        assert_eq!(loss[0].output, 1);
        assert!((loss[0].sqnr_db - 38.5).abs() < 1e-9);
        assert!((loss[0].plain_sqnr_db - 42.0).abs() < 1e-9);
        assert_eq!(losses(&outputs([39.0, 41.95]), &plain), []);
        // Plain keeps the second output and ruins the first.
        assert!(!prefers_safe(&plain, &outputs([39.0, 38.5]), &plain));
        // A part of the decisions keeps both.
        assert!(prefers_safe(
            &outputs([38.0, 42.0]),
            &outputs([39.0, 38.5]),
            &plain
        ));
        // The first gains less than the second loses.
        assert!(prefers_safe(&plain, &outputs([13.0, 38.5]), &plain));
        // Neither will do: the worst output of plain is at 11 dB, that of the other at 9.
        assert!(prefers_safe(&plain, &outputs([47.0, 9.0]), &plain));
        assert!(!prefers_safe(&plain, &outputs([47.0, 12.0]), &plain));
    }

    #[test]
    fn who_breaks_the_promise() {
        let outputs = |db: [f64; 2]| db.map(|db| output(&[db; 4]));
        let plain = outputs([20.0, 20.0]);
        let breaks = |new, before| breaks_promise(&outputs(new), &outputs(before), &plain);
        // Nothing is lost.
        assert!(!breaks([25.0, 20.0], [22.0, 22.0]));
        // What was before avoids the loss, at a lower price.
        assert!(breaks([25.0, 15.0], [22.0, 22.0]));
        // It loses as well, but plain does not.
        assert!(breaks([22.0, 15.0], [26.0, 12.0]));
        // Either would take more from the first than the second loses; the worst output decides then.
        assert!(breaks([39.0, 19.0], [21.0, 18.0]));
        let plain = outputs([20.0, 30.0]);
        let new = outputs([39.0, 29.0]);
        assert!(!breaks_promise(&new, &outputs([21.0, 28.0]), &plain));
    }
}
