//! Where a graph can be cut: between nodes that only one or two values cross which anything has to be computed for.
//!
//! ```text
//! mask ──────────┬──────────────────────┬───────────────        light: computed again in every part
//! ids ─ Gather ─ x₀ ─ norm … Linears ─ x₁ ─ norm … Linears ─ x₂     deep: behind a Linear or a large table
//!                                      cut                  cut
//! ```
//!
//! A cut goes through the residual stream, in front of the norm that reads it, so that no site is torn from its sink.

use std::collections::BTreeSet;

use crate::graph::branches::FlatModel;
use crate::graph::{NodeId, Source, Use, ValueId, View};
use crate::onnx::{Model, op, tensor};
use crate::recognise::{Recognised, recognise};

/// A piece between two cuts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// Names of the values that the next block reads; none behind the last.
    pub next: Vec<String>,
    /// Names of the outputs of the norms that read those.
    pub normed: Vec<String>,
    /// Names of the graph outputs that are computed here.
    pub outputs: Vec<String>,
    /// Bytes of its weights in float32.
    pub bytes: u64,
}

/// How large blocks may be, where the pieces between cuts are not larger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Bytes of weights in float32.
    pub most: u64,
    /// Whether two pieces may have twice as many. Half a layer alone is worse than with another half: six layers of SmolLM2 have
    /// 35.9 dB on unseen rows in 7 parts and 32.1 in 13, and 21.0 and 18.4 at 4 bits.
    pub pairs: bool,
}

/// A constant of so many bytes is no mask and no table of angles.
const LARGE: u64 = 16 << 20;

/// Values that may cross a cut.
const MOST_LIVE: usize = 2;

/// The blocks of a model, as large as they may be.
///
/// # Errors
/// Why it cannot be cut, in words.
pub(super) fn find(model: &Model, sizes: Sizes) -> Result<Vec<Block>, String> {
    let view = View::new(model);
    let found = recognise(&view);
    let flat = FlatModel::of(model.clone());
    if recognise(&flat.view()).linears.len() > found.linears.len() {
        return Err("it has Linears in the branches of an If".to_owned());
    }
    let graph = Graph::new(&view, &found);
    let pieces = graph.pieces();
    if pieces.len() < 2 {
        return Err(
            "there is no place between its Linears that only a residual stream crosses, with a norm behind it".to_owned(),
        );
    }
    if let Some(name) = graph.shared(&pieces) {
        return Err(format!(
            "weight `{name}` is used by Linears in several blocks, which are decided about together"
        ));
    }
    Ok(grouped(pieces, sizes))
}

/// Bytes of all weights in float32.
pub(super) fn weight_bytes(model: &Model) -> u64 {
    let tensors = model.graph().initializer.iter();
    tensors.map(|t| elements(&t.dims) * 4).sum()
}

/// Channels of the value that goes from part to part, at the least: those of the narrowest Linear on its wider side.
pub(super) fn least_width(model: &Model) -> u64 {
    let weights = model.graph().initializer.iter();
    let weights = weights.filter(|t| t.dims.len() == 2 && t.dims.iter().all(|&d| d > 1));
    let wider = weights.filter_map(|t| t.dims.iter().copied().max());
    wider.min().map_or(1, |width| width.unsigned_abs())
}

fn elements(dims: &[i64]) -> u64 {
    let sizes = dims.iter().map(|&d| u64::try_from(d).unwrap_or(0));
    sizes.fold(1, u64::saturating_mul)
}

/// Blocks as large as they may be, of those between all cuts. Small models have eight, so that what is done with them is what is
/// done with large ones.
fn grouped(pieces: Vec<Block>, sizes: Sizes) -> Vec<Block> {
    let total: u64 = pieces.iter().map(|piece| piece.bytes).sum();
    let most = sizes.most.min(total / 8).max(1);
    let mut blocks: Vec<Block> = Vec::new();
    let mut pieces_of_last = 0;
    for piece in pieces {
        let most = match sizes.pairs && pieces_of_last == 1 {
            true => 2 * most,
            false => most,
        };
        match blocks.last_mut() {
            Some(last) if last.bytes + piece.bytes <= most => {
                last.next = piece.next;
                last.normed = piece.normed;
                last.outputs.extend(piece.outputs);
                last.bytes += piece.bytes;
                pieces_of_last += 1;
            }
            _ => {
                blocks.push(piece);
                pieces_of_last = 1;
            }
        }
    }
    blocks
}

