//! A run, as values: each step takes what the one before it made, and changes nothing behind itself.
//!
//! ```text
//! Prepared ─▶ Calibrated ─▶ Plan ─▶ Judge ─ Measured ─ strategies ─▶ Measured ─▶ Report
//! model,      statistics     every          model and     other plans    what is
//! sites       of the sites   decision       its outputs                  written
//! ```
//!
//! [`run`] tells this in one function.

mod anatomy;
mod build;
mod calibrate;
mod inspect;
mod job;
mod judge;
mod lint;
mod plan;
mod prepare;
mod report;
mod responses;
mod rounded;
mod search;
mod sequential;
mod sites;
mod stats;
mod strategy;
mod stream;
mod token_ids;
mod verdict;
mod work;

use crate::calibrate::{Dataset, Engine, Statistics, with_threads};
use crate::error::Error;
use crate::onnx::Model;
use crate::options::{Format, Options};
use crate::progress::Progress;
use crate::review::Report;
use crate::solve::Method;

pub use anatomy::anatomy;
pub use inspect::{Inspection, check_quantizable, inspect};
pub use job::Evaluation;
pub use plan::plan_round_trip;
pub use stats::stats;
pub use stream::{
    Streaming, WorkFolder, cannot_stream, run_streaming, stored_bytes, whole_model_bytes,
};

use build::{KnownWeights, Source};
use calibrate::Calibrated;
use job::{Clock, Job};
use judge::{HeldOut, Judge, Measured};
use plan::Plan;
use prepare::Prepared;
use strategy::{Rotated, Wish};

