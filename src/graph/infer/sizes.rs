//! Integers that follow from the sizes a file fixes: the same numbers in every run, although nodes compute them.
//!
//! ```text
//! x: [batch, 3, 224, 224]     s = Shape(x) = [?, 3, 224, 224]     h = Gather(s, 2) = 224     n = Div(h, 14) = 16
//! ```
//!
//! [`infer`] knows the elements of a value or none. Exporters ask for the shape of a value of which one size is open and
//! pick the others, so here lists of sizes may be known in part. Floats are not computed: how they are rounded is the
//! runtime's business.

use std::collections::BTreeMap;

use super::call::Call;
use super::elementwise::broadcast;
use super::fact::{Dim, Dims, Fact, Limits, Value, int_range, product};
use super::facts::{Facts, stated};
use super::node::infer;
use super::{make, pick};
use crate::graph::view::{Source, ValueId, View, is_standard_domain, tensor_type};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::onnx::proto::tensor_shape_proto::dimension::Value::DimValue;
use crate::onnx::proto::{NodeProto, ValueInfoProto};

/// Sizes, indices and positions; no float.
const LIMITS: Limits = Limits {
    ints: Limits::SIZES.ints,
    floats: 0,
};

/// The integers and booleans that nodes of the main graph compute from constants and from sizes that its inputs fix. A size
/// is fixed where an input declares a number for it: runtimes refuse data of another one.
pub fn fixed_sizes(view: &View) -> BTreeMap<ValueId, Fact> {
    let mut sizes = Sizes {
        facts: Facts::new(LIMITS),
        lists: BTreeMap::new(),
    };
    for input in &view.graph().input {
        sizes.facts.know(input.name(), declared(input));
    }
    for tensor in &view.graph().initializer {
        // The default of an input can be overridden.
        let constant = |v| matches!(view.source(v), Source::Initializer(_));
        if view.value(tensor.name()).is_some_and(constant) {
            let fact = sizes.facts.tensor(tensor);
            sizes.facts.know(tensor.name(), fact);
        }
    }
    let mut found = BTreeMap::new();
    for (id, node) in view.nodes() {
        sizes.follow(node);
        for slot in 0..node.output.len() {
            let output = view.output(id, slot);
            let fact = output.and_then(|o| sizes.facts.get(view.name(o)));
            if let (Some(output), Some(fact)) = (output, fact)
                && matches!(fact.value, Some(Value::Ints(_)))
            {
                found.insert(output, fact.clone());
            }
        }
    }
    found
}

/// The type of an input, and the sizes that it fixes. Some exporters write 0 or −1 for an open one.
fn declared(input: &ValueInfoProto) -> Fact {
    let tensor = input.r#type.as_ref().and_then(tensor_type);
    let shape = tensor.and_then(|t| t.shape.as_ref());
    let size = |value: &Option<_>| match value {
        Some(DimValue(n)) if *n > 0 => usize::try_from(*n).ok(),
        _ => None,
    };
    Fact {
        dims: shape.map(|s| s.dim.iter().map(|d| size(&d.value)).collect()),
        ..stated(input)
    }
}

/// An integer, or a list of them, of which some may not be known. Its rank is that of the value, 0 or 1.
type List = Vec<Option<i64>>;

/// What is known while the nodes are followed.
struct Sizes {
    facts: Facts,
    /// Lists that are known in part.
    lists: BTreeMap<String, List>,
}

impl Sizes {
    fn follow(&mut self, node: &NodeProto) {
        for (name, fact) in node.output.iter().zip(infer(&self.facts.call(node))) {
            if !name.is_empty() {
                self.facts.suppose(name, fact);
            }
        }
        let Some(output) = node.output.first().filter(|name| !name.is_empty()) else {
            return;
        };
        if !is_standard_domain(node) {
            return;
        }
        if let Some(dims) = self.dims(node) {
            let fact = Fact {
                dims: Some(dims),
                ..Fact::default()
            };
            self.facts.suppose(output, fact);
        }
        if let Some(list) = self.made(node) {
            self.know(output, list);
        }
    }

