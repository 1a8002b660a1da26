//! Pools over tokens: an affine per channel goes through ReduceMean as it is, and through ReduceSum without its shift.
//!
//! ```text
//! mean over t of (v_tc − z_c) / s_c = (mean over t of v_tc − z_c) / s_c
//! sum over t of v_tc / s_c = (sum over t of v_tc) / s_c
//! ```

use ndarray::{Axis, IxDyn};

use super::labels::Labels;
use super::trace::{Shift, Walk};
use crate::graph::{NodeId, View};
use crate::onnx::node::{attr_i, attr_ints};
use crate::onnx::op;

/// The axes that a Reduce takes away, from the front; all where it names none. `None` if they are not known.
fn reduced(view: &View, node: NodeId, rank: usize) -> Option<Vec<usize>> {
    let given = match (attr_ints(view.node(node), "axes"), view.input(node, 1)) {
        (Some(axes), _) => axes.to_vec(),
        (None, Some(axes)) => view.constant(axes)?.into_ints()?.to_vec(),
        (None, None) => Vec::new(),
    };
    let front = |&axis: &i64| {
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis });
        axis.ok().filter(|axis| *axis < rank)
    };
    match given.is_empty() {
        true => Some((0..rank).collect()),
        false => given.iter().map(front).collect(),
    }
}

impl Walk<'_, '_> {
    /// ReduceMean and ReduceSum: every element that is added up belongs to the channel of the sum.
    pub(super) fn reduce(
        &mut self,
        node: NodeId,
        labels: Labels,
        shift: Shift,
    ) -> Result<(), String> {
        let view = self.view;
        if view.op(node) == op::ReduceSum && shift.moves() {
            return Err("a sum over tokens adds up their shifts".to_owned());
        }
        let shape = self.shape_of_input(node, 0)?;
        let mut axes = reduced(view, node, shape.len())
            .ok_or_else(|| format!("the axes of {} are not known", view.node_name(node)))?;
        axes.sort_unstable();
        let mut labels = labels;
        if attr_i(view.node(node), "keepdims") == Some(0) {
            for &axis in &axes {
                if axis > labels.ndim() {
                    return Err("its Reduce is malformed".to_owned());
                }
                labels = labels.insert_axis(Axis(axis));
            }
        }
        let wide = labels
            .broadcast(IxDyn(&shape))
            .ok_or("its Reduce is malformed")?;
        self.pass(node, 0, wide.to_owned(), shift)
    }
}
