//! Where the axes of values come from: which axis of which graph input each of them follows.
//!
//! ```text
//! ids [B, S] ── Gather ── x [B, S, C] ── Reshape ── [B·S, C] ── MatMul ── Reshape ── Transpose ── k [B, H, D, S]
//!                                                                                                      │
//! mask [B, M] ── Unsqueeze, Cast, … ── [B, 1, 1, M] ── Add ── [B, H, T, S or M] ◀── q kᵀ [B, H, T, S] ─┘   so M is S
//! ```
//!
//! The name of an axis of an input is a [`Symbol`]. An axis of a value inside is a list of [`Factor`]s, the slowest first: a
//! symbol's axis, a part of one, or a size of its own. Where an operator lays two axes over each other element by element (an
//! Add, a product that sums over them), their symbols are *the same tokens* from there on, with an offset where one is a part
//! of the other (Concat, Slice, Pad). Lengths that happen to be equal say nothing.
//!
//! This needs the concrete shapes of one run. Of a value behind an operator without a rule nothing is known.

mod layout;
mod pick;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::infer::Facts;
use crate::onnx::proto::NodeProto;

/// An axis of a graph input, or one that a Concat or a Pad has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Symbol(usize);

/// A part of an axis: index `i` is element `start + step · i` of the symbol's axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    /// How many there are.
    pub size: usize,
    /// The symbol with start and step; `None` for what comes from no input (channels, heads).
    pub origin: Option<(Symbol, usize, usize)>,
}

/// The factors of one axis, the slowest first; the product of their sizes is its size.
pub type Axis = Vec<Factor>;

impl Factor {
    fn plain(size: usize) -> Factor {
        Factor { size, origin: None }
    }
}

/// The axes of the values of a graph at the input shapes of one run.
#[derive(Clone, Debug, Default)]
pub struct Axes {
    values: BTreeMap<String, Vec<Axis>>,
    /// Values that come from no input.
    constants: BTreeSet<String>,
    /// The symbol of every axis of the inputs.
    inputs: BTreeMap<String, Vec<Symbol>>,
    symbols: Vec<Known>,
    rows: Option<Symbol>,
}

/// What is known of a symbol: element `i` of it is element `i + offset` of its parent.
#[derive(Clone, Copy, Debug)]
struct Known {
    parent: usize,
    offset: i64,
    size: usize,
}

impl Axes {
    /// Nothing is known of any value yet.
    pub fn new() -> Axes {
        Axes::default()
    }

    /// A graph input of this shape. Where it has one row per row of the data, all such inputs share the symbol of axis 0.
    pub fn input(&mut self, name: &str, shape: &[usize], by_row: bool) {
        let mut symbols = Vec::with_capacity(shape.len());
        for (axis, &size) in shape.iter().enumerate() {
            let symbol = match (axis, by_row, self.rows) {
                (0, true, Some(rows)) => rows,
                _ => self.symbol(size),
            };
            if axis == 0 && by_row {
                self.rows = Some(symbol);
            }
            symbols.push(symbol);
        }
        let axis = |(&size, &symbol): (&usize, &Symbol)| {
            vec![Factor {
                size,
                origin: Some((symbol, 0, 1)),
            }]
        };
        let axes = shape.iter().zip(&symbols).map(axis).collect();
        self.values.insert(name.to_owned(), axes);
        self.inputs.insert(name.to_owned(), symbols);
    }

    /// A constant: its axes are its own.
    pub fn constant(&mut self, name: &str) {
        self.constants.insert(name.to_owned());
    }

    /// Follows nodes in order of execution; `facts` know the shapes of their values.
    pub fn follow<'n>(&mut self, nodes: impl Iterator<Item = &'n NodeProto>, facts: &Facts) {
        for node in nodes {
            rules::follow(self, node, facts);
        }
    }

    /// The axes of a value; `None` where an operator on the way has no rule, or its shape depends on the data.
    pub fn of(&self, name: &str) -> Option<&[Axis]> {
        self.values.get(name).map(Vec::as_slice)
    }

    /// The symbols of the axes of a graph input.
    pub fn of_input(&self, name: &str) -> Option<&[Symbol]> {
        self.inputs.get(name).map(Vec::as_slice)
    }

    /// The graph inputs, by name.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[Symbol])> {
        self.inputs.iter().map(|(name, s)| (name.as_str(), &s[..]))
    }

    /// The symbol of the rows of the data.
    pub fn rows(&self) -> Option<Symbol> {
        self.rows
    }

    /// How many elements the symbol's axis has.
    pub fn size(&self, symbol: Symbol) -> usize {
        self.symbols[symbol.0].size
    }

    /// The element of `b` that element 0 of `a` is, if both are the same tokens.
    pub fn offset(&self, a: Symbol, b: Symbol) -> Option<i64> {
        let ((a, to_a), (b, to_b)) = (self.root(a), self.root(b));
        (a == b).then_some(to_a - to_b)
    }

    fn symbol(&mut self, size: usize) -> Symbol {
        let parent = self.symbols.len();
        self.symbols.push(Known {
            parent,
            offset: 0,
            size,
        });
        Symbol(parent)
    }

    /// The symbol that stands for all that are the same, and which element of it element 0 is.
    fn root(&self, symbol: Symbol) -> (usize, i64) {
        let (mut at, mut offset) = (symbol.0, 0);
        while self.symbols[at].parent != at {
            offset += self.symbols[at].offset;
            at = self.symbols[at].parent;
        }
        (at, offset)
    }

    /// Element 0 of `a` is element `offset` of `b`. What was known before and contradicts it stays.
    fn join(&mut self, a: Symbol, b: Symbol, offset: i64) {
        let rows = self.rows.map(|rows| self.root(rows).0);
        let ((a, to_a), (b, to_b)) = (self.root(a), self.root(b));
        // Rows are no tokens: where a product lays tokens over rows, nothing is learnt of either.
        if a == b || rows == Some(a) || rows == Some(b) {
            return;
        }
        self.symbols[a].parent = b;
        self.symbols[a].offset = offset + to_b - to_a;
    }

    fn set(&mut self, name: &str, axes: Vec<Axis>) {
        let axes = axes.into_iter().map(|axis| layout::merged(&axis));
        self.values.insert(name.to_owned(), axes.collect());
    }
}
