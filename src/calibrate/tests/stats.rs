//! Statistics against a plain computation, padding, folds, sampling, determinism.

use std::collections::BTreeMap;

use ndarray::{Array2, Array3, Axis, Ix3, array};

use super::*;
use crate::calibrate::PaddingMask;
use crate::calibrate::{ChannelStats, EngineError, StatOptions, TractEngine, statistics};
use crate::onnx::node::make_node;
use crate::onnx::op;
use crate::onnx::tensor;
use crate::progress::{NoProgress, Progress};

const C: usize = 5;
const N: usize = 4;

/// h = x·w, y = Relu(h); x: [b, s, C], w: [C, N].
pub(crate) fn linear() -> Model {
    let w: Vec<f32> = wave(&[C, N]).into_iter().collect();
    model(
        17,
        vec![info("x", DataType::Float, &["b", "s", "5"])],
        vec![
            make_node(op::MatMul, "mm", &["x", "w"], &["h"], vec![]),
            make_node(op::Relu, "relu", &["h"], &["y"], vec![]),
        ],
        vec![tensor::from_f32("w", &[C, N], &w, DataType::Float)],
        &["y"],
    )
}

fn take(
    batches: &[Batch],
    names: &[&str],
    sample_tokens: usize,
    threads: usize,
) -> Result<BTreeMap<String, ChannelStats>, EngineError> {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let options = StatOptions {
        channels_first: Default::default(),
        extremes_only: Default::default(),
        sizes_only: Default::default(),
        sample_tokens,
        seed: 7,
        threads,
    };
    statistics(
        &TractEngine,
        &linear(),
        batches,
        &names,
        &options,
        &NoProgress,
    )
}

/// Rows `first..` of a longer array, so that every batch is different.
fn rows(first: usize, count: usize, length: usize) -> Array3<f32> {
    let all = wave(&[first + count, length, C]);
    let all = all.into_dimensionality::<Ix3>().unwrap();
    all.slice_axis(Axis(0), (first..first + count).into())
        .to_owned()
}

pub(crate) fn batches(count: usize, size: usize, length: usize) -> Vec<Batch> {
    (0..count)
        .map(|i| {
            f32_batch(
                "x",
                rows(i * size, size, length).into_dyn(),
                (i * size) as u64,
            )
        })
        .collect()
}

/// The vectors of one fold of x·w in the order of rows, computed plainly.
fn plain(batches: &[Batch], fold: u64) -> Array2<f32> {
    let w = wave(&[C, N]).into_dimensionality::<ndarray::Ix2>().unwrap();
    let mut out = vec![];
    for batch in batches {
        let Values::F32(x) = batch.inputs["x"].values().unwrap() else {
            panic!("float input")
        };
        for (row, x) in batch.rows.iter().zip(x.outer_iter()) {
            for (s, x) in x.outer_iter().enumerate() {
                let at = [batch.rows.iter().position(|r| r == row).unwrap(), s];
                if row % 2 == fold && batch.mask().is_none_or(|m| m[at]) {
                    let x = x.into_dimensionality::<ndarray::Ix1>().unwrap();
                    out.extend(x.dot(&w));
                }
            }
        }
    }
    Array2::from_shape_vec((out.len() / N, N), out).unwrap()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < 1e-5, "{found:?} against {expected:?}");
    }
}

fn assert_matches_plain(stats: &ChannelStats, batches: &[Batch]) {
    for (fold, stats) in stats.folds.iter().enumerate() {
        let expected = plain(batches, fold as u64);
        assert_eq!(stats.tokens, expected.nrows() as u64);
        let extreme = |f: fn(f32, f32) -> f32| -> Vec<f32> {
            expected
                .axis_iter(Axis(1))
                .map(|c| c.iter().copied().reduce(f).unwrap())
                .collect()
        };
        assert_close(&stats.min, &extreme(f32::min));
        assert_close(&stats.max, &extreme(f32::max));
        // The sample holds every token here, in order.
        assert_eq!(stats.sample.dim(), expected.dim());
        assert_close(
            stats.sample.as_slice().unwrap(),
            expected.as_slice().unwrap(),
        );
    }
}

