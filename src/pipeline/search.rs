//! The third value of a run: the plan that the search finds, site by site.

use oxc_index::IndexVec;

use super::calibrate::Calibrated;
use super::job::Job;
use super::plan::{Plan, Precision, Rounding, SitePlan};
use super::responses::{Responses, Sequences};
use super::sites::{SiteId, SiteRow, of_member, tied};
use crate::calibrate::ChannelStats;
use crate::graph::View;
use crate::recognise::Linear;
use crate::site::{Sink, Site};
use crate::solve::{Fold, Method, Response, SiteProblem, Solution, SolveSettings, solve_block};

/// What an explicit Mul must gain at its site to be worth its run time.
const EXPLICIT_GAIN_DB: f64 = 1.0;

impl Plan {
    /// Shift, scale and range of every site; every Linear that can be quantized is.
    pub fn search(job: &Job, calibrated: &Calibrated, sequences: Sequences) -> Plan {
        let prepared = &calibrated.prepared;
        let responses = Responses::new(prepared, job.engine, sequences);
        let view = prepared.model.view();
        job.progress.begin("search", prepared.sites.len() as u64);
        let solve = |(id, _): (SiteId, &SiteRow)| {
            let solution = solve_joint(job, calibrated, &view, responses.as_ref(), id);
            job.progress.advance(1);
            solution
        };
        let mut solutions: IndexVec<SiteId, Option<Solution>> =
            prepared.sites.iter().map(solve).collect();
        for group in prepared.sites.groups() {
            let joint = solutions[group.leader].clone();
            for &i in &group.members {
                let own = joint
                    .as_ref()
                    .zip(prepared.sites.row(i).statistics.as_ref());
                solutions[i] = own.map(|(joint, stats)| of_member(joint, stats));
            }
        }
        let kind = |id| responses.as_ref().and_then(|r| r.kind(id));
        let sites = solutions.into_iter_enumerated();
        let sites = sites.map(|(id, s)| s.map(|solution| SitePlan::of(solution, kind(id))));
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
            attention: Vec::new(),
            notes: Vec::new(),
        };
        job.progress.end();
        job.clock.finish("search");
        plan
    }
}

/// The solution of a site on the tokens of all sites that are decided with it; `None` if another leads, or nothing is known.
fn solve_joint(
    job: &Job,
    calibrated: &Calibrated,
    view: &View,
    responses: Option<&Responses>,
    id: SiteId,
) -> Option<Solution> {
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
    Some(solve_site(job, view, &site, response))
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
    Some(solve_site(job, &view, &site, None))
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
) -> Solution {
    let (site, linears) = (data.site, &data.linears);
    let weights: Vec<_> = linears.iter().filter_map(|l| l.load_weight(view)).collect();
    let folds = &data.statistics.folds;
    let extremes: Vec<_> = folds.iter().map(|f| tied(site, &f.min, &f.max)).collect();
    let fold = |i: usize| Fold {
        min: &extremes[i].0,
        max: &extremes[i].1,
        sample: folds[i].sample.view(),
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
    };
    let settings = SolveSettings {
        activation: options.activation(),
        weight: options.weight(),
        method: options.method,
    };
    let solution = solve_block(&problem, &settings, response);
    let costs_a_node = matches!(site.sink, Sink::Explicit(_)) && solution.scale.is_some();
    if costs_a_node && solution.validated_gain_db < EXPLICIT_GAIN_DB {
        problem.allow_scale = false;
        return solve_block(&problem, &settings, response);
    }
    solution
}
