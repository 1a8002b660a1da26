//! What a run can be asked for.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::rewrite::WeightStorage;
use crate::solve::{ActivationSpec, Method, WeightGranularity, WeightSpec};
use crate::target::{Profile, Target};

mod error;
mod granularity;

pub use error::OptionsError;
pub use granularity::{Activations, Embeddings, Symmetry};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Format {
    /// QuantizeLinear and DequantizeLinear around integer weights.
    Qdq,
    /// Integer operators (QLinearMatMul, QGemm) in place of the Linears, for ONNX Runtime alone: the outputs of those that are
    /// no Gemm are quantized too.
    QOperator,
    /// com.microsoft.MatMulNBits in place of the Linears: weights in groups, activations quantized per group of a token by the
    /// operator itself. For ONNX Runtime and OpenVINO.
    MatMulNBits,
    /// The migrated float model: an ordinary ONNX file with weaker outliers.
    Float,
}

impl Format {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Format::Qdq => "qdq",
            Format::QOperator => "qoperator",
            Format::MatMulNBits => "matmulnbits",
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
#[non_exhaustive]
pub enum KeepFloat {
    /// So many Linears.
    Linears(usize),
    /// This part, from 0 to 1, of the multiplications of all Linears that would be quantized.
    Work(f64),
}

/// Whether the two products of attention are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionMode {
    /// Where the target gains by it ([`Profile::int8_attention`]) and the outputs on held-out data allow it.
    Auto,
    /// Never.
    Float,
    /// On any target, unless it breaks the outputs.
    Int8,
}

impl AttentionMode {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            AttentionMode::Auto => "auto",
            AttentionMode::Float => "float",
            AttentionMode::Int8 => "int8",
        }
    }
}

/// The settings of a run.
///
/// Write down what differs from the default, so that fields that will be added change nothing for you:
///
/// ```
/// use onnx_osplus::Options;
/// use onnx_osplus::target::Target;
///
/// let options = Options {
///     target: Target::Portable,
///     weight_bits: 6,
///     ..Options::default()
/// };
/// assert!(options.validate().is_ok());
/// ```
///
/// (It is not `#[non_exhaustive]`, because that would forbid just this form. [`Quantizer`](crate::Quantizer) has a
/// method for each field that is often needed.)
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
    /// What shares a scale of a weight.
    pub weight_granularity: WeightGranularity,
    /// Whether groups of weights have zero points.
    pub weight_symmetry: Symmetry,
    /// Whether weights of 8 bits use 7 of them, ±63: two products of a uint8 with such a weight fit into the 16 bits in
    /// which x86 processors before VNNI add them.
    pub reduce_range: bool,
    /// What the file holds of the weights.
    pub weight_storage: WeightStorage,
    /// 2 to 8.
    pub activation_bits: u8,
    /// What shares a scale of the activations.
    pub activation_granularity: Activations,
    /// Whether the products of attention are quantized.
    pub attention: AttentionMode,
    /// How embedding tables are stored, where the target gathers such rows and no output loses half a dB.
    pub embeddings: Embeddings,
    /// Only Linears whose node name matches are quantized.
    pub include: Option<Regex>,
    /// Linears whose node name matches are left in float.
    pub exclude: Option<Regex>,
    /// At most so much is left in float, where that helps most.
    pub keep_float: Option<KeepFloat>,
    /// The SQNR that every output must have on the held-out rows, in dB; Linears are left in float until it has.
    pub min_sqnr_db: Option<f64>,
    /// By how many percent all weights together may grow for those that get 8 bits because they need them, where
    /// [`Options::weight_bits`] is less.
    pub max_raised: f64,
    /// Parallel batches; 0 for one per core.
    pub threads: usize,
    /// Seed of the choice of calibration tokens.
    pub seed: u64,
    /// Whether a Mul may be inserted where no constant can take a scale; it costs run time.
    pub extra_nodes: bool,
    /// How much slower than without rotations the result may be for them, in percent, by an estimate: see
    /// [`crate::rewrite::Rotated`]. `None` for [`MAX_SLOWDOWN`], or 0 where there can be none: they need a quantized format and
    /// extra nodes.
    pub max_slowdown: Option<f64>,
    /// Whether what exporters leave behind and a runtime rejects is removed first: see [`crate::rewrite::clean`].
    pub clean: bool,
    /// Whether sizes that the file fixes are stored where that lets runtimes compute something once, when they load the
    /// model, and not in every run: see [`crate::rewrite::fold_sizes`].
    pub fold_sizes: bool,
    /// Tokens kept per Linear input and fold for the search.
    pub sample_tokens: usize,
}

/// Percent of the run time that rotations may cost if nothing else is said.
pub const MAX_SLOWDOWN: f64 = 15.0;

