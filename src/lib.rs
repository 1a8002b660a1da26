//! onnx-osplus makes ONNX transformers survive integer quantization.
//!
//! A few channels of a transformer's Linear inputs are tens to thousands of times larger than the others, and one
//! scale for the tensor must cover them all. Outlier Suppression+ (Wei et al., EMNLP 2023, arXiv 2304.09145) moves
//! the trouble into constants, exactly in float:
//!
//! ```text
//! x' = (x − z) / s        x W + b = x' (diag(s) W) + (b + z W)
//! ```
//!
//! [`run`] is the whole job; the modules it goes through are the chapters of the program, in the order of the data:
//! [`onnx`] reads the file, [`graph`] indexes it, [`recognise`] finds norms and Linears in any export form, [`site`]
//! pairs them up, [`prepare`] makes inputs of text, [`calibrate`] runs the model on real data, [`solve`] finds shift and scale, [`rewrite`] folds them
//! into the constants and quantizes by the rules of a [`target`], [`review`] checks the result and says what was done.
//!
//! [`Quantizer`] is the shortest way to use it; `examples/quantize.rs` shows the whole job of a program.
//!
//! The library never prints, reads the environment or exits.

pub mod calibrate;
mod error;
pub mod graph;
pub mod onnx;
mod options;
mod pipeline;
pub mod prepare;
pub mod progress;
mod quantizer;
pub mod recognise;
pub mod review;
pub mod rewrite;
pub mod site;
pub mod solve;
pub mod target;

pub use error::Error;
pub use options::{
    Activations, AttentionMode, Embeddings, Format, KeepFloat, MAX_SLOWDOWN, Options, OptionsError,
    Symmetry,
};
#[doc(hidden)]
pub use pipeline::plan_round_trip;
pub use pipeline::{
    Evaluation, Inspection, anatomy, check_quantizable, inspect, run, run_evaluated, run_with,
    stats,
};
pub use pipeline::{
    Streaming, WorkFolder, cannot_stream, run_streaming, stored_bytes, whole_model_bytes,
};
pub use quantizer::{CalibratedQuantizer, Quantized, Quantizer};
/// The type of [`Options::include`] and [`Options::exclude`].
pub use regex::Regex;
