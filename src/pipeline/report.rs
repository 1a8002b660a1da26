//! The report of a run, made once, from what is written.

use super::calibrate::Calibrated;
use super::job::Job;
use super::judge::Measured;
use super::judge::held_out::JudgedOn;
use super::judge::rows::{Rows, row_count};
use super::plan::{AttentionPlan, Dropped, Guard, Precision, SitePlan};
use super::sites::SiteRow;
use super::verdict::{Figure, Loss, losses};
use crate::calibrate::{Dataset, OutputComparison};
use crate::options::Format;
use crate::review::{
    AttentionReport, BelowPlain, Decision, FloatCheck, MetricReport, REPORT_SCHEMA, Report,
    RotationsReport, Settings, SiteDecision, WorkReport, agreement_reports, linear_report,
    output_reports, site_report,
};
use crate::solve::Method;
use crate::target::lint::Finding;

/// All that a report tells.
pub(super) struct Account<'a> {
    pub job: &'a Job<'a>,
    pub data: &'a Dataset,
    pub rows: &'a Rows,
    pub calibrated: &'a Calibrated,
    pub written: &'a Measured,
    pub judged_on: JudgedOn,
    /// Who does the multiplications.
    pub work: Option<WorkReport>,
    /// Every output of what is written.
    pub outputs: &'a [OutputComparison],
    /// The outputs of plain min-max quantization.
    pub plain: Option<&'a [OutputComparison]>,
    pub float_check: Option<FloatCheck>,
    /// What the caller's metric says.
    pub metric: Option<MetricReport>,
    pub findings: Vec<Finding>,
}

impl Account<'_> {
    /// The report.
    pub(super) fn report(self) -> Report {
        let prepared = &self.calibrated.prepared;
        let plan = &self.written.plan;
        let changes = &prepared.changes;
        let misses = prepared.found.near_misses.iter().cloned();
        // A float model is the original on any row.
        let held_out = match plan.format.quantizes() {
            true => self.judged_on.all,
            false => usize::MAX,
        };
        Report {
            schema: REPORT_SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: self.settings(),
            inlined: changes.inlined.clone(),
            linears: self.linears(),
            sites: self.sites(),
            attention: plan.attention.iter().map(attention).collect(),
            attention_cost: self.written.account.attention_cost,
            near_misses: changes
                .closed
                .iter()
                .cloned()
                .chain(misses.map(Into::into))
                .collect(),
            float_check: self.float_check.clone(),
            metric: self.metric.clone(),
            work: self.work.clone(),
            below_plain: self.below_plain(),
            outputs: output_reports(self.outputs, self.plain, held_out),
            agreements: agreement_reports(self.outputs, self.plain),
            verified_on: self.judged_on.rows.clone(),
            decision: self.decision(),
            dropped_sites: plan
                .sites
                .iter()
                .flatten()
                .filter(|s| was_dropped(s))
                .count(),
            rotations: self.rotations(),
            embeddings: self.written.account.embeddings.clone(),
            kept_float: self.written.account.kept_float.clone(),
            filled_inputs: self
                .data
                .filled()
                .iter()
                .map(|f| (f.input.clone(), f.rule.to_string()))
                .collect(),
            cleaned: changes.cleaned.clone(),
            stored_sizes: changes.stored_sizes.clone(),
            notes: self.notes(),
            lint: self.findings,
            seconds: self.job.clock.seconds(),
            ..Report::default()
        }
    }

    fn settings(&self) -> Settings {
        let prepared = &self.calibrated.prepared;
        Settings {
            calibration_rows: row_count(&self.rows.calibration),
            held_out_rows: self.judged_on.held_out_rows,
            opset: prepared.model.as_model().opset(),
            opset_raised_from: prepared.changes.raised_from,
            ..Settings::from(self.job.options)
        }
    }

    fn linears(&self) -> Vec<crate::review::LinearReport> {
        let found = &self.calibrated.prepared.found.linears;
        let linears = found.iter().zip(&self.written.plan.linears);
        let quantizes = self.written.plan.format.quantizes();
        let report = |(linear, precision): (_, &Precision)| {
            let reason = match precision {
                Precision::Integer | Precision::Raised => None,
                Precision::Float(reason) => Some(reason.clone()),
            };
            let bits = match precision {
                Precision::Raised => 8,
                _ => self.job.options.weight_bits,
            };
            linear_report(linear, reason, quantizes, bits)
        };
        linears.map(report).collect()
    }

    fn sites(&self) -> Vec<crate::review::SiteReport> {
        let prepared = &self.calibrated.prepared;
        let rows = prepared.sites.iter().zip(&self.written.plan.sites);
        let report = |((_, row), plan): ((_, &SiteRow), &Option<SitePlan>)| {
            let plan = plan.as_ref()?;
            Some(site_report(SiteDecision {
                found: &prepared.found,
                site: &row.site,
                value: &row.name,
                solution: &plan.found,
                response: plan.response,
                transform: &plan.transform,
                percent: plan.bought.map_or(0.0, |b| b.percent),
                margin: plan.margin,
                discarded: plan.dropped.as_ref().map(Dropped::reason),
                statistics: row.statistics.as_ref(),
            }))
        };
        rows.filter_map(report).collect()
    }

    /// What those rotations bought that are written.
    fn rotations(&self) -> Option<RotationsReport> {
        let gain = self.written.account.rotations?;
        let prices: Vec<f64> = self.written.plan.bought().map(|b| b.percent).collect();
        (!prices.is_empty()).then(|| RotationsReport {
            sites: prices.len(),
            percent: prices.iter().sum(),
            sqnr_before_db: gain.sqnr_before_db,
            sqnr_after_db: gain.sqnr_after_db,
        })
    }

    /// What was written, in a word.
    fn decision(&self) -> Decision {
        let plan = &self.written.plan;
        let rows = self.calibrated.prepared.sites.iter();
        let migrated = plan.migrated(rows.map(|(_, row)| &row.site));
        let validated = |s: &SitePlan| matches!(s.dropped, Some(Dropped::Validation(_)));
        match self.job.options.method {
            Method::None if plan.format != Format::Float => Decision::PlainAskedFor,
            _ if plan.is_all_plain() => Decision::PlainWasBetter,
            _ if plan.sites.iter().flatten().any(validated) => Decision::PartlyMigrated,
            _ if migrated == 0 => Decision::NothingToMigrate,
            _ => Decision::Migrated,
        }
    }

    /// The outputs that end clearly below plain, although no plan was found that keeps them.
    fn below_plain(&self) -> Vec<BelowPlain> {
        let Measured {
            outputs, account, ..
        } = self.written;
        let mut lost = below_plain(outputs, self.plain.unwrap_or_default());
        // Of these a note of its own says what keeps them.
        lost.retain(|l| !account.below_by_attention.contains(&l.output));
        lost
    }

    fn notes(&self) -> Vec<String> {
        let before = self.data.notes().iter();
        let notes = before.chain(&self.calibrated.prepared.changes.notes);
        let notes = notes.chain(&self.calibrated.notes);
        let mut notes: Vec<String> = notes.chain(&self.written.plan.notes).cloned().collect();
        for lost in self.below_plain() {
            let plain = match lost.plain_sqnr_db {
                Some(db) => format!("the {db:.2} dB"),
                None => "the exact result".to_owned(),
            };
            notes.push(format!(
                "output `{}` has {:.2} dB{}, less than {plain} of plain min-max quantization: no plan was found that keeps \
                 it without taking more from another",
                lost.output,
                lost.sqnr_db,
                lost.of_what()
            ));
        }
        notes
    }
}

