//! What every step of a run is given.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::calibrate::{Engine, Metric, MinMetric, Statistics};
use crate::onnx::Model;
use crate::options::Options;
use crate::progress::Progress;

/// What a run is asked to do, and with what.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub original: &'a Model,
    pub engine: &'a dyn Engine,
    pub options: &'a Options,
    pub progress: &'a dyn Progress,
    pub clock: &'a Clock,
    /// Statistics that another run has taken, on all calibration rows.
    pub known: Option<&'a Statistics>,
    /// What judges the result besides its outputs.
    pub evaluation: Option<Evaluation<'a>>,
}

/// A metric of the caller's, and what it must say of the result.
#[derive(Clone, Copy)]
pub struct Evaluation<'a> {
    /// What a model is worth.
    pub metric: &'a dyn Metric,
    /// The least that the result must be worth: Linears are left in float until it is.
    pub least: Option<MinMetric>,
    /// Which rows it looks at, in words, as "rows of their own"; empty where that is not known.
    pub rows: &'a str,
}

/// Wall-clock seconds per step.
pub(crate) struct Clock(Mutex<Times>);

struct Times {
    last: Instant,
    seconds: BTreeMap<String, f64>,
}

impl Clock {
    /// Starts now.
    pub(super) fn start() -> Clock {
        Clock(Mutex::new(Times {
            last: Instant::now(),
            seconds: BTreeMap::new(),
        }))
    }

    /// Books the time since the last step under `step`.
    pub(super) fn finish(&self, step: &str) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let seconds = (now - times.last).as_secs_f64();
        *times.seconds.entry(step.to_owned()).or_default() += seconds;
        times.last = now;
    }

    /// What was booked so far.
    pub(super) fn seconds(&self) -> BTreeMap<String, f64> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.seconds.clone()
    }
}
