//! Shift, scale and range from per-channel extremes: the closed-form half of Outlier Suppression+.
//!
//! Per-channel `min, max: [C]` → shift `z` ([`shift`]) → extremes after the shift ([`extremes`]) → scale `s` for a
//! threshold ([`scale`]) → range of `x' = (x − z) / s` ([`Migration::range`]). A rotation behind them mixes channels, so
//! that its range has to be seen on tokens ([`Migration::range_of`]).

use super::wide::wide;
use super::{Fold, Rotation};
use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};

/// Which channels the shift moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ShiftKind {
    /// No channel: z = 0.
    None,
    /// Only channels whose values never change sign: there 0 is not worth a level of its own.
    OneSided,
    /// Every channel, as in the paper.
    MidRange,
    /// Every channel, by its mean over the tokens: before a rotation.
    Mean,
}

/// A per-channel affine of one value and a rotation behind it: `x' = ((x − z) / s) R`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Migration {
    /// z, `[C]`; `None` = 0.
    pub shift: Option<Vec<f32>>,
    /// s, `[C]`, all positive; `None` = 1.
    pub scale: Option<Vec<f32>>,
    /// R; `None` = I.
    pub rotation: Option<Rotation>,
}

impl Migration {
    /// `(x − z) / s` of one value of channel `j`.
    #[inline]
    pub fn apply(&self, j: usize, x: f32) -> f32 {
        let shifted = self.shift.as_ref().map_or(x, |z| x - z[j]);
        self.scale.as_ref().map_or(shifted, |s| shifted / s[j])
    }

    /// x' of whole tokens: `x, out: [T, C]`, row-major.
    pub(crate) fn apply_rows(&self, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
        if let Some(z) = self.shift.as_ref().filter(|z| !z.is_empty()) {
            subtract(out, z);
        }
        if let Some(s) = self.scale.as_ref().filter(|s| !s.is_empty()) {
            divide(out, s);
        }
        if let Some(r) = &self.rotation {
            r.rotate_tokens(out);
        }
    }

    /// x' of `x: [T, C]`; if `centred`, less the mean of each channel.
    pub fn tokens(&self, x: &Array2<f32>, centred: bool) -> Array2<f32> {
        let mut out = Array2::zeros(x.raw_dim());
        let x = x.as_standard_layout();
        if let (Some(x), Some(out)) = (x.as_slice(), out.as_slice_mut()) {
            self.apply_rows(x, out);
        }
        if let Some(mean) = out.mean_axis(Axis(0)).filter(|_| centred) {
            out -= &mean;
        }
        out
    }

    /// (smallest, largest) x' over the tokens of a fold.
    ///
    /// What a rotation makes of tokens that are not in the sample is not known. The range is that of the sample, unless a channel
    /// has been so much larger in another token that the rotation cannot bring it into that range.
    pub fn range_of(&self, fold: &Fold) -> (f32, f32) {
        match self.rotation {
            None => self.range(fold.min, fold.max),
            Some(_) => self.range_of_rotated(fold, &self.tokens(&fold.sample.to_owned(), false)),
        }
    }

