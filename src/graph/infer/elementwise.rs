//! Operators that work on each element by itself: arithmetic, comparisons, casts.
//!
//! Values: integers are exact, and not known where they overflow; floats are computed in float32 and rounded to the type
//! of the output, as a runtime does.

use std::cmp::Ordering;

use ndarray::{ArcArray, ArrayD, IxDyn, Zip};

use super::call::Call;
use super::fact::{Dim, Dims, Value, known};
use super::rule::Output;
use crate::onnx::DataType;
use crate::onnx::node::attr_i;
use crate::onnx::tensor;

/// shape(y) = shape(x)
pub(super) fn same(call: &Call) -> Option<Dims> {
    call.dims(0).map(<[Dim]>::to_vec)
}

/// shape(y) = broadcast of the shapes of all inputs
pub(super) fn broadcast_all(call: &Call) -> Option<Dims> {
    let mut dims = Vec::new();
    for slot in 0..call.count() {
        dims = broadcast(&dims, call.dims(slot)?)?;
    }
    Some(dims)
}

/// NumPy's rule: axes are compared from the last one, and 1 stretches. An unknown size beside one above 1 is 1 or the same.
/// `None` if the two do not fit.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Dims> {
    let rank = a.len().max(b.len());
    // An axis that is missing is 1.
    let from_last = |s: &[Dim], at: usize| match (at + s.len()).checked_sub(rank) {
        Some(at) => s[at],
        None => Some(1),
    };
    let axis = |at: usize| match (from_last(a, at), from_last(b, at)) {
        (Some(1), n) | (n, Some(1)) => Some(n),
        (Some(m), Some(n)) => (m == n).then_some(Some(n)),
        (m, n) => Some(m.or(n)),
    };
    (0..rank).map(axis).collect()
}

/// The shape of two arrays broadcast to each other.
fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<IxDyn> {
    let shape: Option<Vec<usize>> = broadcast(&known(a), &known(b))?.into_iter().collect();
    Some(IxDyn(&shape?))
}

/// y = x
pub(super) fn identity(call: &Call, _: &Output) -> Option<Value> {
    call.value(0).cloned()
}

/// y = −x
pub(super) fn neg(call: &Call, out: &Output) -> Option<Value> {
    unary(call, out, i64::checked_neg, |x| -x)
}

/// y = |x|
pub(super) fn abs(call: &Call, out: &Output) -> Option<Value> {
    unary(call, out, i64::checked_abs, f32::abs)
}

/// y = ⌊x⌋
pub(super) fn floor(call: &Call, out: &Output) -> Option<Value> {
    unary(call, out, |_| None, f32::floor)
}

/// y = ⌈x⌉
pub(super) fn ceil(call: &Call, out: &Output) -> Option<Value> {
    unary(call, out, |_| None, f32::ceil)
}

/// y = √x
pub(super) fn sqrt(call: &Call, out: &Output) -> Option<Value> {
    unary(call, out, |_| None, f32::sqrt)
}

/// y = 1 / x
pub(super) fn reciprocal(call: &Call, out: &Output) -> Option<Value> {
    unary(call, out, |_| None, |x| 1.0 / x)
}

/// y = not x
pub(super) fn not(call: &Call, out: &Output) -> Option<Value> {
    unary(call, out, |x| Some(1 - x), |x| x)
}

/// y = a + b; of Sum a + b + c + …
pub(super) fn add(call: &Call, out: &Output) -> Option<Value> {
    arithmetic(call, out, i64::checked_add, |a, b| a + b)
}

/// y = a − b
pub(super) fn sub(call: &Call, out: &Output) -> Option<Value> {
    arithmetic(call, out, i64::checked_sub, |a, b| a - b)
}

/// y = a · b
pub(super) fn mul(call: &Call, out: &Output) -> Option<Value> {
    arithmetic(call, out, i64::checked_mul, |a, b| a * b)
}

/// y = a / b; of integers rounded towards zero
pub(super) fn div(call: &Call, out: &Output) -> Option<Value> {
    arithmetic(call, out, i64::checked_div, |a, b| a / b)
}

/// y = max(a, b, …), of integers
pub(super) fn max(call: &Call, out: &Output) -> Option<Value> {
    ints(call, out, |a, b| Some(a.max(b)))
}

