//! R1 to R5: what keeps a quantized product from being fused, or makes the fused one wrong.

use super::super::facts::{Product, Quant};
use super::super::scope::Scope;
use super::super::{Cost, Hits};
use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::DataType;
use crate::onnx::op;

/// Both factors of a MatMul or Gemm, and which of them are quantized.
pub(super) fn one_side(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let quantized = |i: usize| {
            product.factors[i]
                .as_ref()
                .is_some_and(Quant::is_activation)
        };
        for (one, other) in [(0, 1), (1, 0)] {
            if quantized(one) && !product.dequantized[other] {
                hits.at(
                    product.node,
                    format!("only factor {} is quantized", one + 1),
                );
            }
        }
    }
}

pub(super) fn activation_scale(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let Some((x, _)) = product.pair() else {
            continue;
        };
        if x.is_activation() && !x.is_per_tensor() && x.block_size == 0 {
            let n = x.scale_count.unwrap_or_default();
            match product.gemm {
                false => hits.at(
                    product.node,
                    format!(
                        "its activation has {n} scales; the fused product fails at the first run"
                    ),
                ),
                true => hits.costs(
                    Cost::Float,
                    product.node,
                    format!("its activation has {n} scales"),
                ),
            }
        }
    }
}

fn has_8_bits(quant: &Quant) -> bool {
    matches!(quant.dtype, None | Some(DataType::Int8 | DataType::Uint8))
}

pub(super) fn types(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let Some((x, w)) = product.pair() else {
            continue;
        };
        for quant in [x, w].into_iter().filter(|q| !has_8_bits(q)) {
            let dtype = quant.dtype.map_or("", |t| t.as_str_name());
            hits.at(product.node, format!("a factor is {dtype}, not of 8 bits"));
        }
        let untyped =
            |q: &Quant| q.quantizes && !q.has_zero_point && q.output_dtype == Some(DataType::Int8);
        let source = x.source.and_then(|s| scope.facts.quant(s));
        if source.is_some_and(untyped) && x.block_size == 0 {
            hits.at(product.node, "its activation is int8 without a zero point");
        }
    }
}

pub(super) fn output(scope: &Scope, hits: &mut Hits) {
    for product in scope.facts.products.iter().filter(|p| !p.gemm) {
        let (Some(_), Some(output)) = (product.pair(), product.output) else {
            continue;
        };
        let uses = scope.view.uses(output);
        let quantizes = |u: &Use| {
            matches!(u, Use::Node { node, input: 0 }
            if scope.facts.quant(*node).is_some_and(|q| q.quantizes))
        };
        if uses.len() > 1 && uses.iter().any(quantizes) {
            let others = uses.iter().filter(|u| !quantizes(u)).count();
            hits.at(
                product.node,
                format!("its output is quantized and has {others} more readers"),
            );
        }
    }
}

pub(super) fn axis(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let Some((_, w)) = product.pair().filter(|(_, w)| w.block_size == 0) else {
            continue;
        };
        if product.scales_columns() != Some(false) {
            continue;
        }
        let shape = w.constant.as_deref().unwrap_or_default();
        let what = format!(
            "its weight of shape {shape:?} has its scales along axis {}",
            w.axis
        );
        match (product.gemm, shape) {
            (true, _) => hits.costs(Cost::Float, product.node, what),
            (false, [k, n]) if k != n => hits.costs(
                Cost::Rejected,
                product.node,
                format!("{what}; the fused product fails at the first run"),
            ),
            _ => hits.at(
                product.node,
                format!("{what}; the fused product takes them for those of the output channels"),
            ),
        }
    }
}

pub(super) fn block(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let fused = |q: &Quant| q.block_size > 0 && has_8_bits(q);
        if let Some((_, w)) = product.pair().filter(|(_, w)| fused(w)) {
            let block = w.block_size;
            hits.at(
                product.node,
                format!("its weight has a scale per block of {block}, which the fused product does not know"),
            );
        }
    }
}

pub(super) fn size(scope: &Scope, hits: &mut Hits) {
    for quant in &scope.facts.quants {
        if let (Some(s), Some(z)) = (quant.scale_count, quant.zero_point_count)
            && s != z
            && s > 1
        {
            hits.at(
                quant.node,
                format!("its zero point has {z} elements, its scale {s}"),
            );
        }
    }
}

pub(super) fn shared(scope: &Scope, hits: &mut Hits) {
    let readers = |node: NodeId| {
        let output = scope.view.output(node, 0);
        output.map_or(0, |o| scope.view.uses(o).len())
    };
    for product in scope.facts.products.iter().filter(|p| !p.gemm) {
        let Some((x, w)) = product.pair() else {
            continue;
        };
        let (Some(source), true) = (x.source, has_8_bits(w)) else {
            continue;
        };
        if x.dtype != Some(DataType::Int8) {
            continue;
        }
        for (node, what) in [(source, op::QuantizeLinear), (x.node, op::DequantizeLinear)] {
            let count = readers(node);
            if count > 1 {
                let name = scope.view.node_name(node);
                hits.at(
                    product.node,
                    format!(
                        "its int8 activation comes from the {what} `{name}`, which {count} read"
                    ),
                );
                break;
            }
            // Nodes that read the very same values are merged before anything is fused.
            let inputs = &scope.view.node(node).input;
            let twin = scope.facts.quants.iter().find(|q| {
                let other = scope.view.node(q.node);
                q.quantizes && q.node != node && other.input == *inputs
            });
            if let Some(twin) = twin {
                let (name, twin) = (scope.view.node_name(node), scope.view.node_name(twin.node));
                hits.at(
                    product.node,
                    format!("its QuantizeLinear `{name}` reads the same three values as `{twin}`, so both are merged"),
                );
                break;
            }
        }
    }
}

