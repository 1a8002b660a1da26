//! Into the flat form.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::names::{Renaming, own_names, rename, rename_node};
use super::{DOMAIN, is_marker};
use crate::graph::Names;
use crate::graph::functions::label;
use crate::graph::is_random;
use crate::graph::view::{captured_names, is_standard_domain};
use crate::onnx::node::{attr_g, int_attr, make_node, string_attr};
use crate::onnx::op;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_shape_proto::dimension::Value::DimValue;
use crate::onnx::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto,
};
use crate::onnx::{DataType, Model};

/// Flattens every If of the main graph that can be decided by shapes and boolean inputs, and those in its branches.
pub(super) fn flatten(model: &mut Model) {
    let graph = model.graph();
    if !graph.node.iter().any(is_if) {
        return;
    }
    let constants = graph.initializer.iter().map(|t| t.name().to_owned());
    let sparse = graph.sparse_initializer.iter();
    let sparse = sparse.filter_map(|t| Some(t.values.as_ref()?.name().to_owned()));
    let outputs = graph.node.iter().flat_map(|n| n.output.iter().cloned());
    let inputs = graph.input.iter().map(|i| i.name().to_owned());
    let constants: BTreeSet<String> = constants.chain(sparse).collect();
    let data = graph.input.iter().filter(|i| !is_switch(i));
    let scalars = graph.initializer.iter().filter(|t| t.dims.is_empty());
    let mut flat = Flat {
        scalars: scalars.map(|t| t.name().to_owned()).collect(),
        taken: inputs
            .chain(outputs)
            .chain(constants.iter().cloned())
            .collect(),
        data: data
            .map(|i| i.name().to_owned())
            .filter(|n| !constants.contains(n))
            .collect(),
        names: Names::new(model),
        reads: HashMap::new(),
        nodes: Vec::new(),
        initializers: Vec::new(),
        infos: Vec::new(),
    };
    let nodes = std::mem::take(&mut model.graph_mut().node);
    nodes.into_iter().for_each(|node| flat.add(node));
    let graph = model.graph_mut();
    graph.node = flat.nodes;
    graph.initializer.extend(flat.initializers);
    graph.value_info.extend(flat.infos);
}

fn is_if(node: &NodeProto) -> bool {
    node.op_type() == op::If && is_standard_domain(node)
}

/// Whether an input is one boolean.
fn is_switch(input: &ValueInfoProto) -> bool {
    let Some(type_proto::Value::TensorType(tensor)) =
        input.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return false;
    };
    let one = |dims: &[_]| match dims {
        [] => true,
        [crate::onnx::proto::tensor_shape_proto::Dimension { value, .. }] => {
            !matches!(value, Some(DimValue(n)) if *n != 1)
        }
        _ => false,
    };
    tensor.elem_type() == DataType::Bool as i32
        && tensor.shape.as_ref().is_some_and(|s| one(&s.dim))
}

struct Flat {
    /// Names that are values of the flat graph.
    taken: HashSet<String>,
    /// Inputs whose elements may differ between batches of equal shapes and switches.
    data: BTreeSet<String>,
    names: Names,
    /// What the node of a value reads, of its elements.
    reads: HashMap<String, Vec<String>>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    infos: Vec<ValueInfoProto>,
    /// The constants of the main graph that have no axes.
    scalars: Vec<String>,
}

impl Flat {
    fn add(&mut self, node: NodeProto) {
        if is_if(&node) && self.can_be_flat(&node) {
            self.branches(node);
            return;
        }
        self.note(&node);
        self.nodes.push(node);
    }

    /// Remembers what the outputs of a node depend on.
    fn note(&mut self, node: &NodeProto) {
        let of_shape = is_standard_domain(node) && matches!(node.op_type(), op::Shape | op::Size);
        let mut read: Vec<String> = Vec::new();
        if !of_shape {
            read.extend(node.input.iter().cloned());
            read.extend(captured_names(node).into_iter().map(str::to_owned));
        }
        if is_random(node) {
            // No two runs agree on it: no input either.
            read.extend(self.data.first().cloned());
        }
        for output in &node.output {
            self.reads.insert(output.clone(), read.clone());
        }
    }

