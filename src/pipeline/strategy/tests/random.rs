//! Every combination that the strategies can meet: random effects of sites on outputs, groups, kinds of sinks, rows that
//! do not tell, float checks that fail, wishes. Whatever happens, what is written is what was measured, and keeps the
//! promise.

use super::*;
use crate::options::KeepFloat;
use crate::pipeline::plan::Dropped;
use crate::pipeline::strategy::Wish;
use crate::pipeline::verdict::{losses, prefers_safe, score};
use proptest::prelude::*;

/// One random situation.
#[derive(Clone, Debug)]
struct Situation {
    /// Per site: kind of sink, what it adds to each output in dB, whether it is exact, its group.
    sites: Vec<(usize, [f64; 2], bool, Option<usize>)>,
    /// What few rows say more than all.
    optimism: f64,
    /// What wider ranges bring.
    wider: f64,
    two_outputs: bool,
    format: Format,
    keep: Option<usize>,
    min_sqnr: Option<f64>,
}

fn situations() -> impl Strategy<Value = Situation> {
    let effect = || prop_oneof![3 => 0.0f64..6.0, 2 => -8.0f64..1.0];
    let site = (
        0usize..3,
        [effect(), effect()],
        prop::bool::weighted(0.9),
        prop::option::weighted(0.3, 0usize..2),
    );
    (
        prop::collection::vec(site, 1..8),
        -1.0f64..3.0,
        -2.0f64..4.0,
        any::<bool>(),
        prop_oneof![3 => Just(Format::Qdq), 1 => Just(Format::QOperator)],
        prop::option::weighted(0.3, 1usize..4),
        prop::option::weighted(0.2, 20.0f64..40.0),
    )
        .prop_map(
            |(sites, optimism, wider, two_outputs, format, keep, min_sqnr)| Situation {
                sites,
                optimism,
                wider,
                two_outputs,
                format,
                keep,
                min_sqnr,
            },
        )
}

impl Situation {
    fn table(&self) -> SiteTable {
        let sink = |kind: usize, at: usize| match kind {
            0 => Sink::Norm(at.into()),
            1 => Sink::Explicit(String::new()),
            _ => Sink::Traced(crate::site::Trace {
                folds: Vec::new(),
                ties: None,
                allow_shift: false,
                positive: false,
            }),
        };
        let sinks: Vec<Sink> = self
            .sites
            .iter()
            .enumerate()
            .map(|(i, s)| sink(s.0, i))
            .collect();
        let members = |group: usize| -> Vec<usize> {
            let all = 0..self.sites.len();
            all.filter(|&i| self.sites[i].3 == Some(group)).collect()
        };
        let groups: Vec<Vec<usize>> = (0..2).map(members).filter(|m| m.len() > 1).collect();
        let led: Vec<(usize, &[usize])> = groups.iter().map(|m| (m[0], &m[..])).collect();
        table(&sinks, &led)
    }

    /// The dB of every output. Plain has 20; what is in float adds to it.
    fn outputs(&self, plan: &Plan, rows: Rows) -> Vec<f64> {
        let mut db = [20.0, 20.0];
        for (i, (_, effects, ..)) in self.sites.iter().enumerate() {
            let site = plan.sites[SiteId::from(i)].as_ref().unwrap();
            for (db, effect) in db.iter_mut().zip(effects) {
                *db += if site.migrates() { *effect } else { 0.0 };
                *db += match plan.linears[LinearId::from(i)] {
                    Precision::Integer | Precision::Raised => 0.0,
                    Precision::Float(_) => 2.0,
                };
            }
        }
        let widened = plan.sites.iter().flatten().any(|s| s.margin > 1.2);
        let more = if rows == Rows::Few && !plan.is_all_plain() {
            self.optimism
        } else {
            0.0
        };
        let more = more + if widened { self.wider } else { 0.0 };
        let quantized_outputs = if plan.format == Format::QOperator {
            -1.0
        } else {
            0.0
        };
        let count = if self.two_outputs { 2 } else { 1 };
        db[..count]
            .iter()
            .map(|db| db + more + quantized_outputs)
            .collect()
    }

