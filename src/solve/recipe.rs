//! The grid of the search, and how much of the data it looks at.

use super::ShiftKind;

/// The grid of the search.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Kinds of shift to try besides none.
    pub shifts: Vec<ShiftKind>,
    /// Coarse thresholds as fractions of the largest extreme after the shift, ascending, in a geometric row.
    pub thresholds: Vec<f32>,
    /// How often the step between thresholds is halved around the best of each kind.
    pub refinements: usize,
    /// Margins: factors on the range.
    pub margins: Vec<f32>,
    /// Margins of the coarse grid of the survey.
    pub survey_margins: Vec<f32>,
    /// Sample tokens of each fold used in the survey, at most.
    pub survey_tokens: usize,
    /// Output columns used in the survey, about.
    pub survey_columns: usize,
    /// How many pairs of shift and threshold go from the survey to the final, besides doing nothing.
    pub finalists: usize,
    /// How many margins of each finalist go to the final: the best of the survey.
    pub final_margins: usize,
    /// Sample tokens of each fold used in the final, at most.
    pub tokens: usize,
    /// Output columns used in the final, about: only a vocabulary's Linear has more.
    pub columns: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            shifts: vec![ShiftKind::OneSided, ShiftKind::MidRange],
            // 0.015 to 0.72 in steps of 1.38. On MiniLM-L6 the best are 0.1 to 0.5; starting at 0.04 gave the same unseen
            // loss there and on planted outliers, but real ratios of largest to median extreme go up to 3000.
            thresholds: (0..13)
                .map(|i| 0.015f32.powf(1.0 - i as f32 / 13.0))
                .collect(),
            refinements: 2,
            margins: vec![0.9, 1.0, 1.1, 1.2, 1.35, 1.6],
            survey_margins: vec![1.0, 1.2, 1.6],
            // 128 or 384: within ±0.2 dB of unseen SQNR on MiniLM-L6 and L3, either way.
            survey_tokens: 128,
            // 4096, 512 or 256: the same unseen SQNR within ±0.1 dB on MiniLM-L6 and L3.
            survey_columns: 256,
            // The noise model ranks nearly as the loss does: on MiniLM-L6 the best of 60 by the loss was among its first
            // 4 at 23 of 24 sites. 2 to 9 finalists with 1 to 6 margins gave the same unseen SQNR within ±0.1 dB.
            finalists: 2,
            final_margins: 1,
            // 384 or 256: the same unseen SQNR within ±0.1 dB on MiniLM-L6 and L3.
            tokens: 256,
            columns: 4096,
        }
    }
}
