//! The third value of a run: the plan that the search finds, site by site.

use std::collections::BTreeMap;

use oxc_index::IndexVec;
use rayon::prelude::*;

use super::calibrate::Calibrated;
use super::job::Job;
use super::plan::{Plan, Precision, Rounding, SitePlan};
use super::responses::{Responses, Sequences};
use super::sites::{SiteId, SiteRow, SiteTable, of_member, tied};
use crate::calibrate::ChannelStats;
use crate::graph::View;
use crate::options::Format;
use crate::recognise::Linear;
use crate::site::{Sink, Site};
use crate::solve::{
    Fold, Method, Response, SiteProblem, Solution, SolveSettings, Turn, solve_both,
};

/// Sites that are searched at a time. One alone leaves a quarter of two cores idle; each takes the memory of its weights several times.
const TOGETHER: usize = 2;

/// What an explicit Mul must gain at its site to be worth its run time.
const EXPLICIT_GAIN_DB: f64 = 1.0;

/// What a rotation must gain at least over what is found without, in dB.
const LEAST_GAIN_DB: f64 = 0.5;

impl Plan {
    /// Shift, scale and range of every site; every Linear that can be quantized is.
    pub(super) fn search(job: &Job, calibrated: &Calibrated, sequences: Sequences) -> Plan {
        let prepared = &calibrated.prepared;
        let responses = Responses::new(prepared, job.engine, sequences);
        let view = prepared.model.view();
        job.progress.begin("search", prepared.sites.len() as u64);
        let solve = |&(id, _): &(SiteId, &SiteRow)| {
            let solution = solve_joint(job, calibrated, &view, responses.as_ref(), id);
            job.progress.advance(1);
            solution
        };
        let sites: Vec<_> = prepared.sites.iter().collect();
        let together = sites.chunks(TOGETHER).flat_map(|sites| {
            let solved: Vec<Option<Found>> = sites.par_iter().map(solve).collect();
            solved
        });
        let mut found: IndexVec<SiteId, Option<Found>> = together.collect();
        for group in prepared.sites.groups() {
            let joint = found[group.leader].clone();
            for &i in &group.members {
                let stats = prepared.sites.row(i).statistics.as_ref();
                found[i] = joint.as_ref().zip(stats).map(|(joint, stats)| Found {
                    solution: of_member(&joint.solution, stats),
                    rotated: joint.rotated.iter().map(|r| of_member(r, stats)).collect(),
                });
            }
        }
        let kind = |id| responses.as_ref().and_then(|r| r.kind(id));
        let plan =
            |id, found: Found| SitePlan::of(found.solution, kind(id)).with_rotated(found.rotated);
        let sites = found.into_iter_enumerated();
        let sites = sites.map(|(id, found)| Some(plan(id, found?)));
        let linears = prepared.skipped.iter().map(|skipped| match skipped {
            Some(reason) => Precision::Float(reason.clone()),
            None => Precision::Integer,
        });
        let plan = Plan {
            format: job.options.format,
            sites: sites.collect(),
            linears: linears.collect(),
            rounding: match job.options.method {
                Method::OsPlus => Rounding::Refined,
                Method::SmoothQuant { .. } | Method::None => Rounding::Nearest,
            },
            sequential: BTreeMap::new(),
            attention: Vec::new(),
            embeddings: None,
            notes: responses.as_ref().map_or_else(Vec::new, Responses::notes),
        };
        job.progress.end();
        job.clock.finish("search");
        plan
    }
}

/// What is found for a site.
#[derive(Clone, Debug)]
struct Found {
    solution: Solution,
    /// Better ones with a rotation, the cheapest first.
    rotated: Vec<Solution>,
}

/// The solution of a site on the tokens of all sites that are decided with it; `None` if another leads, or nothing is known.
fn solve_joint(
    job: &Job,
    calibrated: &Calibrated,
    view: &View,
    responses: Option<&Responses>,
    id: SiteId,
) -> Option<Found> {
    let sites = &calibrated.prepared.sites;
    let row = sites.row(id);
    if row.statistics.is_none() || row.linears.is_empty() || sites.leader(id) != id {
        return None;
    }
    let alone = [id];
    let members = sites.group(id).map_or(&alone[..], |g| &g.members);
    let block = responses.and_then(|r| r.joint(id, members));
    let response = block.as_ref().map(|b| b as &dyn Response);
    let linears: Vec<&Linear> = row.selected(&calibrated.prepared.found).collect();
    let site = SiteData {
        site: &row.site,
        linears,
        statistics: sites.joint_statistics(id)?,
    };
    let turn = turn(job, sites, members);
    Some(solve_site(job, view, &site, response, turn.as_ref()))
}

