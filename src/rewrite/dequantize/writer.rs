//! What is known on the way through a quantized graph, and how new nodes and constants come into it.

use std::collections::BTreeMap;

use crate::graph::{Names, NodeId, Patch, ValueId, View};
use crate::onnx::proto::{NodeProto, TensorProto};

/// What became float, and what did not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dequantized {
    /// How many tensors of integers were stored as the numbers they mean.
    pub weights: usize,
    /// How many operators on integers became operators on floats.
    pub operators: usize,
    /// The nodes that still quantize, dequantize or compute with integers, by name and operator.
    pub left: Vec<(String, String)>,
}

/// What is known so far, and what is to be changed.
pub(super) struct Writer<'a, 'm> {
    pub(super) view: &'a View<'m>,
    pub(super) names: &'a mut Names,
    pub(super) patch: Patch,
    /// Values of integers, and the float value that each is a rounding of.
    pub(super) real: BTreeMap<ValueId, String>,
    /// Float values that are read in place of others.
    pub(super) instead: BTreeMap<ValueId, String>,
    /// The scales that values of integers were made with.
    pub(super) scales: BTreeMap<ValueId, ValueId>,
    /// Products of integers, on the way to their scales.
    pub(super) sums: BTreeMap<ValueId, Sum>,
    /// Constants by what they are made of.
    pub(super) stored: BTreeMap<String, String>,
    pub(super) done: Dequantized,
}

/// A sum of products of integers that no scale was applied to.
#[derive(Clone)]
pub(super) struct Sum {
    /// MatMulInteger or ConvInteger.
    pub(super) node: NodeId,
    /// The float value that its first input is a rounding of.
    pub(super) x: String,
    /// The scale of that.
    pub(super) scale: ValueId,
    /// The stored integers, and their zero point.
    pub(super) weight: ValueId,
    pub(super) zero: Option<ValueId>,
}

impl Writer<'_, '_> {
    /// A float input of a node, as it is read from now on.
    pub(super) fn float_input(&self, node: NodeId, slot: usize) -> Option<String> {
        Some(self.float_value(self.view.input(node, slot)?))
    }

    pub(super) fn float_value(&self, value: ValueId) -> String {
        let name = || self.view.name(value).to_owned();
        self.instead.get(&value).cloned().unwrap_or_else(name)
    }

    /// Puts a node before `at`, under the name of the one that it stands for, and returns its new value.
    pub(super) fn insert(&mut self, at: NodeId, mut node: NodeProto, output: &str) -> String {
        let value = self.names.unique(plain(output));
        node.output = vec![value.clone()];
        node.name = Some(self.names.unique(plain(node.name())));
        self.patch.insert_before(at, node);
        value
    }

    /// A constant, once for each `key`.
    pub(super) fn constant(
        &mut self,
        key: String,
        base: &str,
        make: impl FnOnce(&str) -> TensorProto,
    ) -> String {
        if let Some(name) = self.stored.get(&key) {
            return name.clone();
        }
        let name = self.names.unique(plain(base));
        self.patch.add_initializer(make(&name));
        self.done.weights += 1;
        self.stored.insert(key, name.clone());
        name
    }
}

/// A name without what quantizers put behind it.
pub(super) fn plain(name: &str) -> &str {
    const ADDED: [&str; 14] = [
        "_quantized",
        "_quant",
        "_QuantizeLinear",
        "_DequantizeLinear",
        "_QuantizeLinear_Output",
        "_DequantizeLinear_Output",
        "_DQ_Q2",
        "_DQ_Q4",
        "_DQ_Q8",
        "_matmul_Q4",
        "_matmul_Q8",
        "_Q2",
        "_Q4",
        "_Q8",
    ];
    let stripped = ADDED.iter().filter_map(|added| name.strip_suffix(added));
    stripped
        .min_by_key(|rest| rest.len())
        .filter(|rest| !rest.is_empty())
        .unwrap_or(name)
}
