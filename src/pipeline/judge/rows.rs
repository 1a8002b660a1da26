//! Which of the held-out rows judge the result: a part of them, if that tells.
//!
//! Running models is most of what a run of the tool costs, and of thousand rows a dozen show that migration has gained
//! 5 dB. So original, result and plain min-max are compared on few rows first, and only if those leave a doubt on all
//! ([`super::super::verdict::is_clearly_above`]). Who asks for a figure, with `--min-sqnr` or `--keep-float`, gets it of all.

use std::collections::BTreeSet;

use crate::calibrate::{Batch, Dataset, Split, Switches};
use crate::options::Options;
use crate::solve::Method;

/// The least to judge by; fewer rows do not tell how much they vary.
const ROWS: usize = 4;
const TOKENS: usize = 512;

/// Tokens of a row that does not tell how many it has, as an image.
const TOKENS_OF_A_ROW: usize = 128;

/// Tokens, about, on which the responses of blocks are computed. MiniLM-L6, six layers of SmolLM2 and a BERT of hidden 256 have the
/// same on unseen rows with 384, 512 and 1024 at 4, 6 and 8 bits, within 0.2 dB.
const RESPONSE_TOKENS: usize = 384;

/// The data of a run, by what it is for.
pub(crate) struct Rows {
    /// Two rows, for shapes.
    pub small: Vec<Batch>,
    /// Rows that set ranges.
    pub calibration: Vec<Batch>,
    /// A few of those, whole sequences, on which blocks are run.
    pub sequences: Option<Batch>,
    /// Rows that judge the result.
    pub judging: Vec<Batch>,
    /// Rows that judge in case of doubt.
    pub reserve: Vec<Batch>,
    /// False if there are too few rows to hold any out: then those that judge are those that set ranges.
    pub held_out: bool,
}

impl Rows {
    /// The rows of a run.
    pub(crate) fn of(data: &Dataset, options: &Options) -> Rows {
        let split = data.split();
        let (judging, reserve) = judging(&split, options);
        Rows {
            small: data.small_batches(),
            sequences: data.sequences(RESPONSE_TOKENS),
            held_out: split.held_out_used,
            calibration: split.calibration,
            judging,
            reserve,
        }
    }
}

/// The held-out batches that judge first, and those in reserve.
fn judging(split: &Split, options: &Options) -> (Vec<Batch>, Vec<Batch>) {
    let asks = options.keep_float.is_some() || options.min_sqnr_db.is_some();
    let compares = options.format.quantizes() && options.method != Method::None;
    if asks || !compares || !split.held_out_used {
        return (split.held_out.clone(), Vec::new());
    }
    let numbers = enough(&split.held_out);
    let numbered = split.held_out.iter().cloned().enumerate();
    let (first, rest): (Vec<_>, Vec<_>) = numbered.partition(|(i, _)| numbers.contains(i));
    let batches = |numbered: Vec<(usize, Batch)>| numbered.into_iter().map(|(_, b)| b).collect();
    (batches(first), batches(rest))
}

/// The smallest choice of batches, evenly spaced, that has enough rows and tokens and every setting of the switches.
fn enough(batches: &[Batch]) -> BTreeSet<usize> {
    fewest(batches, &first_of_setting(batches), ROWS, TOKENS)
}

/// The smallest choice of batches, evenly spaced, that has so many rows and tokens, `always` among them; all if none has.
pub(in crate::pipeline) fn fewest(
    batches: &[Batch],
    always: &BTreeSet<usize>,
    rows: usize,
    tokens: usize,
) -> BTreeSet<usize> {
    let mut choices = (1..=batches.len()).map(|n| {
        let evenly = spread(batches.len(), n);
        evenly.chain(always.iter().copied()).collect()
    });
    let all = (0..batches.len()).collect();
    let suffices = |chosen: &BTreeSet<usize>| {
        let sum =
            |count: fn(&Batch) -> usize| chosen.iter().map(|&i| count(&batches[i])).sum::<usize>();
        sum(|b| b.rows.len()) >= rows && sum(tokens_of) >= tokens
    };
    choices.find(suffices).unwrap_or(all)
}

