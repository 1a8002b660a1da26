//! What follows from the sizes a file fixes, stored, so that runtimes need not compute it in every run
//! ([`Options::fold_sizes`](crate::Options::fold_sizes)).
//!
//! ```text
//! x: [batch, 3, 224, 224]     n = Div(Gather(Shape(x), 2), 14)     p = Resize(table, sizes = Concat(1, 384, n, n))
//! becomes                                                          p = Resize(table, sizes = [1, 384, 16, 16])
//! ```
//!
//! Runtimes compute once, when they load the model, what no input reaches. An input reaches p by its shape alone, and one size
//! of that shape is open, so that ONNX Runtime resizes the table of positions in every run.
//!
//! *Safe when*: only integers are stored, which nothing rounds; what is computed from them is left to the runtime, once for
//! all. Data of other sizes than the file declares was refused before and is so still. *Not matched*: sizes that only say how
//! data is cut or laid out, since that costs next to nothing; anything in a subgraph.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::infer::{Fact, Value, fixed_sizes};
use crate::graph::{Names, NodeId, Patch, Use, ValueId, View};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, op, tensor};

/// Operators that compute nothing: by themselves they are not worth a constant.
const FREE: [&str; 6] = [
    op::Flatten,
    op::Identity,
    op::Reshape,
    op::Shape,
    op::Squeeze,
    op::Unsqueeze,
];

/// The patches that store sizes, one per value that is stored.
pub fn fold_sizes(view: &View, names: &mut Names) -> Vec<Patch> {
    let now = view.fixed_values();
    let mut known = fixed_sizes(view);
    known.retain(|value, fact| !now.contains(value) && stored("", fact).is_some());
    if known.is_empty() {
        return Vec::new();
    }
    let mut patches: BTreeMap<ValueId, (Patch, String)> = BTreeMap::new();
    for id in computed_once(view, &now, &known) {
        for slot in 0..view.node(id).input.len() {
            let Some(value) = view.input(id, slot) else {
                continue;
            };
            let Some(fact) = known.get(&value) else {
                continue;
            };
            let (patch, name) = patches.entry(value).or_insert_with(|| {
                let of = view.name(value);
                let (name, node) = (names.derive(of, "folded"), view.node_name(id));
                let reason =
                    format!("store `{of}`, which fixed sizes tell: `{node}` is computed once");
                let mut patch = Patch::new(reason);
                if let Some(tensor) = stored(&name, fact) {
                    patch.add_initializer(tensor);
                }
                (patch, name)
            });
            patch.rewire(id, slot, name.clone());
        }
    }
    patches.into_values().map(|(patch, _)| patch).collect()
}

/// The nodes that runtimes would compute once if `known` were constants, now they do not, and that compute something or
/// lead to one that does. Those whose outputs are known themselves are not among them.
fn computed_once(
    view: &View,
    now: &BTreeSet<ValueId>,
    known: &BTreeMap<ValueId, Fact>,
) -> BTreeSet<NodeId> {
    let then = view.fixed_values_with(known.keys().copied().collect());
    let mut found = BTreeSet::new();
    let nodes: Vec<NodeId> = view.nodes().map(|(id, _)| id).collect();
    for &id in nodes.iter().rev() {
        let outputs = (0..view.node(id).output.len()).filter_map(|slot| view.output(id, slot));
        let outputs: Vec<ValueId> = outputs.collect();
        let gained = |v: &ValueId| then.contains(v) && !now.contains(v) && !known.contains_key(v);
        if outputs.is_empty() || !outputs.iter().all(gained) {
            continue;
        }
        let readers = outputs.iter().flat_map(|&v| view.uses(v));
        let leads = |u: &Use| matches!(u, Use::Node { node, .. } if found.contains(node));
        if !FREE.contains(&view.op(id)) || readers.into_iter().any(leads) {
            found.insert(id);
        }
    }
    found
}

/// A constant with the integers of a fact, if it is of a type that sizes, indices and choices have.
fn stored(name: &str, fact: &Fact) -> Option<TensorProto> {
    let Value::Ints(array) = fact.value.as_ref()? else {
        return None;
    };
    let data: Vec<i64> = array.iter().copied().collect();
    match fact.dtype? {
        DataType::Int64 => Some(tensor::from_i64(name, array.shape(), &data)),
        DataType::Int32 => {
            let data = data.iter().map(|&n| i32::try_from(n).ok());
            let data: Option<Vec<i32>> = data.collect();
            Some(tensor::from_i32(name, array.shape(), &data?))
        }
        DataType::Bool => {
            let data: Vec<u8> = data.iter().map(|&n| u8::from(n != 0)).collect();
            let mut tensor = tensor::from_u8(name, array.shape(), &data);
            tensor.data_type = Some(DataType::Bool as i32);
            Some(tensor)
        }
        _ => None,
    }
}
