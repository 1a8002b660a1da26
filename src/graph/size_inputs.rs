//! Inputs whose values, not only their shapes, say how large values inside are: the lengths of spans, a number of steps.

use std::collections::BTreeSet;

use super::infer::{from_shapes, has_values};
use super::view::{Source, ValueId, View};
use crate::onnx::op;

/// The inputs of an operator that are sizes, counts, or bounds of a part.
fn size_slots(op: &str) -> &'static [usize] {
    match op {
        op::ConstantOfShape => &[0],
        op::Expand | op::Tile | op::Reshape | op::Split | op::OneHot | op::TopK => &[1],
        op::Pad => &[1, 3],
        op::Range => &[0, 1, 2],
        op::Slice => &[1, 2, 3, 4],
        op::Resize => &[2, 3],
        _ => &[],
    }
}

/// The names of the graph inputs from whose values sizes are computed, in nodes of which the values are known
/// ([`has_values`]).
pub fn size_inputs(view: &View) -> BTreeSet<String> {
    let slots = view.nodes().flat_map(|(node, _)| {
        let slots = size_slots(view.op(node)).iter();
        slots.filter_map(move |&slot| view.input(node, slot))
    });
    let mut pending: Vec<ValueId> = slots.collect();
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    while let Some(value) = pending.pop() {
        if !seen.insert(value) {
            continue;
        }
        match view.source(value) {
            Source::Input(_) => _ = found.insert(view.name(value).to_owned()),
            Source::Node { node, .. } => {
                let proto = view.node(node);
                if has_values(proto) && !from_shapes(proto) {
                    let inputs = 0..proto.input.len();
                    pending.extend(inputs.filter_map(|slot| view.input(node, slot)));
                }
            }
            Source::Initializer(_) | Source::Unknown => {}
        }
    }
    found
}
