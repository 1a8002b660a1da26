//! The response of a block: what attention or a gated FFN makes of the outputs of a site's Linears.
//!
//! ```text
//! x ──┬─ Q ─┐                                     x ──┬─ gate ─ act ─┐
//!     ├─ K ─┼─ (rotary, norms, …) ─ softmax · V ─▶    │              Mul ─▶ response
//!     └─ V ─┘                       response          └─ up ─────────┘
//! ```
//!
//! Outlier Suppression+ (section 4.2) measures the loss of a site here, not at the outputs of its Linears: an error of K
//! that is the same for all keys changes nothing, an error of V is averaged by the probabilities.
//!
//! The response is the input of the next Linear. It is found by walking forward from the products `x W` (the *cuts*) to
//! the Linears behind them, through whatever stands between. What a value is made of is told by *parts*: every cut is
//! one, and every output of a Split, Slice or Gather behind it another, so that the gate and the up half of one fused
//! Linear differ. The nodes that compute the response from the cuts are then collected backwards, up to constants, graph
//! inputs, and float values that other Linears and norms give (the *sides*: K and V of cross attention).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::graph::{self, Cut, NodeId, Use, ValueId, View};
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::onnx::proto::TensorProto;
use crate::onnx::tensor;
use crate::recognise::{Linear, LinearId, Recognised, is_attention};

/// More nodes than any attention is exported to, with its mask and rotary embedding.
const MOST_NODES: usize = 500;
/// Elements of a table that is not copied for one block: what is read of it is a side.
const LARGE_TABLE: i64 = 1 << 16;
/// Elements of all constants of a block.
const MOST_ELEMENTS: i64 = 1 << 24;

/// What kind of block a response belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResponseKind {
    /// softmax(Q Kᵀ) V, or one operator that computes attention.
    Attention,
    /// act(gate) · up.
    Gated,
}

impl ResponseKind {
    /// The name of the loss in reports.
    pub fn loss(self) -> &'static str {
        match self {
            ResponseKind::Attention => "attention output",
            ResponseKind::Gated => "gated FFN",
        }
    }
}

/// How the response of one site is computed from the products of its Linears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// What the first response that is one comes from.
    pub kind: ResponseKind,
    /// What computes it, in graph order.
    pub nodes: Vec<NodeId>,
    /// The output of every Linear's MatMul or Gemm, in the order of the Linears.
    pub cuts: Vec<ValueId>,
    /// Float values computed outside of the block.
    pub sides: Vec<ValueId>,
    /// Graph inputs read, as positions in `GraphProto.input`.
    pub inputs: Vec<usize>,
    /// Initializers read, as positions in `GraphProto.initializer`.
    pub constants: Vec<usize>,
    /// The responses: usually one; two where attention and FFN read one norm; as many as there are layers for the K and V
    /// of cross attention.
    pub outputs: Vec<ValueId>,
}

impl Response {
    /// What computes the responses, to be cut out: the cuts and the sides are fed.
    pub fn part(&self) -> Cut {
        Cut {
            nodes: self.nodes.clone(),
            fed: self.cuts.iter().chain(&self.sides).copied().collect(),
            inputs: self.inputs.clone(),
            constants: self.constants.clone(),
            outputs: self.outputs.clone(),
        }
    }
}

/// The response of a site whose Linears (indices into `Recognised::linears`) are `linears`.
///
/// # Errors
/// Why there is none: a Linear reaches no other Linear, what lies between is neither attention nor a gated FFN, or it
/// cannot be cut out.
pub fn response(view: &View, found: &Recognised, linears: &[LinearId]) -> Result<Response, String> {
    let linears: Vec<&Linear> = linears.iter().map(|&l| &found.linears[l]).collect();
    if linears.iter().any(|l| !l.channels_last()) {
        return Err("its channels are not on the last axis".to_owned());
    }
    let cuts: Option<Vec<ValueId>> = linears.iter().map(|l| view.output(l.node, 0)).collect();
    let cuts = cuts.ok_or("a Linear has no output")?;
    let count = cuts.len();
    let reach = Reach::new(view, found, cuts)?;
    let reached: BTreeSet<usize> = reach
        .outputs
        .iter()
        .flat_map(|r| reach.origins(*r))
        .collect();
    if reached.len() < count {
        return Err("not all of its Linears feed another Linear".to_owned());
    }
    // A plain FFN beside attention on the same norm has the input of its second Linear for a response.
    let mut kinds = reach.outputs.iter().filter_map(|&r| reach.kind(view, r));
    let Some(kind) = kinds.next() else {
        return Err("what follows is neither attention nor a gated FFN".to_owned());
    };
    reach.cut_out(view, found, kind)
}

/// What the products of a site's Linears reach without passing through another Linear.
struct Reach {
    cuts: Vec<ValueId>,
    /// The parts of every value reached.
    parts: BTreeMap<ValueId, BTreeSet<usize>>,
    /// The cuts that every part comes from, as positions.
    origins: Vec<BTreeSet<usize>>,
    /// Inputs of the Linears reached, in graph order.
    outputs: Vec<ValueId>,
}

