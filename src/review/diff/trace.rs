//! From an input of a node back through what only one of the models has, to a value that both know.

use super::blocks;
use super::constant::Dequantize;
use super::per_token;
use super::rotation;
use super::scope::Scope;
use crate::graph::Blocked;
use crate::onnx::node;
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

/// Where a value comes from.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace<'m> {
    /// The first value behind the chain.
    pub source: &'m str,
    /// The nodes on the way, from the value backwards.
    pub nodes: Vec<usize>,
    /// The constants that those read.
    pub constants: Vec<&'m str>,
    /// How the source is to be read, if it is dequantized (or multiplied) on the way.
    pub quantized: Option<Dequantize<'m>>,
    /// The same of a source in blocks.
    pub blocked: Option<Blocked<'m>>,
    /// Something else is done to the elements, so that they do not correspond to those of another constant.
    pub moved: bool,
    /// There is a rotation on the way, or it is a weight behind one: its rows are mixed, too.
    pub rotated: bool,
}

/// A longer chain is a computation of its own.
const MAX_STEPS: usize = 12;

/// Follows `value` backwards through nodes without a counterpart that change its form or multiply or add a constant.
pub(super) fn trace<'m>(scope: &Scope<'m>, matched: &[Option<usize>], value: &'m str) -> Trace<'m> {
    let mut found = Trace {
        source: value,
        ..Trace::default()
    };
    while found.nodes.len() < MAX_STEPS && scope.constant(found.source).is_none() {
        let Some(&(i, _)) = scope.producer.get(found.source) else {
            break;
        };
        let op = scope.node(i);
        if matched[i].is_some() {
            break;
        }
        if let Some(chain) = rotation::ending_at(scope, i)
            && chain.nodes.iter().all(|&n| matched[n].is_none())
        {
            (found.moved, found.rotated) = (true, true);
            found.nodes.extend(chain.nodes.iter().rev());
            found.constants.extend(chain.constants);
            found.source = chain.input;
            continue;
        }
        let Some(slot) = data_input(scope, i) else {
            break;
        };
        let input = op.input[slot].as_str();
        if found.blocked.is_none() && found.quantized.is_none() {
            found.blocked = blocks::of(scope, op);
        }
        let others = op.input.iter().enumerate().filter(|(s, _)| *s != slot);
        found
            .constants
            .extend(others.map(|(_, v)| v.as_str()).filter(|v| !v.is_empty()));
        let factor = |slot: usize| op.input.get(slot).and_then(|v| scope.constant(v));
        let scale = match op.op_type() {
            op::DequantizeLinear => factor(1),
            op::Mul => factor(1 - slot.min(1)),
            _ => None,
        };
        match (op.op_type(), scale) {
            (op::DequantizeLinear, _) if found.blocked.is_some() => {}
            (_, Some(scale)) if found.quantized.is_none() => {
                let linear = op.op_type() == op::DequantizeLinear;
                found.quantized = Some(Dequantize {
                    scale,
                    zero_point: factor(2).filter(|_| linear),
                    axis: node::attr_i(op, "axis").unwrap_or(if linear { 1 } else { -1 }),
                });
            }
            (op::Cast | op::Identity, _) => {}
            _ => found.moved = true,
        }
        found.nodes.push(i);
        found.source = input;
    }
    found
}

/// The input that a node passes on in another form; `None` if it computes something else.
pub(super) fn data_input(scope: &Scope, i: usize) -> Option<usize> {
    let op = scope.node(i);
    match op.op_type() {
        op::QuantizeLinear
        | op::DequantizeLinear
        | op::DynamicQuantizeLinear
        | op::Cast
        | op::Identity
        | op::Transpose
        | op::Reshape
        | op::Clip => (!op.input.is_empty()).then_some(0),
        op::Div if per_token::quotient(scope, i).is_some() => Some(0),
        op::Mul | op::Add | op::Sub | op::Div => affine_input(scope, i),
        _ => None,
    }
}

/// The input of a Mul, Add, Sub or Div that is not the constant, if the other one is.
pub(super) fn affine_input(scope: &Scope, i: usize) -> Option<usize> {
    let op = scope.node(i);
    let constant = |slot: usize| {
        op.input
            .get(slot)
            .is_some_and(|v| scope.constant(v).is_some())
    };
    match (op.op_type(), constant(0), constant(1)) {
        (op::Mul | op::Add | op::Sub | op::Div, false, true) => Some(0),
        (op::Mul | op::Add, true, false) => Some(1),
        _ => None,
    }
}

/// Scale and zero point of a weight that the operator itself takes as integers. MatMulInteger leaves the scale to a Mul
/// behind it, which its makers name after the weight.
pub(super) fn by_operator<'m>(
    scope: &Scope<'m>,
    node: &NodeProto,
    float: &str,
) -> Option<Dequantize<'m>> {
    let input = |slot: usize| node.input.get(slot).and_then(|v| scope.constant(v));
    let named = || {
        let names = scope
            .constants
            .get_key_value(format!("{float}_scale").as_str());
        names.map(|(_, t)| *t)
    };
    let (scale, zero_point, axis) = match node.op_type() {
        op::QLinearMatMul | op::QGemm => (input(4), input(5), -1),
        op::QLinearConv => (input(4), input(5), 0),
        op::MatMulInteger => (named(), input(3), -1),
        op::DynamicQuantizeMatMul => (input(2), input(3), -1),
        op::MatMulIntegerToFloat => (input(3), input(5), -1),
        _ => return None,
    };
    scale.map(|scale| Dequantize {
        scale,
        zero_point,
        axis,
    })
}
