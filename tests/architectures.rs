//! What is recognised in every architecture from every exporter: one snapshot per file of `models/architectures`.
//!
//! A changed recogniser or site rule shows here in the snapshots of the architectures that it changed. A file that the
//! calibration engine cannot run has no shapes and hence no sinks but norms; its snapshot says why, and the file is in
//! `WITHOUT_SHAPES`. A file that has another number of Linears than torch counts is in `OTHER_LINEARS`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use ndarray_npy::NpzWriter;
use onnx_osplus::calibrate::{CalibSource, Dataset, TractEngine, shapes};
use onnx_osplus::graph::{View, opset};
use onnx_osplus::onnx::{Model, load};
use onnx_osplus::recognise::{LinearForm, Recognised, recognise};
use onnx_osplus::site::{Place, Sink, Site, Trace, find_sites, wanted_shapes};
use onnx_osplus::target::MIN_OPSET;
use serde_json::Value;

/// Files that the calibration engine cannot run.
const WITHOUT_SHAPES: &[&str] = &[
    "bert-raw18-eager",
    "bert-script13-eager-mha",
    "bert-script14-eager-optimizer0",
    "bert-script17-eager-optimizer1",
    "clip_vision-script14-eager-optimizer0",
    "distilbert-script14-eager-optimizer0",
    "falcon-dynamo18-sdpa",
    "gpt2-raw18-eager",
    "gpt2-script14-eager-extended",
    "llama-helper-rotary",
    "llama-raw18-eager",
    "llama-script14-eager-extended",
    "opt_pre-script14-eager-functions",
    "roberta-script17-eager-extended",
    "vit-dynamo18-sdpa-functions",
];

/// Files of which not every Linear is recognised, and how many are.
const OTHER_LINEARS: &[(&str, usize)] = &[
    ("bert-script14-eager-optimizer0", 6),
    ("bert-script17-eager-functions", 0),
    ("bert-script17-eager-optimizer1", 6),
    ("bert-script17-sdpa-nested", 0),
    ("clip_vision-script14-eager-optimizer0", 7),
    ("distilbert-script14-eager-optimizer0", 6),
    ("gpt2-script14-eager-merged", 0),
    ("llama-helper-rotary", 14),
    ("llama-script17-eager-merged", 0),
    ("llama-script17-eager-nested", 0),
    ("opt_pre-script14-eager-functions", 4),
    ("vit-dynamo18-sdpa-functions", 1),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/architectures")
}

fn rows() -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join("table.json")).unwrap();
    let table: Value = serde_json::from_str(&text).unwrap();
    table["rows"].as_array().unwrap().clone()
}

fn name(row: &Value) -> &str {
    row["file"].as_str().unwrap().trim_end_matches(".onnx")
}

fn number(row: &Value, key: &str) -> usize {
    row[key].as_u64().map_or(0, |n| n as usize)
}

/// The Linears that torch counts; an Attention with packed weights is one in place of three.
fn expected_linears(row: &Value) -> usize {
    let branches = if row["other_branch"].is_array() { 2 } else { 1 };
    let merged = 2 * number(row, "packed_attention") + number(row, "merged_linears");
    (number(row, "block_linears") + number(row, "head_linears") - merged) * branches
}

/// Two rows for the inputs that the exporter kept: only their shapes matter here.
fn write_data(row: &Value, model: &Model, path: &Path) {
    let mut npz = NpzWriter::new(std::fs::File::create(path).unwrap());
    for input in row["inputs"].as_array().unwrap() {
        let name = input["name"].as_str().unwrap();
        if !model.graph().input.iter().any(|i| i.name() == name) {
            continue;
        }
        let sizes = input["shape"].as_array().unwrap();
        let shape: Vec<usize> = sizes
            .iter()
            .map(|d| d.as_u64().map_or(2, |d| d as usize))
            .collect();
        let count = shape.iter().product::<usize>() as i64;
        let integers = |of: &dyn Fn(i64) -> i64| -> ArrayD<i64> {
            ArrayD::from_shape_vec(IxDyn(&shape), (0..count).map(of).collect()).unwrap()
        };
        match input["kind"].as_str().unwrap() {
            "ids" => {
                let (low, high) = (number(input, "low") as i64, number(input, "high") as i64);
                npz.add_array(name, &integers(&|i| low + i * 7 % (high - low)))
            }
            "mask" => npz.add_array(name, &integers(&|_| 1)),
            "bool" => npz.add_array(name, &integers(&|_| 1).mapv(|i| i == 1)),
            // Sixteenths: float16 holds them exactly.
            _ => npz.add_array(
                name,
                &integers(&|i| i * 37 % 64 - 32).mapv(|i| i as f32 / 16.0),
            ),
        }
        .unwrap();
    }
    npz.finish().unwrap();
}

/// The shapes of the values between Linears and constants, as a run learns them, or why there are none.
fn learn_shapes(
    row: &Value,
    model: &Model,
    raised: &Model,
    values: &[String],
) -> Result<BTreeMap<String, Vec<usize>>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npz");
    write_data(row, model, &path);
    let source = CalibSource { name: None, path };
    let data = Dataset::open(model, &[source], 8).map_err(|e| e.to_string())?;
    shapes(&TractEngine, raised, &data.small_batch(), values).map_err(|e| e.to_string())
}

