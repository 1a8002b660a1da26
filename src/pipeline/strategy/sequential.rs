//! Weights that are rounded for what the quantized Linears before them give, where few bits make much of that.

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::Rounding;
use super::super::verdict::{breaks_promise, score, spread};
use crate::error::Error;
use crate::options::{Format, Options};

/// Bits up to which a Linear's inputs have errors worth making up for.
const MOST_BITS: u8 = 7;

/// What it must gain, in dB, and of how many standard errors.
const WORTH_DB: f64 = 0.1;
const ERRORS: f64 = 2.0;

/// What is written with such weights, if that is clearly better.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn round_in_sequence(
    written: Measured,
    options: &Options,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let few = std::env::var("SEQ8").is_ok() || options.weight_bits.min(options.activation_bits) <= MOST_BITS;
    let refined = written.plan.rounding == Rounding::Refined;
    let integers = !matches!(options.format, Format::Float | Format::QOperator);
    if !few || !refined || !integers {
        return Ok(written);
    }
    let (Some(plan), Some(plain)) = (judge.sequential(&written.plan)?, judge.plain().cloned())
    else {
        return Ok(written);
    };
    let all = plan.sequential.len();
    let mut measured = measure(judge, plan)?;
    let (new, before, plain) = (&measured.outputs, &written.outputs, &plain.outputs);
    let gain = score(new, plain, None) - score(before, plain, None);
    let sure = ERRORS * spread(new, before, plain);
    if gain < WORTH_DB || gain < sure || breaks_promise(new, before, plain) {
        return Ok(written);
    }
    measured.account = written.account;
    measured.plan.notes.push(format!(
        "{all} weights are rounded for what the quantized Linears before them give, which gains {gain:.1} dB on held-out rows"
    ));
    Ok(measured)
}
