//! The columns of the table: how a row tells types, shapes and values.

use super::call::Call;
use super::fact::{Dims, Value};
use crate::onnx::DataType;

/// What an operator says of the type of one input or output.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    /// T: all inputs and outputs that say so have one type, so that it is known of all if it is of one.
    T,
    /// Nothing.
    Any,
    /// Always this one.
    Is(DataType),
    /// What follows from attributes or other inputs.
    By(fn(&Call) -> Option<DataType>),
}

/// The types of the inputs and of the outputs; the last entry counts for all further ones.
#[derive(Clone, Copy)]
pub(super) struct Types {
    pub inputs: &'static [Slot],
    pub outputs: &'static [Slot],
}

impl Types {
    pub(super) fn input(&self, slot: usize) -> Slot {
        at(self.inputs, slot)
    }

    pub(super) fn output(&self, slot: usize) -> Slot {
        at(self.outputs, slot)
    }
}

fn at(slots: &[Slot], slot: usize) -> Slot {
    let found = slots.get(slot).or(slots.last());
    found.copied().unwrap_or(Slot::Any)
}

/// How the shapes of the outputs follow from what is known of the inputs.
#[derive(Clone, Copy)]
pub(super) enum Shapes {
    /// They are not known.
    Unknown,
    /// The shape of the first output.
    First(fn(&Call) -> Option<Dims>),
    /// The shapes of all outputs.
    Each(fn(&Call) -> Option<Vec<Dims>>),
}

/// An output of which type and shape are known.
pub(super) struct Output {
    /// Which one.
    pub number: usize,
    pub dtype: DataType,
    pub shape: Vec<usize>,
}

/// The elements of an output, if they follow from those of the inputs.
pub(super) type Compute = fn(&Call, &Output) -> Option<Value>;

/// How the elements of the outputs follow from what is known of the inputs.
#[derive(Clone, Copy)]
pub(super) enum Values {
    /// They depend on data, or are of no use.
    Unknown,
    /// Of small values: sizes, indices, positions.
    Small(Compute),
    /// The same, from the shapes of the inputs alone.
    OfShape(Compute),
    /// Of weights too: exporters leave such operators over constants ([`constant`](super::super::View::constant)).
    Constants(Compute),
}

impl Values {
    pub(super) fn compute(self) -> Option<Compute> {
        match self {
            Values::Unknown => None,
            Values::Small(f) | Values::OfShape(f) | Values::Constants(f) => Some(f),
        }
    }
}

/// What is known of one operator.
pub(super) struct Row {
    /// `""` is the standard domain.
    pub domain: &'static str,
    pub op: &'static str,
    pub types: Types,
    pub shapes: Shapes,
    pub values: Values,
}
