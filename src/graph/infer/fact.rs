//! What can be known of one value.

use ndarray::{ArcArray, IxDyn};

use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, tensor};

/// The size of one axis, if it is known.
pub type Dim = Option<usize>;

/// The sizes of all axes. Its length is the rank; an axis whose size is not known is `None`.
pub type Dims = Vec<Dim>;

/// The elements of a value: shared, so that a fact is cheap to copy, weights included.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer type, or bool as 0 and 1.
    Ints(ArcArray<i64, IxDyn>),
    /// Any float type, as float32.
    Floats(ArcArray<f32, IxDyn>),
}

impl Value {
    /// The shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            Value::Ints(a) => a.shape(),
            Value::Floats(a) => a.shape(),
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The integers, `None` for floats.
    pub fn ints(&self) -> Option<&ArcArray<i64, IxDyn>> {
        match self {
            Value::Ints(a) => Some(a),
            Value::Floats(_) => None,
        }
    }

    /// The floats, `None` for integers.
    pub fn floats(&self) -> Option<&ArcArray<f32, IxDyn>> {
        match self {
            Value::Floats(a) => Some(a),
            Value::Ints(_) => None,
        }
    }
}

/// How large the values may be that are read and computed, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of integers and booleans.
    pub ints: usize,
    /// Of floats.
    pub floats: usize,
}

impl Limits {
    /// Sizes, indices and positions. Floats count only as far as they become sizes, as in Floor(n · ratio): weights are
    /// larger.
    pub const SIZES: Limits = Limits {
        ints: 4096,
        floats: 64,
    };

    /// Weights too.
    pub const NONE: Limits = Limits {
        ints: usize::MAX,
        floats: usize::MAX,
    };

    /// The limit for one type; 0 for types whose elements are never looked at (strings, complex numbers, float8).
    pub(super) fn of(self, dtype: DataType) -> usize {
        match dtype {
            dtype if tensor::is_float(dtype) => self.floats,
            dtype if int_range(dtype).is_some() => self.ints,
            _ => 0,
        }
    }
}

/// What is known of one value: of each part nothing, some of it, or all. What is not known is absent, never guessed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fact {
    /// The element type.
    pub dtype: Option<DataType>,
    /// Rank and sizes; where `value` is known, its shape.
    pub dims: Option<Dims>,
    /// The elements, of a small value that is the same for all data.
    pub value: Option<Value>,
}

impl Fact {
    /// A value of known type and sizes.
    pub fn of_shape(dtype: Option<DataType>, shape: &[usize]) -> Fact {
        Fact {
            dtype,
            dims: Some(known(shape)),
            value: None,
        }
    }

    /// A value of which all is known.
    pub fn of_value(dtype: DataType, value: Value) -> Fact {
        Fact {
            dtype: Some(dtype),
            dims: Some(known(value.shape())),
            value: Some(value),
        }
    }

    /// A tensor of the file, whose elements are read if the limits allow. A malformed one is not known at all.
    pub fn of_tensor(constant: &TensorProto, limits: Limits) -> Fact {
        let (Some(dtype), Ok(shape)) = (tensor::dtype(constant), tensor::shape(constant)) else {
            return Fact::default();
        };
        let value = if shape.iter().product::<usize>() > limits.of(dtype) {
            None
        } else if tensor::is_float(dtype) {
            let array = tensor::float_array(constant).ok();
            array.map(|a| Value::Floats(a.into_shared()))
        } else {
            let array = tensor::int_array(constant).ok();
            array.map(|a| Value::Ints(a.into_shared()))
        };
        Fact {
            value,
            ..Fact::of_shape(Some(dtype), &shape)
        }
    }

    /// The number of axes.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }

    /// The sizes, if all are known.
    pub fn shape(&self) -> Option<Vec<usize>> {
        self.dims.as_ref()?.iter().copied().collect()
    }

    /// Adds what `other` knows; where the two contradict each other, `other` is right.
    pub fn update(&mut self, other: Fact) {
        self.dtype = other.dtype.or(self.dtype);
        self.dims = match (self.dims.take(), other.dims) {
            (Some(mine), Some(theirs)) if mine.len() == theirs.len() => {
                let both = theirs.into_iter().zip(mine);
                Some(both.map(|(theirs, mine)| theirs.or(mine)).collect())
            }
            (mine, theirs) => theirs.or(mine),
        };
        self.value = other.value.or(self.value.take());
    }
}

/// Sizes that are all known.
pub fn known(shape: &[usize]) -> Dims {
    shape.iter().copied().map(Some).collect()
}

/// The product of sizes, if all are known and it is a number of elements at all.
pub fn product(dims: &[Dim]) -> Dim {
    dims.iter().try_fold(1usize, |all, &n| all.checked_mul(n?))
}

/// The sum of sizes, if all are known.
pub(super) fn sum(mut dims: impl Iterator<Item = Dim>) -> Dim {
    dims.try_fold(0usize, |all, n| all.checked_add(n?))
}

/// The smallest and the largest number of an integer type; of bool 0 and 1.
pub(super) fn int_range(dtype: DataType) -> Option<(i64, i64)> {
    Some(match dtype {
        DataType::Bool => (0, 1),
        DataType::Int2 => (-2, 1),
        DataType::Uint2 => (0, 3),
        DataType::Int4 => (-8, 7),
        DataType::Uint4 => (0, 15),
        DataType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        DataType::Uint8 => (0, u8::MAX.into()),
        DataType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        DataType::Uint16 => (0, u16::MAX.into()),
        DataType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        DataType::Uint32 => (0, u32::MAX.into()),
        DataType::Int64 => (i64::MIN, i64::MAX),
        // Larger ones are refused when they are read.
        DataType::Uint64 => (0, i64::MAX),
        _ => return None,
    })
}

/// The elements at `indices` along one axis.
pub(super) fn selected(value: &Value, axis: usize, indices: &[usize]) -> Value {
    let axis = ndarray::Axis(axis);
    match value {
        Value::Ints(a) => Value::Ints(a.select(axis, indices).into_shared()),
        Value::Floats(a) => Value::Floats(a.select(axis, indices).into_shared()),
    }
}

/// A list of integers.
pub(super) fn line(values: Vec<i64>) -> Value {
    Value::Ints(ndarray::Array1::from(values).into_dyn().into_shared())
}

/// One integer.
pub(super) fn number(value: i64) -> Value {
    Value::Ints(ndarray::arr0(value).into_dyn().into_shared())
}
