//! What is fuzzed: each target takes bytes, does with them what the program would, and must come back. An error is a good
//! answer; a panic, a hang or a hunger for memory is a finding.
//!
//! `cargo fuzz` (libFuzzer, which sees what the bytes reach) and the runner in `main.rs` (any toolchain) run the same
//! functions.

mod prepared;

use std::path::{Path, PathBuf};

use onnx_osplus::calibrate::{CalibSource, Dataset, TractEngine};
use onnx_osplus::calibrate::{merge_statistics, read_statistics, write_statistics};
use onnx_osplus::graph::branches::FlatModel;
use onnx_osplus::graph::{self, View, inline, opset};
use onnx_osplus::onnx::text::{TextOptions, text};
use onnx_osplus::onnx::{self, Model, SaveOptions};
use onnx_osplus::progress::NoProgress;
use onnx_osplus::recognise::recognise;
use onnx_osplus::review::diff::{Style, diff};
use onnx_osplus::review::{Report, html};
use onnx_osplus::target::Target;
use onnx_osplus::target::lint::lint;
use onnx_osplus::{Options, anatomy};

/// A name, the folder of the corpus that it starts from, and what it does.
pub struct FuzzTarget {
    /// As it is called on the command line.
    pub name: &'static str,
    /// Below `corpus/`.
    pub corpus: &'static str,
    /// Does it, with a folder to write to.
    pub run: fn(&[u8], &Path),
}

/// All of them.
pub const TARGETS: &[FuzzTarget] = &[
    target("load", "model", load),
    target("text", "model", as_text),
    target("graph", "model", graph),
    target("inspect", "model", inspect),
    target("npy", "npy", npy),
    target("npz", "npz", npz),
    target("pb", "pb", pb),
    target("plan", "plan", plan),
    target("report", "report", report),
    target("statistics", "statistics", statistics),
    target("table", "table", |data, folder| {
        prepared::table(data, folder);
    }),
    target("tokenizer", "tokenizer", |data, folder| {
        prepared::tokenizer(data, folder);
    }),
    target("image", "image", |data, folder| {
        prepared::image(data, folder);
    }),
    target("preprocessor", "preprocessor", |data, folder| {
        prepared::preprocessor(data, folder);
    }),
    target("sound", "sound", |data, folder| {
        prepared::sound(data, folder);
    }),
];

const fn target(name: &'static str, corpus: &'static str, run: fn(&[u8], &Path)) -> FuzzTarget {
    FuzzTarget { name, corpus, run }
}

fn loaded(data: &[u8], folder: &Path) -> Option<Model> {
    let path = folder.join("in.onnx");
    std::fs::write(&path, data).ok()?;
    onnx::load(&path).ok()
}

/// Loads; what could be loaded is saved, in one file and in two, and must be the same again.
fn load(data: &[u8], folder: &Path) {
    let Some(model) = loaded(data, folder) else {
        return;
    };
    // Bytes are compared, and not models: one that holds a NaN is not equal to itself.
    let saved = |model: &Model, name: &str, external_data: bool| {
        let path = folder.join(name);
        let options = SaveOptions {
            external_data,
            overwrite: true,
        };
        onnx::save(model, &path, &options).ok().map(|_| path)
    };
    let bytes = |model: &Model| std::fs::read(saved(model, "again.onnx", false)?).ok();
    let first = bytes(&model);
    for external_data in [false, true] {
        if let Some(path) = saved(&model, "out.onnx", external_data) {
            let again = onnx::load(&path).expect("what was saved can be loaded");
            assert!(bytes(&again) == first, "saving loses nothing");
        }
    }
}

/// Writes the model as text, short and whole.
fn as_text(data: &[u8], folder: &Path) {
    if let Some(model) = loaded(data, folder) {
        for options in [TextOptions::SHORT, TextOptions::FULL] {
            let text = text(&model, options);
            let acts = |c: char| c.is_control() && c != '\n';
            assert!(!text.contains(acts), "text holds nothing that acts");
        }
    }
}