/// What cuts are found by.
struct Graph<'v, 'm> {
    view: &'v View<'m>,
    found: &'v Recognised,
    /// Whether a node is behind a Linear or a large table.
    deep: Vec<bool>,
    /// Values that norms read, before Casts as well.
    normed: BTreeSet<ValueId>,
}

impl<'v, 'm> Graph<'v, 'm> {
    fn new(view: &'v View<'m>, found: &'v Recognised) -> Self {
        let mut heavy: BTreeSet<NodeId> = BTreeSet::new();
        for linear in found.linears.iter().filter(|l| l.k > 1 && l.n > 1) {
            heavy.insert(linear.node);
        }
        let mut deep: Vec<bool> = Vec::new();
        for (id, node) in view.nodes() {
            let read = node.input.iter().filter_map(|name| view.value(name));
            let behind = |value: ValueId| match view.source(value) {
                Source::Node { node, .. } => deep.get(node.0).copied().unwrap_or(false),
                Source::Initializer(i) => elements(&view.graph().initializer[i].dims) * 4 > LARGE,
                Source::Input(_) | Source::Unknown => false,
            };
            let sizes_only = matches!(view.op(id), op::Shape | op::Size);
            deep.push(!sizes_only && (heavy.contains(&id) || read.clone().any(behind)));
        }
        let mut graph = Graph {
            view,
            found,
            deep,
            normed: BTreeSet::new(),
        };
        graph.normed = graph.normed();
        graph
    }

    fn normed(&self) -> BTreeSet<ValueId> {
        let mut normed = BTreeSet::new();
        for norm in self.found.norms.iter() {
            let inside = || {
                let inputs = self.view.node(norm.node).input.iter().take(2);
                inputs.filter_map(|name| self.view.value(name)).collect()
            };
            let mut stack: Vec<ValueId> = norm.input.map_or_else(inside, |input| vec![input]);
            while let Some(value) = stack.pop() {
                normed.insert(value);
                normed.insert(self.uncast(value));
            }
        }
        normed
    }

    /// The last node that reads a value, and the last that reads more than its sizes; `None` where none does.
    fn last_uses(&self, value: ValueId) -> (Option<usize>, Option<usize>) {
        let uses = self.view.uses(value).iter();
        let readers = uses.filter_map(|used| match *used {
            Use::Node { node, .. } | Use::Captured { node } => Some(node),
            Use::GraphOutput(_) => None,
        });
        let sizes_only = |node: &NodeId| matches!(self.view.op(*node), op::Shape | op::Size);
        let last = |nodes: &mut dyn Iterator<Item = NodeId>| nodes.map(|node| node.0).max();
        (
            last(&mut readers.clone()),
            last(&mut readers.filter(|node| !sizes_only(node))),
        )
    }

    /// What a Cast, or an Identity, reads.
    fn uncast(&self, value: ValueId) -> ValueId {
        let cast = self.view.producer_is(value, op::Cast);
        let cast = cast.or_else(|| self.view.producer_is(value, op::Identity));
        let before = cast.and_then(|node| self.view.input(node, 0));
        before.map_or(value, |before| self.uncast(before))
    }

    fn is_graph_output(&self, value: ValueId) -> bool {
        let uses = self.view.uses(value).iter();
        uses.clone().any(|used| matches!(used, Use::GraphOutput(_)))
    }

    fn is_float(&self, value: ValueId) -> bool {
        let stated = self
            .view
            .elem_type(value)
            .and_then(|t| crate::onnx::DataType::try_from(t).ok());
        stated.is_none_or(tensor::is_float)
    }

