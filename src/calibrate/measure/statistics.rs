//! Per-channel statistics of values inside the model.
//!
//! ```text
//! batches ─ grouped by shape ─▶ one plan per group ─ runs in parallel ─▶ tap ─ per batch ─▶ Accumulator per value
//! ```
//!
//! Everything that is kept is independent of the order in which batches finish: minimum and maximum commute, and the
//! token sample is the set of tokens with the smallest priorities, where the priority of a token is a hash of the seed,
//! its row and its position (bottom-k sampling). So results are the same for any number of threads.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::{Arc, Mutex};

use ndarray::{ArrayViewD, CowArray};

use crate::calibrate::data::input::Batch;
use crate::calibrate::data::tokens::TokenContext;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, TapSink, Wanted};
use crate::calibrate::measure::capture::{Both, Keep, Kept};
use crate::calibrate::measure::channel_stats::{ChannelStats, StatOptions, Statistics};
use crate::calibrate::measure::extremes::Extremes;
use crate::calibrate::measure::fills;
use crate::calibrate::measure::gathered::{
    Gathered, GatheredFold, GatheredStatistics, Key, finish,
};
use crate::calibrate::measure::largest::{LargeToken, Largest};
use crate::calibrate::measure::parallel::{groups, in_parallel, with_threads};
use crate::calibrate::measure::sizes::sizes;
use crate::onnx::Model;
use crate::progress::Progress;

/// Runs `batches` and returns the statistics of `values`, which are names of float values of the model's main graph.
/// Those in a branch that no batch takes are left out.
///
/// # Errors
/// What [`Engine::plan`] and [`crate::calibrate::Plan::run`] refuse; NaN or infinity in a value; a value of which every
/// token is padding.
pub fn statistics(
    engine: &dyn Engine,
    model: &Model,
    batches: &[Batch],
    values: &[String],
    options: &StatOptions,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, ChannelStats>, EngineError> {
    let run = Run {
        engine,
        model,
        batches,
        progress,
    };
    let (stats, ..) = run.collect(values, options, None, 0)?;
    finish(stats)
}

/// [`statistics`] and the `count` tokens of each value with the largest magnitude, the largest first.
///
/// # Errors
/// Those of [`statistics`].
pub fn statistics_and_tokens(
    engine: &dyn Engine,
    model: &Model,
    batches: &[Batch],
    values: &[String],
    options: &StatOptions,
    count: usize,
    progress: &dyn Progress,
) -> Result<(Statistics, BTreeMap<String, Vec<LargeToken>>), EngineError> {
    let run = Run {
        engine,
        model,
        batches,
        progress,
    };
    let (stats, _, tokens) = run.collect(values, options, None, count)?;
    Ok((finish(stats)?, tokens))
}

/// [`statistics`] and, from the same plan if it can be, some values whole.
///
/// # Errors
/// Those of [`statistics`], for the values of `keep` too.
pub fn statistics_and(
    engine: &dyn Engine,
    model: &Model,
    batches: &[Batch],
    values: &[String],
    options: &StatOptions,
    keep: Option<Keep<'_>>,
    progress: &dyn Progress,
) -> Result<(Statistics, Kept), EngineError> {
    let run = Run {
        engine,
        model,
        batches,
        progress,
    };
    let (stats, kept, _) = run.collect(values, options, keep, 0)?;
    Ok((finish(stats)?, kept))
}

/// The statistics of those of `batches` whose number, counted from 0, is `part` modulo `parts`: to be [merged](super::gathered::merge())
/// with those of the other parts.
///
/// # Errors
/// Those of [`statistics`], besides padding alone: that is known of all parts.
pub fn gather(
    engine: &dyn Engine,
    model: &Model,
    (batches, part, parts): (&[Batch], usize, usize),
    values: &[String],
    options: &StatOptions,
    progress: &dyn Progress,
) -> Result<GatheredStatistics, EngineError> {
    let rows = batches.iter().map(|batch| batch.rows.len()).sum::<usize>();
    let own: Vec<Batch> = batches
        .iter()
        .skip(part)
        .step_by(parts.max(1))
        .cloned()
        .collect();
    let run = Run {
        engine,
        model,
        batches: &own,
        progress,
    };
    let by_position = rows <= 1;
    let (stats, ..) = run.collect_of(values, options, None, (0, by_position))?;
    Ok(stats)
}

/// What is run on what.
struct Run<'a> {
    engine: &'a dyn Engine,
    model: &'a Model,
    batches: &'a [Batch],
    progress: &'a dyn Progress,
}

