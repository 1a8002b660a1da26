//! OpenVINO. All of this was measured with 2026.4.1 on a CPU, in the executed graph with INFERENCE_PRECISION_HINT=f32.

use super::facts::{Product, Quant};
use super::operators::{OPENVINO_LACKS, OPENVINO_MICROSOFT};
use super::rotation;
use super::scope::Scope;
use super::tensorrt::trains;
use super::{Cost, Hits, Rule, Subject};
use crate::graph::Blocked;
use crate::graph::infer;
use crate::onnx::DataType;
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::target::pool::Pools;

const MEASURED: &str = "OpenVINO 2026.4.1 (CPU), measured in the executed graph";

/// The rules of OpenVINO.
pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "O1-operator",
        title: "the frontend has the operator",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "OpenVINO 2026.4.1 frontend, measured",
        mend: "export with operators of ONNX; write quantization as QuantizeLinear and DequantizeLinear",
        find: operator,
    },
    Rule {
        id: "O1-qlinear",
        title: "QLinearMatMul has one scale per weight",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 frontend, measured",
        mend: "use the QDQ form, or one scale for the whole weight",
        find: qlinear,
    },
    Rule {
        id: "O1-dropout",
        title: "no Dropout trains",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "OpenVINO 2026.4.1 frontend, measured",
        mend: "export in evaluation mode, or have it removed (`clean`)",
        find: dropout,
    },
    Rule {
        id: "O2-activation-scale",
        title: "one scale per activation",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 (CPU), measured at compile_model",
        mend: "quantize the activation with one scale for the tensor",
        find: activation_scale,
    },
    Rule {
        id: "O3-weight",
        title: "weights are int8 with zero point 0 and scales along their output channels",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize weights symmetrically to int8, one scale per output channel",
        find: weight,
    },
    Rule {
        id: "O3-activation",
        title: "activations have 8 bits and a constant scale",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use uint8 or int8 activations with a calibrated scale",
        find: activation,
    },
    Rule {
        id: "O3-one-side",
        title: "both factors of a product are quantized",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the other factor too, or leave both in float",
        find: one_side,
    },
    Rule {
        id: "O3-dynamic",
        title: "no operators that quantize at run time",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize statically, as QuantizeLinear and DequantizeLinear with constant scales",
        find: dynamic,
    },
    Rule {
        id: "O3-activation-block",
        title: "no blocks in an activation",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 frontend, measured",
        mend: "use one scale per token: divide by the largest magnitude, quantize with the constant scale 1/127, multiply behind the \
               product",
        find: activation_block,
    },
    Rule {
        id: "O3-ragged",
        title: "blocks divide the axis that they lie on",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 (CPU), measured: a DequantizeLinear is rejected, the weight of a MatMulNBits becomes float",
        mend: "use the largest block that divides the number of input channels",
        find: ragged,
    },
    Rule {
        id: "O3-int4",
        title: "weights of 4 bits in blocks are UINT4",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 (CPU), measured: behind UINT4 activations are rounded to 8 bits and multiplied as integers",
        mend: "store the same integers as UINT4 with zero point 8",
        find: signed_blocks,
    },
    Rule {
        id: "O1-g-idx",
        title: "no MatMulNBits has g_idx",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 (CPU), measured: the process ends with SIGFPE at the first run",
        mend: "store the weight in the order of its groups, without g_idx",
        find: permuted,
    },
    Rule {
        id: "O1-2-bits",
        title: "no DequantizeLinear has 2 bits",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 frontend, measured",
        mend: "use MatMulNBits with 2 bits, or 4 bits",
        find: two_bits,
    },
    Rule {
        id: "O4-scale",
        title: "scales are not negative",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 (CPU), measured against ONNX Runtime without optimizations",
        mend: "use a positive scale",
        find: scale,
    },
    Rule {
        id: "O6-pool",
        title: "no value per channel behind a Reduce without kept axes, before a QuantizeLinear",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: "OpenVINO 2026.4.1 (CPU), measured against ONNX Runtime without optimizations",
        mend: "keep the axes of the Reduce (keepdims=1) and squeeze them behind it, or leave the Linear in float",
        find: pool,
    },
    Rule {
        id: "O6-window",
        title: "the windows of Attention are in its mask",
        cost: Cost::Wrong,
        subject: Subject::Graph,
        source: "OpenVINO 2026.4.1 (CPU), measured against ONNX Runtime 1.32.0: every key is seen",
        mend: "write the window as a mask (input 3 of Attention)",
        find: window,
    },
    Rule {
        id: "O5-rotation",
        title: "rotations stay in float",
        cost: Cost::Inaccurate,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "leave out the QuantizeLinear and DequantizeLinear before, between and behind its two MatMuls",
        find: quantized_rotation,
    },
];

fn pool(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    let pools = Pools::new(view);
    for quant in scope.facts.quants.iter().filter(|q| q.quantizes) {
        let pool = quant.data.and_then(|data| pools.behind(view, data));
        if let Some((pool, scaled)) = pool.and_then(|p| Some((p.node, p.scaled?))) {
            let name = view.node_name(scaled);
            let message = format!(
                "`{name}` gives every channel a value of its own, which is taken for one per another axis"
            );
            hits.at(pool, message);
        }
    }
}

fn quantized_rotation(scope: &Scope, hits: &mut Hits) {
    rotation::quantized(scope).for_each(|(node, what)| hits.at(node, what));
}

fn operator(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let (domain, operator) = (node.domain(), node.op_type());
        let lacks = match domain {
            "" | "ai.onnx" => OPENVINO_LACKS.contains(&operator),
            "com.microsoft" => !OPENVINO_MICROSOFT.contains(&operator),
            // Others may be extensions, which a file cannot say.
            _ => false,
        };
        if lacks {
            let domain = if domain.is_empty() { "ONNX" } else { domain };
            hits.at(id, format!("no conversion rule for {operator} of {domain}"));
        }
    }
}

