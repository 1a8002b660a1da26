//! What the caller's metric says of models.

use super::{HeldOut, Measured};
use crate::calibrate::{MinMetric, Score};
use crate::error::Error;
use crate::onnx::Model;
use crate::review::MetricReport;

impl HeldOut<'_> {
    /// Asks the metric about the original: what is wrong with it is said before the work, not after it.
    ///
    /// # Errors
    /// [`Error::Metric`].
    pub(crate) fn evaluate_float(&mut self) -> Result<(), Error> {
        if self.job.evaluation.is_some() {
            self.scores.float = Some(self.score(self.job.original)?);
        }
        Ok(())
    }

    fn score(&self, model: &Model) -> Result<Score, Error> {
        let job = self.job;
        let Some(evaluation) = &job.evaluation else {
            return Ok(Score::default());
        };
        let threads = job.options.threads;
        let score = evaluation
            .metric
            .score(model, job.engine, threads, job.progress)?;
        job.clock.finish("metric");
        Ok(score)
    }

    /// What the metric says of the original and of a model; `None` without one.
    fn both(&mut self, measured: &Measured) -> Result<Option<(Score, Score)>, Error> {
        let Some(float) = self.scores.float.clone() else {
            return Ok(None);
        };
        let known = self.scores.last.as_ref();
        if let Some((_, score)) = known.filter(|(plan, _)| *plan == measured.plan) {
            return Ok(Some((float, score.clone())));
        }
        let score = self.score(&measured.model.unflatten())?;
        self.scores.last = Some((measured.plan.clone(), score.clone()));
        Ok(Some((float, score)))
    }

    fn least(&self) -> Option<MinMetric> {
        self.job.evaluation.and_then(|e| e.least)
    }

    /// Whether the metric is content with a model.
    ///
    /// # Errors
    /// [`Error::Metric`].
    pub(super) fn is_worth_it(&mut self, measured: &Measured) -> Result<bool, Error> {
        let Some(least) = self.least() else {
            return Ok(true);
        };
        let both = self.both(measured)?;
        Ok(both.is_none_or(|(float, score)| least.allows(float.value, score.value)))
    }

    /// Says that a model with `kept` Linears in float is not good enough.
    ///
    /// # Errors
    /// Always [`Error::MinMetric`], or [`Error::Metric`].
    pub(super) fn refuse_worth(&mut self, measured: &Measured, kept: usize) -> Result<(), Error> {
        let (Some(least), Some((float, score))) = (self.least(), self.both(measured)?) else {
            return Ok(());
        };
        Err(Error::MinMetric {
            name: score.name,
            float: float.value,
            best: score.value,
            wanted: least.least(float.value),
            kept,
        })
    }

    /// What the report tells of the metric; `None` without one.
    ///
    /// # Errors
    /// [`Error::MinMetric`] if it is not content, [`Error::Metric`].
    pub(crate) fn metric(&mut self, written: &Measured) -> Result<Option<MetricReport>, Error> {
        if !self.is_worth_it(written)? {
            self.refuse_worth(written, 0)?;
        }
        let rows = self.job.evaluation.map_or("", |e| e.rows);
        let least = self.least();
        let kept = written.account.kept_float.is_some() && least.is_some();
        Ok(self.both(written)?.map(|(float, score)| {
            let mut report = MetricReport::new(&float, &score, least, rows);
            if kept {
                report.notes.push(
                    "the same rows told how many Linears to leave in float: others may show a little less".to_owned(),
                );
            }
            report
        }))
    }
}
