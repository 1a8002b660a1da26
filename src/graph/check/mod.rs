//! Whether a model is one: every value defined once, and before it is read; nodes that can mean something; functions
//! that end.
//!
//! What runs a model relies on this and is asked afterwards: an engine may wait for ever, or give up without a name.

mod budget;
mod error;
mod operators;

use std::collections::HashSet;

use super::view::{View, captured_names};
use crate::onnx::Model;

pub use error::GraphError;

/// Checks the main graph of `model`, what its subgraphs read from it, every node of the standard domain in graphs and
/// functions (number of inputs and outputs, ranges of attributes), and that the calls of functions end: at most
/// 64 inside of each other, and a million nodes in all.
///
/// Everything here walks from a value to the node that makes it; in a graph with a cycle that would never end.
///
/// # Errors
/// The first defect, in graph order.
pub fn check(model: &Model) -> Result<(), GraphError> {
    budget::check(model)?;
    check_names(model)?;
    operators::check(model)
}

/// The part of [`check`] that a change of the graph could break.
pub(super) fn check_names(model: &Model) -> Result<(), GraphError> {
    let graph = model.graph();
    let redefined = |value: &str| GraphError::Redefined {
        value: value.to_owned(),
    };
    let inputs = graph.input.iter().filter_map(|i| i.name.as_deref());
    let sparse = graph
        .sparse_initializer
        .iter()
        .filter_map(|t| t.values.as_ref()?.name.as_deref());
    let mut defined: HashSet<&str> = HashSet::new();
    for name in inputs.chain(sparse) {
        if !defined.insert(name) {
            return Err(redefined(name));
        }
    }
    // An initializer may be listed as an input, too.
    let mut initializers: HashSet<&str> = HashSet::new();
    for name in graph.initializer.iter().filter_map(|t| t.name.as_deref()) {
        if !initializers.insert(name) {
            return Err(redefined(name));
        }
    }
    defined.extend(initializers);
    let view = View::new(model);
    for (id, node) in view.nodes() {
        let inputs = node.input.iter().map(String::as_str);
        let mut read = inputs.filter(|n| !n.is_empty()).chain(captured_names(node));
        if let Some(value) = read.find(|name| !defined.contains(name)) {
            return Err(GraphError::Undefined {
                reader: format!("node `{}`", view.node_name(id)),
                value: value.to_owned(),
            });
        }
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            if !defined.insert(name) {
                return Err(redefined(name));
            }
        }
    }
    let mut outputs = graph.output.iter().filter_map(|o| o.name.as_deref());
    match outputs.find(|name| !defined.contains(name)) {
        None => Ok(()),
        Some(value) => Err(GraphError::Undefined {
            reader: "the list of graph outputs".to_owned(),
            value: value.to_owned(),
        }),
    }
}
