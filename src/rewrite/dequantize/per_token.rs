//! What the form with a scale per token leaves when nothing is rounded any more: a division whose product undoes it.
//!
//! ```text
//! x ─ Div(a) ─ MatMul(W) ─ Mul(a) ─ y        x ─ MatMul(W) ─ y        a: one number per row, [.., 1]
//! ```
//!
//! *Matches* a factor that is a ReduceMax over the last axis, through operators that keep one number per row, and between Div and
//! Mul one MatMul with a constant weight, Casts, and products with constants. Row by row both are the same but for rounding.

use crate::graph::{NodeId, Patch, ValueId, View, apply};
use crate::onnx::Model;
use crate::onnx::op;
use crate::recognise::{magnitude, uncast};
use crate::rewrite::RewriteError;

/// More steps than are written between the parts.
const STEPS: usize = 6;

/// Takes out every pair of a Div and a Mul.
pub(super) fn without_magnitudes(model: &mut Model) -> Result<(), RewriteError> {
    let view = View::new(model);
    let mut patch = Patch::new("no magnitude per token");
    let pairs: Vec<Pair> = view.nodes().filter_map(|(n, _)| pair(&view, n)).collect();
    for pair in &pairs {
        patch.rewire(pair.reader, pair.slot, view.name(pair.x));
        patch.rename_output(pair.last, 0, pair.output.clone());
        patch.remove(pair.mul);
    }
    drop(view);
    match pairs.is_empty() {
        true => Ok(()),
        false => Ok(apply(model, vec![patch])?),
    }
}

/// A Div and the Mul that undoes it.
struct Pair {
    /// What is divided.
    x: ValueId,
    /// The node that reads the quotient, and where.
    reader: NodeId,
    slot: usize,
    /// Multiplies again, and the node before it.
    mul: NodeId,
    last: NodeId,
    /// The value that the Mul computes.
    output: String,
}

fn pair(view: &View, mul: NodeId) -> Option<Pair> {
    (view.op(mul) == op::Mul).then_some(())?;
    let inputs = [view.input(mul, 0)?, view.input(mul, 1)?];
    let sides = [(inputs[0], inputs[1]), (inputs[1], inputs[0])];
    sides.into_iter().find_map(|(product, factor)| {
        let largest_of = magnitude(view, factor)?;
        let matmul = product_behind(view, product)?;
        let (x, reader, slot) = quotient(view, matmul, factor)?;
        (uncast(view, x) == uncast(view, largest_of)).then_some(())?;
        Some(Pair {
            x,
            reader,
            slot,
            mul,
            last: view.producer(product)?.0,
            output: view.name(view.output(mul, 0)?).to_owned(),
        })
    })
}

/// The MatMul with a constant weight that a value comes from, through what a factor per row may be moved over.
fn product_behind(view: &View, mut value: ValueId) -> Option<NodeId> {
    for _ in 0..STEPS {
        view.only_reader(value)?;
        let (node, _) = view.producer(value)?;
        let input = |slot| view.input(node, slot);
        match view.op(node) {
            op::MatMul => return view.is_constant(input(1)?).then_some(node),
            op::Cast | op::Identity => value = input(0)?,
            op::Mul if view.is_constant(input(1)?) => value = input(0)?,
            op::Mul if view.is_constant(input(0)?) => value = input(1)?,
            _ => return None,
        }
    }
    None
}

/// What was divided by `factor` to be the input of a MatMul, and which input of which node is the quotient. Casts between must have
/// no other reader.
fn quotient(view: &View, matmul: NodeId, factor: ValueId) -> Option<(ValueId, NodeId, usize)> {
    let (mut reader, mut value) = (matmul, view.input(matmul, 0)?);
    for _ in 0..STEPS {
        let (node, _) = view.producer(value)?;
        match view.op(node) {
            op::Div if view.input(node, 1)? == factor => {
                return Some((view.input(node, 0)?, reader, 0));
            }
            op::Cast | op::Identity => {
                view.only_reader(value)?;
                (reader, value) = (node, view.input(node, 0)?);
            }
            _ => return None,
        }
    }
    None
}
