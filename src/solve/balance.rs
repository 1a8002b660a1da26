//! Shift and scale that are made for a rotation.
//!
//! A [`Rotation`](super::Rotation) spreads what sticks out, so the scale need not cut the largest channel down. What is left
//! of the error is the step of `x'`, which grows with the energy of `(x − z) / s`, times the energy of `diag(s) W`. Without
//! the rotation's help their product is least for
//!
//! ```text
//! s_j = √( rms(x_j − mean_j) / rms(W_j) )        z_j = mean_j
//! ```
//!
//! over the tokens and the columns of all Linears (Cauchy and Schwarz: `Σ x_j²/s_j² · Σ s_j² W_j²` is least where both
//! sums have the same terms). Measured on eleven models it is within 0.5 dB of the best searched one on average; not always,
//! so there are others to choose from: [`Balance`].

use ndarray::{ArrayView2, Axis};

use super::{Fold, migration};

/// What part of its median the rms of a channel is at least: dead channels must not get all the precision. Behind a ReLU
/// with many dead channels the closed form without a floor lost 2 dB.
const FLOOR: f32 = 0.2;

/// What part of its extreme over all tokens the rms of a channel is at least: that of one burst among a hundred tokens. A
/// channel that fires for few tokens may be dead in a sample. On an ALBERT 0 took the whole gain away; 0.04 to 0.25 gained
/// 1.1 to 2.1 dB, and differed by 0.1 dB on MiniLM.
const BURST: f32 = 0.1;

/// Scales beyond this factor of their geometric mean, both ways, are cut.
const LARGEST: f32 = 1e4;

/// How the scale before a rotation is found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Balance {
    /// No scale.
    None,
    /// `s_j = √(rms(x_j − mean_j) / rms(W_j))`.
    Both,
    /// `s_j = √rms(x_j − mean_j)`: the weights stay out of it.
    Activation,
    /// `s_j = max(1, extreme_j / t)` for a threshold t: the scale of the search without rotation.
    Threshold(f32),
    /// `s_j = extreme_j^α`, of x after the shift.
    Largest(f32),
    /// `s_j = (mean |x_j − z_j|)^α` (as AWQ does, Lin et al., MLSys 2024).
    Magnitude(f32),
}

/// What the closed forms know of the channels of a site. Channels that are tied have the numbers of all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Channels {
    /// Mean over the tokens, `[C]`.
    pub mean: Vec<f32>,
    /// rms of x − mean over the tokens, `[C]`, or a part of its extreme.
    pub deviation: Vec<f32>,
}

impl Channels {
    /// Those of the sample of a fold.
    pub fn of(fold: &Fold, ties: Option<&[u32]>) -> Self {
        let tokens = fold.sample.nrows().max(1) as f64;
        let channels = fold.sample.ncols();
        let (mut sums, mut squares) = (vec![0.0f64; channels], vec![0.0f64; channels]);
        for row in fold.sample.rows() {
            for ((sum, square), &v) in sums.iter_mut().zip(&mut squares).zip(row) {
                *sum += f64::from(v);
                *square += f64::from(v) * f64::from(v);
            }
        }
        let [sums, squares] = [sums, squares].map(|v| joined(v, ties));
        let moments = sums.iter().zip(&squares).zip(fold.min.iter().zip(fold.max));
        let moments = moments.map(|((sum, square), (min, max))| {
            let mean = sum / tokens;
            let deviation = (square / tokens - mean * mean).max(0.0).sqrt() as f32;
            let mean = mean as f32;
            let extreme = (max - mean).max(mean - min);
            (mean, deviation.max(BURST * extreme))
        });
        let (mean, deviation) = moments.unzip();
        Self { mean, deviation }
    }
}

/// rms of every row of the weights side by side, `w: [C, N]`: `[C]`.
pub fn row_rms(w: ArrayView2<f32>, ties: Option<&[u32]>) -> Vec<f32> {
    let columns = w.ncols().max(1) as f64;
    let square = |row: ndarray::ArrayView1<f32>| {
        row.iter()
            .map(|&v| f64::from(v) * f64::from(v))
            .sum::<f64>()
    };
    let squares = w.axis_iter(Axis(0)).map(square).collect();
    let rms = |square: f64| (square / columns).sqrt() as f32;
    joined(squares, ties).into_iter().map(rms).collect()
}

/// Mean of each group of tied channels, at every one of them.
fn joined(mut values: Vec<f64>, ties: Option<&[u32]>) -> Vec<f64> {
    let Some(ties) = ties else {
        return values;
    };
    let mut groups = vec![(0.0, 0u32); values.len()];
    for (value, &group) in values.iter().zip(ties) {
        let group = &mut groups[group as usize];
        *group = (group.0 + value, group.1 + 1);
    }
    for (value, &group) in values.iter_mut().zip(ties) {
        let (sum, count) = groups[group as usize];
        *value = sum / f64::from(count);
    }
    values
}

impl Balance {
    /// The scale, `[C]`, for `weights`, the rms of the rows of W; `None` if it is 1 everywhere.
    pub fn scale(
        self,
        channels: &Channels,
        weights: &[f32],
        shift: Option<&[f32]>,
        (fold, ties): (&Fold, Option<&[u32]>),
    ) -> Option<Vec<f32>> {
        let power = |values: Vec<f32>, alpha: f32| {
            let values = floored(&values)?;
            normalized(values.iter().map(|v| v.powf(alpha)).collect())
        };
        let root = |values: Vec<f32>| {
            let roots: Vec<f32> = values.iter().map(|v| v.sqrt()).collect();
            normalized(roots)
        };
        match self {
            Balance::None => None,
            Balance::Threshold(t) => {
                migration::scale(&migration::extremes(fold.min, fold.max, shift), t)
            }
            Balance::Largest(alpha) => power(migration::extremes(fold.min, fold.max, shift), alpha),
            Balance::Magnitude(alpha) => power(magnitudes(fold, shift, ties), alpha),
            Balance::Activation => root(floored(&channels.deviation)?),
            Balance::Both => {
                let (x, w) = (floored(&channels.deviation)?, floored(weights)?);
                root(x.iter().zip(&w).map(|(x, w)| x / w).collect())
            }
        }
    }
}

