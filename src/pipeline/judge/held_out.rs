//! The judge of a run: models are made, and run on held-out rows.

use super::super::build::{self, Candidate, Folded, Source, add_attention, build, build_from};
use super::super::job::Job;
use super::super::plan::{AttentionRanges, Plan};
use super::super::sequential::sequential;
use super::rows::{Rows, row_count};
use super::{Account, Judge, Measured, Sensitivity};
use crate::calibrate::{
    Batch, Engine, EngineError, OutputComparison, Ranged, Reference, Score, compare_with, judged,
    ranges,
};
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::onnx::Model;
use crate::progress::Progress;
use crate::recognise::Attention;
use crate::review::{FloatCheck, SURE_DB, are_few, known_to_db};

/// [`compare_with`] or [`compare_few`](crate::calibrate::compare_few).
type Compare = fn(
    &dyn Engine,
    &mut Reference<'_>,
    &[&Model],
    usize,
    &dyn Progress,
) -> Result<Vec<Vec<OutputComparison>>, EngineError>;

/// Owns the rows and the reference.
pub(crate) struct HeldOut<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) source: Source<'a>,
    pub(super) calibration: &'a [Batch],
    /// The original, to be run on the rows that judge.
    pub(super) reference: Reference<'a>,
    /// How many those are.
    judging: usize,
    /// Rows to be asked in case of doubt.
    reserve: Vec<Batch>,
    /// Whether they set no range.
    held_out: bool,
    plain: Option<Measured>,
    /// Whether there are outputs that nothing is judged by.
    others: bool,
    /// The float model that was made last, with its plan: what is checked is quantized next.
    folded: Option<(Plan, Folded)>,
    pub(super) checked: Option<Checked>,
    pub(super) scores: Scores,
}

/// What the caller's metric is known to say.
#[derive(Default)]
pub(super) struct Scores {
    /// Of the original.
    pub float: Option<Score>,
    /// Of the plan that was asked about last.
    pub last: Option<(Plan, Score)>,
}

/// The outcome of a float check.
pub(super) struct Checked {
    pub plan: Plan,
    pub check: Option<FloatCheck>,
    /// The outputs of the float model, if it was run on all rows that judge.
    pub outputs: Option<Vec<OutputComparison>>,
}

/// On which rows a result was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JudgedOn {
    /// Held-out rows; 0 if there are too few to hold any out.
    pub held_out_rows: usize,
    /// The same, with those that were not asked.
    pub all: usize,
    /// In words.
    pub rows: String,
}

