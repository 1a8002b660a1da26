//! Wrong numbers that earlier versions gave, each as a test.

use super::*;
use crate::options::KeepFloat;
use crate::pipeline::strategy::Wish;
use crate::pipeline::verdict::losses;

fn norms(n: usize) -> SiteTable {
    table(&vec![Sink::Norm(0.into()); n], &[])
}

/// Trials that are rejected must not show in the note on the format: its figures are those of the plan that is written.
#[test]
fn the_note_on_qoperator_is_about_what_is_written() {
    let sites = norms(2);
    let outputs = |plan: &Plan, _| match (plan.format, plan.is_all_plain()) {
        (Format::Qdq, true) => vec![11.23, 42.64],
        (Format::Qdq, false) => vec![38.89, 38.75],
        (_, true) => vec![11.0, 42.0],
        // Below plain in the second output, so that trials are made; those without a site are worse still.
        _ if migrates(plan, 0) && migrates(plan, 1) => vec![38.5, 38.25],
        _ => vec![8.0, 8.0],
    };
    let mut judge = Script::new(outputs);
    let plan = searched(&sites, Format::QOperator);
    let reaches = reaching(&[&[0, 1], &[0, 1]]);
    let (written, _) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    assert!(judge.measured.len() > 4, "no trials");
    assert_eq!(written.plan.format, Format::QOperator);
    let note = written.plan.notes.last().unwrap();
    assert!(note.contains("`y1` 38.50 dB, 38.89 dB with qdq"), "{note}");
    assert!(note.contains("`y2` 38.25 dB, 38.75 dB with qdq"), "{note}");
}

/// An output that loses is found by the mean over outputs alone only if it loses more than the others gain.
#[test]
fn an_output_that_loses_is_mended_where_a_plan_can() {
    let sites = norms(3);
    // The third site reaches the second output alone, and hurts it.
    let outputs = |plan: &Plan, _| {
        let first = if migrates(plan, 0) { 38.89 } else { 11.23 };
        let second = if migrates(plan, 2) { 38.75 } else { 42.60 };
        vec![first, second]
    };
    let mut judge = Script::new(outputs);
    let reaches = reaching(&[&[0, 1], &[0, 1], &[1]]);
    let plan = searched(&sites, Format::Qdq);
    let (written, _) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    assert!(migrates(&written.plan, 0) && !migrates(&written.plan, 2));
    assert_eq!(written.outputs[0].sqnr_db, 38.89);
    assert_eq!(written.outputs[1].sqnr_db, 42.60);
    let dropped = written.plan.sites[SiteId::from(2)].as_ref().unwrap();
    let reason = dropped.dropped.as_ref().unwrap().reason();
    assert!(reason.contains("dropped after validation"), "{reason}");
}

/// Where no plan keeps it, the plan with the better worst output is written, and it is known which output lost.
#[test]
fn an_output_that_must_lose_is_known() {
    let sites = norms(1);
    let outputs = |plan: &Plan, _| match migrates(plan, 0) {
        true => vec![38.89, 38.75],
        false => vec![11.23, 42.64],
    };
    let mut judge = Script::new(outputs);
    let plan = searched(&sites, Format::Qdq);
    let reaches = reaching(&[&[0, 1]]);
    let (written, _) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    let lost = losses(&written.outputs, &judge.plain.unwrap().outputs);
    assert_eq!(lost.len(), 1);
    let numbers = (lost[0].output, lost[0].sqnr_db, lost[0].plain_sqnr_db);
    assert_eq!(numbers, (1, 38.75, 42.64));
    // And plain where that has the better worst output.
    let outputs = |plan: &Plan, _| match migrates(plan, 0) {
        true => vec![58.89, 9.75],
        false => vec![11.23, 42.64],
    };
    let mut judge = Script::new(outputs);
    let plan = searched(&sites, Format::Qdq);
    let (written, _) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    assert!(!migrates(&written.plan, 0));
    assert_eq!(written.outputs[0].sqnr_db, 11.23);
}

/// Linears that a plan leaves in float.
fn in_float(plan: &Plan) -> usize {
    let linears = plan.linears.iter();
    linears.filter(|p| **p != Precision::Integer).count()
}

/// The float check that is told is that of the plan that is written, whatever was tried before and after.
#[test]
fn the_float_check_is_that_of_what_is_written() {
    let sites = norms(3);
    let outputs = |plan: &Plan, _| {
        vec![if plan.is_all_plain() { 10. } else { 20. } + 4. * in_float(plan) as f64]
    };
    let mut judge = Script::new(outputs);
    judge.float_error = Box::new(|plan| Some(1e-7 * (1 + in_float(plan)) as f64));
    judge.sensitivity = vec![3.0, 2.0, 1.0];
    let wish = Wish {
        budget: None,
        min_sqnr_db: Some(23.0),
    };
    let reaches = reaching(&[&[0], &[0], &[0]]);
    let plan = searched(&sites, Format::Qdq);
    let (written, check) = decide(plan, &sites, &reaches, wish, &mut judge).unwrap();
    assert_eq!(in_float(&written.plan), 1);
    assert_eq!(check.unwrap().max_relative_error, 2e-7);
    // More than one number of Linears was tried.
    let tried: BTreeSet<usize> = judge.measured.iter().map(in_float).collect();
    assert!(tried.len() > 1, "{tried:?}");
}

