//! Linears in another layout ([`Layout`]) as a MatMul with a matrix on the right, so that they can be quantized.
//!
//! ```text
//! Conv(x, W: [N, C, 1, 1], b)        Transpose(x) ─ MatMul(W': [C, N]) ─ Add(b) ─ Transpose
//! Einsum(bsd,dhk->bshk)(x, W)        MatMul(x, W': [d, h·k]) ─ Reshape([0, 0, h, k])
//! MatMul(W, x)                       Transpose(x) ─ MatMul(Wᵀ) ─ Transpose
//! MatMul(x, W: [1, K, N])            MatMul(x, W': [K, N])
//! ```
//!
//! The result is the same. A Transpose before or behind that undoes one of these goes with it; ONNX Runtime moves others
//! through what is elementwise until they meet.
//!
//! Why not the integer operators of the same names: ONNX Runtime has none that reads integers and gives floats but
//! ConvInteger, which is three times slower than the float Conv (6 layers of 128 and 256 channels, 12 × 80 positions, one
//! thread: Conv 3.5 ms, ConvInteger 11.6 ms, QLinearConv 1.42 ms, this form 1.59 ms). QLinearConv rounds its output, which
//! costs accuracy; a Conv with quantized inputs alone stays in float.

use ndarray::ArrayD;

use super::RewriteError;
use super::linear::NewConstant;
use crate::graph::{Names, NodeId, Patch, ValueId, View};
use crate::onnx::node::{ints_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::tensor;
use crate::recognise::{Layout, moved_back, other_layout, unmoved};

/// What stands for a Linear in another layout, and what stood there before.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewritten {
    /// The nodes as they were, in their order, and among them the product.
    old: Vec<NodeProto>,
    /// The constants that they read.
    old_constants: Vec<TensorProto>,
    /// Nodes in place of them.
    new: Vec<NodeProto>,
    /// The constants that these read.
    new_constants: Vec<TensorProto>,
    /// The MatMul among them.
    matmul: String,
}

impl Rewritten {
    /// The patch that puts everything back as it was; `None` if anything of it was changed since.
    pub fn restore(&self, view: &View) -> Option<Patch> {
        let at = |wanted: &NodeProto| {
            view.nodes()
                .find(|(_, node)| *node == wanted)
                .map(|(id, _)| id)
        };
        let stored = |wanted: &TensorProto| view.graph().initializer.iter().any(|t| t == wanted);
        if !self.new_constants.iter().all(stored) {
            return None;
        }
        let places: Vec<NodeId> = self.new.iter().map(at).collect::<Option<_>>()?;
        let mut patch = Patch::new(format!("put `{}` back as it was", self.matmul));
        let mut anchor = None;
        for (&id, node) in places.iter().zip(&self.new) {
            patch.remove(id);
            if node.name() == self.matmul {
                anchor = Some(id);
            }
        }
        let anchor = anchor?;
        for node in &self.old {
            let stays = view.nodes().any(|(_, other)| other == node);
            if !stays {
                patch.insert_before(anchor, node.clone());
            }
        }
        for constant in &self.old_constants {
            if !stored(constant) {
                patch.add_initializer(constant.clone());
            }
        }
        Some(patch)
    }
}

/// The patches that write every Linear in another layout as a MatMul under the same name, each with what it replaces. `rank`
/// tells how many axes a value has; what it does not know stays as it is, and so do nodes that `wanted` refuses.
///
/// # Errors
/// A weight that cannot be read.
pub fn to_matmul(
    view: &View,
    names: &mut Names,
    rank: &dyn Fn(ValueId) -> Option<usize>,
    wanted: impl Fn(NodeId) -> bool,
) -> Result<Vec<(Patch, Rewritten)>, RewriteError> {
    let mut done = Vec::new();
    for (node, _) in view.nodes() {
        if let Some(Ok(layout)) = other_layout(view, node, rank)
            && wanted(node)
        {
            let writer = Writer {
                view,
                names,
                node,
                layout: &layout,
                rank: rank(layout.input),
                before: Vec::new(),
                removed: Vec::new(),
                constants: Vec::new(),
            };
            done.push(writer.write()?);
        }
    }
    Ok(done)
}

