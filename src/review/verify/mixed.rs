//! Values whose channels stand in another order, or are mixed within their heads.
//!
//! A rotation that costs nothing is folded into the columns of the Linear before: a permutation in front of a FFN's second Linear,
//! an orthogonal matrix per head behind V. The names of those values stay, and no file says what happened, but the numbers do:
//!
//! ```text
//! order   o_c = (r_p(c) − z) / s      each channel of one model goes with one of the other
//! heads   o_h = r_h M_h + b           M_h: [D, D] by least squares, on the other half of the tokens as good as on its own
//! ```
//!
//! What fits by chance fits no other tokens, so noise of any strength is neither.

use ndarray::{Array1, Array2, ArrayD, Axis, s};

use crate::calibrate::Captured;

/// The part of the variance that a line per channel must leave for anything else to be looked for.
const UNEXPLAINED: f64 = 0.5;
/// The part of the variance that an order or a mixture may leave.
const LEFT: f64 = 0.1;
/// What two channels must have in common to be one.
const ALIKE: f32 = 0.7;
/// Sizes of heads.
const HEADS: std::ops::RangeInclusive<usize> = 4..=256;
/// Tokens for every channel of a head, in each half.
const TOKENS: usize = 2;
/// More channels than any Linear's but a vocabulary's.
const MOST_CHANNELS: usize = 1 << 14;

/// A mixture per head: `r ≈ o M + b` and `o ≈ r M' + b'`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heads {
    back: Vec<Line>,
    forth: Vec<Line>,
}

/// `y = x M + b` of one head.
type Line = (Array2<f64>, Array1<f64>);

impl Heads {
    pub(super) fn back(&self, value: &ArrayD<f32>) -> ArrayD<f32> {
        map(value, &self.back)
    }

    pub(super) fn forth(&self, value: &ArrayD<f32>) -> ArrayD<f32> {
        map(value, &self.forth)
    }
}

fn map(value: &ArrayD<f32>, lines: &[Line]) -> ArrayD<f32> {
    let mut mapped = value.as_standard_layout().into_owned();
    for mut vector in mapped.rows_mut() {
        let mut start = 0;
        for (m, b) in lines {
            let mut head = vector.slice_mut(s![start..start + m.nrows()]);
            let y = head.mapv(f64::from).dot(m) + b;
            head.assign(&y.mapv(|v| v as f32));
            start += m.nrows();
        }
    }
    mapped
}

/// The tokens of a value that are real and finite in both models.
pub(super) struct Tokens {
    /// Without their means, `[T, C]`.
    centred: Array2<f32>,
    /// `[C]`.
    means: Array1<f64>,
}

/// Those of both values.
pub(super) fn tokens(float: &Captured, other: &ArrayD<f32>) -> [Tokens; 2] {
    let channels = float.value.shape().last().copied().unwrap_or(1);
    let pairs = float.value.rows().into_iter().zip(other.rows());
    let real = pairs
        .zip(&float.halves)
        .filter(|((r, o), half)| half.is_some() && r.iter().chain(o.iter()).all(|v| v.is_finite()));
    let real: Vec<_> = real.map(|(pair, _)| pair).collect();
    [0, 1].map(|pick| {
        let rows = real.iter().map(|(r, o)| [r, o][pick]);
        let data: Vec<f64> = rows.flatten().map(|v| f64::from(*v)).collect();
        let x = Array2::from_shape_vec((real.len(), channels), data).unwrap_or_default();
        let means = x.mean_axis(Axis(0));
        let means = means.unwrap_or_else(|| Array1::zeros(channels));
        Tokens {
            centred: (&x - &means).mapv(|v| v as f32),
            means,
        }
    })
}

/// Whether lines per channel, which leave `rest` of the variances `var`, explain so little that channels may not be alike.
pub(super) fn is_unexplained(rest: f64, var: f64) -> bool {
    rest > UNEXPLAINED * var
}

