//! From a node with what is known of its inputs to what is known of its outputs.

use super::call::Call;
use super::fact::{Fact, Value, int_range, product};
use super::rule::{Output, Shapes, Slot, Values};
use super::table::{row, row_of};
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
    let elements = product(fact.dims.as_ref()?)?;
    (elements <= call.limits.of(dtype)).then_some(Output {
        number,
        dtype,
        shape: fact.shape()?,
    })
}

/// Whether a value is one of the type and shape of the output. An integer that the type cannot hold has overflowed.
fn fits(value: &Value, out: &Output) -> bool {
    let of_type = match value {
        Value::Ints(a) => int_range(out.dtype)
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
