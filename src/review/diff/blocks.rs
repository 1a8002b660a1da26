//! Weights in blocks in words: `4 bits in groups of 32, symmetric, scale 0.01..0.03`.

use super::change::{Kind, Part, name, range_parts, word};
use super::compare::Comparer;
use super::constant::{self, Distance};
use super::scope::{Scope, label};
use super::trace::Trace;
use crate::graph::{Blocked, Symmetry};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};

/// The weight in blocks that a node reads.
pub(super) fn of<'m>(scope: &Scope<'m>, node: &NodeProto) -> Option<Blocked<'m>> {
    Blocked::of(node, &|name| scope.constant(name))
}

/// What a weight is stored as.
pub(super) fn words(blocked: &Blocked) -> Vec<Part> {
    let what = match blocked.integers() {
        Some(DataType::Uint8) | None => format!("{} bits", blocked.bits),
        Some(dtype) => dtype.as_str_name().to_lowercase(),
    };
    let symmetry = match blocked.symmetry() {
        Symmetry::Symmetric => "symmetric",
        Symmetry::Asymmetric => "asymmetric",
        Symmetry::FloatZero => "with float zero points",
    };
    let permuted = if blocked.is_permuted() {
        ", with g_idx"
    } else {
        ""
    };
    let group = blocked.block;
    let text = format!("{what} in groups of {group}, {symmetry}{permuted}, scale ");
    let mut parts = vec![word(text)];
    parts.extend(range_parts(constant::range(blocked.scales())));
    parts
}

/// How far two constants are apart, of which one at least is in blocks.
pub(super) fn distance(a: (&TensorProto, &Trace), b: (&TensorProto, &Trace)) -> Option<Distance> {
    let floats = |(t, trace): (&TensorProto, &Trace)| {
        let blocked = trace.blocked.as_ref()?;
        let floats = blocked.floats()?;
        Some(tensor::from_f32(
            t.name(),
            &blocked.shape,
            &floats,
            DataType::Float,
        ))
    };
    let (x, y) = (floats(a), floats(b));
    // What could not be read as floats is not compared as integers.
    if x.is_none() && a.1.blocked.is_some() || y.is_none() && b.1.blocked.is_some() {
        return None;
    }
    let left = x
        .as_ref()
        .map_or((a.0, a.1.quantized.as_ref()), |t| (t, None));
    let right = y
        .as_ref()
        .map_or((b.0, b.1.quantized.as_ref()), |t| (t, None));
    constant::distance(left, right)
}

impl Comparer<'_, '_> {
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
pub(super) fn explains(attribute: &str, node: &NodeProto) -> bool {
    let own = ["K", "N", "accuracy_level", "bits", "block_size"];
    node.op_type() == op::MatMulNBits && own.contains(&attribute)
}

/// Keeps the lines of a change that are not of attributes which the weight explains.
pub(super) fn without_explained(change: &mut Vec<Vec<Part>>, a: &NodeProto, b: &NodeProto) {
    if a.op_type() == b.op_type() {
        return;
    }
    change.retain(|line| {
        let first = line.first().map(Part::text).unwrap_or_default();
        let attribute = first.trim_end_matches(": ");
        !explains(attribute, a) && !explains(attribute, b)
    });
}
