//! Tensors to arrays and back.
//!
//! A TensorProto keeps its elements in `raw_data` (little endian, row major) or in the typed field of its type
//! (`float_data`, `int32_data`, …). The readers here accept both and give arrays of one type: [`float_array`] f32 for
//! the four ordinary float types, [`int_array`] i64 for all integers and bool. External data must have been resolved,
//! as [`load`](super::load()) does.

use std::borrow::Cow;

use super::halves::widened;
use super::proto::TensorProto;
use super::proto::tensor_proto::{DataLocation, DataType};
use bytes::Bytes;
use half::{bf16, f16};
use ndarray::ArrayD;
use thiserror::Error;

/// Why a tensor could not be read.
#[derive(Debug, Error, PartialEq)]
#[error("tensor `{name}`: {problem}")]
pub struct TensorError {
    /// The tensor's name.
    pub name: String,
    /// What is wrong.
    pub problem: TensorProblem,
}

impl TensorError {
    /// The same error under another name, for a tensor that has none itself.
    pub(super) fn named(mut self, name: String) -> Self {
        self.name = name;
        self
    }
}

/// What is wrong with a tensor.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum TensorProblem {
    /// The data type is missing, undefined, or newer than this program.
    #[error("the data type {0} is not known")]
    UnknownType(i32),
    /// The type is known but not of the kind asked for.
    #[error("expected {expected}, found {}", found.as_str_name())]
    WrongType {
        /// The kind asked for.
        expected: &'static str,
        /// The tensor's type.
        found: DataType,
    },
    /// A negative axis, or more elements than memory has addresses for.
    #[error("the shape {0:?} is not possible")]
    BadShape(Vec<i64>),
    /// Too little or too much data for the shape.
    #[error("its shape needs {expected} {unit}, found {found} in {field}")]
    WrongLength {
        /// By the shape and type.
        expected: usize,
        /// What there is.
        found: usize,
        /// Bytes or elements.
        unit: &'static str,
        /// The field that holds the data.
        field: &'static str,
    },
    /// Which of several fields holds the data is not said.
    #[error("it holds data both in raw_data and in a typed field")]
    Twice,
    /// The data is still in another file.
    #[error("its data is external and was not loaded")]
    External,
    /// The tensor is only a segment of a larger one.
    #[error("segmented tensors are not supported")]
    Segment,
    /// A uint64 beyond the range of i64.
    #[error("the value {0} does not fit into a 64-bit signed integer")]
    TooLarge(u64),
}

/// The element type; `None` if it is absent or not in the schema.
pub fn dtype(tensor: &TensorProto) -> Option<DataType> {
    DataType::try_from(tensor.data_type?).ok()
}

/// The shape; `[]` is a scalar.
///
/// # Errors
/// If an axis is negative or the number of elements does not fit into usize.
pub fn shape(tensor: &TensorProto) -> Result<Vec<usize>, TensorError> {
    let bad = || error(tensor, TensorProblem::BadShape(tensor.dims.clone()));
    let shape: Result<Vec<usize>, _> = tensor.dims.iter().map(|&dim| dim.try_into()).collect();
    let shape = shape.map_err(|_| bad())?;
    // ndarray asks the same of its shapes: the product of the axes that are not zero must fit into isize.
    let mut nonzero = shape.iter().filter(|&&dim| dim != 0);
    nonzero
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|&product| isize::try_from(product).is_ok())
        .ok_or_else(bad)?;
    Ok(shape)
}

/// True for the types that [`float_array`] reads: FLOAT, FLOAT16, BFLOAT16 and DOUBLE.
pub fn is_float(dtype: DataType) -> bool {
    matches!(
        dtype,
        DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double
    )
}

/// Bits of one element; `None` for strings and the undefined type.
pub(super) fn bits(dtype: DataType) -> Option<usize> {
    use DataType::*;
    Some(match dtype {
        Undefined | String => return None,
        Uint2 | Int2 => 2,
        Uint4 | Int4 | Float4e2m1 => 4,
        Float6e2m3 | Float6e3m2 => 6,
        Uint8 | Int8 | Bool | Float8e4m3fn | Float8e4m3fnuz | Float8e5m2 | Float8e5m2fnuz
        | Float8e8m0 => 8,
        Uint16 | Int16 | Float16 | Bfloat16 => 16,
        Uint32 | Int32 | Float => 32,
        Uint64 | Int64 | Double | Complex64 => 64,
        Complex128 => 128,
    })
}

fn error(tensor: &TensorProto, problem: TensorProblem) -> TensorError {
    TensorError {
        name: tensor.name().to_owned(),
        problem,
    }
}

