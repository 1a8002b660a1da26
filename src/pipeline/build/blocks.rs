//! Weights in groups at every Linear that a plan computes with integers.

use std::collections::BTreeMap;

use super::super::plan::Plan;
use super::refine::Refinement;
use super::source::Source;
use crate::error::Error;
use crate::graph::Names;
use crate::graph::branches::FlatModel;
use crate::options::{Activations, Format};
use crate::recognise::Recognised;
use crate::rewrite::{self, BlockForm, BlockPlan, BlockWeight, RewriteError};

/// The migrated model with weights in groups; of a Linear without a rounded weight it is rounded to the nearest.
///
/// # Errors
/// A constant that cannot be read.
pub(super) fn quantize(
    source: Source,
    mut model: FlatModel,
    found: &Recognised,
    plan: &Plan,
    refinement: &Refinement,
) -> Result<FlatModel, Error> {
    let view = model.view();
    let mut weights = BTreeMap::new();
    for (l, linear) in found
        .linears
        .iter_enumerated()
        .filter(|(l, _)| plan.quantizes(*l))
    {
        let spec = source.weight(plan, l, linear.k);
        let rounded = match refinement.rounded.get(&l) {
            Some(rounded) => rounded.clone(),
            None => rewrite::nearest(&view, linear, &spec)?,
        };
        let weight = BlockWeight {
            weight: rounded,
            bits: spec.bits,
        };
        weights.insert(l, weight);
    }
    let what = BlockPlan {
        weights,
        form: form(source, plan),
    };
    let mut names = Names::new(model.as_model());
    let patches = rewrite::quantize_in_blocks(&view, found, &what, &mut names)?;
    drop(view);
    model.apply(patches).map_err(RewriteError::from)?;
    Ok(model)
}

fn form(source: Source, plan: &Plan) -> BlockForm {
    match plan.format {
        Format::MatMulNBits => BlockForm::MatMulNBits {
            accuracy_level: match source.options.activations() {
                Activations::PerGroup => 4,
                _ => 0,
            },
        },
        Format::Qdq | Format::QOperator | Format::Float => BlockForm::DequantizeLinear {
            unsigned: source.options.profile().unsigned_blocks,
        },
    }
}