/// What a run gives: statistics, values whole, the largest tokens.
type Collected = (GatheredStatistics, Kept, BTreeMap<String, Vec<LargeToken>>);

impl Run<'_> {
    fn collect(
        &self,
        values: &[String],
        options: &StatOptions,
        keep: Option<Keep<'_>>,
        tokens: usize,
    ) -> Result<Collected, EngineError> {
        let rows: BTreeSet<u64> = self
            .batches
            .iter()
            .flat_map(|b| b.rows.iter().copied())
            .collect();
        self.collect_of(values, options, keep, (tokens, rows.len() <= 1))
    }

    /// With so many of the largest tokens; folds are by position if there is one row in all.
    fn collect_of(
        &self,
        values: &[String],
        options: &StatOptions,
        keep: Option<Keep<'_>>,
        (tokens, by_position): (usize, bool),
    ) -> Result<Collected, EngineError> {
        let Run {
            engine,
            model,
            batches,
            progress,
        } = *self;
        let names: Vec<String> = values
            .iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .cloned()
            .collect();
        if names.is_empty() {
            return Ok(Default::default());
        }
        let keep = keep.filter(|keep| !keep.values.is_empty());
        let kept_too = keep.iter().flat_map(|keep| keep.values);
        let kept_too = kept_too.filter(|value| !names.contains(value));
        let taps: Vec<String> = names.iter().chain(kept_too).cloned().collect();
        let rows: BTreeSet<u64> = batches
            .iter()
            .flat_map(|b| b.rows.iter().copied())
            .collect();
        let mut fills = fills::fills(model, batches, names.iter().map(String::as_str));
        let of = |name: &String| fills.remove(name).unwrap_or_default();
        let collector = Arc::new(Collector {
            fills: names.iter().map(of).collect(),
            ..Collector::new(&names, options, by_position, tokens)
        });
        let wanted = Wanted {
            taps: &taps,
            outputs: false,
        };
        let mut kept: Option<Kept> = None;
        progress.begin("calibration", rows.len() as u64);
        let run_group = |group: Vec<&Batch>| -> Result<(), EngineError> {
            let plan = engine.plan(model, group[0], &wanted)?;
            let run = |_, batch: &Batch| {
                let sink = Arc::new(BatchSink {
                    collector: collector.clone(),
                    context: TokenContext::new(batch, plan.axes()),
                });
                let keep = keep.filter(|keep| std::ptr::eq(keep.within, batch));
                let keep = keep.map(|keep| Arc::new(keep.sink(batch, plan.as_ref(), &taps)));
                let sink: Arc<dyn TapSink> = match &keep {
                    Some(keep) => Arc::new(Both(sink, keep.clone())),
                    None => sink,
                };
                plan.run(batch, Some(sink))?;
                progress.advance(batch.rows.len() as u64);
                Ok(keep.and_then(|keep| keep.kept()))
            };
            let found: Vec<Option<Kept>> = in_parallel(&group, run)?;
            kept = kept.take().or(found.into_iter().flatten().next());
            Ok(())
        };
        let result = with_threads(options.threads, || {
            groups(batches).into_iter().try_for_each(run_group)
        });
        progress.end();
        result??;
        let kept = match (kept, keep) {
            (None, Some(keep)) => keep.alone(engine, model)?,
            (kept, _) => kept.unwrap_or_default(),
        };
        let (mut stats, mut largest) = (GatheredStatistics::new(), BTreeMap::new());
        for (i, name) in names.into_iter().enumerate() {
            let mut accumulator = lock(&collector.values[i]);
            let mut all = std::mem::replace(&mut *accumulator, Accumulator::new("", false, 0));
            if all.seen {
                let tokens = std::mem::take(&mut all.largest).into_tokens();
                largest.insert(name.clone(), tokens);
                stats.insert(name, all.gathered());
            }
        }
        Ok((stats, kept, largest))
    }
}

