//! The target's rules, held against what is about to be written.

use std::collections::BTreeSet;

use super::Run;
use crate::graph::{self, Names, View};
use crate::onnx::Model;
use crate::rewrite;
use crate::target::lint::{Finding, Subject, lint};
use crate::{Error, Format};

impl Run<'_> {
    /// Removes what exporters leave behind and a runtime rejects, if that was asked for.
    pub(super) fn clean(&mut self, mut model: Model) -> Result<Model, Error> {
        if !self.options.clean {
            return Ok(model);
        }
        let view = View::new(&model);
        let patches = rewrite::clean(&view, &mut Names::new(&model));
        drop(view);
        let reasons = patches.iter().map(|p| p.reason().to_owned());
        self.report.cleaned = reasons.collect();
        graph::apply(&mut model, patches).map_err(rewrite::RewriteError::from)?;
        Ok(model)
    }

    /// Reports what the target would make of `result`.
    ///
    /// # Errors
    /// A quantization that was not in the original would be rejected or misread: a defect of this tool, and nothing to
    /// deploy.
    pub fn lint(&mut self, result: &Model) -> Result<(), Error> {
        let target = self.options.target;
        let key = |f: &Finding| (f.rule.clone(), f.node.clone());
        let before: BTreeSet<_> = lint(self.original, target).iter().map(key).collect();
        let findings = lint(result, target);
        let ours = |f: &&Finding| f.subject == Subject::Quantization && !before.contains(&key(f));
        let fatal = findings.iter().filter(ours).find(|f| f.cost.is_fatal());
        if let Some(f) = fatal.filter(|_| self.options.format != Format::Float) {
            return Err(Error::Lint {
                target: target.profile().name,
                rule: f.rule.clone(),
                node: f.node.clone(),
                message: f.message.clone(),
            });
        }
        self.report.lint = findings;
        self.finish_step("lint");
        Ok(())
    }
}