fn known_type(tensor: &TensorProto) -> Result<DataType, TensorError> {
    dtype(tensor)
        .filter(|&dtype| dtype != DataType::Undefined)
        .ok_or_else(|| error(tensor, TensorProblem::UnknownType(tensor.data_type())))
}

/// The number of bytes that `raw_data` must have by shape and type; elements below a byte are packed.
///
/// # Errors
/// If the type is unknown or STRING, or the shape impossible.
pub(super) fn byte_len(tensor: &TensorProto) -> Result<usize, TensorError> {
    let dtype = known_type(tensor)?;
    let wrong = TensorProblem::WrongType {
        expected: "a type of fixed size",
        found: dtype,
    };
    let bits = bits(dtype).ok_or_else(|| error(tensor, wrong))?;
    let count: usize = shape(tensor)?.iter().product();
    let bits = count.checked_mul(bits);
    let bits = bits.ok_or_else(|| error(tensor, TensorProblem::BadShape(tensor.dims.clone())))?;
    Ok(bits.div_ceil(8))
}

/// Where the elements are, length checked.
enum Storage<'a> {
    Raw(&'a [u8]),
    Float(&'a [f32]),
    Double(&'a [f64]),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    Uint64(&'a [u64]),
}

/// Finds the elements and checks their number against the shape. STRING, COMPLEX and unknown types are errors.
fn storage(tensor: &TensorProto) -> Result<Storage<'_>, TensorError> {
    use DataType::*;
    let dtype = known_type(tensor)?;
    if tensor.data_location == Some(DataLocation::External as i32) {
        return Err(error(tensor, TensorProblem::External));
    }
    if tensor.segment.is_some() {
        return Err(error(tensor, TensorProblem::Segment));
    }
    let bytes = byte_len(tensor)?;
    let length = |expected, found, unit, field| match expected == found {
        true => Ok(()),
        false => Err(error(
            tensor,
            TensorProblem::WrongLength {
                expected,
                found,
                unit,
                field,
            },
        )),
    };
    // Some writers leave an empty `raw_data` beside a typed field.
    if let Some(raw) = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty()) {
        length(bytes, raw.len(), "bytes", "raw_data")?;
        let typed = [
            tensor.float_data.len(),
            tensor.int32_data.len(),
            tensor.int64_data.len(),
            tensor.double_data.len(),
            tensor.uint64_data.len(),
        ];
        if typed.iter().any(|&n| n > 0) {
            return Err(error(tensor, TensorProblem::Twice));
        }
        return Ok(Storage::Raw(raw));
    }
    let count: usize = shape(tensor)?.iter().product();
    let (found, field, storage) = match dtype {
        Float => (
            tensor.float_data.len(),
            "float_data",
            Storage::Float(&tensor.float_data),
        ),
        Double => (
            tensor.double_data.len(),
            "double_data",
            Storage::Double(&tensor.double_data),
        ),
        Int64 => (
            tensor.int64_data.len(),
            "int64_data",
            Storage::Int64(&tensor.int64_data),
        ),
        Uint32 | Uint64 => (
            tensor.uint64_data.len(),
            "uint64_data",
            Storage::Uint64(&tensor.uint64_data),
        ),
        String | Complex64 | Complex128 | Undefined => {
            let expected = "a tensor of numbers";
            return Err(error(
                tensor,
                TensorProblem::WrongType {
                    expected,
                    found: dtype,
                },
            ));
        }
        _ => (
            tensor.int32_data.len(),
            "int32_data",
            Storage::Int32(&tensor.int32_data),
        ),
    };
    // An element of `int32_data` holds one byte of the types that are packed, and one element of those with 6 bits.
    let expected = match bits(dtype) {
        Some(2 | 4) => bytes,
        _ => count,
    };
    length(expected, found, "elements", field)?;
    Ok(storage)
}

/// Checks that there is as much data as the shape needs.
pub(super) fn check(tensor: &TensorProto) -> Result<(), TensorError> {
    storage(tensor).map(drop)
}

