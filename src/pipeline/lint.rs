//! The target's rules, held against what is about to be written.

use std::collections::BTreeSet;

use super::job::Job;
use crate::error::Error;
use crate::onnx::Model;
use crate::options::Format;
use crate::target::lint::{self, Finding, Subject};

/// What the target would make of `result`.
///
/// # Errors
/// A quantization that was not in the original would be rejected or misread: a defect of this tool, and nothing to
/// deploy.
pub(super) fn lint(job: &Job, result: &Model) -> Result<Vec<Finding>, Error> {
    let target = job.options.target;
    let key = |f: &Finding| (f.rule.clone(), f.node.clone());
    let before = lint::lint(job.original, target);
    let before: BTreeSet<_> = before.iter().map(key).collect();
    let findings = lint::lint(result, target);
    let ours = |f: &&Finding| f.subject == Subject::Quantization && !before.contains(&key(f));
    let fatal = findings.iter().filter(ours).find(|f| f.cost.is_fatal());
    if let Some(f) = fatal.filter(|_| job.options.format != Format::Float) {
        return Err(Error::Lint {
            target: target.profile().name,
            rule: f.rule.clone(),
            node: f.node.clone(),
            message: f.message.clone(),
        });
    }
    job.clock.finish("lint");
    Ok(findings)
}