    /// The pieces between all cuts, in order.
    fn pieces(&self) -> Vec<Block> {
        let norm_outputs: BTreeSet<ValueId> = self.found.norms.iter().map(|n| n.output).collect();
        let mut live: Vec<(ValueId, usize, Option<usize>)> = Vec::new();
        let mut pieces = vec![Block::default()];
        let mut counted = BTreeSet::new();
        let mut before: Vec<ValueId> = Vec::new();
        for (id, node) in self.view.nodes().filter(|(id, _)| self.deep[id.0]) {
            // `pieces` is never empty.
            let at = pieces.len() - 1;
            let piece = &mut pieces[at];
            for name in &node.input {
                let constant = self.view.value(name).map(|v| self.view.origin(v));
                let tensor = constant.and_then(|v| self.view.initializer(v));
                if let Some(tensor) = tensor.filter(|t| counted.insert(t.name().to_owned())) {
                    piece.bytes += elements(&tensor.dims) * 4;
                }
            }
            for value in (0..node.output.len()).filter_map(|slot| self.view.output(id, slot)) {
                if self.is_graph_output(value) {
                    piece.outputs.push(self.view.name(value).to_owned());
                }
                let (last, more) = self.last_uses(value);
                live.extend(last.map(|last| (value, last, more)));
            }
            live.retain(|(_, last, _)| *last > id.0);
            let crossing = live
                .iter()
                .filter(|(.., more)| more.is_some_and(|at| at > id.0));
            let values: Vec<ValueId> = crossing.map(|(value, ..)| *value).collect();
            let is_cut = !values.is_empty()
                && values.len() <= MOST_LIVE
                && values != before
                && values.iter().all(|v| self.normed.contains(v))
                && values
                    .iter()
                    .all(|v| self.is_float(*v) && !norm_outputs.contains(v));
            if is_cut && piece.bytes > 0 {
                // A value of which only the sizes are asked is fed too: what computes it may be large.
                let fed = live.iter().map(|(value, ..)| *value);
                let fed = fed.filter(|v| self.is_float(*v));
                piece.next = fed.map(|v| self.view.name(v).to_owned()).collect();
                let behind = self.found.norms.iter().filter(|norm| {
                    let reads = norm
                        .input
                        .is_some_and(|input| values.contains(&self.uncast(input)));
                    reads && !self.is_graph_output(norm.output)
                });
                piece.normed = behind
                    .map(|norm| self.view.name(norm.output).to_owned())
                    .collect();
                before = values;
                pieces.push(Block::default());
            }
        }
        // What is behind the last cut must have something to do.
        if let [.., last, end] = &mut pieces[..]
            && end.bytes == 0
        {
            last.next.clear();
            last.normed.clear();
            last.outputs.append(&mut end.outputs);
            pieces.pop();
        }
        let known: BTreeSet<String> = pieces
            .iter()
            .flat_map(|p| p.outputs.iter().cloned())
            .collect();
        let graph_outputs = self.view.graph().output.iter().map(|o| o.name().to_owned());
        let light = graph_outputs.filter(|name| !known.contains(name));
        let light: Vec<String> = light.collect();
        if let Some(first) = pieces.first_mut() {
            first.outputs.extend(light);
        }
        pieces
    }

    /// A weight that Linears of several pieces read.
    fn shared(&self, pieces: &[Block]) -> Option<String> {
        let mut first_in: std::collections::BTreeMap<ValueId, usize> =
            std::collections::BTreeMap::new();
        let ends: Vec<usize> = pieces
            .iter()
            .map(|piece| {
                let value = piece.next.iter().filter_map(|name| self.view.value(name));
                let at = value
                    .filter_map(|v| self.view.producer(v))
                    .map(|(node, _)| node.0)
                    .max();
                at.unwrap_or(usize::MAX)
            })
            .collect();
        let piece_of = |node: NodeId| ends.iter().position(|end| node.0 <= *end).unwrap_or(0);
        for linear in self.found.linears.iter().filter(|l| l.k > 1 && l.n > 1) {
            let weight = self.view.origin(linear.weight);
            let at = piece_of(linear.node);
            if *first_in.entry(weight).or_insert(at) != at {
                return Some(self.view.name(weight).to_owned());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of the blocks that pieces of so many become.
    fn blocks(pieces: &[u64], most: u64, pairs: bool) -> Vec<u64> {
        let piece = |&bytes| Block {
            bytes,
            ..Block::default()
        };
        let pieces = pieces.iter().map(piece).collect();
        let blocks = grouped(pieces, Sizes { most, pairs });
        blocks.iter().map(|block| block.bytes).collect()
    }

    /// A table with half a layer, the halves of eight more, and a vocabulary.
    fn decoder() -> Vec<u64> {
        [vec![34], [8, 4].repeat(8), vec![8, 30]].concat()
    }

    #[test]
    fn a_part_is_two_halves_of_layers_at_least_if_it_may_be() {
        let whole = [vec![34], vec![12; 8], vec![8, 30]].concat();
        assert_eq!(blocks(&decoder(), 8, true), whole);
        assert_eq!(blocks(&decoder(), 8, false), decoder());
        assert_eq!(blocks(&decoder(), 5, true), decoder());
        // An eighth of the model at most.
        assert_eq!(blocks(&decoder(), 1000, false)[..3], [34, 20, 16]);
        assert_eq!(blocks(&[2; 12], 1000, false), [2; 12]);
        assert_eq!(blocks(&[2; 12], 1000, true), [4; 6]);
    }
}
