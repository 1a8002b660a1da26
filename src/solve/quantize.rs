//! Fake quantization with the semantics of ONNX `QuantizeLinear` → `DequantizeLinear`.
//!
//! Ranges come in, [`QuantParams`] come out ([`ActivationSpec::params`]), and [`fake_quantize`] applies them in place.
//! Weights go through [`quantize_weight`], which gives the integers to store, or through
//! `fake_quantize_weight_into`, which gives their float values for the search and allocates nothing.
//!
//! All values are expected to be finite: the caller has refused NaN and infinity before they get here.

use super::ActivationGranularity;
use super::groups::{self, fake_quantize_groups, quantize_groups};
use super::rounding::{safe_scale, saturate_round};
use super::wide::wide;
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

/// Parameters of one `QuantizeLinear`/`DequantizeLinear` pair: `q = saturate(round_half_even(x / scale) + zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantParams {
    /// Size of one step, in units of x; positive and never subnormal.
    pub scale: f32,
    /// The integer that stands for 0.0, in `qmin ..= qmax`.
    pub zero_point: i32,
    /// Smallest integer; anything below saturates to it.
    pub qmin: i32,
    /// Largest integer; anything above saturates to it.
    pub qmax: i32,
}

/// How activations are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationSpec {
    /// Bit width, 2 to 8.
    pub bits: u8,
    /// `true`: signed, zero point 0, `scale = max|x| / (2^(bits−1) − 1)`, q in `−2^(bits−1) ..= 2^(bits−1) − 1`.
    /// `false`: unsigned, q in `0 ..= 2^bits − 1`, range widened to contain 0 so that 0.0 is represented exactly.
    /// Scales of tokens and groups are always symmetric.
    pub symmetric: bool,
    /// What shares a scale.
    pub granularity: ActivationGranularity,
}

/// How weights are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightSpec {
    /// Bit width, 2 to 8.
    pub bits: u8,
    /// What shares a scale.
    pub granularity: WeightGranularity,
    /// Zero point 0 and q in `±(2^(bits−1) − 1)`; groups may have zero points of their own ([`super::groups`]).
    pub symmetric: bool,
}

/// What the elements of a weight `w: [C, N]` are that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WeightGranularity {
    /// All.
    PerTensor,
    /// Those of a column n.
    PerChannel,
    /// Those of so many input channels side by side, in one column.
    Group(usize),
}

impl ActivationSpec {
    /// One constant scale and zero point.
    pub const fn per_tensor(bits: u8, symmetric: bool) -> ActivationSpec {
        ActivationSpec {
            bits,
            symmetric,
            granularity: ActivationGranularity::PerTensor,
        }
    }

    /// Parameters that cover the values from `min` to `max` (finite; in either order).
    ///
    /// A range without extent (0 to 0) gets scale 1, which represents 0.0 exactly.
    pub fn params(&self, min: f32, max: f32) -> QuantParams {
        debug_assert!((2..=8).contains(&self.bits), "bits must be 2 to 8");
        let (low, high) = (f64::from(min.min(max)), f64::from(min.max(max)));
        if self.symmetric {
            let qmax = (1 << (self.bits - 1)) - 1;
            let extreme = low.abs().max(high.abs());
            return QuantParams {
                scale: safe_scale(extreme / f64::from(qmax)),
                zero_point: 0,
                qmin: -qmax - 1,
                qmax,
            };
        }
        let qmax = (1 << self.bits) - 1;
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = safe_scale((high - low) / f64::from(qmax));
        let zero_point = (-low / f64::from(scale)).round_ties_even() as i32;
        QuantParams {
            scale,
            zero_point: zero_point.clamp(0, qmax),
            qmin: 0,
            qmax,
        }
    }
}

impl WeightSpec {
    /// A scale per column.
    pub const fn per_channel(bits: u8) -> WeightSpec {
        WeightSpec {
            bits,
            granularity: WeightGranularity::PerChannel,
            symmetric: true,
        }
    }

