//! Integers of fewer than 8 bits, side by side in bytes.

use super::make;
use crate::onnx::DataType;
use crate::onnx::proto::TensorProto;

/// Makes an INT4 tensor: two elements per byte, the first in the lower half. Only the lower 4 bits of an element are
/// kept.
///
/// # Panics
/// If the length is not that of the shape.
pub fn from_i4(name: &str, shape: &[usize], data: &[i8]) -> TensorProto {
    let raw = packed(&data.iter().map(|&v| v as u8).collect::<Vec<_>>(), 4);
    make(name, shape, DataType::Int4, data.len(), raw)
}

/// Makes a UINT4 tensor, packed like [`from_i4`].
///
/// # Panics
/// If the length is not that of the shape.
pub fn from_u4(name: &str, shape: &[usize], data: &[u8]) -> TensorProto {
    let raw = packed(data, 4);
    make(name, shape, DataType::Uint4, data.len(), raw)
}

/// The lower `bits` (1, 2, 4 or 8) of every value, the first in the lowest bits of its byte; what is missing in the last is 0.
pub fn packed(values: &[u8], bits: u8) -> Vec<u8> {
    let (bits, mask) = (usize::from(bits), u8::MAX >> (8 - bits));
    let byte = |part: &[u8]| {
        let shifted = part
            .iter()
            .enumerate()
            .map(|(i, v)| (v & mask) << (i * bits));
        shifted.fold(0, |byte, v| byte | v)
    };
    values.chunks(8 / bits).map(byte).collect()
}