impl Default for Options {
    fn default() -> Self {
        Options {
            target: Target::Ort,
            format: Format::Qdq,
            method: Method::OsPlus,
            weight_bits: 8,
            weight_granularity: WeightGranularity::PerChannel,
            weight_symmetry: Symmetry::Auto,
            reduce_range: false,
            weight_storage: WeightStorage::Integers,
            activation_bits: 8,
            activation_granularity: Activations::Auto,
            attention: AttentionMode::Auto,
            embeddings: Embeddings::Float,
            include: None,
            exclude: None,
            keep_float: None,
            min_sqnr_db: None,
            max_raised: 0.0,
            threads: 0,
            seed: 0,
            extra_nodes: true,
            max_slowdown: None,
            clean: false,
            fold_sizes: true,
            sample_tokens: 384,
        }
    }
}

impl Options {
    /// [`Options::max_slowdown`], or what stands for it.
    pub fn slowdown(&self) -> f64 {
        let possible = self.format.quantizes() && self.extra_nodes;
        let standard = match self.method {
            Method::OsPlus if possible => MAX_SLOWDOWN,
            Method::OsPlus | Method::SmoothQuant { .. } | Method::None => 0.0,
        };
        self.max_slowdown.unwrap_or(standard)
    }

    /// The rules of the target.
    pub fn profile(&self) -> Profile {
        self.target.profile()
    }

    /// How values are quantized with one constant scale, of the target's symmetry.
    pub fn activation(&self) -> ActivationSpec {
        ActivationSpec::per_tensor(self.activation_bits, self.profile().symmetric)
    }

    /// As many of so many bits of a weight as are used ([`Options::reduce_range`]).
    fn stored_bits(&self, bits: u8) -> u8 {
        match self.reduce_range {
            true => bits.min(7),
            false => bits,
        }
    }

    /// How weights are quantized, before what a weight's own size makes of it ([`Options::weight_of`]).
    pub fn weight(&self) -> WeightSpec {
        WeightSpec {
            bits: self.stored_bits(self.weight_bits),
            granularity: self.weight_granularity,
            symmetric: self.zero_points() == Symmetry::Symmetric,
        }
    }

    /// Why the products of attention stay in float from the start, if they do.
    pub fn leaves_attention(&self) -> Option<String> {
        let profile = self.profile();
        match self.attention {
            AttentionMode::Float => Some("attention float was asked for".to_owned()),
            AttentionMode::Auto if !profile.int8_attention => Some(format!(
                "int8 costs more than it gains with target {}; attention int8 asks for it",
                profile.name
            )),
            AttentionMode::Auto | AttentionMode::Int8 => None,
        }
    }

