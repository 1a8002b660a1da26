//! Renaming values in nodes, and in what their subgraphs read of them.

use std::collections::BTreeMap;

use crate::onnx::proto::{GraphProto, NodeProto};

/// The new names of some values.
pub(super) type Renaming = BTreeMap<String, String>;

pub(super) fn rename(name: &mut String, to: &Renaming) {
    if let Some(new) = to.get(name.as_str()) {
        name.clone_from(new);
    }
}

/// Renames what a node reads and writes, and what its subgraphs read from around it.
pub(super) fn rename_node(node: &mut NodeProto, to: &Renaming) {
    if to.is_empty() {
        return;
    }
    let values = node.input.iter_mut().chain(&mut node.output);
    values.for_each(|name| rename(name, to));
    for graph in node
        .attribute
        .iter_mut()
        .flat_map(|a| a.g.iter_mut().chain(&mut a.graphs))
    {
        rename_captured(graph, to);
    }
}

/// Renames what a graph reads from around it; a name of its own hides the one outside.
fn rename_captured(graph: &mut GraphProto, to: &Renaming) {
    let mut visible = to.clone();
    for name in own_names(graph) {
        visible.remove(&name);
    }
    for name in graph.input.iter().filter_map(|i| i.name.as_ref()) {
        visible.remove(name);
    }
    graph
        .node
        .iter_mut()
        .for_each(|node| rename_node(node, &visible));
    let outputs = graph.output.iter_mut().flat_map(|o| &mut o.name);
    outputs.for_each(|name| rename(name, &visible));
}

/// The values that a graph without inputs defines.
pub(super) fn own_names(graph: &GraphProto) -> Vec<String> {
    let constants = graph.initializer.iter().filter_map(|t| t.name.clone());
    let outputs = graph.node.iter().flat_map(|n| n.output.iter().cloned());
    constants.chain(outputs).filter(|n| !n.is_empty()).collect()
}
