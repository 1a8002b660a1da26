//! Products of matrices, by the kernels of the `gemm` crate for the widest vectors that this computer has: half the time of
//! those behind ndarray's `dot`, which end at AVX2, and a fifth of the search are such products.
//!
//! One thread each: what is searched runs side by side already, and the order of the sums does not depend on threads.

use gemm::Parallelism;
use ndarray::{Array2, ArrayBase, ArrayView2, ArrayViewMut2, Data, DataMut, Ix2};

/// `a b`, `[M, N]`, for `a: [M, K]`, `b: [K, N]` in any layout.
///
/// # Panics
/// If the inner sizes differ.
pub(crate) fn product<A, B>(a: &ArrayBase<A, Ix2>, b: &ArrayBase<B, Ix2>) -> Array2<f32>
where
    A: Data<Elem = f32>,
    B: Data<Elem = f32>,
{
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    add_product(1.0, a, b, 0.0, &mut out);
    out
}

/// `out = factor · a b + keep · out`, for `a: [M, K]`, `b: [K, N]`, `out: [M, N]` in any layout. With `keep` 0, what is in
/// `out` is not read.
///
/// # Panics
/// If the sizes do not fit.
pub(crate) fn add_product<A, B, C>(
    factor: f32,
    a: &ArrayBase<A, Ix2>,
    b: &ArrayBase<B, Ix2>,
    keep: f32,
    out: &mut ArrayBase<C, Ix2>,
) where
    A: Data<Elem = f32>,
    B: Data<Elem = f32>,
    C: DataMut<Elem = f32>,
{
    let ((m, k), n) = (a.dim(), b.ncols());
    assert!(
        b.nrows() == k && out.dim() == (m, n),
        "[{m}, {k}] times {:?} is not {:?}",
        b.dim(),
        out.dim()
    );
    let strides = |strides: &[isize]| (strides[0], strides[1]);
    let (a_rows, a_columns) = strides(a.strides());
    let (b_rows, b_columns) = strides(b.strides());
    let (out_rows, out_columns) = strides(out.strides());
    // SAFETY: pointers, sizes and strides are those of arrays that live until the end of the call, the sizes fit one another,
    // and `out` is borrowed alone, so it shares no element with the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_columns,
            out_rows,
            keep != 0.0,
            a.as_ptr(),
            a_columns,
            a_rows,
            b.as_ptr(),
            b_columns,
            b_rows,
            keep,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `out = x w` for the rows of `x: [R, K]` and `out: [R, N]`, one after the other, and `w: [K, N]`.
pub(super) fn product_of_rows(x: &[f32], w: ArrayView2<f32>, out: &mut [f32]) {
    let (k, n) = w.dim();
    let rows = x.len().checked_div(k).unwrap_or(0);
    if let (Ok(x), Ok(mut out)) = (
        ArrayView2::from_shape((rows, k), x),
        ArrayViewMut2::from_shape((rows, n), out),
    ) {
        add_product(1.0, &x, &w, 0.0, &mut out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::mix::noise;
    use ndarray::s;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the layout, also of parts, and without anything to add up.
        #[test]
        fn the_same_as_ndarray(
            (m, k, n) in (0usize..40, 0usize..70, 0usize..40),
            layout in 0usize..8,
            (factor, keep) in (-2.0f32..2.0, prop_oneof![Just(0.0f32), -2.0f32..2.0]),
        ) {
            let array = |bit: usize, (rows, columns): (usize, usize), seed| {
                if layout >> bit & 1 == 0 {
                    noise(rows, columns, seed)
                } else {
                    noise(columns, rows, seed).reversed_axes()
                }
            };
            let (a, b) = (array(0, (m + 1, k), 1), array(1, (k, 2 * n), 2));
            let (a, b) = (a.slice(s![1.., ..]), b.slice(s![.., ..;2]));
            let mut out = array(2, (m, n), 3);
            let mut expected = out.clone();
            ndarray::linalg::general_mat_mul(factor, &a, &b, keep, &mut expected);
            if keep == 0.0 {
                out.fill(f32::NAN);
            }
            add_product(factor, &a, &b, keep, &mut out);
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
            prop_assert!(out.iter().zip(&expected).all(close));
            let alone = product(&a, &b);
            prop_assert!(alone.iter().zip(&a.dot(&b)).all(close));
        }
    }
}
