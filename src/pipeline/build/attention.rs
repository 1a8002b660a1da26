//! Q/DQ on Q Kᵀ and P V of the attentions that a plan has in int8.

use super::super::plan::{AttentionPlan, AttentionType, Guard, Plan, Precision};
use super::source::Source;
use crate::error::Error;
use crate::graph::Names;
use crate::graph::branches::FlatModel;
use crate::recognise::attentions;
use crate::rewrite::{self, AttentionParams, RewriteError};

/// The model with the attentions of the plan quantized.
///
/// # Errors
/// What the rewriter refuses.
pub(super) fn quantize(
    source: Source,
    mut model: FlatModel,
    plan: &Plan,
) -> Result<FlatModel, Error> {
    let in_int8 = |a: &AttentionPlan| a.precision == Precision::Integer;
    if !plan.attention.iter().any(in_int8) {
        return Ok(model);
    }
    let view = model.view();
    let found = attentions(&view).found;
    let mut names = Names::new(model.as_model());
    let spec = source.options.activation();
    let params = |(low, high): (f32, f32)| spec.params(low, high);
    // The plan names them in the order in which they are found.
    let planned = found.iter().zip(&plan.attention);
    let planned = planned.filter(|(_, a)| in_int8(a));
    let patches = planned.filter_map(|(attention, planned)| {
        let ranges = planned.ranges?;
        // A softmax is within 0..1 on any data.
        let mut context = [params((0.0, 1.0)), params(ranges.value)];
        if attention.probabilities == 1 {
            context.reverse();
        }
        let params = AttentionParams {
            scores: [params(ranges.query), params(ranges.key)],
            context,
            drop_guard: planned.guard == Some(Guard::Dropped),
            in_float16: planned.dtype == AttentionType::Float16,
        };
        let symmetric = spec.symmetric;
        let patch = rewrite::quantize_attention(&view, attention, &params, symmetric, &mut names);
        Some(patch)
    });
    let patches = patches.collect();
    drop(view);
    model.apply(patches).map_err(RewriteError::from)?;
    Ok(model)
}
