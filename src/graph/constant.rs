//! Constants: initializers, Constant nodes, and the small expressions exporters leave over them.

use ndarray::{Array2, ArrayD, Ix2};

use super::infer::{Call, Fact, Limits, Value, constant_expression, infer};
use super::view::{NodeId, Source, ValueId, View};
use crate::onnx::DataType;

/// Exporters leave two or three such nodes in a row; a longer chain is somebody's computation.
const MAX_DEPTH: usize = 8;

/// A constant value as an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    /// Any float type, widened or narrowed to float32.
    Float {
        /// The elements.
        array: ArrayD<f32>,
        /// The type in the file.
        dtype: DataType,
    },
    /// Any integer type or bool.
    Int(ArrayD<i64>),
}

impl Constant {
    /// The float array, `None` for integers.
    pub fn into_float(self) -> Option<(ArrayD<f32>, DataType)> {
        match self {
            Constant::Float { array, dtype } => Some((array, dtype)),
            Constant::Int(_) => None,
        }
    }

    /// The elements of an integer constant.
    pub fn into_ints(self) -> Option<Vec<i64>> {
        match self {
            Constant::Int(array) => Some(array.into_iter().collect()),
            Constant::Float { .. } => None,
        }
    }
}

/// How far H Hᵀ may be from the identity: bfloat16 has 8 bits.
const TOLERANCE: f32 = 0.02;

/// Whether `h` is a matrix `[n, n]` with H Hᵀ = I, as far as the coarsest float type can hold it.
pub fn is_orthogonal(h: &ArrayD<f32>) -> bool {
    let Ok(h) = h.view().into_dimensionality::<Ix2>() else {
        return false;
    };
    let is_unit = |(j, v): (usize, &f32)| (v - f32::from(u8::from(j == 0))).abs() < TOLERANCE;
    // No weight of a network comes as far as through its first row.
    if !h.is_square() || h.is_empty() || !h.dot(&h.row(0)).iter().enumerate().all(is_unit) {
        return false;
    }
    let off = h.dot(&h.t()) - Array2::<f32>::eye(h.nrows());
    off.iter().all(|v| v.abs() < TOLERANCE)
}

/// A, if the targets of two Reshapes end in [.., A, B] and in [.., A · B]: the last axis is split into blocks of `b`, and joined.
pub fn blocks_of(split: &[i64], joined: &[i64], b: usize) -> Option<usize> {
    let (&[.., a, last], &[.., width]) = (split, joined) else {
        return None;
    };
    let fits = usize::try_from(last) == Ok(b) && a.checked_mul(last) == Some(width);
    usize::try_from(a).ok().filter(|_| fits)
}

impl View<'_> {
    /// The constant behind a value: an initializer, a Constant node, or an expression over those of Identity,
    /// Cast, Transpose, Reshape, Squeeze, Unsqueeze, Add, Sub, Mul, Div, Neg, Sqrt and Reciprocal
    /// ([`constant_expression`]). `None` if the value is computed at run time, is of a type without a meaning here
    /// (strings), or is malformed.
    pub fn constant(&self, id: ValueId) -> Option<Constant> {
        let fact = self.constant_fact(id, Limits::NONE)?;
        Some(match fact.value? {
            Value::Ints(array) => Constant::Int(array.into_owned()),
            Value::Floats(array) => Constant::Float {
                array: array.into_owned(),
                dtype: fact.dtype?,
            },
        })
    }

    /// A constant with exactly one element, as a number.
    pub fn scalar(&self, id: ValueId) -> Option<f32> {
        // A weight is never a scalar: look at the size before reading megabytes.
        if self
            .initializer(id)
            .is_some_and(|t| t.dims.iter().any(|&d| d != 1))
        {
            return None;
        }
        let (array, _) = self.constant(id)?.into_float()?;
        if array.len() == 1 {
            array.first().copied()
        } else {
            None
        }
    }

    /// Whether a value is a constant, without reading it.
    pub fn is_constant(&self, id: ValueId) -> bool {
        self.is_constant_at_depth(id, 0)
    }

    fn is_constant_at_depth(&self, id: ValueId, depth: usize) -> bool {
        match self.source(id) {
            _ if depth > MAX_DEPTH => false,
            Source::Initializer(_) => true,
            Source::Node { node, .. } => {
                let constant = |i| {
                    let input = self.input(node, i);
                    input.is_none_or(|v| self.is_constant_at_depth(v, depth + 1))
                };
                constant_expression(self.op(node)) && (0..self.node(node).input.len()).all(constant)
            }
            _ => false,
        }
    }

    /// Type and shape of a constant, and its elements within `limits`.
    pub fn constant_fact(&self, id: ValueId, limits: Limits) -> Option<Fact> {
        self.constant_fact_at_depth(id, limits, 0)
    }

    fn constant_fact_at_depth(&self, id: ValueId, limits: Limits, depth: usize) -> Option<Fact> {
        match self.source(id) {
            _ if depth > MAX_DEPTH => None,
            Source::Initializer(i) => Some(Fact::of_tensor(&self.graph().initializer[i], limits)),
            Source::Node { node, output: 0 } => self.computed_constant(node, limits, depth),
            _ => None,
        }
    }

    /// What a node makes of constants.
    fn computed_constant(&self, id: NodeId, limits: Limits, depth: usize) -> Option<Fact> {
        if !constant_expression(self.op(id)) {
            return None;
        }
        let node = self.node(id);
        let mut inputs = Vec::with_capacity(node.input.len());
        for slot in 0..node.input.len() {
            inputs.push(match self.input(id, slot) {
                Some(value) => Some(self.constant_fact_at_depth(value, limits, depth + 1)?),
                None => None,
            });
        }
        let call = Call::new(node, limits, |slot, _| inputs[slot].as_ref());
        infer(&call).into_iter().next()
    }
}
