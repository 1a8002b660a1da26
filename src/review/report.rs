//! The account of a run: as JSON it is whole, summaries and pages are made from it.
//!
//! [`Report`] reads back what it writes, with serde. Keys that it does not know are passed over and those that are missing
//! have their default, so that a report of a newer or an older release can be read too as long as [`REPORT_SCHEMA`] is the
//! same. An infinite number, `null` in JSON, comes back as NaN or `None`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json::number;
use super::{
    EmbeddingsReport, LayerError, MetricReport, RotationReport, RotationsReport, Settings,
    WorkReport,
};
use crate::target::lint::Finding;

/// The version of the JSON form of a [`Report`]. It grows when a key changes its meaning or goes; new keys may come at any
/// time.
pub const REPORT_SCHEMA: u32 = 1;

/// Everything a run did. Field names are the keys of the JSON report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// The tool's version.
    pub version: String,
    /// What was asked for.
    pub settings: Settings,
    /// Calls of model-local functions that were replaced by what the functions do.
    pub inlined: Vec<InlinedReport>,
    /// Every Linear, in graph order.
    pub linears: Vec<LinearReport>,
    /// Every value that Linears read, in graph order.
    pub sites: Vec<SiteReport>,
    /// Every attention, in graph order: whether its two products are in int8, and why not.
    pub attention: Vec<AttentionReport>,
    /// What int8 attention costs; `None` if none is in int8.
    pub attention_cost: Option<AttentionCost>,
    /// What almost matched, and why it did not.
    pub near_misses: Vec<NearMissReport>,
    /// The migrated float model against the original; `None` if that was not run, because nothing was changed.
    pub float_check: Option<FloatCheck>,
    /// The written model against the original, per float output.
    pub outputs: BTreeMap<String, OutputReport>,
    /// The written model against the original, per integer or boolean output.
    pub agreements: BTreeMap<String, AgreementReport>,
    /// Outputs that end clearly below plain min-max quantization, although no better plan was found.
    pub below_plain: Vec<BelowPlain>,
    /// What part of the multiplications is in integers, and what speed that allows at most; `None` if the shapes are not known.
    pub work: Option<WorkReport>,
    /// On which tokens `outputs` was measured.
    pub verified_on: String,
    /// What was written, and why.
    pub decision: Decision,
    /// Sites that plain min-max was written for after validation, although the search had decided otherwise.
    pub dropped_sites: usize,
    /// What rotations before Linears bought; `None` if there are none.
    pub rotations: Option<RotationsReport>,
    /// Embedding tables in 8 bits; `None` if there are none.
    pub embeddings: Option<EmbeddingsReport>,
    /// What the caller's metric says of the float and of the written model; `None` if there is none.
    pub metric: Option<MetricReport>,
    /// What was left in float to make the outputs better; `None` unless that was asked for.
    pub kept_float: Option<KeptFloat>,
    /// Model inputs that the calibration data did not give: name and what they were filled with.
    pub filled_inputs: BTreeMap<String, String>,
    /// The error of every Linear of the written model; empty if it was not asked for.
    pub layers: Vec<LayerError>,
    /// The command that was given, if there was one.
    pub command: Option<String>,
    /// The file of settings that was read, if there was one.
    pub config: Option<String>,
    /// Every option of the command line with its values: given, from the file of settings, or by default. Empty if the run
    /// was asked for otherwise.
    pub arguments: BTreeMap<String, Vec<String>>,
    /// The files that were read and written, if there were any.
    pub files: Option<Files>,
    /// SHA-256 of what went in and what came out, by what it is: as in the metadata of the written model.
    pub digests: BTreeMap<String, String>,
    /// What was removed because [`Options::clean`](crate::Options::clean) asked for it, each with the reason.
    pub cleaned: Vec<String>,
    /// The sizes that were stored because of [`Options::fold_sizes`](crate::Options::fold_sizes), each with the reason.
    pub stored_sizes: Vec<String>,
    /// What the target would make of the written file.
    pub lint: Vec<Finding>,
    /// What else a reader should know.
    pub notes: Vec<String>,
    /// Wall-clock seconds per step.
    pub seconds: BTreeMap<String, f64>,
    /// The largest resident memory of the process so far, in MB (10⁶ bytes); `None` where the system does not say.
    pub peak_memory_mb: Option<f64>,
}

