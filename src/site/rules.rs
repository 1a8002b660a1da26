//! The rules of [`super::trace`], one operator each.

use std::ops::Range;

use ndarray::Slice;

use super::labels::{
    Labels, NONE, UNREAD, reshape, through_product, tie_all, unbroadcast, ungather, unslice,
};
use super::sizes::{integers, measured};
use super::trace::{Fold, Place, Shapes, Shift, Walk, channels};
use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::node::{attr_i, attr_ints};
use crate::onnx::op;
use crate::recognise::{passage, see_through};

/// The inputs of `node` through which [`Walk::rule`] may follow channels; none at a wall. The other inputs of these
/// operators are the channels' business, not channels: a target shape, indices, a ratio.
pub(super) fn channel_inputs(view: &View, node: NodeId) -> Range<usize> {
    match view.op(node) {
        op::Add | op::Sub | op::Mul | op::Div | op::MatMul | op::Concat => {
            0..view.node(node).input.len()
        }
        op::Relu
        | op::Reshape
        | op::Transpose
        | op::Squeeze
        | op::Unsqueeze
        | op::Flatten
        | op::Expand
        | op::Slice
        | op::Split
        | op::SplitToSequence
        | op::Gather
        | op::Identity
        | op::Dropout
        | op::ReduceMean
        | op::ReduceSum
        | op::Cast => 0..1,
        op::Attention => 2..3,
        _ => super::contrib::channel_inputs(view, node),
    }
}

/// The values whose shapes the rule of `node` may need to know its bounds, sizes or index.
pub(super) fn measured_values(view: &View, node: NodeId) -> Vec<ValueId> {
    match view.op(node) {
        op::Slice | op::Split | op::Gather => measured(view, node, 1),
        _ => Vec::new(),
    }
}

impl Walk<'_, '_> {
    /// The rule of one operator: `labels` are those of its output number `output`.
    pub(super) fn rule(
        &mut self,
        node: NodeId,
        output: usize,
        labels: Labels,
        shift: Shift,
    ) -> Result<(), String> {
        let view = self.view;
        let op = view.op(node);
        if output == 0 && passage(view, node).is_some() {
            return self.pass(node, 0, labels, shift);
        }
        if self.elements.is_some() && !self.moves_elements(node) {
            return self.end_at_product(node, labels);
        }
        if let Some(done) = self.contrib(node, output, &labels, shift) {
            return done;
        }
        match op {
            op::Add | op::Sub => self.add(node, labels, shift),
            op::Mul | op::Div if !shift.moves() => self.multiply(node, labels),
            op::Relu if !shift.moves() => {
                self.positive = true;
                self.pass(node, 0, labels, Shift::Stays)
            }
            op::MatMul => self.product(node, labels, shift),
            op::ReduceMean | op::ReduceSum => self.reduce(node, labels, shift),
            op::Attention if output == 0 => self.attention(node, &labels, shift),
            op::Transpose => {
                let perm = match attr_ints(view.node(node), "perm") {
                    Some(perm) => perm.iter().map(|&a| a as usize).collect(),
                    None => (0..labels.ndim()).rev().collect::<Vec<_>>(),
                };
                let mut inverse = vec![0; perm.len()];
                for (to, &axis) in perm.iter().enumerate() {
                    *inverse.get_mut(axis).ok_or("its Transpose is malformed")? = to;
                }
                self.pass(node, 0, labels.permuted_axes(inverse), shift)
            }
            op::Reshape | op::Squeeze | op::Unsqueeze | op::Flatten => {
                let shape = self.shape_of_input(node, 0)?;
                let labels = reshape(labels, &shape).ok_or("its Reshape is malformed")?;
                self.pass(node, 0, labels, shift)
            }
            op::Expand => {
                let shape = self.shape_of_input(node, 0)?;
                let labels = unbroadcast(&labels, &shape, &mut self.ties)
                    .ok_or("an Expand mixes channels with others")?;
                self.pass(node, 0, labels, shift)
            }
            op::Slice => {
                let shape = self.shape_of_input(node, 0)?;
                let (axis, range) = slice_of(view, self.shapes, node, &shape).ok_or_else(|| {
                    format!(
                        "Slice `{}` is not along one axis by known bounds",
                        view.node_name(node)
                    )
                })?;
                let labels = unslice(&labels, &shape, axis, range, self.rest(node))
                    .ok_or("its Slice is malformed")?;
                self.pass(node, 0, labels, shift)
            }
            op::Split => {
                let shape = self.shape_of_input(node, 0)?;
                let axis = split_axis(view, node, shape.len()).ok_or("its Split is malformed")?;
                let start = self.split_start(node, output, axis)?;
                let end = start + labels.shape()[axis];
                if end > shape[axis] {
                    return Err("its Split is malformed".to_owned());
                }
                let range = Slice::from(start..end);
                // The other outputs have readers of their own.
                let labels =
                    unslice(&labels, &shape, axis, range, NONE).ok_or("its Split is malformed")?;
                self.pass(node, 0, labels, shift)
            }
            op::Gather => {
                let shape = self.shape_of_input(node, 0)?;
                let (axis, indices) =
                    gather_of(view, self.shapes, node, &shape).ok_or_else(|| {
                        format!(
                            "the indices of Gather `{}` are not known",
                            view.node_name(node)
                        )
                    })?;
                let labels = ungather(
                    labels,
                    &shape,
                    axis,
                    &indices,
                    self.rest(node),
                    &mut self.ties,
                )
                .ok_or("a Gather picks channels and others from one place")?;
                self.pass(node, 0, labels, shift)
            }
            op::SequenceAt => self.sequence_at(node, &labels, shift),
            op::Concat => self.concat(node, &labels, shift),
            "" => Err(format!(
                "it is computed by {}",
                view.node(node).op_type.as_deref().unwrap_or("?")
            )),
            op => Err(format!("it is computed by {op} `{}`", view.node_name(node))),
        }
    }

