//! Operators that become one or two others.

use super::build::{Build, Outcome};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::node::node_label;
use crate::onnx::node::{attr, attr_f, attr_i, attr_s, float_attr, int_attr, tensor_attr};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, tensor};

/// `y = Dropout(x)` becomes `y = Identity(x)`: exporters leave it in training mode between norm and Linear.
pub(super) fn dropout(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let mask = node.output.get(1).filter(|name| !name.is_empty());
    if mask.is_some_and(|name| b.scope.used(name)) {
        return Err(b.refused("its mask output is used"));
    }
    let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
        return Ok(Outcome::Kept);
    };
    b.op_to(op::Identity, &[x], y, vec![]);
    Ok(Outcome::Replaced)
}

/// `y = Slice(x)` with a step becomes a Gather per axis: the engine's own strides do not pass every Reshape.
pub(super) fn strided_slice(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let steps = node.input.get(4).and_then(|name| b.scope.ints(name));
    let strided = steps.is_some_and(|steps| steps.iter().any(|step| *step != 1));
    let axes = b.scope.slices(node);
    let axes = axes.filter(|axes| strided && axes.iter().all(|(_, i)| !i.is_empty()));
    let (Some(axes), Some(y)) = (axes, node.output.first()) else {
        return Ok(Outcome::Kept);
    };
    let mut x = node.input[0].clone();
    for (i, (axis, indices)) in axes.iter().enumerate() {
        let indices: Vec<i64> = indices.iter().map(|&at| at as i64).collect();
        let indices = b.ints(&indices);
        let attributes = vec![int_attr("axis", *axis as i64)];
        match i + 1 == axes.len() {
            true => b.op_to(op::Gather, &[&x, &indices], y, attributes),
            false => x = b.op(op::Gather, &[&x, &indices], attributes),
        }
    }
    Ok(Outcome::Replaced)
}

/// Inputs of one operator that the engine prepares in a chain: the time that it takes grows with their square.
const IN_A_CHAIN: usize = 32;

/// `y = Sum(x₁, …)` of many, Max and Min too, becomes a tree of those of two.
pub(super) fn of_many(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let Some(y) = node
        .output
        .first()
        .filter(|_| node.input.len() > IN_A_CHAIN)
    else {
        return Ok(Outcome::Kept);
    };
    let mut level = node.input.clone();
    while level.len() > 2 {
        let next = level.chunks(2).map(|pair| match pair {
            [one] => one.clone(),
            pair => b.op(node.op_type(), &[&pair[0], &pair[1]], vec![]),
        });
        level = next.collect();
    }
    b.op_to(node.op_type(), &[&level[0], &level[1]], y, vec![]);
    Ok(Outcome::Replaced)
}

/// Random numbers get a seed, made of the name of the value, if they have none: models that are compared must draw the
/// same ones. (The engine tells `…Like` by the end of the node's name.)
pub(super) fn random(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let Some(y) = node.output.first() else {
        return Ok(Outcome::Kept);
    };
    let mut seeded = node.clone();
    if attr(node, "seed").is_none() {
        let hash = y
            .bytes()
            .fold(0u32, |h, byte| h.wrapping_mul(31).wrapping_add(byte.into()));
        // Every such number is a float32.
        seeded
            .attribute
            .push(float_attr("seed", (hash % (1 << 24)) as f32));
    }
    seeded.name = Some(format!("{}.{}", node_label(node), node.op_type()));
    b.push(seeded);
    Ok(Outcome::Replaced)
}

/// `y = CumSum(x)` becomes `y = CastLike(CumSum(Cast(x, float32)), x)`: the engine has it for floats only. Exact up to
/// 2²⁴.
pub(super) fn cumsum(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
        return Ok(Outcome::Kept);
    };
    let to_float = vec![int_attr("to", DataType::Float as i64)];
    let mut cumsum = node.clone();
    cumsum.input[0] = b.op(op::Cast, &[x], to_float);
    let sum = b.fresh("sum");
    cumsum.output[0] = sum.clone();
    b.push(cumsum);
    b.op_to(op::CastLike, &[&sum, x], y, vec![]);
    Ok(Outcome::Replaced)
}

