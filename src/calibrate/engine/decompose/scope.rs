//! What the calibration copy knows of the values of a graph while it goes through the nodes.
//!
//! The inputs of the copy have fixed shapes, so most shapes and every size computed from them are known before anything
//! runs ([`infer`]). What is not known is `None`, never a guess.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::ArrayD;

use crate::graph::Blocked;
use crate::graph::infer::{Fact, Facts, Limits, Value, infer, slice_indices, stated};
use crate::onnx::node::subgraphs;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};

/// The values of a graph and of those around it: what is known of them before any is computed.
#[derive(Clone)]
pub(in crate::calibrate) struct Scope<'g> {
    #[allow(dead_code, reason = "for operators whose form depends on it")]
    opset: i64,
    constants: BTreeMap<&'g str, &'g TensorProto>,
    facts: Facts,
    /// The elements of sequences, as names of tensors.
    sequences: BTreeMap<String, Vec<String>>,
    used: BTreeSet<&'g str>,
    /// How often nodes of the graph read a value.
    readers: BTreeMap<&'g str, usize>,
    /// Weights in blocks behind a DequantizeLinear, and the size of the blocks.
    blocks: BTreeMap<String, usize>,
    /// Weights that the engine gets as floats, by what they are made of: in the main graph alone.
    stored: Option<BTreeMap<String, (String, Blocked<'g>)>>,
}

impl<'g> Scope<'g> {
    /// The scope of a main graph; `opset` is the version of the standard operators.
    pub(in crate::calibrate) fn new(graph: &'g GraphProto, opset: i64) -> Self {
        let mut scope = Scope {
            opset,
            constants: BTreeMap::new(),
            facts: Facts::new(Limits::SIZES),
            sequences: BTreeMap::new(),
            used: BTreeSet::new(),
            readers: BTreeMap::new(),
            blocks: BTreeMap::new(),
            stored: Some(BTreeMap::new()),
        };
        scope.enter(graph);
        scope
    }

    /// The scope inside a subgraph of a node of this graph, whose names are known there too.
    pub(in crate::calibrate) fn inner(&self, graph: &'g GraphProto) -> Self {
        let mut scope = self.clone();
        scope.stored = None;
        scope.enter(graph);
        scope
    }

    fn enter(&mut self, graph: &'g GraphProto) {
        for info in graph.value_info.iter().chain(&graph.input) {
            // A rank that is stated may be wrong; the types of the copy follow from it.
            let dtype = stated(info).dtype;
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
        for input in graph.node.iter().flat_map(|node| &node.input) {
            *self.readers.entry(input).or_default() += 1;
        }
    }

    /// Tells the shape of a graph input.
    pub(in crate::calibrate) fn know_shape(&mut self, name: &str, shape: &[usize]) {
        self.know(name, Fact::of_shape(None, shape));
    }

    /// Tells a constant of the file.
    pub(in crate::calibrate) fn know_constant(&mut self, name: &'g str, value: &'g TensorProto) {
        self.constants.insert(name, value);
        let fact = self.facts.tensor(value);
        self.know(name, fact);
    }

    /// Tells facts of inputs, and of values whose shapes do not follow from those of the inputs.
    pub(in crate::calibrate) fn expect(&mut self, known: &BTreeMap<String, Fact>) {
        for (name, fact) in known {
            self.know(name, fact.clone());
        }
    }

    /// Adds to what is known of a value, in the types of the engine.
    fn know(&mut self, name: &str, mut fact: Fact) {
        fact.dtype = fact.dtype.map(engine_type);
        self.facts.know(name, fact);
    }

    /// Tells the tensors of a sequence.
    pub(super) fn know_sequence(&mut self, name: &str, tensors: Vec<String>) {
        self.sequences.insert(name.to_owned(), tensors);
    }

    /// Tells a float value of the copy, made by an operator of ours.
    pub(super) fn know_floats(&mut self, name: &str, shape: &[usize]) {
        self.know(name, Fact::of_shape(Some(DataType::Float), shape));
    }

    /// Tells a weight in blocks that one product alone may read.
    pub(super) fn know_blocks(&mut self, name: &str, block: usize) {
        if self.readers.get(name) == Some(&1) {
            self.blocks.insert(name.to_owned(), block);
        }
    }

    /// The size of the blocks of a weight.
    pub(super) fn blocks(&self, name: &str) -> Option<usize> {
        self.blocks.get(name).copied()
    }

    /// Whether this is the main graph.
    pub(super) fn is_main(&self) -> bool {
        self.stored.is_some()
    }

    /// Keeps a weight for the engine and returns its name, which is a new one if the weight is.
    pub(super) fn store(&mut self, weight: Blocked<'g>, name: impl FnOnce() -> String) -> String {
        let key = weight.identity();
        if let Some((name, _)) = self.stored.as_ref().and_then(|stored| stored.get(&key)) {
            return name.clone();
        }
        let name = name();
        self.know_floats(&name, &weight.shape.clone());
        if let Some(stored) = &mut self.stored {
            stored.insert(key, (name.clone(), weight));
        }
        name
    }

    /// The weights that the engine gets as floats, by name.
    pub(in crate::calibrate) fn take_stored(&mut self) -> BTreeMap<String, Blocked<'g>> {
        let stored = self.stored.take().into_iter().flatten();
        stored.map(|(_, named)| named).collect()
    }

