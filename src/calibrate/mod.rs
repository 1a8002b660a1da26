//! Calibration: what the values inside a model look like on real data.
//!
//! ```text
//! files ─ Dataset ─▶ Batch ─ Engine (tract) ─▶ tapped values ─▶ statistics: min, max, token sample per channel
//!                                           └▶ outputs ─▶ compare: SQNR, cosine, largest error
//! ```
//!
//! [`Dataset`] turns the files a user names into checked [`Batch`]es. [`statistics()`] runs them and
//! reduces the values it is asked for while the model runs; [`compare()`] runs several models on the same batches.
//! [`Engine`] is the only door to an inference engine, and [`TractEngine`] the only code that knows tract.

mod data;
mod engine;
mod measure;
#[cfg(test)]
pub(crate) mod tests;

pub use data::array::{Values, type_name};
pub use data::dataset::{Dataset, Split};
pub use data::error::CalibError;
pub use data::fill::{FillRule, Filled};
pub use data::input::{Batch, InputTensor, PaddingMask, Shapes, Switches};
pub use data::labels::{LabelError, Labels};
pub use data::part::{RowStore, Stored, StoredValues};
pub use data::signature::{Dim, ModelInput, model_inputs};
pub use data::sources::CalibSource;
pub use engine::error::EngineError;
#[cfg(feature = "onnxruntime")]
pub use engine::onnxruntime::{OnnxRuntimeEngine, Provider};
pub use engine::plan::{Engine, Plan, TapSink, Wanted};
pub use engine::tract_engine::TractEngine;
pub use measure::behind::Behind;
pub use measure::capture::{Captured, Keep, Kept, Walk};
pub use measure::channel_stats::{ChannelStats, FoldStats, StatOptions, Statistics};
pub use measure::compare::{
    Outputs, Reduce, Reference, compare, compare_few, compare_with, outputs, reduce_outputs,
};
pub use measure::decoder::{DecoderData, decoder_data, is_decoder, starts_without_cache};
pub use measure::distributions::Logarithms;
pub use measure::gathered::{
    Gathered, GatheredStatistics, finish as finish_statistics, merge as merge_statistics,
    read as read_statistics, write as write_statistics,
};
pub use measure::labelled::{Labelled, LabelledOptions};
pub use measure::largest::LargeToken;
pub use measure::metric::{Answer, Metric, MetricError, MetricKind, MinMetric, Score};
pub use measure::parallel::{MAX_THREADS, with_threads};
pub use measure::ranges::{Ranged, ranges};
pub use measure::row_error::RowError;
pub use measure::shapes::shapes;
pub use measure::statistics::{gather, statistics, statistics_and, statistics_and_tokens};
pub use measure::steps::{StepError, Steps};
pub use measure::streams::{Keep as KeepOutputs, Stream, run_streams};
pub use measure::sums::{OutputComparison, judged};
pub use measure::vectors::{Vectors, VectorsOf, vectors};
pub use measure::weights::weights_of;
