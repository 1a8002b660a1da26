//! T10: operators, modes, outputs and types that the parser refuses, quantized or not.

use super::super::Hits;
use super::super::operators::{TENSORRT_LACKS, TENSORRT_MICROSOFT};
use super::super::scope::Scope;
use super::computes_integers;
use crate::graph::{NodeId, Source, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::onnx::proto::type_proto;
use crate::onnx::{DataType, tensor};

pub(super) fn operator(scope: &Scope, hits: &mut Hits) {
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
pub(in super::super) fn trains(scope: &Scope, id: NodeId) -> Option<&'static str> {
    let view = &scope.view;
    if view.op(id) != op::Dropout {
        return None;
    }
    match view.input(id, 2) {
        // Before opset 7 an attribute said it, and training was the default.
        None => {
            let old = view.model().opset() < 7 && attr_i(view.node(id), "is_test") != Some(1);
            old.then_some("it is in training mode (is_test is not set)")
        }
        Some(mode) => match view.constant(mode).and_then(|c| c.into_ints()) {
            Some(mode) => mode
                .iter()
                .any(|&m| m != 0)
                .then_some("it is in training mode"),
            None => Some("its training_mode is no constant"),
        },
    }
}

pub(super) fn dropout(scope: &Scope, hits: &mut Hits) {
    for (id, _) in scope.nodes() {
        if let Some(why) = trains(scope, id) {
            hits.at(id, why);
        }
    }
}

/// Operators whose further outputs the parser refuses, read or not.
const ONE_OUTPUT: [&str; 3] = [op::BatchNormalization, op::LayerNormalization, op::MaxPool];

pub(super) fn outputs(scope: &Scope, hits: &mut Hits) {
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
            op::Constant => return None,
            op::Identity | op::Cast => value = view.input(producer, 0)?,
            _ => return Some(axes),
        }
    }
}

pub(super) fn attention(scope: &Scope, hits: &mut Hits) {
    for (id, node) in scope.nodes() {
        let microsoft =
            (node.domain(), node.op_type()) == ("com.microsoft", op::MultiHeadAttention);
        if microsoft && scope.view.input(id, 4).is_some() {
            hits.at(id, "it has a key_padding_mask");
        }
    }
}

pub(super) fn axes(scope: &Scope, hits: &mut Hits) {
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

pub(super) fn constant(scope: &Scope, hits: &mut Hits) {
    for stored in scope.initializers() {
        let id = scope.view.value(stored.name());
        // What belongs to a quantization has a finding of its own.
        let quantized = id.is_some_and(|id| {
            let mut quants = scope.facts.quants.iter();
            quants.any(|q| {
                scope
                    .view
                    .node(q.node)
                    .input
                    .iter()
                    .any(|i| scope.view.value(i) == Some(id))
            })
        });
        let input = id.is_some_and(|id| matches!(scope.view.source(id), Source::Input(_)));
        if let Some(dtype) =
            tensor::dtype(stored).filter(|&t| is_foreign(t) && !quantized && !input)
        {
            hits.value(
                stored.name(),
                format!("the constant is {}", dtype.as_str_name()),
            );
        }
    }
    for (id, node) in scope
        .nodes()
        .filter(|&(id, _)| scope.view.op(id) == op::Constant)
    {
        let odd = ["sparse_value", "value_string", "value_strings"];
        if let Some(kind) = node.attribute.iter().find(|a| odd.contains(&a.name())) {
            hits.at(id, format!("the parser reads no {}", kind.name()));
        }
    }
}

pub(super) fn input(scope: &Scope, hits: &mut Hits) {
    for input in scope.inputs() {
        let kind = input.r#type.as_ref().and_then(|t| t.value.as_ref());
        let Some(type_proto::Value::TensorType(kind)) = kind else {
            continue;
        };
        let dtype = DataType::try_from(kind.elem_type()).ok();
        if let Some(dtype) = dtype.filter(|&t| is_foreign(t)) {
            hits.value(
                input.name(),
                format!("the input is {}", dtype.as_str_name()),
            );
        }
    }
}
