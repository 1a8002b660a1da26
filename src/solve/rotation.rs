//! Orthogonal rotations that spread outlier channels and outlier tokens over all channels.
//!
//! ```text
//! R = diag(d) (H_Aᵀ ⊗ H_B)        d: [K] of ±1, H_A: [A, A], H_B: [B, B] orthogonal, K = A · B
//! x R = vec(H_A · mat(d ∘ x) · H_B)        mat: [K] → [A, B], row-major
//! ```
//!
//! R Rᵀ = I, so x W = (x R)(Rᵀ W) exactly in real numbers. H_A and H_B have entries of nearly one size, so a channel or
//! token that sticks out is spread over all K channels; the random signs keep channels that agree from adding up. As a
//! Kronecker product R costs A + B multiplications per element, where a dense one costs K.
//!
//! H_n with n = 2^a · m, m odd, is the Kronecker product of the Hadamard matrix of Sylvester, `±2^(−a/2)`, and the discrete
//! Hartley matrix, `(cos + sin)(2π i j / m) / √m`, whose entries are at most √2 times the mean. Both are symmetric.
//!
//! Sources: QuaRot (Ashkboos et al., arXiv 2404.00456), SpinQuant (Liu et al., arXiv 2405.16406).

use ndarray::linalg::{general_mat_mul, kron};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};

use super::mix::mix;
use super::wide::wide;

/// One rotation of K channels. Plain data: the matrices follow from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// A and B.
    factors: (usize, usize),
    /// Where d is −1, `[K]`.
    flipped: Vec<bool>,
}

impl Rotation {
    /// The rotation of `channels` = A · B channels, with the factors that cost least and random signs that are the same for
    /// the same `seed`.
    ///
    /// `None` where A + B is more than half of the channels: for primes, twice a prime, and fewer than 16 channels. There a
    /// rotation would cost as much as a small Linear.
    pub fn of(channels: usize, seed: u64) -> Option<Self> {
        let pairs = (1..=channels).filter(|b| channels.is_multiple_of(*b));
        let pairs = pairs.map(|inner| (channels / inner, inner));
        let usable = pairs.filter(|(outer, inner)| 2 * (outer + inner) <= channels);
        let factors = usable.min_by(|&a, &b| padded(a).total_cmp(&padded(b)))?;
        let start = mix(seed);
        let flipped = |j: usize| mix(start.wrapping_add(j as u64)) & 1 == 1;
        Some(Self {
            factors,
            flipped: (0..channels).map(flipped).collect(),
        })
    }

    /// The same with one sign for channels that are tied: channel j has that of channel `ties[j]`.
    pub fn tied(mut self, ties: &[u32]) -> Self {
        let flipped = self.flipped.clone();
        for (own, &group) in self.flipped.iter_mut().zip(ties) {
            *own = flipped[group as usize];
        }
        self
    }

    /// The same without signs, for scales that must be positive.
    pub fn unsigned(mut self) -> Self {
        self.flipped.fill(false);
        self
    }

    /// K.
    pub fn channels(&self) -> usize {
        self.flipped.len()
    }

    /// A and B.
    pub fn factors(&self) -> (usize, usize) {
        self.factors
    }

    /// Multiplications per element as a CPU takes them: A + B, more where B is not a multiple of its lanes.
    pub fn cost(&self) -> f64 {
        padded(self.factors)
    }

    /// d of one channel.
    pub fn sign(&self, channel: usize) -> f32 {
        if self.flipped[channel] { -1.0 } else { 1.0 }
    }

    /// d, `[K]`.
    pub fn signs(&self) -> Vec<f32> {
        (0..self.channels()).map(|j| self.sign(j)).collect()
    }

    /// H_A and H_B, which are symmetric.
    pub fn matrices(&self) -> [Array2<f32>; 2] {
        [self.factors.0, self.factors.1].map(orthogonal)
    }