struct Writer<'a, 'm> {
    view: &'a View<'m>,
    names: &'a mut Names,
    node: NodeId,
    layout: &'a Layout,
    /// Of x, where it is known.
    rank: Option<usize>,
    /// New nodes before the MatMul.
    before: Vec<NodeProto>,
    /// Old nodes behind it that the new ones replace.
    removed: Vec<NodeId>,
    /// New constants.
    constants: Vec<TensorProto>,
}

/// A constant, and the order in which its axes are read.
type Ordered = (ArrayD<f32>, Vec<usize>);

/// What is added to the columns of a product, and the node behind it that did so.
struct Added {
    bias: String,
    node: Option<NodeId>,
}

impl Writer<'_, '_> {
    fn write(mut self) -> Result<(Patch, Rewritten), RewriteError> {
        let (view, node) = (self.view, self.node);
        let input = self.input();
        let weight = self.weight()?;
        let added = self.bias()?;
        let mut output = view.output(node, 0);
        if let Some(add) = added.as_ref().and_then(|added| added.node) {
            self.removed.push(add);
            output = view.output(add, 0);
        }
        let mut order = self.layout.output_order.clone();
        if self.layout.unit_axes == 0
            && !order.is_empty()
            && let Some(back) = output.and_then(|y| moved_back(view, y, &order))
        {
            self.removed.push(back);
            output = view.output(back, 0);
            order.clear();
        }
        let output = output.map_or("", |y| view.name(y)).to_owned();
        let behind = self.behind(added.as_ref(), &order);
        let product = self.chain(&input, &weight, behind, &output);
        Ok(self.finish(product))
    }

    /// The nodes behind the MatMul, their first inputs and outputs left open, each with a word for its output.
    fn behind(&mut self, added: Option<&Added>, order: &[usize]) -> Vec<(NodeProto, &'static str)> {
        let layout = self.layout;
        let name = self.view.node_name(self.node);
        let mut behind = Vec::new();
        if let Some(added) = added {
            let sum = self.names.derive(name, op::Add);
            let node = make_node(op::Add, &sum, &["", &added.bias], &[], vec![]);
            behind.push((node, "sum"));
        }
        if layout.columns.len() > 1 {
            let mut shape = vec![0; layout.rows.unwrap_or(0)];
            shape.extend(layout.columns.iter().map(|&n| n as i64));
            behind.push((self.reshape("split", &shape), "split"));
        }
        if !order.is_empty() {
            let transpose = self.names.derive(name, "transpose_output");
            let order = vec![ints_attr("perm", &integers(order))];
            let node = make_node(op::Transpose, &transpose, &[""], &[], order);
            behind.push((node, "ordered"));
        }
        if layout.unit_axes > 0 {
            let axes: Vec<i64> = (0..layout.unit_axes as i64).collect();
            let constant = self.names.derive(name, "axes");
            let stored = tensor::from_i64(&constant, &[axes.len()], &axes);
            self.constants.push(stored);
            let unsqueeze = self.names.derive(name, op::Unsqueeze);
            let inputs = ["", constant.as_str()];
            let node = make_node(op::Unsqueeze, &unsqueeze, &inputs, &[], vec![]);
            behind.push((node, "unsqueezed"));
        }
        behind
    }

    /// The MatMul and what stands behind it, one after the other, the last with the old output.
    fn chain(
        &mut self,
        input: &str,
        weight: &str,
        behind: Vec<(NodeProto, &str)>,
        output: &str,
    ) -> Vec<NodeProto> {
        let mut matmul = NodeProto {
            op_type: Some(op::MatMul.to_owned()),
            domain: None,
            attribute: vec![],
            input: vec![input.to_owned(), weight.to_owned()],
            output: vec![output.to_owned()],
            ..self.view.node(self.node).clone()
        };
        if !behind.is_empty() {
            matmul.output[0] = self.names.derive(output, "product");
        }
        let mut value = matmul.output[0].clone();
        let mut nodes = vec![matmul];
        let last = behind.len().saturating_sub(1);
        for (at, (mut node, what)) in behind.into_iter().enumerate() {
            let next = match at == last {
                true => output.to_owned(),
                false => self.names.derive(output, what),
            };
            node.input[0] = std::mem::replace(&mut value, next.clone());
            node.output = vec![next];
            nodes.push(node);
        }
        nodes
    }

