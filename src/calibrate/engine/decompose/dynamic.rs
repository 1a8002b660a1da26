//! Products of integers whose scales are computed while the model runs.
//!
//! ```text
//! MatMulInteger          y = Cast(MatMul(a − z_a, b − z_b), int32)
//! MatMulIntegerToFloat   y = MatMul((a − z_a) s_a, (b − z_b) s_b) + bias
//! DynamicQuantizeMatMul  the same of a, s_a, z_a = DynamicQuantizeLinear(x)
//! ```
//!
//! The sums are floats: exact up to 2²⁴, and rounded to 24 bits above, as the Cast to float does that stands behind them.

use super::build::{Build, Outcome};
use super::contrib::named;
use crate::calibrate::engine::error::EngineError;
use crate::onnx::node::{int_attr, make_node};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, op};

use Outcome::{Kept, Replaced};

/// Sums of products of integers.
pub(super) fn matmul_integer(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let input = |slot| named(&node.input, slot);
    let (Some(a), Some(w), Some(y)) = (input(0), input(1), named(&node.output, 0)) else {
        return Ok(Kept);
    };
    let a = centred(b, a, input(2), Side::Rows)?;
    let w = centred(b, w, input(3), Side::Columns)?;
    let sum = b.op(op::MatMul, &[&a, &w], vec![]);
    let to = vec![int_attr("to", DataType::Int32 as i64)];
    b.op_to(op::Cast, &[&sum], y, to);
    Ok(Replaced)
}

/// The same with scales and a bias.
pub(super) fn integer_to_float(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let input = |slot| named(&node.input, slot);
    let (Some(a), Some(w), Some(scale_a), Some(scale_w), Some(y)) = (
        input(0),
        input(1),
        input(2),
        input(3),
        named(&node.output, 0),
    ) else {
        return Ok(Kept);
    };
    let a = centred(b, a, input(4), Side::Rows)?;
    let a = scaled(b, &a, scale_a)?;
    product(b, [&a, w, scale_w], [input(5), input(6)], y)
}

/// The same of floats, which are quantized before.
pub(super) fn quantize_matmul(
    node: &NodeProto,
    b: &mut Build<'_, '_>,
) -> Result<Outcome, EngineError> {
    let input = |slot| named(&node.input, slot);
    let (Some(x), Some(w), Some(scale_w), Some(y)) =
        (input(0), input(1), input(2), named(&node.output, 0))
    else {
        return Ok(Kept);
    };
    let [q, scale, zero] = b.dynamically_quantized(x);
    let q = b.cast(&q, DataType::Float);
    let zero = b.cast(&zero, DataType::Float);
    let q = b.op(op::Sub, &[&q, &zero], vec![]);
    let a = b.op(op::Mul, &[&q, &scale], vec![]);
    product(b, [&a, w, scale_w], [input(3), input(4)], y)
}

/// `y = MatMul(a, (w − zero) s) + bias`, with constants of one value or one per column.
fn product(
    b: &mut Build<'_, '_>,
    [a, w, scale]: [&str; 3],
    [zero, bias]: [Option<&str>; 2],
    y: &str,
) -> Result<Outcome, EngineError> {
    let w = centred(b, w, zero, Side::Columns)?;
    let w = scaled(b, &w, scale)?;
    match bias {
        Some(bias) => {
            let sum = b.op(op::MatMul, &[a, &w], vec![]);
            b.op_to(op::Add, &[&sum, bias], y, vec![]);
        }
        None => b.op_to(op::MatMul, &[a, &w], y, vec![]),
    }
    Ok(Replaced)
}

/// What zero points of one axis belong to.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Rows,
    Columns,
}

/// Integers as floats, without their zero point.
fn centred(
    b: &mut Build<'_, '_>,
    value: &str,
    zero: Option<&str>,
    side: Side,
) -> Result<String, EngineError> {
    let floats = b.cast(value, DataType::Float);
    let Some(zero) = zero else {
        return Ok(floats);
    };
    let shape = b.shape(zero)?;
    let zero = b.cast(zero, DataType::Float);
    let zero = match shape.as_slice() {
        [n] if *n > 1 && side == Side::Rows => b.reshape(&zero, &[*n, 1]),
        [1] => b.reshape(&zero, &[]),
        _ => zero,
    };
    Ok(b.op(op::Sub, &[&floats, &zero], vec![]))
}

fn scaled(b: &mut Build<'_, '_>, value: &str, scale: &str) -> Result<String, EngineError> {
    let scale = match b.shape(scale)?.as_slice() {
        [1] => b.reshape(scale, &[]),
        _ => scale.to_owned(),
    };
    Ok(b.op(op::Mul, &[value, &scale], vec![]))
}

impl Build<'_, '_> {
    /// DynamicQuantizeLinear: integers, their scale and their zero point.
    fn dynamically_quantized(&mut self, x: &str) -> [String; 3] {
        let outputs = ["quantized", "scale", "zero_point"].map(|what| self.fresh(what));
        let [q, scale, zero] = outputs.each_ref().map(String::as_str);
        let name = self.fresh(op::DynamicQuantizeLinear);
        let node = make_node(
            op::DynamicQuantizeLinear,
            &name,
            &[x],
            &[q, scale, zero],
            vec![],
        );
        self.scope.learn(&node);
        self.push(node);
        outputs
    }
}
