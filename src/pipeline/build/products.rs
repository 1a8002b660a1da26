//! `Format::QOperator`: how the outputs of Linears are quantized.
//!
//! ```text
//! calibration run ─▶ extremes of x W per column ─ less what migration takes off ─▶ extremes of x' W' ─┐
//!                    tokens of x ─ migration ─▶ tokens of x' W' ──────────────────────────────────────┴▶ solve::output
//! ```
//!
//! The extremes are those of all tokens of the float model as it was. Migration changes a product by a constant and a factor
//! per column, x' W' = (x W) / s_y − z/s W', where s_y is that of the site which reads the output (V, an up projection): the
//! extremes follow, and no second run is needed.

use ndarray::{Array1, Array2, Axis, s};
use rayon::prelude::*;

use super::super::plan::{Plan, Rounding};
use super::source::Source;
use crate::calibrate::ChannelStats;
use crate::graph::View;
use crate::recognise::{LinearForm, LinearId, Recognised};
use crate::rewrite::{IntegerProduct, IntegerProducts};
use crate::solve::Migration;
use crate::solve::output::{OutputGrid, ProductFold, min_max_grid, search_grid};

/// Tokens of each half, about, that grids are scored on.
const SCORED_TOKENS: usize = 128;

/// Columns of a Linear, about, that grids are scored on.
const SCORED_COLUMNS: usize = 2048;

/// One Linear whose output is to be quantized.
struct Job<'a> {
    linear: LinearId,
    migration: &'a Migration,
    /// Of x.
    stats: &'a ChannelStats,
}

/// The model that products are quantized in.
struct Products<'a, 'm> {
    source: Source<'a>,
    /// The migrated model.
    view: &'a View<'m>,
    found: &'a Recognised,
    plan: &'a Plan,
}

/// The integer operators for the quantized Linears of the migrated model `view`; with min-max grids if the plan rounds to
/// the nearest.
pub(super) fn integer_products(
    source: Source,
    view: &View,
    found: &Recognised,
    plan: &Plan,
) -> IntegerProducts {
    let mut products = IntegerProducts::new();
    let mut jobs = Vec::new();
    for ((_, row), site) in source.calibrated.prepared.sites.iter().zip(&plan.sites) {
        let (Some(stats), Some(site)) = (&row.statistics, site) else {
            continue;
        };
        let readers = row.site.linears.iter().zip(&row.site.ranks);
        for (&linear, rank) in readers.filter(|(l, _)| plan.quantizes(**l)) {
            let is_gemm = found.linears[linear].form != LinearForm::MatMul;
            if is_gemm || rank.unwrap_or(stats.rank) == 2 {
                products.insert(linear, IntegerProduct::Gemm);
                continue;
            }
            jobs.push(Job {
                linear,
                migration: &site.transform,
                stats,
            });
        }
    }
    let all = Products {
        source,
        view,
        found,
        plan,
    };
    let grid = |job: &Job| Some((job.linear, IntegerProduct::MatMul(all.grid(job)?)));
    let grids: Vec<_> = jobs.par_iter().filter_map(grid).collect();
    products.extend(grids);
    products
}

impl Products<'_, '_> {
    /// Scale and zero point of one Linear's output.
    fn grid(&self, job: &Job) -> Option<OutputGrid> {
        let linear = &self.found.linears[job.linear];
        let w = linear.load_weight(self.view)?;
        let known = self.source.calibrated.products.get(&job.linear);
        let known = known.filter(|s| s.folds.iter().all(|f| f.min.len() == linear.n));
        let effect = match known {
            Some(_) => Some(self.effect(job, &w)?),
            None => None,
        };
        let stride = linear.n.div_ceil(SCORED_COLUMNS).max(1);
        let folds = [0, 1].map(|f| {
            let fold = &job.stats.folds[f];
            let every = (fold.sample.nrows() / SCORED_TOKENS).max(1);
            let tokens = fold.sample.slice(s![..;every, ..]).to_owned();
            let tokens = job.migration.tokens(&tokens, false);
            if let (Some(known), Some(effect)) = (known, &effect) {
                return ProductFold {
                    min: effect.on(&known.folds[f].min),
                    max: effect.on(&known.folds[f].max),
                    sample: tokens.dot(&w.slice(s![.., ..;stride])),
                };
            }
            // In a branch that no data takes: what the tokens tell.
            let all = tokens.dot(&w);
            ProductFold {
                min: extremes(&all, f32::INFINITY, f32::min),
                max: extremes(&all, f32::NEG_INFINITY, f32::max),
                sample: all.slice(s![.., ..;stride]).to_owned(),
            }
        });
        let options = self.source.options;
        let columns = options.extra_nodes && options.weight_per_channel;
        Some(match self.plan.rounding {
            Rounding::Refined => search_grid(&folds, stride, columns),
            Rounding::Nearest => min_max_grid(&folds),
        })
    }

    fn effect(&self, job: &Job, migrated: &Array2<f32>) -> Option<Effect> {
        let prepared = &self.source.calibrated.prepared;
        let original = prepared.model.view();
        let was = prepared.found.linears[job.linear].load_weight(&original)?;
        Some(Effect::new(job.migration, was, migrated))
    }
}

/// What migration does to the product of one Linear: p' = p / s_y − offset, per column.
struct Effect {
    /// 1 / s_y: [N].
    factor: Array1<f32>,
    /// z/s W': [N].
    offset: Array1<f32>,
}

impl Effect {
    /// Of a Linear with the weight `w` that became `migrated`: W' = diag(s) W diag(1/s_y), so s_y is what the columns of W'
    /// lack in length.
    fn new(migration: &Migration, mut w: Array2<f32>, migrated: &Array2<f32>) -> Effect {
        let mut offset = Array1::zeros(w.nrows());
        if let Some(z) = &migration.shift {
            offset += &ndarray::aview1(z);
        }
        if let Some(s) = &migration.scale {
            offset /= &ndarray::aview1(s);
            let rows = w.axis_iter_mut(Axis(0)).zip(s);
            rows.for_each(|(mut row, &s)| row *= s);
        }
        let length = |column: ndarray::ArrayView1<f32>| {
            let squares = column.iter().map(|&v| f64::from(v) * f64::from(v));
            squares.sum::<f64>().sqrt()
        };
        let columns = migrated.columns().into_iter().zip(w.columns());
        let factor = columns.map(|(after, before)| match (length(after), length(before)) {
            (after, before) if after > 0.0 && before > 0.0 => (after / before) as f32,
            _ => 1.0,
        });
        Effect {
            factor: factor.collect(),
            offset: offset.dot(migrated),
        }
    }

    fn on(&self, extremes: &[f32]) -> Vec<f32> {
        let columns = extremes.iter().zip(&self.factor).zip(&self.offset);
        columns
            .map(|((p, factor), offset)| p * factor - offset)
            .collect()
    }
}

fn extremes(products: &Array2<f32>, start: f32, pick: fn(f32, f32) -> f32) -> Vec<f32> {
    let columns = products.columns().into_iter();
    columns
        .map(|c| c.iter().fold(start, |a, &b| pick(a, b)))
        .collect()
}
