//! Fake quantization with the semantics of ONNX `QuantizeLinear` → `DequantizeLinear`.
//!
//! Ranges come in, [`QuantParams`] come out ([`super::ActivationSpec::params`]), and [`fake_quantize`] applies them in place.
//! Weights go through [`quantize_weight`], which gives the integers to store, or through
//! `fake_quantize_weight_into`, which gives their float values for the search and allocates nothing.
//!
//! All values are expected to be finite: the caller has refused NaN and infinity before they get here.

use super::groups::{fake_quantize_groups, quantize_groups};
use super::rounding::{safe_scale, saturate_round};
use super::spec::{QuantParams, QuantizedWeight, WeightGranularity, WeightSpec};
use super::wide::wide;
use ndarray::{Array2, ArrayView2};

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
    let is_dead: Vec<bool> = extremes.iter().map(|&extreme| extreme == 0.0).collect();
    column_scales(&mut extremes, spec, &[w.ncols()]);
    let live = extremes.iter().zip(&is_dead).filter(|(_, dead)| !**dead);
    let largest = live.map(|(s, _)| *s).reduce(f32::max);
    if let (WeightGranularity::PerChannel, Some(largest)) = (spec.granularity, largest) {
        // Any scale holds a column of zeros; but the bias beside it is in steps of it, and 1 would be a coarse one.
        let scales = extremes.iter_mut().zip(&is_dead);
        for (scale, _) in scales.filter(|(_, dead)| **dead) {
            *scale = largest;
        }
    }
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
    use crate::solve::ActivationSpec;
    use ndarray::array;
    use proptest::prelude::*;

    fn spec(bits: u8, symmetric: bool) -> ActivationSpec {
        ActivationSpec::per_tensor(bits, symmetric)
    }

    #[test]
    fn a_column_of_zeros_has_a_scale_like_the_others() {
        let w = array![[0.0, 0.5, -0.25], [0.0, 1.27, 0.25]];
        let spec = |per_channel| WeightSpec::whole_or_columns(8, per_channel);
        let scales = scales_of(w.view(), &spec(true));
        assert_eq!(scales[0], scales[1]);
        assert!((scales[0] - 0.01).abs() < 1e-8 && scales[2] < scales[1]);
        // Where there is no other column there is nothing to go by.
        let zeros = Array2::zeros((2, 2));
        assert_eq!(scales_of(zeros.view(), &spec(true)), [1.0, 1.0]);
        assert_eq!(scales_of(zeros.view(), &spec(false)), [1.0]);
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
        assert_eq!(columns.scale[1], columns.scale[0], "an all-zero column");
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
