//! What was asked for, as reports tell it.

use serde::{Deserialize, Serialize};

use super::json::number;
use crate::options::{KeepFloat, Options};
use crate::rewrite::WeightStorage;
use crate::solve::{Method, WeightGranularity};

/// What was asked for, and what the data and the model made of it. Field names are keys of the JSON report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Settings {
    /// The runtime: "ort", "tensorrt", "openvino" or "portable".
    pub target: String,
    /// What was written: "qdq", "qoperator", "matmulnbits" or "float".
    pub format: String,
    /// How shift and scale were found: "osplus", "smoothquant" or "none".
    pub method: String,
    /// Bits of the weights, 2 to 8.
    pub weight_bits: u8,
    /// One scale per output channel, "per-channel", per weight, "per-tensor", or per group of input channels, "group:32".
    pub weight_granularity: String,
    /// Whether groups of weights have zero points: "symmetric", "asymmetric", or "auto", where that pays.
    pub weight_symmetry: String,
    /// Percent by which all weights could grow for those that get 8 bits because they need them.
    #[serde(deserialize_with = "number")]
    pub max_raised: f64,
    /// Whether weights of 8 bits use 7 of them.
    pub reduce_range: bool,
    /// Whether weights are stored as float before a QuantizeLinear and a DequantizeLinear.
    pub weights_as_float_qdq: bool,
    /// Bits of the activations, 2 to 8.
    pub activation_bits: u8,
    /// What shares a scale of the activations: "per-tensor", "per-token" or "per-group"; or "float".
    pub activation_granularity: String,
    /// int8 activations with zero point 0, or uint8 ones with any.
    pub activation_symmetric: bool,
    /// The products of attention: "auto", "float" or "int8".
    pub attention: String,
    /// Embedding tables: "float", "int8" or "int4".
    pub embeddings: String,
    /// The regular expression for the names of Linears that are quantized.
    pub include: Option<String>,
    /// The regular expression for the names of Linears that are left in float.
    pub exclude: Option<String>,
    /// How much could be left in float: a number of Linears, or a part of the multiplications such as "20%".
    pub keep_float: Option<String>,
    /// The SQNR that every output had to have, in dB.
    pub min_sqnr_db: Option<f64>,
    /// Seed of the choice of calibration tokens.
    pub seed: u64,
    /// Whether a Mul could be inserted where no constant can take a scale.
    pub extra_nodes: bool,
    /// Percent of the run time that rotations could cost.
    #[serde(deserialize_with = "number")]
    pub max_slowdown: f64,
    /// Whether what exporters leave behind was removed first.
    pub clean: bool,
    /// Whether sizes that the file fixes were stored where that saves work in every run.
    pub fold_sizes: bool,
    /// Tokens per Linear input and half of the data that the search saw.
    pub sample_tokens: usize,
    /// Rows that set ranges.
    pub calibration_rows: usize,
    /// Rows that judged the result; 0 if there were too few to hold any out.
    pub held_out_rows: usize,
    /// The operator set of the written model.
    pub opset: i64,
    /// That of the original; `None` if it is the same.
    pub opset_raised_from: Option<i64>,
}

/// What a run is asked for; what it finds out, the rows and operator sets, is left empty.
impl From<&Options> for Settings {
    fn from(options: &Options) -> Settings {
        Settings {
            target: options.profile().name.to_owned(),
            format: options.format.name().to_owned(),
            method: match options.method {
                Method::OsPlus => "osplus",
                Method::SmoothQuant { .. } => "smoothquant",
                Method::None => "none",
            }
            .to_owned(),
            weight_bits: options.weight_bits,
            weight_granularity: match options.weight_granularity {
                WeightGranularity::PerChannel => "per-channel".to_owned(),
                WeightGranularity::PerTensor => "per-tensor".to_owned(),
                WeightGranularity::Group(size) => format!("group:{size}"),
            },
            weight_symmetry: options.zero_points().name().to_owned(),
            max_raised: options.max_raised,
            reduce_range: options.reduce_range,
            weights_as_float_qdq: options.weight_storage == WeightStorage::FloatQdq,
            activation_bits: options.activation_bits,
            activation_granularity: options.activations().name().to_owned(),
            activation_symmetric: options.activation().symmetric,
            attention: options.attention.name().to_owned(),
            embeddings: options.embeddings.name().to_owned(),
            include: options.include.as_ref().map(|r| r.as_str().to_owned()),
            exclude: options.exclude.as_ref().map(|r| r.as_str().to_owned()),
            keep_float: options.keep_float.map(|keep| match keep {
                KeepFloat::Linears(n) => n.to_string(),
                KeepFloat::Work(part) => format!("{}%", part * 100.0),
            }),
            min_sqnr_db: options.min_sqnr_db,
            seed: options.seed,
            extra_nodes: options.extra_nodes,
            max_slowdown: options.slowdown(),
            clean: options.clean,
            fold_sizes: options.fold_sizes,
            sample_tokens: options.sample_tokens,
            ..Settings::default()
        }
    }
}
