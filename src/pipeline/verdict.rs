//! How two models are compared by their outputs on held-out rows: numbers only.
//!
//! Probabilities are judged by their logarithms ([`OutputComparison::judged_rows`]).
//!
//! The promise ([`prefers_safe`]): no output that ends clearly below plain min-max quantization is written if there is
//! a plan that avoids it without ruining another.

use crate::calibrate::{OutputComparison, RowError};

/// Ratios beyond ± this many dB count as this much: an error of a thousandth of the signal is no difference that
/// quantization to 8 bits is judged by, and a value that migration restores exactly in real numbers has float rounding.
const LIMIT_DB: f64 = 60.0;

/// Differences below this are none if there are too few rows to tell how much they vary.
pub(super) const CLEAR_DB: f64 = 0.3;

/// A gain of more than this, and of so many standard errors, is there on other rows too. With four rows and no gain, one
/// case in a hundred looks like that.
const SURE_DB: f64 = 0.5;
const SURE_ERRORS: f64 = 4.0;

/// What an output is judged by. Neither may fall for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    /// The SQNR of all elements: that of the largest tokens, where some are much larger than others.
    Whole,
    /// The mean SQNR of the tokens.
    PerToken,
}

impl Figure {
    const ALL: [Figure; 2] = [Figure::Whole, Figure::PerToken];

    /// In dB, within ± [`LIMIT_DB`], of all rows but one; `None` if the output has no tokens.
    fn of(self, output: &OutputComparison, without: Option<u64>) -> Option<f64> {
        match self {
            Figure::Whole => Some(sqnr(output, without)),
            Figure::PerToken => {
                let rows = output
                    .judged_rows()
                    .iter()
                    .filter(|r| Some(r.row) != without);
                let add = |(n, sum): (u64, f64), r: &RowError| (n + r.tokens.0, sum + r.tokens.1);
                let (tokens, sum) = rows.fold((0, 0.0), add);
                (tokens > 0).then(|| sum / tokens as f64)
            }
        }
    }

    /// What it adds to a number in dB.
    pub(super) fn words(self) -> &'static str {
        match self {
            Figure::Whole => "",
            Figure::PerToken => " per token",
        }
    }
}

/// SQNR in dB, within ± [`LIMIT_DB`], of all rows but one.
fn sqnr(output: &OutputComparison, without: Option<u64>) -> f64 {
    let rows = output
        .judged_rows()
        .iter()
        .filter(|r| Some(r.row) != without);
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

/// The output that is furthest below what it is without something, by either figure, and by how many dB; `None` if there is
/// no output.
pub(super) fn worst_loss<'o>(
    with: &'o [OutputComparison],
    without: &[OutputComparison],
) -> Option<(&'o str, f64)> {
    let loss = |(with, without): (&'o OutputComparison, &OutputComparison)| {
        let losses = Figure::ALL
            .iter()
            .filter_map(|figure| Some(figure.of(without, None)? - figure.of(with, None)?));
        (with.name.as_str(), losses.fold(f64::NEG_INFINITY, f64::max))
    };
    let losses = with.iter().zip(without).map(loss);
    losses.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// How far `ours` is above `plain`: the mean over the outputs, and over what each is judged by, of the gain in dB, a loss
/// counted twice. Outputs are in the same order; 0 if there are none.
pub(super) fn score(
    ours: &[OutputComparison],
    plain: &[OutputComparison],
    without: Option<u64>,
) -> f64 {
    score_by(&Figure::ALL, ours, plain, without)
}

/// [`score`] by some figures alone.
fn score_by(
    figures: &[Figure],
    ours: &[OutputComparison],
    plain: &[OutputComparison],
    without: Option<u64>,
) -> f64 {
    let gain = |figure: &Figure, (ours, plain): (&OutputComparison, &OutputComparison)| {
        let gain = figure.of(ours, without)? - figure.of(plain, without)?;
        Some(gain.min(2.0 * gain))
    };
    let mean = |pair: (&OutputComparison, &OutputComparison)| {
        let gains: Vec<f64> = figures.iter().filter_map(|f| gain(f, pair)).collect();
        gains.iter().sum::<f64>() / gains.len().max(1) as f64
    };
    ours.iter().zip(plain).map(mean).sum::<f64>() / ours.len().max(1) as f64
}

/// The standard error of [`score`]`(a) − score(b)` over the rows, by the jackknife: with d₋ᵢ the difference without row i,
/// `√((n − 1)/n · Σ (d₋ᵢ − mean)²)`. With less than two rows [`CLEAR_DB`].
pub(super) fn spread(
    a: &[OutputComparison],
    b: &[OutputComparison],
    plain: &[OutputComparison],
) -> f64 {
    spread_by(&Figure::ALL, a, b, plain)
}

/// [`spread`] by some figures alone.
fn spread_by(
    figures: &[Figure],
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
    let score = |of: &[OutputComparison], row: u64| score_by(figures, of, plain, Some(row));
    let difference = |row: &u64| score(a, *row) - score(b, *row);
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
        Figure::ALL.iter().all(|figure| {
            let by = std::slice::from_ref(figure);
            score_by(by, ours, plain, None) >= SURE_ERRORS * spread_by(by, ours, plain, plain)
        })
    };
    score(ours, plain, None) >= SURE_DB && ours.iter().zip(plain).all(sure)
}

