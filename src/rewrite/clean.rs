//! What exporters leave behind and TensorRT rejects, removed ([`Options::clean`](crate::Options::clean)).
//!
//! ```text
//! y = Dropout(x, ratio, training_mode = true)    becomes  x where y was read
//! y, mean, inv = LayerNormalization(x, γ, β)     becomes  y = LayerNormalization(x, γ, β)   if nothing reads mean, inv
//! n nodes and constants that nothing reads       are removed
//! Reduce…(x, Reshape(axes))                       becomes  Reduce…(x, axes')          if that can be computed now
//! SequenceAt(SplitToSequence(x, lengths), i)     becomes  output i of Split(x, lengths)
//! ```
//!
//! *Safe when*: a Dropout that trains gives random numbers, and what it gives at inference is x; everything else changes
//! no value. *Not matched*: a Dropout whose mask is read, a sequence that anything else reads. Which of these TensorRT
//! rejects was measured with the parser of TensorRT-RTX 1.7.1 (`target::lint`, rules T10).

use std::collections::BTreeSet;

use crate::graph::{Constant, Names, NodeId, Patch, Use, ValueId, View};
use crate::onnx::node::{attr_i, make_node};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::onnx::tensor;

/// Operators whose outputs after the first are for training, or optional.
const EXTRA_OUTPUTS: [&str; 4] = [
    op::BatchNormalization,
    op::Dropout,
    op::LayerNormalization,
    op::MaxPool,
];

/// The patches that clean the main graph, none of which needs another. Subgraphs and functions are left as they are.
pub fn clean(view: &View, names: &mut Names) -> Vec<Patch> {
    let dead = dead(view);
    let mut patches = Vec::new();
    for (id, _) in view.nodes() {
        if dead.contains(&id) {
            let name = view.node_name(id);
            let mut patch = Patch::new(format!("remove `{name}`, which nothing reads"));
            patch.remove(id);
            patches.push(patch);
            continue;
        }
        let patch = dropout(view, id).or_else(|| outputs(view, id));
        patches.extend(patch);
        patches.extend(axes(view, id, names));
        patches.extend(sequence(view, id, &dead, names));
    }
    for stored in &view.graph().initializer {
        let read = |value: ValueId| {
            let mut uses = view.uses(value).iter();
            uses.any(|u| !matches!(u, Use::Node { node, .. } if dead.contains(node)))
        };
        if view.value(stored.name()).is_some_and(|v| !read(v)) {
            let name = stored.name();
            let mut patch =
                Patch::new(format!("remove the constant `{name}`, which nothing reads"));
            patch.remove_initializer(name);
            patches.push(patch);
        }
    }
    patches
}

/// Nodes from which no way leads to an output of the graph.
fn dead(view: &View) -> BTreeSet<NodeId> {
    let mut dead: BTreeSet<NodeId> = BTreeSet::new();
    let nodes: Vec<NodeId> = view.nodes().map(|(id, _)| id).collect();
    for &id in nodes.iter().rev() {
        let outputs = (0..view.node(id).output.len()).filter_map(|slot| view.output(id, slot));
        let needed = |u: &Use| match u {
            Use::Node { node, .. } | Use::Captured { node } => !dead.contains(node),
            Use::GraphOutput(_) => true,
        };
        let mut uses = outputs.flat_map(|o| view.uses(o));
        if !uses.any(needed) {
            dead.insert(id);
        }
    }
    dead
}

/// A Dropout that trains, taken out.
fn dropout(view: &View, id: NodeId) -> Option<Patch> {
    if view.op(id) != op::Dropout {
        return None;
    }
    let mode = view.constant(view.input(id, 2)?)?.into_ints()?;
    let mask_is_read = view.output(id, 1).is_some_and(|m| !view.uses(m).is_empty());
    if mode.iter().all(|&m| m == 0) || mask_is_read {
        return None;
    }
    let (x, y) = (view.input(id, 0)?, view.output(id, 0)?);
    let name = view.node_name(id);
    let mut patch = Patch::new(format!("remove the Dropout `{name}`, which trains"));
    let uses = view.uses(y);
    let by_node = |u: &Use| match u {
        Use::Node { node, input } => Some((*node, *input)),
        _ => None,
    };
    match uses.iter().map(by_node).collect::<Option<Vec<_>>>() {
        Some(readers) => {
            for (node, input) in readers {
                patch.rewire(node, input, view.name(x));
            }
            patch.remove(id);
        }
        // The name of an output, or one that a subgraph reads, has to stay.
        None => {
            let (name, inputs) = (view.node(id).name(), [view.name(x)]);
            patch.replace(
                id,
                make_node(op::Identity, name, &inputs, &[view.name(y)], vec![]),
            );
        }
    }
    Some(patch)
}

