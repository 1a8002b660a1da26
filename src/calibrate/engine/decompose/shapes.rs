//! Types and shapes of the outputs of a standard operator, from those of its inputs.

use std::collections::BTreeMap;

use super::known::{Known, axes, axis_of, broadcast, permutation, slices, split_lengths};
use super::scope::{Fact, Scope, engine_type, tensor_fact};
use super::values;
use crate::onnx::DataType;
use crate::onnx::node::{attr_f, attr_i, attr_ints, attr_s, attr_t};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// What is known of the outputs of `node`, one fact each.
pub(super) fn facts(node: &NodeProto, scope: &Scope<'_>) -> Vec<Fact> {
    let known = Known { node, scope };
    if let (op::Constant, Some(value)) = (node.op_type(), attr_t(node, "value")) {
        return vec![tensor_fact(value)];
    }
    let dtype = output_type(known);
    let shapes = output_shapes(known).unwrap_or_default();
    let mut facts: Vec<Fact> = node.output.iter().map(|_| Fact::default()).collect();
    for (at, fact) in facts.iter_mut().enumerate() {
        fact.dtype = dtype.filter(|_| at == 0 || node.op_type() == op::Split);
        fact.shape = shapes.get(at).cloned();
    }
    if let Some(values) = dtype.and_then(|dtype| values::outputs(known, dtype, &shapes)) {
        for (fact, value) in facts.iter_mut().zip(values) {
            fact.value = Some(value);
        }
    }
    facts
}

/// Operators whose result has the type of their first input.
#[rustfmt::skip]
const SAME_TYPE: &[&str] = &[
    op::Abs, op::Add, op::Attention, op::BatchNormalization, op::Ceil, op::Clip, op::Concat, op::Conv, op::Cos, op::CumSum, op::Div, op::Elu,
    op::Erf, op::Exp, op::Expand, op::Flatten, op::Floor, op::Gather, op::GatherElements, op::GatherND, op::Gelu, op::Gemm,
    op::GroupNormalization, op::HardSigmoid, op::HardSwish, op::Identity, op::InstanceNormalization, op::LayerNormalization,
    op::LeakyRelu, op::Log, op::LogSoftmax, op::MatMul, op::Max, op::Mean, op::Min, op::Mish, op::Mod, op::Mul, op::Neg, op::PRelu, op::Pow,
    op::RMSNormalization, op::Range, op::Reciprocal, op::ReduceL1, op::ReduceL2, op::ReduceLogSum, op::ReduceLogSumExp, op::ReduceMax,
    op::ReduceMean, op::ReduceMin, op::ReduceProd, op::ReduceSum, op::ReduceSumSquare, op::Relu, op::Reshape, op::RotaryEmbedding,
    op::Round, op::ScatterElements, op::ScatterND, op::Selu, op::Sigmoid, op::Sign, op::Sin, op::Slice, op::Softmax, op::Softplus, op::Split,
    op::Sqrt, op::Squeeze, op::Sub, op::Sum, op::Swish, op::Tanh, op::Tile, op::Transpose, op::Trilu, op::Unsqueeze,
];

/// Operators whose first output has the shape of their first input.
#[rustfmt::skip]
const SAME_SHAPE: &[&str] = &[
    op::Abs, op::BatchNormalization, op::BiasGelu, op::Cast, op::CastLike, op::Ceil, op::Clip, op::Cos, op::CumSum, op::DequantizeLinear,
    op::Dropout, op::Elu, op::Erf, op::Exp, op::FastGelu, op::Floor, op::Gelu, op::GroupNormalization, op::HardSigmoid, op::HardSwish,
    op::Identity, op::InstanceNormalization, op::IsInf, op::IsNaN, op::LayerNormalization, op::LeakyRelu, op::Log, op::LogSoftmax,
    op::Mish, op::Neg, op::Not, op::PRelu, op::QuantizeLinear, op::QuickGelu, op::RMSNormalization, op::Reciprocal, op::Relu,
    op::RotaryEmbedding, op::Round, op::ScatterElements, op::ScatterND, op::Selu, op::Sigmoid, op::Sign,
    op::SimplifiedLayerNormalization, op::Sin, op::SkipLayerNormalization, op::SkipSimplifiedLayerNormalization, op::Softmax,
    op::Softplus, op::Sqrt, op::Swish, op::Tanh, op::Trilu,
];