/// For every channel of `r: [T, C]` the one of `o: [T, C]` that goes with it, if all have one and they are in another
/// order.
pub(super) fn order(tokens: &[Tokens; 2]) -> Option<Vec<usize>> {
    let [r, o] = tokens.each_ref().map(|t| &t.centred);
    let channels = r.ncols();
    if channels > MOST_CHANNELS {
        return None;
    }
    let unit = |x: &Array2<f32>| {
        let norm = x.map_axis(Axis(0), |c| c.dot(&c).sqrt().max(f32::MIN_POSITIVE));
        x / &norm
    };
    let common = unit(r).t().dot(&unit(o));
    let mut order = vec![None; channels];
    let mut taken = vec![false; channels];
    let mut found = 0;
    for (c, row) in common.rows().into_iter().enumerate() {
        let best = row.iter().enumerate();
        let best = best.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
        if let Some((column, _)) = best.filter(|(_, v)| v.abs() > ALIKE) {
            // Channels that are alike are told apart by no number.
            if !std::mem::replace(&mut taken[column], true) {
                order[c] = Some(column);
                found += 1;
            }
        }
    }
    if found * 10 < channels * 9 {
        return None;
    }
    let mut free = (0..channels).filter(|&c| !taken[c]);
    let order: Vec<usize> = order
        .into_iter()
        .filter_map(|c| c.or_else(|| free.next()))
        .collect();
    let moved = order.iter().enumerate().any(|(c, &column)| c != column);
    (moved && order.len() == channels).then_some(order)
}

/// The mixture per head that makes one value of the other, if there is one.
pub(super) fn heads(both: &[Tokens; 2]) -> Option<Heads> {
    let [r, o] = both.each_ref().map(|t| &t.centred);
    let (tokens, channels) = r.dim();
    let half = tokens / 2;
    let sizes = HEADS.filter(|d| channels.is_multiple_of(*d) && half >= TOKENS * d);
    let explains = |size: &usize| {
        let (mut left, mut all) = (0.0, 0.0);
        for start in (0..channels).step_by(*size) {
            let part = |x: &Array2<f32>, from: usize, to: usize| {
                x.slice(s![from..to, start..start + size]).mapv(f64::from)
            };
            let Some(m) = least_squares(&part(o, 0, half), &part(r, 0, half)) else {
                return false;
            };
            let wanted = part(r, half, tokens);
            let error = part(o, half, tokens).dot(&m) - &wanted;
            left += error.iter().map(|e| e * e).sum::<f64>();
            all += wanted.iter().map(|e| e * e).sum::<f64>();
        }
        left < LEFT * all
    };
    let size = sizes.into_iter().find(explains)?;
    let lines = |from: &Tokens, to: &Tokens| -> Option<Vec<Line>> {
        let heads = (0..channels).step_by(size);
        let line = |start: usize| {
            let head = s![start..start + size];
            let part = |t: &Tokens| t.centred.slice(s![.., start..start + size]).mapv(f64::from);
            let m = least_squares(&part(from), &part(to))?;
            let b = &to.means.slice(head) - &from.means.slice(head).dot(&m);
            Some((m, b))
        };
        heads.map(line).collect()
    };
    let [of_r, of_o] = both;
    Some(Heads {
        back: lines(of_o, of_r)?,
        forth: lines(of_r, of_o)?,
    })
}