/// The first batch of every setting of the switches.
pub(in crate::pipeline) fn first_of_setting(batches: &[Batch]) -> BTreeSet<usize> {
    let mut settings: Vec<Switches> = Vec::new();
    let new = |(i, batch): (usize, &Batch)| {
        let setting = batch.switches();
        let new = !settings.contains(&setting);
        settings.push(setting);
        new.then_some(i)
    };
    batches.iter().enumerate().filter_map(new).collect()
}

/// Real tokens of a batch, about.
fn tokens_of(batch: &Batch) -> usize {
    if let Some(mask) = batch.mask() {
        return mask.iter().filter(|real| **real).count();
    }
    let lengths = batch
        .inputs
        .values()
        .filter_map(|input| match input.shape() {
            [_, length] => Some(*length),
            _ => None,
        });
    batch.rows.len() * lengths.max().unwrap_or(TOKENS_OF_A_ROW)
}

/// What the rows are that judge, of which so many are in reserve.
pub(in crate::pipeline) fn verified_on(judging: usize, in_reserve: usize) -> String {
    match in_reserve {
        0 => format!("{judging} rows held out of calibration"),
        rest => format!(
            "{judging} of {} rows held out of calibration",
            judging + rest
        ),
    }
}

pub(in crate::pipeline) fn row_count(batches: &[Batch]) -> usize {
    batches.iter().map(|b| b.rows.len()).sum()
}

/// `n` of the numbers below `of`, evenly spaced, with the first and the last; all if there are fewer.
pub(in crate::pipeline) fn spread(of: usize, n: usize) -> impl Iterator<Item = usize> {
    let n = n.min(of);
    (0..n).map(move |i| i * (of - 1) / (n - 1).max(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::calibrate::{InputTensor, PaddingMask, Values};
    use ndarray::{ArrayD, IxDyn};

    fn batch(first: u64, rows: usize, length: usize, switch: bool) -> Batch {
        let ids = InputTensor::from_values(Values::I64(ArrayD::zeros(IxDyn(&[rows, length]))));
        let switch = InputTensor::from_values(Values::Bool(ArrayD::from_elem(IxDyn(&[1]), switch)));
        let inputs = BTreeMap::from([("ids".to_owned(), ids), ("switch".to_owned(), switch)]);
        Batch::new(inputs, (first..first + rows as u64).collect())
    }

    fn batches(n: usize, rows: usize, length: usize) -> Vec<Batch> {
        let first = |i: usize| (i * rows) as u64;
        (0..n)
            .map(|i| batch(first(i), rows, length, false))
            .collect()
    }

    fn chosen(batches: &[Batch]) -> Vec<usize> {
        enough(batches).into_iter().collect()
    }

    #[test]
    fn rows_and_tokens_are_enough_and_spread_over_the_data() {
        // 2 × 192 tokens a batch: rows and tokens of two.
        assert_eq!(chosen(&batches(4, 2, 192)), [0, 3]);
        // Four rows, whatever their length.
        assert_eq!(chosen(&batches(9, 1, 4096)), [0, 2, 5, 8]);
        // 512 tokens, however many rows.
        assert_eq!(chosen(&batches(9, 16, 8)), [0, 2, 5, 8]);
        // All, if there are no more.
        assert_eq!(chosen(&batches(2, 2, 16)), [0, 1]);
        assert_eq!(chosen(&batches(1, 8, 64)), [0]);
    }

    #[test]
    fn every_setting_of_the_switches_judges() {
        let mut batches = batches(8, 4, 512);
        assert_eq!(chosen(&batches), [0]);
        batches[5] = batch(20, 4, 512, true);
        assert_eq!(chosen(&batches), [0, 5]);
    }

    #[test]
    fn padding_is_no_token() {
        let mut batches = batches(4, 4, 512);
        for batch in &mut batches {
            let real = |(_, position): (usize, usize)| position < 40;
            batch.masks = vec![PaddingMask::new(
                "mask",
                ndarray::Array2::from_shape_fn((4, 512), real),
            )];
        }
        // 160 tokens each.
        assert_eq!(chosen(&batches), [0, 1, 2, 3]);
    }

    #[test]
    fn evenly_spaced() {
        assert_eq!(spread(12, 3).collect::<Vec<_>>(), [0, 5, 11]);
        assert_eq!(spread(2, 3).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(spread(5, 1).collect::<Vec<_>>(), [0]);
        assert_eq!(spread(0, 3).count(), 0);
    }
}
