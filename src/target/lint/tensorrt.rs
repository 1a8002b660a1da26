//! TensorRT. All of this was measured with TensorRT-RTX 1.7.1 without a GPU: the ONNX parser on a strongly typed network,
//! and engines built ahead of time for compute capability 8.6, which say in what type they multiply. That is not
//! TensorRT itself; the two share the parser.

mod parser;

pub(super) use parser::trains;

use super::facts::Quant;
use super::operators::TENSORRT_MICROSOFT;
use super::rotation;
use super::scope::Scope;
use super::{Cost, Hits, Rule, Subject};
use crate::onnx::DataType;
use crate::onnx::op;

const PARSER: &str = "TensorRT-RTX 1.7.1 parser, measured; \
     docs.nvidia.com/deeplearning/tensorrt, Working with Quantized Types";
const ENGINE: &str = "TensorRT-RTX 1.7.1, measured in engines built for SM86";

/// The rules of TensorRT.
pub(super) const RULES: &[Rule] = &[
    Rule {
        id: "T1-zero-point",
        title: "zero points are 0",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: PARSER,
        mend: "quantize symmetrically: int8 with zero point 0 (target tensorrt or portable)",
        find: zero_point,
    },
    Rule {
        id: "T1-scale",
        title: "scales are positive",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: PARSER,
        mend: "use a positive scale; 1 where all values are 0",
        find: scale,
    },
    Rule {
        id: "T1-type",
        title: "integers are int8 (or int4)",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: PARSER,
        mend: "use int8 for activations and weights, and leave biases in float",
        find: types,
    },
    Rule {
        id: "T1-size",
        title: "a zero point has as many elements as its scale",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: PARSER,
        mend: "give the zero point the shape of the scale, or leave it out in a DequantizeLinear",
        find: size,
    },
    Rule {
        id: "T1-operator",
        title: "quantization is written as QuantizeLinear and DequantizeLinear",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: PARSER,
        mend: "use the QDQ form instead of integer operators",
        find: integer_operator,
    },
    Rule {
        id: "T2-uint8",
        title: "activations are not uint8",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: "TensorRT-RTX 1.7.1, measured in the imported network",
        mend: "quantize to int8 with zero point 0",
        find: unsigned,
    },
    Rule {
        id: "T2-no-zero-point",
        title: "a QuantizeLinear has a zero point",
        cost: Cost::Wrong,
        subject: Subject::Quantization,
        source: "TensorRT-RTX 1.7.1, measured in the imported network",
        mend: "add an int8 zero point of 0: without one ONNX means uint8",
        find: no_zero_point,
    },
    Rule {
        id: "T3-axis",
        title: "the scales of a weight lie along its output channels",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: ENGINE,
        mend: "use one scale per output channel, or one for the whole weight",
        find: axis,
    },
    Rule {
        id: "T3-activation-scale",
        title: "one scale per activation",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: ENGINE,
        mend: "quantize the activation with one scale for the tensor",
        find: activation_scale,
    },
    Rule {
        id: "T3-run-time-scale",
        title: "scales are constants",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: ENGINE,
        mend: "calibrate a constant scale",
        find: run_time_scale,
    },
    Rule {
        id: "T3-activation-block",
        title: "no blocks in an activation",
        cost: Cost::Rejected,
        subject: Subject::Quantization,
        source: "TensorRT-RTX 1.7.1, measured: the parser takes it, and no engine can be built",
        mend: "use one scale per token: divide by the largest magnitude, quantize with the constant scale 1/127, multiply behind the \
               product",
        find: activation_block,
    },
    Rule {
        id: "T3-one-side",
        title: "both factors of a product are quantized",
        cost: Cost::Float,
        subject: Subject::Quantization,
        source: ENGINE,
        mend: "quantize the other factor too, or leave both in float",
        find: one_side,
    },
    Rule {
        id: "T10-operator",
        title: "the parser has the operator",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "export with operators of ONNX: without ONNX Runtime's fusions, and with the decompositions of the \
               exporter; `clean` rewrites what exporters leave by mistake",
        find: parser::operator,
    },
    Rule {
        id: "T10-dropout",
        title: "no Dropout trains",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "export in evaluation mode, or have it removed (`clean`)",
        find: parser::dropout,
    },
    Rule {
        id: "T10-outputs",
        title: "norms and pools have one output",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "remove outputs that nothing reads (`clean`)",
        find: parser::outputs,
    },
    Rule {
        id: "T10-attention",
        title: "MultiHeadAttention has no key_padding_mask",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "give the mask as attention_bias, or export the attention as MatMul and Softmax",
        find: parser::attention,
    },
    Rule {
        id: "T10-axes",
        title: "the axes of a reduction are stored",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "fold the constants before exporting, or have it done (`clean`)",
        find: parser::axes,
    },
    Rule {
        id: "T10-constant",
        title: "constants are of a type that TensorRT has",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "store it as int32 or int64; one that nothing reads is removed by `clean`",
        find: parser::constant,
    },
    Rule {
        id: "T10-input",
        title: "inputs are of a type that TensorRT has",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "make the input int32 or int64",
        find: parser::input,
    },
    Rule {
        id: "T11-rotation",
        title: "rotations stay in float",
        cost: Cost::Inaccurate,
        subject: Subject::Quantization,
        source: "TensorRT-RTX 1.7.1, measured in the imported network",
        mend: "leave out the QuantizeLinear and DequantizeLinear before, between and behind its two MatMuls",
        find: quantized_rotation,
    },
];

