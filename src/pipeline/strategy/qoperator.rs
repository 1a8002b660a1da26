//! What `Format::QOperator` costs: the same decisions as Q/DQ.

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::Plan;
use crate::error::Error;
use crate::options::Format;

/// Notes how the outputs would be with the same decisions in Q/DQ, which does not quantize the outputs of Linears.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn compare_with_qdq(
    mut written: Measured,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    if written.plan.format != Format::QOperator {
        return Ok(written);
    }
    let twin = Plan {
        format: Format::Qdq,
        ..written.plan.clone()
    };
    let twin = measure(judge, twin)?;
    let outputs = written.outputs.iter().zip(&twin.outputs);
    let outputs = outputs.map(|(ours, qdq)| {
        format!(
            "`{}` {:.2} dB, {:.2} dB with qdq",
            ours.name, ours.sqnr_db, qdq.sqnr_db
        )
    });
    let outputs: Vec<String> = outputs.collect();
    written.plan.notes.push(format!(
        "format qoperator quantizes the outputs of Linears too, so it is usually less accurate than format qdq: {}",
        outputs.join("; ")
    ));
    Ok(written)
}
