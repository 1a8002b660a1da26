//! Weights that are rounded for what the quantized Linears before them give, where few bits make much of that.

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::Rounding;
use super::super::verdict::{breaks_promise, score, spread};
use crate::calibrate::OutputComparison;
use crate::error::Error;
use crate::options::{Format, Options};

/// Bits up to which a Linear's inputs have errors worth making up for. At 8 bits MiniLM-L6 is as it was, and six layers of
/// SmolLM2 gain 0.3 dB, of which a third of the rows know nothing.
const MOST_BITS: u8 = 7;

/// What it must gain, in dB.
const WORTH_DB: f64 = 0.1;

/// Of so many standard errors a gain is sure; below, all rows are asked, and it must have one.
const SURE_ERRORS: f64 = 3.0;

/// Whether that is asked for.
pub(crate) fn may_round_in_sequence(options: &Options) -> bool {
    let few = options.weight_bits.min(options.activation_bits) <= MOST_BITS;
    few && !matches!(options.format, Format::Float | Format::QOperator)
}

/// What is written with such weights, if that is clearly better.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn round_in_sequence(
    mut written: Measured,
    options: &Options,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let refined = written.plan.rounding == Rounding::Refined;
    let Some(mut plain) = judge.plain().cloned() else {
        return Ok(written);
    };
    if !may_round_in_sequence(options) || !refined {
        return Ok(written);
    }
    let Some(plan) = judge.sequential(&written.plan)? else {
        return Ok(written);
    };
    let mut rounded = measure(judge, plan)?;
    let mut found = Compared::of([&rounded, &written, &plain], judge)?;
    if !found.gains(SURE_ERRORS) && found.gains(0.0) && judge.ask_all_rows() {
        judge.measure_again(&mut [&mut written, &mut rounded, &mut plain])?;
        judge.set_plain(plain.clone());
        found = Compared::of([&rounded, &written, &plain], judge)?;
    }
    // Strategies behind this one hold other plans against the outputs of what is written, of float inputs.
    if !found.gains(1.0) || breaks_promise(&rounded.outputs, &written.outputs, &plain.outputs) {
        return Ok(written);
    }
    rounded.plan.notes.push(format!(
        "{} weights are rounded for what the quantized Linears before them give: {:+.1} dB on held-out rows",
        rounded.plan.sequential.len(),
        found.gain(),
    ));
    rounded.account = written.account;
    Ok(rounded)
}

/// The outputs of what is new, of what was before, and of plain min-max quantization.
struct Compared {
    new: Vec<OutputComparison>,
    before: Vec<OutputComparison>,
    plain: Vec<OutputComparison>,
}

impl Compared {
    /// Of a part of a model, with what the quantized parts before it give: that is what the weights are rounded for.
    fn of(models: [&Measured; 3], judge: &mut dyn Judge) -> Result<Compared, Error> {
        let seen = judge.measure_seen(&models)?;
        let outputs = seen.and_then(|seen| seen.try_into().ok());
        let [new, before, plain] = outputs.unwrap_or_else(|| models.map(|m| m.outputs.clone()));
        Ok(Compared { new, before, plain })
    }

    /// By how many dB the new is above what was before.
    fn gain(&self) -> f64 {
        score(&self.new, &self.plain, None) - score(&self.before, &self.plain, None)
    }

    /// Whether it is above that by so many standard errors, and keeps the promise.
    fn gains(&self, errors: f64) -> bool {
        let (gain, doubt) = (self.gain(), spread(&self.new, &self.before, &self.plain));
        let sure = gain >= WORTH_DB && gain >= errors * doubt;
        sure && !breaks_promise(&self.new, &self.before, &self.plain)
    }
}
