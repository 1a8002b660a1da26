//! Weights and tables in blocks: MatMulNBits, GatherBlockQuantized, DequantizeLinear with `block_size`.
//!
//! ```text
//! MatMulNBits            y = MatMul(x, W) + bias            W dequantized once, when the engine gets it
//!   at accuracy_level 4  y = MatMul(RoundBlocks(x), W) + bias
//! GatherBlockQuantized   y = (unpack(Gather(q, ids)) − unpack(Gather(z, ids))) · Gather(s, ids)    rows alone become floats
//! DequantizeLinear       y = W; or, of computed integers, (q − z) s with s and z picked for every place
//!   before a MatMul      as a MatMulNBits at accuracy_level 4, which ONNX Runtime makes of them
//! ```
//!
//! What a MatMulNBits does with its activations was found by running ONNX Runtime 1.31.1 (x86-64 with AVX-512):
//!
//! - accuracy_level 4 rounds them per row and block (`round_blocks.rs`) where there is a kernel ([`rounds_activations`](crate::graph::Blocked::rounds_activations));
//!   every other level computes in float;
//! - with float zero points or `g_idx` it always computes in float;
//! - with `g_idx` stored integer zero points are not read.
//!
//! On ARM with KleidiAI some shapes are rounded per row and around a zero point of their own instead, and processors without
//! a kernel compute in float: there the outputs differ from these by about that rounding.

use std::cmp::Ordering;

use super::build::{Build, Outcome};
use super::contrib::named;
use super::simple;
use crate::calibrate::engine::error::EngineError;
use crate::onnx::node::{attr_i, int_attr};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, op};

use Outcome::{Kept, Replaced};

/// `y = x W + bias`, x rounded by blocks where ONNX Runtime does.
pub(super) fn matmul_nbits(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let (Some(x), Some(y)) = (named(&node.input, 0), named(&node.output, 0)) else {
        return Ok(Kept);
    };
    let weight = b.blocked(node);
    let reason =
        "its weight is computed, or its bits, sizes and stored integers do not go together";
    let weight = weight.ok_or_else(|| b.refused(reason))?;
    let weight = match weight.is_permuted() && weight.has_integer_zero_points() {
        true => weight.without_zero_points(),
        false => weight,
    };
    let mut x = x.to_owned();
    if weight.rounds_activations(attr_i(node, "accuracy_level").unwrap_or(0)) {
        x = b.round_blocks(&x, weight.block);
    }
    let w = b.store(weight)?;
    match named(&node.input, 5) {
        Some(bias) => {
            let product = b.op(op::MatMul, &[&x, &w], vec![]);
            b.op_to(op::Add, &[&product, bias], y, vec![]);
        }
        None => b.op_to(op::MatMul, &[&x, &w], y, vec![]),
    }
    Ok(Replaced)
}

/// Rows of a table, dequantized when they are picked: a vocabulary in float would be eight times its size.
pub(super) fn gather_blocks(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let (Some(y), Some([q, ids, scale])) = (named(&node.output, 0), three(node)) else {
        return Ok(Kept);
    };
    let table = b.blocked(node);
    let reason = "its table is computed, or its bits, sizes and stored integers do not go together";
    let table = table.ok_or_else(|| b.refused(reason))?;
    let rank = table.shape.len() as i64;
    let axis = |name, default| {
        let axis = attr_i(node, name).unwrap_or(default);
        let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok();
        axis.filter(|&axis| (axis as i64) < rank)
    };
    let axes = axis("gather_axis", 0).zip(axis("quantize_axis", 1));
    let (from, along) = axes.ok_or_else(|| b.refused("its axis is none of its table"))?;
    let picked = b.shape(ids)?.len();
    let bytes = b.scope.dtype(q) == Some(DataType::Uint8);
    let packed = if bytes { 8 / table.bits as usize } else { 1 };
    let q = gather(b, q, ids, from);
    let q = unpacked(b, &q, packed)?;
    // Scales and zero points of the same rows; if blocks are of rows, the blocks of the picked ones.
    let of_blocks = match from == along {
        true => block_of(b, ids, table.shape[from], table.block),
        false => ids.to_owned(),
    };
    let places = match along.cmp(&from) {
        Ordering::Less => Some(along),
        Ordering::Equal => None,
        Ordering::Greater => Some(along + picked - 1),
    };
    let (width, block) = (table.shape[along], table.block);
    let scale = gather(b, scale, &of_blocks, from);
    let scale = by_place(b, &scale, places, width, block);
    let value = match named(&node.input, 3) {
        Some(zero) => {
            let zero = gather(b, zero, &of_blocks, from);
            let zero = unpacked(b, &zero, packed)?;
            let zero = by_place(b, &zero, places, width, block);
            b.op(op::Sub, &[&q, &zero], vec![])
        }
        None if bytes => {
            let middle = b.float((1u32 << (table.bits - 1)) as f32);
            b.op(op::Sub, &[&q, &middle], vec![])
        }
        None => q,
    };
    b.op_to(op::Mul, &[&value, &scale], y, vec![]);
    Ok(Replaced)
}

