//! The crate as a library: the façade, the example, and results that read back what they write.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use onnx_osplus::calibrate::{CalibSource, Dataset, TractEngine};
use onnx_osplus::onnx::{self, Model};
use onnx_osplus::progress::NoProgress;
use onnx_osplus::review::diff::{ChangeReport, DiffReport, diff};
use onnx_osplus::review::{
    Anatomy, AttentionReport, BelowPlain, Decision, Energy, Files, Report, RoundedCheck,
    Verification, VerifyOptions, VerifyRows, verify,
};
use onnx_osplus::target::lint::{Finding, lint};
use onnx_osplus::target::{MIN_OPSET, Target};
use onnx_osplus::{
    AttentionMode, Error, Format, KeepFloat, OptionsError, Quantized, Quantizer, anatomy,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[expect(dead_code, reason = "its main is for the command line")]
#[path = "../examples/quantize.rs"]
mod example;

fn tiny(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("models/tiny").join(name)
}

fn model() -> Model {
    onnx::load(tiny("model.onnx")).unwrap()
}

fn quantized(model: &Model, set: impl for<'a> FnOnce(Quantizer<'a>) -> Quantizer<'a>) -> Quantized {
    let job = set(Quantizer::new(model)).calibrate(tiny("calib.npz"));
    job.unwrap().run().unwrap()
}

/// The same but for the last digit of numbers that take more than an f32: serde_json reads an f64 to within one unit in the
/// last place, unless its feature `float_roundtrip` is on.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && alike(a.1, b.1))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= f64::EPSILON * a.abs()
        }
        (a, b) => a == b,
    }
}

/// Writes, reads and writes again. What was read.
fn again<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let json = serde_json::to_value(value).unwrap();
    let read: T = serde_json::from_str(&json.to_string()).unwrap();
    let written = serde_json::to_value(&read).unwrap();
    assert!(alike(&json, &written), "{json:#}\n{written:#}");
    read
}

/// Reports of runs that differ in what they fill in: made once for all tests.
static REPORTS: LazyLock<Vec<Report>> = LazyLock::new(reports);
/// See [`full`].
static FULL: LazyLock<Report> = LazyLock::new(full);

fn reports() -> Vec<Report> {
    let model = model();
    let with = |set: fn(Quantizer<'_>) -> Quantizer<'_>| quantized(&model, set).report;
    vec![
        with(|q| q.keep_float(KeepFloat::Linears(2))),
        with(|q| q.target(Target::Tensorrt).attention(AttentionMode::Int8)),
        with(|q| q.format(Format::QOperator).bits(7, 8)),
        with(|q| {
            let only_dense = onnx_osplus::Regex::new("dense").unwrap();
            q.format(Format::Float).include(only_dense)
        }),
    ]
}

#[test]
fn reports_of_runs_read_back_what_they_write() {
    for report in &*REPORTS {
        let read = again(report);
        assert_eq!(read.decision, report.decision);
        assert_eq!(read.settings, report.settings);
        assert_eq!(read.linears, report.linears);
        assert_eq!(read.attention, report.attention);
        assert_eq!(read.lint, report.lint);
    }
    assert_eq!(again(&Report::default()), Report::default());
}

/// A report in which every `Option` is there and every list has an element.
fn full() -> Report {
    let mut report = REPORTS[0].clone();
    let model = model();
    let data = Dataset::synthetic(&model).unwrap();
    let (all, few) = (data.all(), data.few(64));
    let rows = VerifyRows {
        all: &all,
        few: few.as_ref(),
    };
    let ours = quantized(&model, |q| q.target(Target::Ort)).model;
    let options = VerifyOptions::default();
    let verified = verify(&model, &ours, &rows, &TractEngine, &options, &NoProgress).unwrap();
    report.layers = verified.layers.into_iter().take(2).collect();
    report.lint = lint(&ours, Target::Tensorrt).into_iter().take(1).collect();
    report.linears.truncate(1);
    report.linears[0].reason = Some("a reason".to_owned());
    report.sites.truncate(2);
    report.settings.min_sqnr_db = Some(20.5);
    report.settings.include = Some("a.*b".to_owned());
    report.settings.exclude = Some("c".to_owned());
    report.settings.opset_raised_from = Some(MIN_OPSET - 1);
    let mut rounded = RoundedCheck::default();
    rounded.dtype = "BFLOAT16".to_owned();
    report.float_check.as_mut().unwrap().rounded = Some(rounded);
    let mut lost = BelowPlain::default();
    (lost.output, lost.plain_sqnr_db) = ("y".to_owned(), Some(30.25));
    report.below_plain.push(lost);
    let mut attention = AttentionReport::default();
    attention.products = vec!["qk".to_owned(), "pv".to_owned()];
    attention.query = Some((-0.1, 0.3));
    attention.nan_guard = Some("kept".to_owned());
    report.attention = vec![attention];
    report.attention_cost = Some(Default::default());
    report.near_misses.push(Default::default());
    report.inlined.push(Default::default());
    report.command = Some("onnx-osplus a b".to_owned());
    report.files = Some(Files::default());
    report.digests = [("output".to_owned(), "sha256:0".to_owned())].into();
    report.cleaned = vec!["a Dropout".to_owned()];
    report.stored_sizes = vec!["a size".to_owned()];
    report.notes = vec!["a note".to_owned()];
    report.peak_memory_mb = Some(123.456);
    report.decision = Decision::PartlyMigrated;
    report
}

/// Every path to something that is neither an object nor a list, as docs/report.md writes it.
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| {
            let named = NAMED.contains(&format!("/{path}").as_str());
            let key = if named { "NAME" } else { key };
            keys(
                inner,
                format!("{path}.{key}").trim_start_matches('.'),
                found,
            );
        }),
        Value::Array(list) => list
            .iter()
            .for_each(|inner| keys(inner, &format!("{path}[]"), found)),
        _ => _ = found.insert(path.to_owned()),
    }
}