/// The elements as f32, in the tensor's shape: FLOAT as it is, FLOAT16 and BFLOAT16 exactly, DOUBLE rounded to the
/// nearest (beyond the range of f32: infinity).
///
/// # Errors
/// If the type is another one or the data does not fit the shape; see [`TensorProblem`].
pub fn float_array(tensor: &TensorProto) -> Result<ArrayD<f32>, TensorError> {
    let found = known_type(tensor)?;
    if !is_float(found) {
        let expected = "FLOAT, FLOAT16, BFLOAT16 or DOUBLE";
        return Err(error(tensor, TensorProblem::WrongType { expected, found }));
    }
    let from_bits = |bits: u16| match found {
        DataType::Float16 => f16::from_bits(bits).to_f32(),
        _ => bf16::from_bits(bits).to_f32(),
    };
    let values: Vec<f32> = match (storage(tensor)?, found) {
        (Storage::Raw(raw), DataType::Float) => chunks(raw).map(f32::from_le_bytes).collect(),
        (Storage::Raw(raw), DataType::Double) => chunks(raw)
            .map(|bytes| f64::from_le_bytes(bytes) as f32)
            .collect(),
        (Storage::Raw(raw), DataType::Float16) => widened(raw, f16::from_le_bytes),
        (Storage::Raw(raw), _) => widened(raw, bf16::from_le_bytes),
        (Storage::Float(data), _) => data.to_vec(),
        (Storage::Double(data), _) => data.iter().map(|&value| value as f32).collect(),
        // The bits are in the lower half.
        (Storage::Int32(data), _) => data.iter().map(|&bits| from_bits(bits as u16)).collect(),
        // These two never hold floats.
        (Storage::Int64(_) | Storage::Uint64(_), _) => Vec::new(),
    };
    array(tensor, values)
}

/// The elements as i64, in the tensor's shape: all integer types, and BOOL as 0 and 1.
///
/// # Errors
/// If the type is another one, the data does not fit the shape, or a uint64 is beyond i64; see [`TensorProblem`].
pub fn int_array(tensor: &TensorProto) -> Result<ArrayD<i64>, TensorError> {
    use DataType::*;
    let found = known_type(tensor)?;
    let small = matches!(found, Uint4 | Int4 | Uint2 | Int2);
    if !small
        && !matches!(
            found,
            Uint8 | Int8 | Uint16 | Int16 | Uint32 | Int32 | Uint64 | Int64 | Bool
        )
    {
        let expected = "integers or BOOL";
        return Err(error(tensor, TensorProblem::WrongType { expected, found }));
    }
    let count: usize = shape(tensor)?.iter().product();
    let unsigned = |value: u64| {
        i64::try_from(value).map_err(|_| error(tensor, TensorProblem::TooLarge(value)))
    };
    let values: Vec<i64> = match storage(tensor)? {
        Storage::Raw(raw) if small => unpack(raw.iter().copied(), found, count),
        Storage::Int32(data) if small => unpack(data.iter().map(|&byte| byte as u8), found, count),
        Storage::Raw(raw) => match found {
            Uint8 => raw.iter().map(|&byte| i64::from(byte)).collect(),
            Bool => raw.iter().map(|&byte| i64::from(byte != 0)).collect(),
            Int8 => raw.iter().map(|&byte| i64::from(byte as i8)).collect(),
            Uint16 => chunks(raw)
                .map(|bytes| i64::from(u16::from_le_bytes(bytes)))
                .collect(),
            Int16 => chunks(raw)
                .map(|bytes| i64::from(i16::from_le_bytes(bytes)))
                .collect(),
            Uint32 => chunks(raw)
                .map(|bytes| i64::from(u32::from_le_bytes(bytes)))
                .collect(),
            Int32 => chunks(raw)
                .map(|bytes| i64::from(i32::from_le_bytes(bytes)))
                .collect(),
            Uint64 => chunks(raw)
                .map(|bytes| unsigned(u64::from_le_bytes(bytes)))
                .collect::<Result<_, _>>()?,
            _ => chunks(raw).map(i64::from_le_bytes).collect(),
        },
        Storage::Int32(data) if found == Bool => {
            data.iter().map(|&value| i64::from(value != 0)).collect()
        }
        Storage::Int32(data) => data.iter().map(|&value| i64::from(value)).collect(),
        Storage::Int64(data) => data.to_vec(),
        Storage::Uint64(data) => data
            .iter()
            .map(|&value| unsigned(value))
            .collect::<Result<_, _>>()?,
        // These two never hold integers.
        Storage::Float(_) | Storage::Double(_) => Vec::new(),
    };
    array(tensor, values)
}

/// The bytes of integers of up to 8 bits, packed as they are in the file: the first element in the lowest bits.
///
/// # Errors
/// If the type is another one or the data does not fit the shape; see [`TensorProblem`].
pub fn bytes(tensor: &TensorProto) -> Result<Cow<'_, [u8]>, TensorError> {
    use DataType::*;
    let found = known_type(tensor)?;
    let expected = "integers of up to 8 bits";
    let wrong = || error(tensor, TensorProblem::WrongType { expected, found });
    if !matches!(found, Uint8 | Int8 | Uint4 | Int4 | Uint2 | Int2) {
        return Err(wrong());
    }
    match storage(tensor)? {
        Storage::Raw(raw) => Ok(Cow::Borrowed(raw)),
        Storage::Int32(data) => Ok(data.iter().map(|&byte| byte as u8).collect()),
        _ => Err(wrong()),
    }
}

