//! How activations become integers: with one constant scale, or with scales that every token brings along.
//!
//! ```text
//! per tensor   s constant, any zero point             x ≈ (q − zero_point) · s
//! per token    s_t = max_j |x_tj| / qmax              x_t ≈ q_t · s_t             zero point 0
//! one-sided    s_t = max_j max(x_tj / qmax, x_tj / qmin)                          qmin < 0 of 2^bits integers, few
//! per group    s_tg = max over the channels of g      x_tg ≈ q_tg · s_tg          zero point 0
//! ```
//!
//! Scales of tokens and groups are made at run time, so no unseen token is clipped, and no range is calibrated. What ONNX
//! Runtime's MatMulNBits does with activations at accuracy level 4 is *per group* with 8 bits and the groups of the weight.

use super::quantize::fake_quantize_into;
use super::rounding::saturate_round;
use super::spec::{ActivationGranularity, ActivationSpec, QuantParams};
use super::wide::wide;

/// The smallest magnitude that a token or group is divided by: what is below it is nothing beside any other token.
pub const LEAST_MAGNITUDE: f32 = 1e-6;

/// What is done to one value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActivationQuantizer {
    /// `QuantizeLinear` → `DequantizeLinear` with constants.
    Constant(QuantParams),
    /// A scale per row, or per group of channels of it.
    Dynamic {
        /// The smallest and the largest integer: 0 is between them.
        levels: (i32, i32),
        /// Channels of a group; `None` for whole rows.
        group: Option<usize>,
    },
    /// Nothing.
    Float,
}

impl ActivationSpec {
    /// What is done to values from `min` to `max`; scales of tokens and groups do not depend on these.
    pub fn quantizer(&self, min: f32, max: f32) -> ActivationQuantizer {
        let dynamic = |group| ActivationQuantizer::Dynamic {
            levels: self.levels(),
            group,
        };
        match self.granularity {
            ActivationGranularity::PerTensor => {
                ActivationQuantizer::Constant(self.params(min, max))
            }
            ActivationGranularity::PerToken => dynamic(None),
            ActivationGranularity::PerGroup(size) => dynamic(Some(size)),
            ActivationGranularity::Float => ActivationQuantizer::Float,
        }
    }

    /// The smallest and the largest integer of a token or group.
    pub fn levels(&self) -> (i32, i32) {
        let half = (1 << (self.bits - 1)) - 1;
        match self.levels_below {
            Some(below) => (-below, (1 << self.bits) - 1 - below),
            None => (-half, half),
        }
    }

    /// Whether ranges of the calibration decide anything.
    pub fn has_range(&self) -> bool {
        self.granularity == ActivationGranularity::PerTensor
    }
}

impl ActivationQuantizer {
    /// Rows of `columns` channels, quantized and back: `x, out: [T, C]`, row-major.
    pub(crate) fn apply(&self, x: &[f32], out: &mut [f32], columns: usize) {
        match *self {
            ActivationQuantizer::Constant(params) => fake_quantize_into(x, out, &params),
            ActivationQuantizer::Dynamic { levels, group } => {
                let group = group.unwrap_or(columns).max(1);
                let levels = (levels.0 as f32, levels.1 as f32);
                for (x, out) in rows(x, columns).zip(out.chunks_mut(columns.max(1))) {
                    for (x, out) in x.chunks(group).zip(out.chunks_mut(group)) {
                        quantize_group(x, out, levels);
                    }
                }
            }
            ActivationQuantizer::Float => out.copy_from_slice(x),
        }
    }

    /// The mean over the tokens of the square of a step, each times what the token counts: rounding adds a twelfth of it to every
    /// channel. `x: [T, C]`.
    pub(super) fn mean_square_step(
        &self,
        x: &[f32],
        columns: usize,
        weights: Option<&[f32]>,
    ) -> f64 {
        let weight = |t: usize| weights.map_or(1.0, |w| f64::from(w[t]));
        let tokens = (x.len() / columns.max(1)).max(1) as f64;
        match *self {
            ActivationQuantizer::Constant(params) => {
                let weights: f64 = (0..tokens as usize).map(weight).sum();
                f64::from(params.scale).powi(2) * weights / tokens
            }
            ActivationQuantizer::Float => 0.0,
            ActivationQuantizer::Dynamic { levels, group } => {
                let group = group.unwrap_or(columns).max(1);
                let levels = (levels.0 as f32, levels.1 as f32);
                let square = |(t, x): (usize, &[f32])| {
                    let groups = x.chunks(group).map(|x| {
                        let step = f64::from(step(x, levels));
                        step * step * x.len() as f64
                    });
                    groups.sum::<f64>() / columns.max(1) as f64 * weight(t)
                };
                rows(x, columns).enumerate().map(square).sum::<f64>() / tokens
            }
        }
    }
}

fn rows(x: &[f32], columns: usize) -> std::slice::ChunksExact<'_, f32> {
    x.chunks_exact(columns.max(1))
}

