//! The error of one row, and of one token.

/// What one row adds to the sums of an output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowError {
    /// The row's number in the data; of the batch's first row for what belongs to no single row.
    pub row: u64,
    /// Σ r²
    pub reference: f64,
    /// Σ (r − o)²
    pub error: f64,
    /// Tokens whose own SQNR is known, and its sum over them, in dB; see [`OutputComparison::token_sqnr_db`](super::sums::OutputComparison::token_sqnr_db).
    pub tokens: (u64, f64),
}

/// What the SQNR of one token counts at most, in dB.
const TOKEN_LIMIT_DB: f64 = 60.0;

/// The SQNR of one token.
pub(super) fn token_db(reference: f64, error: f64) -> f64 {
    (10.0 * (reference / error).log10()).clamp(-TOKEN_LIMIT_DB, TOKEN_LIMIT_DB)
}
