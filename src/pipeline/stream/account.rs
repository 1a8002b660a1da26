//! The report of a streamed run, from those of its parts and the streams.

use std::collections::BTreeSet;

use super::super::job::{Clock, Job};
use super::super::prepare::Changes;
use super::work::Done;
use crate::calibrate::{Dataset, Engine, OutputComparison, judged};
use crate::error::Error;
use crate::onnx::Model;
use crate::options::{Format, Options};
use crate::progress::NoProgress;
use crate::review::{
    BelowPlain, Decision, FloatCheck, KeptFloat, REPORT_SCHEMA, Report, RotationsReport, Settings,
    agreement_reports, output_reports,
};
use crate::solve::Method;

/// How the whole model does, as the streams tell.
pub(super) struct Verdict {
    /// Whether plain min-max quantization is written in every part, because the whole is worse with the migrated ones.
    pub plain: bool,
    /// Whether there is a plain stream to compare with.
    pub compares: bool,
    pub ours: Vec<OutputComparison>,
    pub of_plain: Vec<OutputComparison>,
}

impl Verdict {
    /// The outputs of what is written.
    fn written(&self) -> &[OutputComparison] {
        if self.plain {
            &self.of_plain
        } else {
            &self.ours
        }
    }

    /// Refuses a result that is not as good as was asked for.
    ///
    /// # Errors
    /// [`Error::MinSqnr`], [`Error::NothingToCompare`].
    pub(super) fn check(&self, options: &Options, done: &[Done]) -> Result<(), Error> {
        let Some(wanted) = options.min_sqnr_db else {
            return Ok(());
        };
        let outputs = judged(self.written().to_vec());
        let figures = outputs
            .iter()
            .filter(|o| o.agreement.is_none())
            .map(|o| o.judged_db().0);
        let best = figures.reduce(f64::min).ok_or(Error::NothingToCompare)?;
        if best >= wanted {
            return Ok(());
        }
        let linears = || {
            done.iter()
                .filter_map(|d| d.report.as_ref())
                .flat_map(|r| &r.linears)
        };
        Err(Error::MinSqnr {
            wanted,
            best,
            kept: linears().filter(|l| l.status != "quantized").count(),
            linears: linears().count(),
        })
    }
}

/// All that the report tells.
pub(super) struct Account<'a> {
    pub engine: &'a dyn Engine,
    pub options: &'a Options,
    pub data: &'a Dataset,
    pub original: &'a Model,
    /// What was done to the whole model before it was cut.
    pub changes: &'a Changes,
    pub done: &'a [Done],
    pub verdict: &'a Verdict,
}