impl<'a> HeldOut<'a> {
    /// Runs nothing yet.
    pub(crate) fn new(job: &'a Job<'a>, source: Source<'a>, rows: &'a Rows) -> HeldOut<'a> {
        HeldOut {
            job,
            source,
            calibration: &rows.calibration,
            reference: Reference::new(job.original, &rows.judging),
            judging: row_count(&rows.judging),
            reserve: rows.reserve.clone(),
            held_out: rows.held_out,
            plain: None,
            others: false,
            folded: None,
            checked: None,
            scores: Scores::default(),
        }
    }

    /// What it judges by.
    pub(crate) fn judged_on(&self) -> JudgedOn {
        let (judging, reserve) = (self.judging, row_count(&self.reserve));
        match self.held_out {
            true => JudgedOn {
                held_out_rows: judging,
                all: judging + reserve,
                rows: super::rows::verified_on(judging, reserve),
            },
            false => JudgedOn {
                held_out_rows: 0,
                all: 0,
                rows: format!("all {judging} calibration rows, too few to hold any out"),
            },
        }
    }

    /// How models compare with the original.
    pub(super) fn compare(
        &mut self,
        models: &[&FlatModel],
    ) -> Result<Vec<Vec<OutputComparison>>, Error> {
        let compared = self.compare_by(compare_with, models)?;
        self.job.clock.finish("verify");
        Ok(compared)
    }

    /// [`HeldOut::compare`] on all of the rows or on few.
    pub(super) fn compare_by(
        &mut self,
        compare: Compare,
        models: &[&FlatModel],
    ) -> Result<Vec<Vec<OutputComparison>>, Error> {
        let models: Vec<Model> = models.iter().map(|m| m.unflatten()).collect();
        let models: Vec<&Model> = models.iter().collect();
        let (engine, threads) = (self.job.engine, self.job.options.threads);
        let reference = &mut self.reference;
        let all = compare(engine, reference, &models, threads, self.job.progress)?;
        let count = |outputs: &[Vec<OutputComparison>]| outputs.first().map_or(0, Vec::len);
        let of_all = count(&all);
        let judging: Vec<_> = all.into_iter().map(judged).collect();
        self.others |= count(&judging) < of_all;
        Ok(judging)
    }

    /// Measures again on all held-out rows if those that judged tell the figures of an output too badly, or are few.
    ///
    /// # Errors
    /// Those of [`Judge::measure`].
    pub(crate) fn make_sure(&mut self, written: &mut Measured) -> Result<(), Error> {
        let unsure = |o: &OutputComparison| {
            known_to_db(o).is_none_or(|db| db > SURE_DB) && o.max_abs_error > 0.0
        };
        let doubted = are_few(self.judging) || written.outputs.iter().any(unsure);
        if !doubted || !self.ask_all_rows() {
            return Ok(());
        }
        let mut plain = self.plain.take();
        let mut all: Vec<&mut Measured> = vec![written];
        all.extend(plain.as_mut());
        self.measure_again(&mut all)?;
        self.plain = plain;
        Ok(())
    }

    /// Every output of the result, and of plain min-max quantization, if there are outputs that nothing is judged by.
    ///
    /// # Errors
    /// Those of [`Judge::measure`].
    pub(crate) fn all_outputs(
        &mut self,
        written: &Measured,
    ) -> Result<Option<[Vec<OutputComparison>; 2]>, Error> {
        if !self.others {
            return Ok(None);
        }
        let plain = self.plain.take();
        let models = [Some(&written.model), plain.as_ref().map(|p| &p.model)];
        let models: Vec<Model> = models
            .into_iter()
            .flatten()
            .map(|m| m.unflatten())
            .collect();
        let models: Vec<&Model> = models.iter().collect();
        let (engine, threads) = (self.job.engine, self.job.options.threads);
        let all = compare_with(
            engine,
            &mut self.reference,
            &models,
            threads,
            self.job.progress,
        )?;
        self.plain = plain;
        let mut all = all.into_iter();
        Ok(Some([
            all.next().unwrap_or_default(),
            all.next().unwrap_or_default(),
        ]))
    }

    /// The float model of a plan: the one that was checked last, if it is that.
    fn candidate(&mut self, plan: Plan) -> Result<Candidate, Error> {
        let known = self.folded.take_if(|(of, _)| of.folds_like(&plan));
        let candidate = match known {
            Some((_, folded)) => build_from(self.source, folded, plan)?,
            None => build(self.source, plan)?,
        };
        self.job.clock.finish("quantize");
        Ok(candidate)
    }

    /// The float model of a plan, which is quantized next if it passes its check.
    pub(super) fn fold(&self, plan: &Plan) -> Result<Folded, Error> {
        let folded = Folded::new(self.source, plan, &build::integers(plan))?;
        self.job.clock.finish("migrate");
        Ok(folded)
    }

    pub(super) fn keep_folded(&mut self, plan: &Plan, folded: Folded) {
        self.folded = Some((plan.clone(), folded));
    }
}

