//! Why a run cannot be asked for.

use thiserror::Error;

/// Settings that contradict each other, or that mean nothing.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// A number of bits that no integer of an ONNX file has, or that is too few for a sign and a level.
    #[error("{of} of {bits} bits: 2 to 8 are possible")]
    Bits {
        /// "weights" or "activations".
        of: &'static str,
        /// What was asked for.
        bits: u8,
    },
    /// [`Method::SmoothQuant`](crate::solve::Method::SmoothQuant) with an alpha that is no part.
    #[error("the alpha of SmoothQuant is from 0 to 1, not {0}")]
    Alpha(f32),
    /// [`KeepFloat::Work`](super::KeepFloat::Work) that is no part.
    #[error("the part of the multiplications that may be left in float is from 0 to 1, not {0}")]
    Work(f64),
    /// An SQNR that no output can be compared with.
    #[error("the SQNR that every output must have is a finite number of decibels, not {0}")]
    MinSqnr(f64),
    /// [`Options::max_slowdown`](super::Options::max_slowdown) that is no price.
    #[error("what rotations may cost is a number of percent, 0 or more, not {0}")]
    Slowdown(f64),
    /// Granularities that no operator has, or that contradict each other.
    #[error("{setting}: {reason}")]
    Granularity {
        /// What was asked for.
        setting: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// [`Options::max_raised`](super::Options::max_raised) that is no part.
    #[error("the weights may grow by a number of percent, 0 or more, not {0}")]
    Raised(f64),
    /// Rotations in a format that has none.
    #[error("rotations (max_slowdown) are for quantized formats with extra nodes, not for {0}")]
    NoRotations(&'static str),
    /// A search that would see nothing.
    #[error("the search needs tokens: sample_tokens is at least 1")]
    NoSampleTokens,
    /// Weights of 7 bits for a target where 8 do no harm.
    #[error(
        "weights of 7 bits (reduce_range) are for x86 processors before VNNI, whose sums of 8-bit products saturate; \
         those of target {target} do not: leave it out, it would cost accuracy for nothing"
    )]
    NothingSaturates {
        /// The target's name.
        target: &'static str,
    },
    /// The target cannot run what the format consists of.
    #[error("format {format} is not for target {target}: {reason}")]
    FormatRefused {
        /// The format's name.
        format: &'static str,
        /// The target's name.
        target: &'static str,
        /// What the runtimes do with it.
        reason: &'static str,
    },
    /// A setting of quantization with a format that has none.
    #[error("format {format} quantizes nothing: {setting} needs another format")]
    QuantizesNothing {
        /// The format's name.
        format: &'static str,
        /// The field of [`Options`](super::Options).
        setting: &'static str,
    },
    /// Weights as float before a QuantizeLinear with a format that has no QuantizeLinear for them.
    #[error(
        "weights as float before a QuantizeLinear are a form of Q/DQ: format {format} has no place for them"
    )]
    NoQdqWeights {
        /// The format's name.
        format: &'static str,
    },
}