fn gather(b: &mut Build<'_, '_>, value: &str, ids: &str, axis: usize) -> String {
    let axis = vec![int_attr("axis", axis as i64)];
    b.op(op::Gather, &[value, ids], axis)
}

/// Of every index the block that it lies in.
fn block_of(b: &mut Build<'_, '_>, ids: &str, count: usize, block: usize) -> String {
    let ids = b.cast(ids, DataType::Int64);
    let zero = b.int(0);
    let negative = b.op(op::Less, &[&ids, &zero], vec![]);
    let count = b.int(count as i64);
    let from_end = b.op(op::Add, &[&ids, &count], vec![]);
    let ids = b.op(op::Where, &[&negative, &from_end, &ids], vec![]);
    let block = b.int(block as i64);
    b.op(op::Div, &[&ids, &block], vec![])
}

/// Floats of integers that are packed in the bytes of the last axis, the first in the lowest bits.
fn unpacked(b: &mut Build<'_, '_>, value: &str, packed: usize) -> Result<String, EngineError> {
    let mut shape = b.shape(value)?;
    let mut rest = b.cast(value, DataType::Float);
    if packed == 1 {
        return Ok(rest);
    }
    let base = (1u32 << (8 / packed)) as f32;
    let (base, inverse) = (b.float(base), b.float(1.0 / base));
    let last = b.ints(&[shape.len() as i64]);
    let mut parts = Vec::with_capacity(packed);
    for _ in 0..packed {
        let higher = b.op(op::Mul, &[&rest, &inverse], vec![]);
        let higher = b.op(op::Floor, &[&higher], vec![]);
        let above = b.op(op::Mul, &[&higher, &base], vec![]);
        let part = b.op(op::Sub, &[&rest, &above], vec![]);
        parts.push(b.op(op::Unsqueeze, &[&part, &last], vec![]));
        rest = higher;
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let axis = vec![int_attr("axis", shape.len() as i64)];
    let together = b.op(op::Concat, &parts, axis);
    if let Some(last) = shape.last_mut() {
        *last *= packed;
    }
    Ok(b.reshape(&together, &shape))
}

/// What belongs to the block of each of the `width` places along an axis.
fn by_place(
    b: &mut Build<'_, '_>,
    value: &str,
    axis: Option<usize>,
    width: usize,
    block: usize,
) -> String {
    let Some(axis) = axis else {
        return value.to_owned();
    };
    let places: Vec<i64> = (0..width).map(|k| (k / block) as i64).collect();
    let places = b.ints(&places);
    gather(b, value, &places, axis)
}

/// DequantizeLinear with blocks, with a scale that is computed, or of a constant.
pub(super) fn dequantize(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let (Some(q), Some(scale), Some(y)) = (
        named(&node.input, 0),
        named(&node.input, 1),
        named(&node.output, 0),
    ) else {
        return Ok(Kept);
    };
    let blocked = b.blocked(node);
    if let Some(weight) = &blocked
        && attr_i(node, "axis") == Some(0)
        && weight.shape.len() == 2
        && weight.rounds_activations(4)
    {
        b.scope.know_blocks(y, weight.block);
    }
    // Those without blocks the engine makes floats of too, in four steps with a copy each: a third of the time a plan takes.
    if let Some(weight) = blocked.or_else(|| b.whole(node)) {
        let w = b.store(weight)?;
        b.op_to(op::Identity, &[&w], y, vec![]);
        return Ok(Replaced);
    }
    if !at_run_time(node, b) {
        return Ok(Kept);
    }
    let mut value = b.cast(q, DataType::Float);
    if let Some(zero) = named(&node.input, 2) {
        let zero = b.cast(zero, DataType::Float);
        let zero = spread(node, b, &zero)?;
        value = b.op(op::Sub, &[&value, &zero], vec![]);
    }
    let scale = spread(node, b, scale)?;
    b.op_to(op::Mul, &[&value, &scale], y, vec![]);
    Ok(Replaced)
}

/// A MatMul whose weight alone is in blocks: ONNX Runtime rounds its activations, as OpenVINO does with integers that have no sign.
pub(super) fn matmul(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let block = named(&node.input, 1).and_then(|w| b.scope.blocks(w));
    let (Some(block), Some(x)) = (block, named(&node.input, 0)) else {
        return simple::matmul(node, b);
    };
    let mut rounded = node.clone();
    rounded.input[0] = b.round_blocks(x, block);
    if simple::matmul(&rounded, b)? == Kept {
        b.push(rounded);
    }
    Ok(Replaced)
}

/// QuantizeLinear with blocks, or with a scale that is computed; `None` if the engine has the form.
pub(super) fn quantize(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
    (dtype, low, high): (DataType, f32, f32),
) -> Result<Outcome, EngineError> {
    let (Some(x), Some(scale), Some(y)) = (
        named(&node.input, 0),
        named(&node.input, 1),
        named(&node.output, 0),
    ) else {
        return Ok(Kept);
    };
    let scale = spread(node, b, scale)?;
    let value = b.op(op::Div, &[x, &scale], vec![]);
    let mut value = b.op(op::Round, &[&value], vec![]);
    if let Some(zero) = named(&node.input, 2) {
        let zero = b.cast(zero, DataType::Float);
        let zero = spread(node, b, &zero)?;
        value = b.op(op::Add, &[&value, &zero], vec![]);
    }
    let (low, high) = (b.float(low), b.float(high));
    let value = b.op(op::Clip, &[&value, &low, &high], vec![]);
    b.op_to(op::Cast, &[&value], y, vec![int_attr("to", dtype as i64)]);
    Ok(Replaced)
}

/// Whether scales of a QuantizeLinear or DequantizeLinear are computed, or belong to blocks.
pub(super) fn at_run_time(node: &NodeProto, b: &Build<'_, '_>) -> bool {
    let blocks = attr_i(node, "block_size").is_some_and(|block| block > 0);
    let computed = |slot| named(&node.input, slot).is_some_and(|s| b.scope.constant(s).is_none());
    blocks || computed(1) || computed(2)
}

/// A scale or zero point as it broadcasts over the values: of one, of each place of the axis, or of its blocks.
fn spread(node: &NodeProto, b: &mut Build<'_, '_>, value: &str) -> Result<String, EngineError> {
    let x = named(&node.input, 0).unwrap_or_default();
    let shape = b.shape(x)?;
    let of = b.shape(value)?;
    let axis = attr_i(node, "axis").unwrap_or(1);
    let axis = if axis < 0 {
        axis + shape.len() as i64
    } else {
        axis
    };
    let axis = usize::try_from(axis).ok();
    let block = attr_i(node, "block_size").and_then(|b| usize::try_from(b).ok());
    if let Some(block) = block.filter(|&block| block > 0) {
        let axis = axis.filter(|&axis| axis < shape.len());
        let axis = axis.ok_or_else(|| b.refused("its axis is none of its input"))?;
        return Ok(by_place(b, value, Some(axis), shape[axis], block));
    }
    if of.iter().product::<usize>() == 1 {
        return Ok(b.reshape(value, &[]));
    }
    let mut wide = vec![1; shape.len()];
    let place = axis.and_then(|axis| wide.get_mut(axis));
    *place.ok_or_else(|| b.refused("its axis is none of its input"))? = of.iter().product();
    Ok(b.reshape(value, &wide))
}

fn three(node: &NodeProto) -> Option<[&str; 3]> {
    let input = |i: usize| named(&node.input, i);
    Some([input(0)?, input(1)?, input(2)?])
}
