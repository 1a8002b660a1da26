//! The steps of [`crate::run`], in order, and what they have to remember for the report.

mod blocks;
mod branches;
mod folded;
mod inline;
mod responses;
mod verify;

use std::collections::BTreeMap;
use std::time::Instant;

use crate::calibrate::{Batch, Captured, ChannelStats, Dataset, Engine, StatOptions, shapes};
use crate::graph::branches::flatten;
use crate::graph::{self, Names, View, opset};
use crate::onnx::Model;
use crate::progress::Progress;
use crate::recognise::{Linear, Recognised, recognise};
use crate::review::{Decision, Report, Settings, linear_report, site_report};
use crate::rewrite::{self, Activation, Affine, QuantizePlan};
use crate::site::{ResponseKind, Sink, Site, Trace};
use crate::solve::{Fold, Method, Response, SiteProblem, Solution, SolveSettings, solve_block};
use crate::target::MIN_OPSET;
use crate::{Error, Format, Inspection, Options};
use blocks::Blocks;
use folded::Folded;

/// What an explicit Mul must gain at its site to be worth its run time.
const EXPLICIT_GAIN_DB: f64 = 1.0;

/// Tokens, about, on which the responses of blocks are computed.
const RESPONSE_TOKENS: usize = 512;

/// Solutions per site; `None` where no Linear of the site is to be quantized.
type Solutions = Vec<Option<Solution>>;

pub(crate) struct Run<'a> {
    original: &'a Model,
    engine: &'a dyn Engine,
    options: &'a Options,
    progress: &'a dyn Progress,
    small: Vec<Batch>,
    /// A few calibration rows on which blocks are run, and what they read and give then.
    sequences: Option<Batch>,
    kept: BTreeMap<String, Captured>,
    calibration: Vec<Batch>,
    held_out: Vec<Batch>,
    report: Report,
    /// What kind of block the loss of a site is measured at, by its value.
    responses: BTreeMap<String, ResponseKind>,
    migrated_sites: usize,
    last_step: Instant,
}

