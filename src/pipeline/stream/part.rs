//! A part of a model as a model of its own.

use std::collections::{BTreeMap, BTreeSet};

use crate::calibrate::{Stored, StoredValues};
use crate::graph::infer::Facts;
use crate::graph::{Cut, ValueId, View, cut};
use crate::onnx::node::{int_attr, make_node};
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::onnx::{DataType, Model, op};

use super::blocks::Block;

/// A part: nodes of the whole model, and a Cast for every value fed to it that is no float32 there.
pub(super) struct Part {
    pub model: Model,
    /// What the part behind it reads.
    pub next: Vec<String>,
    /// The nodes of the whole model that it has, as positions.
    pub nodes: Vec<usize>,
    /// Of the part behind it, the norms that read its values: a token's error counts by what they divide it by, so the search and
    /// the comparison see what they make of it. They are no part of the result.
    pub borrowed: Vec<usize>,
}

/// The types of the values of a model, as far as they are stated or follow from others.
pub(super) struct Types(Facts);

impl Types {
    pub(super) fn of(model: &Model) -> Types {
        Types(Facts::of_graph(model.graph()))
    }

    /// The name of the input that feeds a value. Values are stored as float32: one of another type is cast behind its input.
    fn fed_name(&self, value: &str) -> String {
        match self.narrow(value) {
            Some(_) => format!("{value}__fed"),
            None => value.to_owned(),
        }
    }

    /// The type of a value that is no float32.
    fn narrow(&self, value: &str) -> Option<DataType> {
        self.0
            .dtype(value)
            .filter(|dtype| *dtype != DataType::Float)
    }

    /// Stored values under the names of the inputs that they feed.
    pub(super) fn renamed(&self, values: &StoredValues) -> StoredValues {
        let values = values.iter();
        let values = values.map(|(name, stored)| (self.fed_name(name), stored.clone()));
        values.collect()
    }
}

impl Part {
    /// The part of `whole` that `blocks` are, behind the values `fed`.
    ///
    /// # Errors
    /// A value that no one defines.
    pub(super) fn new(
        whole: &Model,
        types: &Types,
        blocks: &[Block],
        fed: &StoredValues,
    ) -> Result<Part, String> {
        let view = View::new(whole);
        let last = blocks.last();
        let next = last.map(|block| block.next.clone()).unwrap_or_default();
        let mut outputs: Vec<String> = next.clone();
        for name in blocks.iter().flat_map(|block| &block.outputs) {
            if !outputs.contains(name) {
                outputs.push(name.clone());
            }
        }
        let id = |name: &String| view.value(name);
        let ids: Vec<ValueId> = outputs.iter().filter_map(id).collect();
        let stops = |value: ValueId| fed.contains_key(view.name(value));
        let own = cut(&view, &ids, stops, |_| Ok(()))?;
        let normed = last.map(|block| &block.normed[..]).unwrap_or_default();
        let with_norms = ids.iter().copied().chain(normed.iter().filter_map(id));
        let all = cut(&view, &with_norms.collect::<Vec<_>>(), stops, |_| Ok(()))?;
        let nodes: Vec<usize> = own.nodes.iter().map(|node| node.0).collect();
        let borrowed = all.nodes.iter().map(|node| node.0);
        Ok(Part {
            model: model(&view, types, &all, fed),
            next,
            borrowed: borrowed
                .filter(|node| nodes.binary_search(node).is_err())
                .collect(),
            nodes,
        })
    }
}

fn model(view: &View, types: &Types, cut: &Cut, fed: &StoredValues) -> Model {
    let (original, graph) = (view.model(), view.graph());
    let inputs = cut.inputs.iter().map(|&i| graph.input[i].clone());
    let mut inputs: Vec<ValueInfoProto> = inputs.collect();
    let mut nodes: Vec<NodeProto> = Vec::new();
    for &value in &cut.fed {
        let name = view.name(value);
        let stored = fed.get(name).map(Vec::as_slice).unwrap_or_default();
        let feeding = types.fed_name(name);
        inputs.push(input(&feeding, stored));
        if let Some(dtype) = types.narrow(name) {
            let to = vec![int_attr("to", i64::from(dtype as i32))];
            nodes.push(make_node(
                op::Cast,
                &format!("{feeding}_cast"),
                &[&feeding],
                &[name],
                to,
            ));
        }
    }
    nodes.extend(cut.nodes.iter().map(|&n| view.node(n).clone()));
    let stated_outputs: BTreeMap<&str, &ValueInfoProto> = graph
        .output
        .iter()
        .map(|output| (output.name(), output))
        .collect();
    let output = |&value: &ValueId| {
        let stated = stated_outputs.get(view.name(value));
        stated.map_or_else(|| unstated(view.name(value)), |&output| output.clone())
    };
    let names = cut.nodes.iter().flat_map(|&n| &view.node(n).output);
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let infos = graph
        .value_info
        .iter()
        .filter(|info| names.contains(info.name()));
    let constants = cut.constants.iter();
    let graph = GraphProto {
        name: graph.name.clone(),
        node: nodes,
        initializer: constants.map(|&i| graph.initializer[i].clone()).collect(),
        input: inputs,
        output: cut.outputs.iter().map(output).collect(),
        value_info: infos.cloned().collect(),
        ..Default::default()
    };
    Model {
        proto: ModelProto {
            ir_version: original.proto.ir_version,
            opset_import: original.proto.opset_import.clone(),
            functions: original.proto.functions.clone(),
            graph: Some(graph),
            ..Default::default()
        },
    }
}

fn unstated(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        ..Default::default()
    }
}

/// A float32 input of the rank of what is stored; only the channels have a size that no other rows change.
fn input(name: &str, stored: &[Option<Stored>]) -> ValueInfoProto {
    let shape = stored.iter().flatten().next();
    let shape = shape.map(|s| s.shape.clone()).unwrap_or_default();
    let last = shape.len().saturating_sub(1);
    let dims = shape.iter().enumerate().map(|(axis, &size)| Dimension {
        value: (axis == last).then_some(dimension::Value::DimValue(size as i64)),
        ..Default::default()
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(DataType::Float as i32),
        shape: Some(TensorShapeProto {
            dim: dims.collect(),
        }),
    };
    ValueInfoProto {
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..unstated(name)
    }
}
