//! A look at the numbers of a tensor that copies none of them.

use super::{chunks, dtype};
use crate::onnx::DataType;
use crate::onnx::proto::TensorProto;

/// Whether a tensor of float32 in raw bytes has neither NaN nor infinity; false for every other tensor, and without looking at
/// the shape. Nothing is copied.
pub fn is_finite(tensor: &TensorProto) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let raw = tensor.raw_data.as_ref();
    let raw = raw.filter(|_| dtype(tensor) == Some(DataType::Float));
    raw.is_some_and(|raw| {
        // Blocks without an early end are looked through many elements at a time.
        raw.chunks(1 << 14).all(|block| {
            let finite = |v: [u8; 4]| u32::from_le_bytes(v) & EXPONENT != EXPONENT;
            chunks(block).fold(true, |all, v| all & finite(v))
        })
    })
}
