//! What each operator does to axes.

use super::layout::{reshaped, size};
use super::pick::{gather, gather_nd, slice, split};
use super::{Axes, Axis, Factor};
use crate::graph::infer::{Call, Facts};
use crate::onnx::node::{attr_i, attr_ints, attr_s};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// A node with what is known of the axes and shapes of its inputs.
pub(super) struct Step<'a> {
    pub node: &'a NodeProto,
    pub facts: &'a Facts,
    pub call: Call<'a>,
}

/// Learns the axes of the outputs of a node.
pub(super) fn follow(axes: &mut Axes, node: &NodeProto, facts: &Facts) {
    let step = Step {
        node,
        facts,
        call: facts.call(node),
    };
    if let Some(outputs) = outputs(axes, &step) {
        for (name, found) in node.output.iter().zip(outputs) {
            // What a rule says must be what the shapes say.
            let shape = facts.get(name).and_then(|f| f.shape());
            let fits = |shape: &Vec<usize>| found.iter().map(|a| size(a)).eq(shape.iter().copied());
            if shape.is_some_and(|shape| fits(&shape)) {
                axes.set(name, found);
            }
        }
    }
}

impl Step<'_> {
    fn shape_of(&self, name: &str) -> Option<Vec<usize>> {
        self.facts.get(name)?.shape()
    }

    pub(super) fn shape(&self, output: usize) -> Option<Vec<usize>> {
        self.shape_of(self.node.output.get(output)?)
    }

    /// The axes of an input. A constant has none but its own.
    pub(super) fn input(&self, axes: &Axes, slot: usize) -> Option<Vec<Axis>> {
        let name = self.node.input.get(slot).filter(|n| !n.is_empty())?;
        if let Some(known) = axes.of(name) {
            return Some(known.to_vec());
        }
        let is_constant = axes.is_plain(name);
        is_constant.then(|| Some(plain(&self.shape_of(name)?)))?
    }

    fn ints(&self, slot: usize, attr: &str) -> Option<Vec<i64>> {
        if let Some(ints) = attr_ints(self.node, attr) {
            return Some(ints.to_vec());
        }
        let value = self.facts.get(self.node.input.get(slot)?)?.value.as_ref()?;
        Some(value.ints()?.iter().copied().collect())
    }

    pub(super) fn axis(&self, rank: usize, default: i64) -> Option<usize> {
        from_front(rank, attr_i(self.node, "axis").unwrap_or(default))
    }
}

fn from_front(rank: usize, axis: i64) -> Option<usize> {
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
    (axis < rank).then_some(axis)
}

fn plain(shape: &[usize]) -> Vec<Axis> {
    shape.iter().map(|&n| vec![Factor::plain(n)]).collect()
}

fn has_origin(axes: &[Axis]) -> bool {
    axes.iter().flatten().any(|f| f.origin.is_some())
}