    /// The version of the standard operators.
    #[allow(dead_code, reason = "for operators whose form depends on it")]
    pub(super) fn opset(&self) -> i64 {
        self.opset
    }

    /// The constant of the file called `name`, in its own type.
    pub(super) fn constant(&self, name: &str) -> Option<&'g TensorProto> {
        self.constants.get(name).copied()
    }

    /// The element type that the engine will see: every float is [`DataType::Float`].
    pub(super) fn dtype(&self, name: &str) -> Option<DataType> {
        self.facts.dtype(name)
    }

    /// The shape at these input shapes.
    pub(in crate::calibrate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.facts.get(name)?.shape()
    }

    /// The shapes of a node's outputs, as far as they are known.
    pub(in crate::calibrate) fn output_shapes(&self, node: &NodeProto) -> Vec<Vec<usize>> {
        let outputs = infer(&self.facts.call(node)).into_iter();
        outputs.filter_map(|fact| fact.shape()).collect()
    }

    /// The integers of a small value that is the same for all data, in row-major order.
    pub(in crate::calibrate) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        let value = self.facts.get(name)?.value.as_ref()?;
        Some(value.ints()?.iter().copied().collect())
    }

    /// All that is known, at the end.
    pub(in crate::calibrate) fn into_facts(self) -> Facts {
        self.facts
    }

    /// The axes and indices that a Slice takes.
    pub(super) fn slices(&self, node: &NodeProto) -> Option<Vec<(usize, Vec<usize>)>> {
        slice_indices(&self.facts.call(node))
    }

    /// The tensors of a sequence.
    pub(super) fn sequence(&self, name: &str) -> Option<&[String]> {
        self.sequences.get(name).map(Vec::as_slice)
    }

    /// Whether anything reads the value: a node, a subgraph, or the caller as a graph output.
    pub(super) fn used(&self, name: &str) -> bool {
        self.used.contains(name)
    }

    /// Takes in what a node of the copy says about its outputs. Returns the integers of all its outputs, with their
    /// types, if they are known, so that the node need not run.
    pub(super) fn learn(&mut self, node: &NodeProto) -> Option<Vec<(DataType, ArrayD<i64>)>> {
        let mut known = Vec::new();
        for (name, fact) in node.output.iter().zip(infer(&self.facts.call(node))) {
            if let (Some(dtype), Some(Value::Ints(ints))) = (fact.dtype, &fact.value)
                && matches!(dtype, DataType::Int64 | DataType::Int32 | DataType::Bool)
            {
                known.push((dtype, ints.to_owned()));
            }
            self.know(name, fact);
        }
        (known.len() == node.output.len()).then_some(known)
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