/// The snapshot of one row, how many Linears it has, and whether it was run.
fn describe(row: &Value) -> (String, usize, bool) {
    let model = load(&folder().join(row["file"].as_str().unwrap())).unwrap();
    let mut raised = model.clone();
    opset::raise(&mut raised, MIN_OPSET).unwrap();
    let view = View::new(&raised);
    let found = recognise(&view);
    let mut text = String::new();
    let (blocks, head) = (number(row, "block_linears"), number(row, "head_linears"));
    let norms = number(row, "norms");
    writeln!(text, "in torch: {blocks} + {head} Linears, {norms} norms").unwrap();
    writeln!(text, "\nLinears: {}", found.linears.len()).unwrap();
    for l in &found.linears {
        let form = match l.form {
            LinearForm::MatMul => "MatMul".to_owned(),
            LinearForm::Gemm { trans_b: true, .. } => "Gemm with transB".to_owned(),
            form => format!("{form:?}").split(' ').next().unwrap().to_owned(),
        };
        let bias = match (l.bias, l.odd_bias) {
            (Some(_), _) => " + bias",
            (None, true) => " + something that is no bias",
            (None, false) => "",
        };
        writeln!(text, "  {} {} x {} {form}{bias}", l.name, l.k, l.n).unwrap();
    }
    writeln!(text, "\nnorms: {}", found.norms.len()).unwrap();
    for n in &found.norms {
        let form = if n.fused { "" } else { ", decomposed" };
        let beta = if n.beta.is_some() { "" } else { ", no β" };
        writeln!(text, "  {} {}{form}{beta}", n.name, n.kind.op_type()).unwrap();
    }
    let values = wanted_shapes(&view, &found);
    let shapes = learn_shapes(row, &model, &raised, &values);
    let ran = shapes.is_ok();
    if let Err(reason) = &shapes {
        writeln!(text, "\nnot run, hence no sinks but norms: {reason}").unwrap();
    }
    let sites = find_sites(&view, &found, &shapes.unwrap_or_default(), true);
    writeln!(text, "\nsites: {}", sites.len()).unwrap();
    for site in &sites {
        write_site(&mut text, &view, &found, site);
    }
    writeln!(text, "\nnear misses: {}", found.near_misses.len()).unwrap();
    for miss in &found.near_misses {
        writeln!(text, "  {} {}: {}", miss.kind, miss.name, miss.reason).unwrap();
    }
    (text, found.linears.len(), ran)
}

fn write_site(text: &mut String, view: &View, found: &Recognised, site: &Site) {
    let sink = match &site.sink {
        Sink::Norm(norm) => format!("norm {}", found.norms[*norm].name),
        Sink::Traced(trace) => places(view, found, trace),
        Sink::Explicit(reason) => format!("a Mul, because {reason}"),
        Sink::None(reason) => format!("nothing, because {reason}"),
    };
    let shift = if site.allow_shift { "" } else { ", no shift" };
    let restore = if site.restore { ", restored" } else { "" };
    writeln!(text, "  {}", view.name(site.value)).unwrap();
    writeln!(text, "    into {sink}{shift}{restore}").unwrap();
    let linears: Vec<&str> = site
        .linears
        .iter()
        .map(|&l| found.linears[l].name.as_str())
        .collect();
    writeln!(text, "    before {}", linears.join(", ")).unwrap();
}

/// The constants behind a site, and how many channels have a scale of their own.
fn places(view: &View, found: &Recognised, trace: &Trace) -> String {
    let mut names: Vec<String> = Vec::new();
    for fold in &trace.folds {
        names.push(match &fold.place {
            Place::Linear(l) => format!("Linear {}", found.linears[*l].name),
            Place::Norm(n) => format!("norm {}", found.norms[*n].name),
            Place::Constant { node, .. } => format!("constant of {}", view.node_name(*node)),
        });
    }
    names.dedup();
    let free = |ties: &Vec<u32>| {
        let free = ties.iter().enumerate().filter(|&(c, &g)| c as u32 == g);
        format!(" ({} of {} channels are free)", free.count(), ties.len())
    };
    names.join(" and ") + &trace.ties.as_ref().map_or(String::new(), free)
}

#[test]
fn every_row_is_recognised_as_its_snapshot_says() {
    let snapshots = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/architectures");
    let rows = rows();
    let (mut changed, mut not_run, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let name = name(row);
        let (text, linears, ran) = describe(row);
        if !ran {
            not_run.push(name);
        }
        if linears != expected_linears(row) {
            others.push((name, linears));
        }
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(&snapshots);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        let compare = || settings.bind(|| insta::assert_snapshot!(name, text));
        if catch_unwind(AssertUnwindSafe(compare)).is_err() {
            changed.push(name);
        }
    }
    assert!(
        changed.is_empty(),
        "other than their snapshots: {changed:?}"
    );
    assert_eq!(not_run, WITHOUT_SHAPES, "files that were not run");
    assert_eq!(
        others, OTHER_LINEARS,
        "files with other Linears than torch counts"
    );

    let mut files: Vec<String> = std::fs::read_dir(&snapshots)
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .filter(|f| f.ends_with(".snap"))
        .collect();
    files.sort();
    let expected: Vec<String> = rows.iter().map(|r| format!("{}.snap", name(r))).collect();
    assert_eq!(
        files, expected,
        "snapshots without a row, or the other way round"
    );
}