/// M of least `‖x M − y‖²`, by the normal equations; `None` of nothing.
fn least_squares(x: &Array2<f64>, y: &Array2<f64>) -> Option<Array2<f64>> {
    let n = x.ncols();
    let mut a = x.t().dot(x);
    // Channels that do not vary get no weight.
    let ridge = 1e-9 * a.diag().sum() / n as f64;
    a.diag_mut().iter_mut().for_each(|d| *d += ridge);
    let mut b = x.t().dot(y);
    // Cholesky: A = L Lᵀ, then both triangles are solved.
    for j in 0..n {
        let row = a.slice(s![j, ..j]).to_owned();
        let pivot = a[[j, j]] - row.dot(&row);
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        a[[j, j]] = pivot.sqrt();
        for i in j + 1..n {
            a[[i, j]] = (a[[i, j]] - a.slice(s![i, ..j]).dot(&row)) / a[[j, j]];
        }
    }
    for i in 0..n {
        let known = a.slice(s![i, ..i]).dot(&b.slice(s![..i, ..]));
        let solved = (&b.row(i) - &known) / a[[i, i]];
        b.row_mut(i).assign(&solved);
    }
    for i in (0..n).rev() {
        let known = a.slice(s![i + 1.., i]).dot(&b.slice(s![i + 1.., ..]));
        let solved = (&b.row(i) - &known) / a[[i, i]];
        b.row_mut(i).assign(&solved);
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::verify::alike::{Relation, relation};
    use crate::solve::Rotation;
    use ndarray::IxDyn;

    const TOKENS: usize = 160;
    const CHANNELS: usize = 32;

    fn noise(seed: usize) -> f32 {
        let mut x = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^= x >> 31;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    fn float() -> Captured {
        let value = ArrayD::from_shape_fn(IxDyn(&[2, TOKENS / 2, CHANNELS]), |i| {
            let offset = i[2] as f32 / 8.0;
            offset + noise((i[0] * TOKENS / 2 + i[1]) * CHANNELS + i[2])
        });
        Captured {
            value,
            halves: (0..TOKENS)
                .map(|t| (t % 9 != 0).then_some(t / 80 % 2))
                .collect(),
        }
    }

    /// What the quantized model has: `change` of every token, with noise.
    fn changed(strength: f32, change: impl Fn(&[f32]) -> Vec<f32>) -> ArrayD<f32> {
        let mut value = float().value;
        for (t, mut token) in value.rows_mut().into_iter().enumerate() {
            let new = change(&token.to_vec());
            let noisy = new.iter().enumerate();
            let noisy = noisy.map(|(c, v)| v + strength * noise(77_000 + t * CHANNELS + c));
            token.iter_mut().zip(noisy).for_each(|(old, v)| *old = v);
        }
        value
    }

    /// It is related, and both ways lead to the other value.
    fn is_undone(o: &ArrayD<f32>, kind: fn(&Relation) -> bool) {
        let float = float();
        let found = relation(&float, o, true);
        assert!(kind(&found), "{found:?}");
        for (made, wanted) in [
            (found.back(o), &float.value),
            (found.forth(&float.value), o),
        ] {
            let error = (&made - wanted).mapv(|e| e * e).sum();
            assert!(error < 0.01 * wanted.mapv(|e| e * e).sum(), "{error}");
        }
    }

    #[test]
    fn channels_in_another_order_under_a_scale() {
        let o = changed(0.02, |x| {
            let moved = |c: usize| (x[(c * 7 + 3) % CHANNELS] - 0.5) / (1.0 + c as f32 / 4.0);
            (0..CHANNELS).map(moved).collect()
        });
        is_undone(&o, |r| matches!(r, Relation::Reordered(..)));
    }

    #[test]
    fn channels_that_are_mixed_within_heads() {
        for size in [8, 16] {
            let rotation = Rotation::heads(CHANNELS, size, 1).unwrap();
            let o = changed(0.02, |x| {
                let scaled = x.iter().enumerate();
                let mut scaled: Vec<f32> = scaled
                    .map(|(c, v)| (v - 1.0) / (1.0 + c as f32 / 8.0))
                    .collect();
                rotation.rotate_tokens(&mut scaled);
                scaled
            });
            is_undone(&o, |r| matches!(r, Relation::Mixed(_)));
        }
    }

    /// Noise, and values of another place of the model, are no mixture.
    #[test]
    fn what_fits_by_chance_is_neither() {
        for strength in [3.0, 30.0] {
            assert_eq!(
                relation(&float(), &changed(strength, <[f32]>::to_vec), true),
                Relation::Same
            );
        }
        let other = changed(0.0, |x| {
            x.iter().map(|v| noise((v * 1e6) as usize)).collect()
        });
        assert!(!matches!(
            relation(&float(), &other, true),
            Relation::Mixed(_) | Relation::Reordered(..)
        ));
    }
}