/// The step that the values of one token or group have: the largest of them is the largest integer, or the smallest the smallest.
#[inline(always)]
fn step(x: &[f32], (qmin, qmax): (f32, f32)) -> f32 {
    // What is below 0 counts as many times as there are fewer integers for it.
    let below = qmax / qmin;
    let mut most = LEAST_MAGNITUDE;
    for &v in x {
        let v = if v < 0.0 { v * below } else { v };
        most = if v > most { v } else { most };
    }
    most / qmax
}

wide! {
    /// `q = round_half_even(x / s)`, s: [`step`], and back.
    fn quantize_group(x: &[f32], out: &mut [f32], levels: (f32, f32)) = quantize_each;
}

#[inline(always)]
fn quantize_each(x: &[f32], out: &mut [f32], levels: (f32, f32)) {
    let scale = step(x, levels);
    for (out, &v) in out.iter_mut().zip(x) {
        *out = saturate_round(v / scale, levels.0, levels.1) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(bits: u8, granularity: ActivationGranularity) -> ActivationSpec {
        ActivationSpec {
            granularity,
            ..ActivationSpec::per_tensor(bits, true)
        }
    }

    fn applied(spec: ActivationSpec, x: &[f32], columns: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        spec.quantizer(-1.0, 1.0).apply(x, &mut out, columns);
        out
    }

    #[test]
    fn every_token_and_every_group_has_a_scale() {
        let x = [127.0, 1.4, -3.0, 0.6, 1.27, -0.014, 0.0, 0.02, 0.0, 0.0];
        let token = applied(spec(8, ActivationGranularity::PerToken), &x, 5);
        assert_eq!(token[..5], [127.0, 1.0, -3.0, 1.0, 1.0]);
        // The other token is a hundred times smaller, and keeps its digits.
        for (found, expected) in token[5..].iter().zip([-0.014, 0.0, 0.02, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
        // Two groups of two channels and one of one.
        let group = applied(spec(8, ActivationGranularity::PerGroup(2)), &x, 5);
        assert_eq!(group[..2], [127.0, 1.0]);
        assert!((group[3] - 0.6).abs() < 0.012);
        assert_eq!(group[4], 1.27);
        assert_eq!(applied(spec(8, ActivationGranularity::Float), &x, 5), x);
        assert_eq!(
            applied(spec(8, ActivationGranularity::PerTensor), &x, 5)[0],
            1.0
        );
    }

    #[test]
    fn one_sided_tokens_have_nearly_all_integers_above_zero() {
        let spec = ActivationSpec {
            levels_below: Some(16),
            ..spec(8, ActivationGranularity::PerToken)
        };
        assert_eq!(spec.levels(), (-16, 239));
        // 239 steps up to the largest; a token whose smallest is beyond 16 of them has larger steps, and loses nothing.
        let x = [239.0, -15.8, 0.6, 3.0, 3.0, -16.0, 100.4, 200.0];
        let out = applied(spec, &x, 4);
        assert_eq!(out[..4], [239.0, -16.0, 1.0, 3.0]);
        assert_eq!(out[4..], [3.0, -16.0, 100.0, 200.0]);
        let beyond = applied(spec, &[1.0, -32.0, 400.0, 0.0], 4);
        assert_eq!(beyond[1], -32.0);
        assert!((beyond[2] - 400.0).abs() <= 1.0);
    }

    #[test]
    fn few_bits_have_few_levels() {
        let x: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        for bits in 2..=8 {
            let mut out = applied(spec(bits, ActivationGranularity::PerToken), &x, 64);
            out.sort_by(f32::total_cmp);
            out.dedup();
            assert!(out.len() < 1 << bits, "{bits}: {}", out.len());
        }
    }

    /// Rounding errors are as large as the steps say.
    #[test]
    fn steps_tell_the_error() {
        let x: Vec<f32> = (0..4096)
            .map(|i| (i as f32 * 0.7).sin() * if i % 97 == 0 { 8.0 } else { 1.0 })
            .collect();
        for granularity in [
            ActivationGranularity::PerTensor,
            ActivationGranularity::PerToken,
            ActivationGranularity::PerGroup(32),
        ] {
            let quantizer = spec(8, granularity).quantizer(-8.0, 8.0);
            let mut out = vec![0.0; x.len()];
            quantizer.apply(&x, &mut out, 128);
            let error: f32 = x.iter().zip(&out).map(|(a, b)| (a - b).powi(2)).sum();
            let told = quantizer.mean_square_step(&x, 128, None) / 12.0 * x.len() as f64;
            let ratio = f64::from(error) / told;
            assert!((0.8..1.2).contains(&ratio), "{granularity:?}: {ratio}");
        }
        let exact = spec(8, ActivationGranularity::Float).quantizer(0.0, 0.0);
        assert_eq!(exact.mean_square_step(&x, 128, None), 0.0);
    }
}