/// y = min(a, b, …), of integers
pub(super) fn min(call: &Call, out: &Output) -> Option<Value> {
    ints(call, out, |a, b| Some(a.min(b)))
}

/// y = a mod b, of integers: with the sign of b, with `fmod` that of a
pub(super) fn modulo(call: &Call, out: &Output) -> Option<Value> {
    let of_dividend = attr_i(call.node, "fmod").unwrap_or(0) != 0;
    ints(call, out, |a, b| {
        let rest = a.checked_rem(b)?;
        if of_dividend {
            return Some(rest);
        }
        rest.checked_add(b)?.checked_rem(b)
    })
}

/// y = aᵇ; of integers with b ≥ 0
pub(super) fn pow(call: &Call, out: &Output) -> Option<Value> {
    let int = |a: i64, b: i64| a.checked_pow(u32::try_from(b).ok()?);
    arithmetic(call, out, int, f32::powf)
}

/// y = a and b
pub(super) fn and(call: &Call, out: &Output) -> Option<Value> {
    ints(call, out, |a, b| Some(i64::from(a != 0 && b != 0)))
}

/// y = a or b
pub(super) fn or(call: &Call, out: &Output) -> Option<Value> {
    ints(call, out, |a, b| Some(i64::from(a != 0 || b != 0)))
}

/// y = a ≠ b, of booleans
pub(super) fn xor(call: &Call, out: &Output) -> Option<Value> {
    ints(call, out, |a, b| Some(i64::from((a != 0) != (b != 0))))
}

/// y = (a = b), of integers
pub(super) fn equal(call: &Call, out: &Output) -> Option<Value> {
    compare(call, out, Ordering::is_eq)
}

/// y = (a < b), of integers
pub(super) fn less(call: &Call, out: &Output) -> Option<Value> {
    compare(call, out, Ordering::is_lt)
}

/// y = (a ≤ b), of integers
pub(super) fn less_or_equal(call: &Call, out: &Output) -> Option<Value> {
    compare(call, out, Ordering::is_le)
}

/// y = (a > b), of integers
pub(super) fn greater(call: &Call, out: &Output) -> Option<Value> {
    compare(call, out, Ordering::is_gt)
}

/// y = (a ≥ b), of integers
pub(super) fn greater_or_equal(call: &Call, out: &Output) -> Option<Value> {
    compare(call, out, Ordering::is_ge)
}

/// y = a where c, else b
pub(super) fn select(call: &Call, out: &Output) -> Option<Value> {
    fn picked<T: Copy>(
        condition: &ArcArray<i64, IxDyn>,
        a: &ArcArray<T, IxDyn>,
        b: &ArcArray<T, IxDyn>,
        shape: &[usize],
    ) -> Option<ArcArray<T, IxDyn>> {
        let zip = Zip::from(condition.broadcast(shape)?);
        let zip = zip.and(a.broadcast(shape)?).and(b.broadcast(shape)?);
        let array = zip.map_collect(|&c, &a, &b| if c != 0 { a } else { b });
        Some(shared(array))
    }
    let condition = call.value(0)?.ints()?;
    Some(match (call.value(1)?, call.value(2)?) {
        (Value::Ints(a), Value::Ints(b)) => Value::Ints(picked(condition, a, b, &out.shape)?),
        (Value::Floats(a), Value::Floats(b)) => Value::Floats(picked(condition, a, b, &out.shape)?),
        _ => return None,
    })
}

/// y = x in another type: towards zero from floats to integers, and x ≠ 0 to bool
pub(super) fn cast(call: &Call, out: &Output) -> Option<Value> {
    let to_float = tensor::is_float(out.dtype);
    Some(match call.value(0)? {
        Value::Ints(a) if out.dtype == DataType::Bool => {
            Value::Ints(shared(a.mapv(|v| i64::from(v != 0))))
        }
        Value::Ints(a) if to_float => rounded(shared(a.mapv(|v| v as f32)), out.dtype),
        Value::Ints(a) => Value::Ints(a.clone()),
        Value::Floats(a) if out.dtype == DataType::Bool => {
            Value::Ints(shared(a.mapv(|v| i64::from(v != 0.0))))
        }
        Value::Floats(a) if to_float => rounded(a.clone(), out.dtype),
        // Beyond 2⁵³ and for what is not finite the result depends on the computer.
        Value::Floats(a) if a.iter().any(|v| v.is_nan() || v.abs() > 9e15) => return None,
        Value::Floats(a) => Value::Ints(shared(a.mapv(|v| v as i64))),
    })
}

