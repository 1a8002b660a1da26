//! Two models on the same data: how far one is from the other, at the outputs and Linear by Linear.
//!
//! ```text
//! rows ─▶ both models ─▶ outputs ─▶ SQNR, cosine, largest error, top-1 agreement                 (all rows)
//! few rows ─▶ both models ─▶ output of every Linear ─▶ accumulated error
//!          └▶ float model ─▶ quantized Linear alone ─▶ fed error: the Linear's own               (about 512 tokens)
//! ```
//!
//! Any two models will do if the second takes the inputs of the first and gives its outputs: Q/DQ, QOperator, dynamic
//! quantization, of this tool or another. Linears are matched by the name of their output, of their product, or of
//! their node. Where names were kept but values migrated, the numbers tell ([`alike`]).
//!
//! ```text
//! SQNR = 10 log₁₀( Σ r² / Σ (r − o)² )  dB        r: float model, o: other model, over real tokens (no padding)
//! ```

mod alike;
mod cut;
mod layers;
mod mixed;
mod prepare;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::MetricReport;
use super::json::number;
use super::quantized::QuantizedLinear;
use crate::calibrate::{
    Batch, CalibError, Engine, EngineError, OutputComparison, compare, model_inputs, type_name,
    with_threads,
};
use crate::graph::{self, GraphError};
use crate::onnx::Model;
use crate::progress::Progress;
use crate::review::sure::too_few;

/// The version of the JSON form of [`Verification`]. It grows when a key changes its meaning or goes.
pub const VERIFICATION_SCHEMA: u32 = 1;

/// Tokens, about, on which Linears are compared.
pub const LAYER_TOKENS: usize = 512;

/// How models are compared.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Parallel batches; 0 for one per core.
    pub threads: usize,
    /// Whether the outputs are compared.
    pub outputs: bool,
    /// Whether the Linears are compared.
    pub layers: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions {
            threads: 0,
            outputs: true,
            layers: true,
        }
    }
}

/// The data on which models are compared.
#[derive(Clone, Copy, Debug)]
pub struct VerifyRows<'a> {
    /// For the outputs.
    pub all: &'a [Batch],
    /// For the Linears ([`Dataset::few`](crate::calibrate::Dataset::few)); `None` leaves them out.
    pub few: Option<&'a Batch>,
}

/// How one model differs from another. Field names are the keys of the JSON form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Verification {
    /// [`VERIFICATION_SCHEMA`].
    pub schema: u32,
    /// Rows on which the outputs were compared.
    pub rows: usize,
    /// Every float output, in the order of the float model.
    pub outputs: Vec<OutputError>,
    /// Every integer or boolean output, in the order of the float model.
    pub agreements: Vec<AgreementError>,
    /// Outputs of other types, which were not compared.
    pub other_outputs: Vec<String>,
    /// What a metric of labelled rows says of both models; `None` if there are no labels.
    pub metric: Option<MetricReport>,
    /// Rows on which the Linears were compared.
    pub layer_rows: usize,
    /// Every Linear of the float model, in graph order.
    pub layers: Vec<LayerError>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

/// One output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct OutputError {
    /// Its name.
    pub name: String,
    /// `None` if there is no difference at all.
    pub sqnr_db: Option<f64>,
    /// The mean over the tokens of their own SQNR in dB, each within ± 60: what becomes of most tokens, where `sqnr_db` is what
    /// becomes of the largest. `None` of an output that has no vectors of 8 elements or more on its last of several axes.
    pub token_sqnr_db: Option<f64>,
    /// SQNR in dB of `ln p − mean ln p`, p the probabilities of a token: of what stood before the Softmax. `None` of every other
    /// output, and without any difference.
    pub log_sqnr_db: Option<f64>,
    /// Cosine of the angle between the outputs of both models as vectors.
    #[serde(deserialize_with = "number")]
    pub cosine: f64,
    /// Largest difference of two elements.
    #[serde(deserialize_with = "number")]
    pub max_abs_error: f64,
    /// The same relative to the range of the float model's output.
    #[serde(deserialize_with = "number")]
    pub max_relative_error: f64,
    /// Smallest and largest element in the float model.
    #[serde(deserialize_with = "number")]
    pub range: (f64, f64),
    /// Of the vectors along the last axis, the part whose largest element is at the same place in both models: top-1
    /// agreement where the output is logits. `None` if there is no such axis of two or more elements.
    pub top1_agreement: Option<f64>,
    /// Elements compared; 0 if the models fill in all of them, so that no figure says anything.
    pub elements: u64,
    /// Elements that both models fill in with a constant; they are in none of the figures.
    pub filled: u64,
    /// Why the figures are no verdict: they are of too few numbers or rows.
    pub caution: Option<String>,
}

/// One integer or boolean output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AgreementError {
    /// Its name.
    pub name: String,
    /// Elements compared.
    pub elements: u64,
    /// Those that are the same in both models.
    pub agreeing: u64,
    /// Why this is no verdict: it is of too few numbers or rows.
    pub caution: Option<String>,
}

