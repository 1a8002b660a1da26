//! Loops for the vectors this computer has.
//!
//! A program for any x86-64 computer may use vectors of four floats only; nearly all have eight, many sixteen. `wide!` makes
//! a function that runs its body compiled for AVX-512 or AVX2 where that is there. All do the same operations in the same
//! order, without fused multiply-add, so the results are the same bits.

use ndarray::{Array1, ArrayView2};

/// `fn name(arguments) -> Result = body;`: the function `body`, which must be `#[inline(always)]`, for AVX-512 or AVX2 if possible.
macro_rules! wide {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident(
        $($argument:ident: $type:ty),* $(,)?
    ) $(-> $result:ty)? = $body:path;) => {
        $(#[$attribute])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    $body($($argument),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    $body($($argument),*)
                }
                if crate::solve::wide::has_avx512() {
                    // SAFETY: this computer has these parts of AVX-512.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: this computer has AVX2.
                    return unsafe { avx2($($argument),*) };
                }
            }
            $body($($argument),*)
        }
    };
}
pub(super) use wide;

/// Whether this computer has the parts of AVX-512 that `wide!` asks for.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// `v W`, `[N]`, for `v: [C]` and `W: [C, N]`: row by row, where ndarray walks down the columns.
pub(super) fn row_times<'a>(
    v: impl IntoIterator<Item = &'a f32>,
    w: ArrayView2<f32>,
) -> Array1<f32> {
    let w = w.as_standard_layout();
    let mut out = vec![0.0; w.ncols()];
    if let (Some(w), false) = (w.as_slice(), out.is_empty()) {
        for (row, &v) in w.chunks_exact(out.len()).zip(v) {
            add_scaled(&mut out, v, row);
        }
    }
    out.into()
}

wide! {
    /// `out += factor · row`.
    pub(super) fn add_scaled(out: &mut [f32], factor: f32, row: &[f32]) = add_scaled_body;
}

#[inline(always)]
fn add_scaled_body(out: &mut [f32], factor: f32, row: &[f32]) {
    for (out, &v) in out.iter_mut().zip(row) {
        *out += factor * v;
    }
}

wide! {
    /// `Σ (a − b)²` in f64. Eight interleaved sums, in a fixed order, so that it vectorizes.
    pub(super) fn squared_error(a: &[f32], b: &[f32]) -> f64 = sum_of_squares;
}

#[inline(always)]
fn sum_of_squares(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0f64; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for i in 0..LANES {
            let e = f64::from(a[i] - b[i]);
            sums[i] += e * e;
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        let e = f64::from(a - b);
        *sum += e * e;
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    #[test]
    fn a_vector_times_a_matrix() {
        let w = array![[1.0f32, 2.0, 3.0], [10.0, 20.0, 30.0]];
        let v = array![2.0f32, -1.0];
        assert_eq!(row_times(&v, w.view()), array![-8.0, -16.0, -24.0]);
        // Of any layout, and without columns.
        let columns = array![[1.0f32, 10.0], [2.0, 20.0], [3.0, 30.0]];
        assert_eq!(row_times(&v, columns.t()), array![-8.0, -16.0, -24.0]);
        assert_eq!(row_times(&v, Array2::zeros((2, 0)).view()).len(), 0);
    }

    /// What wide vectors give is what any computer gives.
    #[test]
    fn the_same_bits_as_the_plain_loop() {
        let noise = |i: u64| (crate::solve::mix::mix(i) >> 40) as f32 / 1e5 - 83.0;
        let row: Vec<f32> = (0..37).map(noise).collect();
        let mut plain: Vec<f32> = (100..137).map(noise).collect();
        let mut found = plain.clone();
        add_scaled_body(&mut plain, 0.37, &row);
        add_scaled(&mut found, 0.37, &row);
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&plain));
    }
}
