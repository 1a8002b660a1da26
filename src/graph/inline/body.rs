//! One call's copy of a function's body: parameters put in, names made unique.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::Names;
use crate::graph::functions::label;
use crate::onnx::node::make_node;
use crate::onnx::op;
use crate::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, StringStringEntryProto, ValueInfoProto,
};

/// What a call becomes.
pub(super) struct Body {
    pub nodes: Vec<NodeProto>,
    /// What the function says of its inner values.
    pub infos: Vec<ValueInfoProto>,
}

/// Why a call does not fit its function, or the function is none.
pub(super) fn problem(function: &FunctionProto, call: &NodeProto) -> Option<String> {
    let (inputs, outputs) = (function.input.len(), function.output.len());
    if call.input.len() > inputs || call.output.len() > outputs {
        return Some(format!(
            "it has {} inputs and {} outputs where the function has {inputs} and {outputs}",
            call.input.len(),
            call.output.len(),
        ));
    }
    let mut defined: BTreeSet<&str> = function.input.iter().map(String::as_str).collect();
    for node in &function.node {
        let mut read = node.input.iter().map(String::as_str);
        let captured = crate::graph::view::captured_names(node);
        let undefined = |n: &&str| !n.is_empty() && !defined.contains(n);
        if let Some(name) = read
            .find(undefined)
            .or(captured.into_iter().find(undefined))
        {
            return Some(format!(
                "its body reads `{name}`, which nothing before defines"
            ));
        }
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            if !defined.insert(name) {
                return Some(format!("its body defines `{name}` twice"));
            }
        }
    }
    if let Some(name) = function
        .output
        .iter()
        .find(|n| !defined.contains(n.as_str()))
    {
        return Some(format!("nothing in its body defines its output `{name}`"));
    }
    // An input that the call leaves out can be left out of a node, but not handed on.
    let left_out = |name: &str| {
        let slot = function.input.iter().position(|i| i == name);
        slot.is_some_and(|s| call.input.get(s).is_none_or(String::is_empty))
    };
    let wanted = function.output.iter().zip(&call.output);
    let captured = function
        .node
        .iter()
        .flat_map(crate::onnx::node::subgraphs)
        .flat_map(|g| g.output.iter().map(|o| o.name()));
    let mut handed_on = wanted
        .filter(|(_, actual)| !actual.is_empty())
        .map(|(o, _)| o.as_str())
        .chain(captured);
    handed_on
        .find(|name| left_out(name))
        .map(|name| format!("its body hands on the input `{name}`, which the call leaves out"))
}

/// The nodes of `function` for `call`; [`problem`] has found none.
pub(super) fn instantiate(function: &FunctionProto, call: &NodeProto, names: &mut Names) -> Body {
    let mut scope = BTreeMap::new();
    for (slot, formal) in function.input.iter().enumerate() {
        let actual = call.input.get(slot).cloned().unwrap_or_default();
        scope.insert(formal.clone(), actual);
    }
    // An output that is an input as well, or given twice, needs a node of its own.
    let mut copies = Vec::new();
    for (formal, actual) in function.output.iter().zip(&call.output) {
        if actual.is_empty() {
            continue;
        }
        if scope.contains_key(formal) {
            copies.push((formal, actual));
        } else {
            scope.insert(formal.clone(), actual.clone());
        }
    }
    let mut instance = Instance {
        base: label(call),
        function,
        call,
        names,
    };
    instance.define(&mut scope, outputs(&function.node));
    let mut nodes: Vec<NodeProto> = function
        .node
        .iter()
        .map(|node| instance.node(node, &scope))
        .collect();
    for (formal, actual) in copies {
        let name = instance.names.derive(&instance.base, formal);
        nodes.push(make_node(
            op::Identity,
            &name,
            &[&scope[formal]],
            &[actual],
            vec![],
        ));
    }
    for node in &mut nodes {
        inherit(&mut node.metadata_props, &call.metadata_props);
        if node.doc_string().is_empty() {
            node.doc_string.clone_from(&call.doc_string);
        }
    }
    let infos = function.value_info.iter().filter_map(|info| {
        let name = scope.get(info.name()).filter(|n| !n.is_empty())?.clone();
        Some(ValueInfoProto {
            name: Some(name),
            ..info.clone()
        })
    });
    Body {
        nodes,
        infos: infos.collect(),
    }
}

