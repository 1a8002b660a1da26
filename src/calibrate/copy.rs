//! The calibration copy: what the engine gets instead of the user's model.
//!
//! The engine runs float32 at fixed shapes and supports fewer operators than there are exporters, so the copy is made
//! easier, and is thrown away afterwards:
//!
//! - every input has the batch's shape; `value_info` and output types, which may contradict it, are dropped;
//! - float16, bfloat16 and float64 become float32: inputs, constants, `Cast`, operator attributes;
//! - `Dropout` becomes `Identity` (exporters leave it in training mode between norm and Linear);
//! - `CumSum` of integers is computed in float32, exact up to 2²⁴;
//! - the boolean mask of an `Attention` becomes the float32 mask that is added to the scores;
//! - QuantizeLinear below 8 bits and DequantizeLinear by blocks are written in 8 bits and with Reshapes ([`narrow`]);
//! - constants are taken out and handed over separately, so that their bytes are copied once, into the engine.
//!
//! Names of values stay what they are: statistics are asked for by them.

use std::collections::{BTreeMap, BTreeSet};

use crate::calibrate::engine::EngineError;
use crate::calibrate::input::Shapes;
use crate::calibrate::narrow;
use crate::onnx::node::{attr_t, int_attr, make_node, subgraphs, tensor_attr};
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use crate::onnx::{DataType, Model, tensor};

/// A model prepared for the engine, without its constants.
pub(super) struct Copy<'m> {
    /// The graph; every value in `constants` is used in it but defined nowhere.
    pub proto: ModelProto,
    /// The constants of the main graph, from initializers and `Constant` nodes.
    pub constants: BTreeMap<&'m str, &'m TensorProto>,
    /// Inputs that index the rows of a constant table.
    pub index_limits: Vec<IndexLimit>,
}

/// An integer input that selects rows of a constant: `table[input]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexLimit {
    pub input: String,
    pub table: String,
    pub node: String,
    /// Rows of the table.
    pub rows: i64,
}

/// Makes the copy of `model` for inputs of the given `shapes`.
pub(super) fn calibration_copy<'m>(
    model: &'m Model,
    shapes: &Shapes,
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
    let initializer = graph
        .initializer
        .iter()
        .filter(|t| !is_numeric(t))
        .cloned()
        .collect();
    let known = Known {
        used: used_values(graph),
        boolean: boolean_values(graph),
        constants: constants_of(graph),
    };
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in &graph.node {
        match constant_value(node) {
            Some((name, value)) => {
                constants.insert(name, value);
            }
            None => convert_node(node, &known, &mut nodes)?,
        }
    }
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
        index_limits,
    })
}

/// True for tensors that are handed over as bytes; strings stay in the graph.
fn is_numeric(tensor: &TensorProto) -> bool {
    tensor::dtype(tensor).is_some_and(|dtype| dtype != DataType::String)
}

/// Output name and value of a `Constant` node that holds a tensor of numbers.
fn constant_value(node: &NodeProto) -> Option<(&str, &TensorProto)> {
    if node.op_type() != "Constant" || !is_standard(node.domain()) {
        return None;
    }
    let value = attr_t(node, "value").filter(|t| is_numeric(t))?;
    Some((node.output.first()?, value))
}

/// True for the domain of the standard operators, which is written in two ways.
pub(super) fn is_standard(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
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

/// Names of all values that something reads: nodes, subgraphs, graph outputs.
fn used_values(graph: &GraphProto) -> BTreeSet<&str> {
    let mut used: BTreeSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    for node in &graph.node {
        used.extend(node.input.iter().map(String::as_str));
        for subgraph in subgraphs(node) {
            used.extend(used_values(subgraph));
        }
    }
    used
}

/// What the conversion of a node has to know of the graph around it.
struct Known<'g> {
    used: BTreeSet<&'g str>,
    boolean: BTreeSet<&'g str>,
    constants: narrow::Constants<'g>,
}

/// The constants of a graph.
fn constants_of(graph: &GraphProto) -> narrow::Constants<'_> {
    let initializers = graph.initializer.iter().map(|t| (t.name(), t));
    let nodes = graph.node.iter().filter_map(constant_value);
    initializers.chain(nodes).collect()
}

/// Names of the boolean values that the file or the operators tell.
fn boolean_values(graph: &GraphProto) -> BTreeSet<&str> {
    let is_boolean = |info: &&ValueInfoProto| {
        matches!(
            info.r#type.as_ref().and_then(|t| t.value.as_ref()),
            Some(type_proto::Value::TensorType(t)) if t.elem_type() == DataType::Bool as i32
        )
    };
    let stated = graph.value_info.iter().chain(&graph.input);
    let mut boolean: BTreeSet<&str> = stated.filter(is_boolean).map(|info| info.name()).collect();
    let constants = graph.initializer.iter();
    let constants = constants.filter(|t| t.data_type() == DataType::Bool as i32);
    boolean.extend(constants.map(|t| t.name()));
    for node in graph.node.iter().filter(|n| is_standard(n.domain())) {
        let passes_on = || {
            node.input
                .first()
                .is_some_and(|x| boolean.contains(x.as_str()))
        };
        let result = match node.op_type() {
            "And" | "Or" | "Xor" | "Not" | "Equal" | "Less" | "LessOrEqual" | "Greater"
            | "GreaterOrEqual" => true,
            "Cast" => node
                .attribute
                .iter()
                .any(|a| a.name() == "to" && a.i() == DataType::Bool as i64),
            "Identity" | "Expand" | "Unsqueeze" | "Squeeze" | "Reshape" | "Transpose" | "Slice"
            | "Gather" | "GatherND" | "Concat" | "Tile" => passes_on(),
            _ => false,
        };
        if result && let Some(output) = node.output.first() {
            boolean.insert(output);
        }
    }
    boolean
}

