//! What tokens beyond the range cost: how far the error on unseen tokens can be above that on the tokens of a few rows.
//!
//! After migration many channels touch the edges of the range at once. A token that is a little larger than all calibration
//! tokens is then cut in many of them, and costs as much as hundreds of others. Such tokens are rare, so a few held-out rows
//! have none of them, or several. The two halves of the calibration tokens tell how rare they are: the range of one half
//! cuts tokens of the other. All tokens have about half as many beyond their range as half of them has.

use ndarray::{Array2, ArrayView2, Axis};

use super::{ActivationSpec, Fold, Migration, WeightSpec};

/// Mean squared errors at the outputs of the Linears of a site, per token, over the mean square of these outputs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Noise {
    /// Of rounding tokens and weights.
    pub rounding: f64,
    /// Of tokens beyond the range of half the others.
    pub beyond: f64,
}

/// The noise of one site whose range is `margin` times that of its tokens.
///
/// With e_j = Σ_n (s_j W_jn)² over the Linears, the errors Δx' of channels are taken to be independent: the error at the
/// outputs is Σ_j e_j Δx'_j², and the outputs have Σ_j e_j (x'_j − mean x'_j)². Behind a rotation every channel has the mean
/// of the e_j. `None` if the halves have no tokens, or the outputs no energy.
pub fn noise(
    migration: &Migration,
    margin: f32,
    folds: [Fold; 2],
    weights: &[ArrayView2<f32>],
    (activation, weight): (&ActivationSpec, &WeightSpec),
) -> Option<Noise> {
    if folds.iter().any(|fold| fold.sample.nrows() == 0) {
        return None;
    }
    let (energies, weight_noise) = of_weights(migration, weights, weight);
    let mut sums = [0.0; 4];
    for (fit, other) in [(&folds[0], &folds[1]), (&folds[1], &folds[0])] {
        let (low, high) = migration.range_of(fit);
        let params = activation.params(low * margin, high * margin);
        let edge = |q: i32| f64::from(params.scale) * f64::from(q - params.zero_point);
        let (low, high) = (edge(params.qmin), edge(params.qmax));
        let step = f64::from(params.scale).powi(2) / 12.0;
        let x: Array2<f32> = migration.tokens(&other.sample.to_owned(), false);
        let mean = x.mean_axis(Axis(0))?;
        for (t, token) in x.rows().into_iter().enumerate() {
            let counts = other.weights.map_or(1.0, |w| f64::from(w[t]));
            for (j, &v) in token.iter().enumerate() {
                let (v, e) = (f64::from(v), counts * energies[j]);
                sums[0] += e * (v - f64::from(mean[j])).powi(2);
                sums[1] += e * step;
                sums[2] += e * (v - v.clamp(low, high)).powi(2);
                sums[3] += counts * weight_noise * v * v;
            }
        }
    }
    let [energy, rounding, beyond, of_weights] = sums;
    (energy > 0.0).then(|| Noise {
        rounding: (rounding + of_weights) / energy,
        beyond: beyond / energy,
    })
}

/// e_j of every channel, and the mean squared error of a weight summed over its columns.
fn of_weights(
    migration: &Migration,
    weights: &[ArrayView2<f32>],
    spec: &WeightSpec,
) -> (Vec<f64>, f64) {
    let channels = weights.first().map_or(0, |w| w.nrows());
    let scale = |j: usize| migration.scale.as_ref().map_or(1.0, |s| f64::from(s[j]));
    let mut energies = vec![0.0; channels];
    let mut noise = 0.0;
    for w in weights {
        for column in w.columns() {
            let mut largest = 0.0f64;
            for (j, &v) in column.iter().enumerate() {
                let v = scale(j) * f64::from(v);
                energies[j] += v * v;
                largest = largest.max(v.abs());
            }
            noise += (largest / f64::from(spec.qmax())).powi(2) / 12.0;
        }
    }
    if migration.rotation.is_some() {
        let mean = energies.iter().sum::<f64>() / channels.max(1) as f64;
        energies.fill(mean);
    }
    (energies, noise)
}

/// How many dB the SQNR of unseen tokens is below that of tokens within all ranges, by the noise of every site.
pub fn beyond_db(sites: impl IntoIterator<Item = Noise>) -> f64 {
    let (mut rounding, mut beyond) = (0.0, 0.0);
    for noise in sites {
        rounding += noise.rounding;
        // Of half the tokens; all of them have half as many beyond.
        beyond += noise.beyond / 2.0;
    }
    match rounding > 0.0 {
        true => 10.0 * (1.0 + beyond / rounding).log10(),
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    const U8: ActivationSpec = ActivationSpec {
        bits: 8,
        symmetric: false,
    };
    const I8: WeightSpec = WeightSpec {
        bits: 8,
        per_channel: true,
    };

    fn noise_of(a: &Array2<f32>, b: &Array2<f32>, migration: &Migration) -> Noise {
        let extremes = |x: &Array2<f32>| {
            let channels = x.columns().into_iter();
            let of = |f: fn(f32, f32) -> f32| {
                let channels = channels.clone();
                channels
                    .map(|c| c.iter().copied().reduce(f).unwrap())
                    .collect::<Vec<f32>>()
            };
            (of(f32::min), of(f32::max))
        };
        let ((a_min, a_max), (b_min, b_max)) = (extremes(a), extremes(b));
        let fold = |x, min, max| Fold {
            min,
            max,
            sample: x,
            weights: None,
        };
        let folds = [
            fold(a.view(), &a_min[..], &a_max[..]),
            fold(b.view(), &b_min[..], &b_max[..]),
        ];
        let w = array![[1.0f32, 2.0], [2.0, -1.0]];
        noise(migration, 1.0, folds, &[w.view()], (&U8, &I8)).unwrap()
    }

    #[test]
    fn a_token_beyond_the_range_of_the_others() {
        let calm = array![[1.0f32, -1.0], [-1.0, 1.0]];
        let none = Migration::default();
        let same = noise_of(&calm, &calm, &none);
        assert_eq!(same.beyond, 0.0);
        assert_eq!(beyond_db([same]), 0.0);
        // By hand: 0.5 beyond in one channel of one token, e = 5; energies 5 (1.25² · 2 + 1² · 2) + 5 · 4 of both halves.
        let wilder = noise_of(&calm, &array![[1.5f32, -1.0], [-1.0, 1.0]], &none);
        let expected = 0.25 * 5.0 / (5.0 * (2.0 * 1.5625 + 2.0) + 20.0);
        assert!((wilder.beyond / expected - 1.0).abs() < 0.02, "{wilder:?}");
        assert!(beyond_db([wilder]) > 20.0);
        // Where the other sites round much more, it is not seen.
        let other = Noise {
            rounding: 1.0,
            beyond: 0.0,
        };
        assert!(beyond_db([wilder, other]) < 0.1);
    }

    #[test]
    fn a_scale_changes_nothing_at_the_outputs() {
        let (calm, wild) = (
            array![[2.0f32, -1.0], [-2.0, 1.0]],
            array![[3.0f32, -1.0], [-2.0, 1.0]],
        );
        let halved = Migration {
            scale: Some(vec![2.0, 1.0]),
            ..Migration::default()
        };
        let (a, b) = (
            noise_of(&calm, &wild, &Migration::default()),
            noise_of(&calm, &wild, &halved),
        );
        assert!((a.beyond / b.beyond - 1.0).abs() < 0.02, "{a:?} {b:?}");
        assert!(b.rounding < a.rounding);
    }
}
