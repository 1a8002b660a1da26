//! A node with what is known of its inputs, and the readings of axes, slices and splits that shapes and values share.

use super::scope::{Scope, Value};
use crate::onnx::DataType;
use crate::onnx::node::{attr_i, attr_ints};
use crate::onnx::proto::NodeProto;

/// A node and what is known of its inputs.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub node: &'a NodeProto,
    pub scope: &'a Scope<'a>,
}

impl<'a> Known<'a> {
    pub(super) fn name(&self, slot: usize) -> Option<&'a str> {
        let name = self.node.input.get(slot)?;
        (!name.is_empty()).then_some(name)
    }

    pub(super) fn dtype(&self, slot: usize) -> Option<DataType> {
        self.scope.dtype(self.name(slot)?)
    }

    pub(super) fn shape(&self, slot: usize) -> Option<&'a [usize]> {
        self.scope.shape(self.name(slot)?)
    }

    pub(super) fn value(&self, slot: usize) -> Option<&'a Value> {
        self.scope.value(self.name(slot)?)
    }

    pub(super) fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.scope.ints(self.name(slot)?)
    }

    /// Integers that are an attribute in old operators and an input in newer ones: `None` if they are unknown,
    /// `Some(None)` if they are left out.
    pub(super) fn ints_or(&self, slot: usize, attr: &str) -> Option<Option<Vec<i64>>> {
        if let Some(ints) = attr_ints(self.node, attr) {
            return Some(Some(ints.to_vec()));
        }
        match self.name(slot) {
            Some(_) => self.ints(slot).map(Some),
            None => Some(None),
        }
    }
}

/// An axis counted from the front.
pub(super) fn axis_of(rank: usize, axis: i64) -> Option<usize> {
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
    (axis < rank).then_some(axis)
}

pub(super) fn axes(given: &[i64], rank: usize) -> Option<Vec<usize>> {
    given
        .iter()
        .map(|&axis| {
            let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
            (axis < rank).then_some(axis)
        })
        .collect()
}

/// The axes of the input in the order of the output of a Transpose.
pub(super) fn permutation(node: &NodeProto, rank: usize) -> Option<Vec<usize>> {
    match attr_ints(node, "perm") {
        Some(perm) => axes(perm, rank).filter(|p| p.len() == rank),
        None => Some((0..rank).rev().collect()),
    }
}

/// NumPy's rule: axes are compared from the last one, and 1 stretches.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let from_last = |s: &[usize], at: usize| (at + s.len()).checked_sub(rank).map(|i| s[i]);
    (0..rank)
        .map(|at| match (from_last(a, at), from_last(b, at)) {
            (Some(1) | None, Some(n)) | (Some(n), Some(1) | None) => Some(n),
            (Some(m), Some(n)) if m == n => Some(n),
            _ => None,
        })
        .collect()
}

/// Per sliced axis of a Slice the indices that it takes.
pub(super) fn slices(known: Known<'_>) -> Option<Vec<(usize, Vec<usize>)>> {
    let shape = known.shape(0)?;
    let (starts, ends) = (known.ints(1)?, known.ints(2)?);
    let given = match known.name(3) {
        Some(_) => axes(&known.ints(3)?, shape.len())?,
        None => (0..starts.len()).collect(),
    };
    let steps = match known.name(4) {
        Some(_) => known.ints(4)?,
        None => vec![1; starts.len()],
    };
    if [ends.len(), given.len(), steps.len()] != [starts.len(); 3] {
        return None;
    }
    let mut all = Vec::new();
    for (i, axis) in given.into_iter().enumerate() {
        let length = i64::try_from(*shape.get(axis)?).ok()?;
        let step = steps[i];
        let from_front = |at: i64| {
            if at < 0 {
                at.saturating_add(length)
            } else {
                at
            }
        };
        let (start, end) = (from_front(starts[i]), from_front(ends[i]));
        let (start, end) = match step {
            0 => return None,
            1.. => (start.clamp(0, length), end.clamp(0, length)),
            _ if length == 0 => (-1, -1),
            _ => (start.clamp(0, length - 1), end.clamp(-1, length - 1)),
        };
        let mut at = start;
        let mut indices = Vec::new();
        while (step > 0 && at < end) || (step < 0 && at > end) {
            indices.push(usize::try_from(at).ok()?);
            at = at.saturating_add(step);
        }
        all.push((axis, indices));
    }
    Some(all)
}

/// The lengths of the outputs of a Split along its axis.
pub(super) fn split_lengths(known: Known<'_>) -> Option<(usize, Vec<usize>)> {
    let shape = known.shape(0)?;
    let axis = axis_of(shape.len(), attr_i(known.node, "axis").unwrap_or(0))?;
    let parts = known.node.output.len();
    let lengths = match known.ints_or(1, "split")? {
        Some(lengths) => lengths
            .iter()
            .map(|&n| n.try_into().ok())
            .collect::<Option<Vec<usize>>>()?,
        // Equal parts, of which the last may be smaller.
        None => {
            let part = shape[axis].div_ceil(parts.max(1));
            (0..parts)
                .map(|i| part.min(shape[axis].saturating_sub(i * part)))
                .collect()
        }
    };
    (lengths.len() == parts && lengths.iter().sum::<usize>() == shape[axis])
        .then_some((axis, lengths))
}
