//! The strategies with a judge that answers from a script: every situation that a run can meet, without a model.

mod faults;
mod random;
mod rotations;
mod sequential;
mod units;

use std::collections::BTreeSet;

use oxc_index::{IndexVec, index_vec};

use crate::calibrate::{EngineError, OutputComparison, RowError};
use crate::error::Error;
use crate::graph::ValueId;
use crate::graph::branches::FlatModel;
use crate::onnx::Model;
use crate::options::Format;
use crate::pipeline::build::Candidate;
use crate::pipeline::judge::{Account, Judge, Measured, Sensitivity};
use crate::pipeline::plan::{AttentionRanges, Plan, Precision, Rounding, SitePlan};
use crate::pipeline::sites::{SiteId, SiteTable};
use crate::recognise::{Attention, LinearId};
use crate::review::FloatCheck;
use crate::site::{Sink, Site};
use crate::solve::{ShiftKind, Solution};

/// dB of every output, by plan and by the rows that judge (few, or all).
type Outputs<'a> = Box<dyn Fn(&Plan, Rows) -> Vec<f64> + 'a>;

/// The error of the float model of a plan.
type FloatError<'a> = Box<dyn Fn(&Plan) -> Option<f64> + 'a>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    Few,
    All,
}

/// A judge that runs nothing.
struct Script<'a> {
    outputs: Outputs<'a>,
    /// The error of the float model; above the limit it fails. `None` if the graph is the original's.
    float_error: FloatError<'a>,
    /// Whether the check needs all rows to be content.
    check_asks: bool,
    rows: Rows,
    reserve: bool,
    plain: Option<Measured>,
    measured: Vec<Plan>,
    /// Error of every Linear.
    sensitivity: Vec<f64>,
    /// What is asked for weights that are rounded in sequence gives.
    sequential: Option<fn(&Plan) -> Plan>,
    /// Whether the caller's metric is content with a plan, if there is one.
    metric: Option<fn(&Plan) -> bool>,
}

impl<'a> Script<'a> {
    fn new(outputs: impl Fn(&Plan, Rows) -> Vec<f64> + 'a) -> Script<'a> {
        Script {
            outputs: Box::new(outputs),
            float_error: Box::new(|_| Some(1e-7)),
            check_asks: false,
            rows: Rows::Few,
            reserve: true,
            plain: None,
            measured: Vec::new(),
            sensitivity: Vec::new(),
            sequential: None,
            metric: None,
        }
    }

    fn outputs(&self, plan: &Plan) -> Vec<OutputComparison> {
        let rows = if self.rows == Rows::Few { 4 } else { 8 };
        let outputs = (self.outputs)(plan, self.rows).into_iter().enumerate();
        outputs.map(|(i, db)| output(i, db, rows)).collect()
    }
}

/// An output with the same error in every row.
fn output(number: usize, db: f64, rows: u64) -> OutputComparison {
    let row = |row| RowError {
        row,
        reference: 1e4,
        error: 1e4 * 10f64.powf(-db / 10.0),
        tokens: (0, 0.0),
    };
    OutputComparison {
        name: format!("y{}", number + 1),
        sqnr_db: db,
        cosine: 1.0,
        max_abs_error: 0.0,
        max_relative_error: 0.0,
        range: (-1.0, 1.0),
        elements: 100 * rows,
        filled: 0,
        agreement: None,
        top1: (0, 0),
        token_sqnr_db: None,
        rows: (0..rows).map(row).collect(),
        logarithms: None,
    }
}

fn no_model() -> FlatModel {
    FlatModel::of(Model {
        proto: Default::default(),
    })
}

impl Judge for Script<'_> {
    fn measure(&mut self, plans: Vec<Plan>) -> Result<Vec<Measured>, Error> {
        let measured = plans.into_iter().map(|plan| Measured {
            outputs: self.outputs(&plan),
            plan,
            model: no_model(),
            account: Account::default(),
        });
        let measured: Vec<Measured> = measured.collect();
        self.measured
            .extend(measured.iter().map(|m| m.plan.clone()));
        Ok(measured)
    }

    fn build(&mut self, plan: Plan) -> Result<Candidate, Error> {
        let model = no_model();
        Ok(Candidate { plan, model })
    }

    fn measure_attention(&mut self, base: &Measured, plan: Plan) -> Result<Measured, Error> {
        Ok(Measured {
            outputs: self.outputs(&plan),
            plan,
            ..base.clone()
        })
    }

    fn asks_metric(&self) -> bool {
        self.metric.is_some()
    }

    fn metric_allows(&mut self, measured: &Measured) -> Result<bool, Error> {
        Ok(self.metric.is_none_or(|allows| allows(&measured.plan)))
    }

    fn rows(&self) -> usize {
        if self.rows == Rows::Few { 4 } else { 8 }
    }

    fn ask_all_rows(&mut self) -> bool {
        self.rows = match self.reserve {
            true => Rows::All,
            false => self.rows,
        };
        std::mem::take(&mut self.reserve)
    }

    fn measure_again(&mut self, measured: &mut [&mut Measured]) -> Result<(), Error> {
        for measured in measured {
            measured.outputs = self.outputs(&measured.plan);
        }
        Ok(())
    }

