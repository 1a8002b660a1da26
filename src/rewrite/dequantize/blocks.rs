//! ONNX Runtime's operators on weights in blocks, as the operators on floats that they stand for.

use super::writer::Writer;
use crate::graph::{Blocked, NodeId};
use crate::onnx::node::{attr_i, int_attr};
use crate::onnx::{op, tensor};

impl Writer<'_, '_> {
    /// x, B, s, z, g_idx, bias: a MatMul, with the bias in an Add.
    pub(super) fn product_of_blocks(&mut self, node: NodeId) -> Option<()> {
        let w = self.floats_of_blocks(node)?;
        let x = self.float_input(node, 0)?;
        self.product(node, x, w, self.view.input(node, 5))
    }

    /// q, ids, s, z: a Gather.
    pub(super) fn rows_of_blocks(&mut self, node: NodeId) -> Option<()> {
        let table = self.floats_of_blocks(node)?;
        let ids = self.float_input(node, 1)?;
        let axis = attr_i(self.view.node(node), "gather_axis").unwrap_or(0);
        let axis = vec![int_attr("axis", axis)];
        self.replaces(node, (None, op::Gather), vec![table, ids], axis)
    }

    fn floats_of_blocks(&mut self, node: NodeId) -> Option<String> {
        let blocked = Blocked::in_view(self.view, node)?;
        let floats = blocked.floats()?;
        let (shape, dtype) = (blocked.shape.clone(), blocked.dtype());
        Some(self.constant(blocked.identity(), blocked.name(), |name| {
            tensor::from_f32(name, &shape, &floats, dtype)
        }))
    }
}