/// Whether one output of `ours` is below that of plain in a figure by more than one standard error and 0.1 dB.
fn is_output_below(figure: Figure, ours: &OutputComparison, plain: &OutputComparison) -> bool {
    let (Some(own), Some(other)) = (figure.of(ours, None), figure.of(plain, None)) else {
        return false;
    };
    let (ours, plain) = (std::slice::from_ref(ours), std::slice::from_ref(plain));
    // A loss counts twice in the score, and so does its standard error.
    let loss = other - own;
    loss > 0.1 && loss > spread_by(&[figure], ours, plain, plain) / 2.0
}

/// An output that ends clearly below plain min-max quantization.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Loss {
    /// Its number.
    pub output: usize,
    /// What it has lost in.
    pub figure: Figure,
    /// Whether that is of its logarithms.
    pub logarithms: bool,
    /// What it has, in dB.
    pub sqnr_db: f64,
    /// What plain min-max quantization gives it.
    pub plain_sqnr_db: f64,
}

/// Every output of `ours` that is clearly below plain, by what it has lost more in.
pub(super) fn losses(ours: &[OutputComparison], plain: &[OutputComparison]) -> Vec<Loss> {
    let pairs = ours.iter().zip(plain).enumerate();
    let loss = |(output, (ours, plain)): (usize, (&OutputComparison, &OutputComparison))| {
        let below = Figure::ALL.into_iter();
        let below = below.filter(|&figure| is_output_below(figure, ours, plain));
        let loss = |figure| {
            let db = |o: &OutputComparison| match (figure, o.judged_db()) {
                (Figure::Whole, (db, _)) => db,
                (Figure::PerToken, (_, db)) => db.unwrap_or(f64::NAN),
            };
            Loss {
                output,
                figure,
                logarithms: ours.logarithms.is_some(),
                sqnr_db: db(ours),
                plain_sqnr_db: db(plain),
            }
        };
        let lost = |l: &Loss| l.plain_sqnr_db - l.sqnr_db;
        let all = below.map(loss);
        all.max_by(|a, b| lost(a).total_cmp(&lost(b)))
    };
    pairs.filter_map(loss).collect()
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
    let below = |(high, low): (&OutputComparison, &OutputComparison)| {
        let below = Figure::ALL.into_iter();
        let below = below.filter_map(|f| Some(f.of(high, None)? - f.of(low, None)?));
        below.fold(f64::NEG_INFINITY, f64::max)
    };
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

    /// One output; reference energy 10⁴ per row, and an error of so many dB below it in each row.
    fn output(db: &[f64]) -> OutputComparison {
        let row = |(row, db): (usize, &f64)| RowError {
            row: row as u64,
            reference: 1e4,
            error: 1e4 * 10f64.powf(-db / 10.0),
            tokens: (0, 0.0),
        };
        OutputComparison {
            name: String::new(),
            sqnr_db: db.iter().sum::<f64>() / db.len() as f64,
            cosine: 0.0,
            max_abs_error: 0.0,
            max_relative_error: 0.0,
            range: (0.0, 0.0),
            elements: 0,
            filled: 0,
            agreement: None,
            top1: (0, 0),
            token_sqnr_db: None,
            rows: db.iter().enumerate().map(row).collect(),
            logarithms: None,
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

    /// One large token hides what becomes of the others.
    #[test]
    fn what_most_tokens_lose_is_a_loss() {
        let of = |whole: f64, per_token: f64| {
            let mut output = output(&[whole; 4]);
            let tokens = |r: &mut RowError| r.tokens = (10, 10.0 * per_token);
            output.rows.iter_mut().for_each(tokens);
            [OutputComparison {
                token_sqnr_db: Some(per_token),
                ..output
            }]
        };
        let plain = of(30.0, 20.0);
        assert!((score(&of(40.0, 26.0), &plain, None) - 8.0).abs() < 1e-9);
        // + 10 and twice − 2.
        assert!((score(&of(40.0, 18.0), &plain, None) - 3.0).abs() < 1e-9);
        let lost = losses(&of(40.0, 18.0), &plain);
        assert_eq!(lost.len(), 1);
        assert_eq!(
            (lost[0].figure, lost[0].sqnr_db, lost[0].plain_sqnr_db),
            (Figure::PerToken, 18.0, 20.0)
        );
        assert!(is_below(&of(40.0, 18.0), &plain) && !is_clearly_above(&of(40.0, 18.0), &plain));
        // What keeps both is preferred, unless it takes more from either.
        assert!(prefers_safe(&of(39.0, 20.0), &of(40.0, 18.0), &plain));
        assert!(!prefers_safe(&of(31.0, 20.0), &of(40.0, 18.0), &plain));
        assert!(losses(&of(40.0, 20.0), &plain).is_empty());
        // An output without tokens is judged by the whole.
        assert_eq!(
            losses(&[output(&[28.0; 4])], &plain)[0].figure,
            Figure::Whole
        );
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
