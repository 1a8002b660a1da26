//! What can be known of values without running the model: ranks, element types and small constants.
//!
//! Exporters of old models state little about inner values, but two conversions depend on it: Softmax keeps its form
//! only if its axis is known to be the last, and Clip's bounds need its input's type. Ranks follow the graph forwards
//! from inputs and constants; element types spread in both directions between values that an operator ties together.
//! What is not known is absent, never guessed.

use std::collections::{HashMap, HashSet};

use crate::graph::view::is_standard_domain;
use crate::onnx::DataType;
use crate::onnx::node::{attr_i, attr_ints, attr_t};
use crate::onnx::op;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto};

/// Constants with more elements than this are weights: nothing here looks inside them.
const SMALL: i64 = 64;

/// Facts about values by name. A subgraph starts with a copy of those around it.
#[derive(Clone, Default)]
pub(super) struct Facts {
    ranks: HashMap<String, usize>,
    types: HashMap<String, i32>,
    /// Number of elements of one-dimensional integer values: the shapes given to Reshape and Expand.
    lengths: HashMap<String, usize>,
    constants: HashMap<String, TensorProto>,
}

impl Facts {
    /// The rank of a value.
    pub(super) fn rank(&self, name: &str) -> Option<usize> {
        self.ranks.get(name).copied()
    }

    /// The element type of a value.
    pub(super) fn dtype(&self, name: &str) -> Option<DataType> {
        DataType::try_from(*self.types.get(name)?)
            .ok()
            .filter(|&t| t != DataType::Undefined)
    }

