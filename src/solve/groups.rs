//! Weights in groups: so many input channels of one column share a scale, and perhaps a zero point.
//!
//! ```text
//! w[c, n] ≈ (q[c, n] − z[g, n]) · s[g, n]        g = c / group        w: [C, N], s, z: [G, N], G = ⌈C / group⌉
//! symmetric:   s = max|w| / (2^(b−1) − 1),  z = 0
//! asymmetric:  s = (max(w, 0) − min(w, 0)) / (2^b − 1),  z = round(−min(w, 0) / s) − 2^(b−1)
//! ```
//!
//! q and z are in `−2^(b−1) ..= 2^(b−1) − 1`, so that operators with unsigned integers add `2^(b−1)` to both. This is the
//! weight of ONNX Runtime's MatMulNBits and of DequantizeLinear with `block_size`; the last group may have fewer channels.

use super::rounding::{safe_scale, saturate_round};
use super::spec::{QuantizedWeight, WeightSpec};
use super::wide::wide;
use ndarray::{Array2, ArrayView2, Axis, Zip};

/// Factors on the range of a group: a narrower one clips a few weights and rounds all others finer.
const CLIPS: [f32; 9] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.62];

/// Scales and zero points of all groups.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GroupScales {
    /// s, `[G, N]`.
    pub scale: Array2<f32>,
    /// z, `[G, N]`, whole numbers.
    pub zero: Array2<f32>,
    /// Channels of a group.
    pub group: usize,
    /// The smallest and the largest integer.
    pub levels: (f32, f32),
}

/// The smallest and the largest integer of `bits`.
fn levels(bits: u8) -> (f32, f32) {
    let half = f32::from(1u16 << (bits - 1));
    (-half, half - 1.0)
}

/// The smallest and the largest weight of every group of every column, and 0: `[G, N]` each.
fn bounds(w: ArrayView2<f32>, group: usize) -> [Array2<f32>; 2] {
    let shape = (w.nrows().div_ceil(group), w.ncols());
    let [mut low, mut high] = [Array2::zeros(shape), Array2::zeros(shape)];
    for (c, row) in w.rows().into_iter().enumerate() {
        let g = c / group;
        Zip::from(low.row_mut(g))
            .and(high.row_mut(g))
            .and(row)
            .for_each(|low, high, &v| (*low, *high) = (v.min(*low), v.max(*high)));
    }
    [low, high]
}

impl GroupScales {
    /// Those of ranges, or of a part of each.
    fn of(bounds: &[Array2<f32>; 2], spec: &WeightSpec, group: usize, clip: f32) -> GroupScales {
        let [low, high] = bounds;
        let mut scale = Array2::ones(low.raw_dim());
        let mut zero = Array2::zeros(low.raw_dim());
        Zip::from(&mut scale)
            .and(&mut zero)
            .and(low)
            .and(high)
            .for_each(|s, z, low, high| (*s, *z) = spec.scale_of_group(low * clip, high * clip));
        GroupScales {
            scale,
            zero,
            group,
            levels: levels(spec.bits),
        }
    }

    /// For every group of every column the clip that leaves the least error, if channel c counts `energy[c]`.
    pub(super) fn clipped(
        w: ArrayView2<f32>,
        spec: &WeightSpec,
        group: usize,
        energy: &[f32],
    ) -> GroupScales {
        let bounds = bounds(w, group);
        let mut best = GroupScales::of(&bounds, spec, group, CLIPS[0]);
        let mut least = best.errors(w, energy);
        for clip in CLIPS.into_iter().skip(1) {
            let tried = GroupScales::of(&bounds, spec, group, clip);
            let errors = tried.errors(w, energy);
            let all = best.scale.iter_mut().zip(&mut best.zero).zip(&mut least);
            let tried = tried.scale.iter().zip(&tried.zero).zip(&errors);
            for (((scale, zero), least), ((s, z), error)) in all.zip(tried) {
                if error < least {
                    (*scale, *zero, *least) = (*s, *z, *error);
                }
            }
        }
        best
    }

