//! Integers that a graph computes from shapes: the bounds of a Slice, the sizes of a Split, the index of a Gather.
//!
//! TorchScript writes `x.chunk(3, -1)` as Slices whose bounds come from `Shape(x)` by way of Gather, Add, Div and Mul.
//! With the shapes of one run these are numbers, like the labels that are followed with them. What each operator computes is
//! said by [`infer`].

use std::collections::BTreeMap;

use ndarray::ArrayD;

use super::trace::Shapes;
use crate::graph::infer::{self, Call, Fact, Limits};
use crate::graph::{NodeId, ValueId, View};

/// Longer chains are no size arithmetic.
const DEPTH: usize = 32;

/// Constants are read whole, such as the positions that a Gather takes; floats only as far as they become sizes.
const CONSTANTS: Limits = Limits {
    ints: usize::MAX,
    ..Limits::SIZES
};

/// The integers of `value` where they follow from constants and `shapes`.
pub(super) fn integers(view: &View, shapes: &Shapes, value: ValueId) -> Option<ArrayD<i64>> {
    let mut sizes = Sizes {
        view,
        shapes,
        seen: BTreeMap::new(),
    };
    let fact = sizes.fact(value, 0);
    Some(fact.value?.ints()?.to_owned())
}

/// What is known of the values on the way to one.
struct Sizes<'a, 'm> {
    view: &'a View<'m>,
    shapes: &'a Shapes,
    seen: BTreeMap<ValueId, Fact>,
}

impl Sizes<'_, '_> {
    fn fact(&mut self, value: ValueId, depth: usize) -> Fact {
        if let Some(fact) = self.seen.get(&value) {
            return fact.clone();
        }
        let fact = self.follow(value, depth);
        let fact = fact.unwrap_or_else(|| self.measured(value));
        self.seen.insert(value, fact.clone());
        fact
    }

    /// A constant, or what the node before makes of its inputs.
    fn follow(&mut self, value: ValueId, depth: usize) -> Option<Fact> {
        let view = self.view;
        if view.is_constant(value) {
            return view.constant_fact(value, CONSTANTS);
        }
        let (id, output) = view.producer(value)?;
        let node = view.node(id);
        if depth > DEPTH || !infer::has_values(node) {
            return None;
        }
        let of_shapes = infer::from_shapes(node);
        let inputs = (0..node.input.len()).map(|slot| {
            let input = view.input(id, slot)?;
            // Before a Shape there is data: what counts is what was measured.
            let known = match of_shapes {
                true => self.measured(input),
                false => self.fact(input, depth + 1),
            };
            Some(known)
        });
        let inputs: Vec<Option<Fact>> = inputs.collect();
        let call = Call::new(node, Limits::SIZES, |slot, _| inputs[slot].as_ref());
        let fact = infer::infer(&call).into_iter().nth(output)?;
        fact.value.is_some().then_some(fact)
    }

    /// The shape that the value had in the run.
    fn measured(&self, value: ValueId) -> Fact {
        let shape = self.shapes.get(self.view.name(value));
        shape.map_or_else(Fact::default, |shape| Fact::of_shape(None, shape))
    }
}

/// The values whose shapes [`integers`] asks for when it evaluates the inputs of `node` from number `first` on.
pub(super) fn measured(view: &View, node: NodeId, first: usize) -> Vec<ValueId> {
    let inputs = |node: NodeId, first: usize| {
        let slots = first..view.node(node).input.len();
        slots.filter_map(move |slot| view.input(node, slot))
    };
    let mut result = Vec::new();
    let mut pending: Vec<ValueId> = inputs(node, first).collect();
    // Every value once, and no more than a chain of sizes has.
    let mut next = 0;
    while let Some(&value) = pending.get(next).filter(|_| next < 2 * DEPTH) {
        next += 1;
        let Some((producer, _)) = view.producer(value).filter(|_| !view.is_constant(value)) else {
            continue;
        };
        let proto = view.node(producer);
        if infer::from_shapes(proto) {
            result.extend(inputs(producer, 0).filter(|&v| view.producer(v).is_some()));
        } else if infer::has_values(proto) {
            for input in inputs(producer, 0) {
                if !pending.contains(&input) {
                    pending.push(input);
                }
            }
        }
    }
    result
}
