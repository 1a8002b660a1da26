//! The largest magnitude of every token, by which inputs are divided that are quantized with a scale per token.
//!
//! ```text
//! a = ReduceMax(Abs(x), axes = [−1], keepdims = 1), then Max, Mul, Add, Div with scalars, Clip, Cast
//!                                                   LeakyRelu(x, alpha < 0) for Abs: one-sided tokens
//! ```

use crate::graph::{NodeId, ValueId, View};
use crate::onnx::node::{attr_f, attr_i, attr_ints};
use crate::onnx::op;

/// More steps than are written between the parts.
const STEPS: usize = 6;

/// The value whose largest magnitude per row `value` is, one number for each; `None` if it is something else.
pub fn magnitude(view: &View, mut value: ValueId) -> Option<ValueId> {
    for _ in 0..STEPS {
        let (node, _) = view.producer(value)?;
        let input = |slot| view.input(node, slot);
        let scalar = |slot| input(slot).is_some_and(|v| view.scalar(v).is_some());
        value = match view.op(node) {
            op::ReduceMax if over_last_axis(view, node) => {
                let (sizes, _) = view.producer(input(0)?)?;
                return is_size(view, sizes).then(|| view.input(sizes, 0))?;
            }
            op::Cast | op::Clip | op::Identity => input(0)?,
            op::Max | op::Mul | op::Add | op::Div if scalar(1) => input(0)?,
            op::Max | op::Mul | op::Add if scalar(0) => input(1)?,
            _ => return None,
        };
    }
    None
}

/// Whether a node gives values without their signs, those below 0 possibly many times as large.
fn is_size(view: &View, node: NodeId) -> bool {
    let alpha = || attr_f(view.node(node), "alpha");
    match view.op(node) {
        op::Abs => true,
        op::LeakyRelu => alpha().is_some_and(|alpha| alpha < 0.0),
        _ => false,
    }
}

/// What a value was before Casts.
pub fn uncast(view: &View, mut value: ValueId) -> ValueId {
    while let Some((node, _)) = view.producer(value)
        && matches!(view.op(node), op::Cast | op::Identity)
        && let Some(input) = view.input(node, 0)
    {
        value = input;
    }
    value
}

fn over_last_axis(view: &View, node: NodeId) -> bool {
    let proto = view.node(node);
    let stored = || view.constant(view.input(node, 1)?)?.into_ints();
    let axes = attr_ints(proto, "axes")
        .map(<[i64]>::to_vec)
        .or_else(stored);
    let rank = view
        .input(node, 0)
        .and_then(|x| view.shape(x))
        .map(|shape| shape.len() as i64);
    let is_last = |axis: i64| axis == -1 || rank.is_some_and(|rank| axis == rank - 1);
    attr_i(proto, "keepdims").unwrap_or(1) == 1
        && axes.is_some_and(|axes| matches!(axes.as_slice(), &[axis] if is_last(axis)))
}

/// The value that `value` is over its largest magnitude per row, possibly behind Casts; `None` if it is no such quotient.
pub fn over_magnitude(view: &View, value: ValueId) -> Option<ValueId> {
    let divide = view.producer_is(uncast(view, value), op::Div)?;
    let x = view.input(divide, 0)?;
    let of = magnitude(view, view.input(divide, 1)?)?;
    (uncast(view, x) == uncast(view, of)).then_some(x)
}