/// `TensorScatter(past, update, start)` (opset 24) becomes a ScatterElements along its axis at start[b] + 0, 1, …, which
/// wraps around in a circular cache.
pub(super) fn tensor_scatter(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let (Some(past), Some(update), Some(y)) =
        (node.input.first(), node.input.get(1), node.output.first())
    else {
        return Ok(Outcome::Kept);
    };
    let shapes = (b.scope.shape(past), b.scope.shape(update));
    let (Some(cache), Some(new)) = shapes else {
        return Err(b.refused("the shapes of its inputs are not known in advance"));
    };
    let axis = attr_i(node, "axis").unwrap_or(-2);
    let at = if axis < 0 {
        axis + new.len() as i64
    } else {
        axis
    };
    let at = usize::try_from(at)
        .ok()
        .filter(|&at| at < new.len() && cache.len() == new.len());
    let at = at.ok_or_else(|| b.refused("its axis is out of range"))?;
    let mut line = vec![1; new.len()];
    line[at] = -1;
    let positions: Vec<i64> = (0..new[at] as i64).collect();
    let (positions, line) = (b.ints(&positions), b.ints(&line));
    let mut positions = b.op(op::Reshape, &[&positions, &line], vec![]);
    if let Some(start) = node.input.get(2).filter(|name| !name.is_empty()) {
        let mut rows = vec![1; new.len()];
        rows[0] = -1;
        let rows = b.ints(&rows);
        let start = b.op(op::Reshape, &[start, &rows], vec![]);
        positions = b.op(op::Add, &[&start, &positions], vec![]);
    }
    if attr_s(node, "mode") == Some("circular") {
        let length = b.int(cache[at] as i64);
        positions = b.op(op::Mod, &[&positions, &length], vec![]);
    }
    let shape: Vec<i64> = new.iter().map(|&n| n as i64).collect();
    let shape = b.ints(&shape);
    let positions = b.op(op::Expand, &[&positions, &shape], vec![]);
    let along = vec![int_attr("axis", at as i64)];
    b.op_to(op::ScatterElements, &[past, &positions, update], y, along);
    Ok(Outcome::Replaced)
}

/// `y = Swish(x)` becomes `y = x · Sigmoid(α x)`: the engine takes α for 1.
pub(super) fn swish(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let alpha = attr_f(node, "alpha").unwrap_or(1.0);
    let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
        return Ok(Outcome::Kept);
    };
    if alpha == 1.0 {
        return Ok(Outcome::Kept);
    }
    let alpha = b.float(alpha);
    let scaled = b.op(op::Mul, &[x, &alpha], vec![]);
    let gate = b.op(op::Sigmoid, &[&scaled], vec![]);
    b.op_to(op::Mul, &[x, &gate], y, vec![]);
    Ok(Outcome::Replaced)
}

/// A ConstantOfShape says that its zeros are float32: the engine would make float64 of them.
pub(super) fn constant_of_shape(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    if attr(node, "value").is_some() {
        return Ok(Outcome::Kept);
    }
    let mut zeros = node.clone();
    let value = tensor::from_f32("", &[1], &[0.0], DataType::Float);
    zeros.attribute.push(tensor_attr("value", value));
    b.push(zeros);
    Ok(Outcome::Replaced)
}

/// The product of two vectors becomes `ReduceSum(a · b)`.
pub(super) fn matmul(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let vector = |slot: usize| {
        let name = node.input.get(slot)?;
        b.scope.shape(name).filter(|shape| shape.len() == 1)?;
        Some(name)
    };
    let (Some(a), Some(c), Some(y)) = (vector(0), vector(1), node.output.first()) else {
        return Ok(Outcome::Kept);
    };
    let products = b.op(op::Mul, &[a, c], vec![]);
    let axis = b.ints(&[0]);
    b.op_to(
        op::ReduceSum,
        &[&products, &axis],
        y,
        vec![int_attr("keepdims", 0)],
    );
    Ok(Outcome::Replaced)
}

/// The largest or smallest of booleans is computed in int32.
pub(super) fn reduce_bool(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
        return Ok(Outcome::Kept);
    };
    if b.scope.dtype(x) != Some(DataType::Bool) {
        return Ok(Outcome::Kept);
    }
    let mut reduce = node.clone();
    reduce.input[0] = b.op(op::Cast, &[x], vec![int_attr("to", DataType::Int32 as i64)]);
    reduce.output[0] = b.fresh("int32");
    let found = reduce.output[0].clone();
    b.push(reduce);
    b.op_to(
        op::Cast,
        &[&found],
        y,
        vec![int_attr("to", DataType::Bool as i64)],
    );
    Ok(Outcome::Replaced)
}

/// Negative indices of GatherND and ScatterND are counted from the front: the engine takes them for large ones.
pub(super) fn nd_indices(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let (Some(data), Some(indices)) = (node.input.first(), node.input.get(1)) else {
        return Ok(Outcome::Kept);
    };
    let (Some(shape), Some(index_shape)) = (b.scope.shape(data), b.scope.shape(indices)) else {
        return Ok(Outcome::Kept);
    };
    let known = b.scope.ints(indices);
    if known.is_some_and(|all| all.iter().all(|&index| index >= 0)) {
        return Ok(Outcome::Kept);
    }
    let batch = attr_i(node, "batch_dims").unwrap_or(0);
    let depth = index_shape.last().copied().unwrap_or(0);
    let lengths = usize::try_from(batch)
        .ok()
        .and_then(|at| shape.get(at..at + depth));
    let Some(lengths) = lengths else {
        return Ok(Outcome::Kept);
    };
    let lengths: Vec<i64> = lengths.iter().map(|&n| n as i64).collect();
    let lengths = b.ints(&lengths);
    let zero = b.int(0);
    let negative = b.op(op::Less, &[indices, &zero], vec![]);
    let from_front = b.op(op::Add, &[indices, &lengths], vec![]);
    let mut copy = node.clone();
    copy.input[1] = b.op(op::Where, &[&negative, &from_front, indices], vec![]);
    b.push(copy);
    Ok(Outcome::Replaced)
}
