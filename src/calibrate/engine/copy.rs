//! The calibration copy: what the engine gets instead of the user's model.
//!
//! The engine runs float32 at fixed shapes and supports fewer operators than there are exporters, so the copy is made
//! easier, and is thrown away afterwards:
//!
//! - every input has the batch's shape; `value_info` and output types, which may contradict it, are dropped;
//! - float16, bfloat16 and float64 become float32: inputs, constants, `Cast`, operator attributes;
//! - operators that the engine lacks are written with others (`decompose/`);
//! - constants are taken out and handed over separately, so that their bytes are copied once, into the engine.
//!
//! Names of values stay what they are: statistics are asked for by them.

use std::collections::{BTreeMap, BTreeSet};

use crate::calibrate::data::input::Shapes;
use crate::calibrate::engine::check;
use crate::calibrate::engine::decompose::{Scope, decompose};
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::node::{is_standard, node_label};
use crate::graph::axes::Axes;
use crate::graph::infer::{Fact, Facts};
use crate::graph::work::{Product, products};
use crate::graph::{Blocked, Names};
use crate::onnx::node::attr_t;
use crate::onnx::op;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use crate::onnx::{DataType, Model, tensor};

/// A model prepared for the engine, without its constants.
pub(in crate::calibrate) struct Copy<'m> {
    /// The graph; every value in `constants` is used in it but defined nowhere.
    pub proto: ModelProto,
    /// The constants of the main graph, from initializers and `Constant` nodes.
    pub constants: BTreeMap<&'m str, &'m TensorProto>,
    /// Weights in blocks, used like the constants: they become floats when they are handed over.
    pub blocked: BTreeMap<String, Blocked<'m>>,
    /// Inputs that index the rows of a constant table.
    pub index_limits: Vec<IndexLimit>,
    /// What is known of its values.
    facts: Facts,
}

impl Copy<'_> {
    /// What its products multiply, or the names of values whose shapes must be known for that.
    pub(super) fn products(&self, more: &Known) -> Result<Vec<Product>, Vec<String>> {
        let mut facts = self.facts.clone();
        for (name, fact) in more {
            facts.know(name, fact.clone());
        }
        let stored =
            |graph: &GraphProto, name: &str| graph.initializer.iter().any(|t| t.name() == name);
        let products = self.proto.graph.as_ref().map(|graph| {
            let constant = |name: &str| self.has_constant(name) || stored(graph, name);
            products(graph.node.iter(), &facts, constant)
        });
        products.unwrap_or(Ok(Vec::new()))
    }

    /// Whether a value is handed over as a constant.
    fn has_constant(&self, name: &str) -> bool {
        self.constants.contains_key(name) || self.blocked.contains_key(name)
    }

    /// Where the axes of its values come from. `by_row` are the inputs that have one row for every row of the data.
    pub(super) fn axes(&self, shapes: &Shapes, by_row: &BTreeSet<&str>) -> Axes {
        let mut axes = Axes::new();
        for (name, shape) in shapes {
            axes.input(name, shape, by_row.contains(name.as_str()));
        }
        self.constants.keys().for_each(|name| axes.constant(name));
        self.blocked.keys().for_each(|name| axes.constant(name));
        if let Some(graph) = &self.proto.graph {
            let rest = graph.initializer.iter();
            rest.for_each(|tensor| axes.constant(tensor.name()));
            axes.follow(graph.node.iter(), &self.facts);
        }
        axes
    }
}

/// An integer input that selects rows of a constant: `table[input]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::calibrate) struct IndexLimit {
    pub input: String,
    pub table: String,
    pub node: String,
    /// Rows of the table.
    pub rows: i64,
}

/// What is known of values beside the shapes of the inputs, by name.
pub(in crate::calibrate) type Known = BTreeMap<String, Fact>;