/// Signal and error of one Linear. Its JSON form has `sqnr_db` beside the two, which is `null` without error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Energy {
    /// Σ r²
    #[serde(deserialize_with = "number")]
    pub signal: f64,
    /// Σ (r − o)²
    #[serde(deserialize_with = "number")]
    pub error: f64,
}

impl Energy {
    /// SQNR in dB; infinite without error.
    pub fn sqnr_db(&self) -> f64 {
        match self.error {
            0.0 => f64::INFINITY,
            error => 10.0 * (self.signal / error).log10(),
        }
    }
}

impl Serialize for Energy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let db = Some(self.sqnr_db()).filter(|db| db.is_finite());
        let mut fields = serializer.serialize_struct("Energy", 3)?;
        fields.serialize_field("signal", &self.signal)?;
        fields.serialize_field("error", &self.error)?;
        fields.serialize_field("sqnr_db", &db)?;
        fields.end()
    }
}

/// One Linear of the float model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LayerError {
    /// The name of its MatMul or Gemm.
    pub name: String,
    /// Its output in the float model; `None` if the other model has no counterpart.
    pub value: Option<String>,
    /// Input channels.
    pub k: usize,
    /// Output channels.
    pub n: usize,
    /// How the other model stores and multiplies it; `None` if in float, or not found.
    pub quantized: Option<QuantizedLinear>,
    /// Its own error: its form in the other model, on values of the float model.
    pub fed: Option<Energy>,
    /// The error of its output in the other model.
    pub accumulated: Option<Energy>,
    /// Whether the other model holds the output under a shift and scale per channel, which was taken off.
    pub migrated: bool,
    /// Why a figure is missing.
    pub reason: Option<String>,
}