/// The rank of the first factor before it was quantized.
fn rank(view: &View, product: &Product, scope: &Scope) -> Option<usize> {
    let x = product.factors[0].as_ref()?;
    let source = x.source.and_then(|s| scope.facts.quant(s));
    let rank = source.and_then(|q| q.rank).or(x.rank);
    rank.or_else(|| Some(view.shape(product.output?)?.len()))
}

/// The constant that the only reader of `value`, an Add, adds to it, and that Add.
fn added_constant(view: &View, value: ValueId) -> Option<(NodeId, ValueId)> {
    let (add, slot) = view.only_reader(value)?;
    let other = view.input(add, 1 - slot.min(1))?;
    (view.op(add) == op::Add && view.is_constant(other)).then_some((add, other))
}

pub(super) fn bias(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for product in scope.facts.products.iter().filter(|p| !p.gemm) {
        let (Some((x, w)), Some(output)) = (product.pair(), product.output) else {
            continue;
        };
        // A MatMul that is in float anyway has its own finding.
        if !(has_8_bits(x) && has_8_bits(w)) {
            continue;
        }
        let Some((_, added)) = added_constant(view, output) else {
            continue;
        };
        let stored = view.constant(added).and_then(|c| c.into_float());
        let Some((constant, _)) = stored.filter(|(c, _)| c.len() > 1) else {
            continue;
        };
        match (rank(view, product, scope), constant.ndim()) {
            (Some(2), ..=2) => hits.at(
                product.node,
                "it has rank 2, so that it becomes a Gemm together with its bias, in float",
            ),
            (_, 1) => hits.at(
                product.node,
                "its bias has rank 1: where the shapes are static, or fixed by free-dimension overrides, both become a \
                 Gemm in float",
            ),
            _ => {}
        }
    }
}

pub(super) fn gemm_bias(scope: &Scope, hits: &mut Hits) {
    for product in scope.facts.products.iter().filter(|p| p.gemm) {
        if product.pair().is_none() || product.bias.is_none() {
            continue;
        }
        if product.dequantized_bias.is_none() {
            hits.at(product.node, "its bias is a float");
        } else if product.alpha != 1.0 {
            hits.at(
                product.node,
                format!("it has a bias and alpha {}", product.alpha),
            );
        }
    }
}

pub(super) fn bias_scale(scope: &Scope, hits: &mut Hits) {
    for product in scope.facts.products.iter().filter(|p| p.gemm) {
        let (Some((x, w)), Some(c)) = (product.pair(), &product.dequantized_bias) else {
            continue;
        };
        let (Some([x]), Some(w), Some(c_scale)) = (x.scale.as_deref(), &w.scale, &c.scale) else {
            continue;
        };
        let at = |scales: &[f32], i: usize| scales[if scales.len() == 1 { 0 } else { i }];
        let count = w.len().max(c_scale.len());
        let fits = w.len() == 1 || c_scale.len() == 1 || w.len() == c_scale.len();
        let differs = |&i: &usize| {
            let (wanted, found) = (x * at(w, i), at(c_scale, i));
            (wanted - found).abs() > 1e-3 * wanted.abs()
        };
        if fits && let Some(i) = (0..count).find(differs) {
            let (wanted, found) = (x * at(w, i), at(c_scale, i));
            hits.at(
                product.node,
                format!(
                    "its bias has scale {found:e}, but is taken for steps of s_x * s_w = {wanted:e}"
                ),
            );
        } else if c.is_shifted() {
            hits.at(
                product.node,
                "the zero point of its bias is not 0, and is ignored",
            );
        }
    }
}

/// int32 constants of a DequantizeLinear, and the biases of QGemm, that hold the largest or the smallest int32.
pub(super) fn bias_range(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for (id, node) in view.nodes() {
        let slot = match (node.domain(), view.op(id)) {
            (_, op::DequantizeLinear) => 0,
            ("com.microsoft", op::QGemm) => 6,
            _ => continue,
        };
        let value = view.input(id, slot);
        let is_int32 = |&value: &ValueId| view.elem_type(value) == Some(DataType::Int32 as i32);
        let steps = value
            .filter(is_int32)
            .and_then(|value| view.constant(value)?.into_ints());
        let ends = [
            i64::from(i32::MIN),
            -i64::from(i32::MAX),
            i64::from(i32::MAX),
        ];
        let cut = steps.and_then(|steps| steps.iter().position(|step| ends.contains(step)));
        if let Some(at) = cut {
            let message = format!(
                "element {at} of its int32 bias is at the end of the range: it was cut off"
            );
            hits.at(id, message);
        }
    }
}
