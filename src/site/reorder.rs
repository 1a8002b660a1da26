//! Channels that may stand in any order, because nothing between the Linears that write them and those that read them looks
//! at more than one.
//!
//! ```text
//! u W + b ── GELU ──────────┐                  W' = W P, b' = b P
//!             (· u V + c) ──┴── x ── Linear    W'' = Pᵀ W''        P: an order of the channels
//! ```
//!
//! *Matches* elementwise operators, whose other operands are single numbers or computed in the same way, back to the columns
//! of Linears. *Near misses*: a constant per channel in between, a second reader of any value on the way, a norm.

use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::node::attr_i;
use crate::onnx::op;
use crate::recognise::{LinearId, Recognised};

/// Values between two Linears, at most: a GELU that is written out has ten.
const MOST_VALUES: usize = 48;

/// A Linear, and its first column that is a channel; the others follow.
pub type Columns = (LinearId, usize);

/// Where the channels of `value`, which nothing but `readers` reads, come from, in graph order; none if their order is not
/// free.
pub(super) fn reorderable(
    view: &View,
    found: &Recognised,
    value: ValueId,
    readers: &[(NodeId, usize)],
    channels: usize,
) -> Vec<Columns> {
    let mut cone = Cone {
        view,
        found,
        channels,
        values: Vec::new(),
        columns: Vec::new(),
        parts: Vec::new(),
    };
    if !cone.visit(value) || !cone.is_closed(value, readers) {
        return Vec::new();
    }
    cone.columns.sort_unstable();
    cone.columns.dedup();
    cone.columns
}

/// What a value is computed from, elementwise.
struct Cone<'a, 'm> {
    view: &'a View<'m>,
    found: &'a Recognised,
    channels: usize,
    /// Values of the width of the channels, or of a whole number of them where a Split follows.
    values: Vec<ValueId>,
    columns: Vec<Columns>,
    /// Splits on the way, and which of their outputs are in the cone.
    parts: Vec<(NodeId, usize)>,
}

impl Cone<'_, '_> {
    /// Adds a value and what it is computed from; whether all of it is elementwise.
    fn visit(&mut self, value: ValueId) -> bool {
        if self.values.contains(&value) {
            return true;
        }
        self.values.push(value);
        if self.values.len() > MOST_VALUES {
            return false;
        }
        if let Some(l) = self.writer(value) {
            let linear = &self.found.linears[l];
            self.columns.push((l, 0));
            return linear.n == self.channels && !linear.odd_bias;
        }
        let Some((node, output)) = self.view.producer(value) else {
            return false;
        };
        if self.view.op(node) == op::Split {
            return self.visit_part(node, output);
        }
        let Some(inputs) = elementwise(self.view, node).filter(|_| output == 0) else {
            return false;
        };
        let mut computed = 0;
        for slot in inputs {
            let Some(input) = self.view.input(node, slot) else {
                continue;
            };
            if self.view.is_constant(input) {
                if self.view.scalar(input).is_none() {
                    return false;
                }
            } else if self.visit(input) {
                computed += 1;
            } else {
                return false;
            }
        }
        computed > 0
    }

    /// One of equal parts of the columns of one Linear.
    fn visit_part(&mut self, node: NodeId, output: usize) -> bool {
        let view = self.view;
        let Some(whole) = view.input(node, 0) else {
            return false;
        };
        let Some(l) = self.writer(whole) else {
            return false;
        };
        let linear = &self.found.linears[l];
        let parts = view.node(node).output.len();
        let axis = attr_i(view.node(node), "axis").unwrap_or(0);
        let rank = view.shape(whole).map(|s| s.len() as i64);
        let equal = match view.input(node, 1) {
            None => true,
            Some(sizes) => view
                .constant(sizes)
                .and_then(|c| c.into_ints())
                .is_some_and(|sizes| sizes.iter().all(|&s| s == self.channels as i64)),
        };
        self.parts.push((node, output));
        self.columns.push((l, output * self.channels));
        if !self.values.contains(&whole) {
            self.values.push(whole);
        }
        let last = axis == -1 || rank.is_some_and(|rank| axis + 1 == rank);
        equal && last && linear.n == parts * self.channels && !linear.odd_bias
    }

    /// The Linear whose output a value is.
    fn writer(&self, value: ValueId) -> Option<LinearId> {
        let linears = &self.found.linears;
        linears.position(|l| l.output(self.view) == Some(value))
    }

    /// Whether nothing else reads any of it.
    fn is_closed(&self, value: ValueId, readers: &[(NodeId, usize)]) -> bool {
        let inside = |reader: &Use, of: ValueId| match *reader {
            Use::Node { node, input } => {
                // x' has the shape of x.
                matches!(self.view.op(node), op::Shape | op::Size)
                    || match of == value {
                        true => readers.contains(&(node, input)),
                        false => self.is_step(node),
                    }
            }
            _ => false,
        };
        let mut values = self.values.iter();
        values.all(|&v| self.view.uses(v).iter().all(|reader| inside(reader, v)))
    }

    /// Whether a node computes values of the cone and no others.
    fn is_step(&self, node: NodeId) -> bool {
        let is_part = |output: usize| self.parts.contains(&(node, output));
        if self.view.op(node) == op::Split {
            return (0..self.view.node(node).output.len()).all(is_part);
        }
        let output = self.view.output(node, 0);
        output.is_some_and(|v| self.values.contains(&v))
    }
}

/// The inputs of an operator that computes each element from those at the same place, or from single numbers; `None` for
/// other operators.
fn elementwise(view: &View, node: NodeId) -> Option<std::ops::Range<usize>> {
    let inputs = view.node(node).input.len();
    match view.op(node) {
        op::Abs
        | op::Cast
        | op::Celu
        | op::Elu
        | op::Erf
        | op::Exp
        | op::Gelu
        | op::HardSigmoid
        | op::HardSwish
        | op::Identity
        | op::LeakyRelu
        | op::Log
        | op::Mish
        | op::Neg
        | op::Reciprocal
        | op::Relu
        | op::Selu
        | op::Shrink
        | op::Sigmoid
        | op::Softplus
        | op::Softsign
        | op::Sqrt
        | op::Swish
        | op::Tanh
        | op::ThresholdedRelu
        | op::QuickGelu => Some(0..1),
        op::Dropout => Some(0..1),
        op::Add
        | op::Sub
        | op::Mul
        | op::Div
        | op::Pow
        | op::Max
        | op::Min
        | op::Sum
        | op::Clip
        | op::PRelu
        | op::FastGelu => Some(0..inputs),
        _ => None,
    }
}
