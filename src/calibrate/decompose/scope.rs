//! What the calibration copy knows of the values of a graph while it goes through the nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::is_standard;
use crate::onnx::node::{attr_i, attr_t, subgraphs};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto};
use crate::onnx::{DataType, tensor};

/// The values of a graph and of those around it: what is known of them before any is computed.
#[derive(Clone)]
pub(in crate::calibrate) struct Scope<'g> {
    #[allow(dead_code)]
    opset: i64,
    constants: BTreeMap<&'g str, &'g TensorProto>,
    types: BTreeMap<String, DataType>,
    shapes: BTreeMap<String, Vec<usize>>,
    used: BTreeSet<&'g str>,
}

// The lookups are for decompositions to come.
#[allow(dead_code)]
impl<'g> Scope<'g> {
    /// The scope of a main graph; `opset` is the version of the standard operators.
    pub(in crate::calibrate) fn new(graph: &'g GraphProto, opset: i64) -> Self {
        let mut scope = Scope {
            opset,
            constants: BTreeMap::new(),
            types: BTreeMap::new(),
            shapes: BTreeMap::new(),
            used: BTreeSet::new(),
        };
        scope.enter(graph);
        scope
    }

    /// The scope inside a subgraph of a node of this graph, whose names are known there too.
    pub(in crate::calibrate) fn inner(&self, graph: &'g GraphProto) -> Self {
        let mut scope = self.clone();
        scope.enter(graph);
        scope
    }

    fn enter(&mut self, graph: &'g GraphProto) {
        for info in graph.value_info.iter().chain(&graph.input) {
            if let Some(dtype) = stated_type(info) {
                self.types.insert(info.name().to_owned(), dtype);
            }
        }
        for tensor in &graph.initializer {
            self.know_constant(tensor.name(), tensor);
        }
        self.used.extend(used_values(graph));
    }

    fn know_constant(&mut self, name: &'g str, value: &'g TensorProto) {
        self.constants.insert(name, value);
        self.know_tensor(name, value);
    }

    fn know_tensor(&mut self, name: &str, value: &TensorProto) {
        if let (Some(dtype), Ok(shape)) = (tensor::dtype(value), tensor::shape(value)) {
            self.types.insert(name.to_owned(), engine_type(dtype));
            self.shapes.insert(name.to_owned(), shape);
        }
    }

    /// Tells the shape of a graph input.
    pub(in crate::calibrate) fn know_shape(&mut self, name: &str, shape: &[usize]) {
        self.shapes.insert(name.to_owned(), shape.to_vec());
    }

    /// Tells the value of a node of the file that is a constant.
    pub(in crate::calibrate) fn know_node(&mut self, name: &'g str, value: &'g TensorProto) {
        self.know_constant(name, value);
    }

    /// The version of the standard operators.
    pub(super) fn opset(&self) -> i64 {
        self.opset
    }

    /// The constant of the file called `name`, in its own type.
    pub(super) fn constant(&self, name: &str) -> Option<&'g TensorProto> {
        self.constants.get(name).copied()
    }

    /// The element type that the engine will see: every float is [`DataType::Float`].
    pub(super) fn dtype(&self, name: &str) -> Option<DataType> {
        self.types.get(name).copied()
    }

    /// The shape at these input shapes.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// Whether anything reads the value: a node, a subgraph, or the caller as a graph output.
    pub(super) fn used(&self, name: &str) -> bool {
        self.used.contains(name)
    }

    /// Takes in what a node of the copy says about its outputs.
    pub(super) fn learn(&mut self, node: &NodeProto) {
        if !is_standard(node.domain()) {
            return;
        }
        let Some(output) = node.output.first() else {
            return;
        };
        if let ("Constant", Some(value)) = (node.op_type(), attr_t(node, "value")) {
            self.know_tensor(output, value);
            return;
        }
        let input = |slot: usize| node.input.get(slot).and_then(|x| self.dtype(x));
        let dtype = match node.op_type() {
            "And" | "Or" | "Xor" | "Not" | "Equal" | "Less" | "LessOrEqual" | "Greater"
            | "GreaterOrEqual" => Some(DataType::Bool),
            "Cast" => attr_i(node, "to").and_then(|to| DataType::try_from(to as i32).ok()),
            "CastLike" => input(1),
            "Identity" | "Expand" | "Unsqueeze" | "Squeeze" | "Reshape" | "Transpose" | "Slice"
            | "Gather" | "GatherND" | "Concat" | "Tile" => input(0),
            "Where" => input(1),
            _ => None,
        };
        if let Some(dtype) = dtype {
            self.types.insert(output.clone(), dtype);
        }
    }
}

/// The type that values of type `dtype` have in the copy.
fn engine_type(dtype: DataType) -> DataType {
    if tensor::is_float(dtype) {
        DataType::Float
    } else {
        dtype
    }
}

fn stated_type(info: &ValueInfoProto) -> Option<DataType> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => DataType::try_from(t.elem_type()).ok().map(engine_type),
        _ => None,
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
