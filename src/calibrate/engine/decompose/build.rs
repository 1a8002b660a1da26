//! The workbench of a decomposition: what is known of the values, and the nodes made so far.

use std::ops::Range;

use super::scope::Scope;
use crate::calibrate::engine::error::EngineError;
use crate::calibrate::engine::node::node_label;
use crate::calibrate::engine::round_blocks::ROUND_BLOCKS;
use crate::graph::{Blocked, Names};
use crate::onnx::node::{int_attr, make_node, tensor_attr};
use crate::onnx::op;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};

/// What a decomposition did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The node stays; what was built is thrown away.
    Kept,
    /// What was built takes the place of the node, under its output names.
    Replaced,
}

/// A decomposition. It fails where the engine would compute something else and no other form is known.
pub(super) type Rule = fn(&NodeProto, &mut Build<'_, '_>) -> Result<Outcome, EngineError>;

/// Collects the nodes that stand for one node. They are named after it, new values after its first output; the engine
/// wants every name once.
pub(super) struct Build<'a, 'g> {
    /// What is known of the values that the node reads.
    pub scope: &'a mut Scope<'g>,
    names: &'a mut Names,
    label: String,
    op: String,
    base: String,
    nodes: Vec<NodeProto>,
}

impl<'a, 'g> Build<'a, 'g> {
    pub(super) fn new(node: &NodeProto, scope: &'a mut Scope<'g>, names: &'a mut Names) -> Self {
        let base = node.output.iter().find(|name| !name.is_empty());
        Build {
            scope,
            names,
            label: node_label(node),
            op: node.op_type().to_owned(),
            base: base.cloned().unwrap_or_default(),
            nodes: Vec::new(),
        }
    }

    /// Appends a node of the standard domain with one new output, and returns that.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str], attrs: Vec<AttributeProto>) -> String {
        let output = self.names.derive(&self.base, op);
        self.op_to(op, inputs, &output, attrs);
        output
    }

    /// Appends a node of the standard domain that computes `output`.
    pub(super) fn op_to(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attrs: Vec<AttributeProto>,
    ) {
        let name = self.names.derive(&self.label, op);
        let node = make_node(op, &name, inputs, &[output], attrs);
        self.scope.learn(&node);
        self.nodes.push(node);
    }

    /// Appends a node as it is.
    pub(super) fn push(&mut self, node: NodeProto) {
        self.nodes.push(node);
    }

    /// A new name for a value, for nodes that are [pushed](Self::push).
    pub(super) fn fresh(&mut self, suffix: &str) -> String {
        self.names.derive(&self.base, suffix)
    }

    /// A float32 constant.
    pub(super) fn floats(&mut self, shape: &[usize], data: &[f32]) -> String {
        self.constant(tensor::from_f32("", shape, data, DataType::Float))
    }

    /// A float32 scalar.
    pub(super) fn float(&mut self, value: f32) -> String {
        self.floats(&[], &[value])
    }

    /// An int64 constant of one axis.
    pub(super) fn ints(&mut self, data: &[i64]) -> String {
        self.constant(tensor::from_i64("", &[data.len()], data))
    }

    /// An int64 scalar.
    pub(super) fn int(&mut self, value: i64) -> String {
        self.constant(tensor::from_i64("", &[], &[value]))
    }

    /// 0, 1, …, n − 1 as int64: [1, n].
    pub(super) fn positions(&mut self, n: usize) -> String {
        let numbers: Vec<i64> = (0..n as i64).collect();
        let numbers = self.ints(&numbers);
        self.reshape(&numbers, &[1, n])
    }

    /// The shape of a value that the node reads, or that was made for it.
    ///
    /// # Errors
    /// It is not known before the model runs.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>, EngineError> {
        let shape = self.scope.shape(name);
        shape.ok_or_else(|| EngineError::UnknownShape {
            node: self.label.clone(),
            op: self.op.clone(),
            value: name.to_owned(),
        })
    }

    /// The shape of a value that must have `N` axes.
    ///
    /// # Errors
    /// It is not known before the model runs, or has another number of axes.
    pub(super) fn axes<const N: usize>(&self, name: &str) -> Result<[usize; N], EngineError> {
        let shape = self.shape(name)?;
        let other = || self.refused(format!("`{name}` has shape {shape:?}, not {N} axes"));
        <[usize; N]>::try_from(shape.as_slice()).map_err(|_| other())
    }

    /// Cast to another type.
    pub(super) fn cast(&mut self, x: &str, to: DataType) -> String {
        self.op(op::Cast, &[x], vec![int_attr("to", to as i64)])
    }

    /// The elements of `range` along one axis.
    pub(super) fn slice(&mut self, x: &str, axis: i64, range: Range<usize>) -> String {
        let starts = self.ints(&[range.start as i64]);
        let ends = self.ints(&[range.end as i64]);
        let axes = self.ints(&[axis]);
        self.op(op::Slice, &[x, &starts, &ends, &axes], vec![])
    }

    /// The same elements in another shape.
    pub(super) fn reshape(&mut self, x: &str, shape: &[usize]) -> String {
        let target: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let target = self.ints(&target);
        self.op(op::Reshape, &[x, &target], vec![])
    }

    /// Rounds by blocks of the last axis to 8 bits.
    pub(super) fn round_blocks(&mut self, x: &str, block: usize) -> String {
        let block = vec![int_attr("block_size", block as i64)];
        let rounded = self.op(ROUND_BLOCKS, &[x], block);
        if let Some(shape) = self.scope.shape(x) {
            self.scope.know_floats(&rounded, &shape);
        }
        rounded
    }

    /// The weight in blocks that a node reads.
    pub(super) fn blocked(&self, node: &NodeProto) -> Option<Blocked<'g>> {
        Blocked::of(node, &|name| self.scope.constant(name))
    }

    /// A weight with one scale, or one for every place of an axis, that a DequantizeLinear reads.
    pub(super) fn whole(&self, node: &NodeProto) -> Option<Blocked<'g>> {
        Blocked::whole(node, &|name| self.scope.constant(name))
    }

    /// A weight in blocks as a constant of floats: dequantized when the engine gets it, once for all nodes that read the same.
    ///
    /// # Errors
    /// In a subgraph it is dequantized here, which fails if it names a group that is none.
    pub(super) fn store(&mut self, weight: Blocked<'g>) -> Result<String, EngineError> {
        if self.scope.is_main() {
            let names = &mut *self.names;
            let base = format!("{}/floats", weight.name());
            return Ok(self.scope.store(weight, || names.unique(&base)));
        }
        let floats = weight.floats();
        let floats = floats.ok_or_else(|| self.refused("its g_idx names a block that is none"))?;
        Ok(self.floats(&weight.shape, &floats))
    }

    fn constant(&mut self, value: TensorProto) -> String {
        self.op(op::Constant, &[], vec![tensor_attr("value", value)])
    }

    /// The error for a form of the operator that calibration cannot run.
    pub(super) fn refused(&self, reason: impl Into<String>) -> EngineError {
        EngineError::Refused {
            node: self.label.clone(),
            op: self.op.clone(),
            reason: reason.into(),
        }
    }

    pub(super) fn finish(self) -> Vec<NodeProto> {
        self.nodes
    }
}
