//! The decision for every site: shift, scale and range.

use std::collections::BTreeMap;

use super::{Blocks, Run, Solutions};
use crate::calibrate::ChannelStats;
use crate::graph::View;
use crate::onnx::Model;
use crate::recognise::Linear;
use crate::site::{Sink, Site, Trace};
use crate::solve::{
    Fold, Method, Response, SiteProblem, Solution, SolveSettings, Turn, solve_both,
};

/// What an explicit Mul must gain at its site to be worth its run time.
const EXPLICIT_GAIN_DB: f64 = 1.0;

impl Run<'_> {
    /// Shift, scale and range of every site.
    pub fn solve(
        &mut self,
        model: &Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
    ) -> Solutions {
        let view = View::new(model);
        let responses = self.take_responses(model, blocks);
        self.progress.begin("search", blocks.sites.len() as u64);
        let solve = |(i, (site, value)): (usize, (&Site, &String))| {
            let group = blocks.group(i);
            let solution = statistics
                .get(value)
                .filter(|_| blocks.selected(site).next().is_some())
                .filter(|_| group.is_none_or(|group| group.leader == i))
                .map(|stats| {
                    let (members, stats) = match group {
                        Some(group) => (&group.members[..], &group.statistics),
                        None => (&[i][..], stats),
                    };
                    let block = responses.as_ref().and_then(|r| r.joint(blocks, i, members));
                    let response = block.as_ref().map(|b| b as &dyn Response);
                    let turn = self.turn(blocks, members);
                    self.solve_both(&view, blocks, site, stats, response, turn.as_ref())
                });
            self.progress.advance(1);
            match solution {
                Some((solution, rotated)) => (Some(solution), rotated),
                None => (None, None),
            }
        };
        let sites = blocks.sites.iter().zip(&blocks.values).enumerate();
        let (mut solutions, mut rotated): (Solutions, Solutions) = sites.map(solve).unzip();
        for group in &blocks.groups {
            for solutions in [&mut solutions, &mut rotated] {
                let joint = solutions[group.leader].clone();
                for &i in &group.members {
                    let own = joint.as_ref().zip(statistics.get(&blocks.values[i]));
                    solutions[i] = own.map(|(joint, stats)| group.of_member(joint, stats));
                }
            }
        }
        self.buy_rotations(blocks, statistics, &mut solutions, rotated);
        self.progress.end();
        self.finish_step("search");
        solutions
    }

    pub(super) fn solve_site(
        &self,
        view: &View,
        blocks: &Blocks,
        site: &Site,
        stats: &ChannelStats,
        response: Option<&dyn Response>,
    ) -> Solution {
        self.solve_both(view, blocks, site, stats, response, None).0
    }

    /// The solution of a site, and a better one with a rotation, if there is one.
    fn solve_both(
        &self,
        view: &View,
        blocks: &Blocks,
        site: &Site,
        stats: &ChannelStats,
        response: Option<&dyn Response>,
        turn: Option<&Turn>,
    ) -> (Solution, Option<Solution>) {
        let linears: Vec<&Linear> = blocks.selected(site).collect();
        let weights: Vec<_> = linears.iter().filter_map(|l| l.load_weight(view)).collect();
        let extremes: Vec<_> = stats
            .folds
            .iter()
            .map(|f| tied(site, &f.min, &f.max))
            .collect();
        let fold = |i: usize| Fold {
            min: &extremes[i].0,
            max: &extremes[i].1,
            sample: stats.folds[i].sample.view(),
        };
        // SmoothQuant's scale depends on each channel's weights, so it does not come out alike for tied channels.
        let ties = matches!(&site.sink, Sink::Traced(trace) if trace.ties.is_some());
        let unties = ties && matches!(self.options.method, Method::SmoothQuant { .. });
        let mut problem = SiteProblem {
            folds: [fold(0), fold(1)],
            weights: weights.iter().map(|w| w.view()).collect(),
            allow_shift: site.has_sink() && site.allow_shift,
            allow_scale: site.has_sink() && !unties,
            correct_bias: linears.iter().all(|l| l.bias.is_some()),
        };
        let settings = SolveSettings {
            activation: self.options.activation(),
            weight: self.options.weight(),
            method: self.options.method,
        };
        let (solution, rotated) = solve_both(&problem, &settings, response, turn);
        let costs_a_node = matches!(site.sink, Sink::Explicit(_)) && solution.scale.is_some();
        if costs_a_node && solution.validated_gain_db < EXPLICIT_GAIN_DB {
            problem.allow_scale = false;
            return (solve_both(&problem, &settings, response, None).0, rotated);
        }
        (solution, rotated)
    }
}

/// The extremes of every channel; channels that are tied have those of all of them, and so get one shift and scale.
pub(super) fn tied(site: &Site, min: &[f32], max: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut low, mut high) = (min.to_vec(), max.to_vec());
    if let Sink::Traced(Trace {
        ties: Some(ties), ..
    }) = &site.sink
    {
        for (channel, &group) in ties.iter().enumerate() {
            low[group as usize] = low[group as usize].min(min[channel]);
            high[group as usize] = high[group as usize].max(max[channel]);
        }
        for (channel, &group) in ties.iter().enumerate() {
            (low[channel], high[channel]) = (low[group as usize], high[group as usize]);
        }
    }
    (low, high)
}
