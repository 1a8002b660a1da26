//! Weights by their shapes.

use crate::graph::{Constant, ValueId, View};
use crate::onnx::{DataType, tensor};

/// Shape and type of a constant; reads the elements only where an expression stands before them.
pub(super) fn weight_facts(view: &View, value: ValueId) -> Option<(Vec<usize>, DataType)> {
    if let Some(tensor) = view.initializer(value) {
        return Some((tensor::shape(tensor).ok()?, tensor::dtype(tensor)?));
    }
    Some(match view.constant(value)? {
        Constant::Float { array, dtype } => (array.shape().to_vec(), dtype),
        Constant::Int(array) => (array.shape().to_vec(), DataType::Int64),
    })
}
