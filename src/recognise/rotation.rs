//! Rotations before Linears, as `rewrite::rotate` writes them:
//!
//! ```text
//! Reshape([.., A, B]) ── MatMul(·, H_B: [B, B]) ── MatMul(H_A: [A, A], ·) ── Reshape([.., A · B])
//! Reshape([.., A, B]) ── MatMul(·, H_B: [B, B]) ───────────────────────── Reshape([.., A · B])
//! ```
//!
//! *Matches* by form alone, because names do not survive other tools: one product with a constant on the right, or that and one
//! with a constant on the left, both square and orthogonal, between two Reshapes that split and join the last axis, with no
//! other reader in between. No layer of a network is that: a Linear that is followed by a constant on the left mixes tokens,
//! and trained weights are not orthogonal.
//!
//! *Why*: the first product has a constant [K, N] on the right and would be a Linear, and quantized, in a second run.

use super::weight::weight_facts;
use crate::graph::{NodeId, ValueId, View, blocks_of, is_orthogonal};
use crate::onnx::op;

/// A rotation of A · B channels that is written in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenRotation {
    /// The Reshape that splits the channels.
    pub split: NodeId,
    /// The product with H_B.
    pub inner: NodeId,
    /// The product with H_A, where all channels are mixed and not only blocks of B.
    pub outer: Option<NodeId>,
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
    let reader = |node: NodeId| Some(view.only_reader(view.output(node, 0)?)?.0);
    let (inner, outer) = match (view.is_constant(left), view.is_constant(right)) {
        (false, true) => (node, reader(node).filter(|&n| view.op(n) == op::MatMul)),
        (true, false) => (view.producer(right)?.0, Some(node)),
        _ => return None,
    };
    let last = outer.unwrap_or(inner);
    let split = view.producer(view.input(inner, 0)?)?.0;
    let joined = reader(last)?;
    let products = view.op(inner) == op::MatMul
        && outer.is_none_or(|outer| view.input(outer, 1) == view.output(inner, 0));
    let between = [split, joined].iter().all(|&n| view.op(n) == op::Reshape);
    let alone = reader(split)? == inner && outer.is_none_or(|outer| reader(inner) == Some(outer));
    if !products || !between || !alone {
        return None;
    }
    let b = square(view, view.input(inner, 1)?)?;
    let a = blocks_of(&target(view, split)?, &target(view, joined)?, b)?;
    // Sizes first: they cost nothing to read.
    let outer_fits = match outer {
        Some(outer) => square(view, view.input(outer, 0)?)? == a,
        None => true,
    };
    if !outer_fits {
        return None;
    }
    let orthogonal = |value| Some(is_orthogonal(&view.constant(value)?.into_float()?.0));
    let left = outer.map_or(Some(true), |outer| orthogonal(view.input(outer, 0)?));
    (left? && orthogonal(view.input(inner, 1)?)?).then_some(WrittenRotation {
        split,
        inner,
        outer,
        joined,
        factors: (a, b),
    })
}

/// n of a constant [n, n].
fn square(view: &View, value: ValueId) -> Option<usize> {
    match weight_facts(view, value)?.0[..] {
        [rows, columns] => (rows == columns).then_some(rows),
        _ => None,
    }
}

fn target(view: &View, reshape: NodeId) -> Option<Vec<i64>> {
    view.constant(view.input(reshape, 1)?)?.into_ints()
}
