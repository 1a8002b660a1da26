//! From a plan to a model, without a decision: the same plan gives the same bytes.
//!
//! ```text
//! prepared model ─ fold ─▶ float model ─ refine ─▶ integers, biases ─ quantize ─▶ Q/DQ ─ attention ─▶ candidate
//! ```

mod attention;
mod folded;
mod products;
mod quantize;
mod refine;

use std::collections::BTreeSet;

use super::calibrate::Calibrated;
use super::plan::Plan;
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::options::Options;
use crate::recognise::{LinearId, Recognised, recognise};

pub(crate) use folded::{Folded, rounding_error};
pub(crate) use refine::Refinement;

/// What models are made from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub options: &'a Options,
    pub calibrated: &'a Calibrated,
}

/// A plan and its model.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub plan: Plan,
    pub model: FlatModel,
}

/// The model of a plan.
///
/// # Errors
/// A constant that cannot be read, or does not fit its type after migration.
pub(crate) fn build(source: Source, plan: Plan) -> Result<Candidate, Error> {
    let folded = Folded::new(source, &plan, &integers(&plan))?;
    build_from(source, folded, plan)
}

/// [`build`] from the float model of the plan.
///
/// # Errors
/// Those of [`build`].
pub(crate) fn build_from(source: Source, folded: Folded, plan: Plan) -> Result<Candidate, Error> {
    let mut model = folded.model;
    if plan.format.quantizes() {
        let refinement = Refinement::of(source, &model, &plan);
        model = quantize::quantize(source, model, &plan, &refinement)?;
    }
    let model = attention::quantize(source, model, &plan)?;
    Ok(Candidate { plan, model })
}

/// [`build`] from the model of a plan that differs in the attention alone, and has none in int8.
///
/// # Errors
/// Those of [`build`].
pub(crate) fn add_attention(
    source: Source,
    without: &FlatModel,
    plan: Plan,
) -> Result<Candidate, Error> {
    let model = attention::quantize(source, without.clone(), &plan)?;
    Ok(Candidate { plan, model })
}

/// The model of a plan in which `only` one Linear is quantized, from a float model in which none is rounded.
///
/// # Errors
/// Those of [`build`].
pub(crate) fn build_only(
    source: Source,
    folded: &FlatModel,
    refinement: &Refinement,
    plan: &Plan,
    only: LinearId,
) -> Result<FlatModel, Error> {
    let mut alone = plan.without_attention();
    for (l, precision) in alone.linears.iter_mut_enumerated() {
        if l != only {
            *precision = super::plan::Precision::Float(String::new());
        }
    }
    quantize::quantize(source, folded.clone(), &alone, refinement)
}

/// The Linears whose weights become integers.
pub(crate) fn integers(plan: &Plan) -> BTreeSet<LinearId> {
    let linears = plan.linears.iter_enumerated().map(|(l, _)| l);
    linears.filter(|&l| plan.quantizes(l)).collect()
}

/// What is recognised in a migrated model, which has the Linears of the original in the same order: migration changes
/// constants and adds nodes, no more.
fn recognised(migrated: &FlatModel, calibrated: &Calibrated) -> Recognised {
    let mut found = recognise(&migrated.view());
    // The weights are in float32 on their way to integers, whatever the type of the file.
    let originals = &calibrated.prepared.found.linears;
    for (linear, original) in found.linears.iter_mut().zip(originals) {
        linear.dtype = original.dtype;
    }
    found
}
