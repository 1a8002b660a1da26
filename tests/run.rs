//! Whole runs: what a report says was checked, and what was not.

use std::path::Path;

use onnx_osplus::calibrate::{Dataset, TractEngine};
use onnx_osplus::onnx::proto::NodeProto;
use onnx_osplus::progress::NoProgress;
use onnx_osplus::review::{Decision, Report};
use onnx_osplus::solve::Method;
use onnx_osplus::{Format, KeepFloat, Options, Quantizer, onnx, run};

fn export(name: &str) -> onnx::Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/architectures");
    onnx::load(folder.join(name)).unwrap()
}

/// A run on two rows of zeros.
fn report(model: &onnx::Model, options: &Options) -> Report {
    let data = Dataset::synthetic(model).unwrap();
    let done = run(model, &data, &TractEngine, options, &NoProgress);
    done.unwrap().1
}

fn plain() -> Options {
    Options {
        method: Method::None,
        ..Options::default()
    }
}

/// Plain quantization changes no float graph: that is said, and not that it was equal.
#[test]
fn what_was_not_changed_is_not_checked() {
    let report = report(&export("bert-script17-eager.onnx"), &plain());
    assert_eq!(report.decision, Decision::PlainAskedFor);
    assert_eq!(report.float_check, None);
}

/// Whatever changes the graph before anything is migrated is checked: functions that are inlined, operators that are taken
/// apart.
#[test]
fn what_was_rewritten_is_checked_without_a_migration() {
    let inlined = report(&export("bert-script17-eager-functions.onnx"), &plain());
    assert!(!inlined.inlined.is_empty());
    let apart = report(&export("bert-script17-eager-optimizer1.onnx"), &plain());
    assert!(apart.notes.iter().any(|note| note.contains("taken apart")));
    for report in [inlined, apart] {
        assert_eq!(report.decision, Decision::PlainAskedFor);
        let check = report.float_check.unwrap();
        assert!(check.max_relative_error <= check.limit);
    }
}

/// What is removed because it was asked for is a change like any other.
#[test]
fn what_was_cleaned_is_checked() {
    let mut model = export("bert-script17-eager.onnx");
    // A norm that gives its mean, which nothing reads.
    let norm = |node: &&mut NodeProto| node.op_type() == "LayerNormalization";
    let norm = model.graph_mut().node.iter_mut().find(norm).unwrap();
    norm.output.push("unread mean".to_owned());
    let cleaned = Options {
        clean: true,
        ..plain()
    };
    let with = report(&model, &cleaned);
    assert!(!with.cleaned.is_empty());
    assert!(with.float_check.is_some());
    let without = report(&model, &plain());
    assert!(without.cleaned.is_empty());
}

/// A migrated float model has been run, and its outputs are those that are told.
#[test]
fn a_float_model_is_checked_and_told() {
    let options = Options {
        format: Format::Float,
        ..Options::default()
    };
    let report = report(&export("bert-script17-eager.onnx"), &options);
    match report.decision {
        Decision::NothingToMigrate => assert_eq!(report.float_check, None),
        _ => assert!(report.float_check.is_some()),
    }
    assert!(!report.outputs.is_empty());
    assert!(report.outputs.values().all(|o| o.plain_sqnr_db.is_none()));
}

/// What is left in float is float in the file, and the rest is not.
#[test]
fn what_is_kept_in_float_is_float_in_the_file() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let model = onnx::load(tiny.join("model.onnx")).unwrap();
    let job = Quantizer::new(&model).keep_float(KeepFloat::Linears(2));
    let done = job
        .calibrate(tiny.join("calib.npz"))
        .unwrap()
        .run()
        .unwrap();
    let kept: Vec<String> = done
        .report
        .kept_float
        .unwrap()
        .linears
        .into_iter()
        .map(|l| l.name)
        .collect();
    assert_eq!(kept.len(), 2);
    let nodes = &done.model.graph().node;
    for linear in &done.report.linears {
        let node = nodes.iter().find(|n| n.name() == linear.name).unwrap();
        let weight = nodes.iter().find(|n| n.output.contains(&node.input[1]));
        let quantized = weight.is_some_and(|w| w.op_type() == "DequantizeLinear");
        assert_eq!(quantized, !kept.contains(&linear.name), "{}", linear.name);
    }
}
