//! A read-only index over a graph.

use std::collections::HashMap;

use crate::onnx::Model;
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::onnx::proto::{
    GraphProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};

/// A node, as its position in `GraphProto.node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// A value (tensor) of the graph, in order of first mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub usize);

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Output number `output` of `node`.
    Node {
        /// The producer.
        node: NodeId,
        /// Which of its outputs; optional outputs left out still count.
        output: usize,
    },
    /// `GraphProto.initializer[_]`, and nothing that a caller could override.
    Initializer(usize),
    /// `GraphProto.input[_]`; a default value in an initializer does not make it constant.
    Input(usize),
    /// Defined outside of this graph, or nowhere.
    Unknown,
}

/// One reader of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Input number `input` of `node`.
    Node {
        /// The reader.
        node: NodeId,
        /// Which of its inputs.
        input: usize,
    },
    /// Read by name inside a subgraph of `node` (If, Loop, Scan), however deep.
    Captured {
        /// The node that owns the subgraph.
        node: NodeId,
    },
    /// `GraphProto.output[_]`.
    GraphOutput(usize),
}

struct Value<'m> {
    name: &'m str,
    source: Source,
    uses: Vec<Use>,
    info: Option<&'m ValueInfoProto>,
}

/// A read-only index over the main graph of a model. It borrows the model, so nothing can change beneath it.
pub struct View<'m> {
    model: &'m Model,
    graph: &'m GraphProto,
    values: Vec<Value<'m>>,
    by_name: HashMap<&'m str, ValueId>,
}

