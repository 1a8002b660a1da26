//! A candidate with its loss, and what is a gain.

use super::ShiftKind;

/// What a candidate's loss must be of that of doing nothing: 0.3 dB less.
pub(super) const CLEAR_GAIN: f64 = 0.933;

/// A scored candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scored {
    pub shift: ShiftKind,
    pub threshold: Option<f32>,
    pub margin: f32,
    pub corrected: bool,
    pub loss: f64,
}

/// `10 · log10(before / after)`, within ±120 dB so that a loss of 0 gives a number.
pub(super) fn gain_db(before: f64, after: f64) -> f64 {
    if before == after {
        0.0
    } else {
        (10.0 * (before / after).log10()).clamp(-120.0, 120.0)
    }
}