    /// The tensor behind a small constant.
    pub(super) fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.constants.get(name)
    }

    /// Adds what `graph` says. `overridable`: an initializer that is listed as an input is only a default (IR 4).
    pub(super) fn add_graph(&mut self, graph: &GraphProto, overridable: bool) {
        for info in graph
            .input
            .iter()
            .chain(&graph.value_info)
            .chain(&graph.output)
        {
            self.add_info(info);
        }
        let inputs: HashSet<&str> = graph
            .input
            .iter()
            .filter_map(|i| i.name.as_deref())
            .collect();
        for tensor in &graph.initializer {
            let name = tensor.name();
            self.ranks.insert(name.to_owned(), tensor.dims.len());
            self.types
                .extend(tensor.data_type.map(|t| (name.to_owned(), t)));
            if !(overridable && inputs.contains(name)) {
                self.add_constant(name, tensor);
            }
        }
        self.add_nodes(&graph.node);
    }

    /// Adds what a list of nodes, in order of execution, implies.
    pub(super) fn add_nodes(&mut self, nodes: &[NodeProto]) {
        for node in nodes.iter().filter(|n| is_standard_domain(n)) {
            self.follow(node);
        }
        // A type may have to travel against the order of nodes more than once; each round adds one or stops.
        let mut known = None;
        while known != Some(self.types.len()) {
            known = Some(self.types.len());
            for node in nodes.iter().filter(|n| is_standard_domain(n)) {
                self.tie_types(node);
            }
        }
    }

    fn add_info(&mut self, info: &ValueInfoProto) {
        let Some(type_proto::Value::TensorType(tensor)) =
            info.r#type.as_ref().and_then(|t| t.value.as_ref())
        else {
            return;
        };
        self.types
            .extend(tensor.elem_type.map(|t| (info.name().to_owned(), t)));
        self.ranks.extend(
            tensor
                .shape
                .as_ref()
                .map(|s| (info.name().to_owned(), s.dim.len())),
        );
    }

    fn add_constant(&mut self, name: &str, tensor: &TensorProto) {
        if let [length] = tensor.dims[..]
            && let Ok(length) = usize::try_from(length)
        {
            self.lengths.insert(name.to_owned(), length);
        }
        if tensor.dims.iter().product::<i64>() <= SMALL {
            self.constants.insert(name.to_owned(), tensor.clone());
        }
    }

    /// Ranks and lengths of a node's outputs from those of its inputs.
    fn follow(&mut self, node: &NodeProto) {
        let input = |slot: usize| node.input.get(slot).map_or("", |n| n.as_str());
        let Some(output) = node.output.first().filter(|o| !o.is_empty()) else {
            return;
        };
        let rank = |slot: usize| self.rank(input(slot));
        let broadcast = || -> Option<usize> {
            let ranks = node
                .input
                .iter()
                .map(|n| self.rank(n))
                .collect::<Option<Vec<_>>>()?;
            ranks.into_iter().max()
        };
        let axes = || match attr_ints(node, "axes") {
            Some(axes) => Some(axes.len()),
            None => self.lengths.get(input(1)).copied(),
        };
        let mut length = None;
        let found = match node.op_type() {
            op::Constant => {
                let Some(tensor) = attr_t(node, "value") else {
                    return;
                };
                self.types
                    .extend(tensor.data_type.map(|t| (output.clone(), t)));
                self.ranks.insert(output.clone(), tensor.dims.len());
                self.add_constant(output, &tensor.clone());
                return;
            }
            op::ConstantOfShape => self.lengths.get(input(0)).copied(),
            op::Range => Some(1),
            op::Shape => {
                length = rank(0);
                Some(1)
            }
            op::Reshape => {
                let found = self.lengths.get(input(1)).copied();
                length = self
                    .lengths
                    .get(input(0))
                    .copied()
                    .filter(|_| found == Some(1));
                found
            }
            op::Expand => {
                let target = self.lengths.get(input(1)).copied();
                rank(0).zip(target).map(|(a, b)| a.max(b))
            }
            op::Flatten | op::Gemm => Some(2),
            op::Transpose => attr_ints(node, "perm").map(<[i64]>::len).or(rank(0)),
            op::MatMul => match (rank(0), rank(1)) {
                (Some(a), Some(b)) if a >= 2 && b >= 2 => Some(a.max(b)),
                _ => None,
            },
            op::Unsqueeze => {
                let found = rank(0).zip(axes()).map(|(r, n)| r + n);
                length = (found == Some(1)).then_some(1);
                found
            }
            op::Squeeze => rank(0).zip(axes()).and_then(|(r, n)| r.checked_sub(n)),
            op::Gather => {
                let found = rank(0)
                    .zip(rank(1))
                    .and_then(|(r, q)| (r + q).checked_sub(1));
                length = if rank(0) == Some(1) {
                    self.lengths.get(input(1)).copied()
                } else {
                    None
                };
                found
            }
            op::Concat => {
                let parts: Option<Vec<usize>> = node
                    .input
                    .iter()
                    .map(|n| self.lengths.get(n).copied())
                    .collect();
                length = parts.map(|p| p.iter().sum());
                node.input.iter().find_map(|n| self.rank(n))
            }
            op::ReduceL1
            | op::ReduceL2
            | op::ReduceLogSum
            | op::ReduceLogSumExp
            | op::ReduceMax
            | op::ReduceMean
            | op::ReduceMin
            | op::ReduceProd
            | op::ReduceSum
            | op::ReduceSumSquare => match (attr_i(node, "keepdims").unwrap_or(1), axes()) {
                (0, Some(n)) => rank(0).and_then(|r| r.checked_sub(n)),
                (0, None) => None,
                _ => rank(0),
            },
            op::Cast | op::Identity => {
                length = self.lengths.get(input(0)).copied();
                rank(0)
            }
            op::Add
            | op::Sub
            | op::Mul
            | op::Div
            | op::Pow
            | op::Mod
            | op::Max
            | op::Min
            | op::Sum
            | op::Mean
            | op::And
            | op::Or
            | op::Xor
            | op::Equal
            | op::Greater
            | op::Less
            | op::GreaterOrEqual
            | op::LessOrEqual
            | op::Where
            | op::PRelu => {
                // Vectors broadcast with one of more than one element have its length, whatever the others are.
                let longest = node
                    .input
                    .iter()
                    .filter_map(|n| self.lengths.get(n).copied())
                    .max();
                length = longest.filter(|&n| n > 1 && broadcast() == Some(1));
                broadcast()
            }
            op::Split => rank(0),
            op if keeps_rank(op) => rank(0),
            _ => None,
        };
        if let Some(found) = found {
            let outputs = if node.op_type() == op::Split {
                &node.output[..]
            } else {
                &node.output[..1]
            };
            for output in outputs {
                self.ranks.entry(output.clone()).or_insert(found);
            }
        }
        self.lengths.extend(length.map(|n| (output.clone(), n)));
        // A permutation tells the rank of what it permutes too.
        if let (op::Transpose, Some(perm)) = (node.op_type(), attr_ints(node, "perm")) {
            self.ranks.entry(input(0).to_owned()).or_insert(perm.len());
        }
        match node.op_type() {
            op::Cast => self.types.extend(
                attr_i(node, "to")
                    .and_then(|t| i32::try_from(t).ok())
                    .map(|t| (output.clone(), t)),
            ),
            op::ConstantOfShape => {
                let dtype = match attr_t(node, "value") {
                    Some(value) => value.data_type,
                    None => Some(DataType::Float as i32),
                };
                self.types.extend(dtype.map(|t| (output.clone(), t)));
            }
            op::Shape | op::Size | op::ArgMax | op::ArgMin | op::NonZero => {
                self.types.insert(output.clone(), DataType::Int64 as i32);
            }
            _ => {}
        }
    }

    /// Gives every value that must have the type of another the type of that other.
    fn tie_types(&mut self, node: &NodeProto) {
        let tied: Vec<&String> = match node.op_type() {
            op if all_of_one_type(op) => node.input.iter().chain(&node.output).collect(),
            op::Where => node.input.iter().skip(1).chain(&node.output).collect(),
            op::Split => node.input.iter().take(1).chain(&node.output).collect(),
            op if keeps_type(op) => node
                .input
                .iter()
                .take(1)
                .chain(node.output.first())
                .collect(),
            _ => return,
        };
        let Some(found) = tied.iter().find_map(|n| self.types.get(*n).copied()) else {
            return;
        };
        for name in tied.into_iter().filter(|n| !n.is_empty()) {
            self.types.entry(name.clone()).or_insert(found);
        }
    }
}

