//! Values that are the same in every run, however far they are from a constant.

use std::collections::BTreeSet;

use super::view::{Source, ValueId, View};
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::onnx::proto::{GraphProto, NodeProto};

/// Whether two runs of a node differ on the same inputs.
pub fn is_random(node: &NodeProto) -> bool {
    let random = ["Random", op::Multinomial, op::Bernoulli];
    random.iter().any(|op| node.op_type().starts_with(op))
}

/// What is to be said of a graph that draws random numbers: of figures that compare two runs.
pub fn random_note(graph: &GraphProto) -> Option<String> {
    let mut random = graph.node.iter().filter(|node| is_random(node));
    let first = random.next()?;
    let draw = match random.count() {
        0 => "draws".to_owned(),
        1 => "and another node draw".to_owned(),
        n => format!("and {n} other nodes draw"),
    };
    Some(format!(
        "{} `{}` {draw} random numbers: every figure is of the same ones in all models; in a runtime two runs of the \
         float model differ, too",
        first.op_type(),
        first.name()
    ))
}

impl View<'_> {
    /// What nodes compute from initializers alone, or from such values: no input of the graph reaches it. Runtimes compute
    /// it once, when they load the model.
    pub fn fixed_values(&self) -> BTreeSet<ValueId> {
        self.fixed_values_with(BTreeSet::new())
    }

    /// The values that would be the same in every run if `fixed` were.
    pub fn fixed_values_with(&self, mut fixed: BTreeSet<ValueId>) -> BTreeSet<ValueId> {
        for (id, node) in self.nodes() {
            let inputs = (0..node.input.len()).filter_map(|slot| self.input(id, slot));
            let known = |value: ValueId| {
                fixed.contains(&value) || matches!(self.source(value), Source::Initializer(_))
            };
            // What a subgraph reads is not looked at.
            let computes = !is_random(node) && subgraphs(node).next().is_none();
            if computes && inputs.into_iter().all(known) {
                let outputs = (0..node.output.len()).filter_map(|slot| self.output(id, slot));
                fixed.extend(outputs.collect::<Vec<_>>());
            }
        }
        fixed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::node::make_node;

    #[test]
    fn what_is_random_is_told() {
        let node = |op: &str, name: &str| make_node(op, name, &["x"], &[name], vec![]);
        let note = |nodes: Vec<NodeProto>| {
            random_note(&GraphProto {
                node: nodes,
                ..Default::default()
            })
        };
        assert_eq!(note(vec![node(op::Relu, "r")]), None);
        let mut nodes = vec![node(op::Relu, "r"), node(op::Bernoulli, "drop")];
        assert!(
            note(nodes.clone())
                .unwrap()
                .starts_with("Bernoulli `drop` draws")
        );
        nodes.extend(["a", "b"].map(|name| node(op::RandomNormalLike, name)));
        assert!(
            note(nodes)
                .unwrap()
                .contains("`drop` and 2 other nodes draw")
        );
    }
}