    /// One scale.
    pub const fn per_tensor(bits: u8) -> WeightSpec {
        WeightSpec {
            granularity: WeightGranularity::PerTensor,
            ..WeightSpec::per_channel(bits)
        }
    }

    /// [`WeightSpec::per_channel`] or [`WeightSpec::per_tensor`].
    pub const fn whole_or_columns(bits: u8, per_channel: bool) -> WeightSpec {
        match per_channel {
            true => WeightSpec::per_channel(bits),
            false => WeightSpec::per_tensor(bits),
        }
    }

    /// The channels of a group, where groups have scales.
    pub fn group(&self) -> Option<usize> {
        match self.granularity {
            WeightGranularity::Group(size) => Some(size.max(1)),
            WeightGranularity::PerTensor | WeightGranularity::PerChannel => None,
        }
    }

    /// Largest integer of a weight: `2^(bits−1) − 1`. The smallest is its negative.
    pub fn qmax(&self) -> i32 {
        debug_assert!((2..=8).contains(&self.bits), "bits must be 2 to 8");
        (1 << (self.bits - 1)) - 1
    }
}

/// Replaces every value by what `QuantizeLinear` → `DequantizeLinear` makes of it:
/// `(saturate(round_half_even(x / scale) + zero_point) − zero_point) · scale`.
pub fn fake_quantize(x: &mut [f32], params: &QuantParams) {
    let (scale, low, high) = limits(params);
    for v in x {
        *v = saturate_round(*v / scale, low, high) * scale;
    }
}

wide! {
    /// [`fake_quantize`] from one buffer into another of the same length.
    pub(crate) fn fake_quantize_into(x: &[f32], out: &mut [f32], params: &QuantParams) = fake_quantize_rows;
}

#[inline(always)]
fn fake_quantize_rows(x: &[f32], out: &mut [f32], params: &QuantParams) {
    debug_assert_eq!(x.len(), out.len());
    let (scale, low, high) = limits(params);
    for (out, &v) in out.iter_mut().zip(x) {
        *out = saturate_round(v / scale, low, high) * scale;
    }
}

/// Scale and saturation limits with the zero point taken off: adding it after rounding changes nothing else.
#[inline]
pub(super) fn limits(params: &QuantParams) -> (f32, f32, f32) {
    (
        params.scale,
        (params.qmin - params.zero_point) as f32,
        (params.qmax - params.zero_point) as f32,
    )
}

/// A quantized weight: `w[c, n] ≈ q[c, n] · scale[n]` (or `scale[0]` for one scale per tensor), with zero point 0; or, in groups,
/// `w[c, n] ≈ (q[c, n] − zero_point[g, n]) · scale[g, n]`, `g = c / group`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedWeight {
    /// Integers, `[C, N]`: in `±(2^(bits−1) − 1)`, or in groups `−2^(bits−1) ..= 2^(bits−1) − 1`.
    pub q: Array2<i8>,
    /// Scales, `[N]` per channel, `[G · N]` in groups, else `[1]`; all positive, 1 where all is zero.
    pub scale: Vec<f32>,
    /// Zero points like scales, if groups have any; else empty: all are 0.
    pub zero_point: Vec<i8>,
    /// Channels of a group, where groups have scales.
    pub group: Option<usize>,
}

impl QuantizedWeight {
    /// With zero point 0 and one scale per column, or one in all.
    pub fn symmetric(q: Array2<i8>, scale: Vec<f32>) -> QuantizedWeight {
        QuantizedWeight {
            q,
            scale,
            zero_point: Vec::new(),
            group: None,
        }
    }

    /// `(q − zero_point) · scale`, `[C, N]`.
    pub fn dequantize(&self) -> Array2<f32> {
        if let Some(group) = self.group {
            return groups::dequantize(self, group);
        }
        let mut w = self.q.mapv(f32::from);
        // One scale per tensor is that of every column.
        w *= &ndarray::aview1(&self.scale);
        w
    }
}