impl Account<'_> {
    fn parts(&self) -> impl Iterator<Item = &Report> {
        self.done.iter().filter_map(|done| done.report.as_ref())
    }

    /// The report of `result`.
    ///
    /// # Errors
    /// [`Error::Lint`].
    pub(super) fn report(&self, result: &Model, clock: &Clock) -> Result<Report, Error> {
        let verdict = self.verdict;
        let job = Job {
            original: self.original,
            engine: self.engine,
            options: self.options,
            progress: &NoProgress,
            clock,
            known: None,
            evaluation: None,
        };
        let lint = super::super::lint::lint(&job, result)?;
        let split = self.data.split();
        let held_out = split.held_out.iter().map(|b| b.rows.len()).sum::<usize>();
        let of_held_out = match (self.options.format.quantizes(), split.held_out_used) {
            (false, _) => usize::MAX,
            (true, true) => held_out,
            (true, false) => 0,
        };
        let plain = verdict.compares.then_some(&verdict.of_plain[..]);
        let filled = self.data.filled().iter();
        let mut report = Report {
            schema: REPORT_SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: self.settings(result, held_out),
            float_check: self.float_check(),
            below_plain: self.below_plain(),
            outputs: output_reports(verdict.written(), plain, of_held_out),
            agreements: agreement_reports(verdict.written(), plain),
            verified_on: match split.held_out_used {
                true => format!("{held_out} rows held out of calibration"),
                false => format!("all {held_out} calibration rows, too few to hold any out"),
            },
            decision: self.decision(),
            dropped_sites: self.parts().map(|r| r.dropped_sites).sum(),
            rotations: self.rotations(),
            embeddings: self.parts().find_map(|r| r.embeddings.clone()),
            kept_float: self.kept_float(),
            filled_inputs: filled
                .map(|f| (f.input.clone(), f.rule.to_string()))
                .collect(),
            notes: self.notes(),
            lint,
            inlined: self.changes.inlined.clone(),
            near_misses: self.changes.closed.clone(),
            cleaned: self.changes.cleaned.clone(),
            stored_sizes: self.changes.stored_sizes.clone(),
            seconds: clock.seconds(),
            ..Report::default()
        };
        self.lists(&mut report);
        Ok(report)
    }

    /// What every part has a list of, each entry once: what several parts have, as a mask, is told by the first.
    fn lists(&self, report: &mut Report) {
        let mut seen = BTreeSet::new();
        let mut new = |list: &str, name: &str| seen.insert(format!("{list} {name}"));
        for part in self.parts().cloned() {
            let linears = part.linears.into_iter();
            report
                .linears
                .extend(linears.filter(|l| new("linear", &l.name)));
            report
                .sites
                .extend(part.sites.into_iter().filter(|s| new("site", &s.value)));
            let attention = part.attention.into_iter();
            report
                .attention
                .extend(attention.filter(|a| new("attention", &a.softmax)));
            let misses = part.near_misses.into_iter();
            report
                .near_misses
                .extend(misses.filter(|m| new("miss", &m.name)));
            report
                .inlined
                .extend(part.inlined.into_iter().filter(|i| new("inlined", &i.node)));
        }
    }

    fn settings(&self, result: &Model, held_out: usize) -> Settings {
        let before = self.original.opset();
        let opset = result.opset();
        Settings {
            calibration_rows: self.data.rows() - self.held_out_of_calibration(held_out),
            held_out_rows: self.held_out_of_calibration(held_out),
            opset,
            opset_raised_from: (opset != before).then_some(before),
            ..Settings::from(self.options)
        }
    }

    fn held_out_of_calibration(&self, held_out: usize) -> usize {
        if self.data.split().held_out_used {
            held_out
        } else {
            0
        }
    }

    /// The worst of the parts.
    fn float_check(&self) -> Option<FloatCheck> {
        let checks = self.parts().filter_map(|r| r.float_check.clone());
        checks.reduce(|a, b| FloatCheck {
            max_relative_error: a.max_relative_error.max(b.max_relative_error),
            rounded: match (a.rounded, b.rounded) {
                (Some(x), Some(y)) if y.max_relative_error > x.max_relative_error => Some(y),
                (x, y) => x.or(y),
            },
            ..b
        })
    }

    fn decision(&self) -> Decision {
        if self.options.method == Method::None && self.options.format != Format::Float {
            return Decision::PlainAskedFor;
        }
        if self.verdict.plain {
            return Decision::PlainWasBetter;
        }
        let decisions: Vec<Decision> = self.parts().map(|r| r.decision).collect();
        let all = |wanted: Decision| decisions.iter().all(|d| *d == wanted);
        if all(Decision::NothingToMigrate) {
            Decision::NothingToMigrate
        } else if all(Decision::PlainWasBetter) {
            Decision::PlainWasBetter
        } else if decisions
            .iter()
            .all(|d| matches!(d, Decision::Migrated | Decision::NothingToMigrate))
        {
            Decision::Migrated
        } else {
            Decision::PartlyMigrated
        }
    }

    /// Rotations of all parts; what they cost is a mean over the parts, weighted by multiplications.
    fn rotations(&self) -> Option<RotationsReport> {
        let work = |r: &Report| r.linears.iter().map(|l| (l.k * l.n) as f64).sum::<f64>();
        let all: f64 = self.parts().map(work).sum();
        let have: Vec<(&RotationsReport, f64)> = self
            .parts()
            .filter_map(|r| Some((r.rotations.as_ref()?, work(r))))
            .collect();
        let sites = have.iter().map(|(r, _)| r.sites).sum();
        let mean = |of: fn(&RotationsReport) -> f64| {
            have.iter().map(|(r, _)| of(r)).sum::<f64>() / have.len() as f64
        };
        (!have.is_empty() && !self.verdict.plain).then(|| RotationsReport {
            sites,
            percent: have.iter().map(|(r, w)| r.percent * w / all.max(1.0)).sum(),
            sqnr_before_db: mean(|r| r.sqnr_before_db),
            sqnr_after_db: mean(|r| r.sqnr_after_db),
        })
    }

    fn kept_float(&self) -> Option<KeptFloat> {
        let kept: Vec<&KeptFloat> = self.parts().filter_map(|r| r.kept_float.as_ref()).collect();
        let count = kept.len() as f64;
        let mean = |of: fn(&KeptFloat) -> f64| kept.iter().map(|k| of(k)).sum::<f64>() / count;
        (!kept.is_empty()).then(|| {
            let mut all = KeptFloat::default();
            for part in &kept {
                all.linears.extend(part.linears.iter().cloned());
                all.sensitivity.extend(part.sensitivity.iter().cloned());
            }
            (all.work, all.sqnr_before_db, all.sqnr_after_db) = (
                mean(|k| k.work),
                mean(|k| k.sqnr_before_db),
                mean(|k| k.sqnr_after_db),
            );
            all
        })
    }

    fn below_plain(&self) -> Vec<BelowPlain> {
        if self.verdict.plain || !self.verdict.compares {
            return Vec::new();
        }
        super::super::report::below_plain(&self.verdict.ours, &self.verdict.of_plain)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.data.notes().to_vec();
        notes.extend(self.changes.notes.iter().cloned());
        notes.push(format!(
            "worked on block by block, in {} parts: every part was judged at its own outputs, the whole at the end; that a budget for \
             float is kept holds for each part",
            self.done.len()
        ));
        if self.verdict.plain {
            notes.push(
                "at the outputs of the whole model plain min-max quantization was better than what the parts had found, so it is \
                 written in all of them"
                    .to_owned(),
            );
        }
        for note in self.parts().flat_map(|r| &r.notes) {
            if !notes.contains(note) {
                notes.push(note.clone());
            }
        }
        notes
    }
}