    /// The patch, and the way back. `product` is the MatMul and what stands behind it.
    fn finish(self, product: Vec<NodeProto>) -> (Patch, Rewritten) {
        let (view, node) = (self.view, self.node);
        let (name, op) = (view.node_name(node), view.node(node).op_type());
        let mut patch = Patch::new(format!("write {op} `{name}` as a MatMul with a matrix"));
        // The Transpose before goes too where nothing else reads it.
        let before = unmoved(view, self.layout).and_then(|_| view.producer(self.layout.input));
        let before = before.map(|(transpose, _)| transpose);
        let old: Vec<NodeId> = before
            .into_iter()
            .chain([node])
            .chain(self.removed.iter().copied())
            .collect();
        let read = old.iter().flat_map(|&id| view.node(id).input.iter());
        let read = read.filter_map(|name| view.initializer(view.value(name)?));
        let matmul = product.first().map_or("", |n| n.name()).to_owned();
        let rewritten = Rewritten {
            old: old.iter().map(|&id| view.node(id).clone()).collect(),
            old_constants: read.cloned().collect(),
            new: self.before.iter().chain(&product).cloned().collect(),
            new_constants: self.constants.clone(),
            matmul,
        };
        self.removed.into_iter().for_each(|id| patch.remove(id));
        self.before
            .into_iter()
            .for_each(|n| patch.insert_before(node, n));
        let mut product = product.into_iter();
        product
            .by_ref()
            .take(1)
            .for_each(|n| patch.replace(node, n));
        product.for_each(|n| patch.insert_after(node, n));
        self.constants
            .into_iter()
            .for_each(|t| patch.add_initializer(t));
        (patch, rewritten)
    }

    /// x with its channels on one last axis.
    fn input(&mut self) -> String {
        let (view, layout) = (self.view, self.layout);
        let base = view.node_name(self.node);
        let mut value = view.name(layout.input).to_owned();
        if !layout.input_order.is_empty() {
            match unmoved(view, layout) {
                Some(before) => value = view.name(before).to_owned(),
                None => {
                    let output = self.names.derive(&value, "channels_last");
                    let node = self.names.derive(base, "transpose_input");
                    let order = vec![ints_attr("perm", &integers(&layout.input_order))];
                    let node = make_node(op::Transpose, &node, &[&value], &[&output], order);
                    self.before.push(node);
                    value = output;
                }
            }
        }
        if layout.channels.len() > 1 {
            let mut shape = vec![0; layout.rows.unwrap_or(0)];
            shape.push(layout.k() as i64);
            let output = self.names.derive(&value, "merged");
            let mut node = self.reshape("merge", &shape);
            node.input[0] = value;
            node.output = vec![output.clone()];
            self.before.push(node);
            value = output;
        }
        value
    }

    /// A Reshape to a constant shape, its first input and its output left open.
    fn reshape(&mut self, what: &str, shape: &[i64]) -> NodeProto {
        let base = self.view.node_name(self.node);
        let constant = self.names.derive(base, &format!("{what}_shape"));
        let stored = tensor::from_i64(&constant, &[shape.len()], shape);
        self.constants.push(stored);
        let node = self.names.derive(base, what);
        make_node(op::Reshape, &node, &["", &constant], &[], vec![])
    }

    /// W' as a constant of its own.
    fn weight(&mut self) -> Result<String, RewriteError> {
        let layout = self.layout;
        let name = self.view.name(layout.weight);
        let stored = self.float(layout.weight)?;
        let new = NewConstant {
            shape: vec![layout.k(), layout.n()],
            data: in_order(stored, &layout.weight_order),
            dtype: layout.dtype,
        };
        let constant = self.names.derive(name, "matrix");
        self.constants.push(new.into_tensor(&constant)?);
        Ok(constant)
    }

