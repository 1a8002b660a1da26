//! What [`anatomy`](super::anatomy) tells, as it is serialized.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::review::json::number;
use crate::review::quantized::QuantizedLinear;
use crate::review::{Energy, NearMissReport, WorkReport};

/// The version of the JSON form of [`Anatomy`]. It grows when a key changes its meaning or goes.
pub const ANATOMY_SCHEMA: u32 = 1;

/// What this tool writes about its work into `metadata_props` begins with this.
pub const PROVENANCE: &str = "onnx_osplus.";

/// Everything that is seen in a model. Field names are the keys of the JSON form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Anatomy {
    /// [`ANATOMY_SCHEMA`].
    pub schema: u32,
    /// The file.
    pub model: ModelFacts,
    /// Entries of `metadata_props` that begin with [`PROVENANCE`].
    pub provenance: BTreeMap<String, String>,
    /// The architecture, as far as it shows.
    pub architecture: Architecture,
    /// What is quantized already.
    pub quantized: Quantized,
    /// Every float Linear, in graph order.
    pub linears: Vec<LinearFacts>,
    /// Every value that float Linears read, in graph order.
    pub sites: Vec<SiteFacts>,
    /// Rotations before Linears that are written in the model, in graph order.
    pub rotations: Vec<RotationFacts>,
    /// Who does the multiplications if every float Linear is quantized; `None` if the shapes are not known.
    pub work: Option<WorkReport>,
    /// What almost matched, and why it did not.
    pub near_misses: Vec<NearMissReport>,
    /// Rows that the outlier tables are from; 0 without data.
    pub rows: usize,
    /// The bits for which the damage is computed, activation and weight.
    pub bits: (u8, u8),
    /// What else a reader should know.
    pub notes: Vec<String>,
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ModelFacts {
    /// The version of the file format.
    pub ir_version: i64,
    /// Domain and version.
    pub opsets: Vec<(String, i64)>,
    /// The name and version of the exporter.
    pub producer: String,
    /// As "input_ids: int64 [batch, sequence]".
    pub inputs: Vec<String>,
    /// The outputs, in the same form.
    pub outputs: Vec<String>,
    /// Nodes of the main graph.
    pub nodes: usize,
    /// Model-local functions.
    pub functions: usize,
    /// Operators of the main graph, the most frequent first.
    pub operators: Vec<(String, usize)>,
    /// Elements of all initializers of the main graph.
    pub parameters: u64,
    /// Their bytes by type, the largest first.
    pub weight_bytes: Vec<(String, u64)>,
}

/// The architecture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Architecture {
    /// Norms by their kind.
    pub norms: BTreeMap<String, usize>,
    /// Operators or Softmaxes that are an attention.
    pub attentions: usize,
    /// Channels of most norms.
    pub hidden: Option<usize>,
    /// Heads of most attentions.
    pub heads: Option<usize>,
    /// Numbered parts of the names of Linears, such as "encoder/layer", and how many numbers and Linears there are.
    pub blocks: Vec<BlockFacts>,
}

/// Repeated blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct BlockFacts {
    /// What stands before the number, such as "encoder/layer".
    pub name: String,
    /// How many numbers follow the name.
    pub count: usize,
    /// The Linears in all of them.
    pub linears: usize,
}

/// What is quantized already.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Quantized {
    /// QuantizeLinear nodes.
    pub quantize_linear: usize,
    /// DequantizeLinear nodes.
    pub dequantize_linear: usize,
    /// DynamicQuantizeLinear nodes.
    pub dynamic_quantize_linear: usize,
    /// Every Linear with a stored integer weight, in graph order.
    pub linears: Vec<QuantizedLinear>,
    /// Embedding tables whose rows are gathered as integers, by the names of these.
    pub embeddings: Vec<String>,
}

/// One float Linear.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LinearFacts {
    /// The name of its MatMul or Gemm.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// Input channels.
    pub k: usize,
    /// Output channels.
    pub n: usize,
    /// Whether it has a constant bias.
    pub bias: bool,
    /// The type of the weight in the file.
    pub dtype: String,
}

/// A rotation that is written in the model: Reshape, one MatMul or two, Reshape; see [`crate::recognise::rotation_part`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RotationFacts {
    /// The name of its first product.
    pub name: String,
    /// A and B of A · B channels.
    pub factors: (usize, usize),
    /// Whether it mixes the channels of blocks of B alone.
    pub blocks: bool,
}

/// One value that Linears read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SiteFacts {
    /// Its name.
    pub value: String,
    /// What can take shift and scale: the operator of a norm, "commuted" (constants further back), "explicit" (a Mul must
    /// be inserted), "plain" (nothing).
    pub kind: String,
    /// The nodes that take them.
    pub sink: Option<String>,
    /// Why no constant can be reached.
    pub reason: Option<String>,
    /// Whether a shift is possible too.
    pub shift: bool,
    /// Whether other nodes read it, which then need the exact inverse.
    pub restore: bool,
    /// The Linears that read it.
    pub linears: Vec<String>,
    /// How its channels differ; `None` without data.
    pub outliers: Option<Outliers>,
    /// What plain min-max quantization does to the outputs of its Linears; `None` without data.
    pub damage: Option<Energy>,
}

/// How the channels of a value differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Outliers {
    /// Smallest and largest element.
    #[serde(deserialize_with = "number")]
    pub range: (f32, f32),
    /// The largest magnitude of a channel.
    #[serde(deserialize_with = "number")]
    pub largest: f32,
    /// The median of the channels' largest magnitudes.
    #[serde(deserialize_with = "number")]
    pub median: f32,
    /// `largest / median`; `None` if the median is 0.
    pub ratio: Option<f32>,
    /// Of the largest channel; see the module.
    #[serde(deserialize_with = "number")]
    pub asymmetry: f32,
    /// The three largest channels.
    pub channels: Vec<ChannelFacts>,
    /// The median of the tokens' largest magnitudes, over a sample of the tokens.
    #[serde(deserialize_with = "number")]
    pub median_token: f32,
    /// The largest magnitude of a token over `median_token`; `None` if that is 0.
    pub token_ratio: Option<f32>,
    /// The three largest tokens.
    pub tokens: Vec<TokenFacts>,
}

/// One token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TokenFacts {
    /// The number of its row over all data.
    pub row: u64,
    /// Its place in the sequence, padding included; `None` where the value's shape does not tell.
    pub position: Option<usize>,
    /// What the input of token ids holds there; `None` where there is no such input of that length.
    pub id: Option<i64>,
    /// The channel of its largest element.
    pub channel: usize,
    /// That element.
    #[serde(deserialize_with = "number")]
    pub value: f32,
    /// Its magnitude over that of the median token; `None` if that is 0.
    pub ratio: Option<f32>,
}

/// One channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChannelFacts {
    /// Its number.
    pub channel: usize,
    /// Its smallest element.
    #[serde(deserialize_with = "number")]
    pub min: f32,
    /// Its largest element.
    #[serde(deserialize_with = "number")]
    pub max: f32,
}
