//! Orthogonal rotations that spread outlier channels and outlier tokens over other channels.
//!
//! ```text
//! R = diag(d) P (H_Aᵀ ⊗ H_B)        d: [K] of ±1, H_A: [A, A], H_B: [B, B] orthogonal, K = A · B
//! x R = vec(H_A · mat(P (d ∘ x)) · H_B)        mat: [K] → [A, B], row-major, P: an order of the channels
//! ```
//!
//! R Rᵀ = I, so x W = (x R)(Rᵀ W) exactly in real numbers. H_A and H_B have entries of nearly one size, so a channel or
//! token that sticks out is spread over all K channels; the random signs keep channels that agree from adding up. As a
//! Kronecker product R costs A + B multiplications per element, where a dense one costs K. With the identity for H_A only the
//! B channels of a block are mixed, for B multiplications: nearly as good where P puts channels together that even each
//! other out ([`Rotation::balanced`]).
//!
//! H_n is that of [`super::orthogonal`]. Sources: QuaRot (Ashkboos et al., arXiv 2404.00456), SpinQuant (Liu et al., arXiv
//! 2405.16406), DuQuant (Lin et al., arXiv 2406.01721) for blocks behind an order.

use super::product::product_of_rows;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::mix::mix;
use super::orthogonal::{self, orthogonal};
use super::wide::wide;

/// Which channels a rotation mixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mixing {
    /// All of them: H_A ⊗ H_B.
    All,
    /// Those of a block of B: I ⊗ H_B.
    Blocks,
    /// The same where the blocks are heads, so that R can be folded like a scale ([`crate::site::Site::mixable`]).
    Heads,
}