fn quantized_rotation(scope: &Scope, hits: &mut Hits) {
    rotation::quantized(scope).for_each(|(node, what)| hits.at(node, what));
}

/// A pair has one zero point, scale and type: the DequantizeLinear says nothing new.
fn firsts<'a>(scope: &'a Scope) -> impl Iterator<Item = &'a Quant> {
    scope.facts.quants.iter().filter(|q| q.source.is_none())
}

fn zero_point(scope: &Scope, hits: &mut Hits) {
    for quant in &scope.facts.quants {
        let values = || quant.zero_point.iter().flatten();
        let source = quant.source.and_then(|s| scope.facts.quant(s));
        let said = source.is_some_and(|s| s.zero_point == quant.zero_point);
        if let Some(z) = values().find(|&&z| z != 0).filter(|_| !said) {
            hits.at(quant.node, format!("its zero point is {z}"));
        }
    }
}

fn scale(scope: &Scope, hits: &mut Hits) {
    for quant in firsts(scope) {
        let mut scales = quant.scale.iter().flatten();
        if let Some(s) = scales.find(|s| s.is_nan() || **s <= 0.0) {
            hits.at(quant.node, format!("its scale is {s}"));
        }
    }
}

fn types(scope: &Scope, hits: &mut Hits) {
    use DataType::*;
    for quant in firsts(scope) {
        let rejected = match quant.dtype {
            Some(Uint8) => !quant.quantizes && quant.constant.is_some() && !quant.is_shifted(),
            Some(Int16 | Uint16 | Int32 | Uint32 | Int64 | Uint4 | Int2 | Uint2) => true,
            _ => false,
        };
        if let Some(dtype) = quant.dtype.filter(|_| rejected) {
            hits.at(quant.node, format!("it is of {}", dtype.as_str_name()));
        }
    }
}

fn size(scope: &Scope, hits: &mut Hits) {
    for quant in &scope.facts.quants {
        if let (Some(s), Some(z)) = (quant.scale_count, quant.zero_point_count)
            && s != z
        {
            hits.at(
                quant.node,
                format!("its zero point has {z} elements, its scale {s}"),
            );
        }
    }
}

/// Operators that compute with integers, or of ONNX Runtime's quantization.
fn computes_integers(domain: &str, operator: &str) -> bool {
    match domain {
        "" | "ai.onnx" => {
            operator.starts_with("QLinear")
                || matches!(
                    operator,
                    op::MatMulInteger | op::ConvInteger | op::DynamicQuantizeLinear
                )
        }
        "com.microsoft" => {
            let known = TENSORRT_MICROSOFT.contains(&operator);
            let integer = [
                "QLinear",
                op::QGemm,
                op::QAttention,
                "QEmbed",
                "QOrdered",
                op::QMoE,
            ];
            let prefix = integer.iter().any(|p| operator.starts_with(p));
            !known && (prefix || operator.contains("Quantize") || operator.contains("Integer"))
        }
        _ => false,
    }
}

fn integer_operator(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        if computes_integers(node.domain(), node.op_type()) {
            hits.at(id, "the parser has no such operator");
        }
    }
}

fn unsigned(scope: &Scope, hits: &mut Hits) {
    for quant in scope.facts.quants.iter().filter(|q| q.quantizes) {
        if quant.has_zero_point && quant.dtype == Some(DataType::Uint8) && !quant.is_shifted() {
            hits.at(
                quant.node,
                "it is uint8 with zero point 0, and imported as int8: values above 127 steps are cut off",
            );
        }
    }
}

fn no_zero_point(scope: &Scope, hits: &mut Hits) {
    for quant in scope.facts.quants.iter().filter(|q| q.quantizes) {
        if !quant.has_zero_point && quant.dtype == Some(DataType::Uint8) {
            hits.at(
                quant.node,
                "it has no zero point, which means uint8, and is imported as int8: values above 127 steps are cut off",
            );
        }
    }
}

fn axis(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let Some((_, w)) = product.pair().filter(|(_, w)| w.block_size == 0) else {
            continue;
        };
        if product.scales_columns() == Some(false) {
            let axis = w.axis;
            hits.at(
                product.node,
                format!("its weight has its scales along axis {axis}"),
            );
        }
    }
}

fn activation_scale(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let Some((x, _)) = product.pair() else {
            continue;
        };
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

fn run_time_scale(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        if let Some((x, w)) = product.pair()
            && (x.computed_scale || w.computed_scale)
            && x.block_size == 0
        {
            hits.at(
                product.node,
                "a factor has a scale that is computed at run time",
            );
        }
    }
}

fn one_side(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        let is_int8 = |i: usize| {
            let quant = product.factors[i].as_ref();
            quant.is_some_and(|q| q.dtype == Some(DataType::Int8))
        };
        for (one, other) in [(0, 1), (1, 0)] {
            if is_int8(one) && !product.dequantized[other] {
                hits.at(
                    product.node,
                    format!("only factor {} is quantized", one + 1),
                );
            }
        }
    }
}