/// Outputs after the first, removed where nothing reads them.
fn outputs(view: &View, id: NodeId) -> Option<Patch> {
    let node = view.node(id);
    let more = node.output.get(1..).unwrap_or_default();
    let unread = |name: &String| view.value(name).is_none_or(|v| view.uses(v).is_empty());
    let extra = EXTRA_OUTPUTS.contains(&view.op(id)) && !more.is_empty() && more.iter().all(unread);
    // A BatchNormalization that trains computes something else.
    if !extra || attr_i(node, "training_mode").is_some_and(|m| m != 0) {
        return None;
    }
    let name = view.node_name(id);
    let mut patch = Patch::new(format!("remove outputs of `{name}` that nothing reads"));
    patch.replace(
        id,
        NodeProto {
            output: node.output[..1].to_vec(),
            ..node.clone()
        },
    );
    Some(patch)
}

/// The axes of a reduction that are computed from constants, computed.
fn axes(view: &View, id: NodeId, names: &mut Names) -> Option<Patch> {
    let computed = view.op(id).starts_with("Reduce");
    let axes = view.input(id, 1).filter(|_| computed)?;
    let (producer, _) = view.producer(axes)?;
    if view.op(producer) == op::Constant {
        return None;
    }
    let list = view.constant(axes)?.into_ints()?;
    let (new, name) = (names.derive(view.name(axes), "folded"), view.node_name(id));
    let mut patch = Patch::new(format!("compute the axes of `{name}` once"));
    patch.add_initializer(tensor::from_i64(&new, &[list.len()], &list));
    patch.rewire(id, 1, new);
    Some(patch)
}

/// A sequence of slices of which only single ones are read, at known places: a Split.
fn sequence(view: &View, id: NodeId, dead: &BTreeSet<NodeId>, names: &mut Names) -> Option<Patch> {
    let node = view.node(id);
    if view.op(id) != op::SplitToSequence || view.model().opset() < 13 {
        return None;
    }
    let lengths = lengths(view, id)?;
    let output = view.output(id, 0)?;
    let mut picks = Vec::new();
    for u in view.uses(output) {
        let Use::Node { node: at, input: 0 } = u else {
            return None;
        };
        if dead.contains(at) {
            continue;
        }
        let index = view.constant(view.input(*at, 1)?)?.into_ints()?;
        let [index] = index[..] else { return None };
        let count = i64::try_from(lengths.len()).ok()?;
        let index = usize::try_from(if index < 0 { index + count } else { index }).ok()?;
        if view.op(*at) != op::SequenceAt || index >= lengths.len() {
            return None;
        }
        picks.push((*at, index));
    }
    let name = view.node_name(id);
    let mut patch = Patch::new(format!("write the sequence of `{name}` as a Split"));
    let parts: Vec<String> = (0..lengths.len())
        .map(|_| names.derive(view.name(output), "part"))
        .collect();
    let stored = names.derive(view.name(output), "lengths");
    patch.add_initializer(tensor::from_i64(&stored, &[lengths.len()], &lengths));
    let mut split = NodeProto {
        op_type: Some(op::Split.to_owned()),
        input: vec![node.input[0].clone(), stored],
        output: parts.clone(),
        ..node.clone()
    };
    split.attribute.retain(|a| a.name() == "axis");
    patch.replace(id, split);
    for (at, index) in picks {
        let identity = view.node(at);
        let inputs = [parts[index].as_str()];
        let outputs = [identity.output[0].as_str()];
        patch.replace(
            at,
            make_node(op::Identity, identity.name(), &inputs, &outputs, vec![]),
        );
    }
    Some(patch)
}

/// The lengths of the slices of a SplitToSequence. One number is the length of all but the last; without any, every slice
/// has length 1 and may lose its axis, which is not looked at.
fn lengths(view: &View, id: NodeId) -> Option<Vec<i64>> {
    let Constant::Int(given) = view.constant(view.input(id, 1)?)? else {
        return None;
    };
    if given.ndim() == 1 {
        return Some(given.into_iter().collect());
    }
    let length = given
        .first()
        .copied()
        .filter(|&l| l > 0 && given.len() == 1)?;
    let shape = view.shape(view.input(id, 0)?)?;
    let axis = attr_i(view.node(id), "axis").unwrap_or(0);
    let axis = if axis < 0 {
        axis + i64::try_from(shape.len()).ok()?
    } else {
        axis
    };
    let whole = i64::try_from((*shape.get(usize::try_from(axis).ok()?)?)?).ok()?;
    let starts = (0..whole).step_by(usize::try_from(length).ok()?);
    Some(starts.map(|start| length.min(whole - start)).collect())
}
