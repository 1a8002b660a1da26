//! Outputs that are probabilities, told by their values: no element is negative, and each vector sums to 1.

use crate::calibrate::measure::row_error::{RowError, token_db};

/// How the logarithms of probabilities differ: what stood before the Softmax, up to a constant per token.
///
/// Probabilities of a model that is sure are 0 and 1 whatever becomes of the logits, and the few tokens on which two classes are
/// nearly tied make nearly all of the error. So rows that happen to have none of those tell nothing of rows that do;
/// logarithms differ by what quantization does to every row.
#[derive(Debug, Clone, PartialEq)]
pub struct Logarithms {
    /// Signal to error ratio in dB of `ln p − mean ln p`; infinite if there is no difference.
    pub sqnr_db: f64,
    /// The mean over the tokens of their own SQNR in dB, each within ± 60.
    pub token_sqnr_db: f64,
    /// The rows compared, ascending.
    pub rows: Vec<RowError>,
}

/// What a sum of probabilities in float may differ from 1 by.
const ROUNDING: f64 = 1e-3;

/// Smaller probabilities are no number that float32 keeps digits of.
const SMALLEST: f32 = 1e-30;

/// Sums over tokens of `ln p − mean ln p`, p the probabilities of a token.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Logs {
    reference: f64,
    error: f64,
    /// Tokens that are distributions in both models.
    tokens: u64,
    /// Those with an SQNR, and its sum in dB.
    known: (u64, f64),
}

impl Logs {
    /// Those of one token; nothing if it is no distribution.
    pub(super) fn of(r: &[f32], o: &[f32]) -> Logs {
        if !(is_distribution(r) && is_distribution(o)) {
            return Logs::default();
        }
        let pairs = || r.iter().zip(o).filter(|(r, o)| r.max(**o) >= SMALLEST);
        let ln = |p: f32| f64::from(p.max(SMALLEST)).ln();
        let mut sums = (0.0, 0.0, 0.0);
        for (&r, &o) in pairs() {
            sums = (sums.0 + 1.0, sums.1 + ln(r), sums.2 + ln(o));
        }
        let (n, mean_r, mean_o) = (sums.0, sums.1 / sums.0, sums.2 / sums.0);
        let mut found = Logs {
            tokens: 1,
            ..Logs::default()
        };
        if n < 2.0 {
            return found;
        }
        for (&r, &o) in pairs() {
            let (r, o) = (ln(r) - mean_r, ln(o) - mean_o);
            found.reference += r * r;
            found.error += (r - o) * (r - o);
        }
        if found.reference > 0.0 || found.error > 0.0 {
            found.known = (1, token_db(found.reference, found.error));
        }
        found
    }

    pub(super) fn add(&mut self, more: &Logs) {
        self.reference += more.reference;
        self.error += more.error;
        self.tokens += more.tokens;
        self.known = (self.known.0 + more.known.0, self.known.1 + more.known.1);
    }
}

/// Whether a vector is one of probabilities.
fn is_distribution(vector: &[f32]) -> bool {
    let mut sum = 0.0;
    for &p in vector {
        // NaN is none.
        if !(p >= 0.0 && p <= 1.0 + ROUNDING as f32) {
            return false;
        }
        sum += f64::from(p);
    }
    vector.len() > 1 && (sum - 1.0).abs() <= ROUNDING
}

/// The comparison of logarithms over rows, each with its sums and its tokens, if all tokens are distributions.
pub(super) fn finish<'s>(
    rows: impl Iterator<Item = (u64, &'s Logs, u64)> + Clone,
) -> Option<Logarithms> {
    let mut total = Logs::default();
    let mut compared = 0;
    for (_, sums, tokens) in rows.clone() {
        total.add(sums);
        compared += tokens;
    }
    if total.tokens != compared || total.known.0 == 0 {
        return None;
    }
    let row = |(row, sums, _): (u64, &Logs, u64)| RowError {
        row,
        reference: sums.reference,
        error: sums.error,
        tokens: sums.known,
    };
    Some(Logarithms {
        sqnr_db: match total.error {
            0.0 => f64::INFINITY,
            error => 10.0 * (total.reference / error).log10(),
        },
        token_sqnr_db: total.known.1 / total.known.0 as f64,
        rows: rows.map(row).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn softmax(logits: &[f32]) -> Vec<f32> {
        let sum: f32 = logits.iter().map(|l| l.exp()).sum();
        logits.iter().map(|l| l.exp() / sum).collect()
    }

    #[test]
    fn logarithms_are_logits_up_to_a_constant() {
        let (l, m) = ([3.0, -2.0, 8.0, 0.5f32], [3.5, -2.0, 8.0, 0.0f32]);
        let found = Logs::of(&softmax(&l), &softmax(&m));
        // Mean 2.375; differences −0.5, 0, 0, 0.5 of mean 0.
        let reference: f64 = l.iter().map(|l| (f64::from(*l) - 2.375).powi(2)).sum();
        assert!((found.reference - reference).abs() < 1e-4, "{found:?}");
        assert!((found.error - 0.5).abs() < 1e-4, "{found:?}");
        assert_eq!((found.tokens, found.known.0), (1, 1));
        // A constant more for all changes nothing.
        let more: Vec<f32> = l.iter().map(|l| l + 2.0).collect();
        assert!(Logs::of(&softmax(&l), &softmax(&more)).error < 1e-8);
    }

    /// The error of a sure model is in its logits, and not in what the Softmax makes of them.
    #[test]
    fn a_sure_model_has_errors_too() {
        let (r, o) = (softmax(&[20.0, 0.0, -3.0]), softmax(&[17.0, 0.0, -3.0]));
        assert!(r.iter().zip(&o).all(|(r, o)| (r - o).abs() < 1e-6));
        let found = Logs::of(&r, &o);
        assert!((found.error - 6.0).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn what_is_no_distribution() {
        let none = |v: &[f32]| assert_eq!(Logs::of(v, v).tokens, 0, "{v:?}");
        none(&[1.0]);
        none(&[0.5, 0.4]);
        none(&[1.5, -0.5]);
        none(&[f32::NAN, 1.0]);
        // What underflows in both is left out; a token that has one number left has no error.
        assert_eq!(Logs::of(&[1.0, 0.0], &[1.0, 0.0]).tokens, 1);
        assert_eq!(Logs::of(&[1.0, 0.0], &[1.0, 0.0]).known.0, 0);
        assert!(Logs::of(&[1.0, 0.0], &[0.9, 0.1]).error > 0.0);
    }
}
