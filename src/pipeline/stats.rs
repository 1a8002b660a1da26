//! [`stats`]: only the calibration, of a part of the rows, to be merged with that of the others.

use super::calibrate::gathered;
use super::job::{Clock, Job};
use super::prepare::Prepared;
use crate::calibrate::{Dataset, Engine, GatheredStatistics, with_threads};
use crate::error::Error;
use crate::onnx::Model;
use crate::options::Options;
use crate::progress::Progress;

/// The statistics that [`run`](super::run) would take, of part `part` of `parts`: of every `parts`-th batch of the calibration rows.
///
/// Merged with those of the other parts ([`merge_statistics`](crate::calibrate::merge_statistics)) and
/// [finished](crate::calibrate::finish_statistics) they are those of one run over all rows, bit for bit, and
/// [`run_with`](super::run_with) makes the same model of them. Every part is given all data, so that the rows that are held out,
/// and what is run together, are the same for all; it reads only its own rows.
///
/// # Errors
/// Those of [`run`](super::run) up to the calibration.
pub fn stats(
    original: &Model,
    data: &Dataset,
    (part, parts): (usize, usize),
    engine: &dyn Engine,
    options: &Options,
    progress: &dyn Progress,
) -> Result<GatheredStatistics, Error> {
    with_threads(options.threads, || {
        let engine = engine.sharing();
        let job = Job {
            original,
            engine: engine.as_ref(),
            options,
            progress,
            clock: &Clock::start(),
            known: None,
            evaluation: None,
        };
        let (prepared, rows, _) = Prepared::with_rows(&job, data)?;
        gathered(&job, &prepared, &rows, (part, parts))
    })?
}
