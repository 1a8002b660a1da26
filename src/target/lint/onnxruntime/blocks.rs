//! R10: products of weights in blocks, for which ONNX Runtime has kernels or has not.

use super::super::scope::Scope;
use super::super::{Cost, Hits};
use crate::graph::{Blocked, NodeId};
use crate::onnx::node::attr_i;
use crate::onnx::op;

/// Every MatMulNBits of the graph with its weight, if that can be read.
fn products<'m>(scope: &Scope<'m>) -> Vec<(NodeId, Option<Blocked<'m>>)> {
    let nodes = scope
        .nodes()
        .filter(|(_, node)| node.op_type() == op::MatMulNBits && node.domain() == "com.microsoft");
    nodes
        .map(|(id, _)| (id, Blocked::in_view(&scope.view, id)))
        .collect()
}

/// Bits and blocks that the operator has.
pub(super) fn form(scope: &Scope, hits: &mut Hits) {
    for (id, blocked) in products(scope) {
        let node = scope.view.node(id);
        let bits = attr_i(node, "bits").unwrap_or(4);
        let block = attr_i(node, "block_size").unwrap_or(0);
        if !matches!(bits, 2 | 4 | 8) {
            hits.at(id, format!("its weight has {bits} bits"));
        } else if !matches!(block, 16 | 32 | 64 | 128 | 256) {
            hits.at(id, format!("its weight has blocks of {block}"));
        } else if let Some(what) = blocked.filter(|_| bits == 8).and_then(|b| odd(&b)) {
            hits.at(id, format!("its weight has 8 bits with {what}"));
        }
    }
}

/// What keeps a weight from being packed.
fn odd(blocked: &Blocked) -> Option<&'static str> {
    match (blocked.is_permuted(), blocked.has_float_zero_points()) {
        (true, _) => Some("g_idx"),
        (_, true) => Some("float zero points"),
        _ => None,
    }
}

/// What has to be dequantized whole at every run.
pub(super) fn kernel(scope: &Scope, hits: &mut Hits) {
    for (id, blocked) in products(scope) {
        let Some(blocked) = blocked else { continue };
        let level = attr_i(scope.view.node(id), "accuracy_level").unwrap_or(0);
        let bits = blocked.bits;
        let why = match odd(&blocked) {
            // Rejected, by another rule.
            Some(_) if bits == 8 => continue,
            Some(what) => format!("its weight has {what}"),
            None if bits == 4 || blocked.rounds_activations(level) => continue,
            None if blocked.rounds_activations(4) => {
                format!("its weight has {bits} bits, and its accuracy_level is {level}")
            }
            None => format!("its weight has {bits} bits in blocks of {}", blocked.block),
        };
        hits.at(id, format!("{why}: it is dequantized whole at every run"));
    }
}

/// Zero points that are not read.
pub(super) fn permuted(scope: &Scope, hits: &mut Hits) {
    for (id, blocked) in products(scope) {
        let unread = |b: &Blocked| b.is_permuted() && b.bits == 4 && b.has_integer_zero_points();
        if blocked.as_ref().is_some_and(unread) {
            hits.at(id, "it has g_idx, and its zero points are not read");
        }
    }
}

/// Activations with scales by blocks.
pub(super) fn activation(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let x = product.factors[0].as_ref();
        if let Some(x) = x.filter(|x| x.is_activation() && x.block_size > 0) {
            let block = x.block_size;
            let message = format!("its activation has a scale per block of {block}");
            hits.costs(Cost::Float, product.node, message);
        }
    }
}
