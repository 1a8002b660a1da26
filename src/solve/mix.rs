//! Numbers that look random and are the same in every run.

/// The finalizer of the SplitMix64 generator: a fixed, well mixed number for every `i`.
pub(super) fn mix(i: u64) -> u64 {
    let z = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Numbers in −1 ..= 1, for tests.
#[cfg(test)]
pub(super) fn noise(rows: usize, columns: usize, seed: u64) -> ndarray::Array2<f32> {
    ndarray::Array2::from_shape_fn((rows, columns), |(i, j)| {
        (mix(seed + (i * columns + j) as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}