fn window(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let sizes = ["left_window_size", "right_window_size"];
        let name = sizes
            .iter()
            .find(|name| attr_i(node, name).is_some_and(|n| n >= 0));
        if let (op::Attention, Some(name)) = (scope.view.op(id), name) {
            hits.at(id, format!("its {name} is left out"));
        }
    }
}

fn qlinear(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for (id, _) in scope.nodes() {
        for (slot, what) in [(1, "activation"), (4, "weight")] {
            let shape = || view.shape(view.input(id, slot)?);
            let count = || infer::product(&shape()?);
            if view.op(id) == op::QLinearMatMul
                && let Some(n) = count().filter(|&n| n > 1)
            {
                hits.at(id, format!("its {what} has {n} scales"));
            }
        }
    }
}

fn dropout(scope: &Scope, hits: &mut Hits) {
    for (id, _) in scope.nodes() {
        if let Some(why) = trains(scope, id) {
            hits.at(id, why);
        }
    }
}

fn activation_scale(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let Some((x, _)) = product.pair() else {
            continue;
        };
        // Blocks have a rule of their own.
        if x.is_activation() && !x.is_per_tensor() && x.block_size == 0 {
            let n = x.scale_count.unwrap_or_default();
            hits.at(product.node, format!("its activation has {n} scales"));
        }
    }
}

fn activation_block(scope: &Scope, hits: &mut Hits) {
    for quant in scope.facts.quants.iter().filter(|q| q.quantizes) {
        if quant.block_size > 0 && quant.constant.is_none() {
            let block = quant.block_size;
            hits.at(quant.node, format!("it has a scale per block of {block}"));
        }
    }
}

fn ragged(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let cost = match node.op_type() {
            op::MatMulNBits => Cost::Float,
            op::DequantizeLinear => Cost::Rejected,
            _ => continue,
        };
        let ragged = Blocked::in_view(&scope.view, id).filter(Blocked::is_ragged);
        if let Some(weight) = ragged {
            let block = weight.block;
            hits.costs(
                cost,
                id,
                format!("blocks of {block} leave a rest of its axis"),
            );
        }
    }
}

fn signed_blocks(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let weight = product.factors[1].as_ref();
        let signed = |w: &&Quant| w.block_size > 0 && w.dtype == Some(DataType::Int4);
        if weight.is_some_and(|w| signed(&w) && w.constant.is_some()) {
            hits.at(product.node, "its weight is INT4 in blocks");
        }
    }
}

fn permuted(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let named = node.input.get(4).is_some_and(|name| !name.is_empty());
        if node.op_type() == op::MatMulNBits && named {
            hits.at(id, "it has g_idx");
        }
    }
}

fn two_bits(scope: &Scope, hits: &mut Hits) {
    for quant in &scope.facts.quants {
        if let Some(dtype) = quant
            .dtype
            .filter(|t| matches!(t, DataType::Int2 | DataType::Uint2))
        {
            hits.at(quant.node, format!("it is of {}", dtype.as_str_name()));
        }
    }
}

/// Products of a quantized activation and a quantized constant.
fn linears<'a>(scope: &'a Scope) -> impl Iterator<Item = (&'a Product, &'a Quant, &'a Quant)> {
    let pairs = |p: &'a Product| p.pair().map(|(x, w)| (p, x, w));
    let products = scope.facts.products.iter().filter_map(pairs);
    products.filter(|(_, x, w)| x.is_activation() && w.constant.is_some())
}

fn weight(scope: &Scope, hits: &mut Hits) {
    for (product, _, w) in linears(scope) {
        let along = !product.gemm && product.scales_columns() == Some(false);
        if let Some(dtype) = w.dtype.filter(|&t| t != DataType::Int8) {
            let dtype = dtype.as_str_name();
            hits.at(product.node, format!("its weight is {dtype}"));
        } else if w.is_shifted() {
            hits.at(product.node, "the zero point of its weight is not 0");
        } else if along {
            let axis = w.axis;
            hits.at(
                product.node,
                format!("its weight has its scales along axis {axis}"),
            );
        }
    }
}

fn activation(scope: &Scope, hits: &mut Hits) {
    for (product, x, _) in linears(scope) {
        let odd = x
            .dtype
            .filter(|t| !matches!(t, DataType::Int8 | DataType::Uint8));
        if let Some(dtype) = odd {
            let dtype = dtype.as_str_name();
            hits.at(product.node, format!("its activation is {dtype}"));
        } else if x.computed_scale && x.block_size == 0 {
            hits.at(
                product.node,
                "its activation has a scale that is computed at run time",
            );
        }
    }
}

fn one_side(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let quantized = |i: usize| {
            let quant = product.factors[i].as_ref();
            quant.is_some_and(|q| matches!(q.dtype, Some(DataType::Int8 | DataType::Uint8)))
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

fn dynamic(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let dynamic = match node.domain() {
            "" | "ai.onnx" => node.op_type() == op::MatMulInteger,
            "com.microsoft" => node.op_type() == op::DynamicQuantizeMatMul,
            _ => false,
        };
        if dynamic {
            hits.at(id, "it runs in float");
        }
    }
}

fn scale(scope: &Scope, hits: &mut Hits) {
    for quant in scope.facts.quants.iter().filter(|q| q.source.is_none()) {
        if let Some(s) = quant.scale.iter().flatten().find(|s| **s < 0.0) {
            hits.at(quant.node, format!("its scale is {s}"));
        }
    }
}
