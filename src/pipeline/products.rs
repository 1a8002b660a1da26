//! `--format qoperator`: which Linears have their output quantized, and how.
//!
//! ```text
//! calibration run ─▶ extremes of x W per column ─ less what migration takes off ─▶ extremes of x' W' ─┐
//!                    tokens of x ─ migration ─▶ tokens of x' W' ──────────────────────────────────────┴▶ solve::output
//! ```
//!
//! The extremes are those of all tokens of the float model as it was. Migration changes a product by a constant and a factor
//! per column, x' W' = (x W) / s_y − z/s W', where s_y is that of the site which reads the output (V, an up projection): the
//! extremes follow, and no second run is needed.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array1, Array2, Axis, s};
use rayon::prelude::*;

use super::quantize::migration;
use super::{Blocks, Run, Solutions};
use crate::Error;
use crate::calibrate::{ChannelStats, OutputComparison};
use crate::graph::View;
use crate::onnx::Model;
use crate::recognise::{LinearForm, Recognised};
use crate::rewrite::{IntegerProduct, IntegerProducts};
use crate::solve::output::{OutputGrid, ProductFold, min_max_grid, search_grid};
use crate::solve::{Method, Migration};

/// Tokens of each half, about, that grids are scored on.
const SCORED_TOKENS: usize = 128;

/// Columns of a Linear, about, that grids are scored on.
const SCORED_COLUMNS: usize = 2048;

/// The Linears whose output may have to be quantized; none with another format.
#[derive(Default)]
pub(super) struct Products {
    /// The float model before migration.
    model: Option<Model>,
    /// The name of x W, by the number of the Linear.
    values: BTreeMap<usize, String>,
}

impl Products {
    /// Those of the selected Linears of a model. (A Gemm's output stays in float.)
    pub fn of(model: &Model, blocks: &Blocks) -> Products {
        let view = View::new(model);
        let selected = blocks.sites.iter().flat_map(|s| blocks.selected_indices(s));
        let value = |l: usize| {
            let linear = &blocks.found.linears[l];
            let product = view.output(linear.node, 0);
            product
                .filter(|_| linear.form == LinearForm::MatMul)
                .map(|p| (l, view.name(p).to_owned()))
        };
        let values = selected.filter_map(value).collect();
        Products {
            values,
            model: Some(model.clone()),
        }
    }

    /// Their names but for those in `values`.
    pub fn not_among(&self, values: &[String]) -> BTreeSet<String> {
        let other = self.values.values().filter(|v| !values.contains(v));
        other.cloned().collect()
    }
}

/// One Linear whose output is to be quantized.
struct Job<'a> {
    linear: usize,
    migration: Migration,
    /// Of x.
    stats: &'a ChannelStats,
}

impl Run<'_> {
    /// The integer operators for the selected Linears of `migrated`, with min-max grids of the original without solutions;
    /// `None` with another format.
    pub(super) fn integer_products(
        &self,
        migrated: &Model,
        found: &Recognised,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        (solutions, quantizes): (Option<&Solutions>, &dyn Fn(usize) -> bool),
    ) -> Option<IntegerProducts> {
        let original = View::new(self.products.model.as_ref()?);
        let view = View::new(migrated);
        let mut products = IntegerProducts::new();
        let mut jobs = Vec::new();
        for (i, (site, value)) in blocks.sites.iter().zip(&blocks.values).enumerate() {
            let Some(stats) = statistics.get(value) else {
                continue;
            };
            let solution = solutions.and_then(|s| s[i].as_ref());
            for (&linear, rank) in site.linears.iter().zip(&site.ranks) {
                if blocks.skipped[linear].is_some() || !quantizes(linear) {
                    continue;
                }
                if found.linears[linear].form != LinearForm::MatMul
                    || rank.unwrap_or(stats.rank) == 2
                {
                    products.insert(linear, IntegerProduct::Gemm);
                    continue;
                }
                jobs.push(Job {
                    linear,
                    migration: solution.map(migration).unwrap_or_default(),
                    stats,
                });
            }
        }
        let searched = solutions.is_some() && self.options.method == Method::OsPlus;
        let columns = self.options.extra_nodes && self.options.weight_per_channel;
        let grid = |job: &Job| {
            let linear = &found.linears[job.linear];
            let w = linear.load_weight(&view)?;
            let name = self.products.values.get(&job.linear);
            let known = name.and_then(|name| statistics.get(name));
            let known = known.filter(|s| s.folds.iter().all(|f| f.min.len() == linear.n));
            let effect = match known {
                Some(_) => {
                    let was = blocks.found.linears[job.linear].load_weight(&original)?;
                    Some(Effect::new(&job.migration, was, &w))
                }
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
            let grid: OutputGrid = match searched {
                true => search_grid(&folds, stride, columns),
                false => min_max_grid(&folds),
            };
            Some((job.linear, IntegerProduct::MatMul(grid)))
        };
        let grids: Vec<_> = jobs.par_iter().filter_map(grid).collect();
        products.extend(grids);
        Some(products)
    }

    /// Says what the format costs: the held-out outputs of the same decisions with `--format qdq`.
    pub(super) fn compare_with_qdq(&mut self, ours: &[OutputComparison]) -> Result<(), Error> {
        let Some(qdq) = self.as_qdq.take() else {
            return Ok(());
        };
        let compared = self.compare(&[&qdq])?.remove(0);
        let outputs = ours.iter().zip(&compared).map(|(ours, qdq)| {
            format!(
                "`{}` {:.2} dB, {:.2} dB with qdq",
                ours.name, ours.sqnr_db, qdq.sqnr_db
            )
        });
        let outputs: Vec<String> = outputs.collect();
        self.report.notes.push(format!(
            "format qoperator quantizes the outputs of Linears too, so it is usually less accurate than format qdq: {}",
            outputs.join("; ")
        ));
        Ok(())
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
