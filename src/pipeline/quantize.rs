//! Q/DQ at every selected Linear, of the migrated model and, for comparison, of the original.

use std::collections::BTreeMap;

use super::{Blocks, Run, Solutions};
use crate::Error;
use crate::calibrate::ChannelStats;
use crate::graph::{self, Names, View};
use crate::onnx::Model;
use crate::recognise::{Recognised, recognise};
use crate::rewrite::{self, Activation, QuantizePlan};
use crate::solve::Method;

impl Run<'_> {
    /// The migrated model with Q/DQ at every selected Linear.
    pub fn quantize(
        &mut self,
        migrated: Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &Solutions,
    ) -> Result<Model, Error> {
        let ranges: Vec<_> = solutions
            .iter()
            .map(|s| s.as_ref().map(|s| s.range))
            .collect();
        // Migration changes constants and adds nodes, but neither adds, removes nor reorders Linears.
        let mut found = recognise(&View::new(&migrated));
        // The weights are in float32 on their way to integers, whatever the type of the file.
        for (linear, original) in found.linears.iter_mut().zip(&blocks.found.linears) {
            linear.dtype = original.dtype;
        }
        let model = self.quantize_with(&migrated, &found, blocks, statistics, &ranges)?;
        self.finish_step("quantize");
        Ok(model)
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
        let ranges: Vec<_> = blocks
            .values
            .iter()
            .map(|v| statistics.get(v).map(range))
            .collect();
        let model = self.quantize_with(model, &blocks.found, blocks, statistics, &ranges)?;
        self.finish_step("quantize");
        Ok(Some(model))
    }

    fn quantize_with(
        &self,
        model: &Model,
        found: &Recognised,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        ranges: &[Option<(f32, f32)>],
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
                .filter(|(l, _)| blocks.skipped[**l].is_none())
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
            profile: self.options.profile(),
        };
        let mut names = Names::new(model);
        let patches = rewrite::quantize(&view, found, &plan, &mut names)?;
        let mut quantized = model.clone();
        graph::apply(&mut quantized, patches).map_err(rewrite::RewriteError::from)?;
        Ok(quantized)
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