impl<'m> View<'m> {
    /// Indexes the main graph of `model`. Cost: one pass over nodes, initializers and value infos.
    pub fn new(model: &'m Model) -> Self {
        let graph = model.graph();
        let mut view = View {
            model,
            graph,
            values: Vec::new(),
            by_name: HashMap::new(),
        };
        // Before IR 4 every initializer had to be listed as an input too; there it is a constant all the same.
        let listed_inputs_are_constants = model.proto.ir_version.unwrap_or(0) < 4;
        for (i, init) in graph.initializer.iter().enumerate() {
            view.define(init.name.as_deref().unwrap_or(""), Source::Initializer(i));
        }
        for (i, input) in graph.input.iter().enumerate() {
            let name = input.name.as_deref().unwrap_or("");
            let id = view.intern(name);
            let is_initializer = matches!(view.values[id.0].source, Source::Initializer(_));
            if !(is_initializer && listed_inputs_are_constants) {
                view.values[id.0].source = Source::Input(i);
            }
            view.values[id.0].info = Some(input);
        }
        for (i, node) in graph.node.iter().enumerate() {
            for (output, name) in node
                .output
                .iter()
                .enumerate()
                .filter(|(_, n)| !n.is_empty())
            {
                view.define(
                    name,
                    Source::Node {
                        node: NodeId(i),
                        output,
                    },
                );
            }
        }
        for (i, node) in graph.node.iter().enumerate() {
            let node_id = NodeId(i);
            for (input, name) in node.input.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                view.record_use(
                    name,
                    Use::Node {
                        node: node_id,
                        input,
                    },
                );
            }
            for name in captured_names(node) {
                view.record_use(name, Use::Captured { node: node_id });
            }
        }
        for (i, output) in graph.output.iter().enumerate() {
            view.record_use(output.name.as_deref().unwrap_or(""), Use::GraphOutput(i));
        }
        for info in graph.value_info.iter().chain(&graph.output) {
            let id = view.intern(info.name.as_deref().unwrap_or(""));
            view.values[id.0].info.get_or_insert(info);
        }
        view
    }

    fn intern(&mut self, name: &'m str) -> ValueId {
        *self.by_name.entry(name).or_insert_with(|| {
            self.values.push(Value {
                name,
                source: Source::Unknown,
                uses: Vec::new(),
                info: None,
            });
            ValueId(self.values.len() - 1)
        })
    }

    fn define(&mut self, name: &'m str, source: Source) {
        let id = self.intern(name);
        self.values[id.0].source = source;
    }

    fn record_use(&mut self, name: &'m str, at: Use) {
        let id = self.intern(name);
        self.values[id.0].uses.push(at);
    }

    /// The model this view was made from.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// The graph this view indexes.
    pub fn graph(&self) -> &'m GraphProto {
        self.graph
    }

    /// Every node with its id, in graph order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &'m NodeProto)> {
        self.graph
            .node
            .iter()
            .enumerate()
            .map(|(i, n)| (NodeId(i), n))
    }

    /// The node behind an id.
    pub fn node(&self, id: NodeId) -> &'m NodeProto {
        &self.graph.node[id.0]
    }

    /// The operator of a node, `""` for operators outside of the standard domain unless `domain` is given.
    pub fn op(&self, id: NodeId) -> &'m str {
        let node = self.node(id);
        if is_standard_domain(node) {
            op_type(node)
        } else {
            ""
        }
    }

    /// The node's name, or its first output's name where it has none: the name used in messages and reports.
    pub fn node_name(&self, id: NodeId) -> &'m str {
        let node = self.node(id);
        match node.name.as_deref() {
            Some(name) if !name.is_empty() => name,
            _ => node
                .output
                .iter()
                .find(|o| !o.is_empty())
                .map_or("(unnamed)", |o| o.as_str()),
        }
    }

    /// The value of that name, if the graph mentions it.
    pub fn value(&self, name: &str) -> Option<ValueId> {
        if name.is_empty() {
            None
        } else {
            self.by_name.get(name).copied()
        }
    }

    /// The name of a value.
    pub fn name(&self, id: ValueId) -> &'m str {
        self.values[id.0].name
    }

    /// Where a value comes from.
    pub fn source(&self, id: ValueId) -> Source {
        self.values[id.0].source
    }

    /// The node that produces a value as its output number `output`, if there is one.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, usize)> {
        match self.source(id) {
            Source::Node { node, output } => Some((node, output)),
            _ => None,
        }
    }

    /// The producer of a value if it is the standard operator `op` and the value its first output.
    pub fn producer_is(&self, id: ValueId, op: &str) -> Option<NodeId> {
        self.producer(id)
            .filter(|&(node, output)| output == 0 && self.op(node) == op)
            .map(|(node, _)| node)
    }

    /// Every reader of a value: nodes in graph order, then captures, then graph outputs.
    pub fn uses(&self, id: ValueId) -> &[Use] {
        &self.values[id.0].uses
    }

    /// The only reader of a value, if it is read exactly once and by a node.
    pub fn only_reader(&self, id: ValueId) -> Option<(NodeId, usize)> {
        match self.uses(id) {
            [Use::Node { node, input }] => Some((*node, *input)),
            _ => None,
        }
    }

    /// Input number `slot` of a node, `None` where it is left out.
    pub fn input(&self, node: NodeId, slot: usize) -> Option<ValueId> {
        self.node(node)
            .input
            .get(slot)
            .and_then(|name| self.value(name))
    }

    /// Output number `slot` of a node, `None` where it is left out.
    pub fn output(&self, node: NodeId, slot: usize) -> Option<ValueId> {
        self.node(node)
            .output
            .get(slot)
            .and_then(|name| self.value(name))
    }

    /// The value whose elements a constant has in another order, shape or type: the initializer that the file stores
    /// once. A value that no such operator computes is its own.
    pub fn origin(&self, value: ValueId) -> ValueId {
        self.derivation(value).0
    }

    /// [`View::origin`], and in words what is done to it: constants with the same of both are the same array.
    pub fn derivation(&self, mut value: ValueId) -> (ValueId, String) {
        const KEEP: [&str; 5] = [
            op::Cast,
            op::Transpose,
            op::Reshape,
            op::Squeeze,
            op::Unsqueeze,
        ];
        let mut steps = String::new();
        while let Some((node, 0)) = self.producer(value)
            && let Some(input) = self.input(node, 0)
        {
            let (op, proto) = (self.op(node), self.node(node));
            if KEEP.contains(&op) {
                let others = &proto.input[1..];
                steps += &format!("{op} {:?} {others:?}; ", proto.attribute);
            } else if op != op::Identity {
                break;
            }
            value = input;
        }
        (value, steps)
    }

    /// The initializer behind a value.
    pub fn initializer(&self, id: ValueId) -> Option<&'m TensorProto> {
        match self.source(id) {
            Source::Initializer(i) => Some(&self.graph.initializer[i]),
            _ => None,
        }
    }

    /// The tensor that a value is as it is stored: an initializer, or what a Constant node holds.
    pub fn tensor(&self, id: ValueId) -> Option<&'m TensorProto> {
        let mut value = id;
        while let Some(node) = self.producer_is(value, op::Identity) {
            value = self.input(node, 0)?;
        }
        let held = || {
            crate::onnx::node::attr_t(self.node(self.producer_is(value, op::Constant)?), "value")
        };
        self.initializer(value).or_else(held)
    }

    /// The shape the file states for a value: `None` for an unknown rank, and per axis `None` for an unknown
    /// or symbolic length. Constants state theirs; everything else needs a value info.
    pub fn shape(&self, id: ValueId) -> Option<Vec<Option<usize>>> {
        if let Some(tensor) = self.initializer(id) {
            return Some(
                tensor
                    .dims
                    .iter()
                    .map(|&d| usize::try_from(d).ok())
                    .collect(),
            );
        }
        let info = self.values[id.0].info?;
        let tensor = tensor_type(info.r#type.as_ref()?)?;
        let dims = &tensor.shape.as_ref()?.dim;
        Some(
            dims.iter()
                .map(|d| match d.value {
                    Some(tensor_shape_proto::dimension::Value::DimValue(v)) => {
                        usize::try_from(v).ok()
                    }
                    _ => None,
                })
                .collect(),
        )
    }

    /// The element type (a `TensorProto.DataType` number) the file states for a value.
    pub fn elem_type(&self, id: ValueId) -> Option<i32> {
        match self.initializer(id) {
            Some(tensor) => tensor.data_type,
            None => tensor_type(self.values[id.0].info?.r#type.as_ref()?)?.elem_type,
        }
    }
}

pub(in crate::graph) fn tensor_type(ty: &TypeProto) -> Option<&type_proto::Tensor> {
    match ty.value.as_ref()? {
        type_proto::Value::TensorType(t) => Some(t),
        _ => None,
    }
}

/// `true` for the operators of ONNX itself (domain `""`, also written `"ai.onnx"`).
pub(in crate::graph) fn is_standard_domain(node: &NodeProto) -> bool {
    matches!(node.domain.as_deref(), None | Some("") | Some("ai.onnx"))
}

fn op_type(node: &NodeProto) -> &str {
    node.op_type.as_deref().unwrap_or("")
}

/// The names that `node` reads, those that its subgraphs read from outside among them.
pub fn names_read(node: &NodeProto) -> impl Iterator<Item = &str> {
    let inputs = node.input.iter().map(String::as_str);
    inputs
        .filter(|name| !name.is_empty())
        .chain(captured_names(node))
}

/// The names that the subgraphs of `node` read from outside, each once, in order of first mention.
pub(in crate::graph) fn captured_names(node: &NodeProto) -> Vec<&str> {
    let mut captured = Vec::new();
    for graph in subgraphs(node) {
        collect_captures(graph, &mut Vec::new(), &mut captured);
    }
    captured
}

/// Adds to `captured` what `graph` reads and neither it nor an enclosing graph in `scopes` defines.
fn collect_captures<'m>(
    graph: &'m GraphProto,
    scopes: &mut Vec<std::collections::HashSet<&'m str>>,
    captured: &mut Vec<&'m str>,
) {
    let defined = graph
        .input
        .iter()
        .filter_map(|i| i.name.as_deref())
        .chain(graph.initializer.iter().filter_map(|t| t.name.as_deref()))
        .chain(
            graph
                .sparse_initializer
                .iter()
                .filter_map(|t| t.values.as_ref()?.name.as_deref()),
        )
        .chain(
            graph
                .node
                .iter()
                .flat_map(|n| n.output.iter().map(String::as_str)),
        )
        .collect();
    scopes.push(defined);
    let outputs = graph.output.iter().filter_map(|o| o.name.as_deref());
    for name in graph
        .node
        .iter()
        .flat_map(|n| n.input.iter().map(String::as_str))
        .chain(outputs)
    {
        let inside = name.is_empty() || scopes.iter().any(|s| s.contains(name));
        if !inside && !captured.contains(&name) {
            captured.push(name);
        }
    }
    for inner in graph.node.iter().flat_map(subgraphs) {
        collect_captures(inner, scopes, captured);
    }
    scopes.pop();
}
