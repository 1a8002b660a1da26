//! The first measurement, and the last: on as many rows as it takes.

use super::super::judge::{Judge, Measured, measure};
use super::super::plan::Plan;
use super::super::verdict::is_clearly_above;
use crate::error::Error;
use crate::review::FloatCheck;

/// A plan and plain min-max quantization, measured; all rows are asked if a part of them does not tell. `plain` is `None` if
/// the plan is that itself.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(crate) fn open(
    plan: Plan,
    plain: Option<Plan>,
    judge: &mut dyn Judge,
) -> Result<Measured, Error> {
    let Some(plain) = plain else {
        let ours = measure(judge, plan)?;
        judge.set_plain(ours.clone());
        return Ok(ours);
    };
    let mut both = measure_surely(vec![plan, plain], judge)?.into_iter();
    let (Some(ours), Some(plain)) = (both.next(), both.next()) else {
        unreachable!("two plans were measured");
    };
    judge.set_plain(plain);
    Ok(ours)
}

/// Plans, the last of which is plain, measured on as many rows as it takes to tell whether the first is above it.
///
/// # Errors
/// Those of [`Judge::measure`].
pub(super) fn measure_surely(
    plans: Vec<Plan>,
    judge: &mut dyn Judge,
) -> Result<Vec<Measured>, Error> {
    let mut measured = judge.measure(plans)?;
    let doubt = match &measured[..] {
        [first, .., plain] => !is_clearly_above(&first.outputs, &plain.outputs),
        _ => false,
    };
    if doubt && judge.ask_all_rows() {
        judge.measure_again(&mut measured.iter_mut().collect::<Vec<_>>())?;
    }
    Ok(measured)
}

/// The float check of what is written. Should it have asked for more rows, everything is measured on them.
///
/// # Errors
/// The models differ; those of [`Judge::measure`].
pub(crate) fn conclude(
    written: &mut Measured,
    judge: &mut dyn Judge,
) -> Result<Option<FloatCheck>, Error> {
    let rows = judge.rows();
    let check = judge.float_check(&written.plan)?;
    if judge.rows() > rows {
        let mut plain = judge.plain().cloned();
        let mut all = vec![written];
        all.extend(plain.as_mut());
        judge.measure_again(&mut all)?;
        if let Some(plain) = plain {
            judge.set_plain(plain);
        }
    }
    Ok(check)
}