/// With six Linears in float a metric is content and with five it is not, though the outputs are nearer to the original then.
#[test]
fn what_the_metric_refuses_takes_no_place() {
    let sites = norms(8);
    let outputs = |plan: &Plan, _| vec![if in_float(plan) == 5 { 40.0 } else { 20.0 }];
    let mut judge = Script::new(outputs);
    judge.sensitivity = (1..=8).rev().map(f64::from).collect();
    judge.metric = Some(|plan| in_float(plan) >= 6);
    let reaches = reaching(&[&[0]; 8].map(|r| &r[..]));
    let plan = searched(&sites, Format::Qdq);
    let wish = Wish::default();
    let (written, _) = decide(plan, &sites, &reaches, wish, &mut judge).unwrap();
    assert_eq!(in_float(&written.plan), 6);
    // Five have been tried, behind six.
    let tried = |n: usize| judge.measured.iter().position(|plan| in_float(plan) == n);
    assert!(tried(5) > tried(6));
}

/// Nothing was changed in the graph: there is nothing to check, and that is not an error of 0.
#[test]
fn not_checked_is_no_zero() {
    let sites = norms(1);
    let mut judge = Script::new(|plan, _| vec![if plan.is_all_plain() { 30. } else { 20. }]);
    judge.float_error = Box::new(|plan| migrates(plan, 0).then_some(1e-6));
    let plan = searched(&sites, Format::Qdq);
    let reaches = reaching(&[&[0]]);
    let (written, check) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    assert!(written.plan.is_all_plain());
    assert!(check.is_none());
}

/// A migration that is not exact beyond norms is given up there alone, in groups as a whole.
#[test]
fn what_is_not_exact_is_not_migrated() {
    let trace = crate::site::Trace {
        folds: Vec::new(),
        ties: None,
        allow_shift: false,
        positive: false,
    };
    let sinks = [
        Sink::Norm(0.into()),
        Sink::Traced(trace.clone()),
        Sink::Norm(1.into()),
        Sink::Traced(trace),
    ];
    let sites = table(&sinks, &[(2, &[2, 3])]);
    let mut judge = Script::new(|plan, _| vec![if plan.is_all_plain() { 10. } else { 20. }]);
    judge.float_error = Box::new(|plan| Some(if migrates(plan, 1) { 1e-3 } else { 1e-7 }));
    let plan = searched(&sites, Format::Qdq);
    let reaches = reaching(&[&[0], &[0], &[0], &[0]]);
    let (written, check) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    let migrated: Vec<bool> = (0..4).map(|i| migrates(&written.plan, i)).collect();
    assert_eq!(migrated, [true, false, false, false]);
    assert_eq!(check.unwrap().max_relative_error, 1e-7);
    let notes = &written.plan.notes;
    assert!(
        notes[0].starts_with("3 sites were not migrated beyond their norms: "),
        "{notes:?}"
    );
    // Norms alone must be exact.
    let mut judge = Script::new(|_, _| vec![20.]);
    judge.float_error = Box::new(|_| Some(1e-3));
    let plan = searched(&sites, Format::Qdq);
    let result = decide(plan, &sites, &reaches, Wish::default(), &mut judge);
    assert!(matches!(result, Err(Error::FloatCheck { .. })));
}

/// Rows in reserve are asked where a part does not tell, and then everything is known on them.
#[test]
fn rows_in_reserve_are_asked_in_doubt() {
    let sites = norms(1);
    let outputs = |plan: &Plan, rows| {
        let gain = if rows == Rows::Few { 0.2 } else { -3.0 };
        vec![20.0 + if plan.is_all_plain() { 0.0 } else { gain }]
    };
    let mut judge = Script::new(outputs);
    let plan = searched(&sites, Format::Qdq);
    let reaches = reaching(&[&[0]]);
    let (written, _) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    assert_eq!(judge.rows, Rows::All);
    assert!(written.plan.is_all_plain());
    // Where it is clear, they are not.
    let mut judge = Script::new(|plan, _| vec![if plan.is_all_plain() { 10. } else { 20. }]);
    let plan = searched(&sites, Format::Qdq);
    let (written, _) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    assert_eq!(judge.rows, Rows::Few);
    assert_eq!(written.outputs[0].rows.len(), 4);
}

