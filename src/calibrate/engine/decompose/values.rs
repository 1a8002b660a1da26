//! Values that are the same for all data: sizes, indices and positions that a graph computes from the shapes of its
//! inputs. Only small ones are computed, and exactly as the operator defines it; everything else is not known.

use ndarray::{ArrayD, Axis, IxDyn, concatenate};

use super::known::{Known, broadcast, permutation, slices, split_lengths};
use super::scope::{MAX_ELEMENTS, Value};
use crate::onnx::DataType;
use crate::onnx::node::{attr_f, attr_i, attr_ints, attr_t};
use crate::onnx::op;
use crate::onnx::tensor;

/// Floats are known only as far as they become sizes, as in Floor(n · ratio).
pub(super) const MAX_FLOATS: usize = 64;

/// The values of all outputs of a node, of type `dtype` and of the given shapes as far as those are known.
pub(super) fn outputs(
    known: Known<'_>,
    dtype: DataType,
    shapes: &[Vec<usize>],
) -> Option<Vec<Value>> {
    let limit = match dtype {
        DataType::Int64 | DataType::Int32 | DataType::Bool => MAX_ELEMENTS,
        DataType::Float => MAX_FLOATS,
        _ => return None,
    };
    let count: usize = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
    if count > limit {
        return None;
    }
    let values = match (known.node.op_type(), shapes) {
        (op::Split, _) => split(known)?,
        (op::Shape | op::Size | op::Constant | op::Range, _) => vec![source(known)?],
        (_, [shape]) => vec![moved(known, shape).or_else(|| computed(known, dtype, shape))?],
        _ => return None,
    };
    let fits = |value: &Value| match (value, dtype) {
        (Value::Ints(a), DataType::Int32) => a.iter().all(|&v| i32::try_from(v).is_ok()),
        (Value::Ints(a), DataType::Bool) => a.iter().all(|v| (0..2).contains(v)),
        (Value::Ints(_), DataType::Int64) => true,
        (Value::Floats(_), _) => dtype == DataType::Float,
        _ => false,
    };
    let small = |value: &Value| value.shape().iter().product::<usize>() <= limit;
    values.iter().all(|v| fits(v) && small(v)).then_some(values)
}

fn line(values: Vec<i64>) -> Value {
    Value::Ints(ndarray::Array1::from(values).into_dyn())
}

fn scalar<T>(value: T) -> ArrayD<T> {
    ndarray::arr0(value).into_dyn()
}

