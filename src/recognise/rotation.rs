//! Rotations before Linears, as `rewrite::rotate` writes them:
//!
//! ```text
//! Reshape([.., A, B]) ── MatMul(·, H_B: [B, B]) ── MatMul(H_A: [A, A], ·) ── Reshape([.., A · B])
//! ```
//!
//! *Matches* by form alone, because names do not survive other tools: two products of one chain, one with a constant on the
//! right and one with a constant on the left, both square and orthogonal, between two Reshapes, with no other reader in
//! between. No layer of a network is that: a Linear that is followed by a constant on the left mixes tokens, and trained
//! weights are not orthogonal.
//!
//! *Why*: the first product has a constant [K, N] on the right and would be a Linear, and quantized, in a second run.

use super::weight::weight_facts;
use crate::graph::{NodeId, View, is_orthogonal};
use crate::onnx::op;

/// A rotation of A · B channels that is written in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenRotation {
    /// The Reshape that splits the channels.
    pub split: NodeId,
    /// The product with H_B.
    pub inner: NodeId,
    /// The product with H_A.
    pub outer: NodeId,
    /// The Reshape that joins the channels.
    pub joined: NodeId,
    /// A and B.
    pub factors: (usize, usize),
}

/// The rotation that the product `node` is a part of, if it is.
pub fn rotation_part(view: &View, node: NodeId) -> Option<WrittenRotation> {
    if view.op(node) != op::MatMul {
        return None;
    }
    let (left, right) = (view.input(node, 0)?, view.input(node, 1)?);
    let (inner, outer) = match (view.is_constant(left), view.is_constant(right)) {
        (false, true) => (node, view.only_reader(view.output(node, 0)?)?.0),
        (true, false) => (view.producer(right)?.0, node),
        _ => return None,
    };
    let products = [inner, outer].iter().all(|&n| view.op(n) == op::MatMul);
    let (turned, reader) = (view.output(inner, 0)?, view.input(outer, 1)?);
    let split = view.producer(view.input(inner, 0)?)?.0;
    let joined = view.only_reader(view.output(outer, 0)?)?.0;
    let between = [split, joined].iter().all(|&n| view.op(n) == op::Reshape);
    let alone = view.only_reader(view.output(split, 0)?)?.0 == inner
        && view.only_reader(turned)?.0 == outer
        && turned == reader;
    if !products || !between || !alone {
        return None;
    }
    // Sizes first: they cost nothing to read.
    let square = |value| match weight_facts(view, value)?.0[..] {
        [rows, columns] => (rows == columns).then_some(rows),
        _ => None,
    };
    let (h_a, h_b) = (view.input(outer, 0)?, view.input(inner, 1)?);
    let (a, b) = (square(h_a)?, square(h_b)?);
    let target = view.constant(view.input(split, 1)?)?.into_ints()?;
    let target: Vec<i64> = target.to_vec();
    if !target.ends_with(&[a as i64, b as i64]) {
        return None;
    }
    let orthogonal = |value| Some(is_orthogonal(&view.constant(value)?.into_float()?.0));
    (orthogonal(h_a)? && orthogonal(h_b)?).then_some(WrittenRotation {
        split,
        inner,
        outer,
        joined,
        factors: (a, b),
    })
}
