//! Whether the nodes of a function mean the same in the operator sets of the model.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::functions::{domain, label};
use crate::graph::opset::table::{Rule, operator};
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// The last version whose changes are known here.
const NEWEST: i64 = 25;

/// The domains of `nodes`, those in subgraphs included.
pub(super) fn domains(nodes: &[NodeProto]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for node in nodes {
        all.insert(domain(node.domain()).to_owned());
        for graph in subgraphs(node) {
            all.extend(domains(&graph.node));
        }
    }
    all
}

/// The first node that does not mean in the operator sets `model` what it means in `own`; `local` tells calls.
pub(super) fn problem(
    nodes: &[NodeProto],
    own: &BTreeMap<String, i64>,
    model: &BTreeMap<String, i64>,
    local: &dyn Fn(&NodeProto) -> bool,
) -> Option<String> {
    for node in nodes {
        let domain = domain(node.domain());
        if !local(node)
            && let (Some(&from), Some(&to)) = (own.get(domain), model.get(domain))
            && from != to
            && !same_meaning(node, domain, from, to)
        {
            let set = match domain {
                "" => "opset".to_owned(),
                other => format!("{other} opset"),
            };
            return Some(format!(
                "the function uses {set} {from} and the model {to}, in which {} (`{}`) may mean something else; \
                 export the model with one opset",
                node.op_type(),
                label(node)
            ));
        }
        let inner = subgraphs(node).find_map(|g| problem(&g.node, own, model, local));
        if inner.is_some() {
            return inner;
        }
    }
    None
}

fn same_meaning(node: &NodeProto, domain: &str, from: i64, to: i64) -> bool {
    if !domain.is_empty() || from.max(to) > NEWEST {
        return false;
    }
    let op = node.op_type();
    let early = operator(op);
    let late = LATER
        .binary_search_by(|(name, _)| (*name).cmp(op))
        .map_or(&[][..], |i| LATER[i].1);
    if early.is_none() && late.is_empty() {
        return false;
    }
    if to < from {
        // A newer form may use what the older operator does not know.
        let changed = early.map_or(&[][..], |o| o.changed);
        let mut after = changed
            .iter()
            .chain(late)
            .chain(early.iter().map(|o| &o.first));
        return !after.any(|&v| to < v && v <= from);
    }
    let between = |v: i64| from < v && v <= to;
    let rules = early.map_or(&[][..], |o| o.rules);
    let broken = |rule: &Rule| matches!(rule, Rule::Convert(_) | Rule::Refuse(_));
    let early_break = rules.iter().any(|(v, rule)| between(*v) && broken(rule));
    let late_break = BREAKING
        .iter()
        .filter(|(name, _)| *name == op)
        .any(|&(_, v)| between(v));
    // Version 18 wants the sizes of the parts, or their number.
    let split = op == op::Split && between(18) && node.input.get(1).is_none_or(String::is_empty);
    !(early_break || late_break || split)
}

/// Changes after version 13 that are not compatible. The others add types, attributes and inputs whose defaults are the
/// old behaviour. Source: the ONNX operator change log.
const BREAKING: [(&str, i64); 15] = [
    (op::Attention, 24),
    (op::BatchNormalization, 14),
    (op::DFT, 20),
    (op::GridSample, 20),
    (op::GroupNormalization, 21),
    (op::ReduceL1, 18),
    (op::ReduceL2, 18),
    (op::ReduceLogSum, 18),
    (op::ReduceLogSumExp, 18),
    (op::ReduceMax, 18),
    (op::ReduceMean, 18),
    (op::ReduceMin, 18),
    (op::ReduceProd, 18),
    (op::ReduceSumSquare, 18),
    (op::RoiAlign, 16),
];