    /// [`Migration::range_of`] over the tokens of several folds; those without a sample are left out.
    pub fn range_of_all<'a>(&self, folds: impl IntoIterator<Item = Fold<'a>>) -> (f32, f32) {
        let known = folds.into_iter().filter(|f| f.sample.nrows() > 0);
        let wider = |a: (f32, f32), b: (f32, f32)| (a.0.min(b.0), a.1.max(b.1));
        let ranges = known.map(|fold| self.range_of(&fold));
        ranges.reduce(wider).unwrap_or((0.0, 0.0))
    }

    /// [`Migration::range_of`] a fold whose sample has become `x: [T, C]`.
    pub(super) fn range_of_rotated(&self, fold: &Fold, x: &Array2<f32>) -> (f32, f32) {
        let range = |(low, high): (f32, f32), &v: &f32| (low.min(v), high.max(v));
        let (low, high) = x.iter().fold((0.0, 0.0), range);
        let growth = self.unseen(fold, x) / high.max(-low);
        match growth > 1.0 && growth.is_finite() {
            true => (low * growth, high * growth),
            false => (low, high),
        }
    }

    /// The largest value that is to be expected of a token that is not in the sample, whose largest channel is that of all
    /// tokens: a rotation spreads it to `e / √C`, beside the largest value of an ordinary token `x: [T, C]`.
    fn unseen(&self, fold: &Fold, x: &Array2<f32>) -> f32 {
        let channels = fold.min.iter().zip(fold.max).enumerate();
        let extreme = channels.fold(0.0f32, |largest, (j, (&min, &max))| {
            largest.max(self.apply(j, min).abs().max(self.apply(j, max).abs()))
        });
        let largest =
            |row: ndarray::ArrayView1<f32>| row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let mut ordinary: Vec<f32> = x.rows().into_iter().map(largest).collect();
        ordinary.sort_by(f32::total_cmp);
        let median = ordinary.get(ordinary.len() / 2).copied().unwrap_or(0.0);
        extreme / (x.ncols().max(1) as f32).sqrt() + median
    }

    /// (smallest, largest) x' over all channels, from the channels' extremes before, where nothing is rotated. (0, 0) if
    /// there is no channel.
    pub fn range(&self, min: &[f32], max: &[f32]) -> (f32, f32) {
        let range = min.iter().zip(max).enumerate().fold(
            (f32::INFINITY, f32::NEG_INFINITY),
            |(low, high), (j, (&min, &max))| {
                (low.min(self.apply(j, min)), high.max(self.apply(j, max)))
            },
        );
        if range.0 <= range.1 {
            range
        } else {
            (0.0, 0.0)
        }
    }
}

wide! {
    fn subtract(rows: &mut [f32], z: &[f32]) = subtract_rows;
}

wide! {
    fn divide(rows: &mut [f32], s: &[f32]) = divide_rows;
}

#[inline(always)]
fn subtract_rows(rows: &mut [f32], z: &[f32]) {
    for row in rows.chunks_exact_mut(z.len()) {
        row.iter_mut().zip(z).for_each(|(v, z)| *v -= z);
    }
}

#[inline(always)]
fn divide_rows(rows: &mut [f32], s: &[f32]) {
    for row in rows.chunks_exact_mut(s.len()) {
        row.iter_mut().zip(s).for_each(|(v, s)| *v /= s);
    }
}

/// The shift `z_j = (max_j + min_j) / 2` (paper, equation 4) for the channels that `kind` moves, 0 for the others;
/// `None` if it moves none.
pub fn shift(kind: ShiftKind, min: &[f32], max: &[f32]) -> Option<Vec<f32>> {
    let moves = |min: f32, max: f32| match kind {
        ShiftKind::None => false,
        ShiftKind::OneSided => min > 0.0 || max < 0.0,
        ShiftKind::MidRange => true,
        // The extremes do not tell it: see `balance::Channels`.
        ShiftKind::Mean => false,
    };
    // Halves are added, not the sum halved: the sum could overflow.
    let z: Vec<f32> = min
        .iter()
        .zip(max)
        .map(|(&min, &max)| {
            if moves(min, max) {
                0.5 * min + 0.5 * max
            } else {
                0.0
            }
        })
        .collect();
    z.iter().any(|&z| z != 0.0).then_some(z)
}

/// Largest magnitude of every channel after the shift: `max(|max_j − z_j|, |min_j − z_j|)`, `[C]`.
pub fn extremes(min: &[f32], max: &[f32], shift: Option<&[f32]>) -> Vec<f32> {
    min.iter()
        .zip(max)
        .enumerate()
        .map(|(j, (&min, &max))| {
            let z = shift.map_or(0.0, |z| z[j]);
            (min - z).abs().max((max - z).abs())
        })
        .collect()
}

/// The scale `s_j = max(1, extreme_j / t)` (paper, equation 8) for a threshold `t > 0`; `None` if no channel exceeds it.
pub fn scale(extremes: &[f32], t: f32) -> Option<Vec<f32>> {
    extremes
        .iter()
        .any(|&e| e > t)
        .then(|| extremes.iter().map(|&e| (e / t).max(1.0)).collect())
}
