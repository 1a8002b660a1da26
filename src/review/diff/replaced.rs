//! A product that another operator computes now, with its weight in blocks: told in the line of the weight.

use super::blocks::of;
use super::change::{Kind, Part, name, word};
use super::compare::Comparer;
use super::scope::{Scope, label};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

impl Comparer<'_, '_> {
    /// Keeps the lines of a change that are not of attributes which the weight explains.
    pub(super) fn without_explained(
        &self,
        change: &mut Vec<Vec<Part>>,
        a: &NodeProto,
        b: &NodeProto,
    ) {
        if a.op_type() == b.op_type() {
            return;
        }
        change.retain(|line| {
            let first = line.first().map(Part::text).unwrap_or_default();
            let attribute = first.trim_end_matches(": ");
            !explains(attribute, a) && !explains(attribute, b)
        });
    }

    /// A product that another operator with a weight in blocks computes now, or did before: told in the line of its weight, if
    /// nothing else differs. Returns whether it is.
    pub(super) fn told_by_weight(
        &mut self,
        j: usize,
        a: &NodeProto,
        renames: &[Vec<Part>],
    ) -> bool {
        let b = self.m.b.node(j);
        let by_blocks = |node: &NodeProto| node.op_type() == op::MatMulNBits;
        if by_blocks(a) == by_blocks(b) {
            return false;
        }
        let weight = self.at_b[j]
            .iter_mut()
            .rev()
            .find(|c| c.kind == Kind::Weight);
        let Some(change) = weight else {
            return false;
        };
        change.renames.extend(renames.iter().cloned());
        change.details.extend(operators(a, b));
        let rounds = |scope: &Scope, node| {
            let level = attr_i(node, "accuracy_level").unwrap_or(0);
            of(scope, node).is_some_and(|w| w.rounds_activations(level))
        };
        if rounds(&self.m.b, b) {
            let text = "activations in 8 bits per token and group, found at run time";
            change.details.push(vec![word(text)]);
        }
        true
    }
}

/// `MatMul → MatMulNBits NODE`
fn operators(a: &NodeProto, b: &NodeProto) -> Option<Vec<Part>> {
    let ops = format!("{} → {}  ", a.op_type(), b.op_type());
    Some(vec![word(ops), name(label(b))])
}

/// Whether attributes of a node only say what its weight in blocks is like.
fn explains(attribute: &str, node: &NodeProto) -> bool {
    let own = ["K", "N", "accuracy_level", "bits", "block_size"];
    node.op_type() == op::MatMulNBits && own.contains(&attribute)
}
