//! Arithmetic of a large value with one that is broadcast into it.
//!
//! tract has fast operators for `b` that is missing leading or trailing axes of `a`. What is left, such as the mask
//! `[B, 1, 1, S]` that is added to attention scores `[B, H, S, S]`, it computes element by element through a function
//! pointer: a fifth of the time of a small transformer. [`Broadcast`] computes the same numbers by whole runs of elements.

use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::math::{Add, Div, Mul, Sub};
use tract_onnx::tract_hir::internal::*;

/// `a ∘ b` in float32, where `b` has the rank of `a` and is broadcast into its shape.
#[derive(Debug, Clone, Copy, Hash, PartialEq, Eq)]
pub(super) enum Broadcast {
    Add,
    Sub,
    Mul,
    Div,
}

/// Puts [`Broadcast`] where an optimized model still has tract's general operator.
pub(super) fn replace_general(model: &mut TypedModel) -> TractResult<()> {
    for node in 0..model.nodes().len() {
        let Some(op) = Broadcast::instead_of(model, node)? else {
            continue;
        };
        model.node_mut(node).op = Box::new(op);
    }
    Ok(())
}

impl Broadcast {
    /// The operator that computes what this node does, if it is one of ours.
    fn instead_of(model: &TypedModel, node: usize) -> TractResult<Option<Broadcast>> {
        let node = model.node(node);
        let Some(TypedBinOp(op, _)) = node.op_as::<TypedBinOp>() else {
            return Ok(None);
        };
        let op = match op {
            op if op.is::<Add>() => Broadcast::Add,
            op if op.is::<Sub>() => Broadcast::Sub,
            op if op.is::<Mul>() => Broadcast::Mul,
            op if op.is::<Div>() => Broadcast::Div,
            _ => return Ok(None),
        };
        let output = &node.outputs[0].fact;
        let inputs = model.node_input_facts(node.id)?;
        let mut facts = inputs.into_iter().chain([output]);
        let fits = facts.all(|fact| fact.datum_type == f32::datum_type())
            && model.outlet_fact(node.inputs[0])?.shape == output.shape;
        Ok(fits.then_some(op))
    }
}

impl Op for Broadcast {
    fn name(&self) -> StaticName {
        format!("Broadcast{self:?}").into()
    }

    op_as_typed_op!();
}

impl EvalOp for Broadcast {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (a, b) = args_2!(inputs);
        let mut a = a.into_tensor();
        {
            let b = b.to_plain_array_view::<f32>()?;
            let b = b.as_standard_layout();
            let axes = axes(a.shape(), b.shape())?;
            let mut a = a.to_plain_array_view_mut::<f32>()?;
            let (Some(a), Some(b)) = (a.as_slice_mut(), b.as_slice()) else {
                bail!("tensors of the engine are contiguous");
            };
            if !a.is_empty() {
                match self {
                    Broadcast::Add => apply(a, b, &axes, |a, b| a + b),
                    Broadcast::Sub => apply(a, b, &axes, |a, b| a - b),
                    Broadcast::Mul => apply(a, b, &axes, |a, b| a * b),
                    Broadcast::Div => apply(a, b, &axes, |a, b| a / b),
                }
            }
        }
        Ok(tvec![a.into_tvalue()])
    }
}

impl TypedOp for Broadcast {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![inputs[0].without_value()])
    }
}

/// Sizes of the axes of `a`, and whether `b` is the same along them; neighbours that are alike are one.
fn axes(a: &[usize], b: &[usize]) -> TractResult<Vec<(usize, bool)>> {
    ensure!(a.len() == b.len(), "ranks differ: {a:?} and {b:?}");
    let mut axes: Vec<(usize, bool)> = Vec::new();
    for (&n, &of_b) in a.iter().zip(b) {
        ensure!(of_b == n || of_b == 1, "{b:?} is not broadcast into {a:?}");
        match axes.last_mut() {
            _ if n == 1 => {}
            Some((size, shared)) if *shared == (of_b == 1) => *size *= n,
            _ => axes.push((n, of_b == 1)),
        }
    }
    Ok(axes)
}

/// `a = f(a, b)` over `axes`, which hold at least one element.
fn apply(a: &mut [f32], b: &[f32], axes: &[(usize, bool)], f: impl Fn(f32, f32) -> f32 + Copy) {
    match *axes {
        [] | [(_, true)] => a.iter_mut().for_each(|a| *a = f(*a, b[0])),
        [(_, false)] => a.iter_mut().zip(b).for_each(|(a, b)| *a = f(*a, *b)),
        [(n, true), ref inner @ ..] => {
            let parts = a.chunks_exact_mut(a.len() / n);
            parts.for_each(|a| apply(a, b, inner, f));
        }
        [(n, false), ref inner @ ..] => {
            let parts = a.chunks_exact_mut(a.len() / n);
            let parts = parts.zip(b.chunks_exact(b.len() / n));
            parts.for_each(|(a, b)| apply(a, b, inner, f));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{ArrayD, IxDyn};
    use proptest::prelude::*;

    fn values(shape: &[usize], seed: f32) -> ArrayD<f32> {
        let count: usize = shape.iter().product();
        let data = (0..count).map(|i| (i as f32 + seed).sin() + 2.0).collect();
        ArrayD::from_shape_vec(IxDyn(shape), data).unwrap()
    }

    proptest! {
        /// Any shape, any axes of `b` missing: what ndarray's broadcasting gives, to the bit.
        #[test]
        fn same_as_ndarray(dims in prop::collection::vec((0usize..4, any::<bool>()), 0..6)) {
            let shape: Vec<usize> = dims.iter().map(|(n, _)| *n).collect();
            let of_b: Vec<usize> = dims.iter().map(|(n, one)| if *one { 1 } else { *n }).collect();
            let (a, b) = (values(&shape, 0.5), values(&of_b, 7.0));
            let expected = [&a + &b, &a - &b, &a * &b, &a / &b];
            let ops = [Broadcast::Add, Broadcast::Sub, Broadcast::Mul, Broadcast::Div];
            for (op, expected) in ops.into_iter().zip(expected) {
                let inputs = [&a, &b].map(|x| x.clone().into_tensor().into_tvalue());
                let found = op.eval(&EvalContext::out_of_plan(), inputs.into_iter().collect()).unwrap();
                prop_assert_eq!(found[0].to_plain_array_view::<f32>().unwrap(), expected);
            }
        }
    }
}