/// The files of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Files {
    /// The model that was read.
    pub input: String,
    /// The model that was written.
    pub output: String,
    /// Bytes of `input`, external data included.
    pub input_bytes: u64,
    /// Bytes of `output`, external data included.
    pub output_bytes: u64,
}

/// One call of a model-local function that was replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct InlinedReport {
    /// The call's node name.
    pub node: String,
    /// `domain.name` of the function.
    pub function: String,
}

/// One Linear.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LinearReport {
    /// The name of its MatMul or Gemm.
    pub name: String,
    /// Input channels.
    pub k: usize,
    /// Output channels.
    pub n: usize,
    /// "quantized" or "skipped".
    pub status: String,
    /// Why it was skipped.
    pub reason: Option<String>,
    /// Bits of its weight, if it is quantized.
    pub weight_bits: Option<u8>,
}

/// One value that Linears read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SiteReport {
    /// The value's name in the original model.
    pub value: String,
    /// The operator that takes the affine ("LayerNormalization", "RMSNormalization"), or "plain" if none can.
    pub kind: String,
    /// The Linears that read it.
    pub linears: Vec<String>,
    /// The norm whose constants took shift and scale; `None` if nothing was folded.
    pub sink: Option<String>,
    /// Why nothing was folded, or why the decision was dropped.
    pub reason: Option<String>,
    /// `z: [C]`.
    #[serde(deserialize_with = "number")]
    pub shift: Option<Vec<f32>>,
    /// `s: [C]`.
    #[serde(deserialize_with = "number")]
    pub scale: Option<Vec<f32>>,
    /// R, behind shift and scale; `None` without rotation.
    pub rotation: Option<RotationReport>,
    /// Smallest and largest calibration value before.
    #[serde(deserialize_with = "number")]
    pub range_before: (f32, f32),
    /// Where every token has a scale: how many integers are below the one that stands for 0, if clearly fewer than half of them are
    /// better for what is in it; `None` if half are.
    pub levels_below: Option<i32>,
    /// And after shift, scale and rotation, before the margin.
    #[serde(deserialize_with = "number")]
    pub range_after: (f32, f32),
    /// The factor by which the quantized range differs from `range_after`.
    #[serde(deserialize_with = "number")]
    pub range_margin: f32,
    /// Smallest and largest calibration value of every channel before and after shift and scale; of every
    /// `channels_per_line` channels, so that there are not more than [`CHANNEL_LINES`].
    pub channels: Vec<ChannelRange>,
    /// See `channels`.
    pub channels_per_line: usize,
    /// The threshold t that was chosen, in units of the value after the shift; `None` without scale.
    pub threshold: Option<f32>,
    /// The estimated loss over the thresholds that were tried.
    pub curve: Vec<CurveReport>,
    /// Where the loss was measured: "attention output", "gated FFN" (the input of its down projection) or "linear outputs".
    pub loss: String,
    /// Loss of plain min-max over loss of this choice, on calibration tokens that did not set the ranges, in dB.
    #[serde(deserialize_with = "number")]
    pub validated_gain_db: f64,
}

/// Lines of a site's channels in a report, at most.
pub const CHANNEL_LINES: usize = 128;

/// The range of some neighbouring channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChannelRange {
    /// Smallest and largest value of x.
    #[serde(deserialize_with = "number")]
    pub before: (f32, f32),
    /// Smallest and largest value of (x − z) / s.
    #[serde(deserialize_with = "number")]
    pub after: (f32, f32),
}

/// One point of the search for a threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CurveReport {
    /// t
    #[serde(deserialize_with = "number")]
    pub threshold: f32,
    /// The loss that the survey of candidates estimates: comparable along one curve only.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
}