impl Judge for HeldOut<'_> {
    fn measure(&mut self, plans: Vec<Plan>) -> Result<Vec<Measured>, Error> {
        let candidates = plans.into_iter().map(|plan| self.candidate(plan));
        let candidates: Vec<Candidate> = candidates.collect::<Result<_, _>>()?;
        // A plan in float has been run by its check already.
        let checked = self
            .checked
            .as_ref()
            .and_then(|checked| match &candidates[..] {
                [only] if !only.plan.format.quantizes() && checked.plan.folds_like(&only.plan) => {
                    checked.outputs.clone()
                }
                _ => None,
            });
        let compared = match checked {
            Some(outputs) => vec![outputs],
            None => {
                let models: Vec<&FlatModel> = candidates.iter().map(|c| &c.model).collect();
                self.compare(&models)?
            }
        };
        let measured = |(Candidate { plan, model }, outputs)| Measured {
            plan,
            model,
            outputs,
            account: Account::default(),
        };
        Ok(candidates.into_iter().zip(compared).map(measured).collect())
    }

    fn asks_metric(&self) -> bool {
        self.job.evaluation.is_some_and(|e| e.least.is_some())
    }

    fn metric_allows(&mut self, measured: &Measured) -> Result<bool, Error> {
        self.is_worth_it(measured)
    }

    fn metric_refuses(&mut self, measured: &Measured, kept: usize) -> Result<(), Error> {
        self.refuse_worth(measured, kept)
    }

    fn build(&mut self, plan: Plan) -> Result<Candidate, Error> {
        self.candidate(plan)
    }

    fn measure_attention(&mut self, base: &Measured, plan: Plan) -> Result<Measured, Error> {
        let Candidate { plan, model } = add_attention(self.source, &base.model, plan)?;
        let outputs = self.compare(&[&model])?.remove(0);
        self.job.clock.finish("attention");
        Ok(Measured {
            plan,
            model,
            outputs,
            account: base.account.clone(),
        })
    }

    fn rows(&self) -> usize {
        self.judging
    }

    fn ask_all_rows(&mut self) -> bool {
        let rest = std::mem::take(&mut self.reserve);
        self.reference.extend(&rest);
        self.judging += row_count(&rest);
        !rest.is_empty()
    }

    fn measure_again(&mut self, measured: &mut [&mut Measured]) -> Result<(), Error> {
        let models: Vec<&FlatModel> = measured.iter().map(|m| &m.model).collect();
        let compared = self.compare(&models)?;
        for (measured, outputs) in measured.iter_mut().zip(compared) {
            measured.outputs = outputs;
        }
        Ok(())
    }

    fn float_check(&mut self, plan: &Plan) -> Result<Option<FloatCheck>, Error> {
        self.check_float(plan)
    }

    fn sensitivity(&mut self, plan: &Plan) -> Result<Vec<Sensitivity>, Error> {
        self.sensitivities(plan)
    }

    fn sequential(&mut self, plan: &Plan) -> Result<Option<Plan>, Error> {
        sequential(self.job, self.source, self.calibration, plan)
    }

    fn attention_ranges(
        &mut self,
        measured: &Measured,
        attentions: &[Attention],
    ) -> Result<Vec<Result<AttentionRanges, String>>, EngineError> {
        let view = measured.model.view();
        let wanted = attentions.iter().flat_map(operands);
        let wanted: Vec<Ranged> = wanted
            .map(|(value, axis)| Ranged {
                value: view.name(value).to_owned(),
                axis,
            })
            .collect();
        let (model, rows) = (measured.model.as_model(), self.calibration);
        let (engine, threads) = (self.job.engine, self.job.options.threads);
        let found = ranges(engine, model, rows, &wanted, threads, self.job.progress)?;
        let known = |range: Option<(f32, f32)>, at: usize| match range {
            None => Err(format!("no calibration data reach `{}`", wanted[at].value)),
            Some((low, _)) if low.is_nan() => Err(format!(
                "`{}` is not finite on the calibration data",
                wanted[at].value
            )),
            Some(range) => Ok(range),
        };
        let blocks = found.chunks_exact(OPERANDS).enumerate();
        let ranges = blocks.map(|(i, block)| {
            Ok(AttentionRanges {
                query: known(block[0], OPERANDS * i)?,
                key: known(block[1], OPERANDS * i + 1)?,
                value: known(block[2], OPERANDS * i + 2)?,
                no_nan: block[3].is_some_and(|(low, _)| !low.is_nan()),
            })
        });
        Ok(ranges.collect())
    }

    fn plain(&self) -> Option<&Measured> {
        self.plain.as_ref()
    }

    fn set_plain(&mut self, plain: Measured) {
        self.plain = Some(plain);
    }
}

/// How many values of an attention are measured.
const OPERANDS: usize = 4;

/// Q, Kᵀ, V and the probabilities of an attention, each with the axis that its tokens are on; 0 for every element.
///
/// The left side of a product has its tokens on the last axis but one; the right side, Kᵀ, on the last; V is summed over its
/// tokens. Of the probabilities every row counts, because NaN would spread from padding, too.
fn operands(attention: &Attention) -> [(crate::graph::ValueId, usize); OPERANDS] {
    let [query, key] = attention.scores.operands;
    let value = attention.context.operands[1 - attention.probabilities];
    let probabilities = attention.context.operands[attention.probabilities];
    let value_axis = if attention.probabilities == 0 { 2 } else { 1 };
    [
        (query, 2),
        (key, 1),
        (value, value_axis),
        (attention.unguarded.unwrap_or(probabilities), 0),
    ]
}