    /// `x ← x R` for tokens `x: [T, K]`, row-major.
    pub fn rotate_tokens(&self, x: &mut [f32]) {
        let (a, b) = self.factors;
        let signs = self.signs();
        if x.is_empty() || signs.is_empty() {
            return;
        }
        multiply_rows(x, &signs);
        let [outer, inner] = self.matrices();
        let mut half = vec![0.0; x.len()];
        product((x, (x.len() / b, b)), &inner, &mut half);
        for (half, token) in half.chunks_exact(a * b).zip(x.chunks_exact_mut(a * b)) {
            // H_A mat(x): the shapes are those of the slices.
            if let (Ok(half), Ok(mut token)) = (
                ArrayView2::from_shape((a, b), half),
                ArrayViewMut2::from_shape((a, b), token),
            ) {
                general_mat_mul(1.0, &outer, &half, 0.0, &mut token);
            }
        }
    }

    /// `Rᵀ diag(s) W` for a weight `w: [K, N]` and a scale `s: [K]`.
    pub fn rotate_weight(&self, w: ArrayView2<f32>, scale: Option<&[f32]>) -> Array2<f32> {
        let (a, b) = self.factors;
        let n = w.ncols();
        let mut scaled = w.as_standard_layout().into_owned();
        for (j, mut row) in scaled.rows_mut().into_iter().enumerate() {
            let factor = self.sign(j) * scale.map_or(1.0, |s| s[j]);
            row.iter_mut().for_each(|v| *v *= factor);
        }
        let [outer, inner] = self.matrices();
        let mut half = Array2::zeros((a, b * n));
        // The rows of W are (a, b): [A, B · N] for the product from the left, then A blocks of [B, N].
        if let Ok(scaled) = scaled.view().into_shape_with_order((a, b * n)) {
            general_mat_mul(1.0, &outer, &scaled, 0.0, &mut half);
        }
        let size = b * n;
        let blocks = half.as_slice().unwrap_or(&[]).chunks_exact(size.max(1));
        let out = scaled.as_slice_mut().unwrap_or(&mut []);
        for (half, out) in blocks.zip(out.chunks_exact_mut(size.max(1))) {
            if let (Ok(half), Ok(mut out)) = (
                ArrayView2::from_shape((b, n), half),
                ArrayViewMut2::from_shape((b, n), out),
            ) {
                general_mat_mul(1.0, &inner, &half, 0.0, &mut out);
            }
        }
        scaled
    }
}

/// Columns that matrix products compute at a time.
const LANES: usize = 16;

/// Multiplications per element that both products take where B is padded to whole lanes: for 384 channels, 24 · 16 took 63 µs
/// in ONNX Runtime where 16 · 24 took 82.
fn padded((outer, inner): (usize, usize)) -> f64 {
    let columns = inner.next_multiple_of(LANES) as f64;
    columns * (outer + inner) as f64 / inner as f64
}

/// `out = x h`, `x: [R, B]` row-major, `h: [B, B]`.
fn product((x, shape): (&[f32], (usize, usize)), h: &Array2<f32>, out: &mut [f32]) {
    if let (Ok(x), Ok(mut out)) = (
        ArrayView2::from_shape(shape, x),
        ArrayViewMut2::from_shape(shape, out),
    ) {
        general_mat_mul(1.0, &x, h, 0.0, &mut out);
    }
}

wide! {
    fn multiply_rows(rows: &mut [f32], factors: &[f32]) = multiply_each;
}