    /// `Σ_c energy[c] (Q(w) − w)²` over the channels of every group, `[G, N]`.
    fn errors(&self, w: ArrayView2<f32>, energy: &[f32]) -> Array2<f32> {
        let mut errors = Array2::zeros(self.scale.raw_dim());
        for (c, row) in w.rows().into_iter().enumerate() {
            let g = c / self.group;
            let (scale, zero) = (self.scale.row(g), self.zero.row(g));
            let mut errors = errors.row_mut(g);
            if let (Some(w), Some(s), Some(z), Some(errors)) = (
                row.to_slice(),
                scale.to_slice(),
                zero.to_slice(),
                errors.as_slice_mut(),
            ) {
                add_errors(w, (s, z), self.levels, energy[c], errors);
            }
        }
        errors
    }

    /// The integers nearest to `w`.
    fn round(self, w: ArrayView2<f32>, spec: &WeightSpec) -> QuantizedWeight {
        let mut q = Array2::zeros(w.raw_dim());
        for ((c, row), mut q) in w.rows().into_iter().enumerate().zip(q.rows_mut()) {
            let g = c / self.group;
            let (low, high) = self.levels;
            let scales = self.scale.row(g).into_iter().zip(self.zero.row(g));
            for ((q, &w), (&s, &z)) in q.iter_mut().zip(row).zip(scales) {
                *q = (saturate_round(w / s, low - z, high - z) + z) as i8;
            }
        }
        self.with_integers(q, spec)
    }

    /// The weight that has these integers.
    pub(super) fn with_integers(self, q: Array2<i8>, spec: &WeightSpec) -> QuantizedWeight {
        let zero_point = match spec.symmetric {
            true => Vec::new(),
            false => self.zero.iter().map(|&z| z as i8).collect(),
        };
        QuantizedWeight {
            q,
            scale: self.scale.iter().copied().collect(),
            zero_point,
            group: Some(self.group),
        }
    }
}

impl WeightSpec {
    /// Scale and zero point of a group whose weights are from `low <= 0` to `high >= 0`.
    #[inline(always)]
    fn scale_of_group(&self, low: f32, high: f32) -> (f32, f32) {
        if self.symmetric {
            let extreme = f64::from(high.max(-low));
            return (safe_scale(extreme / f64::from(self.qmax())), 0.0);
        }
        let (first, last) = levels(self.bits);
        let scale = safe_scale((f64::from(high) - f64::from(low)) / f64::from(last - first));
        let zero = ((-low / scale).round_ties_even() + first).clamp(first, last);
        (scale, zero)
    }
}

/// Quantizes a weight `w: [C, N]` in groups, to the nearest integer, with ranges that cover every weight.
pub fn quantize_groups(w: ArrayView2<f32>, spec: &WeightSpec, group: usize) -> QuantizedWeight {
    let w = w.as_standard_layout();
    GroupScales::of(&bounds(w.view(), group), spec, group, 1.0).round(w.view(), spec)
}

/// Weights in groups that are columns of one, `[C, N₁]`, `[C, N₂]`, …; at least one.
pub(super) fn side_by_side(parts: Vec<QuantizedWeight>) -> QuantizedWeight {
    let views: Vec<_> = parts.iter().map(|part| part.q.view()).collect();
    let groups = |part: &QuantizedWeight| part.scale.len() / part.q.ncols().max(1);
    let count = parts.first().map_or(0, groups);
    // Row by row: [G, N₁ + N₂ + …].
    fn joined<T: Copy>(rows: Vec<(&[T], usize)>, count: usize) -> Vec<T> {
        let row = |g: usize| {
            let of = rows.iter().map(move |(all, n)| &all[g * n..(g + 1) * n]);
            of.flatten().copied()
        };
        (0..count).flat_map(row).collect()
    }
    let scale = parts.iter().map(|p| (&p.scale[..], p.q.ncols()));
    let zeros = parts.iter().map(|p| (&p.zero_point[..], p.q.ncols()));
    let with_zeros = parts.iter().all(|p| !p.zero_point.is_empty());
    QuantizedWeight {
        // Parts of one weight have the same channels.
        q: ndarray::concatenate(Axis(1), &views).unwrap_or_default(),
        scale: joined(scale.collect(), count),
        zero_point: match with_zeros {
            true => joined(zeros.collect(), count),
            false => Vec::new(),
        },
        group: parts.first().and_then(|p| p.group),
    }
}