/// Operators of one input (or one that matters) whose output has its rank.
fn keeps_rank(op: &str) -> bool {
    matches!(
        op,
        op::Abs
            | op::AveragePool
            | op::BatchNormalization
            | op::Ceil
            | op::Celu
            | op::Clip
            | op::Conv
            | op::ConvTranspose
            | op::CumSum
            | op::DequantizeLinear
            | op::Dropout
            | op::Elu
            | op::Erf
            | op::Exp
            | op::Floor
            | op::GatherElements
            | op::GlobalAveragePool
            | op::GlobalMaxPool
            | op::HardSigmoid
            | op::Hardmax
            | op::InstanceNormalization
            | op::IsNaN
            | op::LayerNormalization
            | op::LeakyRelu
            | op::Log
            | op::LogSoftmax
            | op::MaxPool
            | op::Neg
            | op::Not
            | op::Pad
            | op::QuantizeLinear
            | op::Reciprocal
            | op::Relu
            | op::Resize
            | op::Round
            | op::Scatter
            | op::ScatterElements
            | op::ScatterND
            | op::Selu
            | op::Sigmoid
            | op::Sign
            | op::SimplifiedLayerNormalization
            | op::Slice
            | op::Softmax
            | op::Softplus
            | op::Softsign
            | op::Sqrt
            | op::Tanh
            | op::Tile
            | op::Upsample
    )
}

/// Operators all of whose inputs and outputs have one element type, in every version up to 13.
fn all_of_one_type(op: &str) -> bool {
    matches!(
        op,
        op::Add
            | op::BatchNormalization
            | op::Concat
            | op::Conv
            | op::ConvTranspose
            | op::Div
            | op::Einsum
            | op::Gemm
            | op::InstanceNormalization
            | op::MatMul
            | op::Max
            | op::Mean
            | op::Min
            | op::Mul
            | op::PRelu
            | op::Sub
            | op::Sum
    )
}

/// Operators whose first output has the element type of the first input.
fn keeps_type(op: &str) -> bool {
    let other_output = [op::IsNaN, op::Not, op::QuantizeLinear, op::DequantizeLinear];
    let also = [
        op::DepthToSpace,
        op::Expand,
        op::Flatten,
        op::Gather,
        op::GatherND,
        op::Identity,
        op::Pow,
        op::Reshape,
        op::SpaceToDepth,
        op::Squeeze,
        op::TopK,
        op::Transpose,
        op::Unsqueeze,
    ];
    (keeps_rank(op) && !other_output.contains(&op))
        || also.contains(&op)
        || op.starts_with("Reduce")
}
