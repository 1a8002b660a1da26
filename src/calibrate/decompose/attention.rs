//! The standard Attention.

use super::build::Build;
use super::{EngineError, Outcome};
use crate::onnx::DataType;
use crate::onnx::proto::NodeProto;

/// `Attention(q, k, v, mask)` becomes `Attention(q, k, v, Where(mask, 0, −10³⁰))`: what a boolean mask leaves out weighs
/// nothing.
pub(super) fn attention(node: &NodeProto, b: &mut Build<'_, '_>) -> Result<Outcome, EngineError> {
    let mask = match node.input.get(3) {
        Some(mask) if b.scope.dtype(mask) == Some(DataType::Bool) => mask,
        _ => return Ok(Outcome::Kept),
    };
    let (kept, masked) = (b.float(0.0), b.float(-1e30));
    let mut attention = node.clone();
    attention.input[3] = b.op("Where", &[mask, &kept, &masked], vec![]);
    b.push(attention);
    Ok(Outcome::Replaced)
}
