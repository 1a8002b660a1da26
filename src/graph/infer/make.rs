//! Operators that make a value from a shape, an attribute or a few numbers.

use ndarray::{ArrayD, IxDyn};

use super::call::Call;
use super::fact::{Dim, Dims, Fact, Limits, Value, known, line, number, product};
use super::rule::Output;
use crate::onnx::node::{attr, attr_f, attr_i, attr_ints, attr_t};
use crate::onnx::{DataType, tensor};

/// The part of the shape that a Shape tells: from `start` to `end`, both clamped, negative ones from the end.
pub(super) fn told<'a>(call: &Call<'a>) -> Option<&'a [Dim]> {
    let x = call.dims(0)?;
    let rank = x.len() as i64;
    let at = |name: &str, default: i64| {
        let at = attr_i(call.node, name).unwrap_or(default);
        (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize
    };
    Some(x.get(at("start", 0)..at("end", rank)).unwrap_or(&[]))
}

/// shape(y) = [rank(x)]
pub(super) fn shape(call: &Call) -> Option<Dims> {
    Some(vec![told(call).map(<[Dim]>::len)])
}

/// y = shape(x)
pub(super) fn shape_value(call: &Call, _: &Output) -> Option<Value> {
    let sizes = told(call)?.iter().map(|n| (*n)?.try_into().ok());
    Some(line(sizes.collect::<Option<_>>()?))
}

/// y is one number.
pub(super) fn scalar(_: &Call) -> Option<Dims> {
    Some(vec![])
}

/// y = ∏ shape(x)
pub(super) fn size_value(call: &Call, _: &Output) -> Option<Value> {
    Some(number(product(call.dims(0)?)?.try_into().ok()?))
}

/// The number of elements of a Range: max(0, ⌈(limit − start) / step⌉), of integers.
fn range_count(call: &Call) -> Option<(i64, i64, usize)> {
    let [start, limit, step] = [0, 1, 2].map(|slot| match call.ints(slot)?.as_slice() {
        &[n] => Some(n),
        _ => None,
    });
    let (start, limit, step) = (start?, limit?, step?);
    let far = i128::from(limit) - i128::from(start);
    let (far, stride) = if step < 0 {
        (-far, -i128::from(step))
    } else {
        (far, i128::from(step))
    };
    if stride == 0 {
        return None;
    }
    let count = (far.max(0) + stride - 1) / stride;
    Some((start, step, count.try_into().ok()?))
}

/// shape(y) = [⌈(limit − start) / step⌉]
pub(super) fn range(call: &Call) -> Option<Dims> {
    Some(vec![range_count(call).map(|(.., count)| count)])
}

/// y_i = start + i · step
pub(super) fn range_value(call: &Call, _: &Output) -> Option<Value> {
    let (start, step, count) = range_count(call)?;
    Some(line((0..count as i64).map(|i| start + i * step).collect()))
}

/// What a Constant node says; the elements of a tensor are read if `limits` allow.
fn constant(call: &Call, limits: Limits) -> Option<Fact> {
    let node = call.node;
    if let Some(value) = attr_t(node, "value") {
        return Some(Fact::of_tensor(value, limits));
    }
    let floats = |array: ArrayD<f32>| {
        let value = Value::Floats(array.into_shared());
        Some(Fact::of_value(DataType::Float, value))
    };
    if let Some(x) = attr_f(node, "value_float") {
        return floats(ndarray::arr0(x).into_dyn());
    }
    if let Some(a) = attr(node, "value_floats") {
        return floats(ndarray::Array1::from(a.floats.clone()).into_dyn());
    }
    if let Some(i) = attr_i(node, "value_int") {
        return Some(Fact::of_value(DataType::Int64, number(i)));
    }
    let ints = attr_ints(node, "value_ints")?;
    Some(Fact::of_value(DataType::Int64, line(ints.to_vec())))
}

/// No elements, only type and shape.
const UNREAD: Limits = Limits { ints: 0, floats: 0 };

/// The type of the value.
pub(super) fn constant_type(call: &Call) -> Option<DataType> {
    constant(call, UNREAD)?.dtype
}