/// Operators on elements, whose inputs are broadcast to each other.
#[rustfmt::skip]
const ELEMENTWISE: &[&str] = &[
    op::Add, op::And, op::Div, op::Equal, op::Greater, op::GreaterOrEqual, op::Less, op::LessOrEqual, op::Max, op::Mean, op::Min, op::Mod, op::Mul,
    op::Or, op::Pow, op::Sub, op::Sum, op::Where, op::Xor,
];

/// Whether the first output of an operator of Microsoft's domain is like its first input.
pub(super) fn of_microsoft(op: &str) -> bool {
    matches!(
        op,
        op::BiasGelu
            | op::FastGelu
            | op::Gelu
            | op::QuickGelu
            | op::RotaryEmbedding
            | op::SkipLayerNormalization
            | op::SkipSimplifiedLayerNormalization
            | op::QuantizeLinear
            | op::DequantizeLinear
    )
}

/// The type of the outputs.
fn output_type(known: Known<'_>) -> Option<DataType> {
    let node = known.node;
    let attribute = |name: &str| {
        let code = attr_i(node, name)?;
        DataType::try_from(code as i32).ok().map(engine_type)
    };
    match node.op_type() {
        op::And
        | op::Or
        | op::Xor
        | op::Not
        | op::Equal
        | op::Less
        | op::LessOrEqual
        | op::Greater
        | op::GreaterOrEqual
        | op::IsNaN
        | op::IsInf => Some(DataType::Bool),
        op::Shape | op::Size | op::ArgMax | op::ArgMin | op::NonZero => Some(DataType::Int64),
        op::Cast => attribute("to"),
        op::CastLike | op::Where => known.dtype(1),
        op::DequantizeLinear => Some(DataType::Float),
        op::BiasGelu
        | op::FastGelu
        | op::QuickGelu
        | op::SkipLayerNormalization
        | op::SkipSimplifiedLayerNormalization
        | op::SimplifiedLayerNormalization => known.dtype(0),
        op::ConstantOfShape => match attr_t(node, "value") {
            Some(value) => tensor_fact(value).dtype,
            None => Some(DataType::Float),
        },
        op::Constant => {
            if attr_f(node, "value_float").is_some() {
                Some(DataType::Float)
            } else {
                attr_i(node, "value_int")
                    .map(|_| ())
                    .or(attr_ints(node, "value_ints").map(|_| ()))
                    .map(|()| DataType::Int64)
            }
        }
        op if SAME_TYPE.contains(&op) => known.dtype(0),
        _ => None,
    }
}

