//! The integers of a weight, row by row, as they are packed in the file.

use std::borrow::Cow;

use crate::onnx::proto::TensorProto;
use crate::onnx::tensor;

/// Numbers by rows.
pub(super) enum Rows<'m> {
    /// Integers of up to 8 bits, and how many of them one row takes.
    Packed {
        bytes: Cow<'m, [u8]>,
        bits: u32,
        signed: bool,
        stride: usize,
    },
    /// One number each.
    Wide(Vec<f32>, usize),
}

impl<'m> Rows<'m> {
    pub(super) fn new(
        tensor: &'m TensorProto,
        bits: u32,
        signed: bool,
        per_row: usize,
        by_rows: bool,
    ) -> Option<Rows<'m>> {
        if tensor::dtype(tensor).is_some_and(tensor::is_float) {
            let floats = tensor::float_array(tensor).ok()?;
            return Some(Rows::Wide(floats.into_iter().collect(), per_row));
        }
        if bits > 8 {
            let ints = tensor::int_array(tensor).ok()?;
            return Some(Rows::Wide(
                ints.iter().map(|&v| v as f32).collect(),
                per_row,
            ));
        }
        let per_byte = 8 / bits as usize;
        let stride = match by_rows {
            true => per_row.div_ceil(per_byte) * per_byte,
            false => per_row,
        };
        Some(Rows::Packed {
            bytes: tensor::bytes(tensor).ok()?,
            bits,
            signed,
            stride,
        })
    }

    /// A row of integers of 8 bits.
    pub(super) fn bytes_of_row(&self, row: usize) -> Option<&[u8]> {
        match self {
            Rows::Packed {
                bytes,
                bits: 8,
                stride,
                ..
            } => bytes.get(row * stride..(row + 1) * stride),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn get(&self, row: usize, i: usize) -> f32 {
        match self {
            Rows::Wide(all, stride) => all[row * stride + i],
            Rows::Packed {
                bytes,
                bits,
                signed,
                stride,
            } => {
                let at = row * stride + i;
                let per_byte = 8 / *bits as usize;
                let byte = bytes[at / per_byte];
                // Moves the integer to the top of the byte and back down, with or without its sign.
                let place = (at % per_byte) as u32 * bits;
                let top = byte << (8 - bits - place);
                match signed {
                    true => f32::from(top as i8 >> (8 - bits)),
                    false => f32::from(top >> (8 - bits)),
                }
            }
        }
    }
}
