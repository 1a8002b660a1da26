//! Whether the nodes of a function mean the same in the operator sets of the model.

use std::collections::{BTreeMap, BTreeSet};

use super::{domain, label};
use crate::graph::opset::table::{Rule, operator};
use crate::onnx::node::subgraphs;
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
    let split = op == "Split" && between(18) && node.input.get(1).is_none_or(String::is_empty);
    !(early_break || late_break || split)
}

/// Changes after version 13 that are not compatible. The others add types, attributes and inputs whose defaults are the
/// old behaviour. Source: the ONNX operator change log.
const BREAKING: [(&str, i64); 15] = [
    ("Attention", 24),
    ("BatchNormalization", 14),
    ("DFT", 20),
    ("GridSample", 20),
    ("GroupNormalization", 21),
    ("ReduceL1", 18),
    ("ReduceL2", 18),
    ("ReduceLogSum", 18),
    ("ReduceLogSumExp", 18),
    ("ReduceMax", 18),
    ("ReduceMean", 18),
    ("ReduceMin", 18),
    ("ReduceProd", 18),
    ("ReduceSumSquare", 18),
    ("RoiAlign", 16),
];

/// The versions from 14 to [`NEWEST`] in which an operator appeared or changed.
const LATER: &[(&str, &[i64])] = &[
    ("Acos", &[22]),
    ("Acosh", &[22]),
    ("Add", &[14]),
    ("AffineGrid", &[20]),
    ("Asin", &[22]),
    ("Asinh", &[22]),
    ("Atan", &[22]),
    ("Atanh", &[22]),
    ("Attention", &[23, 24]),
    ("AveragePool", &[19, 22]),
    ("BatchNormalization", &[14, 15]),
    ("Bernoulli", &[15, 22]),
    ("BitwiseAnd", &[18]),
    ("BitwiseNot", &[18]),
    ("BitwiseOr", &[18]),
    ("BitwiseXor", &[18]),
    ("BlackmanWindow", &[17]),
    ("Cast", &[19, 21, 23, 24, 25]),
    ("CastLike", &[15, 19, 21, 23, 24, 25]),
    ("CenterCropPad", &[18]),
    ("Col2Im", &[18]),
    ("Constant", &[19, 21, 23, 24, 25]),
    ("ConstantOfShape", &[20, 21, 23, 24, 25]),
    ("Conv", &[22]),
    ("ConvTranspose", &[22]),
    ("Cos", &[22]),
    ("Cosh", &[22]),
    ("CumSum", &[14]),
    ("DFT", &[17, 20]),
    ("DeformConv", &[19, 22]),
    ("DequantizeLinear", &[19, 21, 23, 24, 25]),
    ("Det", &[22]),
    ("Div", &[14]),
    ("Dropout", &[22]),
    ("Elu", &[22]),
    ("Equal", &[19]),
    ("EyeLike", &[22]),
    ("Flatten", &[21, 23, 24, 25]),
    ("GRU", &[14, 22]),
    ("Gelu", &[20]),
    ("GlobalAveragePool", &[22]),
    ("GlobalLpPool", &[22]),
    ("GlobalMaxPool", &[22]),
    ("GreaterOrEqual", &[16]),
    ("GridSample", &[16, 20, 22]),
    ("GroupNormalization", &[18, 21]),
    ("HammingWindow", &[17]),
    ("HannWindow", &[17]),
    ("HardSigmoid", &[22]),
    ("HardSwish", &[14, 22]),
    ("Identity", &[14, 16, 19, 21, 23, 24, 25]),
    ("If", &[16, 19, 21, 23, 24, 25]),
    ("ImageDecoder", &[20]),
    ("InstanceNormalization", &[22]),
    ("IsInf", &[20]),
    ("IsNaN", &[20]),
    ("LSTM", &[14, 22]),
    ("LayerNormalization", &[17]),
    ("LeakyRelu", &[16]),
    ("LessOrEqual", &[16]),
    ("Loop", &[16, 19, 21, 23, 24, 25]),
    ("LpNormalization", &[22]),
    ("LpPool", &[18, 22]),
    ("MaxPool", &[22]),
    ("MaxRoiPool", &[22]),
    ("MaxUnpool", &[22]),
    ("MelWeightMatrix", &[17]),
    ("Mish", &[18, 22]),
    ("Mul", &[14]),
    ("Multinomial", &[22]),
    ("NegativeLogLikelihoodLoss", &[22]),
    ("Optional", &[15]),
    ("OptionalGetElement", &[15, 18]),
    ("OptionalHasElement", &[15, 18]),
    ("PRelu", &[16]),
    ("Pad", &[18, 19, 21, 23, 24, 25]),
    ("Pow", &[15]),
    ("QLinearMatMul", &[21]),
    ("QuantizeLinear", &[19, 21, 23, 24, 25]),
    ("RMSNormalization", &[23]),
    ("RNN", &[14, 22]),
    ("RandomNormal", &[22]),
    ("RandomNormalLike", &[22]),
    ("RandomUniform", &[22]),
    ("RandomUniformLike", &[22]),
    ("ReduceL1", &[18]),
    ("ReduceL2", &[18]),
    ("ReduceLogSum", &[18]),
    ("ReduceLogSumExp", &[18]),
    ("ReduceMax", &[18, 20]),
    ("ReduceMean", &[18]),
    ("ReduceMin", &[18, 20]),
    ("ReduceProd", &[18]),
    ("ReduceSumSquare", &[18]),
    ("RegexFullMatch", &[20]),
    ("Relu", &[14]),
    ("Reshape", &[14, 19, 21, 23, 24, 25]),
    ("Resize", &[18, 19]),
    ("RoiAlign", &[16, 22]),
    ("RotaryEmbedding", &[23]),
    ("Round", &[22]),
    ("STFT", &[17]),
    ("Scan", &[16, 19, 21, 23, 24, 25]),
    ("ScatterElements", &[16, 18]),
    ("ScatterND", &[16, 18]),
    ("Selu", &[22]),
    ("SequenceMap", &[17]),
    ("Shape", &[15, 19, 21, 23, 24, 25]),
    ("Sin", &[22]),
    ("Sinh", &[22]),
    ("Size", &[19, 21, 23, 24, 25]),
    ("Softplus", &[22]),
    ("Softsign", &[22]),
    ("Split", &[18]),
    ("SplitToSequence", &[24]),
    ("Squeeze", &[21, 23, 24, 25]),
    ("StringConcat", &[20]),
    ("StringSplit", &[20]),
    ("Sub", &[14]),
    ("Swish", &[24]),
    ("Tan", &[22]),
    ("TensorScatter", &[24]),
    ("ThresholdedRelu", &[22]),
    ("TopK", &[24]),
    ("Transpose", &[21, 23, 24, 25]),
    ("Trilu", &[14]),
    ("Unsqueeze", &[21, 23, 24, 25]),
    ("Where", &[16]),
];