    /// A site that is not exact must not be migrated; norms are.
    fn float_error(&self, plan: &Plan) -> Option<f64> {
        let sites = self.sites.iter().enumerate();
        let mut migrated = sites.filter(|(i, _)| migrates(plan, *i)).peekable();
        migrated.peek()?;
        let wrong = migrated.any(|(_, (kind, _, exact, _))| *kind == 2 && !exact);
        Some(if wrong { 1e-2 } else { 1e-7 })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn what_is_written_was_measured_and_keeps_the_promise(situation in situations()) {
        let sites = situation.table();
        let mut judge = Script::new(|plan, rows| situation.outputs(plan, rows));
        judge.float_error = Box::new(|plan| situation.float_error(plan));
        judge.sensitivity = situation.sites.iter().map(|s| s.1[0].abs() + 0.1).collect();
        // As the pipeline does: who asks for a figure gets that of all rows.
        if situation.keep.is_some() || situation.min_sqnr.is_some() {
            judge.ask_all_rows();
        }
        let all_outputs: &[usize] = if situation.two_outputs { &[0, 1] } else { &[0] };
        let reaches = reaching(&vec![all_outputs; situation.sites.len()]);
        let wish = Wish {
            budget: situation.keep.map(KeepFloat::Linears),
            min_sqnr_db: situation.min_sqnr,
        };
        let plan = searched(&sites, situation.format);
        let result = decide(plan, &sites, &reaches, wish, &mut judge);
        let (written, check) = match result {
            Ok(done) => done,
            Err(Error::MinSqnr { best, wanted, .. }) => {
                prop_assert!(best < wanted);
                return Ok(());
            }
            Err(error) => panic!("{error}"),
        };
        let plain = judge.plain.clone().unwrap();
        // Nothing is left over of a trial.
        prop_assert_eq!(&written.outputs, &judge.outputs(&written.plan));
        prop_assert_eq!(&plain.outputs, &judge.outputs(&plain.plan));
        prop_assert_eq!(
            check.map(|c| c.max_relative_error),
            situation.float_error(&written.plan)
        );
        if situation.format == Format::QOperator {
            let twin = Plan { format: Format::Qdq, ..written.plan.clone() };
            let of_twin = judge.outputs(&twin)[0].sqnr_db;
            let note = written.plan.notes.last().unwrap();
            let named = format!("{:.2} dB, {of_twin:.2} dB with qdq", written.outputs[0].sqnr_db);
            prop_assert!(note.contains(&named), "{}", note);
        }
        // Sites of a group fare alike.
        for group in sites.groups() {
            let fate = |s: SiteId| written.plan.sites[s].as_ref().unwrap().migrates();
            prop_assert!(group.members.iter().all(|&m| fate(m) == fate(group.members[0])));
        }
        // Never worse, but where another output would be ruined, and that is known.
        let lost = losses(&written.outputs, &plain.outputs);
        if lost.is_empty() && situation.min_sqnr.is_none() {
            prop_assert!(score(&written.outputs, &plain.outputs, None) >= -1e-9);
        } else if situation.min_sqnr.is_none() {
            prop_assert!(!prefers_safe(&plain.outputs, &written.outputs, &plain.outputs));
        }
        // A figure that was asked for is reached.
        if let Some(db) = situation.min_sqnr {
            prop_assert!(written.outputs.iter().all(|o| o.sqnr_db >= db));
        }
        // At most as many Linears in float as were allowed, and one at least in integers.
        let in_float = written.plan.linears.iter().filter(|p| **p != Precision::Integer).count();
        prop_assert!(in_float < situation.sites.len() || in_float == 0);
        if let Some(most) = situation.keep {
            prop_assert!(in_float <= most);
        }
        let in_float_alone = |s: &SitePlan| s.dropped == Some(Dropped::InFloat);
        for (id, site) in written.plan.sites.iter_enumerated() {
            let site = site.as_ref().unwrap();
            let linear = &written.plan.linears[LinearId::from(id.index())];
            prop_assert!(!in_float_alone(site) || *linear != Precision::Integer);
        }
    }
}
