//! Weights in blocks, found from the nodes that read them.

use super::scope::Scope;
use crate::graph::Blocked;
use crate::onnx::proto::NodeProto;

/// The weight in blocks that a node reads.
pub(super) fn of<'m>(scope: &Scope<'m>, node: &NodeProto) -> Option<Blocked<'m>> {
    Blocked::of(node, &|name| scope.constant(name))
}
