//! Sequences of tensors. The engine has none; here every sequence is known as the list of its tensors
//! ([`Scope::sequence`](super::scope::Scope::sequence)), so that only the tensors remain.

use super::build::{Build, Outcome};
use crate::calibrate::engine::error::EngineError;
use crate::onnx::node::{attr_i, int_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

fn input(node: &NodeProto, slot: usize) -> Option<&str> {
    let name = node.input.get(slot)?;
    (!name.is_empty()).then_some(name.as_str())
}

/// Makes the first output of `node` known as a sequence.
fn define(node: &NodeProto, b: &mut Build<'_, '_>, tensors: Vec<String>) -> Outcome {
    if let Some(name) = node.output.first() {
        b.scope.know_sequence(name, tensors);
    }
    Outcome::Replaced
}

/// The tensors of the sequence that is the first input.
fn tensors(node: &NodeProto, b: &Build<'_, '_>) -> Result<Vec<String>, EngineError> {
    input(node, 0)
        .and_then(|name| b.scope.sequence(name))
        .map(<[String]>::to_vec)
        .ok_or_else(|| b.refused("the tensors of its sequence are not known in advance"))
}

/// The position that input `slot` gives in a list of `length`; the end if it is left out.
fn position(
    node: &NodeProto,
    b: &Build<'_, '_>,
    slot: usize,
    length: usize,
) -> Result<usize, EngineError> {
    let Some(name) = input(node, slot) else {
        return Ok(length);
    };
    let at = b.scope.ints(name).and_then(|ints| ints.first().copied());
    let at = at.ok_or_else(|| b.refused("its position depends on the data"))?;
    let at = if at < 0 { at + length as i64 } else { at };
    usize::try_from(at)
        .ok()
        .filter(|&at| at <= length)
        .ok_or_else(|| b.refused(format!("position {at} of {length} tensors")))
}

/// A Split, and the sequence of its outputs.
pub(super) fn split(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let Some(x) = input(node, 0) else {
        return Ok(Outcome::Kept);
    };
    let shape = b.scope.shape(x);
    let shape = shape.ok_or_else(|| b.refused("the shape of its input is not known in advance"))?;
    let axis = attr_i(node, "axis").unwrap_or(0);
    let from_front = usize::try_from(if axis < 0 {
        axis + shape.len() as i64
    } else {
        axis
    });
    let length = from_front.ok().and_then(|axis| shape.get(axis));
    let length = *length.ok_or_else(|| b.refused("its axis is out of range"))? as i64;
    let lengths = match input(node, 1) {
        None => vec![1; length as usize],
        Some(split) => {
            let scalar = b.scope.shape(split).is_some_and(|shape| shape.is_empty());
            match (b.scope.ints(split), scalar) {
                (Some(part), true) if part[0] > 0 => {
                    let starts = (0..length).step_by(part[0] as usize);
                    starts.map(|at| part[0].min(length - at)).collect()
                }
                (Some(lengths), false) => lengths,
                _ => return Err(b.refused("its lengths depend on the data")),
            }
        }
    };
    let mut parts: Vec<String> = lengths.iter().map(|_| b.fresh("part")).collect();
    let sizes = b.ints(&lengths);
    let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
    let name = b.fresh(op::Split);
    let axis_attr = vec![int_attr("axis", axis)];
    b.push(make_node(
        op::Split,
        &name,
        &[x, &sizes],
        &outputs,
        axis_attr,
    ));
    if input(node, 1).is_none() && attr_i(node, "keepdims").unwrap_or(1) == 0 {
        let axes = b.ints(&[axis]);
        for part in &mut parts {
            *part = b.op(op::Squeeze, &[part, &axes], vec![]);
        }
    }
    Ok(define(node, b, parts))
}

/// The sequence of its inputs.
pub(super) fn construct(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    Ok(define(node, b, node.input.clone()))
}

/// The sequence of no tensors.
pub(super) fn empty(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    Ok(define(node, b, Vec::new()))
}

/// The same sequence; an Identity of a tensor stays.
pub(super) fn identity(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let known = input(node, 0).and_then(|name| b.scope.sequence(name));
    match known.map(<[String]>::to_vec) {
        Some(tensors) => Ok(define(node, b, tensors)),
        None => Ok(Outcome::Kept),
    }
}

/// One tensor of a sequence.
pub(super) fn at(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let tensors = tensors(node, b)?;
    let at = position(node, b, 1, tensors.len())?;
    let tensor = tensors.get(at).ok_or_else(|| b.refused("no such tensor"))?;
    if let Some(y) = node.output.first() {
        b.op_to(op::Identity, &[tensor], y, vec![]);
    }
    Ok(Outcome::Replaced)
}

/// The number of tensors.
pub(super) fn length(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let length = tensors(node, b)?.len() as i64;
    if let Some(y) = node.output.first() {
        let length = b.int(length);
        b.op_to(op::Identity, &[&length], y, vec![]);
    }
    Ok(Outcome::Replaced)
}

/// A sequence with one tensor more.
pub(super) fn insert(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let mut tensors = tensors(node, b)?;
    let at = position(node, b, 2, tensors.len())?;
    let new = input(node, 1).ok_or_else(|| b.refused("its tensor is missing"))?;
    tensors.insert(at, new.to_owned());
    Ok(define(node, b, tensors))
}

/// A sequence with one tensor less: the last if no position is given.
pub(super) fn erase(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let mut tensors = tensors(node, b)?;
    let last = tensors.len().saturating_sub(1);
    let at = match input(node, 1) {
        Some(_) => position(node, b, 1, tensors.len())?,
        None => last,
    };
    if at >= tensors.len() {
        return Err(b.refused("no such tensor"));
    }
    tensors.remove(at);
    Ok(define(node, b, tensors))
}

/// The tensors as one.
pub(super) fn concat(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let mut tensors = tensors(node, b)?;
    let axis = attr_i(node, "axis").ok_or_else(|| b.refused("it has no axis"))?;
    if attr_i(node, "new_axis").unwrap_or(0) != 0 {
        let axes = b.ints(&[axis]);
        for tensor in &mut tensors {
            *tensor = b.op(op::Unsqueeze, &[tensor, &axes], vec![]);
        }
    }
    if let Some(y) = node.output.first() {
        let all: Vec<&str> = tensors.iter().map(String::as_str).collect();
        b.op_to(op::Concat, &all, y, vec![int_attr("axis", axis)]);
    }
    Ok(Outcome::Replaced)
}
