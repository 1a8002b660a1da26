//! Operators that take a part of a value, or put values together.

use ndarray::concatenate;

use super::call::{Call, List, axes_of, axis_of};
use super::fact::{Dim, Dims, Value, selected, sum};
use super::layout::in_shape;
use super::rule::Output;
use crate::onnx::node::attr_i;

/// The indices start, start + step, … that a Slice takes along one axis.
#[derive(Clone, Copy)]
struct Span {
    start: i64,
    step: i64,
    count: usize,
}

impl Span {
    /// ONNX's rule: negative bounds count from the end, then both are clamped to the axis.
    fn of(length: usize, start: i64, end: i64, step: i64) -> Option<Span> {
        let length = i64::try_from(length).ok()?;
        let from_front = |at: i64| {
            if at < 0 {
                at.saturating_add(length)
            } else {
                at
            }
        };
        let (start, end) = (from_front(start), from_front(end));
        let (start, end) = match step {
            0 => return None,
            1.. => (start.clamp(0, length), end.clamp(0, length)),
            _ if length == 0 => (-1, -1),
            _ => (start.clamp(0, length - 1), end.clamp(-1, length - 1)),
        };
        let far = if step > 0 { end - start } else { start - end };
        let count = far.max(0).unsigned_abs().div_ceil(step.unsigned_abs());
        Some(Span {
            start,
            step,
            count: count.try_into().ok()?,
        })
    }

    fn indices(self) -> Option<Vec<usize>> {
        (0..self.count as i64)
            .map(|i| usize::try_from(self.start + i * self.step).ok())
            .collect()
    }
}

/// Per sliced axis what a Slice takes of it, as far as that is known; `None` if not even the axes are.
fn slices(call: &Call, x: &[Dim]) -> Option<Vec<(usize, Option<Span>)>> {
    let lists = [(1, "starts"), (2, "ends"), (4, "steps")];
    let [starts, ends, steps] = lists.map(|(slot, name)| call.list(slot, name));
    let axes = match (call.list(3, "axes"), &starts) {
        (List::Known(axes), _) => axes_of(x.len(), &axes)?,
        (List::Absent, List::Known(starts)) => (0..starts.len()).collect(),
        (List::Absent, List::Unknown(count)) => (0..(*count)?).collect(),
        _ => return None,
    };
    let steps = match steps {
        List::Absent => Some(vec![1; axes.len()]),
        steps => steps.known(),
    };
    let bounds = starts.known().zip(ends.known()).zip(steps);
    let bounds = bounds.filter(|((starts, ends), steps)| {
        [starts.len(), ends.len(), steps.len()] == [axes.len(); 3]
    });
    let span = |i: usize, axis: usize| {
        let ((starts, ends), steps) = bounds.as_ref()?;
        Span::of((*x.get(axis)?)?, starts[i], ends[i], steps[i])
    };
    let all = axes.into_iter().enumerate();
    Some(all.map(|(i, axis)| (axis, span(i, axis))).collect())
}

/// The axes that a Slice takes a part of, each with the indices that it takes, if all is known.
pub fn slice_indices(call: &Call) -> Option<Vec<(usize, Vec<usize>)>> {
    let all = slices(call, call.dims(0)?)?.into_iter();
    all.map(|(axis, span)| Some((axis, span?.indices()?)))
        .collect()
}

/// shape(y)_a = ⌈(end − start) / step⌉ on the sliced axes
pub(super) fn slice(call: &Call) -> Option<Dims> {
    let x = call.dims(0)?;
    let Some(slices) = slices(call, x) else {
        return Some(vec![None; x.len()]);
    };
    let mut dims = x.to_vec();
    for (axis, span) in slices {
        *dims.get_mut(axis)? = span.map(|span| span.count);
    }
    Some(dims)
}

/// y[.., i, ..] = x[.., start + i · step, ..]
pub(super) fn sliced(call: &Call, _: &Output) -> Option<Value> {
    let mut value = call.value(0)?.clone();
    for (axis, indices) in slice_indices(call)? {
        value = selected(&value, axis, &indices);
    }
    Some(value)
}

/// shape(y) = shape(x)[..axis] + shape(indices) + shape(x)[axis + 1..]
pub(super) fn gather(call: &Call) -> Option<Dims> {
    let (data, indices) = (call.dims(0)?, call.dims(1)?);
    let axis = call.axis(data.len(), 0)?;
    Some([&data[..axis], indices, &data[axis + 1..]].concat())
}

/// y[i.., j.., k..] = x[i.., indices[j..], k..]; negative indices count from the end
pub(super) fn gathered(call: &Call, out: &Output) -> Option<Value> {
    let value = call.value(0)?;
    let axis = call.axis(value.shape().len(), 0)?;
    let length = value.shape()[axis];
    let indices = call.ints(1)?;
    let indices: Option<Vec<usize>> = indices.iter().map(|&i| axis_of(length, i)).collect();
    in_shape(&selected(value, axis, &indices?), &out.shape)
}

/// shape(y) = shape(indices)
pub(super) fn gather_elements(call: &Call) -> Option<Dims> {
    match call.dims(1) {
        Some(indices) => Some(indices.to_vec()),
        None => call.rank(0).map(|rank| vec![None; rank]),
    }
}

/// shape(y) = shape(indices)[..−1] + shape(x)[batch_dims + shape(indices)[−1]..]
pub(super) fn gather_nd(call: &Call) -> Option<Dims> {
    let (last, rows) = call.dims(1)?.split_last()?;
    let batch = attr_i(call.node, "batch_dims").unwrap_or(0);
    let skipped = usize::try_from(batch).ok()?.checked_add((*last)?)?;
    Some([rows, call.dims(0)?.get(skipped..)?].concat())
}

