//! What is known of values while nodes are raised: their types, ranks and small constants, by [`infer`].
//!
//! Exporters of old models state little about inner values, but two conversions depend on it: Softmax keeps its form
//! only if its axis is known to be the last, and Clip's bounds need its input's type. What is stated counts for more than
//! what follows from the nodes.

use std::collections::HashSet;

use crate::graph::infer::{self, Limits};
use crate::graph::view::is_standard_domain;
use crate::onnx::DataType;
use crate::onnx::proto::{GraphProto, NodeProto};

/// Facts about values by name. A subgraph starts with a copy of those around it.
#[derive(Clone)]
pub(super) struct Facts(infer::Facts);

impl Default for Facts {
    fn default() -> Self {
        Facts(infer::Facts::new(Limits::SIZES))
    }
}

impl Facts {
    /// The rank of a value.
    pub(super) fn rank(&self, name: &str) -> Option<usize> {
        self.0.rank(name)
    }

    /// The element type of a value.
    pub(super) fn dtype(&self, name: &str) -> Option<DataType> {
        self.0.dtype(name)
    }

    /// The numbers of a small float constant.
    pub(super) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let value = self.0.get(name)?.value.as_ref()?;
        Some(value.floats()?.iter().copied().collect())
    }

    /// Adds what `graph` says. `overridable`: an initializer that is listed as an input is only a default (IR 4).
    pub(super) fn add_graph(&mut self, graph: &GraphProto, overridable: bool) {
        let stated = graph.input.iter().chain(&graph.value_info);
        for info in stated.chain(&graph.output) {
            self.0.know(info.name(), infer::stated(info));
        }
        let inputs: HashSet<&str> = graph
            .input
            .iter()
            .filter_map(|i| i.name.as_deref())
            .collect();
        for tensor in &graph.initializer {
            let mut fact = self.0.tensor(tensor);
            if overridable && inputs.contains(tensor.name()) {
                fact.value = None;
                fact.dims = fact.dims.map(|dims| vec![None; dims.len()]);
            }
            self.0.know(tensor.name(), fact);
        }
        self.add_nodes(&graph.node);
    }

    /// Adds what a list of nodes, in order of execution, implies.
    pub(super) fn add_nodes(&mut self, nodes: &[NodeProto]) {
        self.0
            .follow(nodes.iter().filter(|n| is_standard_domain(n)));
    }
}