#[inline(always)]
fn multiply_each(rows: &mut [f32], factors: &[f32]) {
    for row in rows.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
    }
}

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
    use proptest::prelude::*;

    /// Numbers in −1 ..= 1.
    fn noise(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            (mix(seed + (i * columns + j) as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
    }

    fn rotated(rotation: &Rotation, x: &Array2<f32>) -> Array2<f32> {
        let mut out = x.clone();
        rotation.rotate_tokens(out.as_slice_mut().unwrap());
        out
    }

    fn worst(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
        (a - b).iter().fold(0.0, |worst, d| worst.max(d.abs()))
    }

    #[test]
    fn factors_are_near_to_each_other_and_whole_lanes() {
        let factors = |k| Rotation::of(k, 0).map(|r| r.factors());
        for (k, expected) in [
            (16, (4, 4)),
            (128, (8, 16)),
            (192, (12, 16)),
            (384, (24, 16)),
            (576, (18, 32)),
            (768, (24, 32)),
            (1365, (35, 39)),
            (1536, (48, 32)),
            (2816, (44, 64)),
            (3072, (64, 48)),
        ] {
            assert_eq!(factors(k), Some(expected), "{k}");
        }
        for none in [0, 1, 2, 4, 12, 13, 22, 34, 1367, 2 * 1361] {
            assert_eq!(factors(none), None, "{none}");
        }
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

    /// A token with one channel that sticks out and a channel that is constant: neither sticks out any more.
    #[test]
    fn outliers_are_spread() {
        let mut x = noise(64, 384, 5);
        x.column_mut(99).fill(30.0);
        x.row_mut(3).mapv_inplace(|v| v * 40.0);
        let out = rotated(&Rotation::of(384, 0).unwrap(), &x);
        let largest = |x: ndarray::ArrayView1<f32>| x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(largest(out.row(0)) < 6.0, "{}", largest(out.row(0)));
        // It was 1200, in a token whose other channels reach 40.
        assert!(largest(out.row(3)) < 150.0, "{}", largest(out.row(3)));
    }

    /// Seeds are fixed for good: files made with them must come out the same.
    #[test]
    fn signs_depend_on_the_seed_alone() {
        let digits = |seed| {
            let rotation = Rotation::of(16, seed).unwrap();
            rotation
                .flipped
                .iter()
                .map(|f| if *f { '-' } else { '+' })
                .collect::<String>()
        };
        let first = [0, 1, 2, 3].map(digits);
        let expected = [
            "+++-+-+-+-++++++",
            "++---+++++++++++",
            "++-++++----+-+--",
            "-++----+++---+++",
        ];
        assert_eq!(first, expected);
        assert_eq!(Rotation::of(1536, 2), Rotation::of(1536, 2));
        assert_ne!(Rotation::of(1536, 2), Rotation::of(1536, 3));
    }

    #[test]
    fn tied_channels_have_one_sign() {
        let ties: Vec<u32> = (0..32).map(|j| j / 8 * 8).collect();
        let rotation = Rotation::of(32, 1).unwrap().tied(&ties);
        assert!(
            rotation
                .signs()
                .chunks(8)
                .all(|c| c.iter().all(|s| *s == c[0]))
        );
        assert!(Rotation::of(32, 1).unwrap().unsigned().signs() == vec![1.0; 32]);
    }

    #[test]
    fn nothing_to_rotate() {
        let rotation = Rotation::of(16, 0).unwrap();
        rotation.rotate_tokens(&mut []);
        assert_eq!(
            rotation
                .rotate_weight(Array2::zeros((16, 0)).view(), None)
                .dim(),
            (16, 0)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// R Rᵀ = I, x R is what R says, and (x R)(Rᵀ S W) = x S W.
        #[test]
        fn orthogonal_and_exact(
            channels in prop::sample::select(vec![16usize, 24, 30, 45, 64, 96, 105, 192, 576, 1365]),
            seed in any::<u64>(),
            tokens in 1usize..5,
            n in 1usize..7,
        ) {
            let rotation = Rotation::of(channels, seed).unwrap();
            let mut dense = Array2::eye(channels);
            rotation.rotate_tokens(dense.as_slice_mut().unwrap());
            let exact = dense.mapv(f64::from);
            let product = exact.dot(&exact.t()).mapv(|v| v as f32);
            prop_assert!(worst(&product, &Array2::eye(channels)) < 1e-6);

            let x = noise(tokens, channels, seed % 1000);
            let turned = rotated(&rotation, &x);
            prop_assert!(worst(&turned, &x.dot(&dense)) < 1e-5);
            // Rᵀ undoes it.
            prop_assert!(worst(&turned.dot(&dense.t()), &x) < 1e-5);

            let w = noise(channels, n, 77);
            let s: Vec<f32> = (0..channels).map(|j| 0.5 + j as f32 / channels as f32).collect();
            let scaled = Array2::from_diag(&ndarray::aview1(&s)).dot(&w);
            let found = rotation.rotate_weight(w.view(), Some(&s));
            prop_assert!(worst(&found, &dense.t().dot(&scaled)) < 1e-5);
            prop_assert!(worst(&turned.dot(&found), &x.dot(&scaled)) < 1e-4);
            prop_assert_eq!(rotation.rotate_weight(w.view(), Some(&s)), found);
        }
    }
}