/// Makes the copy of `model` for inputs of the given `shapes`, with what else is `known`.
pub(in crate::calibrate) fn calibration_copy<'m>(
    model: &'m Model,
    shapes: &Shapes,
    known: &Known,
) -> Result<Copy<'m>, EngineError> {
    let graph = model.graph();
    if let Some(sparse) = graph.sparse_initializer.first() {
        return Err(EngineError::Refused {
            node: sparse.values.as_ref().map_or("", |v| v.name()).to_owned(),
            op: "sparse initializer".into(),
            reason: "sparse constants are not supported".into(),
        });
    }
    let mut constants: BTreeMap<&str, &TensorProto> = graph
        .initializer
        .iter()
        .filter(|t| is_numeric(t))
        .map(|t| (t.name(), t))
        .collect();
    let mut initializer: Vec<TensorProto> = graph
        .initializer
        .iter()
        .filter(|t| !is_numeric(t))
        .cloned()
        .collect();
    let mut names = Names::new(model);
    let mut scope = Scope::new(graph, model.opset());
    for (name, shape) in shapes {
        scope.know_shape(name, shape);
    }
    scope.expect(known);
    let mut nodes = Vec::with_capacity(graph.node.len());
    let mut weights = Dequantized::default();
    for node in &graph.node {
        match constant_value(node) {
            Some((name, value)) => {
                constants.insert(name, value);
                scope.know_constant(name, value);
            }
            None => match weights.again(node, &constants) {
                Some(identity) => nodes.push(identity),
                None => {
                    // Not in branches: one that is not taken may be nonsense at these shapes.
                    let standard = is_standard(node.domain());
                    if let Some(reason) = check::problem(node, &scope).filter(|_| standard) {
                        let shapes = shapes_text(shapes);
                        return Err(EngineError::Plan { shapes, reason });
                    }
                    let first = nodes.len();
                    nodes.extend(convert_node(node, &mut scope, &mut names)?);
                    weights.rename_inputs(&mut nodes[first..]);
                }
            },
        }
    }
    let blocked = scope.take_stored();
    let initializers = initializer.iter().map(|tensor| tensor.name().to_owned());
    let mut sources: BTreeSet<String> = initializers.chain(shapes.keys().cloned()).collect();
    sources.extend(constants.keys().map(|name| (*name).to_owned()));
    sources.extend(blocked.keys().cloned());
    tell_apart(&mut nodes, sources, &mut names);
    let mut inputs = Vec::new();
    for input in &graph.input {
        // Before IR version 4 initializers were listed as inputs too.
        if graph.initializer.iter().any(|t| t.name() == input.name()) {
            continue;
        }
        let shape = shapes
            .get(input.name())
            .ok_or_else(|| EngineError::MissingInput {
                name: input.name().to_owned(),
            })?;
        inputs.push(fixed_input(input, shape));
    }
    let index_limits = index_limits(graph, &constants);
    for output in &graph.output {
        // No node of the copy tells the engine of it.
        if let Some(value) = constants.remove(output.name()) {
            let mut value = TensorProto {
                name: output.name.clone(),
                ..value.clone()
            };
            convert_tensor(&mut value)?;
            initializer.push(value);
        }
    }
    let proto = ModelProto {
        ir_version: model.proto.ir_version,
        opset_import: model.proto.opset_import.clone(),
        graph: Some(GraphProto {
            name: graph.name.clone(),
            node: nodes,
            initializer,
            input: inputs,
            output: graph.output.iter().map(untyped).collect(),
            ..Default::default()
        }),
        ..Default::default()
    };
    Ok(Copy {
        proto,
        constants,
        blocked,
        index_limits,
        facts: scope.into_facts(),
    })
}

/// Gives nodes of one name a name each, and those that are called as a constant or an input (`sources`) another one: ONNX lets
/// them share it, the engine does not, which calls a node without a name as its first output.
fn tell_apart(nodes: &mut [NodeProto], sources: BTreeSet<String>, names: &mut Names) {
    let mut seen = sources;
    let (named, unnamed): (Vec<_>, Vec<_>) =
        nodes.iter_mut().partition(|node| !node.name().is_empty());
    seen.extend(
        unnamed
            .iter()
            .filter_map(|node| node.output.first().cloned()),
    );
    for node in named {
        if !seen.insert(node.name().to_owned()) {
            node.name = Some(names.unique(node.name()));
        }
    }
}

/// Constants that are dequantized by more than one node, as weights that Linears share are: the engine computes one of them
/// at its leisure, and that once for each node.
#[derive(Default)]
struct Dequantized<'m> {
    /// What the nodes read, and the first of them.
    nodes: Vec<&'m NodeProto>,
    /// Output of a later node → output of the first that is the same.
    same: BTreeMap<&'m str, &'m str>,
}

