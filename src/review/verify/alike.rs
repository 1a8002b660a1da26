//! Whether a value of two models is the same value, or the same up to a shift and a scale per channel.
//!
//! Migration (this tool's, SmoothQuant's) keeps the names of values and changes what they hold: `o = (r − z) / s`, exactly
//! but for rounding. No file says so, but the numbers do. Per channel, over tokens, with r of the float model and o of
//! the other,
//!
//! ```text
//! direct   Σ (r − o)²
//! offset   Σ (r − o − mean(r − o))²
//! affine   Σ (r − α o − β)²         α, β by least squares
//! ```
//!
//! Rounding is noise that no scale explains, `offset ≈ affine`, with a slope α near 1. A channel that was scaled has
//! `affine ≪ offset` and another slope. A shift alone leaves `offset ≪ direct` with a `direct` far beyond any rounding. What
//! stays unseen is a scale whose effect is below the rounding of the weights.

use ndarray::{ArrayD, Axis};

use super::mixed::{self, Heads};
use crate::calibrate::Captured;

/// What a scale must explain of the error of one channel (3 dB), and how far from 1 it must be, for a channel to be one of
/// several that are scaled ...
const EXPLAINED: (f64, f64) = (2.0, 1.03);
/// ... and for one alone to tell (6 dB).
const CLEAR: (f64, f64) = (4.0, 1.25);
/// The part of the channels that several are.
const SEVERAL: f64 = 0.02;
/// What of the error a shift alone must explain (15 dB; 6 dB where biases or norms were changed) ...
const SHIFT_EXPLAINED: [f64; 2] = [31.6, 4.0];
/// ... where the error is this much of the signal (−15 dB) or more.
const SHIFT_ERROR: f64 = 0.0316;
/// Energy of float rounding, relative to the signal.
const FLOAT: f64 = 1e-10;
/// Tokens below which nothing is concluded.
const FEWEST_TOKENS: usize = 8;

/// The affine between the values of two models, per channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Affine {
    /// `r ≈ α o + β`: from the quantized model's value to the float one's.
    pub back: Vec<(f64, f64)>,
    /// `o ≈ a r + b`.
    pub forth: Vec<(f64, f64)>,
}

/// How two values of one name are related.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Relation {
    /// The same value, with or without noise.
    Same,
    /// The same up to a shift and scale per channel.
    Scaled(Affine),
    /// The same, and channel c is column `.0[c]` in the other model.
    Reordered(Vec<usize>, Affine),
    /// The same, and the channels of every head are mixed.
    Mixed(Heads),
}

impl Relation {
    /// What the quantized model has where the float model has `value`.
    pub(super) fn forth(&self, value: &ArrayD<f32>) -> ArrayD<f32> {
        match self {
            Relation::Same => value.clone(),
            Relation::Scaled(affine) => map(value, &affine.forth),
            Relation::Reordered(order, affine) => {
                let mut places = vec![0; order.len()];
                order
                    .iter()
                    .enumerate()
                    .for_each(|(c, &column)| places[column] = c);
                pick(&map(value, &affine.forth), &places)
            }
            Relation::Mixed(heads) => heads.forth(value),
        }
    }

    /// What the float model has where the quantized model has `value`.
    pub(super) fn back(&self, value: &ArrayD<f32>) -> ArrayD<f32> {
        match self {
            Relation::Same => value.clone(),
            Relation::Scaled(affine) => map(value, &affine.back),
            Relation::Reordered(order, affine) => map(&pick(value, order), &affine.back),
            Relation::Mixed(heads) => heads.back(value),
        }
    }
}

/// `a v + b` per channel of the last axis.
fn map(value: &ArrayD<f32>, lines: &[(f64, f64)]) -> ArrayD<f32> {
    let mut mapped = value.as_standard_layout().into_owned();
    for mut vector in mapped.rows_mut() {
        for (v, (a, b)) in vector.iter_mut().zip(lines) {
            *v = (f64::from(*v) * a + b) as f32;
        }
    }
    mapped
}

/// Column `order[c]` of the last axis in place c.
fn pick(value: &ArrayD<f32>, order: &[usize]) -> ArrayD<f32> {
    value.select(Axis(value.ndim() - 1), order)
}

