//! ONNX Runtime on CPUs. All of this was measured with 1.31.1 on an x86 CPU with AVX512-VNNI, in the optimized graph and
//! by running the file with and without optimizations.

use super::facts::{Product, Quant, elem_type};
use super::scope::Scope;
use super::{Cost, Hits, Rule, Subject};
use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::DataType;
use crate::target::MIN_OPSET;

const MEASURED: &str = "ONNX Runtime 1.31.1, measured; \
     onnxruntime.ai/docs/performance/model-optimizations/quantization.html";

/// The rules of ONNX Runtime.
pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "R1-one-side",
        title: "both factors of a product are quantized",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the other factor too, or leave both in float",
        find: one_side,
    },
    Rule {
        id: "R1-activation-scale",
        title: "one scale per activation",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the activation with one scale for the tensor",
        find: activation_scale,
    },
    Rule {
        id: "R2-type",
        title: "both factors have 8 bits",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use uint8 or int8 activations and int8 weights; store weights of 4 bits behind a Cast to int8",
        find: types,
    },
    Rule {
        id: "R2-output",
        title: "a quantized output has no other reader",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "let all readers read the quantized output, or leave the output of the MatMul in float",
        find: output,
    },
    Rule {
        id: "R3-axis",
        title: "the scales of a weight lie along its output channels",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use one scale per output channel (MatMul: the last axis) or one for the whole weight",
        find: axis,
    },
    Rule {
        id: "R3-block",
        title: "no blocks in a weight whose activation is quantized",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use one scale per output channel, or leave the activation in float (MatMulNBits)",
        find: block,
    },
    Rule {
        id: "R3-size",
        title: "a zero point has as many elements as its scale",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "ONNX Runtime 1.31.1, measured without optimizations (fused, the file is accepted); \
                 onnx.ai/onnx/operators/onnx__DequantizeLinear.html",
        mend: "give the zero point the shape of the scale, or leave out one that is 0",
        find: size,
    },
    Rule {
        id: "R4-shared",
        title: "int8 activations: a pair of Q and DQ for each MatMul",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "give each MatMul a QuantizeLinear and DequantizeLinear of its own, with constants of its own, or use \
               uint8 activations",
        find: shared,
    },
    Rule {
        id: "R5-bias",
        title: "a MatMul of rank 3 has its bias as [1, N], one of rank 2 is a Gemm",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "store the bias as [1, N]; where the input has rank 2, write a Gemm with an int32 bias behind a \
               DequantizeLinear",
        find: bias,
    },
    Rule {
        id: "R5-gemm-bias",
        title: "a quantized Gemm has an int32 bias behind a DequantizeLinear, and alpha 1 with it",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the bias to int32 with scale s_x * s_w, fold alpha into the weight's scale, or add the bias in \
               an Add after the Gemm",
        find: gemm_bias,
    },
    Rule {
        id: "R5-bias-scale",
        title: "the scale of an int32 bias is s_x * s_w",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the bias with scale s_x * s_w and zero point 0",
        find: bias_scale,
    },
    Rule {
        id: "R6-output-dtype",
        title: "an int8 QuantizeLinear says its type by its zero point alone",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "give the QuantizeLinear an int8 zero point and remove its attribute output_dtype",
        find: output_dtype,
    },
    Rule {
        id: "R6-opset",
        title: "scales per channel need opset 13",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "ONNX Runtime 1.31.1, measured; onnx.ai/onnx/operators/onnx__DequantizeLinear.html",
        mend: "raise the model to opset 13",
        find: opset,
    },
    Rule {
        id: "R7-residual",
        title: "residuals read the float value",
        cost: Cost::Inaccurate,
        subject: Subject::Quantization,
        source: "measured on all-MiniLM-L6-v2: 2.2 dB of the output's SQNR",
        mend: "let the Add read what the QuantizeLinear reads",
        find: residual,
    },
    Rule {
        id: "R7-gelu",
        title: "no Q between a bias and a decomposed GELU",
        cost: Cost::Slow,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "remove the QuantizeLinear and DequantizeLinear before the GELU",
        find: gelu,
    },
    Rule {
        id: "R7-mask",
        title: "the constant of an attention mask sets no scale",
        cost: Cost::Wrong,
        subject: Subject::Graph,
        source: "arithmetic: what is below half a step becomes 0, in every runtime",
        mend: "leave masked scores in float; quantize the output of the Softmax instead",
        find: mask,
    },
    Rule {
        id: "R8-int8-operator",
        title: "integer operators have uint8 activations",
        cost: Cost::Slow,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use uint8 activations in QLinearMatMul and QGemm, or the QDQ form",
        find: int8_operator,
    },
    Rule {
        id: "R9-types",
        title: "QLinearMatMul is u8·s8→u8, u8·u8→u8 or s8·s8→s8",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use uint8 activations and outputs with int8 weights",
        find: qlinear_types,
    },
    Rule {
        id: "R9-row-scale",
        title: "QLinearMatMul has one scale for its activation",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "quantize the activation with one scale for the tensor",
        find: qlinear_rows,
    },
    Rule {
        id: "R10-blocks",
        title: "a weight alone is quantized per column, or along K in blocks of 16, 32, 64 …",
        cost: Cost::Slow,
        subject: Subject::Quantization,
        source: MEASURED,
        mend: "use axis 0 and a block_size that is a power of 2 and at least 16, with one reader of the DequantizeLinear",
        find: weight_only,
    },
];