impl Reach {
    fn new(view: &View, found: &Recognised, cuts: Vec<ValueId>) -> Result<Reach, String> {
        let mut reach = Reach {
            parts: BTreeMap::new(),
            origins: Vec::new(),
            outputs: Vec::new(),
            cuts,
        };
        let readers = |value: ValueId| {
            view.uses(value).iter().filter_map(|reader| match reader {
                Use::Node { node, .. } => Some(*node),
                Use::Captured { .. } | Use::GraphOutput(_) => None,
            })
        };
        let mut queue: BTreeSet<NodeId> = BTreeSet::new();
        for (i, &cut) in reach.cuts.iter().enumerate() {
            reach.origins.push(BTreeSet::from([i]));
            reach.parts.insert(cut, BTreeSet::from([i]));
            queue.extend(readers(cut));
        }
        let mut seen = 0;
        // Nodes stand in topological order, so what a node reads is complete when its turn comes.
        while let Some(node) = queue.pop_first() {
            seen += 1;
            if seen > MOST_NODES {
                return Err("it reaches too much of the graph".to_owned());
            }
            if let Some(linear) = found.linears.iter().find(|l| l.node == node) {
                if !reach.outputs.contains(&linear.input) {
                    reach.outputs.push(linear.input);
                }
                if reach.outputs.len() > reach.cuts.len() {
                    return Err("it reaches more values of Linears than it has Linears".to_owned());
                }
                continue;
            }
            // The shape of a value says nothing about its numbers.
            if matches!(view.op(node), op::Shape | op::Size) {
                continue;
            }
            let known = inputs(view, node).filter_map(|value| reach.parts.get(&value));
            let parts: BTreeSet<usize> = known.flatten().copied().collect();
            let splits = matches!(view.op(node), op::Split | op::Slice | op::Gather);
            for name in &view.node(node).output {
                let Some(value) = view.value(name) else {
                    continue;
                };
                let parts = if splits {
                    let origins = parts.iter().flat_map(|&p| reach.origins[p].clone());
                    let origins = origins.collect();
                    reach.origins.push(origins);
                    BTreeSet::from([reach.origins.len() - 1])
                } else {
                    parts.clone()
                };
                reach.parts.insert(value, parts);
                queue.extend(readers(value));
            }
        }
        Ok(reach)
    }

    /// The positions of the cuts that a value depends on.
    fn origins(&self, value: ValueId) -> impl Iterator<Item = usize> {
        let parts = self.parts.get(&value).into_iter().flatten();
        parts.flat_map(|&p| self.origins[p].iter().copied())
    }

    /// What computes `output` from the cuts.
    fn kind(&self, view: &View, output: ValueId) -> Option<ResponseKind> {
        let mut kind = None;
        let mut stack = vec![output];
        let mut seen = BTreeSet::new();
        while let Some(value) = stack.pop() {
            if self.cuts.contains(&value) || !seen.insert(value) {
                continue;
            }
            let (node, _) = view.producer(value)?;
            let op = view.node(node).op_type.as_deref().unwrap_or("");
            let softmax = op == op::Softmax && is_attention(view, node);
            if softmax || op.contains(op::Attention) {
                return Some(ResponseKind::Attention);
            }
            let inside = inputs(view, node).filter(|v| self.parts.contains_key(v));
            let inside: Vec<ValueId> = inside.collect();
            if let (op::Mul, [a, b]) = (op, inside.as_slice())
                && self.parts[a].is_disjoint(&self.parts[b])
            {
                kind = Some(ResponseKind::Gated);
            }
            stack.extend(inside);
        }
        kind
    }

    /// Collects what computes the outputs.
    fn cut_out(
        self,
        view: &View,
        found: &Recognised,
        kind: ResponseKind,
    ) -> Result<Response, String> {
        let given = given(view, found);
        let outside = |value: ValueId| match view.producer(value) {
            Some((node, _)) => {
                let inside = self.parts.contains_key(&value);
                !inside && (given.contains(&value) || reads_large_table(view, node))
            }
            None => false,
        };
        let stops = |value: ValueId| self.cuts.contains(&value) || outside(value);
        let mut count = 0;
        let part = graph::cut(view, &self.outputs, stops, |node| {
            if subgraphs(view.node(node)).next().is_some() {
                return Err("there is control flow in it".to_owned());
            }
            count += 1;
            if count > MOST_NODES {
                return Err("too many nodes compute it".to_owned());
            }
            Ok(())
        })?;
        let elements = |&i: &usize| view.graph().initializer[i].dims.iter().product::<i64>();
        if part.constants.iter().map(elements).sum::<i64>() > MOST_ELEMENTS {
            return Err("its constants are too large".to_owned());
        }
        Ok(Response {
            kind,
            nodes: part.nodes,
            sides: part
                .fed
                .into_iter()
                .filter(|value| !self.cuts.contains(value))
                .collect(),
            cuts: self.cuts,
            inputs: part.inputs,
            constants: part.constants,
            outputs: part.outputs,
        })
    }
}

/// What a node reads.
fn inputs<'v>(view: &'v View, node: NodeId) -> impl Iterator<Item = ValueId> + 'v {
    let names = view.node(node).input.iter();
    names.filter_map(|name| view.value(name))
}

/// Values that are surely float, and that a block takes as they are: outputs of Linears and norms, inputs of Linears.
fn given(view: &View, found: &Recognised) -> BTreeSet<ValueId> {
    let linears = found.linears.iter();
    let around = linears.flat_map(|l| [view.output(l.node, 0), l.output(view), Some(l.input)]);
    let norms = found.norms.iter().map(|n| Some(n.output));
    around.chain(norms).flatten().collect()
}

/// Whether a node takes some entries of a large float table (an embedding, the cosines of all positions).
fn reads_large_table(view: &View, node: NodeId) -> bool {
    let is_large = |t: &TensorProto| {
        t.dims.iter().product::<i64>() > LARGE_TABLE
            && tensor::dtype(t).is_some_and(tensor::is_float)
    };
    matches!(view.op(node), op::Gather | op::Slice)
        && view
            .input(node, 0)
            .and_then(|table| view.initializer(table))
            .is_some_and(is_large)
}
