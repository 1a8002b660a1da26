//! A part of a graph, cut out as a model of its own.
//!
//! ```text
//! … ─▶ fed ─┐
//! inputs ───┼─ nodes ─▶ outputs          the model: its inputs are what is fed and the graph inputs, nothing else
//! constants ┘
//! ```
//!
//! [`cut`] goes from the outputs backwards to where it is told to stop; [`Cut::model`] writes down what it met.

use std::collections::BTreeSet;

use super::view::{NodeId, Source, ValueId, View, names_read};
use crate::onnx::Model;
use crate::onnx::node::float_value;
use crate::onnx::proto::{GraphProto, ModelProto, ValueInfoProto};

/// A part of a graph: what computes some values from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// In graph order.
    pub nodes: Vec<NodeId>,
    /// Float values that are fed, because they are computed outside.
    pub fed: Vec<ValueId>,
    /// Graph inputs read, as positions in `GraphProto.input`.
    pub inputs: Vec<usize>,
    /// Initializers read, as positions in `GraphProto.initializer`.
    pub constants: Vec<usize>,
    /// What is computed.
    pub outputs: Vec<ValueId>,
}

/// The nodes between `outputs` and the nearest values that `stops` accepts (an output itself is one of them only if `stops`
/// says so), graph inputs and constants. `take` is asked about every node once, before it is taken.
///
/// # Errors
/// That of `take`, or that a value is read that no one defines.
pub fn cut(
    view: &View,
    outputs: &[ValueId],
    stops: impl Fn(ValueId) -> bool,
    mut take: impl FnMut(NodeId) -> Result<(), String>,
) -> Result<Cut, String> {
    let (mut nodes, mut fed) = (BTreeSet::new(), BTreeSet::new());
    let (mut inputs, mut constants) = (BTreeSet::new(), BTreeSet::new());
    let mut seen = BTreeSet::new();
    let mut stack = outputs.to_vec();
    while let Some(value) = stack.pop() {
        if !seen.insert(value) {
            continue;
        }
        if stops(value) {
            fed.insert(value);
            continue;
        }
        match view.source(value) {
            Source::Initializer(i) => _ = constants.insert(i),
            Source::Input(i) => _ = inputs.insert(i),
            Source::Unknown => return Err("it reads a value that no one defines".to_owned()),
            Source::Node { node, .. } if nodes.insert(node) => {
                take(node)?;
                let names = names_read(view.node(node));
                stack.extend(names.filter_map(|name| view.value(name)));
            }
            Source::Node { .. } => {}
        }
    }
    Ok(Cut {
        nodes: nodes.into_iter().collect(),
        fed: fed.into_iter().collect(),
        inputs: inputs.into_iter().collect(),
        constants: constants.into_iter().collect(),
        outputs: outputs.to_vec(),
    })
}

/// Values that are computed from those of `from`, and these themselves.
pub fn reached(view: &View, mut from: BTreeSet<ValueId>) -> BTreeSet<ValueId> {
    for (_, node) in view.nodes() {
        let mut read = names_read(node).filter_map(|name| view.value(name));
        if read.any(|v| from.contains(&v)) {
            from.extend(node.output.iter().filter_map(|name| view.value(name)));
        }
    }
    from
}

impl Cut {
    /// The part as a model with the functions and operator sets of the whole one. `shape` gives the shapes of what is fed.
    /// `None` if one is missing.
    pub fn model<'s>(
        &self,
        view: &View,
        shape: impl Fn(ValueId) -> Option<&'s [usize]>,
    ) -> Option<Model> {
        let (original, graph) = (view.model(), view.graph());
        let mut stated: Vec<ValueInfoProto> = Vec::new();
        stated.extend(self.inputs.iter().map(|&i| graph.input[i].clone()));
        for &value in &self.fed {
            stated.push(float_value(view.name(value), shape(value)?));
        }
        let nodes = self.nodes.iter().map(|&n| view.node(n).clone());
        let constants = self.constants.iter();
        let output = |&value: &ValueId| ValueInfoProto {
            name: Some(view.name(value).to_owned()),
            ..Default::default()
        };
        let graph = GraphProto {
            name: graph.name.clone(),
            node: nodes.collect(),
            initializer: constants.map(|&i| graph.initializer[i].clone()).collect(),
            input: stated,
            output: self.outputs.iter().map(output).collect(),
            ..Default::default()
        };
        Some(Model {
            proto: ModelProto {
                ir_version: original.proto.ir_version,
                opset_import: original.proto.opset_import.clone(),
                functions: original.proto.functions.clone(),
                graph: Some(graph),
                ..Default::default()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::node::make_node;
    use crate::onnx::op;
    use crate::onnx::{DataType, tensor};

    /// x ─ Relu ─ r ─ Add(w) ─ s ─ Neg ─ y, with Sqrt(s) = z beside it.
    fn model() -> Model {
        let nodes = vec![
            make_node(op::Relu, "relu", &["x"], &["r"], vec![]),
            make_node(op::Add, "add", &["r", "w"], &["s"], vec![]),
            make_node(op::Sqrt, "sqrt", &["s"], &["z"], vec![]),
            make_node(op::Neg, "neg", &["s"], &["y"], vec![]),
        ];
        let graph = GraphProto {
            node: nodes,
            initializer: vec![tensor::from_f32("w", &[1], &[1.0], DataType::Float)],
            input: vec![float_value("x", &[2])],
            ..Default::default()
        };
        Model {
            proto: ModelProto {
                graph: Some(graph),
                ..Default::default()
            },
        }
    }

    #[test]
    fn a_part_has_what_it_needs_and_nothing_else() {
        let model = model();
        let view = View::new(&model);
        let id = |name: &str| view.value(name).unwrap();
        let all = cut(&view, &[id("y")], |_| false, |_| Ok(())).unwrap();
        assert_eq!(all.nodes, [NodeId(0), NodeId(1), NodeId(3)]);
        assert_eq!((all.inputs, all.constants), (vec![0], vec![0]));
        let part = cut(&view, &[id("y"), id("z")], |v| v == id("r"), |_| Ok(())).unwrap();
        assert_eq!(part.nodes, [NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(
            (part.fed.as_slice(), part.inputs.len()),
            (&[id("r")][..], 0)
        );
        let shape: &[usize] = &[2];
        let made = part.model(&view, |_| Some(shape)).unwrap();
        assert_eq!(made.graph().input, [float_value("r", &[2])]);
        let outputs: Vec<&str> = made.graph().output.iter().map(|o| o.name()).collect();
        assert_eq!(outputs, ["y", "z"]);
        assert!(part.model(&view, |_| None).is_none());
    }

    #[test]
    fn a_node_that_is_not_taken_ends_it() {
        let model = model();
        let view = View::new(&model);
        let y = view.value("y").unwrap();
        let mut asked = Vec::new();
        let refused = cut(
            &view,
            &[y],
            |_| false,
            |node| {
                asked.push(node);
                match view.op(node) {
                    op::Add => Err("no Add".to_owned()),
                    _ => Ok(()),
                }
            },
        );
        assert_eq!(refused, Err("no Add".to_owned()));
        assert_eq!(asked, [NodeId(3), NodeId(1)]);
    }
}
