//! Pools whose channels OpenVINO mixes up.
//!
//! OpenVINO 2026.4.1 (CPU) fuses what follows a Reduce into it, quantization included. Where the Reduce leaves two axes,
//! `[B, L, C]` → `[B, C]`, it then takes a value per channel for one per another axis:
//!
//! ```text
//! x [B, L, C] ── Reduce, keepdims=0 ── [B, C] ── Mul by [C] ── QuantizeLinear        the product behind it is wrong
//! x ── Mul by [C] ── Reduce, keepdims=0 ── QuantizeLinear                            too: the Mul goes through the Reduce
//! ```
//!
//! With `keepdims=1`, or with three axes left, it is right; so is a norm with shift before the Reduce.

use crate::graph::infer::{Facts, Limits, stated};
use crate::graph::{NodeId, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;

/// Operators between a pool and the QuantizeLinear behind it, at most.
const MOST: usize = 16;

/// Finds pools in one graph.
pub struct Pools {
    facts: Facts,
    /// Whether there is a Reduce without kept axes at all.
    any: bool,
}

/// A Reduce without kept axes behind which a value per channel is computed wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The Reduce.
    pub node: NodeId,
    /// What computes the value per channel; `None` if nothing does yet.
    pub scaled: Option<NodeId>,
}

impl Pools {
    /// What is known of the ranks of a graph.
    pub fn new(view: &View) -> Pools {
        let mut facts = Facts::new(Limits::SIZES);
        let any = view.nodes().any(|(node, _)| drops_axes(view, node));
        if any {
            let graph = view.graph();
            for info in graph.input.iter().chain(&graph.value_info) {
                facts.know(info.name(), stated(info));
            }
            for tensor in &graph.initializer {
                facts.know(tensor.name(), facts.tensor(tensor));
            }
            facts.follow(graph.node.iter());
        }
        Pools { facts, any }
    }

    /// The pool that `value`, which is to be quantized, comes from; `None` if it comes from none that matters.
    pub fn behind(&self, view: &View, mut value: ValueId) -> Option<Pool> {
        let mut scaled = None;
        // Whether a Mul before the pool goes through all that is behind it.
        let mut linear = true;
        for _ in 0..if self.any { MOST } else { 0 } {
            let (node, _) = view.producer(value)?;
            if drops_axes(view, node) {
                let rank = self.facts.rank(view.name(view.output(node, 0)?));
                let before = || scale_before(view, view.input(node, 0)?);
                let scaled = scaled.or_else(|| before().filter(|_| linear));
                return rank
                    .is_none_or(|rank| rank == 2)
                    .then_some(Pool { node, scaled });
            }
            let slot = match view.op(node) {
                op::Identity
                | op::Cast
                | op::Dropout
                | op::Reshape
                | op::Flatten
                | op::Squeeze
                | op::Unsqueeze
                | op::Relu => 0,
                op::Tanh
                | op::Sigmoid
                | op::Erf
                | op::Gelu
                | op::Clip
                | op::Sqrt
                | op::Exp
                | op::Abs
                | op::LeakyRelu
                | op::Elu
                | op::Softplus => {
                    linear = false;
                    0
                }
                op::Add | op::Sub | op::Mul | op::Div => {
                    let (slot, several) = constant_side(view, node)?;
                    if several {
                        scaled = scaled.or(Some(node));
                    }
                    slot
                }
                _ => return None,
            };
            value = view.input(node, slot)?;
        }
        None
    }
}

/// Whether the node is a Reduce whose axes go.
fn drops_axes(view: &View, node: NodeId) -> bool {
    view.op(node).starts_with("Reduce") && attr_i(view.node(node), "keepdims") == Some(0)
}

/// The input of an arithmetic node that is no constant, and whether the other has more than one element.
fn constant_side(view: &View, node: NodeId) -> Option<(usize, bool)> {
    let several = |slot: usize| {
        let value = view.input(node, slot).filter(|v| view.is_constant(*v))?;
        Some(view.shape(value)?.iter().any(|n| *n != Some(1)))
    };
    several(1)
        .map(|n| (0, n))
        .or_else(|| several(0).map(|n| (1, n)))
}

/// What scales each channel right before a pool, without a shift that would hold it there.
fn scale_before(view: &View, value: ValueId) -> Option<NodeId> {
    let (node, _) = view.producer(value)?;
    match view.op(node) {
        op::Mul | op::Div => constant_side(view, node)
            .filter(|(_, several)| *several)
            .map(|_| node),
        op::LayerNormalization => {
            let beta = view
                .input(node, 2)
                .and_then(|beta| view.constant(beta)?.into_float());
            let shifts = beta.is_some_and(|(beta, _)| beta.iter().any(|b| *b != 0.0));
            (!shifts).then_some(node)
        }
        op::RMSNormalization | op::SimplifiedLayerNormalization => Some(node),
        _ => None,
    }
}
