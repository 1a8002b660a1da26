//! Raises every model of tests/data/opset to 13, and these and those of tests/data/opset21 to 21, and writes what
//! `pytest tests/python` compares with the originals in ONNX Runtime, and the operator table, which it compares with ONNX's
//! own.

use std::fs;
use std::path::{Path, PathBuf};

use onnx_osplus::graph::opset::table::{NEWEST, OPERATORS, Rule};
use onnx_osplus::graph::opset::{NEWEST_TARGET, TARGET, raise};
use onnx_osplus::onnx::{SaveOptions, load, save};
use serde_json::json;

fn out(folder: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn models(folder: &str) -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(folder);
    let mut paths: Vec<PathBuf> = fs::read_dir(data)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() > 40, "{} models", paths.len());
    paths
}

/// Raises the model at `path` to `target` and saves it in `folder`.
fn write_raised(path: &Path, target: i64, folder: &str) {
    let mut model = load(path).unwrap();
    let from = model.opset();
    assert!((7..target).contains(&from));
    let raised = raise(&mut model, target).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!((raised.from, raised.to), (from, target));
    assert_eq!(model.opset(), target);
    let options = SaveOptions {
        external_data: false,
        overwrite: true,
    };
    let to = out(folder).join(path.file_name().unwrap());
    save(&model, to, &options).unwrap();

    let once = model.clone();
    let again = raise(&mut model, target).unwrap();
    assert!(again.rewritten.is_empty() && model == once);
}

#[test]
fn every_old_model_is_raised() {
    for path in models("opset") {
        write_raised(&path, TARGET, "opset");
    }
}

#[test]
fn every_model_is_raised_to_the_newest() {
    for path in models("opset").into_iter().chain(models("opset21")) {
        write_raised(&path, NEWEST_TARGET, "opset21");
    }
}

#[test]
fn the_table_is_written_for_comparison() {
    let rows: Vec<_> = OPERATORS
        .iter()
        .map(|o| {
            let kind = |rule: &Rule| match rule {
                Rule::Convert(_) => "convert",
                Rule::Refuse(_) => "refuse",
            };
            let rules: Vec<_> = o.rules.iter().map(|(v, r)| json!([v, kind(r)])).collect();
            json!({
                "name": o.name,
                "first": o.first,
                "changed": o.changed,
                "rules": rules,
                "of_runtime": o.of_runtime,
            })
        })
        .collect();
    let table = json!({ "newest": NEWEST, "target": NEWEST_TARGET, "operators": rows });
    fs::write(
        out("opset").join("table.json"),
        serde_json::to_vec_pretty(&table).unwrap(),
    )
    .unwrap();
}
