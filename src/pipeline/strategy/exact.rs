//! A float model that is the original: migration beyond norms is given up where it is not exact, and then all of it.
//!
//! Folding into a norm needs no reasoning about what lies between a constant and a Linear. What the type of the file cannot
//! hold even then is left unmigrated.

use super::super::judge::Judge;
use super::super::plan::{Plan, SitePlan};
use super::super::sites::{SiteId, SiteTable};
use crate::error::Error;
use crate::site::Sink;
use crate::solve::Solution;

/// How a site is solved if nothing can be folded there.
pub(crate) type Unmigrated<'a> = &'a dyn Fn(SiteId) -> Option<Solution>;

/// What a step gives up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    BeyondNorms,
    All,
}

impl Step {
    fn drops(self, sink: &Sink) -> bool {
        self == Step::All || matches!(sink, Sink::Traced(_))
    }

    fn what(self) -> &'static str {
        match self {
            Step::BeyondNorms => "beyond their norms",
            Step::All => "at all",
        }
    }
}

/// The plan, or the one nearest to it whose float model is the original.
///
/// # Errors
/// [`Error::FloatCheck`] where even migration by norms alone is not exact: that is a mistake. What making and running
/// models refuses.
pub(crate) fn make_exact(
    mut plan: Plan,
    sites: &SiteTable,
    unmigrated: Unmigrated,
    judge: &mut dyn Judge,
) -> Result<Plan, Error> {
    for step in [Step::BeyondNorms, Step::All] {
        let error = match judge.float_check(&plan) {
            Ok(_) => return Ok(plan),
            Err(error) if error.is_of_rounding() => error,
            // What is no rounding is a mistake; a migration by norms alone must be exact.
            Err(error @ Error::FloatCheck { .. }) if step == Step::BeyondNorms => error,
            Err(error) => return Err(error),
        };
        let dropped = leave_alone(&mut plan, sites, unmigrated, step);
        if dropped == 0 && step == Step::All {
            return Err(error);
        }
        if dropped > 0 {
            let what = step.what();
            let note = format!("{dropped} sites were not migrated {what}: {error}");
            plan.notes.push(note);
        }
    }
    judge.float_check(&plan)?;
    Ok(plan)
}

/// Solves the migrated sites of some kinds of sink again, without migration; says how many they are.
fn leave_alone(plan: &mut Plan, sites: &SiteTable, unmigrated: Unmigrated, step: Step) -> usize {
    let mut dropped = 0;
    for (id, row) in sites.iter() {
        // Sites that share a weight go together, so that it stays shared.
        let drops = match sites.group(id) {
            Some(group) => {
                let mut members = group.members.iter();
                members.any(|&m| step.drops(&sites.row(m).site.sink))
            }
            None => step.drops(&row.site.sink),
        };
        let migrates = plan.sites[id].as_ref().is_some_and(SitePlan::migrates);
        if !drops || !row.site.has_sink() || !migrates {
            continue;
        }
        if let Some(solution) = unmigrated(id) {
            plan.sites[id] = Some(SitePlan::of(solution, None));
            dropped += 1;
        }
    }
    dropped
}