/// Both factors of a MatMul or Gemm, and which of them are quantized.
fn one_side(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let quantized = |i: usize| product.factors[i].as_ref().is_some_and(Quant::is_activation);
        for (one, other) in [(0, 1), (1, 0)] {
            if quantized(one) && !product.dequantized[other] {
                hits.at(product.node, format!("only factor {} is quantized", one + 1));
            }
        }
    }
}

fn activation_scale(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let Some((x, _)) = product.pair() else {
            continue;
        };
        if x.is_activation() && !x.is_per_tensor() {
            let n = x.scale_count.unwrap_or_default();
            match product.gemm {
                false => hits.at(
                    product.node,
                    format!("its activation has {n} scales; the fused product fails at the first run"),
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

fn types(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let Some((x, w)) = product.pair() else {
            continue;
        };
        for quant in [x, w].into_iter().filter(|q| !has_8_bits(q)) {
            let dtype = quant.dtype.map_or("", |t| t.as_str_name());
            hits.at(product.node, format!("a factor is {dtype}, not of 8 bits"));
        }
        let untyped = |q: &Quant| q.quantizes && !q.has_zero_point && q.output_dtype == Some(DataType::Int8);
        let source = x.source.and_then(|s| scope.facts.quant(s));
        if source.is_some_and(untyped) {
            hits.at(product.node, "its activation is int8 without a zero point");
        }
    }
}

fn output(scope: &Scope, hits: &mut Hits) {
    for product in scope.facts.products.iter().filter(|p| !p.gemm) {
        let (Some(_), Some(output)) = (product.pair(), product.output) else {
            continue;
        };
        let uses = scope.view.uses(output);
        let quantizes = |u: &Use| matches!(u, Use::Node { node, input: 0 }
            if scope.facts.quant(*node).is_some_and(|q| q.quantizes));
        if uses.len() > 1 && uses.iter().any(quantizes) {
            let others = uses.iter().filter(|u| !quantizes(u)).count();
            hits.at(
                product.node,
                format!("its output is quantized and has {others} more readers"),
            );
        }
    }
}

fn axis(scope: &Scope, hits: &mut Hits) {
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

fn block(scope: &Scope, hits: &mut Hits) {
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

fn size(scope: &Scope, hits: &mut Hits) {
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

fn shared(scope: &Scope, hits: &mut Hits) {
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
        for (node, what) in [(source, "QuantizeLinear"), (x.node, "DequantizeLinear")] {
            let count = readers(node);
            if count > 1 {
                let name = scope.view.node_name(node);
                hits.at(
                    product.node,
                    format!("its int8 activation comes from the {what} `{name}`, which {count} read"),
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
    (view.op(add) == "Add" && view.is_constant(other)).then_some((add, other))
}

fn bias(scope: &Scope, hits: &mut Hits) {
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

fn gemm_bias(scope: &Scope, hits: &mut Hits) {
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

fn bias_scale(scope: &Scope, hits: &mut Hits) {
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
                format!("its bias has scale {found:e}, but is taken for steps of s_x * s_w = {wanted:e}"),
            );
        } else if c.is_shifted() {
            hits.at(product.node, "the zero point of its bias is not 0, and is ignored");
        }
    }
}

fn output_dtype(scope: &Scope, hits: &mut Hits) {
    for quant in scope.facts.quants.iter().filter(|q| q.quantizes) {
        if quant.has_zero_point && quant.output_dtype == Some(DataType::Int8) {
            hits.at(
                quant.node,
                "it has output_dtype INT8 beside its zero point, which no longer agree when int8 is turned to uint8",
            );
        }
    }
}

fn opset(scope: &Scope, hits: &mut Hits) {
    let found = scope.view.model().opset();
    for quant in &scope.facts.quants {
        let standard = scope.view.op(quant.node) != "";
        if standard && found < MIN_OPSET && quant.scale_count.is_some_and(|n| n > 1) {
            hits.at(
                quant.node,
                format!("it has a scale per channel, and the model opset {found}"),
            );
        }
    }
}

fn residual(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for quant in scope.facts.quants.iter().filter(|q| q.is_activation()) {
        let Some(output) = view.output(quant.node, 0) else {
            continue;
        };
        let readers = || view.uses(output).iter().filter_map(|u| match u {
            Use::Node { node, .. } => Some(*node),
            _ => None,
        });
        let adds = |node: &NodeId| {
            let operator = view.node(*node).op_type();
            matches!(operator, "Add" | "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization")
        };
        let multiplies = readers().any(|node| matches!(view.op(node), "MatMul" | "Gemm"));
        if let Some(add) = readers().find(adds).filter(|_| multiplies) {
            let name = view.node_name(quant.node);
            hits.at(
                add,
                format!("it reads the dequantized value of `{name}`, which a product reads as well"),
            );
        }
    }
}

fn gelu(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    let readers = |value: Option<ValueId>| {
        let uses = value.map_or(&[][..], |v| view.uses(v)).iter();
        uses.filter_map(|u| match u {
            Use::Node { node, .. } => Some(*node),
            _ => None,
        })
    };
    for quant in scope.facts.quants.iter().filter(|q| !q.quantizes) {
        let source = quant.source.and_then(|s| scope.facts.quant(s));
        let data = source.and_then(|q| q.data);
        let biased = data.is_some_and(|d| view.producer_is(d, "Add").is_some());
        let scaled = || {
            readers(view.output(quant.node, 0)).filter(|&n| matches!(view.op(n), "Div" | "Mul"))
        };
        let mut erf = scaled().flat_map(|n| readers(view.output(n, 0)));
        if biased && erf.any(|n| view.op(n) == "Erf") {
            hits.at(
                quant.node,
                "a decomposed GELU reads it, which is fused with its bias only in float",
            );
        }
    }
}

/// The smallest scale that no activation needs: ±127 steps of it are 254 000, and masks are −65504 (float16: 257 a step
/// of 255 steps) to −3.4e38. Trained activations stay below 30 000, the largest channels of large language models.
const MASK_SCALE: f32 = 250.0;

fn mask(scope: &Scope, hits: &mut Hits) {
    for quant in scope.facts.quants.iter().filter(|q| q.quantizes) {
        let largest = quant.scale.iter().flatten().copied().fold(0.0, f32::max);
        if largest >= MASK_SCALE {
            hits.at(
                quant.node,
                format!("its scale is {largest:e}: a mask has set it, and every ordinary value becomes 0"),
            );
        }
    }
}

/// The types of the given inputs.
fn input_types<const N: usize>(
    view: &View,
    node: NodeId,
    slots: [usize; N],
) -> [Option<DataType>; N] {
    slots.map(|slot| elem_type(view, view.input(node, slot)?))
}

fn int8_operator(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let slot = match (node.domain(), node.op_type()) {
            ("" | "ai.onnx", "QLinearMatMul") | ("com.microsoft", "QGemm") => 2,
            _ => continue,
        };
        if input_types(&scope.view, id, [slot]) == [Some(DataType::Int8)] {
            hits.at(id, "its activation is int8, for which there is no fast kernel on x86");
        }
    }
}

fn qlinear_types(scope: &Scope, hits: &mut Hits) {
    use DataType::{Int8, Uint8};
    const RUN: [[DataType; 3]; 3] = [[Uint8, Int8, Uint8], [Uint8, Uint8, Uint8], [Int8, Int8, Int8]];
    for (id, _) in scope.nodes() {
        if scope.view.op(id) != "QLinearMatMul" {
            continue;
        }
        if let [Some(a), Some(b), Some(y)] = input_types(&scope.view, id, [2, 5, 7])
            && !RUN.contains(&[a, b, y])
        {
            let [a, b, y] = [a, b, y].map(|t| t.as_str_name());
            hits.at(id, format!("there is no kernel for {a} · {b} → {y}"));
        }
    }
}

fn qlinear_rows(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for (id, _) in scope.nodes() {
        let shape = || view.shape(view.input(id, 1)?);
        let count = || shape()?.into_iter().product::<Option<usize>>();
        if view.op(id) == "QLinearMatMul"
            && let Some(n) = count().filter(|&n| n > 1)
        {
            hits.at(id, format!("its activation has {n} scales"));
        }
    }
}

fn weight_only(scope: &Scope, hits: &mut Hits) {
    let view = &scope.view;
    for product in scope.facts.products.iter().filter(|p| !p.gemm) {
        let [None, Some(w)] = &product.factors else {
            continue;
        };
        if product.dequantized[0] || w.constant.is_none() {
            continue;
        }
        let readers = view.output(w.node, 0).map_or(0, |o| view.uses(o).len());
        let block = w.block_size;
        let power = u64::try_from(block).is_ok_and(u64::is_power_of_two);
        if block > 0 && (w.axis != 0 || block < 16 || !power) {
            hits.at(
                product.node,
                format!("its weight has blocks of {block} along axis {}", w.axis),
            );
        } else if block > 0 && readers > 1 {
            hits.at(product.node, format!("its weight has {readers} readers"));
        }
    }
}
