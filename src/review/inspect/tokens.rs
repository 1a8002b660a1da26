//! Which tokens of a value stick out.
//!
//! ```text
//! size of a token x: [C]     m_t = max_j |x_tj|          token ratio = max_t m_t / median_t m_t
//! ```
//!
//! The largest are those of all tokens, the median is that of a sample. A ratio far above 1 is what no scale per channel
//! takes away and a rotation spreads ([`crate::solve::Rotation`]).

use std::collections::BTreeMap;

use super::facts::{Outliers, TokenFacts};
use crate::calibrate::{ChannelStats, LargeToken};

/// The largest tokens of values, and the ids of tokens.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// By the name of the value, the largest first.
    pub largest: BTreeMap<String, Vec<LargeToken>>,
    /// By row, and place in a sequence of that length: what the input of token ids holds.
    pub ids: BTreeMap<(u64, (usize, usize)), i64>,
}

impl Tokens {
    /// Adds what is known of the tokens of a value.
    pub(super) fn explain(
        &self,
        value: &str,
        stats: &ChannelStats,
        mut seen: Outliers,
    ) -> Outliers {
        let median = median(stats);
        let ratio = |size: f32| (median > 0.0).then(|| size / median);
        let facts = |token: &LargeToken| TokenFacts {
            row: token.row,
            position: token.place.map(|(position, _)| position),
            id: token
                .place
                .and_then(|place| self.ids.get(&(token.row, place)).copied()),
            channel: token.channel,
            value: token.value,
            ratio: ratio(token.value.abs()),
        };
        seen.tokens = self
            .largest
            .get(value)
            .into_iter()
            .flatten()
            .map(facts)
            .collect();
        seen.median_token = median;
        seen.token_ratio = seen.tokens.first().and_then(|t| t.ratio);
        seen
    }
}

/// The median of max |x| over the sampled tokens of both halves; 0 without any.
fn median(stats: &ChannelStats) -> f32 {
    let samples = stats.folds.iter().flat_map(|fold| fold.sample.rows());
    let size = |token: ndarray::ArrayView1<f32>| token.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let mut sizes: Vec<f32> = samples.map(size).collect();
    sizes.sort_by(f32::total_cmp);
    match sizes.len() {
        0 => 0.0,
        n => (sizes[(n - 1) / 2] + sizes[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::FoldStats;
    use ndarray::array;

    fn stats(samples: [ndarray::Array2<f32>; 2]) -> ChannelStats {
        let folds = samples.map(|sample| FoldStats {
            min: vec![-40.0; 2],
            max: vec![5.0; 2],
            tokens: 3,
            sample,
            places: Vec::new(),
            weights: None,
        });
        ChannelStats { rank: 3, folds }
    }

    #[test]
    fn a_token_is_told_by_its_place_its_id_and_the_median_token() {
        let stats = stats([
            array![[1.0, -2.0], [0.0, 1.0]],
            array![[3.0, 0.5], [-40.0, 5.0]],
        ]);
        let token = |row, place| LargeToken {
            row,
            vector: 7,
            place,
            channel: 0,
            value: -40.0,
        };
        let tokens = Tokens {
            largest: [("x".to_owned(), vec![token(2, Some((0, 9))), token(3, None)])].into(),
            ids: [((2, (0, 9)), 101)].into(),
        };
        let seen = tokens.explain("x", &stats, Outliers::default());
        assert_eq!((seen.median_token, seen.token_ratio), (2.5, Some(16.0)));
        let places: Vec<_> = seen
            .tokens
            .iter()
            .map(|t| (t.row, t.position, t.id))
            .collect();
        assert_eq!(places, [(2, Some(0), Some(101)), (3, None, None)]);
        // Nothing is known of another value's tokens.
        let other = tokens.explain("y", &stats, Outliers::default());
        assert_eq!((other.token_ratio, other.tokens.len()), (None, 0));
    }

    #[test]
    fn silence_has_no_ratio() {
        let stats = stats([array![[0.0, 0.0]], ndarray::Array2::zeros((0, 2))]);
        let seen = Tokens::default().explain("x", &stats, Outliers::default());
        assert_eq!((seen.median_token, seen.token_ratio), (0.0, None));
    }
}
