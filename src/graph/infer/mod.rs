//! What operators do, as far as it is known before anything runs: types, shapes and small values.
//!
//! A [`Fact`] says what is known of a value: its type, its rank, some of its sizes, its elements. [`infer`] tells from the
//! facts of a node's inputs those of its outputs. It knows every operator by one row of `table.rs` (name → types, rule for
//! shapes, rule for values); the rules are in a file per family:
//!
//! | file | rules of |
//! |---|---|
//! | `elementwise` | arithmetic, comparisons, casts, broadcasting |
//! | `layout` | Reshape, Transpose, Squeeze, Expand, Tile, … |
//! | `pick` | Slice, Gather, Split, Concat, Pad, TopK, … |
//! | `reduce` | Reduce…, ArgMax |
//! | `product` | MatMul, Gemm, Einsum, convolutions, pools |
//! | `make` | Shape, Constant, ConstantOfShape, Range, …, and the types that attributes name |
//!
//! Every rule works with what it gets: the rank alone, some sizes, a list of which only the length is known. What does not
//! follow is not known, never a guess, and more knowledge about the inputs never contradicts what was inferred with less.
//!
//! Who asks: raising of old operator sets ([`opset`](super::opset); ranks and types), the calibration copy (shapes and sizes
//! of one run), the sites (sizes that slices are made with), and [`View::constant`](super::View::constant) (weights).

mod call;
mod elementwise;
mod fact;
mod facts;
mod layout;
mod make;
mod node;
mod pick;
mod product;
mod reduce;
mod rule;
mod sizes;
mod table;
#[cfg(test)]
mod tests;

pub use call::Call;
pub(crate) use call::axis_of;
pub use fact::{Dim, Dims, Fact, Limits, Value, known, product};
pub use facts::{Facts, stated};
pub use node::{constant_expression, from_shapes, has_values, infer};
pub use pick::slice_indices;
pub use sizes::fixed_sizes;
pub use table::MICROSOFT;
