//! Running the results against the original.

use super::Run;
use super::folded::{Folded, rounding_error};
use crate::Error;
use crate::calibrate::{OutputComparison, compare_with};
use crate::graph::branches::unflatten;
use crate::onnx::Model;
use crate::review::{
    Decision, FLOAT_LIMIT, FloatCheck, ROUNDING_LIMIT, RoundedCheck, gain_db, output_reports,
};

impl Run<'_> {
    /// Runs original and migrated model: they must agree before anything is quantized.
    pub fn check_float(&mut self, folded: &Folded) -> Result<(), Error> {
        let rewritten =
            self.report.settings.opset_raised_from.is_some() || !self.report.inlined.is_empty();
        if self.migrated_sites == 0 && !rewritten {
            return Ok(());
        }
        let unrounded = folded.unrounded.as_ref();
        let mut models = vec![&folded.model];
        models.extend(unrounded.map(|(_, model)| model));
        let compared = self.compare(&models)?;
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
        self.report.float_check = FloatCheck {
            max_relative_error: error,
            ..FloatCheck::default()
        };
        let in_file = compared.into_iter().next().unwrap_or_default();
        if let Some((dtype, _)) = unrounded {
            let (output, error) = worst(&in_file);
            let (dtype, limit) = (dtype.as_str_name(), ROUNDING_LIMIT * rounding_error(*dtype));
            if error.is_nan() || error > limit {
                return Err(Error::Rounding {
                    dtype,
                    output,
                    error,
                    limit,
                });
            }
            self.report.float_check.rounded = Some(RoundedCheck {
                dtype,
                max_relative_error: error,
                limit,
            });
        }
        self.report.outputs = output_reports(&in_file, None);
        self.finish_step("float check");
        Ok(())
    }

    fn compare(&mut self, models: &[&Model]) -> Result<Vec<Vec<OutputComparison>>, Error> {
        let (engine, threads) = (self.engine, self.options.threads);
        let models: Vec<Model> = models.iter().map(|m| unflatten(m)).collect();
        let models: Vec<&Model> = models.iter().collect();
        let reference = &mut self.reference;
        Ok(compare_with(
            engine,
            reference,
            &models,
            threads,
            self.progress,
        )?)
    }

    /// The migrated model is the result; [`Run::check_float`] has compared its outputs.
    pub fn verify_float(&mut self, migrated: Model) -> Result<Model, Error> {
        if self.migrated_sites == 0 {
            self.report.decision = Decision::NothingToMigrate;
            let compared = self.compare(&[&migrated])?.remove(0);
            self.report.outputs = output_reports(&compared, None);
        }
        self.finish_step("verify");
        Ok(migrated)
    }

    /// Runs the result and plain min-max against the original and keeps whichever is closer to it.
    pub fn keep_the_better(
        &mut self,
        quantized: Model,
        plain: Option<Model>,
    ) -> Result<Model, Error> {
        let models: Vec<&Model> = std::iter::once(&quantized).chain(&plain).collect();
        let mut compared = self.compare(&models)?.into_iter();
        let ours = compared.next().unwrap_or_default();
        let theirs = compared.next();
        let gain = total_gain(&ours, theirs.as_deref());
        let (result, decision, outputs) = match (plain, &theirs) {
            (Some(plain), Some(theirs)) if gain < 0.0 => (
                plain,
                Decision::PlainWasBetter,
                output_reports(theirs, Some(theirs)),
            ),
            (None, _) => (
                quantized,
                Decision::PlainAskedFor,
                output_reports(&ours, Some(&ours)),
            ),
            (_, theirs) if self.migrated_sites == 0 => {
                let outputs = output_reports(&ours, theirs.as_deref());
                (quantized, Decision::NothingToMigrate, outputs)
            }
            (_, theirs) => {
                let outputs = output_reports(&ours, theirs.as_deref());
                (quantized, Decision::Migrated, outputs)
            }
        };
        self.report.decision = decision;
        self.report.outputs = outputs;
        self.finish_step("verify");
        Ok(result)
    }
}

/// The sum over all outputs of what `ours` gains over `theirs`, in dB.
fn total_gain(ours: &[OutputComparison], theirs: Option<&[OutputComparison]>) -> f64 {
    let pairs = theirs.unwrap_or_default().iter().zip(ours);
    pairs.map(|(plain, ours)| gain_db(ours, plain)).sum()
}

/// The output that differs most, and by how much of its range.
fn worst(compared: &[OutputComparison]) -> (String, f64) {
    let worst = compared
        .iter()
        .max_by(|a, b| a.max_relative_error.total_cmp(&b.max_relative_error));
    worst.map_or((String::new(), 0.0), |o| {
        (o.name.clone(), o.max_relative_error)
    })
}
