//! What is measured while a model runs: statistics and ranges of values inside it, and how two models' outputs differ.

pub(super) mod behind;
pub(super) mod capture;
pub(super) mod channel_stats;
pub(super) mod compare;
pub(super) mod decoder;
pub(super) mod distributions;
pub(super) mod extremes;
mod fills;
pub(super) mod gathered;
pub(super) mod labelled;
pub(super) mod largest;
pub(super) mod metric;
pub(super) mod parallel;
pub(super) mod ranges;
pub(super) mod row_error;
pub(super) mod shapes;
mod sizes;
pub(super) mod statistics;
pub(super) mod steps;
pub(super) mod streams;
pub(super) mod sums;
pub(super) mod vectors;
pub(super) mod weights;
