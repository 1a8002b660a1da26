//! From a plan to a model, without a decision: the same plan gives the same bytes.
//!
//! ```text
//! prepared model ─ fold ─▶ float model ─ refine ─▶ integers, biases ─ quantize ─▶ Q/DQ ─ attention ─▶ candidate
//! ```

mod attention;
mod blocks;
mod embeddings;
mod folded;
mod known;
mod products;
mod quantize;
mod refine;
mod source;

use std::collections::BTreeSet;

use super::plan::Plan;
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::recognise::LinearId;

pub(crate) use folded::{Folded, rounding_error};
pub(crate) use known::{KnownWeights, hash as weight_hash};
pub(crate) use refine::{Refinement, WIDEST};
pub(crate) use source::{Source, recognised};

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
    let model = embeddings::quantize(model, &plan)?;
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