/// What a rotation may do at sites that are decided together; `None` if none is wanted.
fn turn<'a>(job: &Job, sites: &'a SiteTable, members: &[SiteId]) -> Option<Turn<'a>> {
    let options = job.options;
    // The extremes of products are known of columns as they are; and what another tool makes of mixed columns in a float model
    // cannot be validated.
    let columns_may_change = options.format == Format::Qdq;
    let explicit = options.slowdown() > 0.0;
    let rows = || members.iter().map(|&i| sites.row(i));
    let ties = |row: &'a SiteRow| match &row.site.sink {
        Sink::Traced(trace) => trace.ties.as_deref(),
        _ => None,
    };
    let first = ties(sites.row(*members.first()?));
    let usable = |row: &'a SiteRow| {
        let rank = row.statistics.as_ref().map_or(0, |s| s.rank);
        row.site.has_sink() && rank > 1 && ties(row) == first
    };
    let head = sites.row(*members.first()?).site.mixable;
    let head = head.filter(|_| columns_may_change && rows().all(|row| row.site.mixable == head));
    let free = |row: &SiteRow| !row.site.reorder.is_empty();
    let wanted = explicit || head.is_some();
    (wanted && rows().all(usable)).then(|| Turn {
        ties: first,
        signs: rows().all(|row| row.site.allow_signs()),
        reorder: columns_may_change && rows().all(free),
        head,
        explicit,
        least_gain_db: LEAST_GAIN_DB,
    })
}

/// The solution of a site if nothing can be folded: a range for the value as it is.
pub(super) fn solve_unmigrated(job: &Job, calibrated: &Calibrated, id: SiteId) -> Option<Solution> {
    let row = calibrated.prepared.sites.row(id);
    let plain = Site {
        sink: Sink::None(String::new()),
        ..row.site.clone()
    };
    let site = SiteData {
        site: &plain,
        linears: row.selected(&calibrated.prepared.found).collect(),
        statistics: row.statistics.as_ref()?,
    };
    let view = calibrated.prepared.model.view();
    Some(solve_site(job, &view, &site, None, None).solution)
}

/// What one search works with.
struct SiteData<'a> {
    site: &'a Site,
    /// Those that are to be quantized.
    linears: Vec<&'a Linear>,
    statistics: &'a ChannelStats,
}

fn solve_site(
    job: &Job,
    view: &View,
    data: &SiteData,
    response: Option<&dyn Response>,
    turn: Option<&Turn>,
) -> Found {
    let (site, linears) = (data.site, &data.linears);
    let weights: Vec<_> = linears.iter().filter_map(|l| l.load_weight(view)).collect();
    let folds = &data.statistics.folds;
    let extremes: Vec<_> = folds.iter().map(|f| tied(site, &f.min, &f.max)).collect();
    let fold = |i: usize| Fold {
        min: &extremes[i].0,
        max: &extremes[i].1,
        sample: folds[i].sample.view(),
        weights: folds[i].weights.as_deref(),
    };
    let options = job.options;
    // SmoothQuant's scale depends on each channel's weights, so it does not come out alike for tied channels.
    let ties = matches!(&site.sink, Sink::Traced(trace) if trace.ties.is_some());
    let unties = ties && matches!(options.method, Method::SmoothQuant { .. });
    let mut problem = SiteProblem {
        folds: [fold(0), fold(1)],
        weights: weights.iter().map(|w| w.view()).collect(),
        allow_shift: site.has_sink() && site.allow_shift,
        allow_scale: site.has_sink() && !unties,
        correct_bias: linears.iter().all(|l| l.bias.is_some()),
        ties: match &site.sink {
            Sink::Traced(trace) => trace.ties.as_deref(),
            _ => None,
        },
    };
    let channels = linears.first().map_or(0, |l| l.k);
    let settings = SolveSettings {
        activation: options.activation_of(channels),
        weight: options.weight_of(channels),
        method: options.method,
    };
    let (solution, rotated) = solve_both(&problem, &settings, response, turn);
    let costs_a_node = matches!(site.sink, Sink::Explicit(_)) && solution.scale.is_some();
    if costs_a_node && solution.validated_gain_db < EXPLICIT_GAIN_DB {
        problem.allow_scale = false;
        let (solution, _) = solve_both(&problem, &settings, response, None);
        return Found { solution, rotated };
    }
    Found { solution, rotated }
}
