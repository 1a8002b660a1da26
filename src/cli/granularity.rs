//! What shares a scale, on the command line: granularities, presets, and the format that goes with them.

use clap::{Args, ValueEnum, value_parser};
use onnx_osplus::review::{LinearReport, Report};
use onnx_osplus::solve::WeightGranularity;
use onnx_osplus::target::Target;
use onnx_osplus::{Activations, Format, Options, Symmetry};

/// Percent that weights of 8 bits may add to a language model of 4 bits.
const RAISED_BY_LLM: f64 = 10.0;

/// Bits, granularities and format.
#[derive(Clone, Debug, Args)]
pub(super) struct Granularities {
    /// A usual choice of bits and granularities, of which options beside it change what they name. encoder: int8 with constant
    /// scales. robust: int8, with a scale for every token that no unseen token can exceed. llm: weights of 4 bits in groups of
    /// 32, for token by token generation. paper-…: the settings of the paper [example: --preset llm]
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,

    /// What to write: a quantized model with Q/DQ; one with QLinearMatMul (for ONNX Runtime alone; usually less accurate,
    /// because outputs are quantized too); one with MatMulNBits, whose weights are in groups (for ONNX Runtime and OpenVINO); or
    /// the migrated float model with weaker outliers for another tool [default: qdq, or matmulnbits for weights in groups
    /// where the target has it] [example: --format float]
    #[arg(long, value_enum)]
    format: Option<FormatName>,

    /// Bits of the weights, 2 to 8; in groups 4 or 8, and 2 with MatMulNBits [default: 8, or those of the preset]
    /// [example: --weight-bits 6]
    #[arg(long, value_name = "BITS", value_parser = value_parser!(u8).range(2..=8))]
    weight_bits: Option<u8>,

    /// What shares a scale of a weight: all of it (per-tensor), an output channel (per-channel), or N input channels of one
    /// (group:N) [default: per-channel, or that of the preset] [example: --weight-granularity group:32]
    #[arg(long, value_name = "per-tensor|per-channel|group:N", value_parser = parse_weight_granularity)]
    weight_granularity: Option<WeightGranularity>,

    /// Whether groups of weights have zero points: where that pays and the target reads them, never, or always
    /// [example: --weight-symmetry symmetric]
    #[arg(long, value_enum, default_value_t = SymmetryName::Auto)]
    weight_symmetry: SymmetryName,

    /// Quantize weights alone, in groups of 32 (128 at 8 bits) if nothing else is said: what the runtime then does with
    /// activations is its own business (ONNX Runtime and OpenVINO quantize them by groups) [example: --weight-only]
    #[arg(long)]
    weight_only: bool,

    /// Let all weights together grow by this much for those that get 8 bits because they need them most; only where it is
    /// clearly better [default: 0, or 10 with --preset llm] [example: --max-raised 15]
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    max_raised: Option<f64>,

    /// Bits of the activations, 2 to 8 [default: 8, or those of the preset] [example: --activation-bits 6]
    #[arg(long, value_name = "BITS", value_parser = value_parser!(u8).range(2..=8))]
    activation_bits: Option<u8>,

    /// What shares a scale of the activations: all of a value (per-tensor; constant, from calibration), a token (per-token), a
    /// group of its channels as large as those of the weights (per-group; made by MatMulNBits); or none: float
    /// [default: per-tensor; for weights in groups per-group, or float where the target has no operator for it]
    /// [example: --activation-granularity per-token]
    #[arg(long, value_enum)]
    activation_granularity: Option<ActivationName>,
}

