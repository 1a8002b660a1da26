//! The float check: before anything is quantized, the model that is to be must be the original.

use super::super::build::{Folded, rounding_error};
use super::super::plan::Plan;
use super::Judge;
use super::held_out::{Checked, HeldOut};
use crate::calibrate::{OutputComparison, compare_few};
use crate::error::Error;
use crate::onnx::DataType;
use crate::options::Format;
use crate::review::{FLOAT_LIMIT, FloatCheck, ROUNDING_LIMIT, RoundedCheck};

/// What rounding may do, relative to the range of an output, where integers follow: their own errors are larger, and the result is
/// compared with plain min-max as a whole. Decoders in float16 at 4 bits go beyond the limit of a float model.
const BESIDE_INTEGERS: f64 = 0.03;

impl HeldOut<'_> {
    /// Runs the original and the float model of a plan: they must agree. `None` if they are the same graph.
    pub(super) fn check_float(&mut self, plan: &Plan) -> Result<Option<FloatCheck>, Error> {
        let known = self.checked.as_ref().filter(|c| c.plan.folds_like(plan));
        if let Some(known) = known {
            return Ok(known.check.clone());
        }
        let folded = self.fold(plan)?;
        let checked = match self.is_original(&folded) {
            true => Checked {
                plan: plan.clone(),
                check: None,
                outputs: None,
            },
            false => self.check_folded(plan, &folded)?,
        };
        self.keep_folded(plan, folded);
        let check = checked.check.clone();
        self.checked = Some(checked);
        self.job.clock.finish("float check");
        Ok(check)
    }

    /// Whether nothing was changed, by migration or before it.
    fn is_original(&self, folded: &Folded) -> bool {
        folded.unrounded.is_none() && folded.model.unflatten() == *self.job.original
    }

    fn check_folded(&mut self, plan: &Plan, folded: &Folded) -> Result<Checked, Error> {
        let unrounded = folded.unrounded.as_ref();
        let mut models = vec![&folded.model];
        models.extend(unrounded.map(|(_, model)| model));
        // A mistake of the folding shows in every row; rounding, and what is not quantized, is measured on all of them.
        let few = plan.format.quantizes() && unrounded.is_none();
        let mut compared = match few {
            true => self.compare_by(compare_few, &models)?,
            false => self.compare(&models)?,
        };
        let agrees = |c: &Vec<OutputComparison>| worst(c).1 <= FLOAT_LIMIT;
        if few && !compared.last().is_some_and(agrees) {
            // An output of few rows may have no range to speak of.
            self.ask_all_rows();
            compared = self.compare(&models)?;
        }
        // The last is the one without rounding, if there are two.
        let (output, error) = compared.last().map_or((String::new(), 0.0), |c| worst(c));
        // A NaN is no agreement.
        if error.is_nan() || error > FLOAT_LIMIT {
            return Err(Error::FloatCheck {
                output,
                error,
                limit: FLOAT_LIMIT,
            });
        }
        let in_file = compared.into_iter().next().unwrap_or_default();
        let rounded = match unrounded {
            Some((dtype, _)) => Some(check_rounding(*dtype, plan.format, &in_file)?),
            None => None,
        };
        Ok(Checked {
            plan: plan.clone(),
            check: Some(FloatCheck {
                max_relative_error: error,
                rounded,
                ..FloatCheck::default()
            }),
            outputs: (!few).then_some(in_file),
        })
    }
}

/// What rounding the migrated constants to the type of the file does, if it is little enough.
fn check_rounding(
    dtype: DataType,
    format: Format,
    in_file: &[OutputComparison],
) -> Result<RoundedCheck, Error> {
    let (output, error) = worst(in_file);
    let limit = ROUNDING_LIMIT * rounding_error(dtype);
    let limit = match format.quantizes() {
        true => limit.max(BESIDE_INTEGERS),
        false => limit,
    };
    let name = dtype.as_str_name();
    if error.is_nan() || error > limit {
        return Err(Error::Rounding {
            dtype: name,
            output,
            error,
            limit,
        });
    }
    Ok(RoundedCheck {
        dtype: name.to_owned(),
        max_relative_error: error,
        limit,
    })
}

/// The output that differs most, and by how much of its range.
fn worst(compared: &[OutputComparison]) -> (String, f64) {
    let by_error = |a: &&OutputComparison, b: &&OutputComparison| {
        a.max_relative_error.total_cmp(&b.max_relative_error)
    };
    let worst = compared.iter().max_by(by_error);
    worst.map_or((String::new(), 0.0), |o| {
        (o.name.clone(), o.max_relative_error)
    })
}
