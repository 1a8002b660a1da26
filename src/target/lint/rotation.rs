//! Rotations before Linears: R = H_A ⊗ H_B, orthogonal, in float and in two factors.
//!
//! ```text
//! Reshape([.., A, B]) ── MatMul(·, H_B: [B, B]) ── MatMul(H_A: [A, A], ·) ── Reshape([.., A · B]) ── Q ── DQ ── Linear
//! Reshape([.., A, B]) ── MatMul(·, H_B: [B, B]) ───────────────────────── Reshape([.., A · B]) ── Q ── DQ ── Linear
//! ```

use ndarray::ArrayD;

use super::facts::Quant;
use super::scope::Scope;
use crate::graph::{NodeId, ValueId, blocks_of, is_orthogonal};
use crate::onnx::op;
use crate::onnx::tensor;

/// The smallest matrix for which two factors are faster.
const SMALLEST: usize = 64;

/// How far from 1 the length of a row of a quantized orthogonal matrix may be.
const NEAR: f32 = 0.1;

/// Both factors in a row, whatever quantization is between them.
struct Factors {
    inner: NodeId,
    size: (usize, usize),
    /// Whether a factor is a quantized constant.
    quantized: bool,
}

/// The rotations with a factor that is quantized: their first product, and what is wrong.
pub(super) fn quantized<'a>(scope: &'a Scope) -> impl Iterator<Item = (NodeId, String)> + 'a {
    let products = scope.facts.products.iter().filter(|p| !p.gemm);
    let found = products.filter_map(|p| factors(scope, p.node).filter(|f| f.quantized));
    found.map(|f| {
        let (a, b) = f.size;
        let what = "that is quantized: its error goes into every Linear behind it";
        (
            f.inner,
            format!("it is a part of a rotation by {a} x {b} {what}"),
        )
    })
}

/// The products with one large orthogonal matrix, and what is wrong.
pub(super) fn dense<'a>(scope: &'a Scope) -> impl Iterator<Item = (NodeId, String)> + 'a {
    let view = &scope.view;
    let products = scope.facts.products.iter().filter(|p| !p.gemm);
    products.filter_map(move |product| {
        let weight = view
            .input(product.node, 1)
            .filter(|&w| view.is_constant(w))?;
        let h = matrix(scope, weight).filter(|h| h.shape()[0] >= SMALLEST)?;
        let n = h.shape()[0];
        // An identity or a permutation is something else, and a factor of a rotation has one already.
        let spreads = h.iter().filter(|v| **v != 0.0).count() > n;
        let alone = spreads && is_orthogonal(&h) && factors(scope, product.node).is_none();
        let what = format!(
            "its weight is orthogonal, [{n}, {n}]: a rotation with {n} multiplications per element"
        );
        alone.then_some((product.node, what))
    })
}

/// The rotation whose first product is `inner`.
fn factors(scope: &Scope, inner: NodeId) -> Option<Factors> {
    let view = &scope.view;
    let (reader, slot) = behind_quantization(scope, view.output(inner, 0)?)?;
    // What stands around it first: to read the weight of every Linear takes longer.
    let outer = match (view.op(reader), slot) {
        (op::MatMul, 1) => Some(view.input(reader, 0)?),
        (op::Reshape, 0) => split_before(scope, inner).map(|_| None)?,
        _ => return None,
    };
    let right = view.input(inner, 1)?;
    let h_b = matrix(scope, right)?;
    let b = h_b.shape()[0];
    let a = match outer {
        Some(left) => matrix(scope, left).filter(is_orthogonal)?.shape()[0],
        None => blocks(scope, inner, reader, b)?,
    };
    let is_quantized = |v: ValueId| dequantizer(scope, v).is_some();
    is_orthogonal(&h_b).then_some(Factors {
        inner,
        size: (a, b),
        quantized: is_quantized(right) || outer.is_some_and(is_quantized),
    })
}