/// Usual choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// W8A8, constant scales.
    Encoder,
    /// W8A8, a scale per token.
    Robust,
    /// Weights of 4 bits in groups of 32.
    Llm,
    /// The paper's standard settings: one constant scale per value, and for weights one in all (8 bits) or per channel.
    PaperW8a8,
    PaperW6a6,
    PaperW4a8,
    PaperW4a4,
    /// Its fine-grained ones: a scale per token, and per channel of a weight.
    PaperTokenW6a6,
    PaperTokenW5a5,
    PaperTokenW4a4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatName {
    Qdq,
    Qoperator,
    Matmulnbits,
    Float,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SymmetryName {
    Auto,
    Symmetric,
    Asymmetric,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActivationName {
    PerTensor,
    PerToken,
    PerGroup,
    Float,
}

impl Preset {
    /// Bits of weights and activations, what shares a scale of a weight, and whether every token has one.
    fn choices(self) -> (u8, u8, WeightGranularity, bool) {
        use WeightGranularity::{Group, PerChannel, PerTensor};
        match self {
            Preset::Encoder => (8, 8, PerChannel, false),
            Preset::Robust => (8, 8, PerChannel, true),
            Preset::Llm => (4, 8, Group(32), false),
            Preset::PaperW8a8 => (8, 8, PerTensor, false),
            Preset::PaperW6a6 => (6, 6, PerChannel, false),
            Preset::PaperW4a8 => (4, 8, PerChannel, false),
            Preset::PaperW4a4 => (4, 4, PerChannel, false),
            Preset::PaperTokenW6a6 => (6, 6, PerChannel, true),
            Preset::PaperTokenW5a5 => (5, 5, PerChannel, true),
            Preset::PaperTokenW4a4 => (4, 4, PerChannel, true),
        }
    }
}

impl Granularities {
    /// Whether nothing is quantized.
    pub(super) fn is_float(&self) -> bool {
        self.format == Some(FormatName::Float)
    }

    /// Bits of the weights.
    pub(super) fn weight_bits(&self) -> u8 {
        let of_preset = self.preset.map_or(8, |p| p.choices().0);
        self.weight_bits.unwrap_or(of_preset)
    }

    fn weight_granularity(&self) -> WeightGranularity {
        let alone = match self.weight_only {
            true if self.weight_bits() == 8 => Some(WeightGranularity::Group(128)),
            true => Some(WeightGranularity::Group(32)),
            false => None,
        };
        let of_preset = self.preset.map(|p| p.choices().2);
        let asked = self.weight_granularity.or(alone).or(of_preset);
        asked.unwrap_or(WeightGranularity::PerChannel)
    }

    /// What of the options this decides, over `base`.
    pub(super) fn over(&self, base: Options, target: Target) -> Options {
        let weight_granularity = self.weight_granularity();
        let in_groups = matches!(weight_granularity, WeightGranularity::Group(_));
        let per_token = self.preset.is_some_and(|p| p.choices().3) && !in_groups;
        let has_operator = target.profile().no_matmulnbits.is_none();
        Options {
            format: match self.format {
                Some(FormatName::Qoperator) => Format::QOperator,
                Some(FormatName::Float) => Format::Float,
                Some(FormatName::Matmulnbits) => Format::MatMulNBits,
                None if in_groups && has_operator => Format::MatMulNBits,
                Some(FormatName::Qdq) | None => Format::Qdq,
            },
            weight_bits: self.weight_bits(),
            weight_granularity,
            weight_symmetry: match self.weight_symmetry {
                SymmetryName::Auto => Symmetry::Auto,
                SymmetryName::Symmetric => Symmetry::Symmetric,
                SymmetryName::Asymmetric => Symmetry::Asymmetric,
            },
            activation_bits: self
                .activation_bits
                .unwrap_or(self.preset.map_or(8, |p| p.choices().1)),
            activation_granularity: match self.activation_granularity {
                Some(ActivationName::PerTensor) => Activations::PerTensor,
                Some(ActivationName::PerToken) => Activations::PerToken,
                Some(ActivationName::PerGroup) => Activations::PerGroup,
                Some(ActivationName::Float) => Activations::Float,
                None if per_token => Activations::PerToken,
                None => Activations::Auto,
            },
            max_raised: self.max_raised.unwrap_or(match self.preset {
                Some(Preset::Llm) => RAISED_BY_LLM,
                _ => 0.0,
            }),
            ..base
        }
    }
}

/// A number of percent, 0 or more.
pub(super) fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent >= 0.0 && percent.is_finite() => Ok(percent),
        _ => Err("expected a number of percent, 0 or more".to_owned()),
    }
}

fn parse_weight_granularity(text: &str) -> Result<WeightGranularity, String> {
    match text {
        "per-tensor" => Ok(WeightGranularity::PerTensor),
        "per-channel" => Ok(WeightGranularity::PerChannel),
        _ => match text.strip_prefix("group:").map(str::parse) {
            Some(Ok(size)) => Ok(WeightGranularity::Group(size)),
            _ => Err("expected per-tensor, per-channel, or group:N such as group:32".to_owned()),
        },
    }
}

/// What shares a scale, where that is not what it usually is, and whose weights have more bits than the others.
pub(super) fn scales(out: &mut super::shown::Lines, report: &Report) -> std::fmt::Result {
    let settings = &report.settings;
    let raised = |l: &&LinearReport| {
        l.weight_bits
            .is_some_and(|bits| bits != settings.weight_bits)
    };
    let raised = report.linears.iter().filter(raised).count();
    let usual = settings.weight_granularity != "per-tensor"
        && !settings.weight_granularity.starts_with("group:");
    if settings.format == "float"
        || (usual && settings.activation_granularity == "per-tensor" && raised == 0)
    {
        return Ok(());
    }
    let weights = match settings.weight_granularity.strip_prefix("group:") {
        Some(size) => format!("in groups of {size}"),
        None => settings.weight_granularity.clone(),
    };
    let more = match raised {
        0 => String::new(),
        n => format!(" ({n} with 8 bits)"),
    };
    let activations = match settings.activation_granularity.as_str() {
        "float" => "activations in float".to_owned(),
        fine => format!("activations of {} bits {fine}", settings.activation_bits),
    };
    writeln!(
        out,
        "scales     weights of {} bits {weights}{more}, {activations}",
        settings.weight_bits
    )
}