/// The versions from 14 to [`NEWEST`] in which an operator appeared or changed.
const LATER: &[(&str, &[i64])] = &[
    (op::Acos, &[22]),
    (op::Acosh, &[22]),
    (op::Add, &[14]),
    (op::AffineGrid, &[20]),
    (op::Asin, &[22]),
    (op::Asinh, &[22]),
    (op::Atan, &[22]),
    (op::Atanh, &[22]),
    (op::Attention, &[23, 24]),
    (op::AveragePool, &[19, 22]),
    (op::BatchNormalization, &[14, 15]),
    (op::Bernoulli, &[15, 22]),
    (op::BitwiseAnd, &[18]),
    (op::BitwiseNot, &[18]),
    (op::BitwiseOr, &[18]),
    (op::BitwiseXor, &[18]),
    (op::BlackmanWindow, &[17]),
    (op::Cast, &[19, 21, 23, 24, 25]),
    (op::CastLike, &[15, 19, 21, 23, 24, 25]),
    (op::CenterCropPad, &[18]),
    (op::Col2Im, &[18]),
    (op::Constant, &[19, 21, 23, 24, 25]),
    (op::ConstantOfShape, &[20, 21, 23, 24, 25]),
    (op::Conv, &[22]),
    (op::ConvTranspose, &[22]),
    (op::Cos, &[22]),
    (op::Cosh, &[22]),
    (op::CumSum, &[14]),
    (op::DFT, &[17, 20]),
    (op::DeformConv, &[19, 22]),
    (op::DequantizeLinear, &[19, 21, 23, 24, 25]),
    (op::Det, &[22]),
    (op::Div, &[14]),
    (op::Dropout, &[22]),
    (op::Elu, &[22]),
    (op::Equal, &[19]),
    (op::EyeLike, &[22]),
    (op::Flatten, &[21, 23, 24, 25]),
    (op::GRU, &[14, 22]),
    (op::Gelu, &[20]),
    (op::GlobalAveragePool, &[22]),
    (op::GlobalLpPool, &[22]),
    (op::GlobalMaxPool, &[22]),
    (op::GreaterOrEqual, &[16]),
    (op::GridSample, &[16, 20, 22]),
    (op::GroupNormalization, &[18, 21]),
    (op::HammingWindow, &[17]),
    (op::HannWindow, &[17]),
    (op::HardSigmoid, &[22]),
    (op::HardSwish, &[14, 22]),
    (op::Identity, &[14, 16, 19, 21, 23, 24, 25]),
    (op::If, &[16, 19, 21, 23, 24, 25]),
    (op::ImageDecoder, &[20]),
    (op::InstanceNormalization, &[22]),
    (op::IsInf, &[20]),
    (op::IsNaN, &[20]),
    (op::LSTM, &[14, 22]),
    (op::LayerNormalization, &[17]),
    (op::LeakyRelu, &[16]),
    (op::LessOrEqual, &[16]),
    (op::Loop, &[16, 19, 21, 23, 24, 25]),
    (op::LpNormalization, &[22]),
    (op::LpPool, &[18, 22]),
    (op::MaxPool, &[22]),
    (op::MaxRoiPool, &[22]),
    (op::MaxUnpool, &[22]),
    (op::MelWeightMatrix, &[17]),
    (op::Mish, &[18, 22]),
    (op::Mul, &[14]),
    (op::Multinomial, &[22]),
    (op::NegativeLogLikelihoodLoss, &[22]),
    (op::Optional, &[15]),
    (op::OptionalGetElement, &[15, 18]),
    (op::OptionalHasElement, &[15, 18]),
    (op::PRelu, &[16]),
    (op::Pad, &[18, 19, 21, 23, 24, 25]),
    (op::Pow, &[15]),
    (op::QLinearMatMul, &[21]),
    (op::QuantizeLinear, &[19, 21, 23, 24, 25]),
    (op::RMSNormalization, &[23]),
    (op::RNN, &[14, 22]),
    (op::RandomNormal, &[22]),
    (op::RandomNormalLike, &[22]),
    (op::RandomUniform, &[22]),
    (op::RandomUniformLike, &[22]),
    (op::ReduceL1, &[18]),
    (op::ReduceL2, &[18]),
    (op::ReduceLogSum, &[18]),
    (op::ReduceLogSumExp, &[18]),
    (op::ReduceMax, &[18, 20]),
    (op::ReduceMean, &[18]),
    (op::ReduceMin, &[18, 20]),
    (op::ReduceProd, &[18]),
    (op::ReduceSumSquare, &[18]),
    (op::RegexFullMatch, &[20]),
    (op::Relu, &[14]),
    (op::Reshape, &[14, 19, 21, 23, 24, 25]),
    (op::Resize, &[18, 19]),
    (op::RoiAlign, &[16, 22]),
    (op::RotaryEmbedding, &[23]),
    (op::Round, &[22]),
    (op::STFT, &[17]),
    (op::Scan, &[16, 19, 21, 23, 24, 25]),
    (op::ScatterElements, &[16, 18]),
    (op::ScatterND, &[16, 18]),
    (op::Selu, &[22]),
    (op::SequenceMap, &[17]),
    (op::Shape, &[15, 19, 21, 23, 24, 25]),
    (op::Sin, &[22]),
    (op::Sinh, &[22]),
    (op::Size, &[19, 21, 23, 24, 25]),
    (op::Softplus, &[22]),
    (op::Softsign, &[22]),
    (op::Split, &[18]),
    (op::SplitToSequence, &[24]),
    (op::Squeeze, &[21, 23, 24, 25]),
    (op::StringConcat, &[20]),
    (op::StringSplit, &[20]),
    (op::Sub, &[14]),
    (op::Swish, &[24]),
    (op::Tan, &[22]),
    (op::TensorScatter, &[24]),
    (op::ThresholdedRelu, &[22]),
    (op::TopK, &[24]),
    (op::Transpose, &[21, 23, 24, 25]),
    (op::Trilu, &[14]),
    (op::Unsqueeze, &[21, 23, 24, 25]),
    (op::Where, &[16]),
];
