//! Wider ranges, where the result is below plain min-max because unseen tokens exceed those of the calibration.
//!
//! After migration many channels touch the edges of the range at once, so a token that is unlike all calibration tokens
//! may be clipped in many of them, and one such row can cost more than migration gains in all others. Dropping what hurts
//! would give up that gain; ranges a quarter wider cost 2 dB of it. They are measured on the same rows as everything else,
//! and taken if the result is above plain then. (To try them wherever one row is far worse than the others lost 1 to 4 dB
//! on further rows in 10 of 12 exports.)

use super::drop::{Source, is_plain};
use super::subset::{CLEAR_DB, is_below, score};
use super::{Run, Solutions};
use crate::Error;
use crate::calibrate::OutputComparison;
use crate::onnx::Model;
use crate::solve::Method;

/// The factor on the ranges. On an export of DINOv3 with heavy-tailed activations, where one row in 64 was clipped, the
/// held-out SQNR is 22.3 dB (plain 23.7); with 1.15 it is 30.5, with 1.3 it is 32.4, with 1.6 it is 30.6.
const FACTOR: f32 = 1.25;

/// Solutions with wider ranges, the model quantized by them, and how it compares.
pub(super) type Wider = (Solutions, Model, Vec<OutputComparison>);

impl Run<'_> {
    /// The result with wider ranges, if `ours` is below plain and that is not.
    pub(super) fn wider_if_below(
        &mut self,
        source: &Source,
        ours: &[OutputComparison],
        plain: &[OutputComparison],
    ) -> Result<Option<Wider>, Error> {
        if self.options.method != Method::OsPlus || !is_below(ours, plain) {
            return Ok(None);
        }
        let solutions = widened(source.solutions);
        let folded = self.fold(source.model, source.blocks, &solutions)?;
        let model = self.quantize(folded.model, source.blocks, source.statistics, &solutions)?;
        let compared = self.compare(&[&model])?.remove(0);
        self.finish_step("verify");
        let better = score(&compared, plain, None) >= score(ours, plain, None) + CLEAR_DB;
        if !better || is_below(&compared, plain) {
            return Ok(None);
        }
        self.report.notes.push(format!(
            "ranges are wider by {FACTOR}, because tokens of some held-out rows exceed them: more calibration data may help"
        ));
        Ok(Some((solutions, model, compared)))
    }
}

/// Every decision that is not plain min-max, with a wider range.
fn widened(solutions: &Solutions) -> Solutions {
    let mut solutions = solutions.clone();
    for solution in solutions.iter_mut().flatten().filter(|s| !is_plain(s)) {
        let (low, high) = solution.range;
        solution.range = (low * FACTOR, high * FACTOR);
        solution.margin *= FACTOR;
    }
    solutions
}
