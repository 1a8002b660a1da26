//! Whose operator a node is, and what it is called in a message.

use crate::onnx::proto::NodeProto;

/// True for the domain of the standard operators, which is written in two ways.
pub(super) fn is_standard(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// The node's name, or the name of its first output if it has none.
pub(super) fn node_label(node: &NodeProto) -> String {
    if !node.name().is_empty() {
        return node.name().to_owned();
    }
    node.output.first().cloned().unwrap_or_default()
}