#[test]
fn every_key_is_in_the_document() {
    let document = include_str!("../docs/report.md");
    let mut found = BTreeSet::new();
    keys(&serde_json::to_value(&*FULL).unwrap(), "", &mut found);
    assert!(found.contains("below_plain[].plain_sqnr_db"));
    // Null stands for all that would be below it.
    let known = |key: &&String| {
        ["` |", ".", "["]
            .iter()
            .any(|end| document.contains(&format!("| `{key}{end}")))
    };
    let unknown: Vec<_> = found.iter().filter(|key| !known(key)).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

type Object = serde_json::Map<String, Value>;

/// Calls `visit` with the report's JSON after `change` was made to one object in it, for every object.
fn with_each_object_changed(
    json: &Value,
    change: impl Fn(&str, &Object) -> Vec<Value>,
    visit: impl Fn(&str, Value),
) {
    fn places(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.push(at.to_owned());
                map.iter()
                    .for_each(|(key, inner)| places(inner, &format!("{at}/{key}"), found));
            }
            Value::Array(list) => list
                .iter()
                .enumerate()
                .for_each(|(i, inner)| places(inner, &format!("{at}/{i}"), found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    places(json, "", &mut found);
    for at in found {
        let object = json.pointer(&at).and_then(Value::as_object).unwrap();
        for changed in change(&at, object) {
            let mut whole = json.clone();
            *whole.pointer_mut(&at).unwrap() = changed;
            visit(&at, whole);
        }
    }
}

/// Where the keys of an object are names of the user's.
const NAMED: [&str; 6] = [
    "/agreements",
    "/arguments",
    "/outputs",
    "/filled_inputs",
    "/digests",
    "/seconds",
];

#[test]
fn keys_of_another_release_are_passed_over() {
    let report = FULL.clone();
    let json = serde_json::to_value(&report).unwrap();
    let read = again(&report);
    let added = |at: &str, object: &Object| match NAMED.contains(&at) {
        true => vec![],
        false => {
            let mut more = object.clone();
            more.insert("of_tomorrow".to_owned(), serde_json::json!({"a": [1]}));
            vec![Value::Object(more)]
        }
    };
    with_each_object_changed(&json, added, |at, whole| {
        let same: Report = serde_json::from_str(&whole.to_string()).expect(at);
        assert_eq!(same, read, "{at}");
    });
}

#[test]
fn a_key_that_is_missing_has_its_default() {
    let json = serde_json::to_value(&*FULL).unwrap();
    let removed = |at: &str, object: &Object| {
        // A finding has been whole since there were any, but for its subject.
        let optional = |key: &&String| !at.starts_with("/lint") || *key == "subject";
        let without = |key: &String| {
            let mut less = object.clone();
            less.remove(key);
            Value::Object(less)
        };
        object.keys().filter(optional).map(without).collect()
    };
    with_each_object_changed(&json, removed, |at, whole| {
        serde_json::from_str::<Report>(&whole.to_string()).expect(at);
    });
    let empty: Report = serde_json::from_str("{}").unwrap();
    assert_eq!(empty, Report::default());
    assert!(empty.float_check.is_none() && empty.below_plain.is_empty());
}

#[test]
fn what_is_not_finite_is_null_and_reads_as_no_number() {
    let mut report = FULL.clone();
    report.layers[0].fed = Some(Energy {
        signal: 2.0,
        error: 0.0,
    });
    report.layers[0].accumulated = Some(Energy {
        signal: f64::INFINITY,
        error: f64::NAN,
    });
    report.sites[0].validated_gain_db = f64::INFINITY;
    report.sites[0].range_before.1 = f32::INFINITY;
    report.sites[0].scale = Some(vec![1.0, f32::NAN]);
    let read = again(&report);
    let exact = read.layers[0].fed.unwrap();
    assert_eq!((exact.error, exact.sqnr_db()), (0.0, f64::INFINITY));
    assert!(read.layers[0].accumulated.unwrap().signal.is_nan());
    assert!(read.sites[0].validated_gain_db.is_nan());
    assert!(read.sites[0].range_before.1.is_nan());
    assert_eq!(read.sites[0].range_before.0, report.sites[0].range_before.0);
    assert!(read.sites[0].scale.as_ref().unwrap()[1].is_nan());
}

#[test]
fn anatomies_verifications_and_findings_read_back_what_they_write() {
    let model = model();
    let options = Default::default();
    for data in [None, Some(Dataset::synthetic(&model).unwrap())] {
        let seen = anatomy(&model, data.as_ref(), &TractEngine, &options, &NoProgress).unwrap();
        let read: Anatomy = again(&seen);
        assert_eq!(read.model, seen.model);
        assert_eq!(read.linears, seen.linears);
    }
    let ours = quantized(&model, |q| q.bits(6, 7)).model;
    let seen = anatomy(&ours, None, &TractEngine, &options, &NoProgress).unwrap();
    assert!(!seen.quantized.linears.is_empty());
    assert_eq!(again(&seen).quantized, seen.quantized);
    let data = Dataset::synthetic(&model).unwrap();
    let (all, few) = (data.all(), data.few(64));
    let rows = VerifyRows {
        all: &all,
        few: few.as_ref(),
    };
    let how = VerifyOptions::default();
    let verified = verify(&model, &ours, &rows, &TractEngine, &how, &NoProgress).unwrap();
    let read: Verification = again(&verified);
    assert_eq!(read.other_outputs, verified.other_outputs);
    let findings = lint(&ours, Target::Tensorrt);
    assert!(!findings.is_empty());
    let read: Vec<Finding> = again(&findings);
    assert_eq!(read, findings);
}

#[test]
fn diffs_read_back_what_they_write() {
    let before = model();
    let after = quantized(&before, |q| q.bits(6, 7)).model;
    let found = diff(&before, &after);
    let read: DiffReport = again(&found.report());
    assert!(alike(&serde_json::to_value(&read).unwrap(), &found.json()));
    let constants = |c: &&ChangeReport| c.constants.is_some();
    let about_constants = read.changes.iter().filter(constants).count();
    assert!(0 < about_constants && about_constants < read.changes.len());
    assert!(again(&diff(&before, &before).report()).same);
}

#[test]
fn the_facade_refuses_settings_before_it_opens_data() {
    let model = model();
    let job = Quantizer::new(&model)
        .format(Format::Float)
        .min_sqnr_db(20.0);
    let missing = tiny("no such file");
    let error = job.calibrate(&missing).err().unwrap();
    let refused = OptionsError::QuantizesNothing {
        format: "float",
        setting: "min_sqnr_db",
    };
    assert!(matches!(error, Error::Options(e) if e == refused));
    let error = Quantizer::new(&model).calibrate(&missing).err().unwrap();
    assert!(matches!(error, Error::Calibration(_)));
}

#[test]
fn the_facade_takes_data_of_files_or_open() {
    let model = model();
    let source = CalibSource {
        name: None,
        path: tiny("calib.npz"),
    };
    let data = Dataset::open(&model, std::slice::from_ref(&source), 8).unwrap();
    let job = || Quantizer::new(&model).threads(1);
    let results = [
        job().calibrate(&source.path).unwrap().run().unwrap(),
        job().calibrate_from(&[source]).unwrap().run().unwrap(),
        job().calibrate_on(&data).run().unwrap(),
    ];
    assert!(results.iter().all(|r| r.model == results[0].model));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    results[0].save(&out).unwrap();
    assert_eq!(onnx::load(&out).unwrap(), results[0].model);
    assert!(matches!(results[0].save(&out), Err(Error::Save(_))));
}

#[test]
fn the_example_does_the_whole_job() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    let said = example::quantize(
        &tiny("model.onnx"),
        &tiny("calib.npz"),
        &tiny("heldout.npz"),
        &out,
    );
    let said = said.unwrap();
    assert!(said.contains(&"decision: Migrated".to_owned()), "{said:#?}");
    assert!(said.contains(&"0 findings".to_owned()), "{said:#?}");
    let written = onnx::load(&out).unwrap();
    let metadata = written.proto.metadata_props.iter();
    let keys: Vec<&str> = metadata.map(|entry| entry.key()).collect();
    assert!(keys.contains(&"onnx_osplus.source"), "{keys:?}");
}