fn shared<T: Clone>(array: ArrayD<T>) -> ArcArray<T, IxDyn> {
    array.into_shared()
}

/// Floats of type `dtype`: what is computed in float16 is rounded to float16.
fn rounded(array: ArcArray<f32, IxDyn>, dtype: DataType) -> Value {
    Value::Floats(match dtype {
        DataType::Float16 => shared(array.mapv(|x| half::f16::from_f32(x).to_f32())),
        DataType::Bfloat16 => shared(array.mapv(|x| half::bf16::from_f32(x).to_f32())),
        _ => array,
    })
}

/// One function of one element; an integer result that does not exist makes the whole unknown.
fn unary(
    call: &Call,
    out: &Output,
    int: impl Fn(i64) -> Option<i64>,
    float: impl Fn(f32) -> f32,
) -> Option<Value> {
    match call.value(0)? {
        Value::Ints(a) => {
            let values: Vec<i64> = a.iter().map(|&v| int(v)).collect::<Option<_>>()?;
            let array = ArcArray::from_shape_vec(a.raw_dim(), values);
            Some(Value::Ints(array.ok()?))
        }
        Value::Floats(a) => Some(rounded(shared(a.mapv(float)), out.dtype)),
    }
}

/// All inputs from the left to the right, with broadcasting; floats of two types are not mixed.
fn arithmetic(
    call: &Call,
    out: &Output,
    int: impl Fn(i64, i64) -> Option<i64>,
    float: impl Fn(f32, f32) -> f32,
) -> Option<Value> {
    if call.count() < 2 {
        return None;
    }
    let mut result = call.value(0)?.clone();
    for slot in 1..call.count() {
        result = match (&result, call.value(slot)?) {
            (Value::Ints(a), Value::Ints(b)) => Value::Ints(zip_ints(a, b, &int)?),
            (Value::Floats(a), Value::Floats(b)) if call.dtype(slot) == call.dtype(0) => {
                let shape = broadcast_shape(a.shape(), b.shape())?;
                let (a, b) = (a.broadcast(shape.clone())?, b.broadcast(shape)?);
                let array = Zip::from(&a).and(&b).map_collect(|&x, &y| float(x, y));
                rounded(shared(array), out.dtype)
            }
            _ => return None,
        };
    }
    Some(result)
}

/// The same of integers alone.
fn ints(call: &Call, out: &Output, f: impl Fn(i64, i64) -> Option<i64>) -> Option<Value> {
    call.value(0)?.ints()?;
    arithmetic(call, out, f, |_, _| f32::NAN)
}

fn compare(call: &Call, out: &Output, holds: fn(Ordering) -> bool) -> Option<Value> {
    ints(call, out, |a, b| Some(i64::from(holds(a.cmp(&b)))))
}

fn zip_ints(
    a: &ArcArray<i64, IxDyn>,
    b: &ArcArray<i64, IxDyn>,
    f: impl Fn(i64, i64) -> Option<i64>,
) -> Option<ArcArray<i64, IxDyn>> {
    let shape = broadcast_shape(a.shape(), b.shape())?;
    let (a, b) = (a.broadcast(shape.clone())?, b.broadcast(shape.clone())?);
    let values = a.iter().zip(b.iter()).map(|(&a, &b)| f(a, b));
    ArcArray::from_shape_vec(shape, values.collect::<Option<Vec<_>>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_with_unknown_sizes() {
        let (u, one, two, three) = (None, Some(1), Some(2), Some(3));
        for (a, b, expected) in [
            (&[two, three][..], &[three][..], Some(vec![two, three])),
            (&[two, one], &[one, three], Some(vec![two, three])),
            (&[u, three], &[two, one], Some(vec![two, three])),
            (&[u], &[u], Some(vec![u])),
            (&[u], &[one], Some(vec![u])),
            (&[], &[u, two], Some(vec![u, two])),
            (&[], &[one], Some(vec![one])),
            (&[two], &[three], None),
        ] {
            assert_eq!(broadcast(a, b), expected, "{a:?} {b:?}");
            assert_eq!(broadcast(b, a), expected, "{b:?} {a:?}");
        }
    }
}
