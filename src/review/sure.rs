//! How sure a figure is: from how many numbers and rows, and how much these differ.

use crate::calibrate::{OutputComparison, RowError};

/// The least that a verdict is made from.
const FEWEST_NUMBERS: u64 = 100;
const FEWEST_ROWS: usize = 2;

/// What an SQNR may be wrong by without a word, in dB.
pub const SURE_DB: f64 = 2.0;

/// Why a comparison is no verdict, if it is of too few numbers or rows, or of rows that differ too much.
pub fn too_few(o: &OutputComparison) -> Option<String> {
    let plural = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let rows = o.rows.len();
    let unsure = o
        .agreement
        .is_none()
        .then(|| standard_error_db(&o.rows))
        .flatten();
    match (o.elements, o.filled) {
        (0, 0) => Some("nothing was compared".to_owned()),
        (0, filled) => Some(format!(
            "nothing was compared, the model fills in all {filled} elements"
        )),
        (n, _) if n < FEWEST_NUMBERS || rows < FEWEST_ROWS => Some(format!(
            "{} of {} are too few for a verdict",
            plural(n, "number"),
            plural(rows as u64, "row")
        )),
        _ => unsure.filter(|db| *db > SURE_DB).map(|db| {
            format!("these rows differ so much that others may have {db:.1} dB more or less")
        }),
    }
}

/// Fewer rows held out of calibration tell nothing of rare ones. Of 124 exports calibrated by 32 rows, of which 4 are held out, 37
/// have an output that is 2 to 5 dB worse on 256 unseen rows (`benchmarks/truth.py`). Rows without a token beyond the ranges have
/// what the 4 have; one row in five has such a token, up to four times as large as any before, and neither the calibration
/// rows nor how much the 4 differ show it. 8 rows are without one such token of five in 17 % of cases (one of the exports was 2.4 dB
/// off without a word, a Qwen3 of random weights 4.9), 16 in 3 %.
const FEW_HELD_OUT: usize = 16;

/// Whether so few rows tell nothing of rarer ones.
pub fn are_few(rows: usize) -> bool {
    rows < FEW_HELD_OUT
}

/// Why the figures of `rows` held-out rows are no verdict on rarer ones, if these are few; 0 if none could be held out.
pub(super) fn few_rows(rows: usize) -> Option<String> {
    let of = match rows {
        0 => "no row was held out".to_owned(),
        1 => "of 1 held-out row".to_owned(),
        rows => format!("of {rows} held-out rows"),
    };
    are_few(rows)
        .then(|| format!("{of}: what rarer rows lose is not seen, 128 rows of data tell more"))
}

/// What the SQNR of an output is known to, in dB, in 95 of 100 cases; `None` if its rows do not tell.
pub fn known_to_db(o: &OutputComparison) -> Option<f64> {
    standard_error_db(&o.rows)
}

/// Student's t for 95 %, by the degrees of freedom from 1 on.
const STUDENT: [f64; 10] = [12.7, 4.3, 3.2, 2.8, 2.6, 2.4, 2.4, 2.3, 2.3, 2.2];

/// The standard error of the SQNR of an output over its rows, in dB, by the jackknife: with d₋ᵢ the SQNR without row i,
/// `√((n − 1)/n · Σ (d₋ᵢ − mean)²)`, times Student's t. `None` of less than two rows, and without an error.
fn standard_error_db(rows: &[RowError]) -> Option<f64> {
    let sum = |f: fn(&RowError) -> f64| rows.iter().map(f).sum::<f64>();
    let (reference, error) = (sum(|r| r.reference), sum(|r| r.error));
    let without = |r: &RowError| 10.0 * ((reference - r.reference) / (error - r.error)).log10();
    let all: Vec<f64> = rows.iter().map(without).collect();
    let n = all.len() as f64;
    let mean = all.iter().sum::<f64>() / n;
    let squares: f64 = all.iter().map(|d| (d - mean).powi(2)).sum();
    let student = all.len().checked_sub(2).and_then(|free| STUDENT.get(free));
    let found = student.unwrap_or(&2.0) * ((n - 1.0) / n * squares).sqrt();
    (all.len() > 1 && found.is_finite()).then_some(found)
}
