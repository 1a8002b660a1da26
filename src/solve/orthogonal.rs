//! The orthogonal matrices H_n that rotations are made of.
//!
//! With n = 2^a · m, m odd, H_n is the Kronecker product of the Hadamard matrix of Sylvester, `±2^(−a/2)`, and the discrete
//! Hartley matrix, `(cos + sin)(2π i j / m) / √m`, whose entries are at most √2 times the mean. Both are symmetric.

use ndarray::Array2;
use ndarray::linalg::kron;

/// The symmetric orthogonal matrix H_n.
pub fn orthogonal(n: usize) -> Array2<f32> {
    let power = 1 << n.trailing_zeros();
    kron(&hadamard(power), &hartley(n / power)).mapv(|v| v as f32)
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
