//! New names that derive from old ones and never collide.

use std::collections::{HashMap, HashSet};

use crate::onnx::Model;
use crate::onnx::node::subgraphs;
use crate::onnx::proto::{GraphProto, NodeProto};

/// Every name a model uses for a value or a node, at any depth, plus those handed out since.
///
/// Subgraphs share their names with the graph around them, so a name that is free only outside is not free.
pub struct Names {
    used: HashSet<String>,
    /// The last number behind a name that was not free: those up to it are taken.
    counts: HashMap<String, usize>,
}

impl Names {
    /// Collects the names of `model`.
    pub fn new(model: &Model) -> Self {
        let mut names = Names {
            used: HashSet::new(),
            counts: HashMap::new(),
        };
        names.collect(model.graph());
        // A function has names of its own, but an inlined one must not meet those of its callers.
        for function in &model.proto.functions {
            names
                .used
                .extend(function.input.iter().chain(&function.output).cloned());
            function
                .node
                .iter()
                .for_each(|node| names.collect_node(node));
        }
        names
    }

    fn collect(&mut self, graph: &GraphProto) {
        let values = graph
            .input
            .iter()
            .chain(&graph.output)
            .chain(&graph.value_info);
        self.used.extend(values.filter_map(|v| v.name.clone()));
        self.used
            .extend(graph.initializer.iter().filter_map(|t| t.name.clone()));
        self.used.extend(
            graph
                .sparse_initializer
                .iter()
                .filter_map(|t| t.values.as_ref()?.name.clone()),
        );
        for node in &graph.node {
            self.collect_node(node);
        }
    }

    fn collect_node(&mut self, node: &NodeProto) {
        self.used.extend(node.name.clone());
        self.used
            .extend(node.input.iter().chain(&node.output).cloned());
        for graph in subgraphs(node) {
            self.collect(graph);
        }
    }

    /// `wanted` if that is free, else `{wanted}_2`, `_3`, …; the answer is free no longer.
    pub fn unique(&mut self, wanted: &str) -> String {
        if self.used.insert(wanted.to_owned()) {
            return wanted.to_owned();
        }
        let count = self.counts.entry(wanted.to_owned()).or_insert(1);
        loop {
            *count += 1;
            let name = format!("{wanted}_{count}");
            if self.used.insert(name.clone()) {
                return name;
            }
        }
    }

    /// `{base}_{suffix}` if that is free, else `{base}_{suffix}_2`, `_3`, …; the answer is free no longer.
    pub fn derive(&mut self, base: &str, suffix: &str) -> String {
        let wanted = if base.is_empty() {
            suffix.to_owned()
        } else {
            format!("{base}_{suffix}")
        };
        self.unique(&wanted)
    }
}
