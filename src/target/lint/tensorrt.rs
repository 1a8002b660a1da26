//! TensorRT. All of this was measured with TensorRT-RTX 1.7.1 without a GPU: the ONNX parser on a strongly typed network,
//! and engines built ahead of time for compute capability 8.6, which say in what type they multiply. That is not
//! TensorRT itself; the two share the parser.

use super::facts::Quant;
use super::operators::{TENSORRT_LACKS, TENSORRT_MICROSOFT};
use super::scope::Scope;
use super::{Cost, Hits, Rule, Subject};
use crate::graph::{NodeId, Source, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::proto::type_proto;
use crate::onnx::{DataType, tensor};

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
        mend: "quantize symmetrically: int8 with zero point 0 (--target tensorrt or portable)",
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
               exporter; --clean rewrites what exporters leave by mistake",
        find: operator,
    },
    Rule {
        id: "T10-dropout",
        title: "no Dropout trains",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "export in evaluation mode, or remove it with --clean",
        find: dropout,
    },
    Rule {
        id: "T10-outputs",
        title: "norms and pools have one output",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "remove outputs that nothing reads, with --clean",
        find: outputs,
    },
    Rule {
        id: "T10-axes",
        title: "the axes of a reduction are stored",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "fold the constants before exporting, or with --clean",
        find: axes,
    },
    Rule {
        id: "T10-constant",
        title: "constants are of a type that TensorRT has",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "store it as int32 or int64; one that nothing reads is removed by --clean",
        find: constant,
    },
    Rule {
        id: "T10-input",
        title: "inputs are of a type that TensorRT has",
        cost: Cost::Rejected,
        subject: Subject::Graph,
        source: "TensorRT-RTX 1.7.1 parser, measured",
        mend: "make the input int32 or int64",
        find: input,
    },
];

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
                    "MatMulInteger" | "ConvInteger" | "DynamicQuantizeLinear"
                )
        }
        "com.microsoft" => {
            let known = TENSORRT_MICROSOFT.contains(&operator);
            let integer = ["QLinear", "QGemm", "QAttention", "QEmbed", "QOrdered", "QMoE"];
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
        if x.is_activation() && !x.is_per_tensor() {
            let n = x.scale_count.unwrap_or_default();
            hits.at(product.node, format!("its activation has {n} scales"));
        }
    }
}

fn run_time_scale(scope: &Scope, hits: &mut Hits) {
    for product in &scope.facts.products {
        if let Some((x, w)) = product.pair()
            && (x.computed_scale || w.computed_scale)
        {
            hits.at(product.node, "a factor has a scale that is computed at run time");
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
                hits.at(product.node, format!("only factor {} is quantized", one + 1));
            }
        }
    }
}

fn operator(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let (domain, operator) = (node.domain(), node.op_type());
        if computes_integers(domain, operator) {
            continue;
        }
        let lacks = match domain {
            "" | "ai.onnx" => TENSORRT_LACKS.contains(&operator),
            "com.microsoft" => !TENSORRT_MICROSOFT.contains(&operator),
            // Others may be plug-ins, which a file cannot say.
            _ => false,
        };
        if lacks {
            let domain = if domain.is_empty() { "ONNX" } else { domain };
            hits.at(id, format!("the parser has no {operator} of {domain}"));
        }
    }
}

/// Whether a Dropout of the graph trains, as far as the file says.
pub(super) fn trains(scope: &Scope, id: NodeId) -> Option<&'static str> {
    let view = &scope.view;
    if view.op(id) != "Dropout" {
        return None;
    }
    match view.input(id, 2) {
        // Before opset 7 an attribute said it, and training was the default.
        None => {
            let old = view.model().opset() < 7 && attr_i(view.node(id), "is_test") != Some(1);
            old.then_some("it is in training mode (is_test is not set)")
        }
        Some(mode) => match view.constant(mode).and_then(|c| c.into_ints()) {
            Some(mode) => mode.iter().any(|&m| m != 0).then_some("it is in training mode"),
            None => Some("its training_mode is no constant"),
        },
    }
}

fn dropout(scope: &Scope, hits: &mut Hits) {
    for (id, _) in scope.nodes() {
        if let Some(why) = trains(scope, id) {
            hits.at(id, why);
        }
    }
}

/// Operators whose further outputs the parser refuses, read or not.
const ONE_OUTPUT: [&str; 3] = ["BatchNormalization", "LayerNormalization", "MaxPool"];

fn outputs(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let more = node.output.iter().skip(1).filter(|o| !o.is_empty()).count();
        if more > 0 && ONE_OUTPUT.contains(&scope.view.op(id)) {
            hits.at(id, format!("it has {} outputs", more + 1));
        }
    }
}

/// The input of a reduction that holds its axes, if the parser would not evaluate it. Through Identity and Cast it does.
fn computed_axes(view: &View, id: NodeId) -> Option<ValueId> {
    if !view.op(id).starts_with("Reduce") {
        return None;
    }
    let axes = view.input(id, 1)?;
    let mut value = axes;
    loop {
        let (producer, _) = view.producer(value)?;
        match view.op(producer) {
            "Constant" => return None,
            "Identity" | "Cast" => value = view.input(producer, 0)?,
            _ => return Some(axes),
        }
    }
}

fn axes(scope: &Scope, hits: &mut Hits) {
    for (id, _) in scope.nodes() {
        if computed_axes(&scope.view, id).is_some() {
            hits.at(id, "its axes are computed by nodes of the graph");
        }
    }
}

/// Types that the parser has no constants and inputs of.
fn is_foreign(dtype: DataType) -> bool {
    use DataType::*;
    matches!(
        dtype,
        Int16 | Uint16 | Uint32 | Uint64 | String | Complex64 | Complex128 | Uint4 | Int2 | Uint2
    )
}

fn constant(scope: &Scope, hits: &mut Hits) {
    for stored in scope.initializers() {
        let id = scope.view.value(stored.name());
        // What belongs to a quantization has a finding of its own.
        let quantized = id.is_some_and(|id| {
            let mut quants = scope.facts.quants.iter();
            quants.any(|q| scope.view.node(q.node).input.iter().any(|i| scope.view.value(i) == Some(id)))
        });
        let input = id.is_some_and(|id| matches!(scope.view.source(id), Source::Input(_)));
        if let Some(dtype) = tensor::dtype(stored).filter(|&t| is_foreign(t) && !quantized && !input) {
            hits.value(stored.name(), format!("the constant is {}", dtype.as_str_name()));
        }
    }
    for (id, node) in scope.nodes().filter(|&(id, _)| scope.view.op(id) == "Constant") {
        let odd = ["sparse_value", "value_string", "value_strings"];
        if let Some(kind) = node.attribute.iter().find(|a| odd.contains(&a.name())) {
            hits.at(id, format!("the parser reads no {}", kind.name()));
        }
    }
}

fn input(scope: &Scope, hits: &mut Hits) {
    for input in scope.inputs() {
        let kind = input.r#type.as_ref().and_then(|t| t.value.as_ref());
        let Some(type_proto::Value::TensorType(kind)) = kind else {
            continue;
        };
        let dtype = DataType::try_from(kind.elem_type()).ok();
        if let Some(dtype) = dtype.filter(|&t| is_foreign(t)) {
            hits.value(input.name(), format!("the input is {}", dtype.as_str_name()));
        }
    }
}
