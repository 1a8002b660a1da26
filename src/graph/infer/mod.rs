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
mod pick;
mod product;
mod reduce;
mod rule;
mod table;
#[cfg(test)]
mod tests;

pub use call::Call;
pub use fact::{Dim, Dims, Fact, Limits, Value, known};
pub use facts::{Facts, stated};
pub use pick::slice_indices;
pub use table::MICROSOFT;

use rule::{Output, Shapes, Slot, Values};
use table::{row, row_of};

use crate::onnx::proto::NodeProto;
use crate::onnx::tensor;

/// What is known of the outputs of a node, one fact each.
pub fn infer(call: &Call) -> Vec<Fact> {
    let mut facts = vec![Fact::default(); call.node.output.len()];
    let Some(row) = row_of(call.node) else {
        return facts;
    };
    let tied = (0..call.count())
        .filter(|&slot| matches!(row.types.input(slot), Slot::T))
        .find_map(|slot| call.dtype(slot));
    for (at, fact) in facts.iter_mut().enumerate() {
        fact.dtype = match row.types.output(at) {
            Slot::T => tied,
            Slot::Any => None,
            Slot::Is(dtype) => Some(dtype),
            Slot::By(rule) => rule(call),
        };
    }
    // How many outputs the rules are about.
    let count = match row.shapes {
        Shapes::Unknown => 0,
        Shapes::First(rule) => {
            if let Some(first) = facts.first_mut() {
                first.dims = rule(call);
            }
            1
        }
        Shapes::Each(rule) => {
            for (fact, dims) in facts.iter_mut().zip(rule(call).unwrap_or_default()) {
                fact.dims = Some(dims);
            }
            facts.len()
        }
    };
    if let Some(compute) = row.values.compute() {
        for (number, fact) in facts.iter_mut().enumerate().take(count) {
            if let Some(output) = output(call, number, fact) {
                fact.value = compute(call, &output).filter(|value| fits(value, &output));
            }
        }
    }
    facts
}

/// Output `number`, if its elements may be computed at all.
fn output(call: &Call, number: usize, fact: &Fact) -> Option<Output> {
    let dtype = fact.dtype?;
    let elements = fact::product(fact.dims.as_ref()?)?;
    (elements <= call.limits.of(dtype)).then_some(Output {
        number,
        dtype,
        shape: fact.shape()?,
    })
}

/// Whether a value is one of the type and shape of the output. An integer that the type cannot hold has overflowed.
fn fits(value: &Value, out: &Output) -> bool {
    let of_type = match value {
        Value::Ints(a) => fact::int_range(out.dtype)
            .is_some_and(|(low, high)| a.iter().all(|v| (low..=high).contains(v))),
        Value::Floats(_) => tensor::is_float(out.dtype),
    };
    of_type && value.shape() == out.shape
}

/// Operators that are evaluated over constants of any size, weights included.
pub fn constant_expression(op: &str) -> bool {
    row("", op).is_some_and(|row| matches!(row.values, Values::Constants(_)))
}

/// Whether the elements of a node's outputs may follow from those of its inputs, or from their shapes.
pub fn has_values(node: &NodeProto) -> bool {
    row_of(node).is_some_and(|row| row.values.compute().is_some())
}

/// Whether the elements of a node's outputs follow from the shapes of its inputs alone.
pub fn from_shapes(node: &NodeProto) -> bool {
    row_of(node).is_some_and(|row| matches!(row.values, Values::OfShape(_)))
}
