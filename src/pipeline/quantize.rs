//! Q/DQ at every selected Linear, of the migrated model and, for comparison, of the original.

use std::collections::BTreeMap;

use super::{Blocks, Run, Solutions};
use crate::calibrate::ChannelStats;
use crate::graph::{self, Names, View};
use crate::onnx::Model;
use crate::recognise::{Linear, Recognised, recognise};
use crate::rewrite::{self, Activation, IntegerProducts, QuantizePlan, Rounded};
use crate::site::Site;
use crate::solve::correction::{Means, correction, means};
use crate::solve::feedback::{Feedback, output_error};
use crate::solve::{Method, Migration, Solution, quantize_weight};
use crate::{Error, Format};
use ndarray::s;
use rayon::prelude::*;
use std::sync::Arc;

/// Tokens, about, on which error feedback must be better.
const CONFIRMED_BY: usize = 128;

/// Output columns up to which weights are rounded with error feedback: beyond is the Linear of a vocabulary.
const WIDEST: usize = 16384;

/// What is quantized of a site's value, if it has statistics.
type Range = Option<(f32, f32)>;

/// Integers and biases of the migrated model that are better than rounding to the nearest, by the numbers of the Linears.
pub(crate) struct Refinement {
    rounded: Rounded,
    corrections: Vec<(usize, Vec<f32>)>,
}