/// The shapes of the outputs; of the first ones only where the others are not known.
fn output_shapes(known: Known<'_>) -> Option<Vec<Vec<usize>>> {
    let node = known.node;
    let x = || known.shape(0).map(<[usize]>::to_vec);
    let rank = || known.shape(0).map(<[usize]>::len);
    let one = match node.op_type() {
        op if SAME_SHAPE.contains(&op) => x()?,
        op if ELEMENTWISE.contains(&op) => {
            let mut shape = Vec::new();
            for slot in 0..node.input.len() {
                shape = broadcast(&shape, known.shape(slot)?)?;
            }
            shape
        }
        op::MatMul => matmul(known.shape(0)?, known.shape(1)?)?,
        op::QLinearMatMul => matmul(known.shape(0)?, known.shape(3)?)?,
        op::Gemm => {
            let side = |slot: usize, transposed: &str, keep: usize| {
                let flip = usize::from(attr_i(node, transposed).unwrap_or(0) != 0);
                known.shape(slot)?.get(keep ^ flip).copied()
            };
            vec![side(0, "transA", 0)?, side(1, "transB", 1)?]
        }
        op::Reshape => {
            let allow_zero = attr_i(node, "allowzero").unwrap_or(0) != 0;
            reshaped(known.shape(0)?, &known.ints(1)?, allow_zero)?
        }
        op::Flatten => {
            let shape = known.shape(0)?;
            let axis = attr_i(node, "axis").unwrap_or(1);
            let axis = usize::try_from(if axis < 0 {
                axis + shape.len() as i64
            } else {
                axis
            });
            let (a, b) = shape.split_at_checked(axis.ok()?)?;
            vec![a.iter().product(), b.iter().product()]
        }
        op::Transpose => {
            let shape = known.shape(0)?;
            permutation(node, shape.len())?
                .into_iter()
                .map(|axis| shape[axis])
                .collect()
        }
        op::Squeeze => {
            let shape = known.shape(0)?;
            let gone = match known.ints_or(1, "axes")? {
                Some(given) => axes(&given, shape.len())?,
                None => (0..shape.len()).filter(|&a| shape[a] == 1).collect(),
            };
            if gone.iter().any(|&a| shape[a] != 1) {
                return None;
            }
            without(shape, &gone)
        }
        op::Unsqueeze => {
            let given = known.ints_or(1, "axes")??;
            let mut added = axes(&given, rank()? + given.len())?;
            added.sort_unstable();
            let mut shape = x()?;
            for axis in added {
                if axis > shape.len() {
                    return None;
                }
                shape.insert(axis, 1);
            }
            shape
        }
        op::Expand => {
            let target: Option<Vec<usize>> =
                known.ints(1)?.iter().map(|&n| n.try_into().ok()).collect();
            broadcast(known.shape(0)?, &target?)?
        }
        op::Tile => {
            let shape = known.shape(0)?;
            let repeats = known.ints(1)?;
            if repeats.len() != shape.len() {
                return None;
            }
            let repeated = shape.iter().zip(&repeats);
            repeated
                .map(|(&n, &r)| n.checked_mul(r.try_into().ok()?))
                .collect::<Option<_>>()?
        }
        op::Slice => {
            let mut shape = x()?;
            for (axis, indices) in slices(known)? {
                shape[axis] = indices.len();
            }
            shape
        }
        op::Einsum => {
            let inputs = 0..node.input.len();
            let shapes = inputs.map(|slot| known.shape(slot));
            einsum(
                attr_s(node, "equation")?,
                &shapes.collect::<Option<Vec<_>>>()?,
            )?
        }
        op::Pad => {
            let mut shape = x()?;
            let pads = known.ints_or(1, "pads")??;
            let over = match known.name(3) {
                Some(_) => axes(&known.ints(3)?, shape.len())?,
                None => (0..shape.len()).collect(),
            };
            if pads.len() != 2 * over.len() {
                return None;
            }
            let (before, after) = pads.split_at(over.len());
            for ((axis, before), after) in over.into_iter().zip(before).zip(after) {
                let size = i64::try_from(shape[axis]).ok()? + before + after;
                shape[axis] = size.try_into().ok()?;
            }
            shape
        }
        op::Concat => {
            let mut shape = x()?;
            let axis = axis_of(shape.len(), attr_i(node, "axis")?)?;
            for slot in 1..node.input.len() {
                let next = known.shape(slot)?;
                if next.len() != shape.len() {
                    return None;
                }
                shape[axis] += next[axis];
            }
            shape
        }
        op::Gather => {
            let data = known.shape(0)?;
            let axis = axis_of(data.len(), attr_i(node, "axis").unwrap_or(0))?;
            [&data[..axis], known.shape(1)?, &data[axis + 1..]].concat()
        }
        op::GatherElements => known.shape(1)?.to_vec(),
        op::GatherND => {
            let (last, rows) = known.shape(1)?.split_last()?;
            let batch = attr_i(node, "batch_dims").unwrap_or(0);
            let skipped = usize::try_from(batch).ok()? + last;
            [rows, known.shape(0)?.get(skipped..)?].concat()
        }
        op::ReduceMean
        | op::ReduceSum
        | op::ReduceMax
        | op::ReduceMin
        | op::ReduceProd
        | op::ReduceL1
        | op::ReduceL2
        | op::ReduceSumSquare
        | op::ReduceLogSum
        | op::ReduceLogSumExp => {
            let given = known.ints_or(1, "axes")?.unwrap_or_default();
            let keep_all = attr_i(node, "noop_with_empty_axes").unwrap_or(0) != 0;
            let shape = known.shape(0)?;
            let over = match given.as_slice() {
                [] if keep_all => return Some(vec![x()?]),
                [] => (0..shape.len()).collect(),
                given => axes(given, shape.len())?,
            };
            reduced(shape, &over, attr_i(node, "keepdims").unwrap_or(1) != 0)
        }
        op::ArgMax | op::ArgMin => {
            let shape = known.shape(0)?;
            let axis = axis_of(shape.len(), attr_i(node, "axis").unwrap_or(0))?;
            reduced(shape, &[axis], attr_i(node, "keepdims").unwrap_or(1) != 0)
        }
        op::ConstantOfShape => known
            .ints(0)?
            .iter()
            .map(|&n| n.try_into().ok())
            .collect::<Option<_>>()?,
        op::Split => return split(known),
        op::Conv => conv(known)?,
        _ => return None,
    };
    Some(vec![one])
}

