//! Q/DQ, or integer operators, at every Linear that a plan computes with integers.

use std::collections::BTreeSet;

use oxc_index::index_vec;
use rayon::prelude::*;

use super::super::plan::{Plan, Precision};
use super::products::integer_products;
use super::refine::Refinement;
use super::source::{Source, recognised};
use crate::error::Error;
use crate::graph::branches::FlatModel;
use crate::graph::{Names, View};
use crate::options::{Activations, Format, Options};
use crate::recognise::{Linear, LinearId, Recognised};
use crate::rewrite::{self, Activation, Magnitude, QuantizePlan, RewriteError};
use crate::solve::{ActivationSpec, QuantParams};

/// The migrated model with integers at the Linears of the plan, and biases corrected.
///
/// # Errors
/// A constant that cannot be read.
pub(super) fn quantize(
    source: Source,
    mut model: FlatModel,
    plan: &Plan,
    refinement: &Refinement,
) -> Result<FlatModel, Error> {
    let mut found = recognised(&model, source.calibrated);
    let wanted = |(l, _): &&(_, _)| plan.quantizes(*l);
    let corrections = refinement.corrections.iter().filter(wanted);
    let corrections: Vec<_> = corrections.cloned().collect();
    if !corrections.is_empty() {
        let mut names = Names::new(model.as_model());
        let patches = rewrite::correct_biases(&model.view(), &found, &corrections, &mut names)?;
        model.apply(patches).map_err(RewriteError::from)?;
        // The biases may be other constants now.
        found = recognised(&model, source.calibrated);
    }
    if source.options.group().is_some() {
        return super::blocks::quantize(source, model, &found, plan, refinement);
    }
    let view = model.view();
    let mut what = quantize_plan(source, &found, plan, refinement);
    round_the_rest(&view, &found, &mut what);
    let mut names = Names::new(model.as_model());
    let patches = match plan.format {
        Format::QOperator => {
            let products = integer_products(source, &view, &found, plan);
            rewrite::quantize_as_operators(&view, &found, &what, &products, &mut names)?
        }
        Format::Qdq | Format::MatMulNBits | Format::Float => {
            rewrite::quantize(&view, &found, &what, &mut names)?
        }
    };
    drop(view);
    model.apply(patches).map_err(RewriteError::from)?;
    Ok(model)
}

/// What the rewriter has to know of every Linear.
fn quantize_plan(
    source: Source,
    found: &Recognised,
    plan: &Plan,
    refinement: &Refinement,
) -> QuantizePlan {
    let options = source.options;
    let mut activations = index_vec![None; found.linears.len()];
    for ((_, row), site) in source.calibrated.prepared.sites.iter().zip(&plan.sites) {
        let (Some(stats), Some(site)) = (&row.statistics, site) else {
            continue;
        };
        let (low, high) = site.range;
        let per_token = options.activations() == Activations::PerToken;
        let channels = stats.folds[0].min.len();
        let params = match per_token {
            true => of_normalized(options, &site.activation(options, channels)),
            false => options.activation().params(low, high),
        };
        let readers = row.site.linears.iter().zip(&row.site.ranks);
        for (&l, rank) in readers.filter(|(l, _)| plan.quantizes(**l)) {
            activations[l] = Some(Activation {
                params,
                per_token: per_token.then_some(match site.levels_below {
                    Some(below) => Magnitude::OneSided { below },
                    None => Magnitude::Symmetric,
                }),
                rank: rank.unwrap_or(stats.rank),
            });
        }
    }
    QuantizePlan {
        activations,
        weight: options.weight(),
        raised: found
            .linears
            .iter_enumerated()
            .filter(|(l, _)| plan.linears[*l] == Precision::Raised)
            .map(|(l, linear)| (linear.node, source.weight(plan, l, linear.k)))
            .collect(),
        storage: options.weight_storage,
        rounded: refinement.rounded.clone(),
        profile: options.profile(),
    }
}

/// Rounds to the nearest, in parallel, what is not rounded yet; Linears that share a weight get that of the first.
fn round_the_rest(view: &View, found: &Recognised, what: &mut QuantizePlan) {
    let mut seen = BTreeSet::new();
    let planned = found.linears.iter_enumerated().zip(&what.activations);
    let planned = planned.filter(|(_, activation)| activation.is_some());
    let first: Vec<_> = planned
        .map(|(linear, _)| linear)
        .filter(|(_, linear)| seen.insert(view.derivation(linear.weight)))
        .filter(|(l, _)| !what.rounded.contains_key(l))
        .collect();
    let nearest = |&(l, linear): &(LinearId, &Linear)| {
        let spec = what.raised.get(&linear.node).unwrap_or(&what.weight);
        // What cannot be read is told where it is written.
        Some((l, rewrite::nearest(view, linear, spec).ok()?))
    };
    let nearest: Vec<_> = first.par_iter().filter_map(nearest).collect();
    what.rounded.extend(nearest);
}

/// Scale and zero point of a value whose tokens have a largest magnitude of 1: nothing is beyond them, whatever the bits.
fn of_normalized(options: &Options, activation: &ActivationSpec) -> QuantParams {
    let (zero_point, qmin, qmax) = match (activation.levels_below, options.profile().symmetric) {
        (Some(below), _) => (below, 0, 255),
        (None, true) => (0, -128, 127),
        (None, false) => (128, 0, 255),
    };
    QuantParams {
        scale: 1.0 / activation.levels().1 as f32,
        zero_point,
        qmin,
        qmax,
    }
}