impl<'m> Dequantized<'m> {
    /// The node as an Identity, if an earlier one gives the same.
    fn again(
        &mut self,
        node: &'m NodeProto,
        constants: &BTreeMap<&str, &TensorProto>,
    ) -> Option<NodeProto> {
        let known = |input: &String| input.is_empty() || constants.contains_key(input.as_str());
        if node.op_type() != op::DequantizeLinear || !node.input.iter().all(known) {
            return None;
        }
        let [output] = node.output.as_slice() else {
            return None;
        };
        let alike = |first: &&&NodeProto| {
            let (a, b) = (*first, node);
            (&a.input, &a.attribute, a.domain()) == (&b.input, &b.attribute, b.domain())
        };
        let Some(first) = self.nodes.iter().find(alike) else {
            self.nodes.push(node);
            return None;
        };
        self.same.insert(output, &first.output[0]);
        // The value keeps its name for subgraphs and taps; the engine drops it where nobody asks.
        Some(NodeProto {
            op_type: Some(op::Identity.into()),
            domain: None,
            input: vec![first.output[0].clone()],
            attribute: Vec::new(),
            ..node.clone()
        })
    }

    /// Lets nodes of the main graph read the first of the same.
    fn rename_inputs(&self, nodes: &mut [NodeProto]) {
        for input in nodes.iter_mut().flat_map(|node| &mut node.input) {
            if let Some(first) = self.same.get(input.as_str()) {
                *input = (*first).to_owned();
            }
        }
    }
}

/// True for tensors that are handed over as bytes; strings stay in the graph.
fn is_numeric(tensor: &TensorProto) -> bool {
    tensor::dtype(tensor).is_some_and(|dtype| dtype != DataType::String)
}

/// Output name and value of a `Constant` node that holds a tensor of numbers.
fn constant_value(node: &NodeProto) -> Option<(&str, &TensorProto)> {
    if node.op_type() != op::Constant || !is_standard(node.domain()) {
        return None;
    }
    let value = attr_t(node, "value").filter(|t| is_numeric(t))?;
    Some((node.output.first()?, value))
}

fn is_narrow_or_wide_float(code: i64) -> bool {
    [DataType::Float16, DataType::Bfloat16, DataType::Double]
        .iter()
        .any(|dtype| *dtype as i64 == code)
}

fn untyped(info: &ValueInfoProto) -> ValueInfoProto {
    ValueInfoProto {
        name: info.name.clone(),
        ..Default::default()
    }
}

/// An input of a subgraph, whose shape is not known.
fn float_input(input: &ValueInfoProto) -> ValueInfoProto {
    let mut input = input.clone();
    if let Some(type_proto::Value::TensorType(tensor)) =
        input.r#type.as_mut().and_then(|t| t.value.as_mut())
        && is_narrow_or_wide_float(tensor.elem_type() as i64)
    {
        tensor.elem_type = Some(DataType::Float as i32);
    }
    input
}

fn fixed_input(input: &ValueInfoProto, shape: &[usize]) -> ValueInfoProto {
    let code = match input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor.elem_type(),
        _ => 0,
    };
    let code = if is_narrow_or_wide_float(code as i64) {
        DataType::Float as i32
    } else {
        code
    };
    let dim = shape
        .iter()
        .map(|n| Dimension {
            denotation: None,
            value: Some(dimension::Value::DimValue(*n as i64)),
        })
        .collect();
    ValueInfoProto {
        name: input.name.clone(),
        r#type: Some(TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(code),
                shape: Some(TensorShapeProto { dim }),
            })),
        }),
        ..Default::default()
    }
}

/// The engine's form of `node`.
fn convert_node<'g>(
    node: &'g NodeProto,
    scope: &mut Scope<'g>,
    names: &mut Names,
) -> Result<Vec<NodeProto>, EngineError> {
    let mut copy = NodeProto {
        attribute: Vec::with_capacity(node.attribute.len()),
        input: node.input.clone(),
        output: node.output.clone(),
        name: node.name.clone(),
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        overload: node.overload.clone(),
        ..Default::default()
    };
    for attr in &node.attribute {
        copy.attribute.push(convert_attribute(attr, scope, names)?);
    }
    decompose(copy, scope, names)
}