/// `mean |x_j − z_j|` over the tokens, `[C]`, or a part of the extreme.
fn magnitudes(fold: &Fold, shift: Option<&[f32]>, ties: Option<&[u32]>) -> Vec<f32> {
    let tokens = fold.sample.nrows().max(1) as f64;
    let mut sums = vec![0.0f64; fold.sample.ncols()];
    for row in fold.sample.rows() {
        for (j, (sum, &v)) in sums.iter_mut().zip(row).enumerate() {
            *sum += f64::from((v - shift.map_or(0.0, |z| z[j])).abs());
        }
    }
    let extremes = migration::extremes(fold.min, fold.max, shift);
    let means = joined(sums, ties).into_iter().map(|s| (s / tokens) as f32);
    let bursts = extremes.iter().map(|e| BURST * BURST * e);
    means
        .zip(bursts)
        .map(|(mean, burst)| mean.max(burst))
        .collect()
}

/// Values of at least [`FLOOR`] times their median (or, if that is 0, their mean); `None` if all are 0.
fn floored(values: &[f32]) -> Option<Vec<f32>> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let median = *sorted.get(sorted.len() / 2)?;
    let typical = match median > 0.0 {
        true => median,
        false => values.iter().sum::<f32>() / values.len() as f32,
    };
    let floor = FLOOR * typical;
    let usable = floor.is_normal() && values.iter().all(|v| v.is_finite());
    usable.then(|| values.iter().map(|v| v.max(floor)).collect())
}

/// Scales over their geometric mean, so that they are near 1.
fn normalized(mut scale: Vec<f32>) -> Option<Vec<f32>> {
    let logs: f64 = scale.iter().map(|&s| f64::from(s).ln()).sum();
    // The mean is rounded to a power of two: multiplying by it is exact, whatever the last bit of a logarithm is.
    let power = (logs / scale.len().max(1) as f64 / std::f64::consts::LN_2).round();
    let mean = 2f64.powi(power as i32) as f32;
    for s in &mut scale {
        *s = (*s / mean).clamp(1.0 / LARGEST, LARGEST);
    }
    scale.iter().any(|s| *s != 1.0).then_some(scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    fn fold<'a>(sample: &'a Array2<f32>, min: &'a [f32], max: &'a [f32]) -> Fold<'a> {
        Fold {
            min,
            max,
            sample: sample.view(),
            weights: None,
        }
    }

    #[test]
    fn means_and_deviations() {
        let sample = array![[1.0f32, 5.0, -2.0], [3.0, 5.0, 2.0]];
        let fold = fold(&sample, &[1., 5., -2.], &[3., 5., 2.]);
        let channels = Channels::of(&fold, None);
        assert_eq!(channels.mean, [2.0, 5.0, 0.0]);
        assert_eq!(channels.deviation, [1.0, 0.0, 2.0]);
        // Channels 0 and 2 as one: values 1, 3, −2, 2.
        let tied = Channels::of(&fold, Some(&[0, 1, 0]));
        assert_eq!(tied.mean, [1.0, 5.0, 1.0]);
        assert_eq!(tied.deviation[0], tied.deviation[2]);
        assert!((tied.deviation[0] - 3.5f32.sqrt()).abs() < 1e-6);
        assert_eq!(
            row_rms(array![[3.0f32, 4.0], [0.0, 0.0]].view(), None),
            [12.5f32.sqrt(), 0.0]
        );
    }

    /// No scale near the closed form has a smaller product of energies.
    #[test]
    fn the_closed_form_is_least() {
        let channels = Channels {
            mean: vec![0.0; 4],
            deviation: vec![1.0, 8.0, 0.5, 2.0],
        };
        let weights = [0.5f32, 1.0, 0.25, 4.0];
        let empty = Array2::zeros((0, 4));
        let fold = fold(&empty, &[], &[]);
        let scale = Balance::Both
            .scale(&channels, &weights, None, (&fold, None))
            .unwrap();
        let energy = |s: &[f32]| {
            let terms = |f: &dyn Fn(usize) -> f32| (0..4).map(|j| f(j).powi(2)).sum::<f32>();
            terms(&|j| channels.deviation[j] / s[j]) * terms(&|j| s[j] * weights[j])
        };
        let best = energy(&scale);
        for j in 0..4 {
            for factor in [0.9, 1.1] {
                let mut other = scale.clone();
                other[j] *= factor;
                assert!(energy(&other) > best);
            }
        }
    }

    #[test]
    fn dead_channels_have_a_floor() {
        let channels = Channels {
            mean: vec![0.0; 4],
            deviation: vec![0.0, 4.0, 4.0, 4.0],
        };
        let empty = Array2::zeros((0, 4));
        let fold = fold(&empty, &[], &[]);
        let scale = |c: &Channels| Balance::Activation.scale(c, &[1.0; 4], None, (&fold, None));
        let found = scale(&channels).unwrap();
        assert!((found[1] / found[0] - (1.0 / FLOOR).sqrt()).abs() < 1e-5);
        let dead = Channels {
            mean: vec![0.0; 4],
            deviation: vec![0.0; 4],
        };
        assert_eq!(scale(&dead), None);
        assert_eq!(
            Balance::None.scale(&channels, &[1.0; 4], None, (&fold, None)),
            None
        );
    }
}