/// The axes of every output; `None` if nothing is known.
fn outputs(axes: &mut Axes, step: &Step) -> Option<Vec<Vec<Axis>>> {
    let one = |found: Option<Vec<Axis>>| Some(vec![found?]);
    match step.node.op_type() {
        // Made of shapes or of nothing.
        op::Shape | op::Size | op::Constant | op::ConstantOfShape | op::Range | op::EyeLike => {
            one(Some(plain(&step.shape(0)?)))
        }
        op::Reshape | op::Flatten | op::Squeeze | op::Unsqueeze => {
            one(reshaped(&step.input(axes, 0)?, &step.shape(0)?))
        }
        op::Add
        | op::Sub
        | op::Mul
        | op::Div
        | op::Pow
        | op::Min
        | op::Max
        | op::Sum
        | op::Mean
        | op::Mod
        | op::And
        | op::Or
        | op::Xor
        | op::Equal
        | op::Greater
        | op::GreaterOrEqual
        | op::Less
        | op::LessOrEqual
        | op::Where
        | op::PRelu
        | op::BitShift => {
            // What is known of one holds of the result, whatever is laid over it.
            let known = |slot| step.input(axes, slot);
            let count = step.node.input.len();
            let any = (0..count).any(|slot| known(slot).is_some_and(|input| has_origin(&input)));
            let unknown =
                |slot: usize| any.then(|| Some(plain(&step.shape_of(&step.node.input[slot])?)))?;
            let inputs: Option<Vec<_>> = (0..count)
                .map(|slot| known(slot).or_else(|| unknown(slot)))
                .collect();
            one(Some(axes.broadcast(&inputs?)))
        }
        op::Transpose => one(transpose(axes, step)),
        op::MatMul | op::MatMulInteger => one(matmul(axes, step)),
        op::Gemm => one(gemm(axes, step)),
        op::Einsum => one(einsum(axes, step)),
        op::Gather => one(gather(axes, step)),
        op::GatherND => one(gather_nd(axes, step)),
        op::Slice => one(slice(axes, step)),
        op::Split => split(axes, step),
        op::Concat => one(concat(axes, step)),
        op::Pad => one(pad(axes, step)),
        op::Expand | op::Tile => one(repeat(axes, step)),
        op::ArgMax | op::ArgMin => {
            let axis = attr_i(step.node, "axis").unwrap_or(0);
            one(reduce(axes, step, Some(vec![axis])))
        }
        op if op.starts_with("Reduce") => {
            let slot = step.node.input.get(1).is_some_and(|n| !n.is_empty());
            let listed = step.ints(1, "axes");
            one(match (listed, slot) {
                (None, true) => None,
                (listed, _) => reduce(axes, step, listed),
            })
        }
        op::TopK => {
            let input = step.input(axes, 0)?;
            let found = resized(&input, &step.shape(0)?)?;
            Some(vec![found.clone(), found])
        }
        op::GatherElements => {
            let (data, indices) = (step.input(axes, 0)?, step.input(axes, 1)?);
            let at = step.axis(data.len(), 0)?;
            let both = data.iter().zip(&indices).enumerate();
            one(Some(
                both.map(|(i, (data, index))| {
                    if i == at {
                        index.clone()
                    } else {
                        axes.over(index, data)
                    }
                })
                .collect(),
            ))
        }
        op::Conv
        | op::ConvTranspose
        | op::MaxPool
        | op::AveragePool
        | op::GlobalAveragePool
        | op::GlobalMaxPool
        | op::LpPool
        | op::Resize
        | op::Upsample => one(windows(&step.input(axes, 0)?, &step.shape(0)?)),
        // These pick, sort or move elements by values.
        op::ReverseSequence
        | op::ScatterElements
        | op::ScatterND
        | op::Unique
        | op::NonZero
        | op::Compress
        | op::If
        | op::Loop
        | op::Scan
        | op::LSTM
        | op::GRU
        | op::RNN
        | op::OneHot => None,
        // All others compute one element of its own place, or of its own vector.
        _ => {
            let input = step.input(axes, 0)?;
            let same = step
                .shape(0)?
                .iter()
                .copied()
                .eq(input.iter().map(|a| size(a)));
            one(same.then_some(input))
        }
    }
}

/// Each axis that keeps its size keeps its origin.
fn resized(input: &[Axis], shape: &[usize]) -> Option<Vec<Axis>> {
    if input.len() != shape.len() {
        return None;
    }
    let axis = |(axis, &n): (&Axis, &usize)| match size(axis) == n {
        true => axis.clone(),
        false => vec![Factor::plain(n)],
    };
    Some(input.iter().zip(shape).map(axis).collect())
}

/// Windows over all axes but the first two: rows stay, channels are new, an axis of the same size is the same.
fn windows(input: &[Axis], shape: &[usize]) -> Option<Vec<Axis>> {
    let mut found = resized(input, shape)?;
    if let Some(channels) = found.get_mut(1) {
        *channels = vec![Factor::plain(shape[1])];
    }
    Some(found)
}

fn transpose(axes: &Axes, step: &Step) -> Option<Vec<Axis>> {
    let input = step.input(axes, 0)?;
    let reversed: Vec<i64> = (0..input.len() as i64).rev().collect();
    let perm = attr_ints(step.node, "perm").unwrap_or(&reversed);
    let pick = |&at: &i64| input.get(usize::try_from(at).ok()?).cloned();
    perm.iter().map(pick).collect()
}

/// `[…, M, K] · […, K, N]`.
fn matmul(axes: &mut Axes, step: &Step) -> Option<Vec<Axis>> {
    let (mut a, mut b) = (step.input(axes, 0)?, step.input(axes, 1)?);
    let (column, row) = (a.len() == 1, b.len() == 1);
    if column {
        a.insert(0, vec![Factor::plain(1)]);
    }
    if row {
        b.push(vec![Factor::plain(1)]);
    }
    let (inner, rows) = (a.pop()?, a.pop()?);
    let (columns, other) = (b.pop()?, b.pop()?);
    axes.over(&inner, &other);
    let mut found = axes.broadcast(&[a, b]);
    if !column {
        found.push(rows);
    }
    if !row {
        found.push(columns);
    }
    Some(found)
}

fn gemm(axes: &mut Axes, step: &Step) -> Option<Vec<Axis>> {
    let (mut a, mut b) = (step.input(axes, 0)?, step.input(axes, 1)?);
    if attr_i(step.node, "transA").unwrap_or(0) != 0 {
        a.reverse();
    }
    if attr_i(step.node, "transB").unwrap_or(0) != 0 {
        b.reverse();
    }
    axes.over(a.get(1)?, b.first()?);
    let found = vec![a.first()?.clone(), b.get(1)?.clone()];
    match step.input(axes, 2) {
        Some(bias) => Some(axes.broadcast(&[found, bias])),
        None => Some(found),
    }
}