/// Appends the engine's form of `node` to `out`.
fn convert_node(
    node: &NodeProto,
    known: &Known<'_>,
    out: &mut Vec<NodeProto>,
) -> Result<(), EngineError> {
    match node.op_type() {
        "Dropout" if is_standard(node.domain()) => {
            let mask = node.output.get(1).filter(|name| !name.is_empty());
            if mask.is_some_and(|name| known.used.contains(name.as_str())) {
                return Err(EngineError::Refused {
                    node: node_label(node),
                    op: "Dropout".into(),
                    reason: "its mask output is used".into(),
                });
            }
            out.push(NodeProto {
                op_type: Some("Identity".into()),
                input: node.input.iter().take(1).cloned().collect(),
                output: node.output.iter().take(1).cloned().collect(),
                attribute: vec![],
                ..node.clone()
            });
        }
        "CumSum" if is_standard(node.domain()) => convert_cumsum(node, out),
        "Attention"
            if is_standard(node.domain())
                && node
                    .input
                    .get(3)
                    .is_some_and(|m| known.boolean.contains(m.as_str())) =>
        {
            convert_attention_mask(node, out);
        }
        _ if is_standard(node.domain())
            && let Some(nodes) = narrow::rewritten(node, &known.constants) =>
        {
            out.extend(nodes);
        }
        _ => {
            let mut node = node.clone();
            for attr in &mut node.attribute {
                convert_attribute(attr)?;
            }
            out.push(node);
        }
    }
    Ok(())
}

/// `y = CumSum(x)` becomes `y = CastLike(CumSum(Cast(x, float32)), x)`.
fn convert_cumsum(node: &NodeProto, out: &mut Vec<NodeProto>) {
    let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
        out.push(node.clone());
        return;
    };
    let name = node_label(node);
    let (float, sum) = (format!("{y}/float32"), format!("{y}/sum"));
    out.push(make_node(
        "Cast",
        &format!("{name}/Cast"),
        &[x],
        &[&float],
        vec![int_attr("to", DataType::Float as i64)],
    ));
    let mut cumsum = node.clone();
    cumsum.input[0] = float;
    cumsum.output[0] = sum.clone();
    out.push(cumsum);
    out.push(make_node(
        "CastLike",
        &format!("{name}/CastLike"),
        &[&sum, x],
        &[y],
        vec![],
    ));
}

/// `Attention(q, k, v, mask)` becomes `Attention(q, k, v, Where(mask, 0, −10³⁰))`: what is masked out weighs nothing.
fn convert_attention_mask(node: &NodeProto, out: &mut Vec<NodeProto>) {
    let y = node.output.first().map_or("", String::as_str);
    let label = node_label(node);
    let constants = [("kept", 0.0), ("masked", -1e30)].map(|(what, x)| {
        let name = format!("{y}/{what}");
        let value = tensor::from_f32(&name, &[], &[x], DataType::Float);
        let label = format!("{label}/{what}");
        let value = vec![tensor_attr("value", value)];
        out.push(make_node("Constant", &label, &[], &[&name], value));
        name
    });
    let mask = format!("{y}/mask");
    out.push(make_node(
        "Where",
        &format!("{label}/Where"),
        &[&node.input[3], &constants[0], &constants[1]],
        &[&mask],
        vec![],
    ));
    let mut attention = node.clone();
    attention.input[3] = mask;
    out.push(attention);
}

/// Turns types and tensors of attributes into float32, and subgraphs into their copies.
fn convert_attribute(attr: &mut AttributeProto) -> Result<(), EngineError> {
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
    for graph in attr.g.iter_mut().chain(&mut attr.graphs) {
        convert_subgraph(graph)?;
    }
    Ok(())
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

fn convert_subgraph(graph: &mut GraphProto) -> Result<(), EngineError> {
    graph.value_info.clear();
    let mut nodes = Vec::with_capacity(graph.node.len());
    {
        let known = Known {
            used: used_values(graph),
            boolean: boolean_values(graph),
            constants: constants_of(graph),
        };
        for node in &graph.node {
            convert_node(node, &known, &mut nodes)?;
        }
    }
    graph.node = nodes;
    for tensor in &mut graph.initializer {
        convert_tensor(tensor)?;
    }
    for output in &mut graph.output {
        *output = untyped(output);
    }
    Ok(())
}

/// The node's name, or the name of its first output if it has none.
pub(super) fn node_label(node: &NodeProto) -> String {
    if !node.name().is_empty() {
        return node.name().to_owned();
    }
    node.output.first().cloned().unwrap_or_default()
}

/// Finds `Gather(table, ids)` on axis 0 where `table` is a constant and `ids` an input, possibly behind Cast or Identity.
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
            ("Cast" | "Identity", [x], [y]) => {
                if let Some(input) = origin.get(x.as_str()) {
                    origin.insert(y, input);
                }
            }
            ("Gather", [table, ids], _) => {
                let axis = crate::onnx::node::attr_i(node, "axis").unwrap_or(0);
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
