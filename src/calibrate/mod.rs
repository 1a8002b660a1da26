//! Calibration: what the values inside a model look like on real data.
//!
//! ```text
//! files ─ Dataset ─▶ Batch ─ Engine (tract) ─▶ tapped values ─▶ statistics: min, max, token sample per channel
//!                                           └▶ outputs ─▶ compare: SQNR, cosine, largest error
//! ```
//!
//! [`Dataset`] turns what a user names on the command line into checked [`Batch`]es. [`statistics()`] runs them and
//! reduces the values it is asked for while the model runs; [`compare()`] runs several models on the same batches.
//! [`Engine`] is the only door to an inference engine, and [`TractEngine`] the only code that knows tract.

mod array;
mod broadcast;
mod cache;
mod capture;
mod compare;
mod copy;
mod dataset;
mod decompose;
mod engine;
mod error;
mod files;
mod fill;
mod input;
mod parallel;
mod ranges;
mod resolve;
mod rounding;
mod signature;
mod sources;
mod statistics;
mod sums;
mod tap;
#[cfg(test)]
mod tests;
mod tokens;
mod tract_engine;
mod tract_tensor;

pub use array::{Values, type_name};
pub use capture::{Captured, Keep, Kept};
pub use compare::{
    OutputComparison, Outputs, Reference, RowError, compare, compare_few, compare_with, outputs,
};
pub use dataset::{CalibSource, Dataset, Split};
pub use engine::{Engine, EngineError, Plan, TapSink, Wanted};
pub use error::CalibError;
pub use fill::{FillRule, Filled};
pub use input::{Batch, InputTensor, Shapes, Switches};
pub use ranges::{Ranged, ranges};
pub use signature::{Dim, ModelInput, model_inputs};
pub use statistics::{
    ChannelStats, FoldStats, StatOptions, Statistics, shapes, statistics, statistics_and,
};
pub use tract_engine::TractEngine;