/// The outputs that are clearly worse than those of plain min-max quantization.
pub(super) fn below_plain(
    outputs: &[OutputComparison],
    plain: &[OutputComparison],
) -> Vec<BelowPlain> {
    let entry = |loss: &Loss| BelowPlain {
        output: outputs[loss.output].name.clone(),
        per_token: loss.figure == Figure::PerToken,
        logarithms: loss.logarithms,
        sqnr_db: loss.sqnr_db,
        // Exact by plain quantization.
        plain_sqnr_db: Some(loss.plain_sqnr_db).filter(|db| db.is_finite()),
    };
    losses(outputs, plain).iter().map(entry).collect()
}

/// Whether plain min-max was written after validation, although the search had decided otherwise.
fn was_dropped(site: &SitePlan) -> bool {
    let validated = matches!(
        site.dropped,
        Some(Dropped::Validation(_) | Dropped::PlainIsBetter)
    );
    let decided = SitePlan::of(site.found.clone(), None);
    validated && !decided.is_plain()
}

fn attention(plan: &AttentionPlan) -> AttentionReport {
    let (status, reason) = match &plan.precision {
        Precision::Integer | Precision::Raised => ("int8", None),
        Precision::Float(reason) => ("float", Some(reason.clone())),
    };
    let guard = |guard: Guard| match guard {
        Guard::Dropped => "dropped",
        Guard::Kept => "kept",
    };
    AttentionReport {
        softmax: plan.softmax.clone(),
        products: plan.products.clone(),
        status: status.to_owned(),
        reason,
        query: plan.ranges.map(|r| r.query),
        key: plan.ranges.map(|r| r.key),
        value: plan.ranges.map(|r| r.value),
        probabilities: plan.ranges.map(|_| (0.0, 1.0)),
        nan_guard: plan.guard.map(|g| guard(g).to_owned()),
    }
}
