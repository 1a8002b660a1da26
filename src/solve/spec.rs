//! What a quantizer is told, and what a quantized weight is.

use super::rounding::safe_scale;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// What the values are that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActivationGranularity {
    /// All of a value, over all tokens: a constant scale, from calibration.
    PerTensor,
    /// Those of one token.
    PerToken,
    /// So many channels of one token, side by side.
    PerGroup(usize),
    /// None: activations stay in float.
    Float,
}

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
    /// Scales of tokens and groups are symmetric, but for `levels_below`.
    pub symmetric: bool,
    /// What shares a scale.
    pub granularity: ActivationGranularity,
    /// Where every token has a scale: how many of the 2^bits integers are below the one that stands for 0; `None` for as many as
    /// above. GELU gives −0.17 at least, and 8 bits of which one is a sign are 7 for it.
    pub levels_below: Option<i32>,
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
            levels_below: None,
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
            return dequantize_groups(self, group);
        }
        let mut w = self.q.mapv(f32::from);
        // One scale per tensor is that of every column.
        w *= &ndarray::aview1(&self.scale);
        w
    }
}

/// `(q − z) · s`, `[C, N]`.
fn dequantize_groups(weight: &QuantizedWeight, group: usize) -> Array2<f32> {
    let n = weight.q.ncols();
    let mut w = weight.q.mapv(f32::from);
    for (c, mut row) in w.rows_mut().into_iter().enumerate() {
        let start = c / group * n;
        if let Some(zero) = weight.zero_point.get(start..start + n) {
            row.iter_mut()
                .zip(zero)
                .for_each(|(v, &z)| *v -= f32::from(z));
        }
        row *= &ndarray::aview1(&weight.scale[start..start + n]);
    }
    w
}