#[test]
fn equal_a_plain_computation() {
    let batches = batches(3, 4, 6);
    let stats = take(&batches, &["h"], 1000, 2).unwrap();
    assert_matches_plain(&stats["h"], &batches);
}

#[test]
fn sequence_lengths_may_differ_from_batch_to_batch() {
    let mut all = batches(2, 2, 6);
    all.push(f32_batch("x", rows(4, 2, 3).into_dyn(), 4));
    all.push(f32_batch("x", rows(6, 1, 6).into_dyn(), 6));
    all.push(f32_batch("x", rows(7, 2, 3).into_dyn(), 7));
    let stats = take(&all, &["h"], 1000, 2).unwrap();
    assert_matches_plain(&stats["h"], &all);
}

#[test]
fn padding_never_enters() {
    let mask = array![[true, true, false], [true, false, false]];
    let masked = |padding: f32| {
        let mut x = rows(0, 2, 3);
        for ((r, s), real) in mask.indexed_iter() {
            if !real {
                x.slice_mut(ndarray::s![r, s, ..]).fill(padding);
            }
        }
        let mut batch = f32_batch("x", x.into_dyn(), 0);
        batch.masks = vec![PaddingMask::new("mask", mask.clone())];
        vec![batch]
    };
    let stats = take(&masked(0.0), &["h", "x"], 1000, 1).unwrap();
    assert_matches_plain(&stats["h"], &masked(0.0));
    assert_eq!(stats["h"].folds[0].tokens, 2);
    assert_eq!(stats["h"].folds[1].tokens, 1);
    for padding in [1e6, -1e6, f32::NAN] {
        assert_eq!(take(&masked(padding), &["h", "x"], 1000, 1).unwrap(), stats);
    }
}

#[test]
fn graph_inputs_outputs_and_repeated_names_can_be_tapped() {
    let batches = batches(2, 2, 3);
    let stats = take(&batches, &["x", "y", "h", "y", "x"], 1000, 1).unwrap();
    assert_eq!(stats.keys().collect::<Vec<_>>(), ["h", "x", "y"]);
    assert_eq!(stats["x"].folds[0].min.len(), C);
    assert!(stats["y"].folds[0].min.iter().all(|v| *v >= 0.0));
    let h = &stats["h"].folds[1];
    let y = &stats["y"].folds[1];
    assert_eq!(y.sample, h.sample.mapv(|v| v.max(0.0)));
}

#[test]
fn bit_for_bit_the_same_on_any_number_of_threads_and_in_any_order() {
    let all = batches(12, 3, 7);
    let one = take(&all, &["x", "h", "y"], 10, 1).unwrap();
    for fold in &one["h"].folds {
        assert_eq!(fold.sample.dim(), (10, N));
        assert_eq!(fold.tokens, 18 * 7);
    }
    for threads in [2, 3] {
        assert_eq!(take(&all, &["x", "h", "y"], 10, threads).unwrap(), one);
    }
    let mut reversed = all.clone();
    reversed.reverse();
    assert_eq!(take(&reversed, &["x", "h", "y"], 10, 2).unwrap(), one);
}

#[test]
fn the_sample_holds_the_same_tokens_of_every_value_and_depends_on_the_seed() {
    let all = batches(4, 2, 8);
    let stats = take(&all, &["h", "y"], 6, 2).unwrap();
    let (h, y) = (&stats["h"].folds[0], &stats["y"].folds[0]);
    assert_eq!(y.sample, h.sample.mapv(|v| v.max(0.0)));
    let options = StatOptions {
        channels_first: Default::default(),
        extremes_only: Default::default(),
        sizes_only: Default::default(),
        sample_tokens: 6,
        seed: 8,
        threads: 1,
    };
    let names = ["h".to_owned()];
    let other = statistics(&TractEngine, &linear(), &all, &names, &options, &NoProgress).unwrap();
    assert_ne!(other["h"].folds[0].sample, h.sample);
    assert_eq!(other["h"].folds[0].max, h.max);
}

#[test]
fn a_single_row_is_folded_by_position() {
    let stats = take(&batches(1, 1, 5), &["h"], 100, 1).unwrap();
    assert_eq!(stats["h"].folds[0].tokens, 3);
    assert_eq!(stats["h"].folds[1].tokens, 2);
}