    /// What the node or an Add behind it adds to each column.
    fn bias(&mut self) -> Result<Option<Added>, RewriteError> {
        let view = self.view;
        if let Some(bias) = self.layout.bias {
            let bias = view.name(bias).to_owned();
            return Ok(Some(Added { bias, node: None }));
        }
        let plain = self.layout.output_order.is_empty() && self.layout.columns.len() == 1;
        // Behind a product that keeps its form, the Add is found where it is.
        let Some((add, value)) = view
            .output(self.node, 0)
            .filter(|_| !plain && self.layout.unit_axes == 0)
            .and_then(|y| self.constant_added(y))
        else {
            return Ok(None);
        };
        let Some((stored, order)) = self.per_column(value)? else {
            return Ok(None);
        };
        let new = NewConstant {
            shape: vec![self.layout.n()],
            data: in_order(stored, &order),
            dtype: self.layout.dtype,
        };
        let bias = self.names.derive(view.name(value), "columns");
        self.constants.push(new.into_tensor(&bias)?);
        Ok(Some(Added {
            bias,
            node: Some(add),
        }))
    }

    /// The Add that alone reads `product`, and the constant that it adds.
    fn constant_added(&self, product: ValueId) -> Option<(NodeId, ValueId)> {
        let view = self.view;
        let (add, slot) = view.only_reader(product)?;
        let value = view.input(add, 1 - slot.min(1))?;
        (view.op(add) == op::Add && view.is_constant(value)).then_some((add, value))
    }

    /// A constant that is added to y, with an axis for each of y, and the order of its axes that is the one of rows and
    /// columns. `None` if it is not one number per column.
    fn per_column(&self, value: ValueId) -> Result<Option<Ordered>, RewriteError> {
        let layout = self.layout;
        let rows = match (layout.rows, self.rank) {
            (Some(rows), _) => rows,
            (None, Some(rank)) => rank - 1,
            (None, None) => match layout.output_order.len() {
                0 => return Ok(None),
                rank => rank - 1,
            },
        };
        let rank = rows + layout.columns.len();
        let mut order = layout.output_order.clone();
        if order.is_empty() {
            order = (0..rank).collect();
        }
        let array = self.float(value)?;
        let missing = rank.checked_sub(array.ndim());
        let Some(missing) = missing.filter(|_| order.len() == rank) else {
            return Ok(None);
        };
        let mut shape = vec![1; missing];
        shape.extend(array.shape());
        let fits = shape.iter().zip(&order).all(|(&size, &axis)| {
            let expected = axis
                .checked_sub(rows)
                .map_or(1, |column| layout.columns[column]);
            size == expected
        });
        let Ok(array) = array.into_shape_with_order(shape) else {
            return Ok(None);
        };
        // Axis `a` among rows and columns stands at this place in y.
        let place = |axis: usize| order.iter().position(|&o| o == axis);
        let back: Option<Vec<usize>> = (0..rank).map(place).collect();
        Ok(back.filter(|_| fits).map(|back| (array, back)))
    }

    fn float(&self, value: ValueId) -> Result<ArrayD<f32>, RewriteError> {
        let constant = self.view.constant(value).and_then(|c| c.into_float());
        let unreadable = || RewriteError::Constant(self.view.name(value).to_owned());
        Ok(constant.ok_or_else(unreadable)?.0)
    }
}

fn integers(order: &[usize]) -> Vec<i64> {
    order.iter().map(|&axis| axis as i64).collect()
}

/// The elements of an array, row-major after its axes are permuted. Axes that are not named are of size 1.
fn in_order(array: ArrayD<f32>, order: &[usize]) -> Vec<f32> {
    let mut all: Vec<usize> = order.to_vec();
    all.extend((0..array.ndim()).filter(|axis| !order.contains(axis)));
    array.permuted_axes(all).iter().copied().collect()
}
