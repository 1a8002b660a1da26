//! Whether the nodes of a function mean the same in the operator sets of the model.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::functions::{domain, label};
use crate::graph::opset::table::{NEWEST, operator};
use crate::onnx::node::subgraphs;
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// The domains of `nodes`, those in subgraphs included.
pub(super) fn domains(nodes: &[NodeProto]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for node in nodes {
        all.insert(domain(node.domain()).to_owned());
        for graph in subgraphs(node) {
            all.extend(domains(&graph.node));
        }
    }
    all
}

/// The first node that does not mean in the operator sets `model` what it means in `own`; `local` tells calls.
pub(super) fn problem(
    nodes: &[NodeProto],
    own: &BTreeMap<String, i64>,
    model: &BTreeMap<String, i64>,
    local: &dyn Fn(&NodeProto) -> bool,
) -> Option<String> {
    for node in nodes {
        let domain = domain(node.domain());
        if !local(node)
            && let (Some(&from), Some(&to)) = (own.get(domain), model.get(domain))
            && from != to
            && !same_meaning(node, domain, from, to)
        {
            let set = match domain {
                "" => "opset".to_owned(),
                other => format!("{other} opset"),
            };
            return Some(format!(
                "the function uses {set} {from} and the model {to}, in which {} (`{}`) may mean something else; \
                 export the model with one opset",
                node.op_type(),
                label(node)
            ));
        }
        let inner = subgraphs(node).find_map(|g| problem(&g.node, own, model, local));
        if inner.is_some() {
            return inner;
        }
    }
    None
}

fn same_meaning(node: &NodeProto, domain: &str, from: i64, to: i64) -> bool {
    if !domain.is_empty() || from.max(to) > NEWEST {
        return false;
    }
    let Some(operator) = operator(node.op_type()) else {
        return false;
    };
    if to < from {
        // A newer form may use what the older operator does not know.
        let mut after = operator.changed.iter().chain([&operator.first]);
        return !after.any(|&v| to < v && v <= from);
    }
    let between = |v: i64| from < v && v <= to;
    match operator.name {
        // Version 18 wants the sizes of the parts, or their number.
        op::Split if node.input.get(1).is_some_and(|sizes| !sizes.is_empty()) => !between(13),
        // A runtime reads its own norms in one way in every version.
        _ if operator.of_runtime => true,
        _ => !operator.rules.iter().any(|&(version, _)| between(version)),
    }
}
