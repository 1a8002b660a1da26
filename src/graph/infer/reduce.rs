//! Operators that make one element of all along some axes.

use ndarray::ArrayD;

use super::call::{Call, List, axes_of};
use super::fact::{Dim, Dims, Value};
use super::layout::without;
use super::rule::Output;

/// shape(y) = shape(x), where `axes` are 1 or, without `keepdims`, gone; without `axes` all are (or none, with
/// `noop_with_empty_axes`)
pub(super) fn reduce(call: &Call) -> Option<Dims> {
    let x = call.dims(0);
    let keep = call.flag("keepdims", true);
    let given = match call.list(1, "axes") {
        List::Known(given) => given,
        List::Absent => Vec::new(),
        List::Unknown(count) => {
            let rank = x?.len();
            return if keep {
                Some(vec![None; rank])
            } else {
                // None at all would mean every axis.
                let count = count.filter(|&n| n > 0)?;
                Some(vec![None; rank.checked_sub(count)?])
            };
        }
    };
    if given.is_empty() && call.flag("noop_with_empty_axes", false) {
        return Some(x?.to_vec());
    }
    if given.is_empty() && !keep {
        return Some(vec![]);
    }
    let x = x?;
    let over = match given.as_slice() {
        [] => (0..x.len()).collect(),
        given => axes_of(x.len(), given)?,
    };
    Some(reduced(x, &over, keep))
}

fn reduced(x: &[Dim], over: &[usize], keep: bool) -> Dims {
    if !keep {
        return without(x, over);
    }
    let all = x.iter().enumerate();
    all.map(|(axis, &n)| if over.contains(&axis) { Some(1) } else { n })
        .collect()
}

/// shape(y) = shape(x), where `axis` is 1 or, without `keepdims`, gone
pub(super) fn arg(call: &Call) -> Option<Dims> {
    let x = call.dims(0)?;
    let axis = call.axis(x.len(), 0)?;
    Some(reduced(x, &[axis], call.flag("keepdims", true)))
}

/// y = ∏ x
pub(super) fn product(call: &Call, out: &Output) -> Option<Value> {
    fold(call, out, i64::checked_mul)
}

/// y = Σ x
pub(super) fn sum(call: &Call, out: &Output) -> Option<Value> {
    fold(call, out, i64::checked_add)
}

/// y = max x
pub(super) fn max(call: &Call, out: &Output) -> Option<Value> {
    fold(call, out, |a, b| Some(a.max(b)))
}

/// y = min x
pub(super) fn min(call: &Call, out: &Output) -> Option<Value> {
    fold(call, out, |a, b| Some(a.min(b)))
}

/// All integers to one; along an axis sizes are not reduced.
fn fold(call: &Call, out: &Output, f: fn(i64, i64) -> Option<i64>) -> Option<Value> {
    let x = call.value(0)?.ints()?;
    if out.shape.iter().product::<usize>() != 1 {
        return None;
    }
    let mut all = x.iter().copied();
    let first = all.next()?;
    let result = all.try_fold(first, f)?;
    let array = ArrayD::from_elem(out.shape.as_slice(), result);
    Some(Value::Ints(array.into_shared()))
}