    fn float_check(&mut self, plan: &Plan) -> Result<Option<FloatCheck>, Error> {
        let Some(error) = (self.float_error)(plan) else {
            return Ok(None);
        };
        let limit = FloatCheck::default().limit;
        if self.check_asks || error > limit {
            // As the real one does, before it says so.
            self.ask_all_rows();
        }
        if error > limit {
            let output = "y1".to_owned();
            return Err(Error::FloatCheck {
                output,
                error,
                limit,
            });
        }
        Ok(Some(FloatCheck {
            max_relative_error: error,
            ..FloatCheck::default()
        }))
    }

    fn sensitivity(&mut self, plan: &Plan) -> Result<Vec<Sensitivity>, Error> {
        let errors = self.sensitivity.iter().enumerate();
        let all = errors.map(|(i, &error)| Sensitivity {
            linear: LinearId::from(i),
            name: format!("linear {i}"),
            error,
            work: 1.0,
        });
        Ok(all.filter(|s| plan.quantizes(s.linear)).collect())
    }

    fn sequential(&mut self, plan: &Plan) -> Result<Option<Plan>, Error> {
        Ok(self.sequential.map(|of| of(plan)))
    }

    fn attention_ranges(
        &mut self,
        _: &Measured,
        _: &[Attention],
    ) -> Result<Vec<Result<AttentionRanges, String>>, EngineError> {
        Ok(Vec::new())
    }

    fn plain(&self) -> Option<&Measured> {
        self.plain.as_ref()
    }

    fn set_plain(&mut self, plain: Measured) {
        self.plain = Some(plain);
    }
}

/// What the search finds for a site: a scale, and a range a tenth wider than its tokens.
fn solution() -> Solution {
    Solution {
        shift: None,
        scale: Some(vec![2.0, 1.0]),
        rotation: None,
        levels_below: None,
        range: (-1.1, 1.1),
        range_before: (-4.0, 8.0),
        range_after: (-1.0, 1.0),
        threshold: Some(1.0),
        margin: 1.1,
        shift_kind: ShiftKind::None,
        loss_before: 2.0,
        loss_after: 1.0,
        validated_gain_db: 3.0,
        curve: Vec::new(),
        at_response: false,
        loss_without: None,
        energy: 1.0,
        share: None,
    }
}

/// What it finds where nothing may be folded.
fn unmigrated() -> Solution {
    Solution {
        scale: None,
        range: (-4.0, 8.0),
        range_after: (-4.0, 8.0),
        margin: 1.0,
        threshold: None,
        validated_gain_db: 0.0,
        ..solution()
    }
}

/// Sites of one Linear each.
fn table(sinks: &[Sink], groups: &[(usize, &[usize])]) -> SiteTable {
    let site = |(i, sink): (usize, &Sink)| Site {
        value: ValueId(i),
        sink: sink.clone(),
        linears: vec![LinearId::from(i)],
        absorb: Vec::new(),
        copies: Vec::new(),
        ranks: vec![None],
        restore: false,
        allow_shift: false,
        mixable: None,
        reorder: Vec::new(),
    };
    let group = |(leader, members): &(usize, &[usize])| {
        let members = members.iter().map(|&m| SiteId::from(m));
        (SiteId::from(*leader), members.collect())
    };
    let groups: Vec<_> = groups.iter().map(group).collect();
    SiteTable::of_rows(sinks.iter().enumerate().map(site).collect(), &groups)
}

/// The plan that the search has found for such sites.
fn searched(sites: &SiteTable, format: Format) -> Plan {
    Plan {
        format,
        sites: sites
            .iter()
            .map(|_| Some(SitePlan::of(solution(), None)))
            .collect(),
        linears: index_vec![Precision::Integer; sites.len()],
        rounding: Rounding::Refined,
        sequential: Default::default(),
        attention: Vec::new(),
        embeddings: None,
        notes: Vec::new(),
    }
}

/// Per site, the outputs that depend on it.
fn reaching(outputs: &[&[usize]]) -> IndexVec<SiteId, BTreeSet<usize>> {
    let sets = outputs.iter().map(|o| o.iter().copied().collect());
    sets.collect()
}

/// Whether a site is migrated.
fn migrates(plan: &Plan, site: usize) -> bool {
    let site = plan.sites[SiteId::from(site)].as_ref();
    site.is_some_and(SitePlan::migrates)
}

/// What a run does after its search, without attention.
fn decide(
    plan: Plan,
    sites: &SiteTable,
    reaches: &IndexVec<SiteId, BTreeSet<usize>>,
    wish: super::Wish,
    judge: &mut Script,
) -> Result<(Measured, Option<FloatCheck>), Error> {
    let plan = super::make_exact(plan, sites, &|_| Some(unmigrated()), judge)?;
    let plain = plan.plain(sites);
    let written = super::open(plan, Some(plain), judge)?;
    let written = super::widen_if_below(written, judge)?;
    let units = super::units(&written.plan, sites, reaches);
    let written = super::drop_what_hurts(written, &units, judge)?;
    let units = super::units(&written.plan, sites, reaches);
    let written = super::keep_float(written, wish, sites, &units, judge)?;
    let mut written = super::compare_with_qdq(written, judge)?;
    let check = super::conclude(&mut written, judge)?;
    Ok((written, check))
}
