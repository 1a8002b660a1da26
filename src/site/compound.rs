//! The rules of [`super::trace`] for operators that stand for several: Attention, and a sequence with its parts.

use ndarray::Slice;

use super::labels::{Labels, NONE, through_attention, unslice};
use super::rules::split_axis;
use super::trace::{Shift, Walk};
use crate::graph::{Constant, NodeId, Use, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;

impl Walk<'_, '_> {
    /// Attention(Q, K, V) = P V, where the rows of P sum to 1: into V, unless keys and values are kept for later.
    pub(super) fn attention(
        &mut self,
        node: NodeId,
        labels: &Labels,
        shift: Shift,
    ) -> Result<(), String> {
        let view = self.view;
        let name = view.node_name(node);
        if view.input(node, 5).is_some() {
            return Err(format!("Attention `{name}` reads past values as well"));
        }
        if view
            .output(node, 2)
            .is_some_and(|v| !view.uses(v).is_empty())
        {
            return Err(format!(
                "the values of Attention `{name}` are kept for later"
            ));
        }
        let shape = self.shape_of_input(node, 2)?;
        let heads =
            |attr: &str| attr_i(view.node(node), attr).and_then(|n| usize::try_from(n).ok());
        let heads = heads("q_num_heads").zip(heads("kv_num_heads"));
        let labels = through_attention(labels, &shape, heads, &mut self.ties)
            .ok_or("the heads of its Attention are malformed")?;
        self.pass(node, 2, labels, shift)
    }

    /// One part of a SplitToSequence is one output of a Split, as long as the others are read at other positions.
    pub(super) fn sequence_at(
        &mut self,
        node: NodeId,
        labels: &Labels,
        shift: Shift,
    ) -> Result<(), String> {
        let view = self.view;
        let malformed = || {
            format!(
                "SequenceAt `{}` takes no constant part",
                view.node_name(node)
            )
        };
        let split = split_behind(view, node).ok_or_else(malformed)?;
        let shape = self.shape_of_input(split, 0)?;
        let axis = split_axis(view, split, shape.len()).ok_or("its Split is malformed")?;
        let sizes = sequence_sizes(view, split, shape[axis]).ok_or_else(malformed)?;
        let position = |reader: NodeId| {
            let at = view
                .input(reader, 1)
                .and_then(|v| view.constant(v)?.into_ints())?;
            let &[at] = at.as_slice() else { return None };
            let at = if at < 0 { at + sizes.len() as i64 } else { at };
            usize::try_from(at).ok().filter(|&at| at < sizes.len())
        };
        let part = position(node).ok_or_else(malformed)?;
        let sequence = view.input(node, 0).ok_or("an input is missing")?;
        for reader in view.uses(sequence) {
            let elsewhere =
                |n: NodeId| view.op(n) == op::SequenceAt && position(n).is_some_and(|p| p != part);
            match *reader {
                Use::Node { node: n, .. } if n == node || elsewhere(n) => {}
                _ => return Err(format!("`{}` has other readers", view.name(sequence))),
            }
        }
        let start: usize = sizes.iter().take(part).sum();
        let range = Slice::from(start..start + sizes[part]);
        let labels = unslice(labels, &shape, axis, range, NONE).ok_or("its Split is malformed")?;
        self.pass(split, 0, labels, shift)
    }
}

/// The SplitToSequence whose part a SequenceAt takes.
pub(super) fn split_behind(view: &View, node: NodeId) -> Option<NodeId> {
    let (split, _) = view.producer(view.input(node, 0)?)?;
    (view.op(split) == op::SplitToSequence).then_some(split)
}

/// The lengths of the parts of a SplitToSequence of `length` rows, by constants; parts without their axis are none.
fn sequence_sizes(view: &View, split: NodeId, length: usize) -> Option<Vec<usize>> {
    match view.constant(view.input(split, 1)?)? {
        Constant::Int(part) if part.ndim() == 0 => {
            let part = usize::try_from(*part.first()?).ok().filter(|&n| n > 0)?;
            Some(
                (0..length)
                    .step_by(part)
                    .map(|at| part.min(length - at))
                    .collect(),
            )
        }
        sizes => {
            let sizes: Option<Vec<usize>> = sizes
                .into_ints()?
                .into_iter()
                .map(|n| n.try_into().ok())
                .collect();
            sizes.filter(|sizes| sizes.iter().sum::<usize>() == length)
        }
    }
}
