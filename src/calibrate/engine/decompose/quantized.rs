//! Integer products: ONNX Runtime's QGemm, and QLinearMatMul of a vector. The engine has QLinearMatMul of matrices itself.
//!
//! ```text
//! QGemm:          y = alpha · Gemm(DequantizeLinear(a), DequantizeLinear(b)) + alpha s_a s_b c, quantized if it has a scale
//! QLinearMatMul:  y = QuantizeLinear(MatMul(DequantizeLinear(a), DequantizeLinear(b)))
//! ```

use super::build::{Build, Outcome};
use super::contrib::named;
use crate::calibrate::engine::error::EngineError;
use crate::onnx::DataType;
use crate::onnx::node::{attr_f, attr_i, float_attr, int_attr};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

use Outcome::{Kept, Replaced};

/// `y = alpha (op(A) op(B) + s_a s_b C)`, A and B dequantized, C in int32.
pub(super) fn qgemm(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let input = |slot: usize| named(&node.input, slot);
    let (Some(y), Some([qa, sa, za]), Some([qb, sb, zb])) =
        (named(&node.output, 0), three(node, 0), three(node, 3))
    else {
        return Ok(Kept);
    };
    let trans_b = attr_i(node, "transB").unwrap_or(0);
    let alpha = attr_f(node, "alpha").unwrap_or(1.0);
    let a = b.op(op::DequantizeLinear, &[qa, sa, za], vec![]);
    let axis = vec![int_attr("axis", 1 - trans_b)];
    let w = b.op(op::DequantizeLinear, &[qb, sb, zb], axis);
    let attributes = vec![
        int_attr("transA", attr_i(node, "transA").unwrap_or(0)),
        int_attr("transB", trans_b),
        float_attr("alpha", alpha),
    ];
    let mut sum = b.op(op::Gemm, &[&a, &w], attributes);
    if let Some(c) = input(6) {
        let c = b.cast(c, DataType::Float);
        let alpha = b.float(alpha);
        let scale = b.op(op::Mul, &[sa, sb], vec![]);
        let scale = b.op(op::Mul, &[&scale, &alpha], vec![]);
        let c = b.op(op::Mul, &[&c, &scale], vec![]);
        sum = b.op(op::Add, &[&sum, &c], vec![]);
    }
    match (input(7), input(8)) {
        (Some(scale), Some(zero)) => {
            b.op_to(op::QuantizeLinear, &[&sum, scale, zero], y, vec![]);
        }
        (Some(_), None) => {
            return Err(b.refused("it has a scale for its output, but no zero point"));
        }
        (None, _) => b.op_to(op::Identity, &[&sum], y, vec![]),
    }
    Ok(Replaced)
}

/// QLinearMatMul of a vector: the engine gives it another axis.
pub(super) fn qlinear_matmul(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let (Some(y), Some([qa, sa, za]), Some([qb, sb, zb])) =
        (named(&node.output, 0), three(node, 0), three(node, 3))
    else {
        return Ok(Kept);
    };
    let (Some(scale), Some(zero)) = (named(&node.input, 6), named(&node.input, 7)) else {
        return Ok(Kept);
    };
    if b.scope.shape(qa).is_none_or(|shape| shape.len() != 1) {
        return Ok(Kept);
    }
    let a = b.op(op::DequantizeLinear, &[qa, sa, za], vec![]);
    let w = b.op(
        op::DequantizeLinear,
        &[qb, sb, zb],
        vec![int_attr("axis", 1)],
    );
    let product = b.op(op::MatMul, &[&a, &w], vec![]);
    b.op_to(op::QuantizeLinear, &[&product, scale, zero], y, vec![]);
    Ok(Replaced)
}

/// A quantized value, its scale and its zero point.
fn three(node: &NodeProto, slot: usize) -> Option<[&str; 3]> {
    let input = |i: usize| named(&node.input, slot + i);
    Some([input(0)?, input(1)?, input(2)?])
}