#[test]
fn an_empty_fold_takes_the_tokens_of_the_other() {
    let mut batch = f32_batch("x", rows(0, 2, 3).into_dyn(), 0);
    batch.rows = vec![0, 2];
    let stats = take(&[batch], &["h"], 100, 1).unwrap();
    assert_eq!(stats["h"].folds[0].tokens, 6);
    assert_eq!(stats["h"].folds[0], stats["h"].folds[1]);
}

#[test]
fn not_finite_values_and_empty_masks_are_errors() {
    let mut x = rows(0, 3, 2);
    x[[1, 1, 3]] = f32::INFINITY;
    let batch = f32_batch("x", x.into_dyn(), 40);
    let error = take(&[batch], &["x"], 4, 1).unwrap_err().to_string();
    insta::assert_snapshot!(error, @"value x is not finite: inf in channel 3 at row 41, position 1");
    let mut batch = f32_batch("x", rows(0, 1, 2).into_dyn(), 0);
    batch.masks = vec![PaddingMask::new("mask", array![[false, false]])];
    let error = take(&[batch], &["h"], 4, 1).unwrap_err().to_string();
    insta::assert_snapshot!(error, @"value h: every calibration token is padding");
}

#[test]
fn progress_counts_every_row_once() {
    #[derive(Default)]
    struct Counter(std::sync::Mutex<(Vec<u64>, u64, bool)>);
    impl Progress for Counter {
        fn begin(&self, _what: &str, total: u64) {
            self.0.lock().unwrap().0.push(total);
        }
        fn advance(&self, by: u64) {
            self.0.lock().unwrap().1 += by;
        }
        fn end(&self) {
            self.0.lock().unwrap().2 = true;
        }
    }
    let counter = Counter::default();
    let options = StatOptions {
        channels_first: Default::default(),
        extremes_only: Default::default(),
        sizes_only: Default::default(),
        sample_tokens: 1,
        seed: 0,
        threads: 2,
    };
    let names = ["h".to_owned()];
    statistics(
        &TractEngine,
        &linear(),
        &batches(3, 4, 2),
        &names,
        &options,
        &counter,
    )
    .unwrap();
    assert_eq!(*counter.0.lock().unwrap(), (vec![12], 12, true));
}

#[test]
fn channels_on_the_first_axis() {
    let transposed = model(
        17,
        vec![info("x", DataType::Float, &["b", "5"])],
        vec![
            make_node(op::Transpose, "t", &["x"], &["xt"], vec![]),
            make_node(op::Relu, "relu", &["xt"], &["y"], vec![]),
        ],
        vec![],
        &["y"],
    );
    let x = wave(&[4, C]);
    let batches = [f32_batch("x", x.clone(), 0)];
    let options = StatOptions {
        channels_first: ["xt".to_owned()].into(),
        extremes_only: Default::default(),
        sizes_only: Default::default(),
        sample_tokens: 8,
        seed: 7,
        threads: 1,
    };
    let names = ["x".to_owned(), "xt".to_owned()];
    let stats = statistics(
        &TractEngine,
        &transposed,
        &batches,
        &names,
        &options,
        &NoProgress,
    );
    let stats = stats.unwrap();
    assert_eq!((stats["x"].rank, stats["xt"].rank), (2, 2));
    // The same numbers per channel, whichever axis holds the channels; only the folds may differ.
    let extremes = |name: &str,
                    pick: fn(&crate::calibrate::FoldStats) -> &Vec<f32>,
                    f: fn(f32, f32) -> f32| {
        let [a, b] = stats[name].folds.each_ref().map(|fold| pick(fold).clone());
        a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect::<Vec<_>>()
    };
    assert_eq!(
        extremes("x", |f| &f.min, f32::min),
        extremes("xt", |f| &f.min, f32::min)
    );
    assert_eq!(
        extremes("x", |f| &f.max, f32::max),
        extremes("xt", |f| &f.max, f32::max)
    );
    assert_eq!(extremes("xt", |f| &f.max, f32::max).len(), C);
}
