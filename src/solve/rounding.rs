//! Rounding and scales of single numbers, as every quantizer has them.

/// `1.5 · 2^23`. Adding it to an `f32` in `[−2^22, 2^22]` leaves no fraction bits, so the hardware's own rounding mode
/// (half to even) rounds to an integer; subtracting it again is exact.
///
/// `f32::round_ties_even` gives the same value but is a library call per element on x86-64 without SSE4.1; this form
/// vectorizes on every target.
const ROUNDING: f32 = 12_582_912.0;

/// `saturate(round_half_even(v))` to the whole numbers `low ..= high`, `|low|, |high| ≤ 2^22`, as a float.
///
/// Saturating first gives the same result, because both limits are whole numbers, and keeps the argument in the range
/// where [`ROUNDING`] is exact.
#[inline(always)]
pub(super) fn saturate_round(v: f32, low: f32, high: f32) -> f32 {
    // Plain comparisons become one `maxps` and one `minps`; `f32::clamp` would add a check of its limits.
    let v = if v < low { low } else { v };
    let v = if v > high { high } else { v };
    (v + ROUNDING) - ROUNDING
}

/// A scale that is safe to divide by: 1 for an empty range, never subnormal (runtimes flush those to zero).
pub(super) fn safe_scale(scale: f64) -> f32 {
    if scale == 0.0 {
        1.0
    } else {
        (scale as f32).clamp(f32::MIN_POSITIVE, f32::MAX)
    }
}