/// The float value of the quantized, row-scaled weight: `out = Q(diag(s) · w)`, `w, out: [C, N]`, `s: [C]`, row-major: what
/// [`quantize_groups`] stands for.
pub(super) fn fake_quantize_groups(
    w: &[f32],
    s: Option<&[f32]>,
    spec: &WeightSpec,
    (group, n): (usize, usize),
    out: &mut [f32],
) {
    if n == 0 {
        return;
    }
    let bounds = &mut [vec![0.0f32; n], vec![0.0f32; n]];
    for (g, (w, out)) in w
        .chunks(group * n)
        .zip(out.chunks_mut(group * n))
        .enumerate()
    {
        let s = s.map(|s| &s[g * group..(g * group + w.len() / n)]);
        fake_quantize_group(w, s, spec, bounds, out);
    }
}

wide! {
    fn fake_quantize_group(
        w: &[f32],
        s: Option<&[f32]>,
        spec: &WeightSpec,
        bounds: &mut [Vec<f32>; 2],
        out: &mut [f32],
    ) = fake_quantize_each;
}

#[inline(always)]
fn fake_quantize_each(
    w: &[f32],
    s: Option<&[f32]>,
    spec: &WeightSpec,
    [low, high]: &mut [Vec<f32>; 2],
    out: &mut [f32],
) {
    let n = low.len();
    low.fill(0.0);
    high.fill(0.0);
    for (j, (w, out)) in w.chunks_exact(n).zip(out.chunks_exact_mut(n)).enumerate() {
        let s = s.map_or(1.0, |s| s[j]);
        let bounds = low.iter_mut().zip(high.iter_mut());
        for ((out, &w), (low, high)) in out.iter_mut().zip(w).zip(bounds) {
            let v = w * s;
            *out = v;
            *low = if v < *low { v } else { *low };
            *high = if v > *high { v } else { *high };
        }
    }
    // Scale and zero point take the place of the bounds.
    for (low, high) in low.iter_mut().zip(high.iter_mut()) {
        (*low, *high) = spec.scale_of_group(*low, *high);
    }
    let (scale, zero) = (low, high);
    let (first, last) = levels(spec.bits);
    for out in out.chunks_exact_mut(n) {
        for ((out, &s), &z) in out.iter_mut().zip(&*scale).zip(&*zero) {
            *out = saturate_round(*out / s, first - z, last - z) * s;
        }
    }
}

wide! {
    fn add_errors(
        w: &[f32],
        scales: (&[f32], &[f32]),
        levels: (f32, f32),
        energy: f32,
        errors: &mut [f32],
    ) = add_each_error;
}