/// Checks, opens functions, raises the operator set, makes flat and turns back; recognises, lints, compares.
fn graph(data: &[u8], folder: &Path) {
    let Some(model) = loaded(data, folder) else {
        return;
    };
    let same = diff(&model, &model);
    let _ = (
        same.text(Style::default()),
        same.stat(Style::default()),
        same.json(),
    );
    if graph::check(&model).is_err() {
        return;
    }
    for target in [Target::Ort, Target::Portable] {
        let _ = lint(&model, target);
    }
    let mut opened = model.clone();
    let _ = inline(&mut opened, &|_| true);
    let _ = opset::raise(&mut opened, 13);
    let flat = FlatModel::of(opened);
    let view: View = flat.view();
    let _ = recognise(&view);
    drop(view);
    let back = flat.unflatten();
    let changed = diff(&model, &back);
    let _ = (
        changed.text(Style::default()),
        changed.stat(Style::default()),
    );
}

/// What `inspect` does without data: zeros are run.
fn inspect(data: &[u8], folder: &Path) {
    if let Some(model) = loaded(data, folder) {
        let options = Options {
            threads: 1,
            ..Options::default()
        };
        let _ = anatomy(&model, None, &TractEngine, &options, &NoProgress);
    }
}

/// The folder of the project, whichever crate this is compiled in.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    match here.ends_with("fuzz") {
        true => here.parent().unwrap_or(here).to_owned(),
        false => here.to_owned(),
    }
}

/// The committed model with two inputs of ids, two of which are filled in.
fn tiny() -> Model {
    onnx::load(root().join("models/tiny/model.onnx")).expect("the committed model can be loaded")
}

fn open(path: PathBuf, name: Option<&str>) {
    thread_local! {
        static MODEL: Model = tiny();
    }
    let name = name.map(str::to_owned);
    MODEL.with(|model| {
        if let Ok(data) = Dataset::open(model, &[CalibSource { name, path }], 8) {
            let _ = (data.digest(), data.rows());
            for batch in data.all().iter().take(4) {
                for input in batch.inputs.values() {
                    let _ = input.values();
                }
            }
        }
    });
}

fn npy(data: &[u8], folder: &Path) {
    let path = folder.join("input_ids.npy");
    if std::fs::write(&path, data).is_ok() {
        open(path, Some("input_ids"));
    }
}

fn npz(data: &[u8], folder: &Path) {
    let path = folder.join("data.npz");
    if std::fs::write(&path, data).is_ok() {
        open(path, None);
    }
}

fn pb(data: &[u8], folder: &Path) {
    let set = folder.join("set");
    let _ = std::fs::create_dir(&set);
    if std::fs::write(set.join("input_0.pb"), data).is_ok() {
        open(set, None);
    }
}

/// Reads a plan, and writes what was read.
fn plan(data: &[u8], _: &Path) {
    if let Some(once) = onnx_osplus::plan_round_trip(data) {
        let twice = onnx_osplus::plan_round_trip(&once);
        assert_eq!(
            twice.as_ref(),
            Some(&once),
            "a plan that was written reads back"
        );
    }
}

/// Reads a report, and shows it.
fn report(data: &[u8], _: &Path) {
    if let Ok(report) = serde_json::from_slice::<Report>(data) {
        let page = html(&report);
        assert!(!page.contains("<script"), "a page has no scripts");
        let again = serde_json::to_string(&report).expect("a report can be written");
        serde_json::from_str::<Report>(&again).expect("a report that was written reads back");
    }
}

/// Reads the statistics of a shard, writes what was read, and puts them beside others.
fn statistics(data: &[u8], _: &Path) {
    let read = |mut data: &[u8]| read_statistics(&mut data).ok();
    if let Some(found) = read(data) {
        let mut written = Vec::new();
        write_statistics(&found, &mut written).expect("memory can be written to");
        let mut again = read(&written).expect("statistics that were written read back");
        let _ = merge_statistics(&mut again, found);
    }
}

/// Whether data of the corpus become rows: seeds that nothing accepts would test nothing but the first error.
pub fn becomes_rows(corpus: &str, data: &[u8], folder: &Path) -> bool {
    match corpus {
        "table" => prepared::table(data, folder),
        "tokenizer" => prepared::tokenizer(data, folder),
        "image" => prepared::image(data, folder),
        "preprocessor" => prepared::preprocessor(data, folder),
        "sound" => prepared::sound(data, folder),
        _ => false,
    }
}