    /// Whether an operator does nothing but move elements.
    fn moves_elements(&self, node: NodeId) -> bool {
        matches!(
            self.view.op(node),
            op::Transpose
                | op::Reshape
                | op::Squeeze
                | op::Unsqueeze
                | op::Flatten
                | op::Expand
                | op::Slice
                | op::Split
                | op::Gather
                | op::SequenceAt
                | op::Concat
        )
    }

    /// The input `slot` of `node` must become what the labels say.
    pub(super) fn pass(
        &mut self,
        node: NodeId,
        slot: usize,
        labels: Labels,
        shift: Shift,
    ) -> Result<(), String> {
        let input = self.view.input(node, slot).ok_or("an input is missing")?;
        self.visit(input, labels, shift, &[Use::Node { node, input: slot }])
    }

    pub(super) fn shape_of_input(&self, node: NodeId, slot: usize) -> Result<Vec<usize>, String> {
        let input = self.view.input(node, slot).ok_or("an input is missing")?;
        let name = self.view.name(input);
        if self.view.is_constant(input) {
            return Err(format!("`{name}` is a constant"));
        }
        self.shapes
            .get(name)
            .cloned()
            .ok_or_else(|| format!("the shape of `{name}` is not known"))
    }

    /// a + c: c' = (c − z) / s, a' = a / s. (a − c: the sign of z turns; c − a: a' = a / s as well.)
    fn add(&mut self, node: NodeId, labels: Labels, shift: Shift) -> Result<(), String> {
        let view = self.view;
        let (slot, value) = self.constant_input(node).ok_or_else(|| {
            format!(
                "{} `{}` adds two computed values",
                view.op(node),
                view.node_name(node)
            )
        })?;
        let (array, _) = view
            .constant(value)
            .and_then(|c| c.into_float())
            .ok_or("a constant that is added is not float")?;
        let own = unbroadcast(&labels, array.shape(), &mut self.ties)
            .ok_or("a constant that is added spans more than the channels")?;
        let sign = if view.op(node) == op::Sub && slot == 1 {
            1
        } else {
            -1
        };
        self.folds.push(Fold {
            place: Place::Constant {
                node,
                slot,
                value,
                shift_sign: if shift.moves() { sign } else { 0 },
            },
            channels: channels(&own),
            takes_shift: shift.moves(),
        });
        let labels = self.input_labels(node, 1 - slot, labels)?;
        self.pass(node, 1 - slot, labels, Shift::Stays)
    }