/// shape(y) = shape(value)
pub(super) fn constant_shape(call: &Call) -> Option<Dims> {
    constant(call, UNREAD)?.dims
}

/// y = value
pub(super) fn constant_value(call: &Call, _: &Output) -> Option<Value> {
    constant(call, call.limits)?.value
}

/// The type of `value`; float32 without it.
pub(super) fn filled_type(call: &Call) -> Option<DataType> {
    match attr_t(call.node, "value") {
        Some(value) => tensor::dtype(value),
        None => Some(DataType::Float),
    }
}

/// shape(y) = x
pub(super) fn filled(call: &Call) -> Option<Dims> {
    match call.sizes(0) {
        Some(sizes) => Some(known(&sizes)),
        None => call.length(0).map(|rank| vec![None; rank]),
    }
}

/// y_i = value; 0 without it
pub(super) fn filled_value(call: &Call, out: &Output) -> Option<Value> {
    let shape = out.shape.as_slice();
    let floats = |value: f32| Value::Floats(ArrayD::from_elem(shape, value).into_shared());
    Some(match attr_t(call.node, "value") {
        None => floats(0.0),
        Some(value) if tensor::is_float(out.dtype) => {
            floats(*tensor::float_array(value).ok()?.first()?)
        }
        Some(value) => {
            let value = *tensor::int_array(value).ok()?.first()?;
            Value::Ints(ArrayD::from_elem(shape, value).into_shared())
        }
    })
}

/// shape(y) = [rank(x), number of elements of x that are not 0]: which is known where x is
pub(super) fn non_zero(call: &Call) -> Option<Dims> {
    let rank = call.rank(0);
    // Of a scalar the ranks that runtimes give differ.
    let known = call.value(0).filter(|_| rank != Some(0));
    let count = known
        .and_then(Value::ints)
        .map(|x| x.iter().filter(|&&v| v != 0).count());
    Some(vec![rank, count])
}

/// y[axis][i] = index along `axis` of element i that is not 0, in the order of rows
pub(super) fn non_zero_value(call: &Call, out: &Output) -> Option<Value> {
    let found = call.value(0)?.ints()?.indexed_iter();
    let found: Vec<IxDyn> = found.filter(|(_, v)| **v != 0).map(|(at, _)| at).collect();
    let axes = (0..*out.shape.first()?).flat_map(|axis| found.iter().map(move |at| at[axis]));
    let indices: Option<Vec<i64>> = axes.map(|index| i64::try_from(index).ok()).collect();
    let array = ArrayD::from_shape_vec(out.shape.as_slice(), indices?).ok()?;
    Some(Value::Ints(array.into_shared()))
}

/// The type that attribute `to` names.
pub(super) fn cast_type(call: &Call) -> Option<DataType> {
    named(call, "to")
}

fn named(call: &Call, attr: &str) -> Option<DataType> {
    let code = i32::try_from(attr_i(call.node, attr)?).ok()?;
    let dtype = DataType::try_from(code).ok()?;
    (dtype != DataType::Undefined).then_some(dtype)
}

/// The type of the second input.
pub(super) fn second_type(call: &Call) -> Option<DataType> {
    call.dtype(1)
}

/// `output_dtype`, or the type of the scale.
pub(super) fn dequantized_type(call: &Call) -> Option<DataType> {
    named(call, "output_dtype").or(call.dtype(1))
}

/// The type of the zero point, `output_dtype`, or uint8.
pub(super) fn quantized_type(call: &Call) -> Option<DataType> {
    if call.given(2) {
        return call.dtype(2);
    }
    named(call, "output_dtype").or(Some(DataType::Uint8))
}

/// shape(y) = shape(x); one scale and one zero point
pub(super) fn dynamically_quantized(call: &Call) -> Option<Vec<Dims>> {
    Some(vec![call.dims(0)?.to_vec(), vec![], vec![]])
}

/// The type of the output's zero point, the last of the eight inputs of a QLinearMatMul.
pub(super) fn output_zero_type(call: &Call) -> Option<DataType> {
    call.dtype(7)
}