/// One attention.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AttentionReport {
    /// The name of its Softmax, or of the operator that computes it as a whole.
    pub softmax: String,
    /// The names of the MatMuls of Q Kᵀ and P V; none where they were not found.
    pub products: Vec<String>,
    /// "int8" or "float".
    pub status: String,
    /// Why it is in float.
    pub reason: Option<String>,
    /// Smallest and largest calibration value of Q as its product reads it, padding left out; `None` if not measured.
    #[serde(deserialize_with = "number")]
    pub query: Option<(f32, f32)>,
    /// That of Kᵀ.
    #[serde(deserialize_with = "number")]
    pub key: Option<(f32, f32)>,
    /// That of V.
    #[serde(deserialize_with = "number")]
    pub value: Option<(f32, f32)>,
    /// The fixed range of the softmax.
    #[serde(deserialize_with = "number")]
    pub probabilities: Option<(f32, f32)>,
    /// What became of the guard `Where(IsNaN(P), 0, P)`: "kept" or "dropped"; `None` if there is none.
    pub nan_guard: Option<String>,
}

/// The outputs with int8 attention and without, on the data that `outputs` was measured on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AttentionCost {
    /// Mean SQNR of the outputs with every attention in float, in dB, each at most 60.
    #[serde(deserialize_with = "number")]
    pub float_sqnr_db: f64,
    /// That of the written model.
    #[serde(deserialize_with = "number")]
    pub int8_sqnr_db: f64,
}

/// Something that almost matched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NearMissReport {
    /// The node at which it failed.
    pub name: String,
    /// What it might have been.
    pub kind: String,
    /// Why it is not.
    pub reason: String,
}

/// The largest difference allowed between original and migrated float outputs, relative to the output's range.
pub const FLOAT_LIMIT: f64 = 1e-4;

/// How many rounding errors of its type ([`half::f16::EPSILON`] / 2) the outputs of a migrated model may move when its
/// constants are rounded to that type. The model as it was has such errors in every constant and every value.
pub const ROUNDING_LIMIT: f64 = 16.0;

/// How the migrated float model compares with the original, both run in float32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct FloatCheck {
    /// max |difference| / (max − min of the original's output), over all float outputs.
    /// The migrated constants are those that were computed, in float32.
    #[serde(deserialize_with = "number")]
    pub max_relative_error: f64,
    /// What is allowed.
    #[serde(deserialize_with = "number")]
    pub limit: f64,
    /// The same with the migrated constants rounded to float16 or bfloat16, if the file has such.
    pub rounded: Option<RoundedCheck>,
}

/// What rounding the migrated constants to the type of the file does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RoundedCheck {
    /// "FLOAT16" or "BFLOAT16": the coarsest type of a migrated constant.
    pub dtype: String,
    /// As in [`FloatCheck`].
    #[serde(deserialize_with = "number")]
    pub max_relative_error: f64,
    /// [`ROUNDING_LIMIT`] rounding errors of `dtype`, or more where integers follow.
    #[serde(deserialize_with = "number")]
    pub limit: f64,
}

impl Default for FloatCheck {
    fn default() -> Self {
        FloatCheck {
            max_relative_error: 0.0,
            limit: FLOAT_LIMIT,
            rounded: None,
        }
    }
}

