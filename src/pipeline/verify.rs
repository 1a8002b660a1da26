//! Running the results against the original.

use super::drop::{Source, units};
use super::folded::{Folded, rounding_error};
use super::subset::{is_below, is_clearly_above, score};
use super::{Run, Solutions};
use crate::Error;
use crate::calibrate::{
    Engine, EngineError, OutputComparison, Reference, compare_few, compare_with,
};
use crate::graph::branches::unflatten;
use crate::onnx::Model;
use crate::progress::Progress;
use crate::review::{
    Decision, FLOAT_LIMIT, FloatCheck, ROUNDING_LIMIT, RoundedCheck, output_reports,
};

/// [`compare_with`] or [`compare_few`].
type Compare = fn(
    &dyn Engine,
    &mut Reference<'_>,
    &[&Model],
    usize,
    &dyn Progress,
) -> Result<Vec<Vec<OutputComparison>>, EngineError>;

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
        // A mistake of the folding shows in every row; rounding, and what is not quantized, is measured on all of them.
        let few = self.options.format.quantizes() && unrounded.is_none();
        let mut compared = match few {
            true => self.compare_few(&models)?,
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
        let mut check = FloatCheck {
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
            check.rounded = Some(RoundedCheck {
                dtype: dtype.to_owned(),
                max_relative_error: error,
                limit,
            });
        }
        self.report.float_check = Some(check);
        self.report.outputs = output_reports(&in_file, None);
        self.finish_step("float check");
        Ok(())
    }

    /// How models compare with the original on the held-out rows.
    pub(super) fn compare(
        &mut self,
        models: &[&Model],
    ) -> Result<Vec<Vec<OutputComparison>>, Error> {
        self.compare_by(compare_with, models)
    }

    /// [`Run::compare`] on few of the rows.
    fn compare_few(&mut self, models: &[&Model]) -> Result<Vec<Vec<OutputComparison>>, Error> {
        self.compare_by(compare_few, models)
    }

    fn compare_by(
        &mut self,
        compare: Compare,
        models: &[&Model],
    ) -> Result<Vec<Vec<OutputComparison>>, Error> {
        let (engine, threads) = (self.engine, self.options.threads);
        let models: Vec<Model> = models.iter().map(|m| unflatten(m)).collect();
        let models: Vec<&Model> = models.iter().collect();
        let reference = &mut self.reference;
        Ok(compare(engine, reference, &models, threads, self.progress)?)
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

    /// Runs the result and plain min-max against the original. Where the result is below plain, wider ranges are tried,
    /// then what hurts is dropped; where that does not help, plain is kept. With the solutions if they are others now.
    pub fn keep_the_better(
        &mut self,
        quantized: Model,
        plain: Option<Model>,
        source: &Source,
    ) -> Result<(Model, Option<Solutions>), Error> {
        let models: Vec<&Model> = std::iter::once(&quantized).chain(&plain).collect();
        let mut compared = self.compare(&models)?;
        let clear = match &compared[..] {
            [ours, plain] => is_clearly_above(ours, plain),
            _ => false,
        };
        if !clear && self.ask_all_rows() {
            compared = self.compare(&models)?;
        }
        let mut compared = compared.into_iter();
        let ours = compared.next().unwrap_or_default();
        let Some((plain, theirs)) = plain.zip(compared.next()) else {
            self.report.outputs = output_reports(&ours, Some(&ours));
            self.report.decision = Decision::PlainAskedFor;
            self.compare_with_qdq(&ours)?;
            (self.plain, self.written) = (Some(ours.clone()), ours);
            self.finish_step("verify");
            return Ok((quantized, None));
        };
        self.finish_step("verify");
        let wider = self.wider_if_below(source, &ours, &theirs)?;
        let (solutions, quantized, ours) = match wider {
            Some((solutions, model, compared)) => (Some(solutions), model, compared),
            None => (None, quantized, ours),
        };
        let source = &Source {
            solutions: solutions.as_ref().unwrap_or(source.solutions),
            ..*source
        };
        let better = match is_below(&ours, &theirs) {
            true => self.drop_what_hurts(source, &ours, &theirs)?,
            false => None,
        };
        let (result, decision, compared) = match better {
            Some((model, compared)) => (model, Decision::PartlyMigrated, compared),
            None if score(&ours, &theirs, None) < 0.0 => {
                (plain, Decision::PlainWasBetter, theirs.clone())
            }
            None if self.migrated_sites == 0 => (quantized, Decision::NothingToMigrate, ours),
            None => (quantized, Decision::Migrated, ours),
        };
        self.report.decision = decision;
        self.report.dropped_sites = match decision {
            Decision::PlainWasBetter => units(source.blocks, source.solutions)
                .iter()
                .map(|u| u.sites.len())
                .sum(),
            _ => self.dropped.len(),
        };
        self.report.outputs = output_reports(&compared, Some(&theirs));
        if decision != Decision::PlainWasBetter {
            self.compare_with_qdq(&compared)?;
        }
        (self.plain, self.written) = (Some(theirs), compared);
        self.finish_step("verify");
        Ok((result, solutions))
    }
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
