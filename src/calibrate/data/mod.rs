//! From what a user names to checked batches: files, arrays, the inputs a model wants, and those it can do without.

pub(super) mod array;
mod axes;
mod cache;
pub(super) mod dataset;
pub(super) mod error;
mod files;
pub(super) mod fill;
mod in_memory;
pub(super) mod input;
pub(super) mod labels;
mod masks;
pub(super) mod numbers;
mod one_by_one;
mod origins;
pub(super) mod part;
pub(super) mod signature;
pub(super) mod sources;
mod stored;
mod synthetic;
mod table;
pub(super) mod tokens;
