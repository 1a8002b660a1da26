//! The steps of [`crate::run`], in order, and what they have to remember for the report.

mod anatomy;
mod attention;
mod blocks;
mod budget;
mod drop;
mod folded;
mod inline;
mod keep_float;
mod lint;
mod portion;
mod products;
mod quantize;
mod responses;
mod rotation;
mod search;
mod shared;
mod subset;
mod verify;
mod wider;

use std::collections::BTreeMap;
use std::time::Instant;

use crate::calibrate::{
    Batch, Captured, ChannelStats, Dataset, Engine, OutputComparison, Reference, StatOptions,
    shapes,
};
use crate::graph::branches::flatten;
use crate::graph::{self, Names, View, opset};
use crate::onnx::Model;
use crate::progress::Progress;
use crate::review::{Decision, REPORT_SCHEMA, Report, Settings, linear_report, site_report};
use crate::rewrite::{self, Affine, Rotated};
use crate::site::{ResponseKind, Sink, Site};
use crate::solve::Solution;
use crate::target::MIN_OPSET;
use crate::{Error, Format, Inspection, Options};
pub(crate) use anatomy::anatomy;
use blocks::Blocks;
pub(crate) use drop::Source;
use drop::migrates;
use folded::Folded;
use portion::row_count;
use products::Products;

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
    /// The Linears whose outputs are quantized, for `--format qoperator`.
    products: Products,
    /// What the last quantized model would be with `--format qdq`, for the comparison.
    as_qdq: Option<Model>,
    /// The original, to be run on the held-out rows that judge the result.
    reference: Reference<'a>,
    /// Held-out rows to be asked in case of doubt.
    in_reserve: Vec<Batch>,
    report: Report,
    /// What kind of block the loss of a site is measured at, by its value.
    responses: BTreeMap<String, ResponseKind>,
    migrated_sites: usize,
    /// Sites whose decision was dropped, with the reason.
    dropped: BTreeMap<usize, String>,
    /// How what is written and plain min-max compare with the original on the held-out rows.
    written: Vec<OutputComparison>,
    plain: Option<Vec<OutputComparison>>,
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
        let (judging, in_reserve) = portion::judging(&split, options);
        let held_out_rows = row_count(&judging);
        let report = Report {
            schema: REPORT_SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: Settings {
                calibration_rows: row_count(&split.calibration),
                held_out_rows: if split.held_out_used {
                    held_out_rows
                } else {
                    0
                },
                opset: original.opset(),
                ..options.settings()
            },
            verified_on: if split.held_out_used {
                portion::verified_on(held_out_rows, row_count(&in_reserve))
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
            products: Products::default(),
            as_qdq: None,
            reference: Reference::new(original, &judging),
            in_reserve,
            report,
            responses: BTreeMap::new(),
            migrated_sites: 0,
            dropped: BTreeMap::new(),
            written: Vec::new(),
            plain: None,
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
        let target = self.options.profile();
        if self.options.reduce_range && !target.saturates {
            return Err(Error::NothingSaturates {
                target: target.name,
            });
        }
        graph::check(self.original)?;
        let mut model = self.clean(self.original.clone())?;
        let profile = self.options.profile();
        if let (Format::QOperator, Some(reason)) = (self.options.format, profile.no_qoperator) {
            let (format, target) = (self.options.format.name(), profile.name);
            return Err(Error::FormatRefused {
                format,
                target,
                reason,
            });
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
        let opset = model.opset();
        if opset > target.newest_opset && self.options.format != Format::Float {
            self.report.notes.push(format!(
                "opset {opset} is newer than {}, the newest with which this form was tried on {}: see that it loads",
                target.newest_opset, target.runtimes
            ));
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
        let mut values: Vec<String> = blocks
            .sites
            .iter()
            .zip(&blocks.values)
            .filter(|(site, _)| blocks.selected(site).next().is_some())
            .map(|(_, value)| value.clone())
            .collect();
        if self.options.format == Format::QOperator {
            self.products = Products::of(model, blocks);
        }
        let extremes_only = self.products.not_among(&values);
        values.extend(extremes_only.iter().cloned());
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
            extremes_only,
        };
        let mut stats = self.statistics(model, blocks, &values, &options)?;
        let extra_nodes = self.options.extra_nodes;
        let notes = blocks.join_shared(&View::new(model), &mut stats, extra_nodes);
        self.report.notes.extend(notes);
        let rank = |value| stats.get(value).map_or(0, |s| s.rank);
        blocks.ranks = blocks.values.iter().map(rank).collect();
        blocks.check_any()?;
        self.finish_step("calibrate");
        Ok(stats)
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
        for (i, ((site, value), solution)) in sites.enumerate() {
            // Sites that share a weight go together, so that it stays shared.
            let drops = match blocks.group(i) {
                Some(group) => group.members.iter().any(|&m| drops(&blocks.sites[m].sink)),
                None => drops(&site.sink),
            };
            let Some(stats) = statistics.get(value).filter(|_| drops) else {
                continue;
            };
            if site.has_sink() && solution.as_ref().is_some_and(migrates) {
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
        self.fold_for(model, blocks, solutions, &|_| true)
    }

    /// [`Run::fold`] if of the selected Linears only those that `quantizes` says, by their numbers, get new weights after.
    fn fold_for(
        &mut self,
        model: &Model,
        blocks: &Blocks,
        solutions: &Solutions,
        quantizes: &dyn Fn(usize) -> bool,
    ) -> Result<Folded, Error> {
        let view = View::new(model);
        let migrations: Vec<(&Site, Affine)> = blocks
            .sites
            .iter()
            .zip(&blocks.ranks)
            .zip(solutions)
            .filter_map(|((site, &rank), s)| Some((site, affine(s.as_ref()?, rank))))
            .filter(|(site, affine)| site.has_sink() && !affine.is_identity())
            .collect();
        self.migrated_sites = migrations.len();
        let any = self.options.format.quantizes();
        let skipped = blocks.skipped.iter().enumerate();
        let replaced = skipped.map(|(l, s)| any && s.is_none() && quantizes(l));
        let replaced: Vec<bool> = replaced.collect();
        let folded = Folded::new(model, |precision| {
            let mut names = Names::new(model);
            let (found, names) = (&blocks.found, &mut names);
            rewrite::migrate_in(precision, &replaced, &view, found, &migrations, names)
        })?;
        self.finish_step("migrate");
        Ok(folded)
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
    pub fn into_report(
        self,
        blocks: Blocks,
        solutions: Solutions,
        statistics: &BTreeMap<String, ChannelStats>,
    ) -> Report {
        let Run {
            mut report,
            options,
            responses,
            dropped,
            ..
        } = self;
        let Blocks {
            found,
            sites,
            values,
            skipped,
            ..
        } = blocks;
        let quantizes = options.format.quantizes();
        let linears = found.linears.iter().zip(skipped);
        report.linears = linears
            .map(|(linear, skipped)| linear_report(linear, skipped, quantizes))
            .collect();
        let discarded = match report.decision {
            Decision::PlainWasBetter => Some("plain min-max was better for the whole model"),
            _ => None,
        };
        let sites = sites.iter().zip(values).zip(solutions);
        report.sites = sites
            .enumerate()
            .filter_map(|(i, ((site, value), solution))| Some((i, site, value, solution?)))
            .map(|(i, site, value, solution)| {
                let kind = responses.get(&value).copied();
                let discarded = discarded.or(dropped.get(&i).map(String::as_str));
                let stats = statistics.get(&value);
                site_report(&found, site, value, solution, kind, discarded, stats)
            })
            .collect();
        report
            .near_misses
            .extend(found.near_misses.into_iter().map(Into::into));
        report
    }
}

/// What a solution does to the float model at a value of so many axes.
fn affine(solution: &Solution, rank: usize) -> Affine {
    let rotation = solution.rotation.clone();
    Affine {
        shift: solution.shift.clone(),
        scale: solution.scale.clone(),
        rotation: rotation.map(|rotation| Rotated { rotation, rank }),
    }
}
