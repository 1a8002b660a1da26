//! Several folds of tokens as one.

use ndarray::{Array2, Axis, concatenate, s};

use super::Fold;

/// The tokens of several folds as those of one.
#[derive(Default)]
pub(super) struct Joined {
    min: Vec<f32>,
    max: Vec<f32>,
    /// Their samples, `[T, C]`.
    pub x: Array2<f32>,
    weights: Option<Vec<f32>>,
}

impl Joined {
    /// Every `every`-th token of each sample; `None` of nothing.
    pub(super) fn of<'f>(folds: impl Iterator<Item = Fold<'f>>, every: usize) -> Option<Joined> {
        let folds: Vec<Fold> = folds.collect();
        let tokens = folds.iter().map(|f| f.sample.slice_move(s![..;every, ..]));
        let pairs = |f: fn(f32, f32) -> f32, pick: fn(&Fold) -> Vec<f32>| {
            let extremes = folds.iter().map(pick);
            extremes.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect())
        };
        let weights = folds.iter().map(|f| Some(f.weights?.iter().step_by(every)));
        let weights: Option<Vec<_>> = weights.collect();
        Some(Joined {
            x: concatenate(Axis(0), &tokens.collect::<Vec<_>>()).ok()?,
            min: pairs(f32::min, |f| f.min.to_vec())?,
            max: pairs(f32::max, |f| f.max.to_vec())?,
            weights: weights.map(|w| w.into_iter().flatten().copied().collect()),
        })
    }

    pub(super) fn fold(&self) -> Fold<'_> {
        Fold {
            min: &self.min,
            max: &self.max,
            sample: self.x.view(),
            weights: self.weights.as_deref(),
        }
    }
}
