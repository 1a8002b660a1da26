//! The functions of a model, by what calls name them.

use std::collections::{BTreeMap, BTreeSet};

use crate::onnx::node::subgraphs;
use crate::onnx::proto::{FunctionProto, NodeProto};

/// Domain, name and overload: what a call names its function by.
pub(super) type Key = (String, String, String);

pub(super) fn domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

pub(super) fn key_of(function: &FunctionProto) -> Key {
    (
        domain(function.domain()).to_owned(),
        function.name().to_owned(),
        function.overload().to_owned(),
    )
}

/// The functions of a model, found by their calls.
pub(super) struct Functions<'m>(pub(super) BTreeMap<Key, &'m FunctionProto>);

impl<'m> Functions<'m> {
    pub(super) fn new(functions: &'m [FunctionProto]) -> Self {
        Functions(functions.iter().map(|f| (key_of(f), f)).collect())
    }

    pub(super) fn of(&self, node: &NodeProto) -> Option<&'m FunctionProto> {
        let key = (
            domain(node.domain()).to_owned(),
            node.op_type().to_owned(),
            node.overload().to_owned(),
        );
        self.0.get(&key).copied()
    }

    /// Calls `visit` for every node below `nodes`, in subgraphs and in the functions called there, each function once.
    pub(super) fn walk(
        &self,
        nodes: &'m [NodeProto],
        seen: &mut BTreeSet<Key>,
        visit: &mut dyn FnMut(&NodeProto),
    ) {
        for node in nodes {
            visit(node);
            for graph in subgraphs(node) {
                self.walk(&graph.node, seen, visit);
            }
            if let Some(function) = self.of(node)
                && seen.insert(key_of(function))
            {
                self.walk(&function.node, seen, visit);
            }
        }
    }
}

/// The node's name, or its first output's where it has none.
pub(super) fn label(node: &NodeProto) -> String {
    let output = || node.output.iter().find(|o| !o.is_empty()).cloned();
    match node.name() {
        "" => output().unwrap_or_else(|| node.op_type().to_owned()),
        name => name.to_owned(),
    }
}

pub(super) fn full_name(function: &FunctionProto) -> String {
    match domain(function.domain()) {
        "" => function.name().to_owned(),
        domain => format!("{domain}.{}", function.name()),
    }
}
