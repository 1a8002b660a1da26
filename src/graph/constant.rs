//! Constants: initializers, Constant nodes, and the small expressions exporters leave over them.

use ndarray::{Array0, Array1, ArrayD, Axis, IxDyn};

use super::view::{NodeId, Source, ValueId, View};
use crate::onnx::DataType;
use crate::onnx::node::{attr, attr_f, attr_i, attr_ints, attr_t};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::onnx::tensor;

/// Exporters leave two or three such nodes in a row; a longer chain is somebody's computation.
const MAX_DEPTH: usize = 8;

/// A constant value as an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    /// Any float type, widened or narrowed to float32.
    Float {
        /// The elements.
        array: ArrayD<f32>,
        /// The type in the file.
        dtype: DataType,
    },
    /// Any integer type or bool.
    Int(ArrayD<i64>),
}

impl Constant {
    /// The float array, `None` for integers.
    pub fn into_float(self) -> Option<(ArrayD<f32>, DataType)> {
        match self {
            Constant::Float { array, dtype } => Some((array, dtype)),
            Constant::Int(_) => None,
        }
    }

    /// The elements of an integer constant.
    pub fn into_ints(self) -> Option<Vec<i64>> {
        match self {
            Constant::Int(array) => Some(array.into_iter().collect()),
            Constant::Float { .. } => None,
        }
    }
}

impl View<'_> {
    /// The constant behind a value: an initializer, a Constant node, or an expression over those of Identity,
    /// Cast, Transpose, Reshape, Squeeze, Unsqueeze, Add, Sub, Mul, Div, Neg, Sqrt and Reciprocal. `None` if the
    /// value is computed at run time, is of a type without a meaning here (strings), or is malformed.
    pub fn constant(&self, id: ValueId) -> Option<Constant> {
        self.constant_at_depth(id, 0)
    }

    /// A constant with exactly one element, as a number.
    pub fn scalar(&self, id: ValueId) -> Option<f32> {
        // A weight is never a scalar: look at the size before reading megabytes.
        if self
            .initializer(id)
            .is_some_and(|t| t.dims.iter().any(|&d| d != 1))
        {
            return None;
        }
        let (array, _) = self.constant(id)?.into_float()?;
        if array.len() == 1 {
            array.first().copied()
        } else {
            None
        }
    }

    /// Whether a value is a constant, without reading it.
    pub fn is_constant(&self, id: ValueId) -> bool {
        self.is_constant_at_depth(id, 0)
    }

    fn is_constant_at_depth(&self, id: ValueId, depth: usize) -> bool {
        match self.source(id) {
            _ if depth > MAX_DEPTH => false,
            Source::Initializer(_) => true,
            Source::Node { node, .. } => {
                let op = self.op(node);
                let constant = |i| {
                    let input = self.input(node, i);
                    input.is_none_or(|v| self.is_constant_at_depth(v, depth + 1))
                };
                op == op::Constant
                    || (constant_expression(op) && (0..self.node(node).input.len()).all(constant))
            }
            _ => false,
        }
    }

    fn constant_at_depth(&self, id: ValueId, depth: usize) -> Option<Constant> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.source(id) {
            Source::Initializer(i) => from_tensor(&self.graph().initializer[i]),
            Source::Node { node, output: 0 } => self.node_constant(node, depth),
            _ => None,
        }
    }

    fn node_constant(&self, id: NodeId, depth: usize) -> Option<Constant> {
        let node = self.node(id);
        let op = self.op(id);
        if op == op::Constant {
            return constant_node(node);
        }
        if !constant_expression(op) {
            return None;
        }
        let arg = |slot| self.constant_at_depth(self.input(id, slot)?, depth + 1);
        let axes = || match attr_ints(node, "axes") {
            Some(axes) => Some(axes.to_vec()),
            None => arg(1)?.into_ints(),
        };
        match op {
            op::Identity => arg(0),
            op::Cast => cast(arg(0)?, attr_i(node, "to")?),
            op::Transpose => {
                let perm: Option<Vec<usize>> = attr_ints(node, "perm")
                    .map(|p| p.iter().map(|&a| usize::try_from(a).ok()).collect())
                    .unwrap_or(Some(Vec::new()));
                map(arg(0)?, |rank| {
                    let perm = perm?;
                    let perm = if perm.is_empty() {
                        (0..rank).rev().collect()
                    } else {
                        perm
                    };
                    let mut seen = perm.clone();
                    seen.sort_unstable();
                    seen.iter()
                        .copied()
                        .eq(0..rank)
                        .then_some(Shape::Permute(perm))
                })
            }
            op::Reshape => {
                let target = arg(1)?.into_ints()?;
                let allow_zero = attr_i(node, "allowzero").unwrap_or(0) != 0;
                map(arg(0)?, |_| Some(Shape::Reshape { target, allow_zero }))
            }
            op::Squeeze if node.input.len() < 2 && attr_ints(node, "axes").is_none() => {
                map(arg(0)?, |_| Some(Shape::SqueezeAll))
            }
            op::Squeeze => {
                let axes = axes()?;
                map(arg(0)?, |_| Some(Shape::Squeeze(axes)))
            }
            op::Unsqueeze => {
                let axes = axes()?;
                map(arg(0)?, |_| Some(Shape::Unsqueeze(axes)))
            }
            op::Neg => unary(arg(0)?, |x| -x),
            op::Sqrt => unary(arg(0)?, f32::sqrt),
            op::Reciprocal => unary(arg(0)?, |x| 1.0 / x),
            op::Add => binary(arg(0)?, arg(1)?, |a, b| a + b),
            op::Sub => binary(arg(0)?, arg(1)?, |a, b| a - b),
            op::Mul => binary(arg(0)?, arg(1)?, |a, b| a * b),
            op::Div => binary(arg(0)?, arg(1)?, |a, b| a / b),
            _ => None,
        }
    }
}

