//! Walks over every tensor of a model: initializers, sparse initializers, tensors in attributes, and all of these again
//! in subgraphs, model-local functions and training graphs.

use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
};
use std::fmt;

/// Where a tensor stands, for messages and for choosing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// An initializer of a graph or subgraph.
    Initializer,
    /// Values or indices of a sparse initializer.
    SparseInitializer,
    /// Inside an attribute of a node (by name, or by operator where it has no name).
    Attribute { node: &'a str, attribute: &'a str },
    /// The default value of a function's attribute.
    FunctionAttribute {
        function: &'a str,
        attribute: &'a str,
    },
}

impl Place<'_> {
    /// The tensor's name, or what it is where it has none.
    pub(super) fn describe(&self, tensor: &TensorProto) -> String {
        match (self, tensor.name()) {
            (Place::Initializer | Place::SparseInitializer, name) => name.to_owned(),
            (place, "") => place.to_string(),
            (place, name) => format!("{name} ({place})"),
        }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Initializer => write!(f, "initializer"),
            Place::SparseInitializer => write!(f, "sparse initializer"),
            Place::Attribute { node, attribute } => {
                write!(f, "attribute `{attribute}` of node `{node}`")
            }
            Place::FunctionAttribute {
                function,
                attribute,
            } => write!(f, "attribute `{attribute}` of function `{function}`"),
        }
    }
}

/// Calls `visit` for every tensor, always in the same order; stops at the first error.
pub(super) fn tensors<E>(
    model: &mut ModelProto,
    visit: &mut dyn FnMut(Place<'_>, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    if let Some(main) = &mut model.graph {
        graph(main, visit)?;
    }
    for training in &mut model.training_info {
        for part in [&mut training.initialization, &mut training.algorithm] {
            part.iter_mut().try_for_each(|part| graph(part, visit))?;
        }
    }
    for function in &mut model.functions {
        let name = function.name.as_deref().unwrap_or_default();
        for attr in &mut function.attribute_proto {
            let attr_name = attr.name.clone().unwrap_or_default();
            let place = Place::FunctionAttribute {
                function: name,
                attribute: &attr_name,
            };
            attribute(attr, place, visit)?;
        }
        nodes(&mut function.node, visit)?;
    }
    Ok(())
}

fn graph<E>(
    graph: &mut GraphProto,
    visit: &mut dyn FnMut(Place<'_>, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in &mut graph.initializer {
        visit(Place::Initializer, tensor)?;
    }
    for tensor in &mut graph.sparse_initializer {
        sparse(tensor, Place::SparseInitializer, visit)?;
    }
    nodes(&mut graph.node, visit)
}

fn nodes<E>(
    nodes: &mut [NodeProto],
    visit: &mut dyn FnMut(Place<'_>, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for node in nodes {
        let name = match node.name.as_deref() {
            None | Some("") => node.op_type.as_deref(),
            name => name,
        };
        for attr in &mut node.attribute {
            let attr_name = attr.name.clone().unwrap_or_default();
            let place = Place::Attribute {
                node: name.unwrap_or_default(),
                attribute: &attr_name,
            };
            attribute(attr, place, visit)?;
        }
    }
    Ok(())
}

fn attribute<E>(
    attr: &mut AttributeProto,
    place: Place<'_>,
    visit: &mut dyn FnMut(Place<'_>, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in attr.t.iter_mut().chain(&mut attr.tensors) {
        visit(place, tensor)?;
    }
    for tensor in attr
        .sparse_tensor
        .iter_mut()
        .chain(&mut attr.sparse_tensors)
    {
        sparse(tensor, place, visit)?;
    }
    for inner in attr.g.iter_mut().chain(&mut attr.graphs) {
        graph(inner, visit)?;
    }
    Ok(())
}

fn sparse<E>(
    tensor: &mut SparseTensorProto,
    place: Place<'_>,
    visit: &mut dyn FnMut(Place<'_>, &mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for part in [&mut tensor.values, &mut tensor.indices] {
        part.iter_mut().try_for_each(|part| visit(place, part))?;
    }
    Ok(())
}
