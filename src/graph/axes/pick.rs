//! Operators that pick parts of an axis: Gather, GatherND, Slice, Split.

use ndarray::{ArcArray, IxDyn};

use super::layout::size;
use super::rules::Step;
use super::{Axes, Axis, Factor};
use crate::graph::infer::slice_indices;
use crate::onnx::node::attr_i;

/// Elements `start, start + stride, …` of an axis.
pub(super) fn part(axis: &Axis, start: usize, stride: usize, count: usize) -> Axis {
    let origin = match axis.as_slice() {
        [one] => one
            .origin
            .map(|(s, from, step)| (s, from + start * step, step * stride)),
        _ => None,
    };
    vec![Factor {
        size: count,
        origin,
    }]
}

/// Those elements of an axis, evenly spaced or not.
fn picked(axis: &Axis, indices: &[usize]) -> Axis {
    let even = |stride: usize| indices.windows(2).all(|w| w[1] == w[0] + stride);
    let stride = match indices {
        [a, b, ..] => b.checked_sub(*a).filter(|d| *d > 0),
        _ => Some(1),
    };
    match (indices.first(), stride) {
        (Some(&first), Some(stride)) if even(stride) => part(axis, first, stride, indices.len()),
        _ => vec![Factor::plain(indices.len())],
    }
}

pub(super) fn gather(axes: &Axes, step: &Step) -> Option<Vec<Axis>> {
    let (data, indices) = (step.input(axes, 0)?, step.input(axes, 1)?);
    let at = step.axis(data.len(), 0)?;
    let value = step
        .facts
        .get(&step.node.input[1])
        .and_then(|f| f.value.as_ref()?.ints());
    let known = value.and_then(|ints| from_table(&data[at], ints));
    let middle = known.unwrap_or(indices);
    let (before, behind) = (&data[..at], &data[at + 1..]);
    Some([before, &middle, behind].concat())
}

/// The axes of known indices into an axis of several factors: of an index that is `start + Σ step_a · i_a`, every axis of more than
/// one element runs along one factor. `None` if it is another.
fn from_table(axis: &Axis, ints: &ArcArray<i64, IxDyn>) -> Option<Vec<Axis>> {
    let total = size(axis) as i64;
    let front = |i: i64| if i < 0 { i + total } else { i };
    let first = front(*ints.iter().next()?);
    let shape = ints.shape();
    let step = |a: usize| {
        let mut at = vec![0; shape.len()];
        at[a] = 1;
        if shape[a] > 1 {
            front(ints[IxDyn(&at)]) - first
        } else {
            0
        }
    };
    let steps: Vec<i64> = (0..shape.len()).map(step).collect();
    let affine = |(at, v): (IxDyn, &i64)| {
        let sum = (0..shape.len())
            .map(|a| steps[a] * at[a] as i64)
            .sum::<i64>();
        front(*v) == first + sum
    };
    if !ints.indexed_iter().all(affine) {
        return None;
    }
    let along = |(&step, &count): (&i64, &usize)| {
        let mut stride = total;
        for factor in axis {
            stride /= factor.size as i64;
            let start = first / stride % factor.size as i64;
            let times = if stride > 0 { step / stride } else { 0 };
            let inside = start + times * (count as i64 - 1) < factor.size as i64;
            if step > 0 && step % stride == 0 && inside {
                let one = vec![*factor];
                return part(&one, start as usize, times as usize, count);
            }
        }
        vec![Factor::plain(count)]
    };
    Some(steps.iter().zip(shape).map(along).collect())
}

/// `y[i, j, …] = x[index(i, j)]`: where an index is known and runs along an axis of its own, that is the axis of x.
pub(super) fn gather_nd(axes: &mut Axes, step: &Step) -> Option<Vec<Axis>> {
    let (data, indices) = (step.input(axes, 0)?, step.input(axes, 1)?);
    let (last, lead) = indices.split_last()?;
    let batch = usize::try_from(attr_i(step.node, "batch_dims").unwrap_or(0)).ok()?;
    let depth = size(last);
    let mut found = lead.to_vec();
    for (axis, data) in found.iter_mut().zip(&data).take(batch) {
        *axis = axes.over(axis, data);
    }
    let value = step
        .facts
        .get(&step.node.input[1])
        .and_then(|f| f.value.as_ref()?.ints());
    for component in 0..value.map_or(0, |_| depth) {
        let ints = value?.index_axis(ndarray::Axis(lead.len()), component);
        let along = (0..lead.len())
            .filter(|a| ints.shape()[*a] > 1)
            .find_map(|a| {
                let first = ints.iter().next()?;
                let runs = |(at, v): (IxDyn, &i64)| *v == first + at[a] as i64;
                ints.indexed_iter()
                    .all(runs)
                    .then_some((a, usize::try_from(*first).ok()?))
            });
        if let (Some((a, start)), Some(axis)) = (along, data.get(batch + component)) {
            found[a] = part(axis, start, 1, ints.shape()[a]);
        }
    }
    found.extend_from_slice(data.get(batch + depth..)?);
    Some(found)
}

pub(super) fn slice(axes: &Axes, step: &Step) -> Option<Vec<Axis>> {
    let mut found = step.input(axes, 0)?;
    for (axis, indices) in slice_indices(&step.call)? {
        if indices.len() != size(&found[axis]) || indices.first() != Some(&0) {
            found[axis] = picked(&found[axis], &indices);
        }
    }
    Some(found)
}

pub(super) fn split(axes: &Axes, step: &Step) -> Option<Vec<Vec<Axis>>> {
    let input = step.input(axes, 0)?;
    let at = step.axis(input.len(), 0)?;
    let mut start = 0;
    let mut parts = Vec::new();
    for output in 0..step.node.output.len() {
        let count = *step.shape(output)?.get(at)?;
        let mut found = input.clone();
        if count != size(&input[at]) {
            found[at] = part(&input[at], start, 1, count);
        }
        start += count;
        parts.push(found);
    }
    Some(parts)
}
