//! What is recognised in every architecture from every exporter: one snapshot per file of `models/architectures`.
//!
//! A changed recogniser or site rule shows here in the snapshots of the architectures that it changed. A file that the
//! tool refuses is in `REFUSED` and its snapshot says why; one with another number of Linears than torch counts is in
//! `OTHER_LINEARS`.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use ndarray_npy::NpzWriter;
use onnx_osplus::calibrate::{CalibSource, Dataset, Engine, TractEngine, Wanted, shapes};
use onnx_osplus::graph::View;
use onnx_osplus::graph::axes::Axis;
use onnx_osplus::onnx::{Model, load};
use onnx_osplus::progress::NoProgress;
use onnx_osplus::recognise::{LinearForm, Recognised, attentions};
use onnx_osplus::review::NearMissReport;
use onnx_osplus::site::{Place, Sink, Site, Trace};
use onnx_osplus::{Inspection, Options, inspect};
use serde_json::Value;

/// Files that the tool refuses.
const REFUSED: &[&str] = &[];

/// Files in which another number of Linears is recognised than torch counts.
const OTHER_LINEARS: &[(&str, usize)] = &[];

/// Files in which the mask is laid over nothing: its ones are counted.
const COUNTED: &[&str] = &[
    "bert-script13-eager-mha",
    "bert-script14-eager-optimizer0",
    "bert-script17-eager-optimizer1",
    "distilbert-script14-eager-optimizer0",
    "llama-helper-gqa",
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

/// The Linears that torch counts.
fn expected_linears(row: &Value) -> usize {
    let branches = if row["other_branch"].is_array() { 2 } else { 1 };
    let merged = number(row, "merged_linears");
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

/// The model as the tool sees it, or why it cannot.
fn prepared(row: &Value) -> Result<Inspection, String> {
    let model = load(folder().join(row["file"].as_str().unwrap())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npz");
    write_data(row, &model, &path);
    let source = CalibSource { name: None, path };
    let data = Dataset::open(&model, &[source], 8).map_err(|e| e.to_string())?;
    let options = Options::default();
    inspect(&model, &data, &TractEngine, &options, &NoProgress).map_err(|e| e.to_string())
}

/// The snapshot of one row, and how many Linears it has; none if it cannot be prepared.
fn describe(row: &Value) -> (String, Option<usize>) {
    let Inspection {
        model,
        found,
        sites,
        closed,
    } = match prepared(row) {
        Ok(inspection) => inspection,
        Err(reason) => return (format!("refused: {reason}\n"), None),
    };
    let view = model.view();
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
    writeln!(text, "\nsites: {}", sites.len()).unwrap();
    for site in &sites {
        write_site(&mut text, &view, &found, site);
    }
    let attentions = attentions(&view);
    writeln!(text, "\nattention: {}", attentions.found.len()).unwrap();
    for a in &attentions.found {
        let (scores, context) = (&a.scores.name, &a.context.name);
        writeln!(text, "  {scores} and {context}").unwrap();
    }
    for miss in &attentions.near_misses {
        writeln!(text, "  float {}: {}", miss.name, miss.reason).unwrap();
    }
    let misses = found.near_misses.iter().cloned().map(Into::into);
    let misses: Vec<NearMissReport> = misses.chain(closed).collect();
    writeln!(text, "\nnear misses: {}", misses.len()).unwrap();
    for miss in &misses {
        writeln!(text, "  {} {}: {}", miss.kind, miss.name, miss.reason).unwrap();
    }
    (text, Some(found.linears.len()))
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
    let (mut changed, mut refused, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let name = name(row);
        let (text, linears) = describe(row);
        match linears {
            None => refused.push(name),
            Some(n) if n != expected_linears(row) => others.push((name, n)),
            Some(_) => {}
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
    assert_eq!(refused, REFUSED, "files that are refused");
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

/// Rows and padding of a value are told by where its axes come from, in every export.
#[test]
fn the_axes_of_what_linears_read_are_known() {
    let mut wrong = Vec::new();
    for row in rows() {
        let file = name(&row).to_owned();
        let Ok(inspection) = prepared(&row) else {
            continue;
        };
        let model = inspection.model.unflatten();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.npz");
        write_data(&row, &model, &path);
        let data = Dataset::open(&model, &[CalibSource { name: None, path }], 8).unwrap();
        for batch in data.small_batches() {
            let wanted = Wanted {
                taps: &[],
                outputs: true,
            };
            let plan = TractEngine.plan(&model, &batch, &wanted).unwrap();
            let axes = plan.axes();
            let flat = inspection.model.view();
            let inputs = inspection
                .found
                .linears
                .iter()
                .map(|l| flat.name(l.input).to_owned());
            let outputs = model.graph().output.iter().map(|o| o.name().to_owned());
            let values: Vec<String> = inputs.chain(outputs).collect();
            // Those in a branch that does not run are no values.
            let run = shapes(&TractEngine, &model, &batch, &values).unwrap();
            for value in run.keys() {
                let rows = axes.rows().unwrap();
                let of = |symbol| axes.offset(symbol, rows).is_some();
                let by_row = |found: &[Axis]| {
                    let mut factors = found.iter().flatten();
                    factors.any(|f| f.origin.is_some_and(|(s, ..)| of(s)))
                };
                if !axes.of(value).is_some_and(by_row) {
                    wrong.push(format!("{file}: {value} {:?}", axes.of(value)));
                }
            }
            let Some(mask) = axes.of_input("attention_mask") else {
                continue;
            };
            // The mask is that of the tokens, not of the encoder's.
            for ids in ["input_ids", "decoder_input_ids", "inputs_embeds"] {
                if let Some(ids) = axes.of_input(ids)
                    && axes.offset(mask[1], ids[1]).is_none()
                    && !COUNTED.contains(&&file[..])
                {
                    wrong.push(format!("{file}: the mask is laid over no token"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
