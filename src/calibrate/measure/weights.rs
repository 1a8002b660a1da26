//! What the error of a token counts.
//!
//! A norm divides every token by its size. So what a Linear adds to the stream that is normed behind it counts in relation to the
//! size of the same token there,
//!
//! ```text
//! weight_t = 1 / Σ_c (x_tc − mean(x_t))²          x: [T, C], the stream as the norm reads it
//! ```
//!
//! Without weights, a few tokens that are a hundred times larger than the others have all the error that counts.

use crate::calibrate::measure::channel_stats::{ChannelStats, FoldStats};
use crate::calibrate::measure::sizes::size;

/// The size that a smaller token is taken for, over the median.
const SMALLEST_TOKEN: f32 = 0.01;

/// The mean size of tokens over the median from which on they differ so much that each counts for itself. Where they are
/// alike, weights of their own made the unseen result of small models 0.1 dB worse, on average.
const UNLIKE: f32 = 1.5;

impl FoldStats {
    /// Lets the error of a token count by one over its size, where `stream` has the sizes of the same tokens, `[T, 1]`, or
    /// the tokens themselves, `[T, C]`.
    ///
    /// Nothing changes if they are of other tokens. What is far smaller than most is taken for larger, so that no token
    /// decides alone. Where the tokens are alike, all count the same.
    fn weigh(&mut self, stream: &FoldStats) {
        if stream.places != self.places || self.places.is_empty() {
            return;
        }
        let tokens = stream.sample.view();
        let sizes: Vec<f32> = match tokens.ncols() {
            1 => tokens.iter().copied().collect(),
            _ => tokens.rows().into_iter().map(size).collect(),
        };
        if let Some(weights) = weights_of(&sizes) {
            self.weights = Some(weights);
        }
    }
}

/// What the error of each token counts, by the sizes of all in the stream; `None` if these tell nothing.
pub fn weights_of(sizes: &[f32]) -> Option<Vec<f32>> {
    let mut sorted = sizes.to_vec();
    sorted.sort_by(f32::total_cmp);
    let median = *sorted.get(sorted.len() / 2)?;
    let mean = sizes.iter().sum::<f32>() / sizes.len() as f32;
    let weight = |&size: &f32| match mean > UNLIKE * median {
        true => 1.0 / size.max(SMALLEST_TOKEN * median),
        false => 1.0 / mean,
    };
    (median > 0.0 && mean.is_finite()).then(|| sizes.iter().map(weight).collect())
}

impl ChannelStats {
    /// Lets the error of every token of both halves count by one over its size in the `stream`, where that is of the same tokens.
    pub fn weigh(&mut self, stream: &ChannelStats) {
        for (fold, stream) in self.folds.iter_mut().zip(&stream.folds) {
            fold.weigh(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    fn fold(sample: Array2<f32>, places: &[(u64, u64)]) -> FoldStats {
        FoldStats {
            min: Vec::new(),
            max: Vec::new(),
            tokens: sample.nrows() as u64,
            sample,
            places: places.to_vec(),
            weights: None,
        }
    }

    const PLACES: [(u64, u64); 3] = [(0, 0), (0, 1), (2, 5)];

    fn weights(stream: Array2<f32>, places: &[(u64, u64)]) -> Option<Vec<f32>> {
        let mut own = fold(Array2::zeros((3, 2)), &PLACES);
        own.weigh(&fold(stream, places));
        own.weights
    }

    #[test]
    fn an_error_counts_in_relation_to_its_token() {
        // The mean of a token is none of its size: 2, 8 and 5000 over both channels.
        let tokens = array![[6.0, 4.0], [1.0, 5.0], [50.0, -50.0]];
        let found = weights(tokens, &PLACES).unwrap();
        assert_eq!(found, [0.5, 0.125, 1.0 / 5000.0]);
        // The sizes themselves are as good; what is nearly nothing counts as a hundredth of the median.
        let found = weights(array![[0.0], [8.0], [5000.0]], &PLACES).unwrap();
        assert_eq!(found, [12.5, 0.125, 1.0 / 5000.0]);
    }

    #[test]
    fn tokens_alike_count_the_same() {
        let found = weights(array![[2.0], [3.0], [4.0]], &PLACES).unwrap();
        assert_eq!(found, [1.0 / 3.0; 3]);
    }

    #[test]
    fn other_tokens_and_nothing_at_all_say_nothing() {
        let other = [(0, 0), (0, 1), (2, 6)];
        assert_eq!(weights(array![[2.0], [3.0], [400.0]], &other), None);
        assert_eq!(weights(Array2::zeros((3, 1)), &PLACES), None);
        assert_eq!(
            weights(array![[f32::MAX], [f32::MAX], [1.0]], &PLACES),
            None
        );
    }
}
