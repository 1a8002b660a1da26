//! Strategies: each takes what would be written, asks the judge about other plans, and returns the better one.
//!
//! ```text
//! rotate, or exact ─▶ open ─▶ wider ─▶ drop ─▶ rotate what was dropped ─▶ sequential ─▶ raise ─▶ keep_float ─▶ attention ─▶ embeddings ─▶ qoperator (a note) ─▶ written
//! ```
//!
//! Numbers decide; no strategy knows an engine, or how a model is made.

mod allowance;
mod attention;
mod budget;
mod drop;
mod embeddings;
mod exact;
mod keep_float;
mod metric;
mod open;
mod price;
mod qoperator;
mod raise;
mod rotate;
mod sequential;
mod subset;
#[cfg(test)]
mod tests;
mod wider;

pub(crate) use attention::quantize_attention;
pub(crate) use drop::{drop_what_hurts, units};
pub(crate) use embeddings::quantize_embeddings;
pub(crate) use exact::make_exact;
pub(crate) use keep_float::{Wish, keep_float};
pub(crate) use metric::unless_metric_falls;
pub(crate) use open::{conclude, open};
pub(crate) use price::{offers, offers_for_dropped};
pub(crate) use qoperator::compare_with_qdq;
pub(crate) use raise::{raise_bits, raises};
pub(crate) use rotate::{Rotated, rotate, rotate_dropped};
pub(crate) use sequential::round_in_sequence;
pub(crate) use wider::widen_if_below;
