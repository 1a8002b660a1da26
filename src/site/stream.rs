//! Where a Linear writes a stream that a norm reads.
//!
//! ```text
//! x W ── (+ b, · constant, Dropout, Cast) ── + ──▶ stream ──▶ norm
//!                             residual ──────┘
//! ```
//!
//! The norm behind divides every token by its own size. So an error of `x W` counts in relation to the size of that token
//! of the stream: on a token that is fifty times larger than the others, an error fifty times larger.

use std::collections::BTreeSet;

use crate::graph::{Use, ValueId, View};
use crate::onnx::op;
use crate::recognise::{LinearId, Passage, Recognised, passage};

/// Steps from a Linear to the norm, at most: a bias, a factor, a Dropout, two sums, and Casts around them.
const MOST_STEPS: usize = 8;

/// The value that a norm reads, if all of these Linears write it: with nothing but sums, constant factors and what changes
/// nothing on the way.
pub fn normed_stream(view: &View, found: &Recognised, linears: &[LinearId]) -> Option<ValueId> {
    let stream = |&l: &LinearId| {
        let product = view.output(found.linears[l].node, 0)?;
        normed(view, found, product, MOST_STEPS)
    };
    let mut streams = linears.iter().map(stream);
    let first = streams.next()??;
    streams.all(|other| other == Some(first)).then_some(first)
}

/// The first value from `value` on that a norm reads.
fn normed(view: &View, found: &Recognised, value: ValueId, steps: usize) -> Option<ValueId> {
    if found.norms.iter().any(|norm| norm.input == Some(value)) {
        return Some(value);
    }
    if steps == 0 {
        return None;
    }
    let behind = view.uses(value).iter().filter_map(|reader| match *reader {
        Use::Node { node, input } => {
            let on = match view.op(node) {
                op::Add => true,
                op::Mul => view.is_constant(view.input(node, 1 - input.min(1))?),
                _ => matches!(
                    passage(view, node),
                    Some(Passage::Same | Passage::FloatCast)
                ),
            };
            on.then(|| view.output(node, 0)).flatten()
        }
        Use::Captured { .. } | Use::GraphOutput(_) => None,
    });
    behind
        .filter_map(|next| normed(view, found, next, steps - 1))
        .next()
}

/// Nodes between the Linears of a site and those behind it, at most.
const MOST_NODES: usize = 500;

/// The Linears that the outputs of `linears` reach without passing through another Linear; none if too much lies between.
pub fn behind(view: &View, found: &Recognised, linears: &[LinearId]) -> BTreeSet<LinearId> {
    let mut reached = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let products = linears
        .iter()
        .filter_map(|&l| view.output(found.linears[l].node, 0));
    let mut values: Vec<ValueId> = products.collect();
    while let Some(value) = values.pop() {
        for reader in view.uses(value) {
            let Use::Node { node, .. } = *reader else {
                continue;
            };
            if let Some(linear) = found.linears.position(|l| l.node == node) {
                reached.insert(linear);
            } else if seen.insert(node) {
                let outputs = 0..view.node(node).output.len();
                values.extend(outputs.filter_map(|i| view.output(node, i)));
            }
        }
        if seen.len() > MOST_NODES {
            return BTreeSet::new();
        }
    }
    reached
}
