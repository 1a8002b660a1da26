//! A scale for every token: division by the largest magnitude, Q/DQ, product, multiplication, in one line.
//!
//! ```text
//! a = Max(ReduceMax(Abs(x)), 1e-6)        x ─ Div(a) ─ Q ─ DQ ─ MatMul ─ Mul(a)
//! ```

use super::scope::Scope;
use crate::onnx::op;

/// More steps than are written between Abs and Div.
const STEPS: usize = 6;

/// The nodes around a Q/DQ pair that make its scale one per token.
pub(super) struct PerToken<'m> {
    /// Cast, Abs, ReduceMax, Max, Div and every Mul, in no order.
    pub nodes: Vec<usize>,
    /// The value that is quantized.
    pub input: &'m str,
}

/// The form around the QuantizeLinear that reads `value`.
pub(super) fn around<'m>(scope: &Scope<'m>, value: &str) -> Option<PerToken<'m>> {
    let &(divide, _) = scope.producer.get(value)?;
    let (mut input, mut nodes) = quotient(scope, divide)?;
    let factor = scope.node(divide).input[1].as_str();
    let readers = scope.readers(factor).iter().map(|r| r.0);
    nodes.extend(readers.filter(|&r| scope.node(r).op_type() == op::Mul));
    nodes.push(divide);
    // float16 is divided behind a Cast.
    if let Some(&(cast, _)) = scope.producer.get(input)
        && scope.node(cast).op_type() == op::Cast
    {
        input = &scope.node(cast).input[0];
        nodes.push(cast);
    }
    Some(PerToken { nodes, input })
}

/// What a Div divides by its own largest magnitude, and the nodes that compute that.
pub(super) fn quotient<'m>(scope: &Scope<'m>, divide: usize) -> Option<(&'m str, Vec<usize>)> {
    let node = scope.node(divide);
    (node.op_type() == op::Div).then_some(())?;
    let [x, factor] = [0, 1].map(|slot| node.input.get(slot).map_or("", String::as_str));
    let (mut value, mut nodes) = (factor, Vec::new());
    for _ in 0..STEPS {
        let &(i, _) = scope.producer.get(value)?;
        let node = scope.node(i);
        nodes.push(i);
        let first = node.input.first()?.as_str();
        let second = node.input.get(1).map_or("", String::as_str);
        value = match node.op_type() {
            op::Abs | op::LeakyRelu => return (first == x).then_some((x, nodes)),
            op::ReduceMax | op::Cast | op::Clip | op::Identity => first,
            op::Max | op::Mul | op::Add | op::Div if scope.constant(second).is_some() => first,
            op::Max | op::Mul | op::Add if scope.constant(first).is_some() => second,
            _ => return None,
        };
    }
    None
}