    /// Adds the elements of a value of which type and rank are known, unless its type cannot hold them.
    fn know(&mut self, name: &str, list: List) {
        let Some(fact) = self.facts.get(name) else {
            return;
        };
        let (Some(dtype), Some(rank @ (0 | 1))) = (fact.dtype, fact.rank()) else {
            return;
        };
        let fits = |n: i64| int_range(dtype).is_some_and(|(low, high)| (low..=high).contains(&n));
        if fact.value.is_some() || !list.iter().flatten().all(|&n| fits(n)) {
            return;
        }
        if rank == 0 && list.len() != 1 {
            return;
        }
        let Some(all) = list.iter().copied().collect::<Option<Vec<i64>>>() else {
            self.lists.insert(name.to_owned(), list);
            return;
        };
        let shape = if rank == 0 { vec![] } else { vec![all.len()] };
        if let Ok(array) = ndarray::ArrayD::from_shape_vec(shape, all) {
            let value = Value::Ints(array.into_shared());
            self.facts.suppose(name, Fact::of_value(dtype, value));
        }
    }

    /// The elements of input `slot`, if it is a list or a single number.
    fn list(&self, node: &NodeProto, slot: usize) -> Option<List> {
        let name = node.input.get(slot)?;
        if let Some(list) = self.lists.get(name) {
            return Some(list.clone());
        }
        let value = self.facts.get(name)?.value.as_ref()?.ints()?;
        (value.ndim() <= 1).then(|| value.iter().copied().map(Some).collect())
    }

    /// The list that a node makes of shapes and lists.
    fn made(&self, node: &NodeProto) -> Option<List> {
        let call = self.facts.call(node);
        match node.op_type() {
            op::Shape => {
                let size = |n: &Dim| n.and_then(|n| i64::try_from(n).ok());
                Some(make::told(&call)?.iter().map(size).collect())
            }
            // Elements in the order they had; the rank of the output is looked at where they are kept.
            op::Identity | op::Cast | op::Reshape | op::Squeeze | op::Unsqueeze => {
                self.list(node, 0)
            }
            op::Gather => self.gathered(node, &call),
            op::Slice => {
                let list = self.list(node, 0)?;
                match pick::slice_indices(&call)?.as_slice() {
                    [(0, indices)] => indices.iter().map(|&i| list.get(i).copied()).collect(),
                    _ => None,
                }
            }
            op::Concat => {
                let lists = (0..node.input.len()).map(|slot| self.list(node, slot));
                Some(lists.collect::<Option<Vec<List>>>()?.concat())
            }
            _ => None,
        }
    }

    fn gathered(&self, node: &NodeProto, call: &Call) -> Option<List> {
        let list = self.list(node, 0)?;
        let count = i64::try_from(list.len()).ok()?;
        let pick = |i: i64| {
            let at = usize::try_from(if i < 0 { i + count } else { i }).ok()?;
            list.get(at).copied()
        };
        call.ints(1)?.into_iter().map(pick).collect()
    }

    /// The sizes of what a list that is known in part gives its shape.
    fn dims(&self, node: &NodeProto) -> Option<Dims> {
        let slot = match node.op_type() {
            op::Reshape | op::Expand => 1,
            op::ConstantOfShape => 0,
            _ => return None,
        };
        let list = self.lists.get(node.input.get(slot)?)?;
        let size = |n: &Option<i64>| n.and_then(|n| usize::try_from(n).ok());
        let x = self.facts.get(node.input.first()?);
        let x = x.and_then(|fact| fact.dims.as_deref());
        match node.op_type() {
            op::Reshape => reshaped(node, x, list),
            op::Expand => broadcast(x?, &list.iter().map(size).collect::<Dims>()),
            _ => Some(list.iter().map(size).collect()),
        }
    }
}

/// The sizes of a Reshape of x to `target`, of which some are not known.
fn reshaped(node: &NodeProto, x: Option<&[Dim]>, target: &[Option<i64>]) -> Option<Dims> {
    let copies = attr_i(node, "allowzero").unwrap_or(0) == 0;
    let size = |(at, n): (usize, &Option<i64>)| match *n {
        Some(0) if copies => x.and_then(|x| *x.get(at)?),
        Some(n) => usize::try_from(n).ok(),
        None => None,
    };
    let mut dims: Dims = target.iter().enumerate().map(size).collect();
    // The one size that is open is what the others leave.
    let mut open = (0..dims.len()).filter(|&at| dims[at].is_none());
    if let (Some(at), None) = (open.next(), open.next()) {
        let rest: Dims = dims.iter().copied().filter(Option::is_some).collect();
        dims[at] = match (x.and_then(product), product(&rest)) {
            (Some(all), Some(rest)) if rest > 0 && all % rest == 0 => Some(all / rest),
            _ => None,
        };
    }
    Some(dims)
}