    /// Why the Linear of that name is not to be quantized, if it is not.
    pub fn refuses(&self, name: &str) -> Option<&'static str> {
        if self.exclude.as_ref().is_some_and(|r| r.is_match(name)) {
            return Some("its name matches `exclude`");
        }
        if self.include.as_ref().is_some_and(|r| !r.is_match(name)) {
            return Some("its name does not match `include`");
        }
        None
    }

    /// Whether a run can be asked for this. [`run`](crate::run), [`inspect`](crate::inspect) and
    /// [`anatomy`](crate::anatomy) ask before they do anything else.
    ///
    /// # Errors
    /// The first setting that is out of its range, or that contradicts another one.
    pub fn validate(&self) -> Result<(), OptionsError> {
        self.validate_numbers()?;
        self.validate_granularity()?;
        let (profile, format) = (self.profile(), self.format.name());
        if self.reduce_range && !profile.saturates {
            return Err(OptionsError::NothingSaturates {
                target: profile.name,
            });
        }
        if let (Format::QOperator, Some(reason)) = (self.format, profile.no_qoperator) {
            return Err(OptionsError::FormatRefused {
                format,
                target: profile.name,
                reason,
            });
        }
        let of_quantization = [
            ("keep_float", self.keep_float.is_some()),
            ("min_sqnr_db", self.min_sqnr_db.is_some()),
            ("attention", self.attention == AttentionMode::Int8),
            ("embeddings", self.embeddings != Embeddings::Float),
        ];
        let mut asked = of_quantization.into_iter().filter(|(_, asked)| *asked);
        if let (false, Some((setting, _))) = (self.format.quantizes(), asked.next()) {
            return Err(OptionsError::QuantizesNothing { format, setting });
        }
        let rotates = self.slowdown() > 0.0;
        if rotates && !self.format.quantizes() {
            return Err(OptionsError::NoRotations(format));
        }
        if rotates && !self.extra_nodes {
            return Err(OptionsError::NoRotations("constants alone"));
        }
        if self.format != Format::Qdq && self.weight_storage == WeightStorage::FloatQdq {
            return Err(OptionsError::NoQdqWeights { format });
        }
        Ok(())
    }

    /// Every number, for itself.
    fn validate_numbers(&self) -> Result<(), OptionsError> {
        let bits = [
            ("weights", self.weight_bits),
            ("activations", self.activation_bits),
        ];
        if let Some((of, bits)) = bits.into_iter().find(|(_, bits)| !(2..=8).contains(bits)) {
            return Err(OptionsError::Bits { of, bits });
        }
        match self.method {
            // A NaN is in no range.
            Method::SmoothQuant { alpha } if !(0.0..=1.0).contains(&alpha) => {
                return Err(OptionsError::Alpha(alpha));
            }
            _ => {}
        }
        match self.keep_float {
            Some(KeepFloat::Work(part)) if !(0.0..=1.0).contains(&part) => {
                return Err(OptionsError::Work(part));
            }
            _ => {}
        }
        match self.min_sqnr_db {
            Some(db) if !db.is_finite() => return Err(OptionsError::MinSqnr(db)),
            _ => {}
        }
        if !(0.0..f64::INFINITY).contains(&self.max_raised) {
            return Err(OptionsError::Raised(self.max_raised));
        }
        // A NaN is in no range.
        if !(0.0..f64::INFINITY).contains(&self.slowdown()) {
            return Err(OptionsError::Slowdown(self.slowdown()));
        }
        match self.sample_tokens {
            0 => Err(OptionsError::NoSampleTokens),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Options)) -> Option<OptionsError> {
        let mut options = Options::default();
        change(&mut options);
        options.validate().err()
    }

    #[test]
    fn the_defaults_fit_every_target() {
        for target in Target::ALL {
            assert_eq!(refused(|o| o.target = target), None);
        }
    }

    #[test]
    fn numbers_have_their_ranges() {
        for bits in [0, 1, 9, 255] {
            let of_weights = refused(|o| o.weight_bits = bits);
            assert_eq!(
                of_weights,
                Some(OptionsError::Bits {
                    of: "weights",
                    bits
                })
            );
            let of = "activations";
            let of_activations = refused(|o| o.activation_bits = bits);
            assert_eq!(of_activations, Some(OptionsError::Bits { of, bits }));
        }
        for bits in 2..=8 {
            assert_eq!(refused(|o| o.weight_bits = bits), None);
            assert_eq!(refused(|o| o.activation_bits = bits), None);
        }
        for wrong in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let work = refused(|o| o.keep_float = Some(KeepFloat::Work(wrong)));
            assert!(matches!(work, Some(OptionsError::Work(_))), "{wrong}");
            let alpha = wrong as f32;
            let alpha = refused(|o| o.method = Method::SmoothQuant { alpha });
            assert!(matches!(alpha, Some(OptionsError::Alpha(_))), "{wrong}");
        }
        for right in [0.0, 0.5, 1.0] {
            assert_eq!(
                refused(|o| o.keep_float = Some(KeepFloat::Work(right))),
                None
            );
            let alpha = right as f32;
            assert_eq!(refused(|o| o.method = Method::SmoothQuant { alpha }), None);
        }
        for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let db = refused(|o| o.min_sqnr_db = Some(wrong));
            assert!(matches!(db, Some(OptionsError::MinSqnr(_))), "{wrong}");
        }
        assert_eq!(refused(|o| o.min_sqnr_db = Some(-3.0)), None);
        assert_eq!(
            refused(|o| o.sample_tokens = 0),
            Some(OptionsError::NoSampleTokens)
        );
    }

    #[test]
    fn weights_of_7_bits_are_for_targets_that_saturate() {
        for target in Target::ALL {
            let error = refused(|o| (o.target, o.reduce_range) = (target, true));
            let saturates = target.profile().saturates;
            assert_eq!(error.is_none(), saturates, "{target:?}: {error:?}");
        }
    }

    #[test]
    fn integer_operators_are_for_targets_that_have_them() {
        for target in Target::ALL {
            let error = refused(|o| (o.target, o.format) = (target, Format::QOperator));
            let has_them = target.profile().no_qoperator.is_none();
            assert_eq!(error.is_none(), has_them, "{target:?}: {error:?}");
        }
    }

    #[test]
    fn what_is_about_quantization_needs_a_format_that_quantizes() {
        type Change = fn(&mut Options);
        let settings: [(&str, Change); 3] = [
            ("keep_float", |o| o.keep_float = Some(KeepFloat::Linears(1))),
            ("min_sqnr_db", |o| o.min_sqnr_db = Some(20.0)),
            ("attention", |o| o.attention = AttentionMode::Int8),
        ];
        for (name, change) in settings {
            for format in [Format::Qdq, Format::QOperator, Format::Float] {
                let error = refused(|o| {
                    o.format = format;
                    change(o);
                });
                let setting = match error {
                    Some(OptionsError::QuantizesNothing { setting, .. }) => Some(setting),
                    None => None,
                    Some(error) => panic!("{error:?}"),
                };
                assert_eq!(setting, (format == Format::Float).then_some(name));
            }
        }
    }

    #[test]
    fn weights_as_float_are_a_form_of_qdq() {
        for format in [Format::Qdq, Format::QOperator, Format::Float] {
            let error = refused(|o| {
                (o.format, o.weight_storage) = (format, WeightStorage::FloatQdq);
            });
            assert_eq!(error.is_none(), format == Format::Qdq, "{error:?}");
        }
    }
}