fn einsum(axes: &mut Axes, step: &Step) -> Option<Vec<Axis>> {
    let equation = attr_s(step.node, "equation")?.replace(' ', "");
    let (left, right) = equation.split_once("->")?;
    let mut letters: Vec<(char, Axis)> = Vec::new();
    for (slot, term) in left.split(',').enumerate() {
        let input = step.input(axes, slot)?;
        if term.contains('.') || term.chars().count() != input.len() {
            return None;
        }
        for (letter, axis) in term.chars().zip(input) {
            match letters.iter().position(|(l, _)| *l == letter) {
                Some(at) => {
                    let both = axes.over(&letters[at].1.clone(), &axis);
                    letters[at].1 = both;
                }
                None => letters.push((letter, axis)),
            }
        }
    }
    let axis = |letter| {
        letters
            .iter()
            .find(|(l, _)| *l == letter)
            .map(|(_, a)| a.clone())
    };
    right.chars().map(axis).collect()
}

/// A new axis of which the parts are parts.
fn concat(axes: &mut Axes, step: &Step) -> Option<Vec<Axis>> {
    let inputs: Option<Vec<_>> = (0..step.node.input.len())
        .map(|slot| step.input(axes, slot))
        .collect();
    // A past of no tokens adds none.
    let inputs: Vec<Vec<Axis>> = inputs?;
    let at = step.axis(inputs.first()?.len(), 0)?;
    let parts: Vec<Axis> = inputs.iter().map(|input| input[at].clone()).collect();
    let mut others: Vec<Vec<Axis>> = inputs;
    others
        .iter_mut()
        .for_each(|input| input[at] = vec![Factor::plain(1)]);
    let mut found = axes.broadcast(&others);
    found[at] = axes.joined(&parts);
    Some(found)
}

fn pad(axes: &mut Axes, step: &Step) -> Option<Vec<Axis>> {
    let input = step.input(axes, 0)?;
    let shape = step.shape(0)?;
    let pads = step.ints(1, "pads");
    let mut found = Vec::with_capacity(input.len());
    for (i, axis) in input.iter().enumerate() {
        let grown = shape.get(i)?.checked_sub(size(axis));
        found.push(match (grown, &pads) {
            (Some(0), _) => axis.clone(),
            (Some(n), Some(pads))
                if pads.len() == 2 * input.len() && pads.iter().all(|p| *p >= 0) =>
            {
                let before = pads[i] as usize;
                let parts = [before, n - before.min(n)].map(|n| vec![Factor::plain(n)]);
                let [first, last] = parts;
                axes.joined(&[first, axis.clone(), last])
            }
            _ => vec![Factor::plain(shape[i])],
        });
    }
    Some(found)
}

/// Expand and Tile: an axis that grows is repeated.
fn repeat(axes: &Axes, step: &Step) -> Option<Vec<Axis>> {
    let shape = step.shape(0)?;
    let mut input = step.input(axes, 0)?;
    while input.len() < shape.len() {
        input.insert(0, vec![Factor::plain(1)]);
    }
    resized(&input, &shape)
}

fn reduce(axes: &Axes, step: &Step, listed: Option<Vec<i64>>) -> Option<Vec<Axis>> {
    let input = step.input(axes, 0)?;
    let keep = attr_i(step.node, "keepdims").unwrap_or(1) != 0;
    let rank = input.len();
    let gone: Vec<usize> = match listed {
        Some(listed) if !listed.is_empty() => listed
            .iter()
            .map(|&a| from_front(rank, a))
            .collect::<Option<_>>()?,
        _ => (0..rank).collect(),
    };
    let axis = |(i, axis): (usize, &Axis)| match gone.contains(&i) {
        true => keep.then(|| vec![Factor::plain(1)]),
        false => Some(axis.clone()),
    };
    Some(input.iter().enumerate().filter_map(axis).collect())
}

impl Axes {
    /// Whether a value comes from no input: a constant, or made of shapes.
    fn is_plain(&self, name: &str) -> bool {
        self.constants.contains(name)
    }

    /// Parts of axes one after the other, as an axis of its own.
    fn joined(&mut self, parts: &[Axis]) -> Axis {
        let total = parts.iter().map(|part| size(part)).sum();
        let mut filled = parts.iter().filter(|part| size(part) > 0);
        if let (Some(one), None) = (filled.next(), filled.next()) {
            return one.clone();
        }
        let known = |part: &Axis| matches!(part.as_slice(), [Factor { origin: Some((.., 1)), size }] if *size > 0);
        if !parts.iter().any(known) {
            return vec![Factor::plain(total)];
        }
        let all = self.symbol(total);
        let mut start = 0;
        for part in parts {
            if let (
                [
                    Factor {
                        origin: Some((symbol, from, 1)),
                        ..
                    },
                ],
                true,
            ) = (part.as_slice(), known(part))
            {
                self.join(*symbol, all, start - *from as i64);
            }
            start += size(part) as i64;
        }
        vec![Factor {
            size: total,
            origin: Some((all, 0, 1)),
        }]
    }
}
