//! A node with what is known of its inputs: what every rule reads.

use super::fact::{Dim, Fact, Limits, Value};
use crate::onnx::DataType;
use crate::onnx::node::{attr_i, attr_ints};
use crate::onnx::proto::NodeProto;

/// A node and what is known of its inputs.
pub struct Call<'a> {
    /// The node.
    pub node: &'a NodeProto,
    /// One per input of the node; `None` where it was left out or nothing is known.
    inputs: Vec<Option<&'a Fact>>,
    /// How large values may be.
    pub limits: Limits,
}

/// Axes of a value, at most.
const MOST_AXES: usize = 1 << 10;

impl<'a> Call<'a> {
    /// `fact` says what is known of an input, by slot and name; inputs that are left out are not asked for.
    pub fn new(
        node: &'a NodeProto,
        limits: Limits,
        mut fact: impl FnMut(usize, &'a str) -> Option<&'a Fact>,
    ) -> Call<'a> {
        let inputs = node.input.iter().enumerate();
        let inputs = inputs.map(|(slot, name)| match name.as_str() {
            "" => None,
            name => fact(slot, name),
        });
        Call {
            inputs: inputs.collect(),
            node,
            limits,
        }
    }

    /// Whether the input is there, known or not.
    pub(super) fn given(&self, slot: usize) -> bool {
        self.node.input.get(slot).is_some_and(|n| !n.is_empty())
    }

    /// The number of inputs.
    pub(super) fn count(&self) -> usize {
        self.inputs.len()
    }

    pub(super) fn fact(&self, slot: usize) -> Option<&'a Fact> {
        *self.inputs.get(slot)?
    }

    pub(super) fn dtype(&self, slot: usize) -> Option<DataType> {
        self.fact(slot)?.dtype
    }

    pub(super) fn dims(&self, slot: usize) -> Option<&'a [Dim]> {
        self.fact(slot)?.dims.as_deref()
    }

    pub(super) fn rank(&self, slot: usize) -> Option<usize> {
        self.dims(slot).map(<[Dim]>::len)
    }

    /// All sizes of an input.
    pub(super) fn shape(&self, slot: usize) -> Option<Vec<usize>> {
        self.fact(slot)?.shape()
    }

    /// The number of elements of an input that is a list.
    pub(super) fn length(&self, slot: usize) -> Dim {
        match self.dims(slot)? {
            // As many axes has no value: what a file says of such a list is not to be believed.
            [n] => n.filter(|&n| n <= MOST_AXES),
            _ => None,
        }
    }

    pub(super) fn value(&self, slot: usize) -> Option<&'a Value> {
        self.fact(slot)?.value.as_ref()
    }

    /// The integers of an input in row-major order.
    pub(super) fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        Some(self.value(slot)?.ints()?.iter().copied().collect())
    }

    /// Sizes that are an input.
    pub(super) fn sizes(&self, slot: usize) -> Option<Vec<usize>> {
        let ints = self.ints(slot)?;
        ints.into_iter().map(|n| n.try_into().ok()).collect()
    }

    /// Integers that are an attribute in old operators and an input in newer ones.
    pub(super) fn list(&self, slot: usize, attr: &str) -> List {
        if let Some(ints) = attr_ints(self.node, attr) {
            return List::Known(ints.to_vec());
        }
        if !self.given(slot) {
            return List::Absent;
        }
        match self.ints(slot) {
            Some(ints) => List::Known(ints),
            None => List::Unknown(self.length(slot)),
        }
    }

    /// An integer attribute that is 0 or 1.
    pub(super) fn flag(&self, attr: &str, default: bool) -> bool {
        attr_i(self.node, attr).map_or(default, |v| v != 0)
    }

    /// The attribute `axis` for a value of `rank` axes, from the front.
    pub(super) fn axis(&self, rank: usize, default: i64) -> Option<usize> {
        axis_of(rank, attr_i(self.node, "axis").unwrap_or(default))
    }
}

/// A list of integers that a node is given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum List {
    /// It is left out.
    Absent,
    /// It is there, and only how long it is may be known.
    Unknown(Dim),
    Known(Vec<i64>),
}

impl List {
    /// The integers, if they are there and known.
    pub(super) fn known(self) -> Option<Vec<i64>> {
        match self {
            List::Known(ints) => Some(ints),
            List::Absent | List::Unknown(_) => None,
        }
    }
}

/// An axis from the front; negative ones count from the end.
pub(crate) fn axis_of(rank: usize, axis: i64) -> Option<usize> {
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
    (axis < rank).then_some(axis)
}

pub(super) fn axes_of(rank: usize, given: &[i64]) -> Option<Vec<usize>> {
    given.iter().map(|&axis| axis_of(rank, axis)).collect()
}
