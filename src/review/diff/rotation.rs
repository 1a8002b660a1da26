//! Rotations before Linears, as `rewrite::rotate` writes them; [`crate::recognise::rotation_part`] has the picture.

use super::scope::Scope;
use crate::graph::is_orthogonal;
use crate::onnx::op;
use crate::onnx::tensor;

/// Reshape, MatMul, MatMul, Reshape.
pub(super) struct Chain<'m> {
    /// In graph order.
    pub nodes: [usize; 4],
    /// A and B.
    pub factors: (usize, usize),
    /// What is rotated.
    pub input: &'m str,
    /// The rotated value.
    pub output: &'m str,
    /// The targets of both Reshapes, and both matrices.
    pub constants: [&'m str; 4],
}

/// The rotation whose last node is `joined`.
pub(super) fn ending_at<'m>(scope: &Scope<'m>, joined: usize) -> Option<Chain<'m>> {
    let before = |i: usize, slot: usize, op: &str| -> Option<usize> {
        let value = scope.node(i).input.get(slot)?;
        let (node, _) = *scope.producer.get(value.as_str())?;
        let alone = scope.readers(value).len() == 1 && !scope.is_output(value);
        (alone && scope.node(node).op_type() == op).then_some(node)
    };
    if scope.node(joined).op_type() != op::Reshape {
        return None;
    }
    let outer = before(joined, 0, op::MatMul)?;
    let inner = before(outer, 1, op::MatMul)?;
    let split = before(inner, 0, op::Reshape)?;
    let input = |i: usize, slot: usize| scope.node(i).input.get(slot).map(String::as_str);
    let (h_a, h_b) = (input(outer, 0)?, input(inner, 1)?);
    Some(Chain {
        nodes: [split, inner, outer, joined],
        factors: (size(scope, h_a)?, size(scope, h_b)?),
        input: input(split, 0)?,
        output: scope.node(joined).output.first()?,
        constants: [input(split, 1)?, h_b, h_a, input(joined, 1)?],
    })
}

/// The rotation whose first node is `split`.
pub(super) fn starting_at<'m>(scope: &Scope<'m>, split: usize) -> Option<Chain<'m>> {
    let next = |i: usize| {
        let output = scope.node(i).output.first()?;
        scope.readers(output).first().map(|&(reader, _)| reader)
    };
    let chain = ending_at(scope, next(next(next(split)?)?)?)?;
    (chain.nodes[0] == split).then_some(chain)
}

/// n of a constant orthogonal matrix `[n, n]`.
fn size(scope: &Scope, value: &str) -> Option<usize> {
    let stored = scope.constant(value)?;
    let [rows, columns] = tensor::shape(stored).ok()?[..] else {
        return None;
    };
    let orthogonal = || is_orthogonal(&tensor::float_array(stored).ok()?).then_some(rows);
    (rows == columns).then(orthogonal)?
}