/// One float output of the written model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct OutputReport {
    /// 10 log₁₀(Σ r² / Σ (r − o)²) with r the original's output; `None` if there is no difference at all.
    pub sqnr_db: Option<f64>,
    /// Cosine of the angle between the two outputs.
    #[serde(deserialize_with = "number")]
    pub cosine: f64,
    /// `sqnr_db` of plain min-max quantization of the same Linears.
    pub plain_sqnr_db: Option<f64>,
    /// The mean over the tokens of their own SQNR in dB, each within ± 60: what becomes of most tokens, where `sqnr_db` is what
    /// becomes of the largest. `None` of an output that has no vectors of 8 elements or more on its last of several axes.
    pub token_sqnr_db: Option<f64>,
    /// `token_sqnr_db` of plain min-max quantization of the same Linears.
    pub plain_token_sqnr_db: Option<f64>,
    /// SQNR in dB of `ln p − mean ln p`, p the probabilities of a token: of what stood before the Softmax. Probabilities are judged
    /// by it. `None` of every other output, and without any difference.
    pub log_sqnr_db: Option<f64>,
    /// `log_sqnr_db` of plain min-max quantization of the same Linears.
    pub plain_log_sqnr_db: Option<f64>,
    /// Elements that were compared; 0 if the model fills in all of them, so that `sqnr_db` says nothing.
    pub elements: u64,
    /// Elements that both models fill in with a constant (−∞, the smallest float, −10⁴ where a mask says so); they are in none of
    /// the figures.
    pub filled: u64,
    /// Why the figures are no verdict: they are of too few numbers or rows.
    pub caution: Option<String>,
}

/// One integer or boolean output of the written model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct AgreementReport {
    /// Elements that were compared.
    pub elements: u64,
    /// Those that are the same in both models.
    pub agreeing: u64,
    /// Those that plain min-max quantization of the same Linears leaves the same; `None` if it was not measured.
    pub plain_agreeing: Option<u64>,
    /// Why this is no verdict: it is of too few numbers or rows.
    pub caution: Option<String>,
}

/// An output that lost by quantization what plain min-max would not have lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct BelowPlain {
    /// Its name.
    pub output: String,
    /// Whether it is the mean SQNR of its tokens that fell, [`OutputReport::token_sqnr_db`].
    pub per_token: bool,
    /// Whether it is the logarithms of its probabilities that fell, [`OutputReport::log_sqnr_db`].
    pub logarithms: bool,
    /// Its SQNR in the written model, in dB; see [`OutputReport::sqnr_db`].
    #[serde(deserialize_with = "number")]
    pub sqnr_db: f64,
    /// Its SQNR with plain min-max quantization of the same Linears, in dB; `None` if that makes no difference at all.
    pub plain_sqnr_db: Option<f64>,
}

impl BelowPlain {
    /// What the figures are of, to be put behind a number in dB.
    pub fn of_what(&self) -> &'static str {
        match (self.per_token, self.logarithms) {
            (false, false) => "",
            (true, false) => " per token",
            (false, true) => " in the logarithms of its probabilities",
            (true, true) => " per token in the logarithms of its probabilities",
        }
    }
}

/// What leaving Linears in float bought.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct KeptFloat {
    /// The Linears left in float, those that were chosen first first.
    pub linears: Vec<KeptLinear>,
    /// Every quantized Linear's share of the error, largest first, as it was measured before the choice.
    pub sensitivity: Vec<KeptLinear>,
    /// The part, from 0 to 1, of the multiplications of all Linears that is left in float.
    #[serde(deserialize_with = "number")]
    pub work: f64,
    /// The mean SQNR of the outputs on the held-out rows with every Linear quantized, in dB.
    #[serde(deserialize_with = "number")]
    pub sqnr_before_db: f64,
    /// And with these in float.
    #[serde(deserialize_with = "number")]
    pub sqnr_after_db: f64,
}

/// One Linear and what it adds to the error of the outputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct KeptLinear {
    /// The name of its MatMul or Gemm.
    pub name: String,
    /// Its part of the sum of all Linears' errors, each measured with that Linear alone quantized; from 0 to 1.
    #[serde(deserialize_with = "number")]
    pub error: f64,
    /// Its part of the multiplications of all Linears, from 0 to 1.
    #[serde(deserialize_with = "number")]
    pub work: f64,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Decision {
    /// The migrated model.
    #[default]
    Migrated,
    /// The migrated model without what lowered its outputs on the held-out data.
    PartlyMigrated,
    /// Plain min-max quantization: no site could be migrated with a gain.
    NothingToMigrate,
    /// Plain min-max quantization: the migrated model was worse on the held-out data.
    PlainWasBetter,
    /// Plain min-max quantization was asked for.
    PlainAskedFor,
}
