//! Operators that give the elements another shape or order, or repeat them.

use ndarray::{ArcArray, IxDyn};

use super::call::{Call, List, axes_of};
use super::elementwise::broadcast;
use super::fact::{Dim, Dims, Fact, Value, known, product, selected};
use super::rule::Output;
use crate::onnx::node::{attr_i, attr_ints};
use crate::onnx::proto::NodeProto;

/// shape(y) = target, where 0 copies the axis of x (unless `allowzero`) and −1 is what remains
pub(super) fn reshape(call: &Call) -> Option<Dims> {
    let x = call.dims(0);
    let Some(target) = call.ints(1) else {
        return call.length(1).map(|rank| match rank {
            1 => vec![x.and_then(product)],
            rank => vec![None; rank],
        });
    };
    let allow_zero = call.flag("allowzero", false);
    let mut open = None;
    let mut dims = Vec::new();
    for (at, &n) in target.iter().enumerate() {
        dims.push(match n {
            -1 if open.is_none() => {
                open = Some(at);
                Some(1)
            }
            0 if !allow_zero => match x {
                Some(x) => *x.get(at)?,
                None => None,
            },
            n => Some(n.try_into().ok()?),
        });
    }
    let (total, stated) = (x.and_then(product), product(&dims));
    if let Some(at) = open {
        dims[at] = match (total, stated) {
            (Some(total), Some(stated)) if stated == 0 || total % stated != 0 => return None,
            (Some(total), Some(stated)) => Some(total / stated),
            _ => None,
        };
    } else if total.zip(stated).is_some_and(|(a, b)| a != b) {
        return None;
    }
    Some(dims)
}

/// shape(y) = [∏ x_i over i < axis, ∏ x_i over i ≥ axis]
pub(super) fn flatten(call: &Call) -> Option<Dims> {
    let Some(x) = call.dims(0) else {
        return Some(vec![None; 2]);
    };
    let axis = attr_i(call.node, "axis").unwrap_or(1);
    let axis = if axis < 0 {
        axis + x.len() as i64
    } else {
        axis
    };
    let (before, after) = x.split_at_checked(axis.try_into().ok()?)?;
    Some(vec![product(before), product(after)])
}

/// shape(y)_i = x_perm(i); without `perm` the axes are reversed
pub(super) fn transpose(call: &Call) -> Option<Dims> {
    match (call.dims(0), attr_ints(call.node, "perm")) {
        (Some(x), _) => {
            let perm = permutation(call, x.len())?;
            Some(perm.into_iter().map(|axis| x[axis]).collect())
        }
        (None, Some(perm)) => Some(vec![None; perm.len()]),
        (None, None) => None,
    }
}

/// A permutation tells the rank of what it permutes too.
pub(super) fn permuted_input(node: &NodeProto) -> Option<Fact> {
    let perm = attr_ints(node, "perm")?;
    Some(Fact {
        dims: Some(vec![None; perm.len()]),
        ..Fact::default()
    })
}

/// The axes of the input in the order of the output, each once.
fn permutation(call: &Call, rank: usize) -> Option<Vec<usize>> {
    let perm = match attr_ints(call.node, "perm").filter(|perm| !perm.is_empty()) {
        // No axis of it counts from the end.
        Some(perm) => {
            let axes = perm.iter().map(|&axis| axis.try_into().ok());
            axes.collect::<Option<Vec<usize>>>()?
        }
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..rank).then_some(perm)
}

/// shape(y) = shape(x) without `axes`, all of size 1; without `axes` all such axes go
pub(super) fn squeeze(call: &Call) -> Option<Dims> {
    let x = call.dims(0)?;
    let gone = match call.list(1, "axes") {
        List::Known(given) => axes_of(x.len(), &given)?,
        List::Unknown(count) => return Some(vec![None; x.len().checked_sub(count?)?]),
        List::Absent => {
            let x = call.shape(0)?;
            (0..x.len()).filter(|&axis| x[axis] == 1).collect()
        }
    };
    if gone.iter().any(|&axis| x[axis].is_some_and(|n| n != 1)) {
        return None;
    }
    Some(without(x, &gone))
}

/// The sizes of all axes but some.
pub(super) fn without(dims: &[Dim], gone: &[usize]) -> Dims {
    let all = dims.iter().enumerate();
    all.filter(|(axis, _)| !gone.contains(axis))
        .map(|(_, &n)| n)
        .collect()
}