/// The accumulators of all values, filled from several threads.
struct Collector {
    values: Vec<Mutex<Accumulator>>,
    /// What the model fills into them.
    fills: Vec<Vec<f32>>,
    seed: u64,
    /// Folds by position, because all tokens are of one row.
    by_position: bool,
    /// How many of the largest tokens are kept.
    tokens: usize,
}

impl Collector {
    fn new(names: &[String], options: &StatOptions, by_position: bool, tokens: usize) -> Collector {
        let accumulator = |name: &String| {
            let channels_first = options.channels_first.contains(name);
            let sample_tokens = match options.extremes_only.contains(name) {
                true => 0,
                false => options.sample_tokens,
            };
            let mut accumulator = Accumulator::new(name, channels_first, sample_tokens);
            accumulator.sizes_only = options.sizes_only.contains(name);
            accumulator.largest = Largest::new(tokens);
            Mutex::new(accumulator)
        };
        Collector {
            values: names.iter().map(accumulator).collect(),
            fills: Vec::new(),
            seed: options.seed,
            by_position,
            tokens,
        }
    }
}

/// Reduces the tapped values of one batch.
struct BatchSink {
    collector: Arc<Collector>,
    context: TokenContext,
}

/// Locks; a panic of another thread while it held the lock has already made the run fail.
fn lock(mutex: &Mutex<Accumulator>) -> std::sync::MutexGuard<'_, Accumulator> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl TapSink for BatchSink {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        let collector = &*self.collector;
        if tap >= collector.values.len() {
            return Ok(());
        }
        let rank = value.ndim();
        let (name, channels_first, sizes_only) = lock(&collector.values[tap]).form();
        let value = if channels_first {
            value.reversed_axes()
        } else {
            value
        };
        let places = self.context.places(&name, value.shape(), channels_first);
        let standard = match sizes_only {
            true => CowArray::from(sizes(&value)),
            false => value.as_standard_layout(),
        };
        let channels = standard.shape().last().copied().unwrap_or(1);
        // `as_standard_layout` makes the memory contiguous.
        let Some(data) = standard.as_slice() else {
            return Ok(());
        };
        let fills = collector.fills.get(tap);
        let fills = fills.filter(|f| !f.is_empty() && !sizes_only);
        let ordinary = fills.map(|fills| fills::without(data, channels, fills));
        let (data, alone) = match &ordinary {
            Some((data, alone)) => (&data[..], &alone[..]),
            None => (data, &[][..]),
        };
        let mut extremes = [Extremes::new(channels), Extremes::new(channels)];
        let mut candidates = Vec::new();
        let mut largest = Largest::new(collector.tokens);
        let tokens = places.iter().zip(data.chunks_exact(channels.max(1)));
        for (i, (place, x)) in tokens.enumerate() {
            if !place.keep || alone.get(i) == Some(&true) {
                continue;
            }
            let row = self.context.row(place.row);
            let parity = if collector.by_position || place.row.is_none() {
                place.position
            } else {
                row
            };
            let fold = (parity % 2) as usize;
            if !extremes[fold].add(x) {
                let found = x.iter().enumerate().find(|(_, v)| !v.is_finite());
                let (channel, value) = found.map_or((0, f32::NAN), |(c, v)| (c, *v));
                return Err(EngineError::NotFinite {
                    name,
                    row,
                    position: place.position,
                    channel,
                    value,
                });
            }
            if collector.tokens > 0 {
                largest.offer(x, || (row, place.position, place.token));
            }
            let key = Key {
                priority: priority(collector.seed, row, place.position),
                row,
                position: place.position,
            };
            candidates.push((fold, key, x));
        }
        let mut accumulator = lock(&collector.values[tap]);
        (accumulator.rank, accumulator.seen) = (rank, true);
        accumulator.largest.merge(largest);
        accumulator.merge(extremes, &candidates)
    }
}

