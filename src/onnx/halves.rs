//! Floats of two bytes.

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Floats of two bytes as float32, on all threads: these are the bytes of a large model.
pub(super) fn widened<H: Default + Copy>(raw: &[u8], from_le_bytes: fn([u8; 2]) -> H) -> Vec<f32>
where
    [H]: HalfFloatSliceExt,
{
    const PIECE: usize = 4096;
    let mut wide = vec![0.0; raw.len() / 2];
    let pieces = wide.par_chunks_mut(PIECE).zip(raw.par_chunks(2 * PIECE));
    pieces.for_each(|(wide, raw)| {
        // The bytes of a file lie at any address, those of a slice of halves do not.
        let mut halves = [H::default(); PIECE];
        for (half, bytes) in halves.iter_mut().zip(raw.as_chunks::<2>().0) {
            *half = from_le_bytes(*bytes);
        }
        halves[..wide.len()].convert_to_f32_slice(wide);
    });
    wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_half_at_any_address_becomes_the_same_float() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        // A byte in front, so that no half is aligned.
        let bytes: Vec<u8> = [0]
            .into_iter()
            .chain(all.iter().flat_map(|b| b.to_le_bytes()))
            .collect();
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let (short, brain) = (
            widened(&bytes[1..], f16::from_le_bytes),
            widened(&bytes[1..], bf16::from_le_bytes),
        );
        assert_eq!((short.len(), brain.len()), (all.len(), all.len()));
        for (i, bits) in all.into_iter().enumerate() {
            assert!(same(short[i], f16::from_bits(bits).to_f32()), "{bits:#x}");
            assert!(same(brain[i], bf16::from_bits(bits).to_f32()), "{bits:#x}");
        }
    }
}