/// One rotation of K channels. Plain data: the matrices follow from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// A and B.
    factors: (usize, usize),
    mixing: Mixing,
    /// Where d is −1, `[K]`.
    flipped: Vec<bool>,
    /// P: place i has channel `order[i]`; `None` if they stay where they are.
    order: Option<Vec<u32>>,
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
        Some(Self::new(factors, Mixing::All, seed))
    }

    /// The rotation of every block of `width` channels, with signs as those of [`Rotation::of`]. `None` if that does not divide
    /// the channels, or mixes nothing.
    pub fn blocks(channels: usize, width: usize, seed: u64) -> Option<Self> {
        let fits = width > 1 && channels > 0 && channels.is_multiple_of(width);
        fits.then(|| Self::new((channels / width, width), Mixing::Blocks, seed))
    }

    /// [`Rotation::blocks`] of heads.
    pub fn heads(channels: usize, width: usize, seed: u64) -> Option<Self> {
        let blocks = Self::blocks(channels, width, seed)?;
        Some(Self {
            mixing: Mixing::Heads,
            ..blocks
        })
    }

    fn new(factors: (usize, usize), mixing: Mixing, seed: u64) -> Self {
        let start = mix(seed);
        let flipped = |j: usize| mix(start.wrapping_add(j as u64)) & 1 == 1;
        Self {
            factors,
            mixing,
            flipped: (0..factors.0 * factors.1).map(flipped).collect(),
            order: None,
        }
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

    /// The same behind the order that gives every block nearly the same sum of `energy: [K]`: channels from the largest to the
    /// smallest, each to the block with the smallest sum that has room.
    pub fn balanced(mut self, energy: &[f64]) -> Self {
        let (blocks, width) = self.factors;
        let mut largest: Vec<u32> = (0..energy.len() as u32).collect();
        let of = |c: u32| energy[c as usize];
        largest.sort_by(|&a, &b| of(b).total_cmp(&of(a)).then(a.cmp(&b)));
        let mut members: Vec<Vec<u32>> = vec![Vec::with_capacity(width); blocks];
        let mut sums = vec![0.0f64; blocks];
        for channel in largest {
            let room = (0..blocks).filter(|&i| members[i].len() < width);
            let Some(block) = room.min_by(|&a, &b| sums[a].total_cmp(&sums[b])) else {
                break;
            };
            members[block].push(channel);
            sums[block] += of(channel);
        }
        self.order = Some(members.concat());
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

    /// Which channels are mixed.
    pub fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// P: place i has channel `order[i]`; `None` if the channels stay where they are.
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// Multiplications per element as a CPU takes them: A + B, or B, more where B is not a multiple of its lanes.
    pub fn cost(&self) -> f64 {
        match self.mixing {
            Mixing::All => padded(self.factors),
            Mixing::Blocks | Mixing::Heads => self.factors.1.next_multiple_of(LANES) as f64,
        }
    }

    /// d of one channel.
    pub fn sign(&self, channel: usize) -> f32 {
        if self.flipped[channel] { -1.0 } else { 1.0 }
    }

    /// d, `[K]`.
    pub fn signs(&self) -> Vec<f32> {
        (0..self.channels()).map(|j| self.sign(j)).collect()
    }

    /// H_A, if all channels are mixed.
    pub fn outer(&self) -> Option<Array2<f32>> {
        (self.mixing == Mixing::All).then(|| orthogonal(self.factors.0))
    }

    /// H_B. Both are symmetric.
    pub fn inner(&self) -> Array2<f32> {
        orthogonal(self.factors.1)
    }

    /// `x ← x R` for tokens `x: [T, K]`, row-major.
    pub fn rotate_tokens(&self, x: &mut [f32]) {
        let (a, b) = self.factors;
        let signs = self.signs();
        if x.is_empty() || signs.is_empty() {
            return;
        }
        multiply_rows(x, &signs);
        if let Some(order) = &self.order {
            let mut old = vec![0.0; order.len()];
            for token in x.chunks_exact_mut(order.len()) {
                old.copy_from_slice(token);
                let places = token.iter_mut().zip(order);
                places.for_each(|(v, &c)| *v = old[c as usize]);
            }
        }
        let mut half = vec![0.0; x.len()];
        product_of_rows(x, self.inner().view(), &mut half);
        x.copy_from_slice(&half);
        if self.mixing == Mixing::All {
            orthogonal::apply(a, b, x);
        }
    }

    /// `Rᵀ diag(s) W` for a weight `w: [K, N]` and a scale `s: [K]`.
    pub fn rotate_weight(&self, w: ArrayView2<f32>, scale: Option<&[f32]>) -> Array2<f32> {
        let (a, b) = self.factors;
        let n = w.ncols();
        let mut scaled = Array2::zeros(w.raw_dim());
        for (place, mut row) in scaled.rows_mut().into_iter().enumerate() {
            let channel = self.order.as_ref().map_or(place, |o| o[place] as usize);
            let factor = self.sign(channel) * scale.map_or(1.0, |s| s[channel]);
            let old = w.row(channel);
            row.iter_mut().zip(old).for_each(|(v, w)| *v = w * factor);
        }
        // The rows of W are (a, b): [A, B · N] for the product from the left, then A blocks of [B, N].
        if let Some(rows) = scaled.as_slice_mut() {
            if self.mixing == Mixing::All {
                orthogonal::apply(a, b * n, rows);
            }
            orthogonal::apply(b, n, rows);
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

wide! {
    fn multiply_rows(rows: &mut [f32], factors: &[f32]) = multiply_each;
}

#[inline(always)]
fn multiply_each(rows: &mut [f32], factors: &[f32]) {
    for row in rows.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::mix::noise;
    use proptest::prelude::*;

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
    fn blocks_get_nearly_the_same_energy() {
        let energy: Vec<f64> = (0..96)
            .map(|c| if c < 6 { 100.0 } else { f64::from(c % 5) })
            .collect();
        let rotation = Rotation::blocks(96, 16, 0).unwrap().balanced(&energy);
        let order = rotation.order().unwrap();
        let mut channels = order.to_vec();
        channels.sort_unstable();
        assert!(channels.iter().copied().eq(0..96));
        let sums = order
            .chunks(16)
            .map(|block| block.iter().map(|&c| energy[c as usize]).sum::<f64>());
        // One of the large ones in each.
        assert!(sums.into_iter().all(|sum| (125.0..135.0).contains(&sum)));
        assert!(Rotation::blocks(96, 1, 0).is_none() && Rotation::blocks(96, 36, 0).is_none());
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
            form in 0..3,
            tokens in 1usize..5,
            n in 1usize..7,
        ) {
            let width = (2..channels).find(|w| channels.is_multiple_of(*w)).unwrap();
            let energy: Vec<f64> = (0..channels as u64).map(|c| mix(seed ^ c) as f64).collect();
            let rotation = match form {
                0 => Rotation::of(channels, seed),
                1 => Rotation::heads(channels, width, seed),
                _ => Rotation::blocks(channels, width, seed).map(|r| r.balanced(&energy)),
            };
            let rotation = rotation.unwrap();
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