/// Operators that make a value from a shape or from nothing.
fn source(known: Known<'_>) -> Option<Value> {
    let node = known.node;
    match node.op_type() {
        op::Shape => {
            let shape = known.shape(0)?;
            let rank = shape.len() as i64;
            let at = |name: &str, default: i64| {
                let at = attr_i(node, name).unwrap_or(default);
                (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize
            };
            let part = shape.get(at("start", 0)..at("end", rank)).unwrap_or(&[]);
            Some(line(part.iter().map(|&n| n as i64).collect()))
        }
        op::Size => {
            let count: usize = known.shape(0)?.iter().product();
            Some(Value::Ints(scalar(count as i64)))
        }
        op::Constant => {
            if let Some(value) = attr_f(node, "value_float") {
                return Some(Value::Floats(scalar(value)));
            }
            if let Some(value) = attr_i(node, "value_int") {
                return Some(Value::Ints(scalar(value)));
            }
            Some(line(attr_ints(node, "value_ints")?.to_vec()))
        }
        _ => {
            let [start, limit, step] = [0, 1, 2].map(|slot| match known.value(slot) {
                Some(Value::Ints(a)) if a.len() == 1 => a.first().copied(),
                _ => None,
            });
            let (start, limit, step) = (start?, limit?, step?);
            let far = i128::from(limit) - i128::from(start);
            let (far, stride) = if step < 0 {
                (-far, -i128::from(step))
            } else {
                (far, i128::from(step))
            };
            if stride == 0 || far > stride * MAX_ELEMENTS as i128 {
                return None;
            }
            let count = (far.max(0) + stride - 1) / stride;
            Some(line((0..count as i64).map(|i| start + i * step).collect()))
        }
    }
}

fn split(known: Known<'_>) -> Option<Vec<Value>> {
    let (axis, lengths) = split_lengths(known)?;
    let value = known.value(0)?;
    let mut start = 0;
    let parts = lengths.into_iter().map(|length| {
        let indices: Vec<usize> = (start..start + length).collect();
        start += length;
        selected(value, axis, &indices)
    });
    Some(parts.collect())
}

fn selected(value: &Value, axis: usize, indices: &[usize]) -> Value {
    match value {
        Value::Ints(a) => Value::Ints(a.select(Axis(axis), indices)),
        Value::Floats(a) => Value::Floats(a.select(Axis(axis), indices)),
    }
}

/// Operators that only move elements.
fn moved(known: Known<'_>, shape: &[usize]) -> Option<Value> {
    let node = known.node;
    match node.op_type() {
        op::Slice => {
            let mut value = known.value(0)?.clone();
            for (axis, indices) in slices(known)? {
                value = selected(&value, axis, &indices);
            }
            Some(value)
        }
        op::Gather => {
            let value = known.value(0)?;
            let rank = value.shape().len() as i64;
            let axis = attr_i(node, "axis").unwrap_or(0);
            let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
            let length = *value.shape().get(axis)? as i64;
            let indices: Option<Vec<usize>> = known
                .ints(1)?
                .iter()
                .map(|&i| usize::try_from(if i < 0 { i + length } else { i }).ok())
                .map(|i| i.filter(|&i| (i as i64) < length))
                .collect();
            reshaped(&selected(value, axis, &indices?), shape)
        }
        op::Concat => {
            let axis = attr_i(node, "axis")?;
            let axis = if axis < 0 {
                axis + shape.len() as i64
            } else {
                axis
            };
            let axis = Axis(usize::try_from(axis).ok()?);
            let all: Vec<&Value> = (0..node.input.len())
                .map(|slot| known.value(slot))
                .collect::<Option<_>>()?;
            let ints: Option<Vec<_>> = all
                .iter()
                .map(|value| match value {
                    Value::Ints(a) => Some(a.view()),
                    Value::Floats(_) => None,
                })
                .collect();
            Some(Value::Ints(concatenate(axis, &ints?).ok()?))
        }
        op::Identity | op::Reshape | op::Squeeze | op::Unsqueeze | op::Flatten => {
            reshaped(known.value(0)?, shape)
        }
        op::Transpose => {
            let perm = permutation(node, shape.len())?;
            Some(match known.value(0)? {
                Value::Ints(a) => Value::Ints(a.clone().permuted_axes(perm)),
                Value::Floats(a) => Value::Floats(a.clone().permuted_axes(perm)),
            })
        }
        op::Expand => Some(match known.value(0)? {
            Value::Ints(a) => Value::Ints(a.broadcast(shape)?.to_owned()),
            Value::Floats(a) => Value::Floats(a.broadcast(shape)?.to_owned()),
        }),
        op::Tile => {
            let mut value = known.value(0)?.clone();
            for (axis, &n) in shape.iter().enumerate() {
                let length = value.shape()[axis];
                let indices: Vec<usize> = (0..n).map(|i| i % length.max(1)).collect();
                value = selected(&value, axis, &indices);
            }
            Some(value)
        }
        _ => None,
    }
}

/// The elements in row-major order in another shape.
fn reshaped(value: &Value, shape: &[usize]) -> Option<Value> {
    fn elements<T: Clone>(a: &ArrayD<T>, shape: &[usize]) -> Option<ArrayD<T>> {
        ArrayD::from_shape_vec(IxDyn(shape), a.iter().cloned().collect()).ok()
    }
    Some(match value {
        Value::Ints(a) => Value::Ints(elements(a, shape)?),
        Value::Floats(a) => Value::Floats(elements(a, shape)?),
    })
}

/// Arithmetic, comparisons, casts, reductions.
fn computed(known: Known<'_>, dtype: DataType, shape: &[usize]) -> Option<Value> {
    let node = known.node;
    match node.op_type() {
        op::Cast | op::CastLike => Some(match (known.value(0)?, dtype) {
            (Value::Ints(a), DataType::Bool) => Value::Ints(a.mapv(|v| i64::from(v != 0))),
            (Value::Ints(a), DataType::Float) => Value::Floats(a.mapv(|v| v as f32)),
            (Value::Ints(a), _) => Value::Ints(a.clone()),
            (Value::Floats(a), DataType::Bool) => Value::Ints(a.mapv(|v| i64::from(v != 0.0))),
            (Value::Floats(a), DataType::Float) => Value::Floats(a.clone()),
            (Value::Floats(a), _) => {
                // Beyond 2⁵³ and for what is not finite the result depends on the computer.
                if a.iter().any(|v| v.is_nan() || v.abs() > 9e15) {
                    return None;
                }
                Value::Ints(a.mapv(|v| v as i64))
            }
        }),
        op::ConstantOfShape => match attr_t(node, "value") {
            None => Some(Value::Floats(ArrayD::zeros(shape))),
            Some(value) if dtype == DataType::Float => {
                let value = *tensor::float_array(value).ok()?.first()?;
                Some(Value::Floats(ArrayD::from_elem(shape, value)))
            }
            Some(value) => {
                let value = *tensor::int_array(value).ok()?.first()?;
                Some(Value::Ints(ArrayD::from_elem(shape, value)))
            }
        },
        op::Not => {
            let (a, _) = ints(known, 0)?;
            Some(Value::Ints(a.mapv(|v| 1 - v)))
        }
        op::Neg | op::Abs | op::Floor | op::Ceil | op::Sqrt | op::Reciprocal => unary(known),
        op::Where => {
            let (condition, _) = ints(known, 0)?;
            let condition = condition.broadcast(shape)?.to_owned();
            let (a, _) = ints(known, 1)?;
            let (b, _) = ints(known, 2)?;
            let (a, b) = (a.broadcast(shape)?, b.broadcast(shape)?);
            let picked = condition.iter().zip(a.iter().zip(b.iter()));
            let picked = picked.map(|(&c, (&a, &b))| if c != 0 { a } else { b });
            Some(Value::Ints(
                ArrayD::from_shape_vec(shape, picked.collect()).ok()?,
            ))
        }
        op::ReduceProd | op::ReduceSum | op::ReduceMax | op::ReduceMin => {
            // To one number; along an axis sizes are not reduced.
            let (a, _) = ints(known, 0)?;
            if shape.iter().product::<usize>() != 1 || a.is_empty() {
                return None;
            }
            let mut all = a.iter().copied();
            let first = all.next()?;
            let result = match node.op_type() {
                op::ReduceProd => all.try_fold(first, i64::checked_mul)?,
                op::ReduceSum => all.try_fold(first, i64::checked_add)?,
                op::ReduceMax => all.fold(first, i64::max),
                _ => all.fold(first, i64::min),
            };
            Some(Value::Ints(ArrayD::from_elem(shape, result)))
        }
        _ => (1..node.input.len())
            .try_fold(known.value(0)?.clone(), |a, slot| {
                binary(node.op_type(), &a, known.value(slot)?, known)
            })
            .filter(|_| node.input.len() > 1),
    }
}

fn ints(known: Known<'_>, slot: usize) -> Option<(&ArrayD<i64>, DataType)> {
    match known.value(slot)? {
        Value::Ints(a) => Some((a, known.dtype(slot)?)),
        Value::Floats(_) => None,
    }
}

fn unary(known: Known<'_>) -> Option<Value> {
    let op = known.node.op_type();
    match known.value(0)? {
        Value::Ints(a) => match op {
            op::Neg => Some(Value::Ints(a.mapv(i64::wrapping_neg))),
            op::Abs => Some(Value::Ints(a.mapv(i64::wrapping_abs))),
            _ => None,
        },
        Value::Floats(a) => Some(Value::Floats(a.mapv(match op {
            op::Neg => |v: f32| -v,
            op::Abs => f32::abs,
            op::Floor => f32::floor,
            op::Ceil => f32::ceil,
            op::Sqrt => f32::sqrt,
            op::Reciprocal => f32::recip,
            _ => return None,
        }))),
    }
}

/// Elementwise, with broadcasting.
fn binary(op: &str, a: &Value, b: &Value, known: Known<'_>) -> Option<Value> {
    let shape = broadcast(a.shape(), b.shape())?;
    match (a, b) {
        (Value::Ints(a), Value::Ints(b)) => {
            let whole = attr_i(known.node, "fmod").unwrap_or(0) == 0;
            let pairs = a.broadcast(shape.as_slice())?;
            let other = b.broadcast(shape.as_slice())?;
            let result: Option<Vec<i64>> = pairs
                .iter()
                .zip(other.iter())
                .map(|(&a, &b)| int_operation(op, a, b, whole))
                .collect();
            Some(Value::Ints(
                ArrayD::from_shape_vec(shape.as_slice(), result?).ok()?,
            ))
        }
        (Value::Floats(a), Value::Floats(b)) => {
            let f: fn(f32, f32) -> f32 = match op {
                op::Add => |a, b| a + b,
                op::Sub => |a, b| a - b,
                op::Mul => |a, b| a * b,
                op::Div => |a, b| a / b,
                op::Pow => f32::powf,
                _ => return None,
            };
            let pairs = a.broadcast(shape.as_slice())?;
            let other = b.broadcast(shape.as_slice())?;
            let result = pairs.iter().zip(other.iter()).map(|(&a, &b)| f(a, b));
            Some(Value::Floats(
                ArrayD::from_shape_vec(shape.as_slice(), result.collect()).ok()?,
            ))
        }
        _ => None,
    }
}

fn int_operation(op: &str, a: i64, b: i64, whole: bool) -> Option<i64> {
    Some(match op {
        op::Add | op::Sum => a.checked_add(b)?,
        op::Sub => a.checked_sub(b)?,
        op::Mul => a.checked_mul(b)?,
        op::Div => a.checked_div(b)?,
        // The sign of the divisor, or with fmod that of the dividend.
        op::Mod if whole => a.checked_rem(b)?.checked_add(b)?.checked_rem(b)?,
        op::Mod => a.checked_rem(b)?,
        op::Pow => a.checked_pow(u32::try_from(b).ok()?)?,
        op::Max => a.max(b),
        op::Min => a.min(b),
        op::And => i64::from(a != 0 && b != 0),
        op::Or => i64::from(a != 0 || b != 0),
        op::Xor => i64::from((a != 0) != (b != 0)),
        op::Equal => i64::from(a == b),
        op::Less => i64::from(a < b),
        op::LessOrEqual => i64::from(a <= b),
        op::Greater => i64::from(a > b),
        op::GreaterOrEqual => i64::from(a >= b),
        _ => return None,
    })
}
