//! Operators that pass a value on: nothing but the name changes, or only the float type.

use crate::graph::{NodeId, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::onnx::{DataType, tensor};

/// How a transparent operator passes its input on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Identity, and Dropout, which does nothing at inference: input and output are interchangeable.
    Same,
    /// Cast from one float type to another: the same numbers, another type.
    FloatCast,
}

/// How `node` passes on its first input, `None` if it does more than that.
///
/// *Matches* Identity; Dropout whose mask is not read; Cast to a float type. A Cast *from* an integer is matched
/// too: what reaches it is then no float value and no recogniser takes it for one.
pub fn passage(view: &View, node: NodeId) -> Option<Passage> {
    match view.op(node) {
        op::Identity => Some(Passage::Same),
        op::Dropout => {
            let mask_is_read = view
                .output(node, 1)
                .is_some_and(|mask| !view.uses(mask).is_empty());
            (!mask_is_read).then_some(Passage::Same)
        }
        op::Cast => {
            let to = attr_i(view.node(node), "to")?;
            let to = DataType::try_from(i32::try_from(to).ok()?).ok()?;
            tensor::is_float(to).then_some(Passage::FloatCast)
        }
        _ => None,
    }
}

/// Walks from a value up through transparent operators to the value that is really computed.
pub fn see_through(view: &View, mut value: ValueId) -> ValueId {
    while let Some((node, 0)) = view.producer(value) {
        match (passage(view, node), view.input(node, 0)) {
            (Some(_), Some(input)) => value = input,
            _ => break,
        }
    }
    value
}