/// Operators that [`View::constant`] evaluates over constants.
pub fn constant_expression(op: &str) -> bool {
    matches!(
        op,
        op::Identity
            | op::Cast
            | op::Transpose
            | op::Reshape
            | op::Squeeze
            | op::Unsqueeze
            | op::Neg
            | op::Sqrt
            | op::Reciprocal
            | op::Add
            | op::Sub
            | op::Mul
            | op::Div
    )
}

fn from_tensor(tensor: &crate::onnx::proto::TensorProto) -> Option<Constant> {
    let dtype = tensor::dtype(tensor)?;
    if tensor::is_float(dtype) {
        tensor::float_array(tensor)
            .ok()
            .map(|array| Constant::Float { array, dtype })
    } else {
        tensor::int_array(tensor).ok().map(Constant::Int)
    }
}

fn constant_node(node: &NodeProto) -> Option<Constant> {
    if let Some(tensor) = attr_t(node, "value") {
        return from_tensor(tensor);
    }
    let float = |array| Constant::Float {
        array,
        dtype: DataType::Float,
    };
    if let Some(x) = attr_f(node, "value_float") {
        return Some(float(Array0::from_elem((), x).into_dyn()));
    }
    if let Some(a) = attr(node, "value_floats") {
        return Some(float(Array1::from(a.floats.clone()).into_dyn()));
    }
    if let Some(i) = attr_i(node, "value_int") {
        return Some(Constant::Int(Array0::from_elem((), i).into_dyn()));
    }
    attr_ints(node, "value_ints").map(|v| Constant::Int(Array1::from(v.to_vec()).into_dyn()))
}

/// A change of shape that leaves the elements alone.
enum Shape {
    Permute(Vec<usize>),
    Reshape { target: Vec<i64>, allow_zero: bool },
    SqueezeAll,
    Squeeze(Vec<i64>),
    Unsqueeze(Vec<i64>),
}

fn map(value: Constant, shape: impl FnOnce(usize) -> Option<Shape>) -> Option<Constant> {
    match value {
        Constant::Float { array, dtype } => {
            let shape = shape(array.ndim())?;
            Some(Constant::Float {
                array: reshape(array, shape)?,
                dtype,
            })
        }
        Constant::Int(array) => {
            let shape = shape(array.ndim())?;
            Some(Constant::Int(reshape(array, shape)?))
        }
    }
}

