//! Integers that a graph computes from shapes: the bounds of a Slice, the sizes of a Split, the index of a Gather.
//!
//! TorchScript writes `x.chunk(3, -1)` as Slices whose bounds come from `Shape(x)` by way of Gather, Add, Div and Mul.
//! With the shapes of one run these are numbers, like the labels that are followed with them.

use ndarray::{Array1, ArrayD, Axis};

use super::trace::Shapes;
use crate::graph::{Constant, NodeId, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;

/// Longer chains are no size arithmetic.
const DEPTH: usize = 32;

/// The integers of `value` (rank 0 or 1) where they follow from constants and `shapes`.
pub(super) fn integers(view: &View, shapes: &Shapes, value: ValueId) -> Option<ArrayD<i64>> {
    at_depth(view, shapes, value, 0)
}

fn at_depth(view: &View, shapes: &Shapes, value: ValueId, depth: usize) -> Option<ArrayD<i64>> {
    match view.constant(value) {
        Some(Constant::Int(array)) => return Some(array),
        Some(Constant::Float { .. }) => return None,
        None => {}
    }
    if depth > DEPTH {
        return None;
    }
    let (node, _) = view.producer(value)?;
    let input = |slot: usize| at_depth(view, shapes, view.input(node, slot)?, depth + 1);
    match view.op(node) {
        op::Shape => {
            let shape = shapes.get(view.name(view.input(node, 0)?))?;
            let (start, end) = (
                attr_i(view.node(node), "start"),
                attr_i(view.node(node), "end"),
            );
            let rank = shape.len() as i64;
            let clamp = |i: i64| (if i < 0 { i + rank } else { i }).clamp(0, rank) as usize;
            let part = shape.get(clamp(start.unwrap_or(0))..clamp(end.unwrap_or(rank)))?;
            Some(vector(part.iter().map(|&d| d as i64).collect()))
        }
        op::Gather => {
            let (data, index) = (input(0)?, input(1)?);
            let length = data.len() as i64;
            let one = |&i: &i64| {
                let i = usize::try_from(if i < 0 { i + length } else { i }).ok()?;
                data.iter().nth(i).copied()
            };
            let picked: Vec<i64> = index.iter().map(one).collect::<Option<_>>()?;
            ArrayD::from_shape_vec(index.raw_dim(), picked).ok()
        }
        // Elementwise, of two numbers or lists of one length; a single number goes with each element of a list.
        op @ (op::Add | op::Sub | op::Mul | op::Div) => {
            let (a, b) = (input(0)?, input(1)?);
            let longer = if a.ndim() >= b.ndim() && a.len() >= b.len() {
                &a
            } else {
                &b
            };
            let shape = longer.raw_dim();
            let (a, b) = (a.broadcast(shape.clone())?, b.broadcast(shape.clone())?);
            let of = |(&a, &b): (&i64, &i64)| match op {
                op::Add => a.checked_add(b),
                op::Sub => a.checked_sub(b),
                op::Mul => a.checked_mul(b),
                _ => a.checked_div(b),
            };
            let values: Vec<i64> = a.iter().zip(b.iter()).map(of).collect::<Option<_>>()?;
            ArrayD::from_shape_vec(shape, values).ok()
        }
        op::Concat => {
            let parts = (0..view.node(node).input.len()).map(&input);
            let parts: Vec<ArrayD<i64>> = parts.collect::<Option<_>>()?;
            Some(vector(parts.iter().flatten().copied().collect()))
        }
        op::Identity | op::Cast => input(0),
        op::Unsqueeze => input(0)
            .filter(|a| a.ndim() == 0)
            .map(|a| a.insert_axis(Axis(0))),
        op::Squeeze => input(0)
            .filter(|a| a.shape() == [1])
            .map(|a| a.index_axis_move(Axis(0), 0)),
        _ => None,
    }
}

fn vector(values: Vec<i64>) -> ArrayD<i64> {
    Array1::from(values).into_dyn()
}

/// The values whose shapes [`integers`] asks for when it evaluates the inputs of `node` from number `first` on.
pub(super) fn measured(view: &View, node: NodeId, first: usize) -> Vec<ValueId> {
    let mut result = Vec::new();
    let mut pending: Vec<ValueId> = (first..view.node(node).input.len())
        .filter_map(|slot| view.input(node, slot))
        .collect();
    // Every value once, and no more than a chain of sizes has.
    let mut next = 0;
    while let Some(&value) = pending.get(next).filter(|_| next < 2 * DEPTH) {
        next += 1;
        let Some((producer, _)) = view.producer(value).filter(|_| !view.is_constant(value)) else {
            continue;
        };
        match view.op(producer) {
            op::Shape => result.extend(
                view.input(producer, 0)
                    .filter(|&v| view.producer(v).is_some()),
            ),
            op::Gather
            | op::Add
            | op::Sub
            | op::Mul
            | op::Div
            | op::Concat
            | op::Identity
            | op::Cast
            | op::Unsqueeze
            | op::Squeeze => {
                let inputs = 0..view.node(producer).input.len();
                for input in inputs.filter_map(|slot| view.input(producer, slot)) {
                    if !pending.contains(&input) {
                        pending.push(input);
                    }
                }
            }
            _ => {}
        }
    }
    result
}