fn reduced(shape: &[usize], over: &[usize], keep: bool) -> Vec<usize> {
    if !keep {
        return without(shape, over);
    }
    let ones = shape.iter().enumerate();
    ones.map(|(a, &n)| if over.contains(&a) { 1 } else { n })
        .collect()
}

fn without(shape: &[usize], gone: &[usize]) -> Vec<usize> {
    let all = shape.iter().enumerate();
    all.filter(|(a, _)| !gone.contains(a))
        .map(|(_, &n)| n)
        .collect()
}

fn matmul(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    match (a, b) {
        (_, []) | ([], _) => None,
        ([_], [_]) => Some(vec![]),
        ([_], [rows @ .., _, n]) => Some([rows, &[*n]].concat()),
        ([rows @ .., _], [_]) => Some(rows.to_vec()),
        ([left @ .., m, _], [right @ .., _, n]) => {
            let mut shape = broadcast(left, right)?;
            shape.extend([*m, *n]);
            Some(shape)
        }
    }
}

fn reshaped(shape: &[usize], target: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let mut new = Vec::new();
    let mut open = None;
    for (at, &n) in target.iter().enumerate() {
        new.push(match n {
            -1 if open.is_none() => {
                open = Some(at);
                1
            }
            0 if !allow_zero => *shape.get(at)?,
            n => n.try_into().ok()?,
        });
    }
    let count: usize = shape.iter().product();
    let product: usize = new.iter().product();
    if let Some(at) = open {
        if product == 0 || !count.is_multiple_of(product) {
            return None;
        }
        new[at] = count / product;
    } else if product != count {
        return None;
    }
    Some(new)
}

fn split(known: Known<'_>) -> Option<Vec<Vec<usize>>> {
    let (axis, lengths) = split_lengths(known)?;
    let shape = known.shape(0)?;
    let part = |length: usize| {
        let mut part = shape.to_vec();
        part[axis] = length;
        part
    };
    Some(lengths.into_iter().map(part).collect())
}

