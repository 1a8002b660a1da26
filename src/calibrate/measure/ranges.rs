//! Ranges of values whose tokens are on any axis: the operands of attention's products.
//!
//! The statistics of [`crate::calibrate::statistics()`] are per channel, of values with their channels last. Kᵀ has its tokens
//! there, as many as the sequence is long, and what is wanted of Q, K and V is one range: the smallest and the largest
//! element over all tokens that are no padding.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array2, ArrayViewD};

use crate::calibrate::data::input::Batch;
use crate::calibrate::data::tokens::TokenContext;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::plan::{Engine, TapSink, Wanted};
use crate::calibrate::measure::parallel::{groups, in_parallel, with_threads};
use crate::graph::axes::Axes;
use crate::onnx::Model;
use crate::progress::Progress;

/// A value and where its tokens are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ranged {
    /// The name of a float value of the main graph, `[B, …]` or, with heads in the batch, `[B·heads, …]`.
    pub value: String,
    /// The axis of the tokens, counted from the end: 1 for the last; 0 to take every element, those of padding too.
    pub axis: usize,
}

/// Runs `batches` and returns the smallest and the largest element of each value, without those of padding: a token is
/// one if the mask of its sequence has no token there. NaN for both
/// where an element is not finite; `None` for a value in a branch that no batch takes, or of nothing but padding.
///
/// # Errors
/// What [`Engine::plan`] and [`crate::calibrate::Plan::run`] refuse.
pub fn ranges(
    engine: &dyn Engine,
    model: &Model,
    batches: &[Batch],
    values: &[Ranged],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Option<(f32, f32)>>, EngineError> {
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let names: BTreeSet<&String> = values.iter().map(|v| &v.value).collect();
    let taps: Vec<String> = names.into_iter().cloned().collect();
    let found = Arc::new(Mutex::new(vec![None; values.len()]));
    let wanted = Wanted {
        taps: &taps,
        outputs: false,
    };
    let rows = batches.iter().map(|b| b.rows.len() as u64).sum();
    progress.begin("calibration of attention", rows);
    let run_group = |group: Vec<&Batch>| -> Result<(), EngineError> {
        let plan = engine.plan(model, group[0], &wanted)?;
        let run = |_, batch: &Batch| {
            let sink = RangeSink::new(values, &taps, (batch, plan.axes()), found.clone());
            plan.run(batch, Some(Arc::new(sink)))?;
            progress.advance(batch.rows.len() as u64);
            Ok(())
        };
        in_parallel(&group, run).map(|_: Vec<()>| ())
    };
    let result = with_threads(threads, || {
        groups(batches).into_iter().try_for_each(run_group)
    });
    progress.end();
    result??;
    let found = found.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(found.clone())
}

/// The range of each value, as far as it is known.
type Found = Vec<Option<(f32, f32)>>;

/// Takes the values of one batch.
struct RangeSink {
    /// Per tap the numbers of the values it is, with the axis of their tokens.
    wanted: Vec<Vec<(usize, usize)>>,
    taps: Vec<String>,
    context: TokenContext,
    rows: usize,
    masks: Vec<Array2<bool>>,
    found: Arc<Mutex<Found>>,
}

impl RangeSink {
    fn new(
        values: &[Ranged],
        taps: &[String],
        (batch, axes): (&Batch, Arc<Axes>),
        found: Arc<Mutex<Found>>,
    ) -> RangeSink {
        let at = |tap: &String| {
            let all = values.iter().enumerate().filter(|(_, v)| v.value == *tap);
            all.map(|(i, v)| (i, v.axis)).collect()
        };
        let context = TokenContext::new(batch, axes);
        RangeSink {
            wanted: taps.iter().map(at).collect(),
            taps: taps.to_vec(),
            rows: batch.rows.len(),
            masks: context.sole_mask().into_iter().cloned().collect(),
            context,
            found,
        }
    }
}

impl TapSink for RangeSink {
    fn take(&self, tap: usize, value: ArrayViewD<'_, f32>) -> Result<(), EngineError> {
        for &(number, axis) in self.wanted.get(tap).into_iter().flatten() {
            let Some(new) = self.range(tap, value.view(), axis) else {
                continue;
            };
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            let old = found[number];
            found[number] = Some(old.map_or(new, |old| join(old, new)));
        }
        Ok(())
    }
}

impl RangeSink {
    /// The range of the value of a tap without its padding, as far as it is known where its axes come from; by its shape else.
    fn range(&self, tap: usize, value: ArrayViewD<'_, f32>, axis: usize) -> Option<(f32, f32)> {
        let shape = value.shape().to_vec();
        let first = &shape[..(shape.len() + 1).saturating_sub(axis).min(shape.len())];
        let places = match axis {
            0 => None,
            _ => self.context.of_first(&self.taps[tap], first),
        };
        let Some(places) = places else {
            return range(value, axis, self.rows, &self.masks);
        };
        let standard = value.as_standard_layout();
        // `as_standard_layout` makes the memory contiguous.
        let vectors = standard
            .as_slice()?
            .chunks_exact((value.len() / places.len().max(1)).max(1));
        let real = places.iter().zip(vectors).filter(|(place, _)| place.keep);
        range_of(real.flat_map(|(_, vector)| vector.iter().copied()))
    }
}

/// The range that covers both; NaN stays.
fn join(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    if a.0.is_nan() || b.0.is_nan() {
        return (f32::NAN, f32::NAN);
    }
    (a.0.min(b.0), a.1.max(b.1))
}

/// The range of `value` without its padding.
fn range(
    value: ArrayViewD<'_, f32>,
    axis: usize,
    rows: usize,
    masks: &[Array2<bool>],
) -> Option<(f32, f32)> {
    let shape = value.shape().to_vec();
    if axis == 0 {
        return range_of(value.iter().copied());
    }
    let (first, tokens) = (*shape.first()?, *shape.iter().rev().nth(axis - 1)?);
    // The batch is the first axis, and no token's.
    let fits = |mask: &&Array2<bool>| {
        shape.len() > axis && mask.ncols() == tokens && rows > 0 && first % rows == 0
    };
    let masks: Vec<&Array2<bool>> = masks.iter().filter(fits).collect();
    let inner: usize = shape[shape.len() - axis + 1..].iter().product();
    let per_row = value.len() / first.max(1) * (first / rows.max(1)).max(1);
    let standard = value.as_standard_layout();
    // `as_standard_layout` makes the memory contiguous.
    let data = standard.as_slice()?;
    let mut extremes: Option<(f32, f32)> = None;
    for (i, vector) in data.chunks_exact(inner.max(1)).enumerate() {
        let (row, token) = (i * inner / per_row.max(1), i % tokens.max(1));
        if !masks.is_empty() && !masks.iter().any(|mask| mask[[row, token]]) {
            continue;
        }
        let Some(new) = range_of(vector.iter().copied()) else {
            continue;
        };
        extremes = Some(extremes.map_or(new, |old| join(old, new)));
    }
    extremes
}

fn range_of(elements: impl Iterator<Item = f32>) -> Option<(f32, f32)> {
    let finite = |x: f32| match x.is_finite() {
        true => (x, x),
        false => (f32::NAN, f32::NAN),
    };
    elements.map(finite).reduce(join)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, Dimension, IxDyn, array};

    fn filled(shape: &[usize], f: impl Fn(&[usize]) -> f32) -> Array<f32, IxDyn> {
        Array::from_shape_fn(IxDyn(shape), |at| f(at.slice()))
    }

    /// Two rows of three tokens; the second has two of padding.
    fn masks() -> Vec<Array2<bool>> {
        vec![array![[true, true, true], [true, false, false]]]
    }

    /// Padding holds 100, every real element its token's number.
    fn marked(shape: &[usize], axis: usize, heads: usize) -> Array<f32, IxDyn> {
        let rank = shape.len();
        filled(shape, |at| {
            let (row, token) = (at[0] / heads, at[rank - axis]);
            let real = row == 0 || token == 0;
            if real { token as f32 } else { 100.0 }
        })
    }

    #[test]
    fn padding_is_left_out_on_either_axis() {
        for (shape, axis, heads) in [
            (&[2, 5, 3, 4][..], 2, 1), // Q, V: [B, H, S, D]
            (&[2, 5, 4, 3], 1, 1),     // Kᵀ: [B, H, D, S]
            (&[10, 3, 4], 2, 5),       // [B·H, S, D]
            (&[10, 4, 3], 1, 5),
            (&[2, 2, 5, 3, 4], 2, 1), // grouped heads
            (&[2, 3, 3, 3], 1, 1),    // all lengths alike
            (&[2, 3, 3, 3], 2, 1),
        ] {
            let value = marked(shape, axis, heads);
            let found = range(value.view(), axis, 2, &masks());
            assert_eq!(found, Some((0.0, 2.0)), "{shape:?} {axis}");
            let all = range(value.view(), axis, 2, &[]);
            assert_eq!(all, Some((0.0, 100.0)), "{shape:?} {axis}");
        }
    }

    #[test]
    fn a_mask_of_another_length_says_nothing() {
        let value = filled(&[2, 5, 4, 4], |at| at[2] as f32);
        assert_eq!(range(value.view(), 2, 2, &masks()), Some((0.0, 3.0)));
    }

    #[test]
    fn of_two_masks_one_is_enough() {
        let two = [masks(), vec![array![[true; 3], [true; 3]]]].concat();
        let value = marked(&[2, 5, 3, 4], 2, 1);
        assert_eq!(range(value.view(), 2, 2, &two), Some((0.0, 100.0)));
    }

    #[test]
    fn what_is_not_finite_shows_unless_it_is_padding() {
        let spoiled = |row| {
            filled(&[2, 3, 4], move |at| {
                if at[0] == row && at[1] == 1 {
                    f32::INFINITY
                } else {
                    1.0
                }
            })
        };
        assert!(range(spoiled(0).view(), 2, 2, &masks()).unwrap().0.is_nan());
        assert_eq!(range(spoiled(1).view(), 2, 2, &masks()), Some((1.0, 1.0)));
        // Unless padding counts as well.
        assert!(range(spoiled(1).view(), 0, 2, &masks()).unwrap().0.is_nan());
        assert!(join((0.0, 1.0), (f32::NAN, f32::NAN)).1.is_nan());
        assert!(join((f32::NAN, f32::NAN), (0.0, 1.0)).0.is_nan());
    }

    #[test]
    fn nothing_but_padding_has_no_range() {
        let value = filled(&[1, 3, 4], |_| 1.0);
        let none = [array![[false, false, false]]];
        assert_eq!(range(value.view(), 2, 1, &none), None);
    }
}