/// Sums over the tokens of one channel.
#[derive(Clone, Copy, Default)]
struct Channel {
    r: f64,
    o: f64,
    rr: f64,
    oo: f64,
    ro: f64,
    ee: f64,
}

/// Compares the real tokens of `float` and `other`, of one shape. `changed` says that the other model has other biases or
/// norms, without which nothing is shifted.
pub(super) fn relation(float: &Captured, other: &ArrayD<f32>, changed: bool) -> Relation {
    let by_channel = by_channel(float, other, changed);
    if !by_channel.is_unexplained {
        return by_channel.relation;
    }
    let tokens = mixed::tokens(float, other);
    if let Some(order) = mixed::order(&tokens) {
        let found = self::by_channel(float, &pick(other, &order), changed);
        if !found.is_unexplained {
            return Relation::Reordered(order, found.affine);
        }
    }
    match mixed::heads(&tokens) {
        Some(heads) => Relation::Mixed(heads),
        None => by_channel.relation,
    }
}

/// What a line per channel makes of it.
struct ByChannel {
    relation: Relation,
    affine: Affine,
    /// Whether lines explain next to nothing.
    is_unexplained: bool,
}

fn by_channel(float: &Captured, other: &ArrayD<f32>, changed: bool) -> ByChannel {
    let channels = float.value.shape().last().copied().unwrap_or(1);
    let mut sums = vec![Channel::default(); channels];
    let mut tokens = 0;
    let vectors = float.value.rows().into_iter().zip(other.rows());
    for ((r, o), half) in vectors.zip(&float.halves) {
        let finite = |v: &f32| v.is_finite();
        if half.is_none() || !r.iter().all(finite) || !o.iter().all(finite) {
            continue;
        }
        tokens += 1;
        for ((sum, &r), &o) in sums.iter_mut().zip(r).zip(o) {
            let (r, o) = (f64::from(r), f64::from(o));
            sum.r += r;
            sum.o += o;
            sum.rr += r * r;
            sum.oo += o * o;
            sum.ro += r * o;
            sum.ee += (r - o) * (r - o);
        }
    }
    if tokens < FEWEST_TOKENS {
        return ByChannel {
            relation: Relation::Same,
            affine: Affine::default(),
            is_unexplained: false,
        };
    }
    let n = tokens as f64;
    let (mut signal, mut direct, mut offset) = (0.0, 0.0, 0.0);
    let (mut var, mut unexplained) = (0.0, 0.0);
    let (mut scaled, mut clear) = (0, false);
    let (mut back, mut forth) = (Vec::new(), Vec::new());
    for s in &sums {
        let (mean_r, mean_o) = (s.r / n, s.o / n);
        let var_r = (s.rr - s.r * mean_r).max(0.0);
        let var_o = (s.oo - s.o * mean_o).max(0.0);
        let cov = s.ro - s.r * mean_o;
        // Of a channel that does not vary, only the offset is known.
        let slope = |var: f64, of: f64| if var > 1e-12 * of { cov / var } else { 1.0 };
        let (alpha, a) = (slope(var_o, s.oo), slope(var_r, s.rr));
        back.push((alpha, mean_r - alpha * mean_o));
        forth.push((a, mean_o - a * mean_r));
        signal += s.rr;
        direct += s.ee;
        let moved = (s.ee - (s.r - s.o) * (s.r - s.o) / n).max(0.0);
        offset += moved;
        // A line through few tokens comes close to all of them.
        let rest = (var_r - 2.0 * alpha * cov + alpha * alpha * var_o).max(0.0) * n / (n - 2.0);
        (var, unexplained) = (var + var_r, unexplained + rest);
        // What is less than the rounding of float arithmetic tells nothing.
        let shows = |(explained, scale): (f64, f64)| {
            let another = alpha > 0.0 && alpha.max(1.0 / alpha) > scale;
            // In noise as strong as the signal, a line towards zero is always closer.
            another && rest < var_r / 10.0 && moved > (explained * rest).max(FLOAT * s.rr)
        };
        scaled += usize::from(shows(EXPLAINED));
        clear |= shows(CLEAR);
    }
    let several = scaled > 1 && scaled as f64 > SEVERAL * channels as f64;
    let shifted = direct > SHIFT_ERROR * signal
        && direct > SHIFT_EXPLAINED[usize::from(changed)] * offset.max(FLOAT * signal);
    let scaled = clear || several;
    let affine = Affine { back, forth };
    ByChannel {
        relation: match scaled || shifted {
            true => Relation::Scaled(affine.clone()),
            false => Relation::Same,
        },
        affine,
        is_unexplained: mixed::is_unexplained(unexplained, var),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::IxDyn;

    const TOKENS: usize = 64;
    const CHANNELS: usize = 12;

    fn noise(seed: usize) -> f32 {
        let mut x = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^= x >> 31;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    fn value(f: impl Fn(usize, usize) -> f32) -> ArrayD<f32> {
        ArrayD::from_shape_fn(IxDyn(&[2, TOKENS / 2, CHANNELS]), |i| {
            f(i[0] * TOKENS / 2 + i[1], i[2])
        })
    }

    fn float() -> Captured {
        let outlier = |c| if c == 3 { 40.0 } else { 1.0 };
        Captured {
            value: value(|t, c| {
                noise(t * CHANNELS + c) * outlier(c) + if c == 3 { 25.0 } else { 0.0 }
            }),
            halves: (0..TOKENS).map(|t| Some(t / 32 % 2)).collect(),
        }
    }

    fn changed(f: impl Fn(usize, usize, f32) -> f32) -> ArrayD<f32> {
        let r = float().value;
        value(|t, c| f(t, c, r[[t / (TOKENS / 2), t % (TOKENS / 2), c]]))
    }

    #[test]
    fn noise_of_any_strength_is_no_scale() {
        for strength in [0.0, 1e-4, 0.02, 0.3, 3.0, 30.0] {
            let o = changed(|t, c, r| r + strength * noise(90_000 + t * CHANNELS + c));
            assert_eq!(relation(&float(), &o, true), Relation::Same, "{strength}");
        }
    }

    #[test]
    fn a_mean_error_as_rounding_makes_it_is_no_shift() {
        let o = changed(|t, c, r| r + 0.05 * (c % 3) as f32 + 0.01 * noise(7 + t * CHANNELS + c));
        assert_eq!(relation(&float(), &o, true), Relation::Same);
    }

    #[test]
    fn one_scaled_channel_in_noise_is_found_and_undone() {
        let scale = |c| if c == 3 { 16.0 } else { 1.0 };
        let o = changed(|t, c, r| r / scale(c) + 0.01 * noise(5 + t * CHANNELS + c));
        let Relation::Scaled(affine) = relation(&float(), &o, true) else {
            panic!("not found");
        };
        assert!(
            (affine.back[3].0 - 16.0).abs() < 0.1,
            "{:?}",
            affine.back[3]
        );
        assert!((affine.forth[0].0 - 1.0).abs() < 0.01);
        let back = Relation::Scaled(affine).back(&o);
        let error = (&back - &float().value).mapv(|e| e * e).sum();
        assert!(
            error < 0.01 * float().value.mapv(|e| e * e).sum(),
            "{error}"
        );
    }

    #[test]
    fn a_little_scale_in_a_few_channels_is_found_where_rounding_is_less() {
        let scale = |c| if c == 3 || c == 7 { 1.1 } else { 1.0 };
        let with = |strength: f32| {
            changed(|t, c, r| {
                r / scale(c)
                    + strength * (1.0 + 39.0 * f32::from(c == 3)) * noise(5 + t * CHANNELS + c)
            })
        };
        assert!(matches!(
            relation(&float(), &with(0.02), true),
            Relation::Scaled(_)
        ));
        assert_eq!(relation(&float(), &with(0.3), true), Relation::Same);
    }

    #[test]
    fn a_shift_alone_is_found() {
        let o = changed(|t, c, r| {
            let shift = if c == 3 { 25.0 } else { 0.5 * c as f32 };
            r - shift + 0.003 * noise(5 + t * CHANNELS + c)
        });
        let Relation::Scaled(affine) = relation(&float(), &o, true) else {
            panic!("not found");
        };
        assert!((affine.back[3].1 - 25.0).abs() < 0.1);
    }

    #[test]
    fn padding_and_too_few_tokens_tell_nothing() {
        let mut few = float();
        few.halves.iter_mut().skip(7).for_each(|half| *half = None);
        let o = changed(|_, _, r| r / 4.0);
        assert_eq!(relation(&few, &o, true), Relation::Same);
        assert!(matches!(relation(&float(), &o, true), Relation::Scaled(_)));
    }
}
