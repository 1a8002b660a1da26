//! The orthogonal matrices H_n that rotations are made of.
//!
//! With n = 2^a · m, m odd, H_n is the Kronecker product of the Hadamard matrix of Sylvester, `±2^(−a/2)`, and the discrete
//! Hartley matrix, `(cos + sin)(2π i j / m) / √m`, whose entries are at most √2 times the mean. Both are symmetric.

use ndarray::Array2;
use ndarray::linalg::kron;

use super::wide::{add_scaled, wide};

/// The symmetric orthogonal matrix H_n.
pub fn orthogonal(n: usize) -> Array2<f32> {
    let power = 1 << n.trailing_zeros();
    kron(&hadamard(power), &hartley(n / power)).mapv(|v| v as f32)
}

/// `y_i ← Σ_j H_ij y_j` for every row of `y: [_, n, inner]`, row-major: by sums and differences for the part of n that is a power
/// of two.
pub(super) fn apply(n: usize, inner: usize, y: &mut [f32]) {
    let size = n * inner;
    if size == 0 {
        return;
    }
    let power = 1 << n.trailing_zeros();
    let odd = n / power;
    let scale = 1.0 / (power as f32).sqrt();
    let small = (odd > 1).then(|| hartley(odd).mapv(|v| v as f32));
    let mut old = vec![0.0; odd * inner];
    for y in y.chunks_exact_mut(size) {
        // H of the power of two moves groups of `odd` rows as a whole.
        let mut half = odd * inner;
        while half < size {
            for pair in y.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                sum_and_difference(a, b);
            }
            half *= 2;
        }
        scale_by(y, scale);
        let Some(small) = &small else {
            continue;
        };
        for group in y.chunks_exact_mut(odd * inner) {
            old.copy_from_slice(group);
            group.fill(0.0);
            for (row, h) in group.chunks_exact_mut(inner).zip(small.rows()) {
                for (old, &h) in old.chunks_exact(inner).zip(h) {
                    add_scaled(row, h, old);
                }
            }
        }
    }
}

wide! {
    fn sum_and_difference(a: &mut [f32], b: &mut [f32]) = butterfly;
}

#[inline(always)]
fn butterfly(a: &mut [f32], b: &mut [f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (*a + *b, *a - *b);
    }
}

wide! {
    fn scale_by(y: &mut [f32], factor: f32) = multiply;
}

#[inline(always)]
fn multiply(y: &mut [f32], factor: f32) {
    y.iter_mut().for_each(|v| *v *= factor);
}

/// Sylvester's Hadamard matrix of a power of two, divided by √n: the sign is the parity of the bits that i and j share.
fn hadamard(n: usize) -> Array2<f64> {
    let size = 1.0 / (n as f64).sqrt();
    Array2::from_shape_fn((n, n), |(i, j)| match (i & j).count_ones() % 2 {
        0 => size,
        _ => -size,
    })
}

/// The discrete Hartley transform, divided by √n.
fn hartley(n: usize) -> Array2<f64> {
    let size = 1.0 / (n as f64).sqrt();
    Array2::from_shape_fn((n, n), |(i, j)| {
        let (cos, sin) = cos_sin((i * j % n) as f64 / n as f64);
        (cos + sin) * size
    })
}

/// cos and sin of `turns` turns, 0 ≤ turns < 1, by their series: the same bits on every computer, unlike those of the
/// system's library.
fn cos_sin(turns: f64) -> (f64, f64) {
    let angle = std::f64::consts::TAU * if turns > 0.5 { turns - 1.0 } else { turns };
    let (mut cos, mut sin, mut term) = (0.0, 0.0, 1.0);
    // πⁿ / n! < 1e-17 from n = 30 on.
    for n in 0..32 {
        match n % 4 {
            0 => cos += term,
            1 => sin += term,
            2 => cos -= term,
            _ => sin -= term,
        }
        term *= angle / f64::from(n + 1);
    }
    (cos, sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_differences_are_the_product() {
        for (n, inner) in [(1, 3), (2, 1), (8, 5), (9, 2), (24, 7), (35, 1), (48, 32)] {
            let y = Array2::from_shape_fn((2 * n, inner), |(i, j)| {
                ((i * 37 + j * 11) % 23) as f32 - 9.0
            });
            let mut out = y.clone();
            apply(n, inner, out.as_slice_mut().unwrap());
            for (half, wanted) in [(0..n), (n..2 * n)].into_iter().zip(0..2) {
                let y = y.slice(ndarray::s![half.clone(), ..]);
                let expected = orthogonal(n).dot(&y);
                let error = &expected - &out.slice(ndarray::s![half, ..]);
                assert!(error.iter().all(|e| e.abs() < 1e-4), "{n} {inner} {wanted}");
            }
        }
        apply(4, 0, &mut []);
    }

    #[test]
    fn entries_are_of_nearly_one_size() {
        for n in [1, 2, 3, 5, 7, 24, 35, 39, 44, 48] {
            let h = orthogonal(n);
            let largest = h.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let odd = n >> n.trailing_zeros() > 1;
            let limit = if odd { 2f32.sqrt() } else { 1.0 };
            assert!(
                largest <= (limit + 1e-6) / (n as f32).sqrt(),
                "{n}: {largest}"
            );
            assert_eq!(h, h.t());
        }
    }

    #[test]
    fn the_series_are_cosine_and_sine() {
        for n in 0..1000 {
            let turns = f64::from(n) / 1000.0;
            let (cos, sin) = cos_sin(turns);
            let angle = turns * std::f64::consts::TAU;
            assert!((cos - angle.cos()).abs() < 1e-14 && (sin - angle.sin()).abs() < 1e-14);
        }
    }
}