/// shape(y)_axis = Σ shape(x_k)_axis; the other axes are those of any input
pub(super) fn concat(call: &Call) -> Option<Dims> {
    let all: Vec<Option<&[Dim]>> = (0..call.count()).map(|slot| call.dims(slot)).collect();
    let rank = all.iter().flatten().next()?.len();
    if all.iter().flatten().any(|dims| dims.len() != rank) {
        return None;
    }
    let axis = axis_of(rank, attr_i(call.node, "axis")?)?;
    let any = |at: usize| all.iter().flatten().find_map(|dims| dims[at]);
    let mut dims: Dims = (0..rank).map(any).collect();
    dims[axis] = sum(all.iter().map(|dims| (*dims)?[axis]));
    Some(dims)
}

/// The inputs one after the other along the axis.
pub(super) fn concatenated(call: &Call, out: &Output) -> Option<Value> {
    let axis = ndarray::Axis(axis_of(out.shape.len(), attr_i(call.node, "axis")?)?);
    let all: Vec<&Value> = (0..call.count())
        .map(|slot| call.value(slot))
        .collect::<Option<_>>()?;
    if let Some(ints) = all
        .iter()
        .map(|v| Some(v.ints()?.view()))
        .collect::<Option<Vec<_>>>()
    {
        return Some(Value::Ints(concatenate(axis, &ints).ok()?.into_shared()));
    }
    let floats = all.iter().map(|v| Some(v.floats()?.view()));
    let floats: Vec<_> = floats.collect::<Option<_>>()?;
    Some(Value::Floats(
        concatenate(axis, &floats).ok()?.into_shared(),
    ))
}

/// The axis of a Split, and the lengths of its outputs along it as far as they are known.
fn lengths(call: &Call, x: &[Dim]) -> Option<(usize, Vec<Dim>)> {
    let axis = call.axis(x.len(), 0)?;
    let parts = call.node.output.len();
    let lengths: Vec<Dim> = match (call.list(1, "split"), x[axis]) {
        (List::Known(lengths), _) => {
            let lengths = lengths.into_iter().map(|n| n.try_into().ok());
            lengths.map(|n| n.map(Some)).collect::<Option<_>>()?
        }
        // Equal parts, of which the last may be smaller.
        (List::Absent, Some(length)) => {
            let part = length.div_ceil(parts.max(1));
            (0..parts)
                .map(|i| Some(part.min(length.saturating_sub(i * part))))
                .collect()
        }
        _ => vec![None; parts],
    };
    let total = sum(lengths.iter().copied());
    let fits = total.zip(x[axis]).is_none_or(|(total, n)| total == n);
    (lengths.len() == parts && fits).then_some((axis, lengths))
}

/// shape(y_k)_axis = split_k; without `split` the parts are equal
pub(super) fn split(call: &Call) -> Option<Vec<Dims>> {
    let x = call.dims(0)?;
    let (axis, lengths) = lengths(call, x)?;
    let part = |length: Dim| {
        let mut part = x.to_vec();
        part[axis] = length;
        part
    };
    Some(lengths.into_iter().map(part).collect())
}

/// y_k = x[.., split_0 + … + split_(k−1) + i, ..]
pub(super) fn part(call: &Call, out: &Output) -> Option<Value> {
    let (axis, lengths) = lengths(call, call.dims(0)?)?;
    let before = lengths.get(..out.number)?;
    let start = sum(before.iter().copied())?;
    let indices: Vec<usize> = (start..start + out.shape[axis]).collect();
    Some(selected(call.value(0)?, axis, &indices))
}

/// shape(y)_a = shape(x)_a + pads before + pads behind
pub(super) fn pad(call: &Call) -> Option<Dims> {
    let x = call.dims(0)?;
    let axes = match call.list(3, "axes") {
        List::Known(given) => Some(axes_of(x.len(), &given)?),
        List::Absent => Some((0..x.len()).collect()),
        List::Unknown(_) => None,
    };
    let (Some(axes), Some(pads)) = (axes, call.list(1, "pads").known()) else {
        return Some(vec![None; x.len()]);
    };
    if pads.len() != 2 * axes.len() {
        return None;
    }
    let mut dims = x.to_vec();
    let (before, after) = pads.split_at(axes.len());
    for ((axis, before), after) in axes.into_iter().zip(before).zip(after) {
        dims[axis] = match dims[axis] {
            Some(n) => {
                let size = i64::try_from(n).ok()?.checked_add(*before)?;
                Some(size.checked_add(*after)?.try_into().ok()?)
            }
            None => None,
        };
    }
    Some(dims)
}

/// shape(y)_axis = k, of the values and of their indices
pub(super) fn top_k(call: &Call) -> Option<Vec<Dims>> {
    let mut dims = call.dims(0)?.to_vec();
    let axis = call.axis(dims.len(), -1)?;
    dims[axis] = match call.list(1, "k") {
        List::Known(k) => k.first().and_then(|&k| k.try_into().ok()),
        _ => attr_i(call.node, "k").and_then(|k| k.try_into().ok()),
    };
    Some(vec![dims.clone(), dims])
}

/// shape(y) = shape(indices) with the depth as one more axis
pub(super) fn one_hot(call: &Call) -> Option<Dims> {
    let mut dims = call.dims(0)?.to_vec();
    let axis = call.axis(dims.len() + 1, -1)?;
    let depth = call.ints(1).and_then(|d| d.first().copied());
    dims.insert(axis, depth.and_then(|d| d.try_into().ok()));
    Some(dims)
}
