//! The solver: from the statistics of one site to the shift and scale that make it easy to quantize.
//!
//! A *site* is a value `x: [T, C]` read by one or more Linears `x W + b`, `W: [C, N]`. With a shift `z: [C]` and a scale
//! `s: [C]` the same numbers come from
//!
//! ```text
//! x' = (x − z) / s        x W + b = x' (diag(s) W) + (b + z W)
//! ```
//!
//! and x' may have a much smaller range than x (Outlier Suppression+, Wei et al., EMNLP 2023, sections 4.1 and 4.2).
//!
//! The data flows through the files in this order: [`quantize`] knows what Q/DQ does to numbers; [`migration`] turns
//! per-channel ranges and a threshold into z, s and the range of x'; [`loss`] measures what quantization then does to the
//! outputs of the Linears, and [`survey`] estimates it without their outputs; [`search`] tries candidates and keeps the
//! best; [`smoothquant`] is the comparison method. [`output`] does the same for what Linears give, where that is quantized.
//!
//! Arithmetic only: this module knows arrays, no graph. Results do not depend on the number of threads.

pub mod activation;
pub mod balance;
pub mod correction;
pub mod damage;
pub mod feedback;
mod fine;
pub mod groups;
mod joined;
pub mod loss;
pub mod migration;
mod mix;
pub mod orthogonal;
pub mod output;
pub(crate) mod product;
pub mod quantize;
pub mod recipe;
pub mod response;
pub mod rotate;
pub mod rotation;
mod rounding;
mod scored;
pub mod search;
pub mod sequential;
pub mod smoothquant;
mod spec;
pub mod survey;
mod wide;

pub use activation::ActivationQuantizer;
pub use damage::damage;
pub use migration::{Migration, ShiftKind};
pub use quantize::{fake_quantize, quantize_weight};
pub use recipe::Recipe;
pub use response::Response;
pub use rotate::Turn;
pub use rotation::{Mixing, Rotation};
pub use search::{solve_block, solve_both, solve_site, solve_site_with};
pub use spec::{
    ActivationGranularity, ActivationSpec, QuantParams, QuantizedWeight, WeightGranularity,
    WeightSpec,
};

use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};

/// How shift and scale are found.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Method {
    /// Outlier Suppression+: shift and threshold by search, validated on tokens that did not set the ranges.
    OsPlus,
    /// SmoothQuant: `s_j = max|x_j|^alpha / max|W_j|^(1 − alpha)`, no shift, no search.
    SmoothQuant {
        /// How much of the difficulty moves into the weight, 0 to 1; 0.5 is usual.
        alpha: f32,
    },
    /// Plain min-max quantization.
    None,
}

/// One half of the calibration tokens of a site.
#[derive(Debug, Clone, Copy)]
pub struct Fold<'a> {
    /// Smallest value of every channel over all tokens of the fold, `[C]`.
    pub min: &'a [f32],
    /// Largest value of every channel over all tokens of the fold, `[C]`.
    pub max: &'a [f32],
    /// Some tokens of the fold, `[T, C]`; no rows if the fold is empty, then `min` and `max` are not read.
    pub sample: ArrayView2<'a, f32>,
    /// What the squared error of each of these tokens counts, `[T]`; none if all count the same.
    pub weights: Option<&'a [f32]>,
}

/// Everything the solver has to know about one site. All values are finite, and C is the same everywhere: anything else
/// is a mistake of the caller and may panic.
#[derive(Debug, Clone)]
pub struct SiteProblem<'a> {
    /// The calibration tokens in two halves that share no sequence.
    pub folds: [Fold<'a>; 2],
    /// The weights of the site's Linears, each `[C, N_i]`; at least one.
    pub weights: Vec<ArrayView2<'a, f32>>,
    /// Whether the place that absorbs the migration can take a shift.
    pub allow_shift: bool,
    /// Whether it can take a scale.
    pub allow_scale: bool,
    /// Whether the mean error of all outputs will be taken off the biases ([`correction`]).
    pub correct_bias: bool,
    /// For every channel the number of its group, whose channels must have one shift and scale; the extremes of the folds are
    /// those of the groups already. `None` if all are free.
    pub ties: Option<&'a [u32]>,
}

/// What is the same for all sites.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SolveSettings {
    /// How the site's value will be quantized.
    pub activation: ActivationSpec,
    /// How the Linears' weights will be quantized.
    pub weight: WeightSpec,
    /// How shift and scale are found.
    pub method: Method,
}

impl SolveSettings {
    /// Whether scales are made at run time, or shared by groups of a weight.
    pub fn is_fine_grained(&self) -> bool {
        !self.activation.has_range() || self.weight.group().is_some()
    }
}

/// One point of the threshold search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Threshold t in units of x after the shift.
    pub threshold: f32,
    /// Lowest cross-fitted loss in the survey, which estimates it on a part of the tokens: comparable along one curve,
    /// not with the losses of a [`Solution`].
    pub loss: f64,
}

/// The migration and quantization range chosen for a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Solution {
    /// Shift z, `[C]`; `None` = no shift.
    pub shift: Option<Vec<f32>>,
    /// Scale s, `[C]`, all positive; `None` = no scale.
    pub scale: Option<Vec<f32>>,
    /// Rotation R behind shift and scale; `None` = none.
    pub rotation: Option<Rotation>,
    /// Where every token has a scale: how many integers are below 0, if not half of them ([`ActivationSpec::levels_below`]).
    pub levels_below: Option<i32>,
    /// Quantization range of `x' = ((x − z) / s) R`: (smallest, largest) over all tokens, times the margin.
    pub range: (f32, f32),
    /// Range of x over all tokens, without margin.
    pub range_before: (f32, f32),
    /// Range of x' over all tokens, without margin.
    pub range_after: (f32, f32),
    /// Threshold t: channels whose extreme after the shift is larger were scaled down to it; `None` = no scale.
    pub threshold: Option<f32>,
    /// Factor on the range of all tokens: above 1 leaves room for unseen tokens, below 1 clips.
    pub margin: f32,
    /// Which channels were shifted.
    pub shift_kind: ShiftKind,
    /// Cross-fitted loss of plain min-max ranges: summed squared error of the Linears' outputs on the sample tokens.
    pub loss_before: f64,
    /// Cross-fitted loss of this solution, same tokens.
    pub loss_after: f64,
    /// Cross-fitted loss of the best solution without a rotation, if this one has one.
    pub loss_without: Option<f64>,
    /// Energy of what the losses are the error of, on the same tokens: their ratio is that of noise to signal.
    pub energy: f64,
    /// Energy of the outputs over that of the stream that they are written to, where that is normed behind: the mean over the
    /// tokens.
    pub share: Option<f64>,
    /// `10 · log10(loss_before / loss_after)` in dB, within ±120. Never negative for [`Method::OsPlus`]; a method that
    /// does not validate (SmoothQuant) can make things worse, and then it is.
    pub validated_gain_db: f64,
    /// The thresholds tried with the chosen kind of shift, ascending. Empty where no scale was tried.
    pub curve: Vec<CurvePoint>,
    /// Whether the losses are those at the response of the site's block ([`response`]).
    pub at_response: bool,
}
