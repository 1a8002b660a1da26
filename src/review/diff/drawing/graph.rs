//! What is drawn of a block: its nodes that are only in one model or otherwise now, and their neighbours, in layers.

use std::collections::{BTreeMap, BTreeSet};

use crate::onnx::proto::NodeProto;
use crate::onnx::{op as operator, shown};

use super::super::matching::Matching;
use super::super::scope::{Scope, label, op};

/// Most nodes of one drawing.
const MOST: usize = 120;

/// What became of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Same,
    Changed,
    /// It is in this model alone.
    Alone,
}

/// A node, where it stands.
#[derive(Debug)]
pub(super) struct Shape {
    pub op: String,
    pub name: String,
    pub state: State,
    /// Its layer: one more than that of what it reads.
    pub layer: usize,
    /// Its place in the layer, in widths of a node.
    pub place: f64,
}

/// The drawing of a block in one of the models.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    pub shapes: Vec<Shape>,
    /// From shape to shape, with the name of the value.
    pub edges: Vec<(usize, usize, String)>,
    /// Nodes that had no room.
    pub left: usize,
}

/// One of the two models, as the matching sees it.
#[derive(Clone, Copy)]
pub(super) struct Side<'x, 'm> {
    pub scope: &'x Scope<'m>,
    pub states: &'x [State],
    pub blocks: &'x [String],
}

/// What became of every node of both graphs.
pub(super) fn states(m: &Matching) -> (Vec<State>, Vec<State>) {
    let mut a = vec![State::Alone; m.to_b.len()];
    let mut b = vec![State::Alone; m.to_a.len()];
    for (i, j) in m.to_b.iter().enumerate() {
        if let Some(j) = *j {
            let state = match is_changed(m, m.a.node(i), m.b.node(j)) {
                true => State::Changed,
                false => State::Same,
            };
            (a[i], b[j]) = (state, state);
        }
    }
    (a, b)
}

/// Whether two nodes that belong together compute otherwise: operator, attributes, constants, or what they read.
fn is_changed<'m>(m: &Matching<'m>, a: &'m NodeProto, b: &'m NodeProto) -> bool {
    let reads_otherwise =
        |(x, y): (&'m String, &'m String)| match (m.a.constant(x), m.b.constant(y)) {
            (Some(x), Some(y)) => {
                let mut renamed = y.clone();
                renamed.name.clone_from(&x.name);
                *x != renamed
            }
            (None, None) => m.value(x) != y.as_str(),
            _ => true,
        };
    op(a) != op(b)
        || a.attribute != b.attribute
        || a.input.len() != b.input.len()
        || a.input.iter().zip(&b.input).any(reads_otherwise)
}

/// The drawing of `block`; empty if none of its nodes differ.
pub(super) fn drawing(side: Side, block: &str) -> Drawing {
    let wanted = |&i: &usize| side.blocks[i] == block && side.states[i] != State::Same;
    let mut picked: BTreeSet<usize> = (0..side.states.len()).filter(wanted).collect();
    let mut left = 0;
    if picked.len() > MOST {
        left = picked.len() - MOST;
        picked = picked.into_iter().take(MOST).collect();
    }
    for i in picked.clone() {
        for near in neighbours(side.scope, i) {
            if picked.len() < MOST {
                picked.insert(near);
            }
        }
    }
    // A Constant is part of who reads it.
    picked.retain(|&i| side.scope.node(i).op_type() != operator::Constant);
    let order: Vec<usize> = picked.into_iter().collect();
    let at: BTreeMap<usize, usize> = order.iter().enumerate().map(|(k, &i)| (i, k)).collect();
    let mut edges = Vec::new();
    for (&i, &k) in &at {
        for value in &side.scope.node(i).input {
            let from = side.scope.producer.get(value.as_str());
            // Only forwards: a file may have circles.
            if let Some(&from) = from.and_then(|(from, _)| at.get(from)).filter(|f| **f < k) {
                edges.push((from, k, shown(value).into_owned()));
            }
        }
    }
    let shapes = placed(side, &order, &edges);
    Drawing {
        shapes,
        edges,
        left,
    }
}

/// The nodes that a node reads and that read it.
fn neighbours(scope: &Scope, i: usize) -> Vec<usize> {
    let node = scope.node(i);
    let before = node
        .input
        .iter()
        .filter_map(|v| Some(scope.producer.get(v.as_str())?.0));
    let after = node
        .output
        .iter()
        .flat_map(|v| scope.readers(v))
        .map(|r| r.0);
    before.chain(after).collect()
}

/// Layers by the longest way, places near the middle of what a node reads.
fn placed(side: Side, order: &[usize], edges: &[(usize, usize, String)]) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = order
        .iter()
        .map(|&i| {
            let node = side.scope.node(i);
            Shape {
                op: shown(&op(node)).into_owned(),
                name: shown(label(node)).into_owned(),
                state: side.states[i],
                layer: 0,
                place: 0.0,
            }
        })
        .collect();
    let mut read: Vec<Vec<usize>> = vec![Vec::new(); shapes.len()];
    for &(from, to, _) in edges {
        read[to].push(from);
    }
    let mut layers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for k in 0..shapes.len() {
        let layer = read[k].iter().map(|&f| shapes[f].layer + 1).max();
        shapes[k].layer = layer.unwrap_or(0);
        layers.entry(shapes[k].layer).or_default().push(k);
    }
    for row in layers.values() {
        let middle = |k: usize| match read[k].len() {
            0 => 0.0,
            n => read[k].iter().map(|&f| shapes[f].place).sum::<f64>() / n as f64,
        };
        let mut row: Vec<(f64, usize)> = row.iter().map(|&k| (middle(k), k)).collect();
        row.sort_by(|x, y| x.0.total_cmp(&y.0).then(x.1.cmp(&y.1)));
        let mut free = f64::NEG_INFINITY;
        for (wished, k) in row {
            shapes[k].place = wished.max(free);
            free = shapes[k].place + 1.0;
        }
    }
    shapes
}