/// The priority of a token: two rounds of splitmix64 (Steele, Lea and Flood 2014) over seed, row and position.
fn priority(seed: u64, row: u64, position: u64) -> u64 {
    fn mix(state: u64) -> u64 {
        let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    mix(mix(seed ^ mix(row)) ^ position)
}

/// What is known of one value so far.
struct Accumulator {
    name: String,
    channels_first: bool,
    sizes_only: bool,
    /// Most tokens kept per fold.
    sample_tokens: usize,
    /// Whether it was computed at all.
    seen: bool,
    rank: usize,
    folds: [Fold; 2],
    largest: Largest,
}

struct Fold {
    extremes: Extremes,
    /// The tokens of the smallest keys, largest on top, each with its slot in `vectors`.
    heap: BinaryHeap<(Key, usize)>,
    /// `[slots, C]`.
    vectors: Vec<f32>,
}

impl Accumulator {
    fn new(name: &str, channels_first: bool, sample_tokens: usize) -> Accumulator {
        let fold = || Fold {
            extremes: Extremes::new(0),
            heap: BinaryHeap::new(),
            vectors: vec![],
        };
        Accumulator {
            name: name.to_owned(),
            channels_first,
            sizes_only: false,
            sample_tokens,
            seen: false,
            rank: 0,
            folds: [fold(), fold()],
            largest: Largest::default(),
        }
    }

    fn form(&self) -> (String, bool, bool) {
        (self.name.clone(), self.channels_first, self.sizes_only)
    }

    fn merge(
        &mut self,
        extremes: [Extremes; 2],
        candidates: &[(usize, Key, &[f32])],
    ) -> Result<(), EngineError> {
        for (fold, new) in self.folds.iter_mut().zip(extremes) {
            let old = &mut fold.extremes;
            if old.min.is_empty() {
                *old = new;
                continue;
            }
            if old.min.len() != new.min.len() {
                return Err(EngineError::Channels {
                    name: self.name.clone(),
                    expected: old.min.len(),
                    found: new.min.len(),
                });
            }
            for (old, new) in old.min.iter_mut().zip(&new.min) {
                *old = old.min(*new);
            }
            for (old, new) in old.max.iter_mut().zip(&new.max) {
                *old = old.max(*new);
            }
            old.tokens += new.tokens;
        }
        for (fold, key, x) in candidates {
            self.folds[*fold].offer(*key, x, self.sample_tokens);
        }
        Ok(())
    }

    fn gathered(self) -> Gathered {
        Gathered {
            rank: self.rank,
            sample_tokens: self.sample_tokens,
            folds: self.folds.map(Fold::gathered),
        }
    }
}

impl Fold {
    /// Keeps `x` if its key is among the `limit` smallest.
    fn offer(&mut self, key: Key, x: &[f32], limit: usize) {
        if self.heap.len() < limit {
            self.heap.push((key, self.heap.len()));
            self.vectors.extend_from_slice(x);
            return;
        }
        let Some(mut largest) = self.heap.peek_mut() else {
            return;
        };
        if key < largest.0 {
            let slot = largest.1;
            *largest = (key, slot);
            self.vectors[slot * x.len()..][..x.len()].copy_from_slice(x);
        }
    }

    fn gathered(self) -> GatheredFold {
        let channels = self.extremes.min.len();
        let mut tokens: Vec<(Key, usize)> = self.heap.into_vec();
        tokens.sort();
        let vector = |(_, slot): &(Key, usize)| &self.vectors[slot * channels..][..channels];
        GatheredFold {
            vectors: tokens.iter().flat_map(vector).copied().collect(),
            keys: tokens.into_iter().map(|(key, _)| key).collect(),
            min: self.extremes.min,
            max: self.extremes.max,
            tokens: self.extremes.tokens,
        }
    }
}
