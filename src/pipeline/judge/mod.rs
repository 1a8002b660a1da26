//! The judge: how plans do on rows that set no range.
//!
//! Strategies ask a [`Judge`] about plans, and know nothing of engines. [`HeldOut`] is the one of a run; tests of the
//! strategies have one that answers from a script.

mod evaluate;
mod float_check;
pub(crate) mod held_out;
pub(crate) mod rows;
mod sensitivity;

use std::collections::BTreeSet;

use super::build::Candidate;
use super::plan::{AttentionRanges, Plan};
use crate::calibrate::{EngineError, OutputComparison};
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::recognise::{Attention, LinearId};
use crate::review::{AttentionCost, EmbeddingsReport, FloatCheck, KeptFloat};

pub(crate) use held_out::HeldOut;

/// A plan, its model, and how that does.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub plan: Plan,
    pub model: FlatModel,
    /// The outputs against those of the original.
    pub outputs: Vec<OutputComparison>,
    /// What strategies found out on the way here.
    pub account: Account,
}

/// What strategies found out, besides the plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    /// What leaving Linears in float bought, if that was asked for.
    pub kept_float: Option<KeptFloat>,
    /// What rotations made of the outputs, if there are any.
    pub rotations: Option<Gain>,
    /// What embedding tables in 8 bits save and cost, if there are any.
    pub embeddings: Option<EmbeddingsReport>,
    /// What int8 attention costs, if any is in int8.
    pub attention_cost: Option<AttentionCost>,
    /// The outputs, by name, that int8 attention has taken below plain min-max quantization, which has attention in float.
    pub below_by_attention: BTreeSet<String>,
}

/// The mean SQNR of the outputs without something and with it, in dB, each output at most 60.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gain {
    pub sqnr_before_db: f64,
    pub sqnr_after_db: f64,
}

/// What one Linear adds to the error of the outputs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sensitivity {
    pub linear: LinearId,
    /// The name of its MatMul or Gemm.
    pub name: String,
    /// Error energy at the outputs over the energy of the outputs, with this Linear alone quantized.
    pub error: f64,
    /// Multiplications per run.
    pub work: f64,
}

/// Who knows how plans do.
pub(crate) trait Judge {
    /// The models of plans, and their outputs on the rows that judge.
    ///
    /// # Errors
    /// What making and running models refuses; an output that is not finite where that of the original is.
    fn measure(&mut self, plans: Vec<Plan>) -> Result<Vec<Measured>, Error>;

    /// Whether the caller has a metric that the result must reach.
    fn asks_metric(&self) -> bool {
        false
    }

    /// Whether the caller's metric says that a model is good enough; true if there is none that must be reached.
    ///
    /// # Errors
    /// [`Error::Metric`].
    fn metric_allows(&mut self, _measured: &Measured) -> Result<bool, Error> {
        Ok(true)
    }

    /// That a model which is not good enough is the best there is, with so many of all Linears in float.
    ///
    /// # Errors
    /// Always: [`Error::MinMetric`], or what keeps it from being told.
    fn metric_refuses(&mut self, _measured: &Measured, _kept: usize) -> Result<(), Error> {
        Ok(())
    }

    /// The model of a plan whose outputs are known.
    ///
    /// # Errors
    /// What making models refuses.
    fn build(&mut self, plan: Plan) -> Result<Candidate, Error>;

    /// A plan that differs from `base` in the attention alone.
    ///
    /// # Errors
    /// Those of [`Judge::measure`].
    fn measure_attention(&mut self, base: &Measured, plan: Plan) -> Result<Measured, Error>;

    /// How many rows judge.
    fn rows(&self) -> usize;

    /// Judges by all held-out rows from here on; false if it did already. What was measured before must be
    /// [measured again](Judge::measure_again).
    fn ask_all_rows(&mut self) -> bool;

    /// Runs models again, on the rows that judge now.
    ///
    /// # Errors
    /// Those of [`Judge::measure`].
    fn measure_again(&mut self, measured: &mut [&mut Measured]) -> Result<(), Error>;

    /// The float model of a plan against the original; `None` if the graph is the original's.
    ///
    /// # Errors
    /// [`Error::FloatCheck`] and [`Error::Rounding`] if they are not the same; what making and running models refuses.
    fn float_check(&mut self, plan: &Plan) -> Result<Option<FloatCheck>, Error>;

    /// What each Linear adds to the error, on a few calibration rows.
    ///
    /// # Errors
    /// Those of [`Judge::measure`].
    fn sensitivity(&mut self, plan: &Plan) -> Result<Vec<Sensitivity>, Error>;

    /// The plan with weights that are rounded for what the quantized Linears before them give, one site after the other on
    /// calibration rows; `None` if none is better so.
    ///
    /// # Errors
    /// What making models refuses.
    fn sequential(&mut self, _plan: &Plan) -> Result<Option<Plan>, Error> {
        Ok(None)
    }

    /// The ranges of the attentions of a model on the calibration rows, or why one has none.
    ///
    /// # Errors
    /// What the engine refuses.
    fn attention_ranges(
        &mut self,
        measured: &Measured,
        attentions: &[Attention],
    ) -> Result<Vec<Result<AttentionRanges, String>>, EngineError>;

    /// Plain min-max quantization of the same Linears, measured; `None` before it was, and where nothing is quantized.
    fn plain(&self) -> Option<&Measured>;

    /// Remembers what [`Judge::plain`] gives.
    fn set_plain(&mut self, plain: Measured);
}

/// One plan, measured.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn measure(judge: &mut dyn Judge, plan: Plan) -> Result<Measured, Error> {
    let mut measured = judge.measure(vec![plan])?;
    Ok(measured.remove(0))
}