/// Turns types and tensors of attributes into float32, and subgraphs into their copies.
fn convert_attribute<'g>(
    original: &'g AttributeProto,
    scope: &Scope<'g>,
    names: &mut Names,
) -> Result<AttributeProto, EngineError> {
    let mut attr = AttributeProto {
        g: None,
        graphs: Vec::new(),
        ..original.clone()
    };
    let names_a_type = matches!(
        attr.name(),
        "to" | "dtype" | "output_dtype" | "output_datatype" | "stash_type"
    );
    if names_a_type && is_narrow_or_wide_float(attr.i()) {
        attr.i = Some(DataType::Float as i64);
    }
    for tensor in attr.t.iter_mut().chain(&mut attr.tensors) {
        convert_tensor(tensor)?;
    }
    if let Some(graph) = &original.g {
        attr.g = Some(convert_subgraph(graph, scope, names)?);
    }
    for graph in &original.graphs {
        attr.graphs.push(convert_subgraph(graph, scope, names)?);
    }
    Ok(attr)
}

fn convert_tensor(tensor: &mut TensorProto) -> Result<(), EngineError> {
    if !is_narrow_or_wide_float(tensor.data_type() as i64) {
        return Ok(());
    }
    let array = tensor::float_array(tensor).map_err(|e| EngineError::Constant {
        name: tensor.name().to_owned(),
        reason: e.to_string(),
    })?;
    let data: Vec<f32> = array.iter().copied().collect();
    *tensor = tensor::from_f32(tensor.name(), array.shape(), &data, DataType::Float);
    Ok(())
}

fn convert_subgraph<'g>(
    graph: &'g GraphProto,
    outer: &Scope<'g>,
    names: &mut Names,
) -> Result<GraphProto, EngineError> {
    let mut scope = outer.inner(graph);
    let mut copy = GraphProto {
        name: graph.name.clone(),
        initializer: graph.initializer.clone(),
        input: graph.input.iter().map(float_input).collect(),
        output: graph.output.iter().map(untyped).collect(),
        ..Default::default()
    };
    for node in &graph.node {
        copy.node.extend(convert_node(node, &mut scope, names)?);
    }
    for tensor in &mut copy.initializer {
        convert_tensor(tensor)?;
    }
    Ok(copy)
}

/// Finds `Gather(table, ids)` and `GatherBlockQuantized(table, ids, …)` on axis 0 where `table` is a constant and `ids` an input,
/// possibly behind Cast or Identity.
fn index_limits(graph: &GraphProto, constants: &BTreeMap<&str, &TensorProto>) -> Vec<IndexLimit> {
    let mut origin: BTreeMap<&str, &str> = graph
        .input
        .iter()
        .filter(|input| !constants.contains_key(input.name()))
        .map(|input| (input.name(), input.name()))
        .collect();
    let mut limits = Vec::new();
    for node in &graph.node {
        match (
            node.op_type(),
            node.input.as_slice(),
            node.output.as_slice(),
        ) {
            (op::Cast | op::Identity, [x], [y]) => {
                if let Some(input) = origin.get(x.as_str()) {
                    origin.insert(y, input);
                }
            }
            (op::Gather | op::GatherBlockQuantized, [table, ids, ..], _) => {
                let named = match node.op_type() {
                    op::Gather => "axis",
                    _ => "gather_axis",
                };
                let axis = crate::onnx::node::attr_i(node, named).unwrap_or(0);
                let (Some(input), Some(rows)) = (
                    origin.get(ids.as_str()).filter(|_| axis == 0),
                    constants.get(table.as_str()).and_then(|t| t.dims.first()),
                ) else {
                    continue;
                };
                limits.push(IndexLimit {
                    input: (*input).to_owned(),
                    table: table.clone(),
                    node: node_label(node),
                    rows: *rows,
                });
            }
            _ => {}
        }
    }
    limits
}

/// The shapes of a run, for messages.
pub(super) fn shapes_text(shapes: &Shapes) -> String {
    let text = |(name, shape): (&String, &Vec<usize>)| format!("{name} {shape:?}");
    shapes.iter().map(text).collect::<Vec<_>>().join(", ")
}