/// Quantizes a weight `w: [C, N]` symmetrically: `q = round_half_even(w / scale)`, `scale = max|w| / (2^(bits−1) − 1)`,
/// the maximum over each column n or over the whole weight; in groups as [`quantize_groups`] does.
pub fn quantize_weight(w: ArrayView2<f32>, spec: &WeightSpec) -> QuantizedWeight {
    if let Some(group) = spec.group() {
        return quantize_groups(w, spec, group);
    }
    let limit = spec.qmax() as f32;
    let scale = scales_of(w, spec);
    let mut q = Array2::zeros(w.raw_dim());
    let step = |column: usize| scale[column.min(scale.len() - 1)];
    let steps: Vec<f32> = (0..w.ncols()).map(step).collect();
    let w = w.as_standard_layout();
    if let (Some(w), Some(q)) = (w.as_slice(), q.as_slice_mut()) {
        quantize_into(w, &steps, limit, q);
    }
    QuantizedWeight::symmetric(q, scale)
}

wide! {
    /// `q = round_half_even(w / steps)`, at most `limit`, for `w, q: [C, N]` and `steps: [N]`.
    fn quantize_into(w: &[f32], steps: &[f32], limit: f32, q: &mut [i8]) = quantize_rows;
}

#[inline(always)]
fn quantize_rows(w: &[f32], steps: &[f32], limit: f32, q: &mut [i8]) {
    let n = steps.len().max(1);
    for (q, w) in q.chunks_exact_mut(n).zip(w.chunks_exact(n)) {
        for ((q, &w), &step) in q.iter_mut().zip(w).zip(steps) {
            *q = saturate_round(w / step, -limit, limit) as i8;
        }
    }
}

/// The scales of [`quantize_weight`]: `[N]`, or one in all.
pub(super) fn scales_of(w: ArrayView2<f32>, spec: &WeightSpec) -> Vec<f32> {
    let mut extremes = vec![0.0f32; w.ncols()];
    for row in w.rows() {
        for (extreme, v) in extremes.iter_mut().zip(row) {
            *extreme = extreme.max(v.abs());
        }
    }
    column_scales(&mut extremes, spec, &[w.ncols()]);
    if spec.granularity == WeightGranularity::PerTensor {
        // A weight without columns still needs the one scale its shape promises.
        extremes.resize(1, 1.0);
    }
    extremes
}

/// Turns the largest magnitude of every column into the scale of every column, in place.
///
/// `ends` are the column numbers at which each weight of a group ends: without `per_channel`, the columns of one weight
/// share the scale of its largest value, and weights side by side keep their own.
pub(super) fn column_scales<'a>(
    extremes: &'a mut [f32],
    spec: &WeightSpec,
    ends: &[usize],
) -> &'a [f32] {
    if spec.granularity == WeightGranularity::PerTensor {
        let mut start = 0;
        for &end in ends {
            let largest = extremes[start..end].iter().fold(0.0f32, |a, &b| a.max(b));
            extremes[start..end].fill(largest);
            start = end;
        }
    }
    let qmax = f64::from(spec.qmax());
    for extreme in extremes.iter_mut() {
        *extreme = safe_scale(f64::from(*extreme) / qmax);
    }
    extremes
}

wide! {
    /// [`fake_quantize_weight_into`] with a scale per column, or one; nothing is allocated.
    fn fake_quantize_columns(
        w: &[f32],
        s: Option<&[f32]>,
        spec: &WeightSpec,
        ends: &[usize],
        steps: &mut [f32],
        out: &mut [f32],
    ) = fake_quantize_weight_rows;
}