/// If the float check of what is written asks for more rows, the outputs that are told are those of all rows.
#[test]
fn outputs_are_of_the_rows_that_are_named() {
    let outputs = |plan: &Plan, rows| {
        let db = if plan.is_all_plain() { 10. } else { 20. };
        vec![db + if rows == Rows::All { 1. } else { 0. }]
    };
    let sites = norms(1);
    let mut judge = Script::new(outputs);
    let plan = searched(&sites, Format::Qdq);
    let plain = plan.plain(&sites);
    let mut written = super::super::open(plan, Some(plain), &mut judge).unwrap();
    assert_eq!(written.outputs[0].sqnr_db, 20.0);
    judge.check_asks = true;
    super::super::conclude(&mut written, &mut judge).unwrap();
    assert_eq!(written.outputs[0].sqnr_db, 21.0);
    assert_eq!(judge.plain.unwrap().outputs[0].sqnr_db, 11.0);
}

/// A variant with Linears in float whose float model is not the original is not written.
#[test]
fn a_variant_that_is_not_exact_is_not_written() {
    let sites = norms(2);
    let in_float = |plan: &Plan| plan.linears.iter().any(|p| *p != Precision::Integer);
    let outputs = |plan: &Plan, _| {
        vec![if plan.is_all_plain() { 10. } else { 20. } + if in_float(plan) { 9. } else { 0. }]
    };
    let mut judge = Script::new(outputs);
    judge.sensitivity = vec![3.0, 2.0];
    judge.float_error = Box::new(|plan| Some(if in_float(plan) { 1e-3 } else { 1e-7 }));
    let wish = Wish {
        budget: Some(KeepFloat::Linears(1)),
        min_sqnr_db: None,
    };
    let plan = searched(&sites, Format::Qdq);
    let reaches = reaching(&[&[0], &[0]]);
    let (written, check) = decide(plan, &sites, &reaches, wish, &mut judge).unwrap();
    assert!(!in_float(&written.plan));
    assert_eq!(check.unwrap().max_relative_error, 1e-7);
    assert!(written.plan.notes[0].starts_with("nothing was left in float: "));
}

/// A plan comes back from JSON as it went.
#[test]
fn a_plan_is_plain_data() {
    let sites = norms(2);
    let mut plan = searched(&sites, Format::QOperator);
    plan.linears[LinearId::from(1)] = Precision::Float("its name matches".to_owned());
    plan.notes.push("a note".to_owned());
    let plain = plan.plain(&sites);
    for plan in [plan, plain] {
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    }
}

/// Wider ranges are for a result that is below plain, and only if they make a clear difference.
#[test]
fn wider_ranges_must_pay() {
    let sites = norms(1);
    let widened = |plan: &Plan| plan.sites.iter().flatten().any(|s| s.margin > 1.2);
    let outcome = |ours: f64, wider: f64| {
        let outputs = |plan: &Plan, _| match plan.is_all_plain() {
            true => vec![20.0],
            false => vec![if widened(plan) { wider } else { ours }],
        };
        let mut judge = Script::new(outputs);
        let plan = searched(&sites, Format::Qdq);
        let plain = plan.plain(&sites);
        let measured = super::super::open(plan, Some(plain), &mut judge).unwrap();
        super::super::widen_if_below(measured, &mut judge).unwrap()
    };
    let written = outcome(18.0, 24.0);
    let site = written.plan.sites[SiteId::from(0)].clone().unwrap();
    assert_eq!(written.outputs[0].sqnr_db, 24.0);
    assert_eq!(
        (site.range, site.margin),
        ((-1.1 * 1.25, 1.1 * 1.25), 1.1 * 1.25)
    );
    assert!(site.migrates());
    assert!(written.plan.notes[0].starts_with("ranges are wider by 1.25"));
    // It was not below; the wider one is; they hardly differ.
    for (ours, wider) in [(20.5, 30.0), (15.0, 19.0), (19.88, 20.0)] {
        let written = outcome(ours, wider);
        assert!(!widened(&written.plan), "{ours} {wider}");
        assert_eq!(written.plan.notes, Vec::<String>::new());
    }
}

/// What reaches nothing but the outputs that lose is given up, and nothing else: no search among subsets finds these three
/// of 24 in eight trials.
#[test]
fn what_reaches_the_losing_output_alone_goes() {
    const BAD: [usize; 3] = [5, 13, 22];
    let sites = norms(24);
    let outputs = |plan: &Plan, _| {
        let migrated = |i: &usize| migrates(plan, *i);
        let good = (0..24)
            .filter(|i| !BAD.contains(i))
            .filter(migrated)
            .count();
        let bad = BAD.iter().filter(|i| migrated(i)).count();
        vec![20.0 + good as f64 / 2.0, 20.0 - bad as f64]
    };
    let mut judge = Script::new(outputs);
    let reached = |i: usize| -> &[usize] { if BAD.contains(&i) { &[1] } else { &[0] } };
    let reached: Vec<&[usize]> = (0..24).map(reached).collect();
    let plan = searched(&sites, Format::Qdq);
    let reaches = reaching(&reached);
    let (written, _) = decide(plan, &sites, &reaches, Wish::default(), &mut judge).unwrap();
    let dropped: Vec<usize> = (0..24).filter(|&i| !migrates(&written.plan, i)).collect();
    assert_eq!(dropped, BAD);
}
