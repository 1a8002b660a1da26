//! Weights that are rounded for what the quantized Linears before them give, where few bits make much of that.

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::Rounding;
use super::super::verdict::{breaks_promise, score, spread};
use crate::error::Error;
use crate::options::{Format, Options};

/// Bits up to which a Linear's inputs have errors worth making up for. At 8 bits MiniLM-L6 is as it was, and six layers of
/// SmolLM2 gain 0.3 dB, of which a third of the rows know nothing.
const MOST_BITS: u8 = 7;

/// What it must gain, in dB.
const WORTH_DB: f64 = 0.1;

/// Of so many standard errors a gain is sure; below, all rows are asked, and it must have one.
const SURE_ERRORS: f64 = 3.0;

/// What is written with such weights, if that is clearly better.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn round_in_sequence(
    mut written: Measured,
    options: &Options,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let few = options.weight_bits.min(options.activation_bits) <= MOST_BITS;
    let refined = written.plan.rounding == Rounding::Refined;
    let integers = !matches!(options.format, Format::Float | Format::QOperator);
    let Some(mut plain) = judge.plain().cloned() else {
        return Ok(written);
    };
    if !few || !refined || !integers {
        return Ok(written);
    }
    let Some(plan) = judge.sequential(&written.plan)? else {
        return Ok(written);
    };
    let mut rounded = measure(judge, plan)?;
    if !gains(&rounded, &written, &plain, SURE_ERRORS)
        && gains(&rounded, &written, &plain, 0.0)
        && judge.ask_all_rows()
    {
        judge.measure_again(&mut [&mut written, &mut rounded, &mut plain])?;
        judge.set_plain(plain.clone());
    }
    if !gains(&rounded, &written, &plain, 1.0) {
        return Ok(written);
    }
    rounded.plan.notes.push(format!(
        "{} weights are rounded for what the quantized Linears before them give: {:+.1} dB on held-out rows",
        rounded.plan.sequential.len(),
        gain(&rounded, &written, &plain),
    ));
    rounded.account = written.account;
    Ok(rounded)
}

/// By how many dB `new` is above `before`.
fn gain(new: &Measured, before: &Measured, plain: &Measured) -> f64 {
    score(&new.outputs, &plain.outputs, None) - score(&before.outputs, &plain.outputs, None)
}

/// Whether `new` is above `before` by so many standard errors, and keeps the promise.
fn gains(new: &Measured, before: &Measured, plain: &Measured, errors: f64) -> bool {
    let gain = gain(new, before, plain);
    let (new, before, plain) = (&new.outputs, &before.outputs, &plain.outputs);
    let sure = gain >= WORTH_DB && gain >= errors * spread(new, before, plain);
    sure && !breaks_promise(new, before, plain)
}