impl Run<'_> {
    /// The migrated model with Q/DQ at every selected Linear.
    pub fn quantize(
        &mut self,
        migrated: Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &Solutions,
    ) -> Result<Model, Error> {
        let refined = self.refine(&migrated, blocks, statistics, solutions);
        let every = |_| true;
        let of = (solutions, &refined);
        if self.options.format == Format::QOperator {
            let model = migrated.clone();
            let qdq = self.quantize_in(Format::Qdq, model, blocks, statistics, of, &every)?;
            self.as_qdq = Some(qdq);
        }
        let model = self.quantize_refined(migrated, blocks, statistics, of, &every)?;
        self.finish_step("quantize");
        Ok(model)
    }

    /// What makes the quantization of the migrated model better than rounding to the nearest.
    pub(super) fn refine(
        &self,
        migrated: &Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &Solutions,
    ) -> Refinement {
        let found = recognised(migrated, blocks);
        let rounded = self.round(migrated, &found, blocks, statistics, solutions);
        let of = (solutions, &rounded);
        let corrections = self.corrections(migrated, &found, blocks, statistics, of);
        Refinement {
            rounded,
            corrections,
        }
    }

    /// The migrated model with Q/DQ at those selected Linears, by their numbers, that `quantizes` says.
    pub(super) fn quantize_refined(
        &self,
        model: Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        of: (&Solutions, &Refinement),
        quantizes: &dyn Fn(usize) -> bool,
    ) -> Result<Model, Error> {
        let format = self.options.format;
        self.quantize_in(format, model, blocks, statistics, of, quantizes)
    }

    fn quantize_in(
        &self,
        format: Format,
        mut model: Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        (solutions, refined): (&Solutions, &Refinement),
        quantizes: &dyn Fn(usize) -> bool,
    ) -> Result<Model, Error> {
        let ranges: Vec<_> = solutions
            .iter()
            .map(|s| s.as_ref().map(|s| s.range))
            .collect();
        let mut found = recognised(&model, blocks);
        let wanted = |l: &usize| blocks.skipped[*l].is_none() && quantizes(*l);
        let corrections = refined.corrections.iter().filter(|(l, _)| wanted(l));
        let corrections: Vec<_> = corrections.cloned().collect();
        if !corrections.is_empty() {
            let mut names = Names::new(&model);
            let patches =
                rewrite::correct_biases(&View::new(&model), &found, &corrections, &mut names)?;
            graph::apply(&mut model, patches).map_err(rewrite::RewriteError::from)?;
            // The biases may be other constants now.
            found = recognised(&model, blocks);
        }
        let products = match format {
            Format::QOperator => {
                let of = (Some(solutions), quantizes);
                self.integer_products(&model, &found, blocks, statistics, of)
            }
            Format::Qdq | Format::Float => None,
        };
        let of = (&ranges[..], refined.rounded.clone(), products.as_ref());
        self.quantize_with(&model, &found, blocks, statistics, of, quantizes)
    }

    /// The weights of the migrated model rounded with error feedback, where that is better on tokens of the other half.
    fn round(
        &self,
        migrated: &Model,
        found: &Recognised,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &Solutions,
    ) -> Rounded {
        if self.options.method != Method::OsPlus {
            return BTreeMap::new();
        }
        let view = View::new(migrated);
        let spec = self.options.weight();
        // Linears that share a weight share its integers: the first decides.
        let key = |l: &Linear| (view.derivation(l.weight), format!("{:?}", l.form));
        let mut first: BTreeMap<_, usize> = BTreeMap::new();
        for (l, linear) in found.linears.iter().enumerate() {
            first.entry(key(linear)).or_insert(l);
        }
        let sites: Vec<_> = blocks.sites.iter().zip(solutions).enumerate().collect();
        let round = |(i, (site, solution)): &(usize, (&Site, &Option<Solution>))| {
            // What is shared is rounded for the tokens of all.
            let stats = match blocks.group(*i) {
                Some(group) => Some(&group.statistics),
                None => statistics.get(&blocks.values[*i]),
            };
            let (Some(stats), Some(solution)) = (stats, solution) else {
                return Vec::new();
            };
            let linears = blocks.selected_indices(site).filter(|&l| {
                first.get(&key(&found.linears[l])) == Some(&l) && found.linears[l].n <= WIDEST
            });
            let migration = migration(solution);
            let linears: Vec<usize> = linears.collect();
            if linears.is_empty() {
                return Vec::new();
            }
            let centred = linears.iter().all(|&l| found.linears[l].bias.is_some());
            let [fit, other] = [0, 1].map(|i| migration.tokens(&stats.folds[i].sample, centred));
            let Some(feedback) = Feedback::new(&fit).filter(|_| other.nrows() > 0) else {
                return Vec::new();
            };
            // It is better by 1 dB and more, or not: some tokens tell.
            let every = (other.nrows() / CONFIRMED_BY).max(1);
            let other = other
                .slice_move(s![..;every, ..])
                .as_standard_layout()
                .into_owned();
            let round = |&l: &usize| {
                let w = found.linears[l].load_weight(&view)?;
                let nearest = quantize_weight(w.view(), &spec);
                let better = feedback.quantize(w.view(), &spec);
                let error = |q| output_error(&other, w.view(), q);
                let best = if error(&better) < error(&nearest) {
                    better
                } else {
                    nearest
                };
                Some((l, Arc::new(best)))
            };
            linears.iter().filter_map(round).collect()
        };
        let rounded: Vec<Vec<_>> = sites.par_iter().map(round).collect();
        let mut rounded: BTreeMap<_, _> = rounded.into_iter().flatten().collect();
        for (l, linear) in found.linears.iter().enumerate() {
            if let Some(shared) = rounded.get(&first[&key(linear)]).cloned() {
                rounded.insert(l, shared);
            }
        }
        rounded
    }

    /// What to add to the biases of Linears of the migrated model, so that quantization keeps the mean of their outputs.
    fn corrections(
        &self,
        migrated: &Model,
        found: &Recognised,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        (solutions, rounded): (&Solutions, &Rounded),
    ) -> Vec<(usize, Vec<f32>)> {
        if self.options.method != Method::OsPlus {
            return Vec::new();
        }
        let view = View::new(migrated);
        let mut jobs = Vec::new();
        let solved = blocks.sites.iter().zip(&blocks.values).zip(solutions);
        for ((site, value), solution) in solved {
            let (Some(stats), Some(solution)) = (statistics.get(value), solution) else {
                continue;
            };
            let migration = migration(solution);
            let (low, high) = solution.range;
            let params = self.options.activation().params(low, high);
            let means = [0, 1].map(|i| means(&stats.folds[i].sample, &migration, &params));
            jobs.extend(
                blocks
                    .selected_indices(site)
                    .filter(|&l| found.linears[l].bias.is_some())
                    .map(|l| (l, means.clone())),
            );
        }
        let weight = self.options.weight();
        let correct = |(l, means): &(usize, [Means; 2])| {
            let w = found.linears[*l].load_weight(&view)?;
            let nearest = || Arc::new(quantize_weight(w.view(), &weight));
            let quantized = rounded.get(l).cloned().unwrap_or_else(nearest);
            Some((*l, correction(w.view(), &quantized, means)?))
        };
        jobs.par_iter().filter_map(correct).collect()
    }

    /// The original with plain min-max Q/DQ at the same Linears, for comparison; `None` if the result is that already.
    pub fn quantize_plain(
        &mut self,
        model: &Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
    ) -> Result<Option<Model>, Error> {
        if self.options.method == Method::None {
            return Ok(None);
        }
        let model = self.quantize_min_max(model, blocks, statistics, &|_| true)?;
        self.finish_step("quantize");
        Ok(Some(model))
    }

    /// The original with plain min-max Q/DQ at those selected Linears, by their numbers, that `quantizes` says.
    pub(super) fn quantize_min_max(
        &self,
        model: &Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        quantizes: &dyn Fn(usize) -> bool,
    ) -> Result<Model, Error> {
        let ranges: Vec<_> = blocks
            .values
            .iter()
            .map(|v| statistics.get(v).map(range))
            .collect();
        let of = (None, quantizes);
        let products = self.integer_products(model, &blocks.found, blocks, statistics, of);
        let of = (&ranges[..], BTreeMap::new(), products.as_ref());
        self.quantize_with(model, &blocks.found, blocks, statistics, of, quantizes)
    }

    fn quantize_with(
        &self,
        model: &Model,
        found: &Recognised,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        (ranges, rounded, products): (&[Range], Rounded, Option<&IntegerProducts>),
        quantizes: &dyn Fn(usize) -> bool,
    ) -> Result<Model, Error> {
        let view = View::new(model);
        let mut activations = vec![None; found.linears.len()];
        for ((site, value), range) in blocks.sites.iter().zip(&blocks.values).zip(ranges) {
            let (Some(stats), Some((min, max))) = (statistics.get(value), range) else {
                continue;
            };
            let params = self.options.activation().params(*min, *max);
            for (&l, rank) in site
                .linears
                .iter()
                .zip(&site.ranks)
                .filter(|(l, _)| blocks.skipped[**l].is_none() && quantizes(**l))
            {
                activations[l] = Some(Activation {
                    params,
                    rank: rank.unwrap_or(stats.rank),
                });
            }
        }
        let plan = QuantizePlan {
            activations,
            weight: self.options.weight(),
            storage: self.options.weight_storage,
            rounded,
            profile: self.options.profile(),
        };
        let mut names = Names::new(model);
        let patches = match products {
            Some(products) => {
                rewrite::quantize_as_operators(&view, found, &plan, products, &mut names)?
            }
            None => rewrite::quantize(&view, found, &plan, &mut names)?,
        };
        let mut quantized = model.clone();
        graph::apply(&mut quantized, patches).map_err(rewrite::RewriteError::from)?;
        Ok(quantized)
    }
}

/// What is recognised in a migrated model, which has the Linears of the original in the same order: migration changes
/// constants and adds nodes, no more.
fn recognised(migrated: &Model, blocks: &Blocks) -> Recognised {
    let mut found = recognise(&View::new(migrated));
    // The weights are in float32 on their way to integers, whatever the type of the file.
    for (linear, original) in found.linears.iter_mut().zip(&blocks.found.linears) {
        linear.dtype = original.dtype;
    }
    found
}

pub(super) fn migration(solution: &Solution) -> Migration {
    Migration {
        shift: solution.shift.clone(),
        scale: solution.scale.clone(),
        rotation: solution.rotation.clone(),
    }
}

/// The range of a value over all calibration tokens.
fn range(stats: &ChannelStats) -> (f32, f32) {
    let all = |f: fn(f32, f32) -> f32, pick: fn(&crate::calibrate::FoldStats) -> &Vec<f32>| {
        stats
            .folds
            .iter()
            .flat_map(pick)
            .copied()
            .reduce(f)
            .unwrap_or(0.0)
    };
    (all(f32::min, |f| &f.min), all(f32::max, |f| &f.max))
}