/// The float value of the quantized, row-scaled weight: `out = Q(diag(s) · w)`, `w, out: [C, N]`, `s: [C]`.
///
/// `w` and `out` are row-major slices; `steps: [N]` is working space; `ends` as in a group of weights side by side.
/// The numbers are those of [`quantize_weight`] on `diag(s) · w`.
pub(crate) fn fake_quantize_weight_into(
    w: &[f32],
    s: Option<&[f32]>,
    spec: &WeightSpec,
    ends: &[usize],
    steps: &mut [f32],
    out: &mut [f32],
) {
    match spec.group() {
        Some(group) => fake_quantize_groups(w, s, spec, (group, steps.len()), out),
        None => fake_quantize_columns(w, s, spec, ends, steps, out),
    }
}

#[inline(always)]
fn fake_quantize_weight_rows(
    w: &[f32],
    s: Option<&[f32]>,
    spec: &WeightSpec,
    ends: &[usize],
    steps: &mut [f32],
    out: &mut [f32],
) {
    debug_assert_eq!(w.len(), out.len());
    let n = steps.len();
    if n == 0 {
        return;
    }
    steps.fill(0.0);
    for (j, (w, out)) in w.chunks_exact(n).zip(out.chunks_exact_mut(n)).enumerate() {
        let s = s.map_or(1.0, |s| s[j]);
        for ((out, &w), extreme) in out.iter_mut().zip(w).zip(steps.iter_mut()) {
            let v = w * s;
            *out = v;
            let magnitude = v.abs();
            *extreme = if magnitude > *extreme {
                magnitude
            } else {
                *extreme
            };
        }
    }
    let steps = column_scales(steps, spec, ends);
    let limit = spec.qmax() as f32;
    for out in out.chunks_exact_mut(n) {
        for (out, &scale) in out.iter_mut().zip(steps) {
            *out = saturate_round(*out / scale, -limit, limit) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    fn spec(bits: u8, symmetric: bool) -> ActivationSpec {
        ActivationSpec::per_tensor(bits, symmetric)
    }

    #[test]
    fn asymmetric_range_covers_zero_and_maps_its_ends_to_the_ends() {
        let p = spec(8, false).params(-1.0, 3.0);
        assert_eq!((p.qmin, p.qmax, p.zero_point), (0, 255, 64));
        assert!((p.scale - 4.0 / 255.0).abs() < 1e-9);
        let one_sided = spec(8, false).params(2.0, 4.0);
        assert_eq!(one_sided, spec(8, false).params(0.0, 4.0));
        assert_eq!(one_sided.zero_point, 0);
        assert_eq!(spec(8, false).params(-4.0, -2.0).zero_point, 255);
    }

    #[test]
    fn symmetric_range_has_zero_point_zero_and_the_full_signed_range() {
        let p = spec(8, true).params(-1.0, 3.0);
        assert_eq!((p.qmin, p.qmax, p.zero_point), (-128, 127, 0));
        assert!((p.scale - 3.0 / 127.0).abs() < 1e-9);
        let p = spec(4, true).params(-2.0, 1.0);
        assert_eq!((p.qmin, p.qmax), (-8, 7));
    }

    #[test]
    fn empty_tiny_and_huge_ranges_get_a_usable_scale() {
        for symmetric in [false, true] {
            assert_eq!(spec(8, symmetric).params(0.0, 0.0).scale, 1.0);
            let tiny = spec(8, symmetric).params(-1e-44, 1e-44);
            assert_eq!(tiny.scale, f32::MIN_POSITIVE);
            let huge = spec(2, symmetric).params(f32::MIN, f32::MAX);
            assert!(huge.scale.is_finite() && huge.scale > 0.0);
        }
    }

    #[test]
    fn halves_round_to_even_and_the_rest_saturates() {
        let p = QuantParams {
            scale: 1.0,
            zero_point: 2,
            qmin: 0,
            qmax: 7,
        };
        let mut x = [0.5, 1.5, 2.5, -0.5, -1.5, 9.0, -9.0];
        fake_quantize(&mut x, &p);
        assert_eq!(x, [0.0, 2.0, 2.0, 0.0, -2.0, 5.0, -2.0]);
    }

    #[test]
    fn weights_get_one_scale_per_column_or_one_in_all() {
        let w = array![[1.27f32, 0.0, -0.02], [-0.635, 0.0, 0.0127]];
        let per =
            |per_channel| quantize_weight(w.view(), &WeightSpec::whole_or_columns(8, per_channel));
        let columns = per(true);
        assert_eq!(columns.scale.len(), 3);
        assert_eq!(columns.scale[1], 1.0, "an all-zero column");
        assert_eq!(columns.q.row(0).to_vec(), [127, 0, -127]);
        let tensor = per(false);
        assert_eq!(tensor.scale.len(), 1);
        assert_eq!(tensor.q.row(0).to_vec(), [127, 0, -2]);
    }

    #[test]
    fn a_weight_without_columns_or_rows_is_no_panic() {
        let spec = WeightSpec::per_tensor(8);
        assert_eq!(
            quantize_weight(Array2::zeros((0, 3)).view(), &spec).scale,
            [1.0]
        );
        assert_eq!(
            quantize_weight(Array2::zeros((3, 0)).view(), &spec).scale,
            [1.0]
        );
    }

    proptest! {
        #[test]
        fn rounding_equals_round_ties_even(v in -300.0f32..300.0, halves in -600i32..600) {
            for v in [v, halves as f32 / 2.0, (halves as f32 / 2.0).next_up(), (halves as f32 / 2.0).next_down()] {
                prop_assert_eq!(saturate_round(v, -255.0, 255.0), v.round_ties_even().clamp(-255.0, 255.0));
            }
        }

        #[test]
        fn fake_quantize_is_idempotent_and_within_half_a_step(
            x in prop::collection::vec(-50.0f32..50.0, 1..40), low in -40.0f32..40.0, extent in 0.001f32..60.0,
            bits in 2u8..=8, symmetric: bool,
        ) {
            let p = ActivationSpec::per_tensor(bits, symmetric).params(low, low + extent);
            let mut once = x.clone();
            fake_quantize(&mut once, &p);
            let mut twice = once.clone();
            fake_quantize(&mut twice, &p);
            prop_assert_eq!(&once, &twice);
            let inside = |v: f32| v >= (p.qmin - p.zero_point) as f32 * p.scale && v <= (p.qmax - p.zero_point) as f32 * p.scale;
            for (&x, &q) in x.iter().zip(&once) {
                prop_assert!(inside(q));
                if inside(x) {
                    prop_assert!((x - q).abs() <= p.scale * 0.50001, "{} became {} with {:?}", x, q, p);
                }
            }
        }

        #[test]
        fn weight_into_a_buffer_equals_the_stored_weight(
            w in prop::collection::vec(-3.0f32..3.0, 12), s in prop::collection::vec(0.5f32..20.0, 3),
            bits in 2u8..=8, per_channel: bool,
        ) {
            // Two weights side by side, [3, 1] and [3, 3].
            let spec = WeightSpec::whole_or_columns(bits, per_channel);
            let (mut steps, mut out) = (vec![0.0; 4], vec![0.0; 12]);
            fake_quantize_weight_into(&w, Some(&s), &spec, &[1, 4], &mut steps, &mut out);
            let w = Array2::from_shape_fn((3, 4), |(j, n)| w[j * 4 + n] * s[j]);
            for (start, end) in [(0, 1), (1, 4)] {
                let part = quantize_weight(w.slice(ndarray::s![.., start..end]), &spec);
                for ((j, n), &q) in part.q.indexed_iter() {
                    let scale = part.scale[if per_channel { n } else { 0 }];
                    prop_assert_eq!(f32::from(q) * scale, out[j * 4 + start + n]);
                }
            }
        }
    }
}
