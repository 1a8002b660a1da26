//! The smallest and largest element of each channel.

/// Minimum, maximum and count of the tokens of one batch.
pub(super) struct Extremes {
    pub min: Vec<f32>,
    pub max: Vec<f32>,
    pub tokens: u64,
}

impl Extremes {
    pub(super) fn new(channels: usize) -> Extremes {
        Extremes {
            min: vec![f32::INFINITY; channels],
            max: vec![f32::NEG_INFINITY; channels],
            tokens: 0,
        }
    }

    /// Adds one vector `x: [C]`; false if it is not finite.
    pub(super) fn add(&mut self, x: &[f32]) -> bool {
        const EXPONENT: u32 = 0x7f80_0000;
        let mut special = false;
        for ((x, min), max) in x.iter().zip(&mut self.min).zip(&mut self.max) {
            *min = if *x < *min { *x } else { *min };
            *max = if *x > *max { *x } else { *max };
            // All exponent bits are set in NaN and infinity; a loop without a branch vectorizes.
            special |= x.to_bits() & EXPONENT == EXPONENT;
        }
        self.tokens += 1;
        !special
    }
}
