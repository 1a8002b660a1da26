//! What a run can be asked for.

use regex::Regex;

use crate::review::Settings;
use crate::solve::{ActivationSpec, Method, WeightSpec};
use crate::target::{Profile, Target};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// QuantizeLinear and DequantizeLinear around integer weights.
    Qdq,
    /// The migrated float model: an ordinary ONNX file with weaker outliers.
    Float,
}

/// How much may be left in float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeepFloat {
    /// So many Linears.
    Linears(usize),
    /// This part, from 0 to 1, of the multiplications of all Linears that would be quantized.
    Work(f64),
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
    /// 2 to 8.
    pub activation_bits: u8,
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
            activation_bits: 8,
            include: None,
            exclude: None,
            keep_float: None,
            min_sqnr_db: None,
            threads: 0,
            seed: 0,
            extra_nodes: true,
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
            bits: self.weight_bits,
            per_channel: self.weight_per_channel,
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
            format: match self.format {
                Format::Qdq => "qdq",
                Format::Float => "float",
            }
            .to_owned(),
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
            activation_bits: self.activation_bits,
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