/// Spatial axes: (n + pads − dilation (k − 1) − 1) / stride + 1.
fn conv(known: Known<'_>) -> Option<Vec<usize>> {
    let node = known.node;
    let (x, w) = (known.shape(0)?, known.shape(1)?);
    let spatial = x.len().checked_sub(2)?;
    let automatic = crate::onnx::node::attr_s(node, "auto_pad").unwrap_or("NOTSET");
    if w.len() != x.len() || !matches!(automatic, "NOTSET" | "VALID" | "") {
        return None;
    }
    let attribute = |name: &str, at: usize, default: i64| {
        let given = attr_ints(node, name).and_then(|list| list.get(at));
        usize::try_from(given.copied().unwrap_or(default)).ok()
    };
    let mut shape = vec![x[0], w[0]];
    for at in 0..spatial {
        let pads = attribute("pads", at, 0)? + attribute("pads", at + spatial, 0)?;
        let kernel = attribute("dilations", at, 1)? * w[at + 2].checked_sub(1)? + 1;
        let room = (x[at + 2] + pads).checked_sub(kernel)?;
        shape.push(room / attribute("strides", at, 1)?.max(1) + 1);
    }
    Some(shape)
}

/// The shape that an Einsum with a stated output gives; what the dots of its terms stand for is broadcast.
fn einsum(equation: &str, shapes: &[&[usize]]) -> Option<Vec<usize>> {
    const DOTS: &str = "...";
    let equation = equation.replace(' ', "");
    let (terms, output) = equation.split_once("->")?;
    let mut sizes: BTreeMap<char, usize> = BTreeMap::new();
    let mut dots = Vec::new();
    if terms.split(',').count() != shapes.len() {
        return None;
    }
    for (term, shape) in terms.split(',').zip(shapes) {
        let letters = term.replace(DOTS, "");
        let hidden = shape.len().checked_sub(letters.len())?;
        let start = term.find(DOTS).unwrap_or(letters.len());
        if hidden > 0 && !term.contains(DOTS) {
            return None;
        }
        let (before, rest) = shape.split_at(start);
        let (under, after) = rest.split_at(hidden);
        dots = broadcast(&dots, under)?;
        for (letter, &size) in letters.chars().zip(before.iter().chain(after)) {
            if *sizes.entry(letter).or_insert(size) != size {
                return None;
            }
        }
    }
    let of = |letters: &str| {
        letters
            .chars()
            .map(|l| sizes.get(&l).copied())
            .collect::<Option<Vec<_>>>()
    };
    match output.split_once(DOTS) {
        Some((before, after)) => Some([of(before)?, dots, of(after)?].concat()),
        None => of(output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn einsum_with_and_without_dots() {
        let same = [&[2, 3, 4, 5][..], &[2, 3, 5, 6]];
        let fewer = [&[2, 3, 4, 5][..], &[3, 5, 6]];
        let one = [&[2, 3, 4, 5][..], &[5, 6]];
        for (equation, shapes, expected) in [
            ("...ij, ...jk -> ...ik", &same, &[2, 3, 4, 6][..]),
            ("...ij,...jk->...ik", &fewer, &[2, 3, 4, 6]),
            ("...ij,jk->...ik", &one, &[2, 3, 4, 6]),
            ("i...j,jk->i...k", &one, &[2, 3, 4, 6]),
            ("...ij,...jk->ik...", &same, &[4, 6, 2, 3]),
            ("...ij,...jk->...ik", &[&[1, 4, 5], &[2, 5, 6]], &[2, 4, 6]),
            ("ij,jk->ki", &[&[2, 3], &[3, 4]], &[4, 2]),
        ] {
            assert_eq!(
                einsum(equation, shapes).as_deref(),
                Some(expected),
                "{equation}"
            );
        }
        assert_eq!(einsum("...ii->...i", &[&[2, 3, 3]]), Some(vec![2, 3]));
        // No output, sizes that differ, wrong ranks, an input too many.
        assert_eq!(einsum("...ij,...jk", &same), None);
        assert_eq!(einsum("ij,jk->ik", &[&[2, 3], &[2, 4]]), None);
        assert_eq!(einsum("...ij,jk->...ik", &[&[4, 5], &[2, 5, 6]]), None);
        assert_eq!(einsum("...ij,...jk->...ik", &[&[4], &[5, 6]]), None);
        assert_eq!(einsum("ij->ji", &[&[4, 5], &[5, 6]]), None);
    }
}
