//! Tensors of 4-bit integers, two in a byte.

use super::make;
use crate::onnx::DataType;
use crate::onnx::proto::TensorProto;

/// Makes an INT4 tensor: two elements per byte, the first in the lower half. Only the lower 4 bits of an element are
/// kept.
///
/// # Panics
/// If the length is not that of the shape.
pub fn from_i4(name: &str, shape: &[usize], data: &[i8]) -> TensorProto {
    let raw = nibbles(data.iter().map(|&v| v as u8).collect());
    make(name, shape, DataType::Int4, data.len(), raw)
}

/// Makes a UINT4 tensor, packed like [`from_i4`].
///
/// # Panics
/// If the length is not that of the shape.
pub fn from_u4(name: &str, shape: &[usize], data: &[u8]) -> TensorProto {
    let raw = nibbles(data.to_vec());
    make(name, shape, DataType::Uint4, data.len(), raw)
}

/// The lower halves of bytes, two in one.
fn nibbles(data: Vec<u8>) -> Vec<u8> {
    let pair = |p: &[u8]| p[0] & 0xf | p.get(1).map_or(0, |v| v & 0xf) << 4;
    data.chunks(2).map(pair).collect()
}
