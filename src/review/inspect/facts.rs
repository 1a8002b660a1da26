//! What [`anatomy`](super::anatomy) tells, as it is serialized.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::review::quantized::QuantizedLinear;
use crate::review::{Energy, NearMissReport};

/// The version of the JSON form of [`Anatomy`]. It grows when a key changes its meaning or goes.
pub const ANATOMY_SCHEMA: u32 = 1;

/// What this tool writes about its work into `metadata_props` begins with this.
pub const PROVENANCE: &str = "onnx_osplus.";

/// Everything that is seen in a model. Field names are the keys of the JSON form.
#[derive(Clone, Debug, Default, Serialize)]
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
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct ModelFacts {
    pub ir_version: i64,
    /// Domain and version.
    pub opsets: Vec<(String, i64)>,
    pub producer: String,
    /// As "input_ids: int64 [batch, sequence]".
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub nodes: usize,
    pub functions: usize,
    /// Operators of the main graph, the most frequent first.
    pub operators: Vec<(String, usize)>,
    /// Elements of all initializers of the main graph.
    pub parameters: u64,
    /// Their bytes by type, the largest first.
    pub weight_bytes: Vec<(String, u64)>,
}

/// The architecture.
#[derive(Clone, Debug, Default, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct BlockFacts {
    pub name: String,
    pub count: usize,
    pub linears: usize,
}

/// What is quantized already.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Quantized {
    pub quantize_linear: usize,
    pub dequantize_linear: usize,
    pub dynamic_quantize_linear: usize,
    pub linears: Vec<QuantizedLinear>,
}

/// One float Linear.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct LinearFacts {
    pub name: String,
    pub op: &'static str,
    pub k: usize,
    pub n: usize,
    pub bias: bool,
    /// The type of the weight in the file.
    pub dtype: String,
}

/// One value that Linears read.
#[derive(Clone, Debug, Serialize)]
pub struct SiteFacts {
    /// Its name.
    pub value: String,
    /// What can take shift and scale: the operator of a norm, "commuted" (constants further back), "explicit" (a Mul must
    /// be inserted), "plain" (nothing).
    pub kind: &'static str,
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outliers {
    /// Smallest and largest element.
    pub range: (f32, f32),
    /// The largest magnitude of a channel.
    pub largest: f32,
    /// The median of the channels' largest magnitudes.
    pub median: f32,
    /// `largest / median`; `None` if the median is 0.
    pub ratio: Option<f32>,
    /// Of the largest channel; see the module.
    pub asymmetry: f32,
    /// The three largest channels.
    pub channels: Vec<ChannelFacts>,
}

/// One channel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct ChannelFacts {
    pub channel: usize,
    pub min: f32,
    pub max: f32,
}
