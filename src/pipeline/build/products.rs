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
use crate::solve::output::{OutputGrid, ProductFold, min_max_grid, search_grid};
use crate::solve::product::product;
use crate::solve::{Migration, WeightGranularity};

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
                let (min, max) = effect.on(&known.folds[f].min, &known.folds[f].max);
                return ProductFold {
                    min,
                    max,
                    sample: product(&tokens, &w.slice(s![.., ..;stride])),
                };
            }
            // In a branch that no data takes: what the tokens tell.
            let all = product(&tokens, &w);
            ProductFold {
                min: extremes(&all, f32::INFINITY, f32::min),
                max: extremes(&all, f32::NEG_INFINITY, f32::max),
                sample: all.slice(s![.., ..;stride]).to_owned(),
            }
        });
        let options = self.source.options;
        let columns =
            options.extra_nodes && options.weight_granularity == WeightGranularity::PerChannel;
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
    /// 1 / s_y: [N]; negative where the rotation of the site that reads the output has a sign.
    factor: Array1<f32>,
    /// (z/s R) W': [N].
    offset: Array1<f32>,
}

impl Effect {
    /// Of a Linear with the weight `w` that became `migrated`: W' = Rᵀ diag(s) W diag(1/s_y), so s_y is what tells the columns
    /// of W' from those of Rᵀ diag(s) W.
    fn new(migration: &Migration, mut w: Array2<f32>, migrated: &Array2<f32>) -> Effect {
        let mut offset = Array1::zeros(w.nrows());
        if let Some(z) = &migration.shift {
            offset += &ndarray::aview1(z);
        }
        if let Some(s) = &migration.scale {
            offset /= &ndarray::aview1(s);
        }
        match (&migration.rotation, &migration.scale) {
            (Some(r), scale) => {
                w = r.rotate_weight(w.view(), scale.as_deref());
                if let Some(z) = offset.as_slice_mut() {
                    r.rotate_tokens(z);
                }
            }
            (None, Some(s)) => {
                let rows = w.axis_iter_mut(Axis(0)).zip(s);
                rows.for_each(|(mut row, &s)| row *= s);
            }
            (None, None) => {}
        }
        let product = |a: ndarray::ArrayView1<f32>, b: ndarray::ArrayView1<f32>| -> f64 {
            let pairs = a.iter().zip(b);
            pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let columns = migrated.columns().into_iter().zip(w.columns());
        let factor = columns.map(|(after, before)| {
            let factor = (product(after, before) / product(before, before)) as f32;
            if factor.is_finite() && factor != 0.0 {
                factor
            } else {
                1.0
            }
        });
        Effect {
            factor: factor.collect(),
            offset: offset.dot(migrated),
        }
    }

    /// The extremes of p' from those of p.
    fn on(&self, min: &[f32], max: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let columns = self.factor.iter().zip(&self.offset);
        let ends = columns.zip(min.iter().zip(max));
        let ends = ends.map(|((factor, offset), (low, high))| {
            let (a, b) = (low * factor - offset, high * factor - offset);
            // A negative factor turns them round.
            (a.min(b), a.max(b))
        });
        ends.unzip()
    }
}

fn extremes(products: &Array2<f32>, start: f32, pick: fn(f32, f32) -> f32) -> Vec<f32> {
    let columns = products.columns().into_iter();
    columns
        .map(|c| c.iter().fold(start, |a, &b| pick(a, b)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::Rotation;

    fn wave(rows: usize, columns: usize, step: f32) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| {
            ((i * columns + j) as f32 * step).sin()
        })
    }

    /// Extremes of the migrated product follow from those of the original one: through shift, scale, rotation, and a scale of
    /// the output that may be negative.
    #[test]
    fn extremes_follow_what_migration_does() {
        let (x, w) = (wave(40, 32, 0.7), wave(32, 6, 1.3));
        let output = [0.5, -2.0, 1.0, -0.25, 4.0, 3.0];
        for rotation in [None, Rotation::of(32, 5)] {
            let migration = Migration {
                shift: Some((0..32).map(|j| j as f32 / 40.0).collect()),
                scale: Some((0..32).map(|j| 0.5 + j as f32 / 16.0).collect()),
                rotation,
            };
            let scale = migration.scale.as_deref().unwrap();
            let scaled = match &migration.rotation {
                Some(r) => r.rotate_weight(w.view(), Some(scale)),
                None => &w * &ndarray::aview1(scale).insert_axis(Axis(1)),
            };
            let migrated = scaled * ndarray::aview1(&output);
            let products = migration.tokens(&x, false).dot(&migrated);
            let all = |p: &Array2<f32>| {
                (
                    extremes(p, f32::INFINITY, f32::min),
                    extremes(p, f32::NEG_INFINITY, f32::max),
                )
            };
            let (min, max) = all(&x.dot(&w));
            let found = Effect::new(&migration, w.clone(), &migrated).on(&min, &max);
            let expected = all(&products);
            for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-4, "{found:?} {expected:?}");
                }
            }
        }
    }
}