impl<'a> Run<'a> {
    pub fn new(
        original: &'a Model,
        data: &Dataset,
        engine: &'a dyn Engine,
        options: &'a Options,
        progress: &'a dyn Progress,
    ) -> Self {
        let split = data.split();
        let rows = |batches: &[Batch]| batches.iter().map(|b| b.rows.len()).sum::<usize>();
        let (calibration_rows, held_out_rows) = (rows(&split.calibration), rows(&split.held_out));
        let report = Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: Settings {
                calibration_rows,
                held_out_rows: if split.held_out_used {
                    held_out_rows
                } else {
                    0
                },
                opset: original.opset(),
                ..options.settings()
            },
            verified_on: if split.held_out_used {
                format!("{held_out_rows} rows held out of calibration")
            } else {
                format!("all {held_out_rows} calibration rows, too few to hold any out")
            },
            filled_inputs: data
                .filled()
                .iter()
                .map(|f| (f.input.clone(), f.rule.to_string()))
                .collect(),
            notes: data.notes().to_vec(),
            ..Report::default()
        };
        Run {
            original,
            engine,
            options,
            progress,
            small: data.small_batches(),
            sequences: data.sequences(RESPONSE_TOKENS),
            kept: BTreeMap::new(),
            calibration: split.calibration,
            held_out: split.held_out,
            report,
            responses: BTreeMap::new(),
            migrated_sites: 0,
            last_step: Instant::now(),
        }
    }

    /// Books the time since the last step under `name`.
    fn finish_step(&mut self, name: &str) {
        let now = Instant::now();
        let seconds = (now - self.last_step).as_secs_f64();
        *self.report.seconds.entry(name.to_owned()).or_default() += seconds;
        self.last_step = now;
    }

    /// A copy of the model (weights shared) at an operator set that has per-axis DequantizeLinear, with every Linear
    /// and norm in the main graph: not in a function, nor (in the flat form of the graph) in the branch of an If.
    pub fn raise_opset(&mut self) -> Result<Model, Error> {
        graph::check(self.original)?;
        let mut model = self.original.clone();
        let profile = self.options.profile();
        if let Some(max) = profile.max_opset
            && model.opset() > max
            && self.options.format == Format::Qdq
        {
            let (found, target) = (model.opset(), profile.name);
            return Err(Error::OpsetTooNew { found, target, max });
        }
        flatten(&mut model);
        let hidden = self.inline(&mut model)?;
        let raised = opset::raise(&mut model, MIN_OPSET)?;
        if hidden && !raised.functions.is_empty() {
            // What stood in the way may have been the functions' older operator set.
            self.inline(&mut model)?;
        }
        // Functions may have brought more.
        flatten(&mut model);
        let misses = inline::undecided(&View::new(&model));
        self.report.near_misses.extend(misses);
        if model.opset() != self.original.opset() {
            self.report.settings.opset_raised_from = Some(self.original.opset());
            self.report.settings.opset = model.opset();
        }
        Ok(model)
    }

    /// Frees the Linears that are inside of other operators, unless the user excludes these.
    pub fn take_apart(&mut self, mut model: Model) -> Result<Model, Error> {
        let view = View::new(&model);
        let wanted = |name: &str| self.options.refuses(name).is_none();
        let patches = rewrite::take_apart(&view, &mut Names::new(&model), wanted)?;
        drop(view);
        if !patches.is_empty() {
            self.report.notes.push(format!(
                "{} operators of ONNX Runtime were taken apart, because a Linear inside of them cannot be quantized",
                patches.len()
            ));
        }
        graph::apply(&mut model, patches).map_err(rewrite::RewriteError::from)?;
        Ok(model)
    }

    /// Finds norms, Linears and sites, and which Linears are to be quantized.
    pub fn recognise(&mut self, model: &Model) -> Result<Blocks, Error> {
        let shapes = |values: &[String]| {
            let mut all = BTreeMap::new();
            for batch in self.small.iter().filter(|_| !values.is_empty()) {
                let mut more = shapes(self.engine, model, batch, values)?;
                more.append(&mut all);
                all = more;
            }
            Ok(all)
        };
        let blocks = Blocks::find(&View::new(model), self.options, shapes)?;
        self.finish_step("recognise");
        Ok(blocks)
    }

    /// Per-channel statistics of every value whose Linears are to be quantized.
    pub fn calibrate(
        &mut self,
        model: &Model,
        blocks: &mut Blocks,
    ) -> Result<BTreeMap<String, ChannelStats>, Error> {
        let values: Vec<String> = blocks
            .sites
            .iter()
            .zip(&blocks.values)
            .filter(|(site, _)| blocks.selected(site).next().is_some())
            .map(|(_, value)| value.clone())
            .collect();
        let transposed = blocks
            .sites
            .iter()
            .zip(&blocks.values)
            .filter(|(site, _)| blocks.selected(site).any(|linear| !linear.channels_last()));
        let options = StatOptions {
            sample_tokens: self.options.sample_tokens,
            seed: self.options.seed,
            threads: self.options.threads,
            channels_first: transposed.map(|(_, value)| value.clone()).collect(),
        };
        let mut stats = self.statistics(model, blocks, &values, &options)?;
        let extra_nodes = self.options.extra_nodes;
        let notes = blocks.join_branches(&View::new(model), &mut stats, extra_nodes);
        self.report.notes.extend(notes);
        blocks.check_any()?;
        self.finish_step("calibrate");
        Ok(stats)
    }

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
            let solution = statistics
                .get(value)
                .filter(|_| blocks.selected(site).next().is_some())
                .filter(|_| blocks.leaders.get(&i).is_none_or(|&leader| leader == i))
                .map(|stats| {
                    let linears: Vec<&Linear> = blocks.selected(site).collect();
                    let block = responses.as_ref().and_then(|r| r.block(i, value, &linears));
                    let response = block.as_ref().map(|b| b as &dyn Response);
                    self.solve_site(&view, blocks, site, stats, response)
                });
            self.progress.advance(1);
            solution
        };
        let sites = blocks.sites.iter().zip(&blocks.values).enumerate();
        let mut solutions: Solutions = sites.map(solve).collect();
        for (&site, &leader) in &blocks.leaders {
            solutions[site] = solutions[leader].clone();
        }
        self.progress.end();
        self.finish_step("search");
        solutions
    }

    fn solve_site(
        &self,
        view: &View,
        blocks: &Blocks,
        site: &Site,
        stats: &ChannelStats,
        response: Option<&dyn Response>,
    ) -> Solution {
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
        };
        let settings = SolveSettings {
            activation: self.options.activation(),
            weight: self.options.weight(),
            method: self.options.method,
        };
        let solution = solve_block(&problem, &settings, response);
        let costs_a_node = matches!(site.sink, Sink::Explicit(_)) && solution.scale.is_some();
        if costs_a_node && solution.validated_gain_db < EXPLICIT_GAIN_DB {
            problem.allow_scale = false;
            return solve_block(&problem, &settings, response);
        }
        solution
    }

    /// The float model with every shift and scale folded, after it has been compared with the original.
    ///
    /// Should the models differ, only the norms are migrated: their folding needs no reasoning about what lies between
    /// a constant and a Linear. What the type of the file cannot hold even then is left unmigrated.
    pub fn migrate(
        &mut self,
        model: &Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &mut Solutions,
    ) -> Result<Model, Error> {
        let beyond_norms: fn(&Sink) -> bool = |sink| matches!(sink, Sink::Traced(_));
        let every: fn(&Sink) -> bool = |_| true;
        let steps = [(beyond_norms, "beyond their norms"), (every, "at all")];
        let mut result = self.fold_and_check(model, blocks, solutions);
        for (drops, what) in steps {
            let error = match result {
                Err(error) if error.is_of_rounding() => error,
                // What is no rounding is a mistake; a migration by norms alone must be exact.
                Err(error @ Error::FloatCheck { .. }) if what != "at all" => error,
                result => return result,
            };
            let dropped = self.leave_alone(model, blocks, statistics, solutions, drops);
            if dropped == 0 {
                result = Err(error);
                continue;
            }
            let note = format!("{dropped} sites were not migrated {what}: {error}");
            self.report.notes.push(note);
            result = self.fold_and_check(model, blocks, solutions);
        }
        result
    }

    /// Solves the migrated sites of some kinds of sink again, without migration; says how many they are.
    fn leave_alone(
        &self,
        model: &Model,
        blocks: &Blocks,
        statistics: &BTreeMap<String, ChannelStats>,
        solutions: &mut Solutions,
        drops: fn(&Sink) -> bool,
    ) -> usize {
        let view = View::new(model);
        let mut dropped = 0;
        let sites = blocks.sites.iter().zip(&blocks.values).zip(solutions);
        for ((site, value), solution) in sites {
            let Some(stats) = statistics.get(value).filter(|_| drops(&site.sink)) else {
                continue;
            };
            let migrated = |s: &Solution| s.shift.is_some() || s.scale.is_some();
            if site.has_sink() && solution.as_ref().is_some_and(migrated) {
                let plain = Site {
                    sink: Sink::None(String::new()),
                    ..site.clone()
                };
                *solution = Some(self.solve_site(&view, blocks, &plain, stats, None));
                dropped += 1;
            }
        }
        dropped
    }

    fn fold_and_check(
        &mut self,
        model: &Model,
        blocks: &Blocks,
        solutions: &Solutions,
    ) -> Result<Model, Error> {
        let folded = self.fold(model, blocks, solutions)?;
        self.check_float(&folded)?;
        Ok(folded.model)
    }

    fn fold(
        &mut self,
        model: &Model,
        blocks: &Blocks,
        solutions: &Solutions,
    ) -> Result<Folded, Error> {
        let view = View::new(model);
        let migrations: Vec<(&Site, Affine)> = blocks
            .sites
            .iter()
            .zip(solutions)
            .filter_map(|(site, solution)| Some((site, solution.as_ref()?)))
            .map(|(site, s)| {
                (
                    site,
                    Affine {
                        shift: s.shift.clone(),
                        scale: s.scale.clone(),
                    },
                )
            })
            .filter(|(site, affine)| site.has_sink() && !affine.is_identity())
            .collect();
        self.migrated_sites = migrations.len();
        let quantizes = self.options.format == Format::Qdq;
        let skipped = blocks.skipped.iter();
        let replaced: Vec<bool> = skipped.map(|s| quantizes && s.is_none()).collect();
        let folded = Folded::new(model, |precision| {
            let mut names = Names::new(model);
            let (found, names) = (&blocks.found, &mut names);
            rewrite::migrate_in(precision, &replaced, &view, found, &migrations, names)
        })?;
        self.finish_step("migrate");
        Ok(folded)
    }

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

    /// What was recognised.
    pub fn into_inspection(self, model: Model, blocks: Blocks) -> Inspection {
        Inspection {
            model,
            found: blocks.found,
            sites: blocks.sites,
            closed: self.report.near_misses,
        }
    }

    /// The account of the run.
    pub fn into_report(self, blocks: Blocks, solutions: Solutions) -> Report {
        let Run {
            mut report,
            options,
            responses,
            ..
        } = self;
        let Blocks {
            found,
            sites,
            values,
            skipped,
            ..
        } = blocks;
        let quantizes = options.format == Format::Qdq;
        let linears = found.linears.iter().zip(skipped);
        report.linears = linears
            .map(|(linear, skipped)| linear_report(linear, skipped, quantizes))
            .collect();
        let kept = report.decision != Decision::PlainWasBetter;
        let sites = sites.iter().zip(values).zip(solutions);
        report.sites = sites
            .filter_map(|((site, value), solution)| Some((site, value, solution?)))
            .map(|(site, value, solution)| {
                let kind = responses.get(&value).copied();
                site_report(&found, site, value, solution, kind, kept)
            })
            .collect();
        report
            .near_misses
            .extend(found.near_misses.into_iter().map(Into::into));
        report
    }
}

/// The extremes of every channel; channels that are tied have those of all of them, and so get one shift and scale.
fn tied(site: &Site, min: &[f32], max: &[f32]) -> (Vec<f32>, Vec<f32>) {
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
