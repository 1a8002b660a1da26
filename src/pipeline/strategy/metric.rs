//! What a metric of the caller's has the last word about.

use super::super::judge::{Judge, Measured};
use crate::error::Error;

/// What a strategy makes of the model, unless the metric that must be reached no longer is: then the model stays as it was.
///
/// # Errors
/// Those of `strategy`; [`Error::Metric`].
pub(crate) fn unless_metric_falls(
    written: Measured,
    judge: &mut dyn Judge,
    strategy: impl FnOnce(Measured, &mut dyn Judge) -> Result<Measured, Error>,
) -> Result<Measured, Error> {
    if !judge.asks_metric() {
        return strategy(written, judge);
    }
    let mut before = written.clone();
    let after = strategy(written, judge)?;
    if after.plan == before.plan || judge.metric_allows(&after)? {
        return Ok(after);
    }
    let is_int8 = |m: &Measured| {
        m.plan
            .attention
            .iter()
            .filter(|a| a.ranges.is_some())
            .count()
    };
    let what = match is_int8(&after) > is_int8(&before) {
        true => "attention stays in float",
        false => "embedding tables stay in float",
    };
    before.plan.notes.push(format!(
        "{what}: in 8 bits the metric would fall below what was asked for"
    ));
    Ok(before)
}
