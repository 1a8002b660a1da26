//! Facts about the values of a graph, by name.

use std::collections::BTreeMap;

use super::call::Call;
use super::fact::{Fact, Limits};
use super::layout;
use super::node::infer;
use super::rule::Slot;
use super::table::row_of;
use crate::onnx::DataType;
use crate::onnx::op;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto};

/// What is known of the values of a graph. A subgraph starts with a copy of what is known around it.
#[derive(Clone, Debug)]
pub struct Facts {
    facts: BTreeMap<String, Fact>,
    limits: Limits,
}

impl Facts {
    /// Nothing yet; values within `limits` are computed.
    pub fn new(limits: Limits) -> Facts {
        Facts {
            facts: BTreeMap::new(),
            limits,
        }
    }

    /// What the tensors and the stated types of a graph tell of all its values.
    pub fn of_graph(graph: &GraphProto) -> Facts {
        let mut facts = Facts::new(Limits::SIZES);
        for tensor in &graph.initializer {
            let fact = facts.tensor(tensor);
            facts.know(tensor.name(), fact);
        }
        let infos = graph.input.iter().chain(&graph.output);
        for info in infos.chain(&graph.value_info) {
            facts.suppose(info.name(), stated(info));
        }
        facts.follow(graph.node.iter());
        facts
    }

    /// What is known of a value.
    pub fn get(&self, name: &str) -> Option<&Fact> {
        self.facts.get(name)
    }

    /// The element type of a value.
    pub fn dtype(&self, name: &str) -> Option<DataType> {
        self.get(name)?.dtype
    }

    /// The number of axes of a value.
    pub fn rank(&self, name: &str) -> Option<usize> {
        self.get(name)?.rank()
    }

    /// Adds what is certain of a value; what was known before and contradicts it was wrong.
    pub fn know(&mut self, name: &str, fact: Fact) {
        self.facts.entry(name.to_owned()).or_default().update(fact);
    }

    /// Adds what is not yet known of a value; what was known before stays.
    pub fn suppose(&mut self, name: &str, mut fact: Fact) {
        let known = self.facts.entry(name.to_owned()).or_default();
        fact.update(std::mem::take(known));
        *known = fact;
    }

    /// A tensor of the file.
    pub fn tensor(&self, tensor: &TensorProto) -> Fact {
        Fact::of_tensor(tensor, self.limits)
    }

    /// A node with what is known of its inputs.
    pub fn call<'a>(&'a self, node: &'a NodeProto) -> Call<'a> {
        Call::new(node, self.limits, |_, name| self.get(name))
    }

    /// Follows a list of nodes in order of execution, then spreads types against that order. What was known before counts
    /// for more.
    pub fn follow<'n>(&mut self, nodes: impl Iterator<Item = &'n NodeProto> + Clone) {
        for node in nodes.clone() {
            for (name, fact) in node.output.iter().zip(infer(&self.call(node))) {
                if !name.is_empty() {
                    self.suppose(name, fact);
                }
            }
            if let (op::Transpose, Some(input)) = (node.op_type(), node.input.first())
                && let Some(fact) = layout::permuted_input(node)
            {
                self.suppose(input, fact);
            }
        }
        // A type may have to travel against the order of nodes more than once; each round adds one or stops.
        while nodes.clone().fold(false, |any, node| self.tie(node) | any) {}
    }

    /// Gives every value that must have the type of another the type of that other. Says whether one was new.
    fn tie(&mut self, node: &NodeProto) -> bool {
        let Some(row) = row_of(node) else {
            return false;
        };
        let is_tied = |slot: Slot| matches!(slot, Slot::T);
        let inputs = node.input.iter().enumerate();
        let inputs = inputs.filter(|(slot, _)| is_tied(row.types.input(*slot)));
        let outputs = node.output.iter().enumerate();
        let outputs = outputs.filter(|(slot, _)| is_tied(row.types.output(*slot)));
        let tied: Vec<&String> = inputs
            .chain(outputs)
            .map(|(_, name)| name)
            .filter(|name| !name.is_empty())
            .collect();
        let Some(found) = tied.iter().find_map(|name| self.dtype(name)) else {
            return false;
        };
        let mut any = false;
        for name in tied {
            let known = &mut self.facts.entry(name.clone()).or_default().dtype;
            any |= known.is_none();
            known.get_or_insert(found);
        }
        any
    }
}

/// What a graph states of an input, output or inner value: its type and its rank. A size that is stated is often the one of
/// the example that the model was exported with.
pub fn stated(info: &ValueInfoProto) -> Fact {
    let value = info.r#type.as_ref().and_then(|t| t.value.as_ref());
    let Some(type_proto::Value::TensorType(tensor)) = value else {
        return Fact::default();
    };
    let dtype = DataType::try_from(tensor.elem_type()).ok();
    Fact {
        dtype: dtype.filter(|&t| t != DataType::Undefined),
        dims: tensor.shape.as_ref().map(|s| vec![None; s.dim.len()]),
        value: None,
    }
}
