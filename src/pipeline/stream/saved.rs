//! Comparisons as they are written down: every float by its bits, since JSON has no infinity, and what is read again is what
//! was written.

use serde::{Deserialize, Serialize};

use crate::calibrate::{Logarithms, OutputComparison, RowError};

/// An [`OutputComparison`].
#[derive(Serialize, Deserialize)]
pub(super) struct SavedComparison {
    name: String,
    /// SQNR, cosine, largest error and the same by the range, the range.
    figures: [u64; 6],
    elements: u64,
    filled: u64,
    agreement: Option<(u64, u64)>,
    top1: (u64, u64),
    token_sqnr_db: Option<u64>,
    rows: Vec<SavedRow>,
    /// SQNR, that of tokens, rows.
    logarithms: Option<(u64, u64, Vec<SavedRow>)>,
}

/// A [`RowError`]: row, Σ r², Σ (r − o)², tokens, Σ of their SQNR.
type SavedRow = (u64, u64, u64, u64, u64);

fn saved(row: &RowError) -> SavedRow {
    let (tokens, db) = row.tokens;
    (
        row.row,
        row.reference.to_bits(),
        row.error.to_bits(),
        tokens,
        db.to_bits(),
    )
}

fn read((row, reference, error, tokens, db): SavedRow) -> RowError {
    RowError {
        row,
        reference: f64::from_bits(reference),
        error: f64::from_bits(error),
        tokens: (tokens, f64::from_bits(db)),
    }
}

impl From<&OutputComparison> for SavedComparison {
    fn from(o: &OutputComparison) -> Self {
        let (low, high) = o.range;
        let figures = [
            o.sqnr_db,
            o.cosine,
            o.max_abs_error,
            o.max_relative_error,
            low,
            high,
        ];
        let logarithms = |l: &Logarithms| {
            let rows = l.rows.iter().map(saved).collect();
            (l.sqnr_db.to_bits(), l.token_sqnr_db.to_bits(), rows)
        };
        SavedComparison {
            name: o.name.clone(),
            figures: figures.map(f64::to_bits),
            elements: o.elements,
            filled: o.filled,
            agreement: o.agreement,
            top1: o.top1,
            token_sqnr_db: o.token_sqnr_db.map(f64::to_bits),
            rows: o.rows.iter().map(saved).collect(),
            logarithms: o.logarithms.as_ref().map(logarithms),
        }
    }
}

impl From<SavedComparison> for OutputComparison {
    fn from(s: SavedComparison) -> Self {
        let [
            sqnr_db,
            cosine,
            max_abs_error,
            max_relative_error,
            low,
            high,
        ] = s.figures.map(f64::from_bits);
        let logarithms = |(sqnr, tokens, rows): (u64, u64, Vec<SavedRow>)| Logarithms {
            sqnr_db: f64::from_bits(sqnr),
            token_sqnr_db: f64::from_bits(tokens),
            rows: rows.into_iter().map(read).collect(),
        };
        OutputComparison {
            name: s.name,
            sqnr_db,
            cosine,
            max_abs_error,
            max_relative_error,
            range: (low, high),
            elements: s.elements,
            filled: s.filled,
            agreement: s.agreement,
            top1: s.top1,
            token_sqnr_db: s.token_sqnr_db.map(f64::from_bits),
            rows: s.rows.into_iter().map(read).collect(),
            logarithms: s.logarithms.map(logarithms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        let row = RowError {
            row: 7,
            reference: 0.1 + 0.2,
            error: f64::INFINITY,
            tokens: (3, -0.0),
        };
        let comparison = OutputComparison {
            name: "y".to_owned(),
            sqnr_db: f64::INFINITY,
            cosine: 1.0 / 3.0,
            max_abs_error: 1e-300,
            max_relative_error: 0.0,
            range: (f64::NEG_INFINITY, 2.0),
            elements: u64::MAX,
            filled: 1,
            agreement: Some((4, 3)),
            top1: (2, 1),
            token_sqnr_db: Some(59.999),
            rows: vec![row],
            logarithms: Some(Logarithms {
                sqnr_db: 3.0,
                token_sqnr_db: 0.1,
                rows: vec![row, row],
            }),
        };
        let text = serde_json::to_string(&SavedComparison::from(&comparison)).unwrap();
        let read: SavedComparison = serde_json::from_str(&text).unwrap();
        assert_eq!(OutputComparison::from(read), comparison);
    }
}
