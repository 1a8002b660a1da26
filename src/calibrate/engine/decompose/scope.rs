//! What the calibration copy knows of the values of a graph while it goes through the nodes.
//!
//! The inputs of the copy have fixed shapes, so most shapes and every size computed from them are known before anything
//! runs ([`shapes`](super::shapes), [`values`](super::values)). What is not known is `None`, never a guess.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::ArrayD;

use super::{shapes, values};
use crate::calibrate::engine::node::is_standard;
use crate::onnx::node::subgraphs;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto};
use crate::onnx::{DataType, tensor};

/// Values of more elements are not computed ahead of time: sizes, indices and positions are small.
pub(super) const MAX_ELEMENTS: usize = 4096;

/// The elements of a small value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// int64, int32 or bool.
    Ints(ArrayD<i64>),
    Floats(ArrayD<f32>),
}

impl Value {
    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Value::Ints(a) => a.shape(),
            Value::Floats(a) => a.shape(),
        }
    }
}

/// What is known of one value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fact {
    /// The type that the engine will see: every float is [`DataType::Float`].
    pub dtype: Option<DataType>,
    /// The shape at these input shapes.
    pub shape: Option<Vec<usize>>,
    /// The elements, of a value that does not depend on the data of the inputs.
    pub value: Option<Value>,
    /// The elements of a sequence, as names of tensors.
    pub sequence: Option<Vec<String>>,
}

/// The values of a graph and of those around it: what is known of them before any is computed.
#[derive(Clone)]
pub(in crate::calibrate) struct Scope<'g> {
    #[allow(dead_code)]
    opset: i64,
    constants: BTreeMap<&'g str, &'g TensorProto>,
    facts: BTreeMap<String, Fact>,
    used: BTreeSet<&'g str>,
}

impl<'g> Scope<'g> {
    /// The scope of a main graph; `opset` is the version of the standard operators.
    pub(in crate::calibrate) fn new(graph: &'g GraphProto, opset: i64) -> Self {
        let mut scope = Scope {
            opset,
            constants: BTreeMap::new(),
            facts: BTreeMap::new(),
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
            let dtype = stated_type(info);
            self.know(
                info.name(),
                Fact {
                    dtype,
                    ..Fact::default()
                },
            );
        }
        for tensor in &graph.initializer {
            self.know_constant(tensor.name(), tensor);
        }
        self.used.extend(used_values(graph));
    }

    /// Tells the shape of a graph input.
    pub(in crate::calibrate) fn know_shape(&mut self, name: &str, shape: &[usize]) {
        let fact = self.facts.entry(name.to_owned()).or_default();
        fact.shape = Some(shape.to_vec());
    }

    /// Tells a constant of the file.
    pub(in crate::calibrate) fn know_constant(&mut self, name: &'g str, value: &'g TensorProto) {
        self.constants.insert(name, value);
        self.know(name, tensor_fact(value));
    }

    /// Adds to what is known of a value.
    pub(super) fn know(&mut self, name: &str, fact: Fact) {
        let known = self.facts.entry(name.to_owned()).or_default();
        known.dtype = fact.dtype.or(known.dtype);
        known.shape = fact.shape.or(known.shape.take());
        known.value = fact.value.or(known.value.take());
        known.sequence = fact.sequence.or(known.sequence.take());
    }

    /// The version of the standard operators.
    #[allow(dead_code)] // For operators whose form depends on it.
    pub(super) fn opset(&self) -> i64 {
        self.opset
    }

    /// The constant of the file called `name`, in its own type.
    #[allow(dead_code)] // For decompositions that fold weights.
    pub(super) fn constant(&self, name: &str) -> Option<&'g TensorProto> {
        self.constants.get(name).copied()
    }

    /// The element type that the engine will see: every float is [`DataType::Float`].
    pub(super) fn dtype(&self, name: &str) -> Option<DataType> {
        self.facts.get(name)?.dtype
    }

    /// The shape at these input shapes.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.facts.get(name)?.shape.as_deref()
    }

    /// The elements of a small value that is the same for all data.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.facts.get(name)?.value.as_ref()
    }

    /// The integers of a small value that is the same for all data, in row-major order.
    pub(super) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.value(name)? {
            Value::Ints(a) => Some(a.iter().copied().collect()),
            Value::Floats(_) => None,
        }
    }

    /// The tensors of a sequence.
    pub(super) fn sequence(&self, name: &str) -> Option<&[String]> {
        self.facts.get(name)?.sequence.as_deref()
    }

    /// Whether anything reads the value: a node, a subgraph, or the caller as a graph output.
    pub(super) fn used(&self, name: &str) -> bool {
        self.used.contains(name)
    }

    /// Takes in what a node of the copy says about its outputs. Returns the integers of all its outputs, with their
    /// types, if they are known, so that the node need not run.
    pub(super) fn learn(&mut self, node: &NodeProto) -> Option<Vec<(DataType, ArrayD<i64>)>> {
        let same_shape = node.domain() == "com.microsoft" && shapes::of_microsoft(node.op_type());
        if !is_standard(node.domain()) && !same_shape {
            return None;
        }
        let facts = shapes::facts(node, self);
        let mut known = Vec::new();
        for (name, mut fact) in node.output.iter().zip(facts) {
            if let Some(value) = &fact.value {
                fact.shape = Some(value.shape().to_vec());
            }
            if let (Some(dtype), Some(Value::Ints(ints))) = (fact.dtype, &fact.value) {
                known.push((dtype, ints.clone()));
            }
            self.know(name, fact);
        }
        (known.len() == node.output.len()).then_some(known)
    }
}

/// What is known of a constant.
pub(super) fn tensor_fact(constant: &TensorProto) -> Fact {
    let (Some(dtype), Ok(shape)) = (tensor::dtype(constant), tensor::shape(constant)) else {
        return Fact::default();
    };
    let dtype = engine_type(dtype);
    let small = shape.iter().product::<usize>() <= MAX_ELEMENTS;
    let value = match dtype {
        _ if !small => None,
        DataType::Int64 | DataType::Int32 | DataType::Bool => {
            tensor::int_array(constant).ok().map(Value::Ints)
        }
        DataType::Float if shape.iter().product::<usize>() <= values::MAX_FLOATS => {
            tensor::float_array(constant).ok().map(Value::Floats)
        }
        _ => None,
    };
    Fact {
        dtype: Some(dtype),
        shape: Some(shape),
        value,
        sequence: None,
    }
}

/// The type that values of type `dtype` have in the copy.
pub(super) fn engine_type(dtype: DataType) -> DataType {
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