fn reshape<T: Clone>(array: ArrayD<T>, shape: Shape) -> Option<ArrayD<T>> {
    let dims: Vec<usize> = array.shape().to_vec();
    let rank = dims.len() as i64;
    let target = match shape {
        Shape::Permute(perm) => return Some(array.permuted_axes(IxDyn(&perm))),
        Shape::Reshape { target, allow_zero } => reshape_target(&dims, &target, allow_zero)?,
        Shape::SqueezeAll => dims.into_iter().filter(|&d| d != 1).collect(),
        Shape::Squeeze(axes) => {
            let axes: Vec<i64> = axes
                .iter()
                .map(|a| if *a < 0 { a + rank } else { *a })
                .collect();
            if axes.iter().any(|a| !(0..rank).contains(a)) {
                return None;
            }
            let keep = dims
                .iter()
                .enumerate()
                .filter(|(i, _)| !axes.contains(&(*i as i64)));
            keep.map(|(_, &d)| d).collect()
        }
        Shape::Unsqueeze(axes) => {
            let full = rank + axes.len() as i64;
            let mut axes: Vec<i64> = axes
                .iter()
                .map(|a| if *a < 0 { a + full } else { *a })
                .collect();
            axes.sort_unstable();
            let mut array = array;
            for axis in axes {
                let axis = usize::try_from(axis).ok().filter(|a| *a <= array.ndim())?;
                array = array.insert_axis(Axis(axis));
            }
            return Some(array);
        }
    };
    array
        .as_standard_layout()
        .into_owned()
        .into_shape_with_order(IxDyn(&target))
        .ok()
}

/// The shape that ONNX Reshape makes of `dims`: 0 copies the axis (unless `allow_zero`), −1 takes the rest.
fn reshape_target(dims: &[usize], target: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let total: usize = dims.iter().product();
    let mut shape = Vec::with_capacity(target.len());
    for (i, &t) in target.iter().enumerate() {
        shape.push(match t {
            0 if !allow_zero => *dims.get(i)?,
            -1 => usize::MAX,
            t => usize::try_from(t).ok()?,
        });
    }
    let mut known = shape.iter().filter(|&&d| d != usize::MAX);
    let known = known.try_fold(1usize, |product, &d| product.checked_mul(d))?;
    for d in shape.iter_mut().filter(|d| **d == usize::MAX) {
        *d = total.checked_div(known)?;
    }
    Some(shape)
}

fn cast(value: Constant, to: i64) -> Option<Constant> {
    let to = DataType::try_from(i32::try_from(to).ok()?).ok()?;
    match value {
        Constant::Float { array, .. } if tensor::is_float(to) => Some(float(array, to)),
        Constant::Int(array) if tensor::is_float(to) => Some(float(array.mapv(|x| x as f32), to)),
        Constant::Int(array) if matches!(to, DataType::Int64 | DataType::Int32) => {
            Some(Constant::Int(array))
        }
        _ => None,
    }
}

/// A constant of type `dtype`: what is computed in float16 is rounded to float16, and so must be its constant.
fn float(array: ArrayD<f32>, dtype: DataType) -> Constant {
    let array = match dtype {
        DataType::Float16 => array.mapv(|x| half::f16::from_f32(x).to_f32()),
        DataType::Bfloat16 => array.mapv(|x| half::bf16::from_f32(x).to_f32()),
        _ => array,
    };
    Constant::Float { array, dtype }
}

fn unary(value: Constant, f: impl Fn(f32) -> f32) -> Option<Constant> {
    let (array, dtype) = value.into_float()?;
    Some(float(array.mapv(f), dtype))
}

fn binary(a: Constant, b: Constant, f: impl Fn(f32, f32) -> f32) -> Option<Constant> {
    let ((a, dtype), (b, other)) = (a.into_float()?, b.into_float()?);
    if dtype != other {
        return None;
    }
    let shape = broadcast_shape(a.shape(), b.shape())?;
    let (a, b) = (a.broadcast(shape.clone())?, b.broadcast(shape)?);
    let array = ndarray::Zip::from(&a).and(&b).map_collect(|&x, &y| f(x, y));
    Some(float(array, dtype))
}

/// NumPy's broadcasting rule for two shapes.
fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |k| s[k]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y || y == 1 => Some(x),
            (1, y) => Some(y),
            _ => None,
        })
        .collect()
}