    /// a · c, a / c, a · b: the scale goes into one factor.
    fn multiply(&mut self, node: NodeId, labels: Labels) -> Result<(), String> {
        let view = self.view;
        if let Some((slot, value)) = self.constant_input(node) {
            let scalar = view.scalar(value).is_some();
            if scalar && (slot == 1 || view.op(node) == op::Mul) {
                let labels = self.input_labels(node, 1 - slot, labels)?;
                return self.pass(node, 1 - slot, labels, Shift::Stays);
            }
            if view.op(node) == op::Mul {
                let (array, _) = view
                    .constant(value)
                    .and_then(|c| c.into_float())
                    .ok_or("a constant factor is not float")?;
                let own = unbroadcast(&labels, array.shape(), &mut self.ties)
                    .ok_or("a constant factor spans more than the channels")?;
                self.folds.push(Fold {
                    place: Place::Constant {
                        node,
                        slot,
                        value,
                        shift_sign: 0,
                    },
                    channels: channels(&own),
                    takes_shift: false,
                });
                return Ok(());
            }
        }
        // A quotient is scaled through its numerator; a product through whichever factor has a way.
        let slots: &[usize] = if view.op(node) == op::Div {
            &[0]
        } else {
            &[1, 0]
        };
        let mut reasons = Vec::new();
        for &slot in slots {
            let mut attempt = self.clone();
            let done = attempt
                .input_labels(node, slot, labels.clone())
                .and_then(|labels| attempt.pass(node, slot, labels, Shift::Stays));
            match done {
                Ok(()) => {
                    *self = attempt;
                    return Ok(());
                }
                Err(reason) if reasons.contains(&reason) => {}
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }

    /// P V: into V. The rows of a Softmax sum to 1, so that P (V − z) = P V − z.
    fn product(&mut self, node: NodeId, labels: Labels, shift: Shift) -> Result<(), String> {
        let view = self.view;
        let p = view.input(node, 0).ok_or("an input is missing")?;
        let p = see_through(view, p);
        if shift.moves()
            && view
                .producer_is(p, op::Softmax)
                .is_none_or(|s| !self.over_last_axis(s))
        {
            return Err("the rows of its left factor need not sum to 1".to_owned());
        }
        let shape = self.shape_of_input(node, 1)?;
        let labels = through_product(&labels, &shape, &mut self.ties)
            .ok_or("the channels of a product are not those of its right factor")?;
        self.pass(node, 1, labels, shift)
    }

    fn over_last_axis(&self, softmax: NodeId) -> bool {
        let axis = attr_i(self.view.node(softmax), "axis").unwrap_or(-1);
        let rank = self
            .view
            .output(softmax, 0)
            .and_then(|v| self.shapes.get(self.view.name(v)));
        axis == -1 || rank.is_some_and(|shape| axis + 1 == shape.len() as i64)
    }

    fn concat(&mut self, node: NodeId, labels: &Labels, shift: Shift) -> Result<(), String> {
        let rank = labels.ndim() as i64;
        let axis = attr_i(self.view.node(node), "axis").ok_or("its Concat is malformed")?;
        let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).unwrap_or(0);
        let mut start = 0;
        // One value may stand in several slots: that is how some exporters repeat the V heads of grouped queries.
        let mut inputs: Vec<(ValueId, Labels, Vec<Use>)> = Vec::new();
        for slot in 0..self.view.node(node).input.len() {
            let input = self.view.input(node, slot).ok_or("an input is missing")?;
            let shape = self.shape_of_input(node, slot)?;
            let length = shape.get(axis).copied().unwrap_or(0);
            if start + length > labels.shape()[axis] {
                return Err("its Concat is malformed".to_owned());
            }
            let range = Slice::from(start..start + length);
            let part = labels.slice_axis(ndarray::Axis(axis), range).to_owned();
            let reader = Use::Node { node, input: slot };
            match inputs.iter_mut().find(|(value, ..)| *value == input) {
                Some((_, first, readers)) => {
                    *first = tie_all(first, &part, &mut self.ties)
                        .ok_or("a Concat mixes channels with others")?;
                    readers.push(reader);
                }
                None => inputs.push((input, part, vec![reader])),
            }
            start += length;
        }
        for (input, labels, readers) in inputs {
            self.visit(input, labels, shift, &readers)?;
        }
        Ok(())
    }

    /// The labels of an input that may have been broadcast.
    fn input_labels(
        &mut self,
        node: NodeId,
        slot: usize,
        labels: Labels,
    ) -> Result<Labels, String> {
        let shape = self.shape_of_input(node, slot)?;
        if shape == labels.shape() {
            return Ok(labels);
        }
        unbroadcast(&labels, &shape, &mut self.ties)
            .ok_or_else(|| format!("`{}` mixes channels with others", self.view.node_name(node)))
    }

    fn constant_input(&self, node: NodeId) -> Option<(usize, ValueId)> {
        let inputs = [1, 0]
            .into_iter()
            .filter_map(|s| Some((s, self.view.input(node, s)?)));
        inputs.into_iter().find(|&(_, v)| self.view.is_constant(v))
    }

    /// Where output number `output` of a Split begins.
    fn split_start(&self, node: NodeId, output: usize, axis: usize) -> Result<usize, String> {
        let view = self.view;
        let whole = self.shape_of_input(node, 0)?[axis];
        let parts = view.node(node).output.len();
        // Sibling outputs are not on the way, so the lengths come from the sizes of the Split.
        let start = match view.input(node, 1) {
            Some(_) => split_sizes(view, self.shapes, node)
                .map(|sizes| sizes.iter().take(output).sum())
                .ok_or_else(|| {
                    format!(
                        "the sizes of Split `{}` are not known",
                        view.node_name(node)
                    )
                })?,
            // Equal parts, of which the last may be smaller.
            None => output * whole.div_ceil(parts.max(1)),
        };
        Ok(start)
    }

    /// What the elements are that `node`, which reads its first input in part, leaves out.
    fn rest(&self, node: NodeId) -> u32 {
        let input = self.view.input(node, 0);
        let mut readers = input.map_or(&[][..], |v| self.view.uses(v)).iter();
        let this = Use::Node { node, input: 0 };
        match readers.any(|&reader| reader != this && self.reads_elements(reader)) {
            true => NONE,
            false => UNREAD,
        }
    }

    /// Whether a reader reads elements of a value, and not its shape alone.
    pub(super) fn reads_elements(&self, reader: Use) -> bool {
        match reader {
            Use::Node { node, .. } => !matches!(self.view.op(node), op::Shape | op::Size),
            _ => true,
        }
    }

    /// Whether a reader sees nothing of the labelled channels.
    pub(super) fn sees_no_channel(&self, labels: &Labels, reader: Use) -> bool {
        let Use::Node { node, input: 0 } = reader else {
            return false;
        };
        let view = self.view;
        match view.op(node) {
            // Only the shape is read.
            op::Shape | op::Size => true,
            op::Slice => {
                slice_of(view, self.shapes, node, labels.shape()).is_some_and(|(axis, range)| {
                    labels
                        .slice_axis(ndarray::Axis(axis), range)
                        .iter()
                        .all(|&l| l == NONE)
                })
            }
            op::Gather => {
                gather_of(view, self.shapes, node, labels.shape()).is_some_and(|(axis, indices)| {
                    let axis = ndarray::Axis(axis);
                    let mut picked = indices.iter().map(|&i| labels.index_axis(axis, i));
                    picked.all(|part| part.iter().all(|&l| l == NONE))
                })
            }
            _ => false,
        }
    }
}

pub(super) fn split_axis(view: &View, node: NodeId, rank: usize) -> Option<usize> {
    let axis = attr_i(view.node(node), "axis").unwrap_or(0);
    usize::try_from(if axis < 0 { axis + rank as i64 } else { axis })
        .ok()
        .filter(|a| *a < rank)
}

fn split_sizes(view: &View, shapes: &Shapes, node: NodeId) -> Option<Vec<usize>> {
    let sizes = integers(view, shapes, view.input(node, 1)?)?;
    sizes.into_iter().map(|s| usize::try_from(s).ok()).collect()
}

/// Axis and indices, counted from 0, of a Gather by known ones.
fn gather_of(
    view: &View,
    shapes: &Shapes,
    node: NodeId,
    shape: &[usize],
) -> Option<(usize, Vec<usize>)> {
    let axis = split_axis(view, node, shape.len())?;
    let length = shape[axis] as i64;
    let from_0 = |&index: &i64| {
        let index = if index < 0 { index + length } else { index };
        (0..length).contains(&index).then_some(index as usize)
    };
    let indices = integers(view, shapes, view.input(node, 1)?)?;
    Some((axis, indices.iter().map(from_0).collect::<Option<_>>()?))
}

/// Axis and range of a Slice along one axis by known bounds, with step 1.
fn slice_of(view: &View, shapes: &Shapes, node: NodeId, shape: &[usize]) -> Option<(usize, Slice)> {
    let ints = |slot: usize| -> Option<Vec<i64>> {
        let values = integers(view, shapes, view.input(node, slot)?)?;
        Some(values.into_iter().collect())
    };
    let (starts, ends) = (ints(1)?, ints(2)?);
    let (&[start], &[end]) = (starts.as_slice(), ends.as_slice()) else {
        return None;
    };
    let axis = match view.input(node, 3) {
        Some(_) => *ints(3)?.first()?,
        None => 0,
    };
    if view.input(node, 4).is_some() && ints(4)? != [1] {
        return None;
    }
    let axis = usize::try_from(if axis < 0 {
        axis + shape.len() as i64
    } else {
        axis
    })
    .ok()?;
    let length = *shape.get(axis)? as i64;
    let clamp = |i: i64| (if i < 0 { i + length } else { i }).clamp(0, length) as usize;
    let (start, end) = (clamp(start), clamp(end));
    (start <= end).then(|| (axis, Slice::from(start..end)))
}
