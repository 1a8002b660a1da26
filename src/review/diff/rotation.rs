//! Rotations before Linears, as `rewrite::rotate` writes them; [`crate::recognise::rotation_part`] has the picture.

use super::scope::Scope;
use crate::graph::{blocks_of, is_orthogonal};
use crate::onnx::op;
use crate::onnx::tensor;

/// Reshape, one MatMul or two, Reshape.
pub(super) struct Chain<'m> {
    /// In graph order.
    pub nodes: Vec<usize>,
    /// A and B.
    pub factors: (usize, usize),
    /// Whether all channels are mixed, and not only those of blocks of B.
    pub all: bool,
    /// What is rotated.
    pub input: &'m str,
    /// The rotated value.
    pub output: &'m str,
    /// The targets of both Reshapes, and the matrices.
    pub constants: Vec<&'m str>,
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
    let last = before(joined, 0, op::MatMul)?;
    let outer = before(last, 1, op::MatMul).map(|_| last);
    let inner = match outer {
        Some(outer) => before(outer, 1, op::MatMul)?,
        None => last,
    };
    let split = before(inner, 0, op::Reshape)?;
    let input = |i: usize, slot: usize| scope.node(i).input.get(slot).map(String::as_str);
    let (targets, h_b) = ([input(split, 1)?, input(joined, 1)?], input(inner, 1)?);
    let b = size(scope, h_b)?;
    let (a, h_a) = match outer {
        Some(outer) => (size(scope, input(outer, 0)?)?, input(outer, 0)),
        None => (blocks(scope, targets, b)?, None),
    };
    Some(Chain {
        nodes: [split, inner]
            .into_iter()
            .chain(outer)
            .chain([joined])
            .collect(),
        factors: (a, b),
        all: outer.is_some(),
        input: input(split, 0)?,
        output: scope.node(joined).output.first()?,
        constants: [targets[0], h_b]
            .into_iter()
            .chain(h_a)
            .chain([targets[1]])
            .collect(),
    })
}

/// A of Reshapes to [.., A, B] and to [.., A · B].
fn blocks(scope: &Scope, targets: [&str; 2], b: usize) -> Option<usize> {
    let [split, joined] = targets.map(|v| {
        Some(
            tensor::int_array(scope.constant(v)?)
                .ok()?
                .into_raw_vec_and_offset()
                .0,
        )
    });
    blocks_of(&split?, &joined?, b)
}

/// The rotation whose first node is `split`.
pub(super) fn starting_at<'m>(scope: &Scope<'m>, split: usize) -> Option<Chain<'m>> {
    let next = |i: usize| {
        let output = scope.node(i).output.first()?;
        scope.readers(output).first().map(|&(reader, _)| reader)
    };
    let third = next(next(split)?)?;
    let chain = ending_at(scope, third).or_else(|| ending_at(scope, next(third)?))?;
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
