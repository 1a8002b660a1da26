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
mod judge;
mod lint;
mod plan;
mod prepare;
mod report;
mod search;
mod sites;
mod strategy;
mod verdict;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::calibrate::{Dataset, Engine, with_threads};
use crate::error::Error;
use crate::onnx::Model;
use crate::options::{Format, Options};
use crate::progress::Progress;
use crate::review::Report;
use crate::solve::Method;

pub use anatomy::anatomy;
pub use inspect::{Inspection, inspect};

use build::Source;
use calibrate::Calibrated;
use judge::rows::Rows;
use judge::{HeldOut, Judge, Measured};
use plan::Plan;
use prepare::Prepared;
use strategy::Wish;

/// What a run is asked to do, and with what.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub original: &'a Model,
    pub engine: &'a dyn Engine,
    pub options: &'a Options,
    pub progress: &'a dyn Progress,
    pub clock: &'a Clock,
}

/// Wall-clock seconds per step.
pub(crate) struct Clock(Mutex<Times>);

struct Times {
    last: Instant,
    seconds: BTreeMap<String, f64>,
}

impl Clock {
    fn start() -> Clock {
        Clock(Mutex::new(Times {
            last: Instant::now(),
            seconds: BTreeMap::new(),
        }))
    }

    /// Books the time since the last step under `step`.
    pub fn finish(&self, step: &str) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let seconds = (now - times.last).as_secs_f64();
        *times.seconds.entry(step.to_owned()).or_default() += seconds;
        times.last = now;
    }

    /// What was booked so far.
    pub fn seconds(&self) -> BTreeMap<String, f64> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.seconds.clone()
    }
}

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
    with_threads(options.threads, || {
        let engine = engine.sharing();
        let clock = Clock::start();
        let job = Job {
            original,
            engine: engine.as_ref(),
            options,
            progress,
            clock: &clock,
        };
        let rows = Rows::of(data, options);
        let prepared = Prepared::new(&job, &rows.small)?;
        let (calibrated, sequences) = Calibrated::new(&job, prepared, &rows)?;
        let plan = Plan::search(&job, &calibrated, sequences);
        let source = Source {
            options,
            calibrated: &calibrated,
        };
        let mut judge = HeldOut::new(&job, source, &rows);
        let mut written = best_plan(&job, source, plan, &mut judge)?;
        let float_check = strategy::conclude(&mut written, &mut judge)?;
        let result = written.model.unflatten();
        let findings = lint::lint(&job, &result)?;
        let account = report::Account {
            job: &job,
            data,
            rows: &rows,
            calibrated: &calibrated,
            written: &written,
            judged_on: judge.judged_on(),
            plain: judge.plain().map(|plain| &plain.outputs[..]),
            float_check,
            findings,
        };
        Ok((result, account.report()))
    })?
}

/// What is to be written: the plan that the search has found, or a better one that a strategy knows.
fn best_plan(
    job: &Job,
    source: Source,
    plan: Plan,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let sites = &source.calibrated.prepared.sites;
    let unmigrated = |site| search::solve_unmigrated(job, source.calibrated, site);
    let plan = strategy::make_exact(plan, sites, &unmigrated, judge)?;
    if job.options.format == Format::Float {
        return judge::measure(judge, plan);
    }
    let plain = (job.options.method != Method::None).then(|| plan.plain(sites));
    let reaches = source.calibrated.prepared.reaches();
    let written = strategy::open(plan, plain, judge)?;
    let written = strategy::widen_if_below(written, judge)?;
    let units = strategy::units(&written.plan, sites, &reaches);
    let written = strategy::drop_what_hurts(written, &units, judge)?;
    let units = strategy::units(&written.plan, sites, &reaches);
    let wish = Wish {
        budget: job.options.keep_float,
        min_sqnr_db: job.options.min_sqnr_db,
    };
    let written = strategy::keep_float(written, wish, (sites, &units), judge)?;
    let written = strategy::quantize_attention(written, job.options, judge)?;
    strategy::compare_with_qdq(written, judge)
}