/// Why models cannot be compared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// One of them is no valid graph.
    #[error("the {which} model is not valid: {source}")]
    Graph {
        /// float or quantized.
        which: &'static str,
        /// What is wrong with it.
        source: GraphError,
    },
    /// They take other inputs.
    #[error(
        "the quantized model takes input {input}, and the float model takes {known}: \
         both must be the same model to be compared"
    )]
    Inputs {
        /// The input, with its type.
        input: String,
        /// What the float model has.
        known: String,
    },
    /// They give other outputs.
    #[error(
        "the float model gives output `{output}`, and the quantized model only {known}: \
         both must be the same model to be compared"
    )]
    Outputs {
        /// The output that is missing.
        output: String,
        /// What the quantized model gives.
        known: String,
    },
    /// There is nothing to compare.
    #[error(
        "no output of the models is float, integer or boolean, so there is no error to measure"
    )]
    NoFloatOutput,
    /// A model states inputs that cannot be fed.
    #[error(transparent)]
    Data(#[from] CalibError),
    /// A model cannot be run, or the outputs cannot be compared.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Compares `quantized` with `float` on `rows`.
///
/// ```
/// use onnx_osplus::calibrate::{Dataset, TractEngine};
/// use onnx_osplus::onnx;
/// use onnx_osplus::progress::NoProgress;
/// use onnx_osplus::review::{VerifyOptions, VerifyRows, verify};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let float = onnx::load("models/tiny/model.onnx")?;
/// // In place of the work of a quantizer: the same model.
/// let other = float.clone();
/// let data = Dataset::synthetic(&float)?;
/// let (all, few) = (data.all(), data.few(512));
/// let rows = VerifyRows { all: &all, few: few.as_ref() };
/// let options = VerifyOptions::default();
/// let found = verify(&float, &other, &rows, &TractEngine, &options, &NoProgress)?;
/// assert!(found.below(100.0).is_empty());
/// assert_eq!(found.outputs[0].sqnr_db, None, "no difference at all");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Inputs or outputs of the float model that the other does not have; whatever the engine refuses. That Linears cannot
/// be compared is no error: each says why.
pub fn verify(
    float: &Model,
    quantized: &Model,
    rows: &VerifyRows,
    engine: &dyn Engine,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<Verification, VerifyError> {
    with_threads(options.threads, || {
        verify_here(float, quantized, rows, engine, options, progress)
    })?
}

/// [`verify`] with the threads it is called in.
fn verify_here(
    float: &Model,
    quantized: &Model,
    rows: &VerifyRows,
    engine: &dyn Engine,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<Verification, VerifyError> {
    for (which, model) in [("float", float), ("quantized", quantized)] {
        graph::check(model).map_err(|source| VerifyError::Graph { which, source })?;
    }
    check_inputs(float, quantized)?;
    check_outputs(float, quantized)?;
    let engine = engine.sharing();
    let engine = engine.as_ref();
    let count = |batches: &[Batch]| batches.iter().map(|b| b.rows.len()).sum();
    let mut verification = Verification {
        schema: VERIFICATION_SCHEMA,
        ..Verification::default()
    };
    if options.outputs {
        let compared = compare(
            engine,
            float,
            &[quantized],
            rows.all,
            options.threads,
            progress,
        )?;
        let (integers, floats): (Vec<_>, Vec<_>) = compared
            .into_iter()
            .flatten()
            .partition(|o| o.agreement.is_some());
        let outputs: Vec<OutputError> = floats.iter().map(output).collect();
        let agreements: Vec<AgreementError> = integers.iter().map(agreement).collect();
        let known = |name: &str| {
            outputs.iter().any(|o| o.name == name) || agreements.iter().any(|a| a.name == name)
        };
        let names = float.graph().output.iter().map(|o| o.name().to_owned());
        verification.other_outputs = names.filter(|n| !known(n)).collect();
        verification.rows = count(rows.all);
        if outputs.is_empty() && agreements.is_empty() {
            return Err(VerifyError::NoFloatOutput);
        }
        verification.outputs = outputs;
        verification.agreements = agreements;
    }
    verification.notes.extend(graph::random_note(float.graph()));
    if let Some(few) = rows.few.filter(|_| options.layers) {
        let (float, quantized) = (prepare::taken_apart(float), prepare::opened(quantized));
        verification.layer_rows = few.rows.len();
        match layers::layers(engine, (&float, &quantized), few, progress) {
            Ok(layers) => verification.layers = layers,
            // The outputs are what was asked for in the first place.
            Err(error) if options.outputs => {
                let note = format!("the Linears could not be compared: {error}");
                verification.notes.push(note);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(verification)
}

impl Verification {
    /// The outputs whose SQNR is below `limit` dB, worst first.
    pub fn below(&self, limit: f64) -> Vec<&OutputError> {
        let db = |o: &OutputError| o.sqnr_db.unwrap_or(f64::INFINITY);
        // What is no number is not above the limit either, nor what was not compared.
        let fails = |o: &&OutputError| db(o).is_nan() || db(o) < limit || o.elements == 0;
        let mut below: Vec<&OutputError> = self.outputs.iter().filter(fails).collect();
        below.sort_by(|a, b| db(a).total_cmp(&db(b)));
        below
    }

    /// The Linears in the order of their own error, largest part of the signal first; then those of which it is not known,
    /// by the accumulated error.
    pub fn worst_layers(&self) -> Vec<&LayerError> {
        let db = |e: &Option<Energy>| e.map_or(f64::INFINITY, |e| e.sqnr_db());
        let mut layers: Vec<&LayerError> = self.layers.iter().collect();
        layers.sort_by(|a, b| {
            let fed = db(&a.fed).total_cmp(&db(&b.fed));
            fed.then(db(&a.accumulated).total_cmp(&db(&b.accumulated)))
        });
        layers
    }
}

fn output(compared: &OutputComparison) -> OutputError {
    let (vectors, agreeing) = compared.top1;
    OutputError {
        name: compared.name.clone(),
        sqnr_db: (compared.max_abs_error != 0.0).then_some(compared.sqnr_db),
        token_sqnr_db: compared.token_sqnr_db,
        log_sqnr_db: compared
            .logarithms
            .as_ref()
            .map(|l| l.sqnr_db)
            .filter(|db| db.is_finite()),
        cosine: compared.cosine,
        max_abs_error: compared.max_abs_error,
        max_relative_error: compared.max_relative_error,
        range: compared.range,
        top1_agreement: (vectors > 0).then(|| agreeing as f64 / vectors as f64),
        elements: compared.elements,
        filled: compared.filled,
        caution: too_few(compared),
    }
}

fn agreement(compared: &OutputComparison) -> AgreementError {
    let (elements, agreeing) = compared.agreement.unwrap_or_default();
    AgreementError {
        name: compared.name.clone(),
        elements,
        agreeing,
        caution: too_few(compared),
    }
}

/// Every input of the quantized model must be one of the float model, of its type. One that it no longer needs may be
/// missing.
fn check_inputs(float: &Model, quantized: &Model) -> Result<(), VerifyError> {
    let known = model_inputs(float)?;
    for input in model_inputs(quantized)? {
        let same = |k: &&_| {
            let k: &crate::calibrate::ModelInput = k;
            k.name == input.name && k.dtype == input.dtype
        };
        if !known.iter().any(|k| same(&k)) {
            let known = known
                .iter()
                .map(|k| format!("{} ({})", k.name, type_name(k.dtype)));
            return Err(VerifyError::Inputs {
                input: format!("{} ({})", input.name, type_name(input.dtype)),
                known: known.collect::<Vec<_>>().join(", "),
            });
        }
    }
    Ok(())
}

fn check_outputs(float: &Model, quantized: &Model) -> Result<(), VerifyError> {
    let given: Vec<&str> = quantized.graph().output.iter().map(|o| o.name()).collect();
    let mut wanted = float.graph().output.iter().map(|o| o.name());
    match wanted.find(|name| !given.contains(name)) {
        None => Ok(()),
        Some(output) => Err(VerifyError::Outputs {
            output: output.to_owned(),
            known: given.join(", "),
        }),
    }
}