/// shape(y) = shape(x) with a 1 at each of `axes`, counted in y
pub(super) fn unsqueeze(call: &Call) -> Option<Dims> {
    let x = call.dims(0)?;
    let mut added = match call.list(1, "axes") {
        List::Known(given) => axes_of(x.len() + given.len(), &given)?,
        // Of a scalar all axes are new.
        List::Unknown(count) if x.is_empty() => return Some(vec![Some(1); count?]),
        List::Unknown(count) => return Some(vec![None; x.len() + count?]),
        List::Absent => return None,
    };
    added.sort_unstable();
    let mut dims = x.to_vec();
    for axis in added {
        if axis > dims.len() {
            return None;
        }
        dims.insert(axis, Some(1));
    }
    Some(dims)
}

/// shape(y) = broadcast of shape(x) and the target
pub(super) fn expand(call: &Call) -> Option<Dims> {
    let target = match call.sizes(1) {
        Some(sizes) => known(&sizes),
        None => vec![None; call.length(1)?],
    };
    broadcast(call.dims(0)?, &target)
}

/// shape(y)_i = x_i · repeats_i
pub(super) fn tile(call: &Call) -> Option<Dims> {
    let x = call.dims(0)?;
    let Some(repeats) = call.sizes(1) else {
        return Some(vec![None; x.len()]);
    };
    if repeats.len() != x.len() {
        return None;
    }
    let repeated = x.iter().zip(repeats);
    Some(
        repeated
            .map(|(n, times)| n.and_then(|n| n.checked_mul(times)))
            .collect(),
    )
}

/// shape(y) = [n, c / b², h · b, w · b] of x: [n, c, h, w] with blocks of b · b
pub(super) fn depth_to_space(call: &Call) -> Option<Dims> {
    let &[n, c, h, w] = call.dims(0)? else {
        return None;
    };
    let block = usize::try_from(attr_i(call.node, "blocksize")?).ok()?;
    let times = |n: Dim| n.and_then(|n| n.checked_mul(block));
    let c = c.and_then(|c| c.checked_div(block.checked_mul(block)?));
    Some(vec![n, c, times(h), times(w)])
}

/// shape(y) = [n, c · b², h / b, w / b] of x: [n, c, h, w] with blocks of b · b
pub(super) fn space_to_depth(call: &Call) -> Option<Dims> {
    let &[n, c, h, w] = call.dims(0)? else {
        return None;
    };
    let block = usize::try_from(attr_i(call.node, "blocksize")?).ok()?;
    let part = |n: Dim| n.and_then(|n| n.checked_div(block));
    let c = c.and_then(|c| c.checked_mul(block.checked_mul(block)?));
    Some(vec![n, c, part(h), part(w)])
}

/// shape(y) = [?, …], as many as x has
pub(super) fn rank(call: &Call) -> Option<Dims> {
    call.rank(0).map(|rank| vec![None; rank])
}

/// The elements in row-major order in the shape of y.
pub(super) fn reordered(call: &Call, out: &Output) -> Option<Value> {
    in_shape(call.value(0)?, &out.shape)
}

/// The elements in row-major order in another shape; not copied if they lie in that order.
pub(super) fn in_shape(value: &Value, shape: &[usize]) -> Option<Value> {
    fn elements<T: Clone>(a: &ArcArray<T, IxDyn>, shape: &[usize]) -> Option<ArcArray<T, IxDyn>> {
        let a = if a.is_standard_layout() {
            a.clone()
        } else {
            a.as_standard_layout().into_owned().into_shared()
        };
        a.into_shape_with_order(IxDyn(shape)).ok()
    }
    Some(match value {
        Value::Ints(a) => Value::Ints(elements(a, shape)?),
        Value::Floats(a) => Value::Floats(elements(a, shape)?),
    })
}

/// y[.., i_perm(0), i_perm(1), ..] = x[.., i_0, i_1, ..]
pub(super) fn permuted(call: &Call, out: &Output) -> Option<Value> {
    let perm = permutation(call, out.shape.len())?;
    Some(match call.value(0)? {
        Value::Ints(a) => Value::Ints(a.clone().permuted_axes(perm)),
        Value::Floats(a) => Value::Floats(a.clone().permuted_axes(perm)),
    })
}

/// y[i] = x[i], where axes of size 1 of x are repeated
pub(super) fn expanded(call: &Call, out: &Output) -> Option<Value> {
    let shape = IxDyn(&out.shape);
    Some(match call.value(0)? {
        Value::Ints(a) => Value::Ints(a.broadcast(shape)?.to_shared()),
        Value::Floats(a) => Value::Floats(a.broadcast(shape)?.to_shared()),
    })
}

/// y[i] = x[i mod shape(x)]
pub(super) fn tiled(call: &Call, out: &Output) -> Option<Value> {
    let mut value = call.value(0)?.clone();
    for (axis, &n) in out.shape.iter().enumerate() {
        let length = value.shape()[axis];
        let indices: Vec<usize> = (0..n).map(|i| i % length.max(1)).collect();
        value = selected(&value, axis, &indices);
    }
    Some(value)
}