/// Elements of 2 or 4 bits, the first in the lowest bits of a byte.
fn unpack(data: impl Iterator<Item = u8>, dtype: DataType, count: usize) -> Vec<i64> {
    let (bits, signed) = match dtype {
        DataType::Uint2 => (2, false),
        DataType::Int2 => (2, true),
        DataType::Uint4 => (4, false),
        _ => (4, true),
    };
    data.flat_map(|byte| {
        (0..8 / bits).map(move |place| {
            // Moves the element to the top of the byte and back down, with or without its sign.
            let top = byte >> (bits * place) << (8 - bits);
            match signed {
                true => i64::from(top as i8 >> (8 - bits)),
                false => i64::from(top >> (8 - bits)),
            }
        })
    })
    .take(count)
    .collect()
}

/// Cuts into elements of N bytes; the length is a multiple, by `storage`.
fn chunks<const N: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    raw.as_chunks::<N>().0.iter().copied()
}

fn array<T>(tensor: &TensorProto, values: Vec<T>) -> Result<ArrayD<T>, TensorError> {
    let shape = shape(tensor)?;
    // `storage` compared the numbers, so only a shape that ndarray cannot hold is left.
    ArrayD::from_shape_vec(shape, values)
        .map_err(|_| error(tensor, TensorProblem::BadShape(tensor.dims.clone())))
}

/// The bytes of all elements; by whole elements, where an iterator of bytes is no loop over vectors.
fn stored<T: Copy, const N: usize>(data: &[T], of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; N * data.len()];
    let elements = bytes.as_chunks_mut::<N>().0.iter_mut();
    elements.zip(data).for_each(|(to, &value)| *to = of(value));
    bytes
}

/// Makes a tensor with its elements in `raw_data`.
fn make(name: &str, shape: &[usize], dtype: DataType, len: usize, raw: Vec<u8>) -> TensorProto {
    let count: usize = shape.iter().product();
    assert_eq!(
        len, count,
        "tensor `{name}`: {len} elements for the shape {shape:?}"
    );
    TensorProto {
        // No slice is longer than isize::MAX, so neither is an axis.
        dims: shape.iter().map(|&dim| dim as i64).collect(),
        data_type: Some(dtype as i32),
        name: Some(name.to_owned()),
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    }
}

/// Makes a float tensor of type FLOAT, FLOAT16, BFLOAT16 or DOUBLE from `data`, rounded to the nearest even. A value
/// beyond the range of FLOAT16 (65504) or BFLOAT16 becomes infinite, which the caller has to prevent where it matters.
///
/// # Panics
/// If the length is not that of the shape or `dtype` is another type: both are mistakes of the calling code.
pub fn from_f32(name: &str, shape: &[usize], data: &[f32], dtype: DataType) -> TensorProto {
    let raw: Vec<u8> = match dtype {
        DataType::Float => stored(data, f32::to_le_bytes),
        DataType::Float16 => stored(data, |value| f16::from_f32(value).to_le_bytes()),
        DataType::Bfloat16 => stored(data, |value| bf16::from_f32(value).to_le_bytes()),
        DataType::Double => stored(data, |value| f64::from(value).to_le_bytes()),
        other => panic!("tensor `{name}`: {} is no float type", other.as_str_name()),
    };
    make(name, shape, dtype, data.len(), raw)
}

/// Makes an INT8 tensor.
///
/// # Panics
/// If the length is not that of the shape.
pub fn from_i8(name: &str, shape: &[usize], data: &[i8]) -> TensorProto {
    let raw = data.iter().map(|&value| value as u8).collect();
    make(name, shape, DataType::Int8, data.len(), raw)
}

/// Makes a UINT8 tensor.
///
/// # Panics
/// If the length is not that of the shape.
pub fn from_u8(name: &str, shape: &[usize], data: &[u8]) -> TensorProto {
    make(name, shape, DataType::Uint8, data.len(), data.to_vec())
}

/// Makes an INT32 tensor.
///
/// # Panics
/// If the length is not that of the shape.
pub fn from_i32(name: &str, shape: &[usize], data: &[i32]) -> TensorProto {
    let raw = stored(data, i32::to_le_bytes);
    make(name, shape, DataType::Int32, data.len(), raw)
}

/// Makes an INT64 tensor.
///
/// # Panics
/// If the length is not that of the shape.
pub fn from_i64(name: &str, shape: &[usize], data: &[i64]) -> TensorProto {
    let raw = stored(data, i64::to_le_bytes);
    make(name, shape, DataType::Int64, data.len(), raw)
}

mod four_bits;

pub use four_bits::{from_i4, from_u4, packed};

#[cfg(test)]
mod tests;
