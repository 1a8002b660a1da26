//! Operators that become one or two others.

use super::build::Build;
use super::{EngineError, Outcome};
use crate::onnx::DataType;
use crate::onnx::node::int_attr;
use crate::onnx::proto::NodeProto;

/// `y = Dropout(x)` becomes `y = Identity(x)`: exporters leave it in training mode between norm and Linear.
pub(super) fn dropout(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let mask = node.output.get(1).filter(|name| !name.is_empty());
    if mask.is_some_and(|name| b.scope.used(name)) {
        return Err(b.refused("its mask output is used"));
    }
    let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
        return Ok(Outcome::Kept);
    };
    b.op_to("Identity", &[x], y, vec![]);
    Ok(Outcome::Replaced)
}

/// `y = CumSum(x)` becomes `y = CastLike(CumSum(Cast(x, float32)), x)`: the engine has it for floats only. Exact up to
/// 2²⁴.
pub(super) fn cumsum(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
        return Ok(Outcome::Kept);
    };
    let to_float = vec![int_attr("to", DataType::Float as i64)];
    let mut cumsum = node.clone();
    cumsum.input[0] = b.op("Cast", &[x], to_float);
    let sum = b.fresh("sum");
    cumsum.output[0] = sum.clone();
    b.push(cumsum);
    b.op_to("CastLike", &[&sum, x], y, vec![]);
    Ok(Outcome::Replaced)
}
