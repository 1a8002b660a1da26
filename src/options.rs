//! What a run can be asked for.

use regex::Regex;

use crate::review::Settings;
use crate::rewrite::WeightStorage;
use crate::solve::{ActivationSpec, Method, WeightSpec};
use crate::target::{Profile, Target};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QuantizeLinear and DequantizeLinear around integer weights.
    Qdq,
    /// Integer operators (QLinearMatMul, QGemm) in place of the Linears, for ONNX Runtime alone: the outputs of those that are
    /// no Gemm are quantized too.
    QOperator,
    /// The migrated float model: an ordinary ONNX file with weaker outliers.
    Float,
}

impl Format {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Format::Qdq => "qdq",
            Format::QOperator => "qoperator",
            Format::Float => "float",
        }
    }

    /// Whether Linears become integer products.
    pub fn quantizes(self) -> bool {
        self != Format::Float
    }
}

/// How much may be left in float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeepFloat {
    /// So many Linears.
    Linears(usize),
    /// This part, from 0 to 1, of the multiplications of all Linears that would be quantized.
    Work(f64),
}

/// Whether the two products of attention are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionMode {
    /// Where the target gains by it ([`Profile::int8_attention`]) and the outputs on held-out data allow it.
    Auto,
    /// Never.
    Float,
    /// On any target, unless it breaks the outputs.
    Int8,
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose rules the result follows.
    pub target: Target,
    /// What is written.
    pub format: Format,
    /// How shift and scale are found.
    pub method: Method,
    /// 2 to 8.
    pub weight_bits: u8,
    /// One scale per output channel of a weight; `false`: one per weight.
    pub weight_per_channel: bool,
    /// Whether weights of 8 bits use 7 of them, ±63: two products of a uint8 with such a weight fit into the 16 bits in
    /// which x86 processors before VNNI add them.
    pub reduce_range: bool,
    /// What the file holds of the weights.
    pub weight_storage: WeightStorage,
    /// 2 to 8.
    pub activation_bits: u8,
    /// Whether the products of attention are quantized.
    pub attention: AttentionMode,
    /// Only Linears whose node name matches are quantized.
    pub include: Option<Regex>,
    /// Linears whose node name matches are left in float.
    pub exclude: Option<Regex>,
    /// At most so much is left in float, where that helps most.
    pub keep_float: Option<KeepFloat>,
    /// The SQNR that every output must have on the held-out rows, in dB; Linears are left in float until it has.
    pub min_sqnr_db: Option<f64>,
    /// Parallel batches; 0 for one per core.
    pub threads: usize,
    /// Seed of the choice of calibration tokens.
    pub seed: u64,
    /// Whether a Mul may be inserted where no constant can take a scale; it costs run time.
    pub extra_nodes: bool,
    /// How much slower than without rotations the result may be for them, in percent, by an estimate: see
    /// [`crate::rewrite::Rotated`]. They need extra nodes.
    pub max_slowdown: f64,
    /// Whether what exporters leave behind and a runtime rejects is removed first: see [`crate::rewrite::clean`].
    pub clean: bool,
    /// Tokens kept per Linear input and fold for the search.
    pub sample_tokens: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            target: Target::Ort,
            format: Format::Qdq,
            method: Method::OsPlus,
            weight_bits: 8,
            weight_per_channel: true,
            reduce_range: false,
            weight_storage: WeightStorage::Integers,
            activation_bits: 8,
            attention: AttentionMode::Auto,
            include: None,
            exclude: None,
            keep_float: None,
            min_sqnr_db: None,
            threads: 0,
            seed: 0,
            extra_nodes: true,
            max_slowdown: 15.0,
            clean: false,
            sample_tokens: 384,
        }
    }
}

impl Options {
    /// The rules of the target.
    pub fn profile(&self) -> Profile {
        self.target.profile()
    }

    /// How activations are quantized: one scale per tensor, of the target's symmetry.
    pub fn activation(&self) -> ActivationSpec {
        ActivationSpec {
            bits: self.activation_bits,
            symmetric: self.profile().symmetric,
        }
    }

    /// How weights are quantized: symmetric, one scale per output channel or per weight.
    pub fn weight(&self) -> WeightSpec {
        WeightSpec {
            bits: match self.reduce_range {
                true => self.weight_bits.min(7),
                false => self.weight_bits,
            },
            per_channel: self.weight_per_channel,
        }
    }

    /// Why the products of attention stay in float from the start, if they do.
    pub fn leaves_attention(&self) -> Option<String> {
        let profile = self.profile();
        match self.attention {
            AttentionMode::Float => Some("--attention float".to_owned()),
            AttentionMode::Auto if !profile.int8_attention => Some(format!(
                "int8 costs more than it gains with --target {}; --attention int8 asks for it",
                profile.name
            )),
            AttentionMode::Auto | AttentionMode::Int8 => None,
        }
    }

    /// Why the Linear of that name is not to be quantized, if it is not.
    pub fn refuses(&self, name: &str) -> Option<&'static str> {
        if self.exclude.as_ref().is_some_and(|r| r.is_match(name)) {
            return Some("its name matches --exclude");
        }
        if self.include.as_ref().is_some_and(|r| !r.is_match(name)) {
            return Some("its name does not match --include");
        }
        None
    }

    /// These settings as the report shows them; what a run finds out is left empty.
    pub fn settings(&self) -> Settings {
        Settings {
            target: self.profile().name.to_owned(),
            format: self.format.name().to_owned(),
            method: match self.method {
                Method::OsPlus => "osplus",
                Method::SmoothQuant { .. } => "smoothquant",
                Method::None => "none",
            }
            .to_owned(),
            weight_bits: self.weight_bits,
            weight_granularity: match self.weight_per_channel {
                true => "per-channel",
                false => "per-tensor",
            }
            .to_owned(),
            reduce_range: self.reduce_range,
            weights_as_float_qdq: self.weight_storage == WeightStorage::FloatQdq,
            activation_bits: self.activation_bits,
            attention: match self.attention {
                AttentionMode::Auto => "auto",
                AttentionMode::Float => "float",
                AttentionMode::Int8 => "int8",
            }
            .to_owned(),
            activation_symmetric: self.activation().symmetric,
            include: self.include.as_ref().map(|r| r.as_str().to_owned()),
            exclude: self.exclude.as_ref().map(|r| r.as_str().to_owned()),
            keep_float: self.keep_float.map(|keep| match keep {
                KeepFloat::Linears(n) => n.to_string(),
                KeepFloat::Work(part) => format!("{}%", part * 100.0),
            }),
            min_sqnr_db: self.min_sqnr_db,
            seed: self.seed,
            extra_nodes: self.extra_nodes,
            clean: self.clean,
            sample_tokens: self.sample_tokens,
            ..Settings::default()
        }
    }
}
