//! What is known of the channels of a value.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::Array2;

/// How statistics are taken.
#[derive(Debug, Clone)]
pub struct StatOptions {
    /// Most tokens kept per value and fold.
    pub sample_tokens: usize,
    /// Seed of the choice of tokens.
    pub seed: u64,
    /// Batches run at the same time; 0 for one per core.
    pub threads: usize,
    /// Those of the values whose channels are on the first of two axes, `[C, tokens]` (the input of a Gemm with transA).
    pub channels_first: BTreeSet<String>,
    /// Those of the values of which no tokens are kept, only the extremes.
    pub extremes_only: BTreeSet<String>,
    /// Those of which only the size of every token is kept, `Σ_c (x_c − mean(x))²`: one channel in place of C.
    pub sizes_only: BTreeSet<String>,
}

impl StatOptions {
    /// Whether statistics of the value `name` may have been taken like this: of all tokens or of as many as are kept here, with a
    /// size in place of the channels where that is asked for.
    pub fn could_give(&self, name: &str, stats: &ChannelStats) -> bool {
        let wanted = match self.extremes_only.contains(name) {
            true => 0,
            false => self.sample_tokens as u64,
        };
        let sampled = |fold: &FoldStats| fold.sample.nrows() as u64 == fold.tokens.min(wanted);
        let channels = stats.folds[0].min.len();
        let sizes = self.sizes_only.contains(name) == (channels == 1);
        (self.extremes_only.contains(name) || stats.folds.iter().all(sampled)) && sizes
    }
}

/// Statistics of one value `x: [tokens, C]` (last axis C); padding never enters.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelStats {
    /// Number of axes of the value at run time.
    pub rank: usize,
    /// Two halves of the tokens: rows of even number, rows of odd number. If there is only one row, or the value belongs
    /// to no row: even positions, odd positions. If one half has no tokens, both hold all of them.
    pub folds: [FoldStats; 2],
}

/// Statistics of one half of the tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct FoldStats {
    /// Smallest value per channel, over all tokens: `[C]`.
    pub min: Vec<f32>,
    /// Largest value per channel, over all tokens: `[C]`.
    pub max: Vec<f32>,
    /// Tokens seen.
    pub tokens: u64,
    /// A random choice of the tokens in the order of row and position: `[T, C]`, T ≤ [`StatOptions::sample_tokens`].
    pub sample: Array2<f32>,
    /// Row and position of the tokens of the sample. Values with the same tokens have the same sample.
    pub places: Vec<(u64, u64)>,
    /// What the squared error of each token of the sample counts; none if all count the same.
    pub weights: Option<Vec<f32>>,
}

/// Statistics of values by their names.
pub type Statistics = BTreeMap<String, ChannelStats>;
