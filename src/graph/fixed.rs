//! Values that are the same in every run, however far they are from a constant.

use std::collections::BTreeSet;

use super::view::{Source, ValueId, View};
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// Whether two runs of a node differ on the same inputs.
pub fn is_random(node: &NodeProto) -> bool {
    let random = ["Random", op::Multinomial, op::Bernoulli];
    random.iter().any(|op| node.op_type().starts_with(op))
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