/// Entries of the call that the node has no own for.
fn inherit(own: &mut Vec<StringStringEntryProto>, call: &[StringStringEntryProto]) {
    for entry in call {
        if !own.iter().any(|e| e.key == entry.key) {
            own.push(entry.clone());
        }
    }
}

fn outputs(nodes: &[NodeProto]) -> impl Iterator<Item = &str> {
    nodes
        .iter()
        .flat_map(|n| n.output.iter().map(String::as_str))
}

/// The new name of each name of the function; `""` for an input that the call leaves out.
type Scope = BTreeMap<String, String>;

struct Instance<'a> {
    /// What new names derive from.
    base: String,
    function: &'a FunctionProto,
    call: &'a NodeProto,
    names: &'a mut Names,
}

impl Instance<'_> {
    /// Gives names that are new in this scope one that is new in the model.
    fn define<'n>(&mut self, scope: &mut Scope, defined: impl Iterator<Item = &'n str>) {
        for name in defined.filter(|n| !n.is_empty()) {
            if !scope.contains_key(name) {
                let new = self.names.derive(&self.base, name);
                scope.insert(name.to_owned(), new);
            }
        }
    }

    fn node(&mut self, node: &NodeProto, scope: &Scope) -> NodeProto {
        let mut new = node.clone();
        if !new.name().is_empty() {
            new.name = Some(self.names.derive(&self.base, node.name()));
        }
        let values = new.input.iter_mut().chain(&mut new.output);
        values.for_each(|name| rename(name, scope));
        for spec in new
            .device_configurations
            .iter_mut()
            .flat_map(|d| &mut d.sharding_spec)
        {
            spec.tensor_name.iter_mut().for_each(|n| rename(n, scope));
        }
        new.attribute = node
            .attribute
            .iter()
            .filter_map(|attribute| self.attribute(attribute, scope))
            .collect();
        new
    }

    /// An attribute with the parameter it refers to; `None` if neither call nor function give that one.
    fn attribute(&mut self, attribute: &AttributeProto, scope: &Scope) -> Option<AttributeProto> {
        let parameter = attribute.ref_attr_name();
        if parameter.is_empty() {
            let mut new = attribute.clone();
            for graph in new.g.iter_mut().chain(&mut new.graphs) {
                *graph = self.graph(graph, scope);
            }
            return Some(new);
        }
        // The graph of a parameter belongs to the caller, and so do the names in it.
        let given = self.call.attribute.iter();
        let value = given
            .chain(&self.function.attribute_proto)
            .find(|a| a.name() == parameter)?;
        Some(AttributeProto {
            name: attribute.name.clone(),
            doc_string: attribute.doc_string.clone(),
            ..value.clone()
        })
    }

    fn graph(&mut self, graph: &GraphProto, outer: &Scope) -> GraphProto {
        let mut new = graph.clone();
        let mut scope = outer.clone();
        let inputs = graph.input.iter().map(|i| i.name());
        let tensors = graph.initializer.iter().map(|t| t.name());
        let sparse = graph.sparse_initializer.iter();
        let sparse = sparse.filter_map(|t| Some(t.values.as_ref()?.name()));
        let own: Vec<&str> = inputs
            .chain(tensors)
            .chain(sparse)
            .chain(outputs(&graph.node))
            .collect();
        // A name of its own hides the one outside.
        own.iter().for_each(|name| {
            scope.remove(*name);
        });
        self.define(&mut scope, own.into_iter());
        let infos = new
            .input
            .iter_mut()
            .chain(&mut new.output)
            .chain(&mut new.value_info);
        infos
            .flat_map(|i| &mut i.name)
            .for_each(|name| rename(name, &scope));
        let tensors = new.initializer.iter_mut().chain(
            new.sparse_initializer
                .iter_mut()
                .filter_map(|t| t.values.as_mut()),
        );
        tensors
            .flat_map(|t| &mut t.name)
            .for_each(|name| rename(name, &scope));
        for annotation in &mut new.quantization_annotation {
            let parameters = annotation.quant_parameter_tensor_names.iter_mut();
            annotation
                .tensor_name
                .iter_mut()
                .chain(parameters.flat_map(|p| &mut p.value))
                .for_each(|name| rename(name, &scope));
        }
        new.node = graph
            .node
            .iter()
            .map(|node| self.node(node, &scope))
            .collect();
        new
    }
}

fn rename(name: &mut String, scope: &Scope) {
    if let Some(new) = scope.get(name.as_str()) {
        name.clone_from(new);
    }
}