#[inline(always)]
fn add_each_error(
    w: &[f32],
    (scale, zero): (&[f32], &[f32]),
    (low, high): (f32, f32),
    energy: f32,
    errors: &mut [f32],
) {
    let scales = scale.iter().zip(zero);
    for ((error, &w), (&s, &z)) in errors.iter_mut().zip(w).zip(scales) {
        let e = saturate_round(w / s, low - z, high - z) * s - w;
        *error += energy * e * e;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::{WeightGranularity, quantize_weight};
    use ndarray::{array, s};
    use proptest::prelude::*;

    fn spec(bits: u8, group: usize, symmetric: bool) -> WeightSpec {
        WeightSpec {
            bits,
            granularity: WeightGranularity::Group(group),
            symmetric,
        }
    }

    #[test]
    fn every_group_of_a_column_has_a_scale() {
        let w = array![
            [7.0f32, 0.0],
            [-3.0, 0.0],
            [0.07, 1.5],
            [0.01, 0.0],
            [0.5, -1.0]
        ];
        let q = quantize_weight(w.view(), &spec(4, 2, true));
        assert_eq!(
            q.scale,
            [1.0, 1.0, 0.07 / 7.0, 1.5 / 7.0, 0.5 / 7.0, 1.0 / 7.0]
        );
        assert_eq!(q.q.column(0).to_vec(), [7, -3, 7, 1, 7]);
        assert!(q.zero_point.is_empty());
        let one_sided = quantize_weight(w.slice(s![2..4, ..]), &spec(4, 2, false));
        // From 0 up: sixteen levels for 0 to the largest.
        assert_eq!(one_sided.zero_point, [-8, -8]);
        assert_eq!(one_sided.q.column(1).to_vec(), [7, -8]);
        assert!(
            (one_sided.dequantize() - w.slice(s![2..4, ..]))
                .iter()
                .all(|e| e.abs() < 1e-2)
        );
    }

    /// Where one weight is large and its channel quiet, a narrower range is better.
    #[test]
    fn clips_by_what_a_channel_counts() {
        let mut w = Array2::from_shape_fn((32, 1), |(c, _)| (c as f32 * 0.9).sin() * 0.3);
        w[[5, 0]] = 1.0;
        let error = |q: &QuantizedWeight, energy: &[f32]| -> f32 {
            let e = q.dequantize() - &w;
            e.iter().zip(energy).map(|(e, n)| n * e * e).sum()
        };
        let spec = spec(4, 32, true);
        let plain = quantize_groups(w.view(), &spec, 32);
        for (quiet, clipped) in [(0.001, true), (100.0, false)] {
            let mut energy = vec![1.0; 32];
            energy[5] = quiet;
            let found = GroupScales::clipped(w.view(), &spec, 32, &energy).round(w.view(), &spec);
            assert_eq!(found.scale[0] < plain.scale[0], clipped);
            assert!(error(&found, &energy) <= error(&plain, &energy));
        }
    }

    #[test]
    fn parts_side_by_side_are_the_whole() {
        let w = Array2::from_shape_fn((6, 5), |(c, n)| ((c * 5 + n) as f32 * 0.7).sin());
        for symmetric in [true, false] {
            let spec = spec(4, 4, symmetric);
            let parts =
                [s![.., ..2], s![.., 2..]].map(|part| quantize_weight(w.slice(part), &spec));
            assert_eq!(side_by_side(parts.into()), quantize_weight(w.view(), &spec));
        }
    }

    proptest! {
        #[test]
        fn within_half_a_step_and_as_fake_quantized(
            w in prop::collection::vec(-3.0f32..3.0, 21), s in prop::collection::vec(0.5f32..20.0, 7),
            bits in 2u8..=8, group in 1usize..9, symmetric: bool,
        ) {
            let spec = spec(bits, group, symmetric);
            let w = Array2::from_shape_vec((7, 3), w).unwrap();
            let scaled = Array2::from_shape_fn((7, 3), |(c, n)| w[[c, n]] * s[c]);
            let q = quantize_weight(scaled.view(), &spec);
            let (low, high) = levels(bits);
            prop_assert!(q.q.iter().all(|&q| f32::from(q) >= low && f32::from(q) <= high));
            let back = q.dequantize();
            for ((c, n), &v) in scaled.indexed_iter() {
                let scale = q.scale[c / group * 3 + n];
                let most = scale * if symmetric { 0.5001 } else { 1.0001 };
                prop_assert!((v - back[[c, n]]).abs() <= most);
            }
            let mut out = vec![0.0; 21];
            fake_quantize_groups(w.as_slice().unwrap(), Some(&s), &spec, (group, 3), &mut out);
            prop_assert_eq!(&out, back.as_slice().unwrap());
        }
    }
}