/// Migrates and quantizes `original` by what `data` shows of its activations.
///
/// Returns the new model and the account of what was done to it. The float model after migration has been compared
/// with the original, and the result with plain min-max quantization, on data that set none of its ranges if there is
/// enough. No more threads work than [`Options::threads`] says.
///
/// # Errors
/// Whatever makes a sound result impossible: see [`Error`]. `original` is never changed.
pub fn run(
    original: &Model,
    data: &Dataset,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(Model, Report), Error> {
    run_with(original, data, None, engine, options, progress)
}

/// [`run`] with statistics that were [taken before](stats()): what they have of the calibration rows is not measured again.
///
/// # Errors
/// Those of [`run`].
pub fn run_with(
    original: &Model,
    data: &Dataset,
    known: Option<&Statistics>,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(Model, Report), Error> {
    run_evaluated(original, (data, known), None, engine, options, progress)
}

/// [`run_with`] with a metric that judges the result: the report has what it says of the original and of the result, and where a
/// least is asked for, as few Linears as it needs are left in float.
///
/// # Errors
/// Those of [`run`]; [`Error::MinMetric`] if the least is not reached.
pub fn run_evaluated(
    original: &Model,
    (data, known): (&Dataset, Option<&Statistics>),
    evaluation: Option<Evaluation>,
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(Model, Report), Error> {
    with_threads(options.threads, || {
        let engine = engine.sharing();
        let clock = Clock::start();
        let job = Job {
            original,
            engine: engine.as_ref(),
            options,
            progress,
            clock: &clock,
            known,
            evaluation,
        };
        run_job(&job, data).map(|ran| (ran.model, ran.report))
    })?
}

/// What a run has made.
struct Ran {
    model: Model,
    report: Report,
    /// Plain min-max quantization of the same Linears; `None` where nothing was compared with it.
    plain: Option<Model>,
}

/// [`run`], in the threads of the caller.
fn run_job(job: &Job, data: &Dataset) -> Result<Ran, Error> {
    let (prepared, rows, data) = Prepared::with_rows(job, data)?;
    let (calibrated, sequences) = Calibrated::new(job, prepared, &rows)?;
    let plan = Plan::search(job, &calibrated, sequences);
    let known = KnownWeights::default();
    let source = Source {
        options: job.options,
        calibrated: &calibrated,
        known: &known,
    };
    let mut judge = HeldOut::new(job, source, &rows);
    judge.evaluate_float()?;
    let mut written = best_plan(job, source, plan, &mut judge)?;
    judge.make_sure(&mut written)?;
    let float_check = strategy::conclude(&mut written, &mut judge)?;
    let rewritten = &calibrated.prepared.changes.rewritten;
    prepare::restore(&mut written.model, rewritten)?;
    let result = written.model.unflatten();
    let metric = judge.metric(&written)?;
    let findings = lint::lint(job, &result)?;
    let all = judge.all_outputs(&written)?;
    let batch = rows.calibration.first();
    let work = batch.and_then(|batch| {
        let prepared = &calibrated.prepared;
        work::work_of(job.engine, prepared, &written.plan, batch, &result)
    });
    let account = report::Account {
        work,
        job,
        data: &data,
        rows: &rows,
        calibrated: &calibrated,
        written: &written,
        judged_on: judge.judged_on(),
        outputs: all.as_ref().map_or(&written.outputs, |[ours, _]| ours),
        plain: match &all {
            Some([_, plain]) => judge.plain().map(|_| &plain[..]),
            None => judge.plain().map(|plain| &plain.outputs[..]),
        },
        float_check,
        metric,
        findings,
    };
    let report = account.report();
    let plain = judge.plain().map(|plain| {
        let mut model = plain.model.clone();
        prepare::restore(&mut model, rewritten)?;
        Ok::<Model, Error>(model.unflatten())
    });
    Ok(Ran {
        model: result,
        report,
        plain: plain.transpose()?,
    })
}

/// What is to be written: the plan that the search has found, or a better one that a strategy knows.
fn best_plan(
    job: &Job,
    source: Source,
    plan: Plan,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let sites = &source.calibrated.prepared.sites;
    if job.options.format == Format::Float {
        let plan = exact(job, source, plan, judge)?;
        return judge::measure(judge, plan);
    }
    let reaches = source.calibrated.prepared.reaches();
    let written = first_plan(job, source, plan, judge)?;
    let written = strategy::widen_if_below(written, judge)?;
    let units = strategy::units(&written.plan, sites, &reaches);
    let written = strategy::drop_what_hurts(written, &units, judge)?;
    let (prepared, target) = (&source.calibrated.prepared, job.options.target);
    let market = strategy::offers_for_dropped(&written.plan, prepared, target);
    let written = strategy::rotate_dropped(written, market, job.options.slowdown(), judge)?;
    let written = strategy::round_in_sequence(written, job.options, judge)?;
    let wish = Wish {
        budget: job.options.keep_float,
        min_sqnr_db: job.options.min_sqnr_db,
    };
    let raises = strategy::raises(
        &written.plan,
        &source.calibrated.prepared,
        job.options.weight_bits,
    );
    let percent = job.options.max_raised;
    let written = strategy::raise_bits(written, &raises, percent, wish, judge)?;
    let written = strategy::keep_float(written, wish, sites, &units, judge)?;
    let written = strategy::unless_metric_falls(written, judge, |written, judge| {
        strategy::quantize_attention(written, job.options, judge)
    })?;
    let written = strategy::unless_metric_falls(written, judge, |written, judge| {
        strategy::quantize_embeddings(written, job.options, judge)
    })?;
    strategy::compare_with_qdq(written, judge)
}

/// The plan that the search has found, with rotations if these are clearly better; plain has been measured.
fn first_plan(
    job: &Job,
    source: Source,
    plan: Plan,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let (prepared, options) = (&source.calibrated.prepared, job.options);
    let plain = |plan: &Plan| (options.method != Method::None).then(|| plan.plain(&prepared.sites));
    let market = strategy::offers(&plan, prepared, job.options.target);
    let percent = (options.slowdown(), Options::default().slowdown());
    let rotated = strategy::rotate(&plan, plain(&plan), market, percent, judge)?;
    let (known, note) = match rotated {
        Rotated::Better(written) => return Ok(written),
        Rotated::No { measured, note } => (measured, note),
    };
    let mut plan = exact(job, source, plan, judge)?;
    plan.notes.extend(note);
    match known {
        Some(known) if known.plan == plan => Ok(known),
        _ => {
            let plain = plain(&plan);
            strategy::open(plan, plain, judge)
        }
    }
}

/// The plan, or the one nearest to it whose float model is the original.
fn exact(job: &Job, source: Source, plan: Plan, judge: &mut dyn Judge) -> Result<Plan, Error> {
    let unmigrated = |site| search::solve_unmigrated(job, source.calibrated, site);
    strategy::make_exact(plan, &source.calibrated.prepared.sites, &unmigrated, judge)
}
