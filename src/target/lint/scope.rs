//! The graphs that are looked at: the main graph, and each subgraph together with what surrounds it.
//!
//! A subgraph reads values of the graphs around it by name, and names are unique over all of them. So a subgraph is
//! looked at as the end of one list of nodes that starts with its surroundings, and only its own nodes are reported.

use super::facts::Facts;
use crate::graph::{NodeId, View, inline};
use crate::onnx::Model;
use crate::onnx::node::subgraphs;
use crate::onnx::proto::{GraphProto, NodeProto};

/// A graph that stands alone.
pub(super) struct Standalone {
    model: Model,
    /// The first node, input and initializer that are its own.
    first: [usize; 3],
    /// What the names of its nodes begin with.
    place: String,
}

/// One graph with everything that the rules ask about it.
pub(super) struct Scope<'m> {
    /// The index over it and its surroundings.
    pub view: View<'m>,
    /// Its Q/DQ pairs and products.
    pub facts: Facts,
    /// What the names of its nodes begin with: empty for the main graph.
    pub place: String,
    first: [usize; 3],
}

impl<'m> Scope<'m> {
    pub(super) fn new(graph: &'m Standalone) -> Self {
        let view = View::new(&graph.model);
        Scope {
            facts: Facts::new(&view),
            view,
            place: graph.place.clone(),
            first: graph.first,
        }
    }

    /// Whether `node` is of this graph, not of its surroundings.
    pub(super) fn owns(&self, node: NodeId) -> bool {
        node.0 >= self.first[0]
    }

    /// The inputs of this graph, not of its surroundings.
    pub(super) fn inputs(&self) -> &'m [crate::onnx::proto::ValueInfoProto] {
        &self.view.graph().input[self.first[1]..]
    }

    /// The initializers of this graph, not of its surroundings.
    pub(super) fn initializers(&self) -> &'m [crate::onnx::proto::TensorProto] {
        &self.view.graph().initializer[self.first[2]..]
    }

    /// The domain and operator of every node that this graph owns.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (NodeId, &'m NodeProto)> {
        self.view.nodes().filter(|&(id, _)| self.owns(id))
    }
}

/// The main graph of `model` and every subgraph, with functions opened.
pub(super) fn scopes(model: &Model) -> Vec<Standalone> {
    let mut model = model.clone();
    // A defect of inlining leaves the calls as they are.
    let _ = inline(&mut model, &|_| true);
    let mut found = Vec::new();
    let graph = model.graph().clone();
    let main = Standalone {
        model,
        first: [0; 3],
        place: String::new(),
    };
    found.push(main);
    inner(0, &graph, &mut found);
    found
}

/// Adds the subgraphs of the nodes of `graph`, which is the own part of `found[outer]`.
fn inner(outer: usize, graph: &GraphProto, found: &mut Vec<Standalone>) {
    for (index, node) in graph.node.iter().enumerate() {
        for attribute in &node.attribute {
            for branch in attribute.g.iter().chain(&attribute.graphs) {
                let around = &found[outer];
                let id = NodeId(around.first[0] + index);
                let view = View::new(&around.model);
                let place = format!(
                    "{}{}/{}/",
                    around.place,
                    view.node_name(id),
                    attribute.name()
                );
                drop(view);
                let (model, first) = joined(&around.model, branch);
                found.push(Standalone {
                    model,
                    first,
                    place,
                });
                inner(found.len() - 1, branch, found);
            }
        }
    }
}

/// `branch` after everything of `around`, whose own subgraphs are looked at elsewhere.
fn joined(around: &Model, branch: &GraphProto) -> (Model, [usize; 3]) {
    let outer = around.graph();
    let first = [outer.node.len(), outer.input.len(), outer.initializer.len()];
    let bare = |node: &NodeProto| match subgraphs(node).next() {
        None => node.clone(),
        Some(_) => NodeProto {
            attribute: Vec::new(),
            ..node.clone()
        },
    };
    let mut graph = GraphProto {
        node: outer.node.iter().map(bare).collect(),
        output: branch.output.clone(),
        ..outer.clone()
    };
    graph.node.extend(branch.node.iter().cloned());
    graph.input.extend(branch.input.iter().cloned());
    graph.initializer.extend(branch.initializer.iter().cloned());
    graph.value_info.extend(branch.value_info.iter().cloned());
    let mut model = Model {
        proto: crate::onnx::proto::ModelProto {
            graph: None,
            functions: Vec::new(),
            ..around.proto.clone()
        },
    };
    *model.graph_mut() = graph;
    (model, first)
}