    fn can_be_flat(&self, node: &NodeProto) -> bool {
        let branches = ["then_branch", "else_branch"].map(|name| attr_g(node, name));
        let simple = |g: &GraphProto| g.input.is_empty() && g.sparse_initializer.is_empty();
        let simple = branches.iter().all(|g| g.is_some_and(simple));
        let [condition] = node.input.as_slice() else {
            return false;
        };
        simple && node.attribute.len() == 2 && self.is_decidable(condition)
    }

    /// Whether a value follows from shapes, constants and switches.
    fn is_decidable(&self, name: &str) -> bool {
        let mut todo = vec![name];
        let mut seen = HashSet::new();
        while let Some(name) = todo.pop() {
            if self.data.contains(name) {
                return false;
            }
            if seen.insert(name) {
                todo.extend(
                    self.reads
                        .get(name)
                        .into_iter()
                        .flatten()
                        .map(String::as_str),
                );
            }
        }
        true
    }

    fn branches(&mut self, mut node: NodeProto) {
        let label = label(&node);
        for (number, attribute) in node.attribute.iter_mut().enumerate() {
            let branch = attribute.name().to_owned();
            // `can_be_flat` has seen both graphs.
            let Some(graph) = attribute.g.as_mut() else {
                continue;
            };
            let to = self.claim(graph, branch.trim_end_matches("_branch"));
            let defined: HashSet<String> = own_names(graph).into_iter().collect();
            for tensor in &mut graph.initializer {
                tensor.name.iter_mut().for_each(|n| rename(n, &to));
            }
            let constants: Vec<String> = graph
                .initializer
                .iter()
                .map(|t| t.name().to_owned())
                .collect();
            let lists = [
                strings("own", to.keys().map(String::as_str)),
                strings("flat", to.values().map(String::as_str)),
                strings("initializers", constants.iter().map(String::as_str)),
                strings("scalars", self.scalars.iter().map(String::as_str)),
                strings("infos", graph.value_info.iter().map(|i| i.name())),
                strings("domain", node.domain.iter().map(String::as_str)),
            ];
            let mut marker = make_node(&branch, &label, &[], &[], lists.to_vec());
            marker.attribute.push(int_attr("number", number as i64));
            marker.domain = Some(DOMAIN.to_owned());
            debug_assert!(is_marker(&marker));
            self.nodes.push(marker);
            self.initializers.append(&mut graph.initializer);
            let infos = graph
                .value_info
                .extract_if(.., |i| defined.contains(i.name()));
            let mut infos: Vec<ValueInfoProto> = infos.collect();
            for info in infos.iter_mut().chain(&mut graph.output) {
                info.name.iter_mut().for_each(|n| rename(n, &to));
            }
            self.infos.append(&mut infos);
            for mut inner in std::mem::take(&mut graph.node) {
                rename_node(&mut inner, &to);
                self.add(inner);
            }
        }
        node.domain = Some(DOMAIN.to_owned());
        self.note(&node);
        self.nodes.push(node);
    }

    /// Makes the names of a branch its own: sibling branches may use one name for two values.
    fn claim(&mut self, graph: &GraphProto, suffix: &str) -> Renaming {
        let mut to = Renaming::new();
        for name in own_names(graph) {
            if !self.taken.insert(name.clone()) {
                let flat = self.names.derive(&name, suffix);
                self.taken.insert(flat.clone());
                to.insert(name, flat);
            }
        }
        to
    }
}

fn strings<'a>(name: &str, values: impl Iterator<Item = &'a str>) -> AttributeProto {
    AttributeProto {
        strings: values
            .map(|v| bytes::Bytes::copy_from_slice(v.as_bytes()))
            .collect(),
        s: None,
        r#type: Some(AttributeType::Strings as i32),
        ..string_attr(name, "")
    }
}
