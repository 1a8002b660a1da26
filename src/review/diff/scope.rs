//! What is defined where in a graph: producers, readers, constants.

use std::collections::HashMap;

use crate::onnx::node;
use crate::onnx::op;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};

/// An index over one graph; constants of enclosing graphs are known, too.
#[derive(Clone)]
pub(super) struct Scope<'m> {
    pub graph: &'m GraphProto,
    /// Value to the node that makes it and the number of the output.
    pub producer: HashMap<&'m str, (usize, usize)>,
    /// Value to its readers in this graph, subgraphs included: node and number of the input; `usize::MAX` stands for
    /// a subgraph of the node.
    pub readers: HashMap<&'m str, Vec<(usize, usize)>>,
    /// Initializers and values of Constant nodes, those of enclosing graphs included.
    pub constants: HashMap<&'m str, &'m TensorProto>,
}

impl<'m> Scope<'m> {
    pub(super) fn new(graph: &'m GraphProto, outer: Option<&Scope<'m>>) -> Self {
        let mut scope = Scope {
            graph,
            producer: HashMap::new(),
            readers: HashMap::new(),
            constants: outer.map(|o| o.constants.clone()).unwrap_or_default(),
        };
        for tensor in &graph.initializer {
            scope.constants.insert(tensor.name(), tensor);
        }
        for (i, op) in graph.node.iter().enumerate() {
            for (slot, name) in op.output.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                scope.producer.entry(name).or_insert((i, slot));
            }
            for (slot, name) in op.input.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                scope.readers.entry(name).or_default().push((i, slot));
            }
            for inner in node::subgraphs(op) {
                scope.captures(inner, i);
            }
            if op.op_type() == op::Constant
                && let (Some(output), Some(value)) = (op.output.first(), node::attr_t(op, "value"))
            {
                scope.constants.insert(output, value);
            }
        }
        scope
    }

    fn captures(&mut self, graph: &'m GraphProto, owner: usize) {
        let outputs = graph.output.iter().map(|o| o.name());
        let inputs = graph.node.iter().flat_map(|n| &n.input).map(String::as_str);
        for name in inputs.chain(outputs).filter(|n| !n.is_empty()) {
            let readers = self.readers.entry(name).or_default();
            if readers.last() != Some(&(owner, usize::MAX)) {
                readers.push((owner, usize::MAX));
            }
        }
        for inner in graph.node.iter().flat_map(node::subgraphs) {
            self.captures(inner, owner);
        }
    }

    pub(super) fn node(&self, i: usize) -> &'m NodeProto {
        &self.graph.node[i]
    }

    pub(super) fn readers(&self, value: &str) -> &[(usize, usize)] {
        self.readers.get(value).map_or(&[], Vec::as_slice)
    }

    pub(super) fn constant(&self, value: &str) -> Option<&'m TensorProto> {
        self.constants.get(value).copied()
    }

    pub(super) fn is_output(&self, value: &str) -> bool {
        self.graph.output.iter().any(|o| o.name() == value)
    }
}

/// A node's name, or its first output's.
pub(super) fn label(node: &NodeProto) -> &str {
    match node.name() {
        "" => node.output.iter().find(|o| !o.is_empty()).map_or("", |o| o),
        name => name,
    }
}

/// The operator, with its domain if that is not ONNX's own.
pub(super) fn op(node: &NodeProto) -> String {
    match node.domain() {
        "" | "ai.onnx" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    }
}

/// Operators that compute a product under another name, with or without quantization, count as one.
pub(super) fn family(op: &str) -> &str {
    match op {
        op::MatMul
        | op::Gemm
        | op::MatMulInteger
        | op::QLinearMatMul
        | op::QGemm
        | op::FusedMatMul
        | op::FusedGemm
        | op::MatMulIntegerToFloat
        | op::DynamicQuantizeMatMul
        | op::MatMulNBits
        | op::MatMulBnb4 => op::MatMul,
        op::Conv | op::ConvInteger | op::QLinearConv => op::Conv,
        op::Add | op::QLinearAdd => op::Add,
        op::Mul | op::QLinearMul => op::Mul,
        other => other,
    }
}
