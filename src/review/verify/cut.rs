//! The part of a quantized model that computes the output of one Linear from values that the float model has too.
//!
//! ```text
//! values of the float model ─▶ (norm) ─ Q ─ DQ ─ MatMul(DQ(W)) ─ Add(b) ─▶ y'        against y of the float model
//! └────── fed ──────┘          └────────────── cut out ──────────────┘
//! ```
//!
//! From the output it goes backwards to the nearest values with a name that the float model knows. A part with a second
//! product in it holds the error of another Linear too, and is no measure of this one.

use std::collections::{BTreeMap, BTreeSet};

use crate::calibrate::{Batch, InputTensor, Values};
use crate::graph::{NodeId, Source, ValueId, View};
use crate::onnx::Model;
use crate::onnx::node::{float_value, subgraphs};
use crate::onnx::op;
use crate::onnx::proto::{GraphProto, ModelProto, ValueInfoProto};

/// More nodes than any Linear has around it, with a decomposed norm before and another after it.
const MOST_NODES: usize = 200;

/// Operators that multiply two values, so that a part with two of them is more than one Linear.
const PRODUCTS: [&str; 20] = [
    op::Attention,
    op::Conv,
    op::ConvInteger,
    op::DynamicQuantizeMatMul,
    op::Einsum,
    op::FusedGemm,
    op::FusedMatMul,
    op::Gemm,
    op::GroupQueryAttention,
    op::MatMul,
    op::MatMulInteger,
    op::MatMulIntegerToFloat,
    op::MatMulNBits,
    op::MultiHeadAttention,
    op::QAttention,
    op::QGemm,
    op::QLinearConv,
    op::QLinearMatMul,
    op::QOrderedMatMul,
    op::RotaryEmbedding,
];

/// What computes one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// In graph order.
    pub nodes: Vec<NodeId>,
    /// Values that are fed.
    pub fed: Vec<ValueId>,
    /// Graph inputs read, as positions in `GraphProto.input`.
    inputs: Vec<usize>,
    /// Initializers read, as positions in `GraphProto.initializer`.
    constants: Vec<usize>,
    /// The value.
    output: ValueId,
}

/// The nodes between `output` and the nearest values that `stops` accepts; `output` itself is none of them.
///
/// # Errors
/// Why they cannot be cut out, or are more than one Linear.
pub(super) fn cut(
    view: &View,
    output: ValueId,
    stops: impl Fn(ValueId) -> bool,
) -> Result<Cut, String> {
    let (mut nodes, mut fed) = (BTreeSet::new(), BTreeSet::new());
    let (mut inputs, mut constants) = (BTreeSet::new(), BTreeSet::new());
    let mut products = 0;
    let mut seen = BTreeSet::new();
    let mut stack = vec![output];
    while let Some(value) = stack.pop() {
        if !seen.insert(value) {
            continue;
        }
        if value != output && stops(value) {
            fed.insert(value);
            continue;
        }
        let node = match view.source(value) {
            Source::Node { node, .. } => node,
            Source::Initializer(i) => {
                constants.insert(i);
                continue;
            }
            Source::Input(i) => {
                inputs.insert(i);
                continue;
            }
            Source::Unknown => return Err("it reads a value that no one defines".to_owned()),
        };
        if !nodes.insert(node) {
            continue;
        }
        let proto = view.node(node);
        if subgraphs(proto).next().is_some() {
            return Err("there is control flow before it".to_owned());
        }
        products += usize::from(PRODUCTS.contains(&proto.op_type()));
        if products > 1 {
            return Err("another product lies between it and the values of both models".to_owned());
        }
        if nodes.len() > MOST_NODES {
            return Err("too many nodes compute it".to_owned());
        }
        stack.extend(proto.input.iter().filter_map(|name| view.value(name)));
    }
    if products == 0 {
        return Err("no product computes it".to_owned());
    }
    Ok(Cut {
        nodes: nodes.into_iter().collect(),
        fed: fed.into_iter().collect(),
        inputs: inputs.into_iter().collect(),
        constants: constants.into_iter().collect(),
        output,
    })
}

impl Cut {
    /// The cut as a model, and the batch that feeds it: `values` by name, and the graph inputs of `batch`. `None` if one is
    /// missing.
    pub(super) fn model(
        &self,
        view: &View,
        batch: &Batch,
        mut values: BTreeMap<String, Values>,
    ) -> Option<(Model, Batch)> {
        let (original, graph) = (view.model(), view.graph());
        let mut fed = Batch {
            inputs: BTreeMap::new(),
            ..batch.clone()
        };
        let mut stated = Vec::new();
        for &i in &self.inputs {
            let input = &graph.input[i];
            let tensor = batch.inputs.get(input.name())?.clone();
            fed.inputs.insert(input.name().to_owned(), tensor);
            stated.push(input.clone());
        }
        for &value in &self.fed {
            let name = view.name(value);
            let tensor = InputTensor::from_values(values.remove(name)?);
            stated.push(float_value(name, tensor.shape()));
            fed.inputs.insert(name.to_owned(), tensor);
        }
        let nodes = self.nodes.iter().map(|&n| view.node(n).clone());
        let constants = self.constants.iter();
        let graph = GraphProto {
            name: graph.name.clone(),
            node: nodes.collect(),
            initializer: constants.map(|&i| graph.initializer[i].clone()).collect(),
            input: stated,
            output: vec![ValueInfoProto {
                name: Some(view.name(self.output).to_owned()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let model = Model {
            proto: ModelProto {
                ir_version: original.proto.ir_version,
                opset_import: original.proto.opset_import.clone(),
                functions: original.proto.functions.clone(),
                graph: Some(graph),
                ..Default::default()
            },
        };
        Some((model, fed))
    }
}