/// The reader of a value, whatever quantization is between them.
fn behind_quantization(scope: &Scope, mut value: ValueId) -> Option<(NodeId, usize)> {
    loop {
        let (node, slot) = scope.view.only_reader(value)?;
        match (scope.facts.quant(node), slot) {
            (Some(_), 0) => value = scope.view.output(node, 0)?,
            (None, slot) => return Some((node, slot)),
            _ => return None,
        }
    }
}

/// A, if the product `inner` is between Reshapes to [.., A, B] and to [.., A · B].
fn blocks(scope: &Scope, inner: NodeId, joined: NodeId, b: usize) -> Option<usize> {
    let view = &scope.view;
    let target = |node: NodeId| view.constant(view.input(node, 1)?)?.into_ints();
    let split = split_before(scope, inner)?;
    blocks_of(&target(split)?, &target(joined)?, b)
}

/// The Reshape before a product, whatever quantization is between them.
fn split_before(scope: &Scope, inner: NodeId) -> Option<NodeId> {
    let view = &scope.view;
    let mut split = view.producer(view.input(inner, 0)?)?.0;
    while scope.facts.quant(split).is_some() {
        split = view.producer(view.input(split, 0)?)?.0;
    }
    Some(split).filter(|&n| view.op(n) == op::Reshape)
}

/// The DequantizeLinear that makes a value.
fn dequantizer<'a>(scope: &'a Scope, value: ValueId) -> Option<&'a Quant> {
    let (node, _) = scope.view.producer(value)?;
    scope.facts.quant(node).filter(|q| !q.quantizes)
}

/// A square constant, dequantized.
fn matrix(scope: &Scope, value: ValueId) -> Option<ArrayD<f32>> {
    let view = &scope.view;
    let square = |shape: &[usize]| matches!(shape, [rows, columns] if rows == columns);
    // Shapes first: they cost nothing to read.
    let stored = view.initializer(value).and_then(|t| tensor::shape(t).ok());
    if stored.is_some_and(|shape| !square(&shape)) {
        return None;
    }
    let array = match dequantizer(scope, value) {
        None => view.constant(value)?.into_float()?.0,
        Some(quant) => {
            if quant.constant.as_ref().is_some_and(|shape| !square(shape)) {
                return None;
            }
            let source = quant.source.and_then(|s| scope.facts.quant(s));
            match source {
                // Float behind a QuantizeLinear.
                Some(quantizer) => view.constant(quantizer.data?)?.into_float()?.0,
                None => dequantized(scope, quant)?,
            }
        }
    };
    square(array.shape()).then_some(array)
}

/// `(q − zero_point) · scale`; `None` for scales by block, and for what is not orthogonal at first sight.
fn dequantized(scope: &Scope, quant: &Quant) -> Option<ArrayD<f32>> {
    let shape = quant.constant.clone()?;
    let data = scope.view.constant(quant.data?)?.into_ints()?;
    let scales = quant.scale.as_ref().filter(|_| quant.block_size == 0)?;
    let axis = quant.channel_axis();
    if axis.is_some_and(|axis| axis >= shape.len()) {
        return None;
    }
    let step: usize = axis.map_or(1, |axis| shape[axis + 1..].iter().product());
    let at = |i: usize| axis.map_or(0, |axis| i / step % shape[axis]);
    let zero = |i: usize| {
        quant
            .zero_point
            .as_ref()
            .map_or(0, |z| z.get(at(i)).or(z.first()).copied().unwrap_or(0))
    };
    let real = |(i, &q): (usize, &i64)| Some((q - zero(i)) as f32 * scales.get(at(i))?);
    // No weight of a network comes as far as through the length of its first row.
    let first: Option<Vec<f32>> = data
        .iter()
        .enumerate()
        .take(*shape.last()?)
        .map(real)
        .collect();
    let length = first?.iter().map(|v| v * v).sum::<f32>();
    if (length - 1.0).abs() > NEAR {
        return None;
    }
    let data: Option<Vec<f32>> = data.iter().enumerate().map(real).collect();
    ArrayD::from_shape_vec(shape, data?).ok()
}
