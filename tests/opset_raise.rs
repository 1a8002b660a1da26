//! Raises every model of tests/data/opset and writes what `pytest tests/python` compares with the originals in ONNX
//! Runtime, and the operator table, which it compares with ONNX's own.

use std::fs;
use std::path::{Path, PathBuf};

use onnx_osplus::graph::opset::table::{OPERATORS, Rule};
use onnx_osplus::graph::opset::{TARGET, raise};
use onnx_osplus::onnx::{SaveOptions, load, save};
use serde_json::json;

fn out() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("opset");
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn every_old_model_is_raised() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/opset");
    let mut paths: Vec<PathBuf> = fs::read_dir(data)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() > 40, "{} models", paths.len());
    for path in paths {
        let mut model = load(&path).unwrap();
        let from = model.opset();
        assert!((7..TARGET).contains(&from));
        let raised =
            raise(&mut model, TARGET).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!((raised.from, raised.to), (from, TARGET));
        assert_eq!(model.opset(), TARGET);
        let options = SaveOptions {
            external_data: false,
            overwrite: true,
        };
        save(&model, out().join(path.file_name().unwrap()), &options).unwrap();

        let once = model.clone();
        let again = raise(&mut model, TARGET).unwrap();
        assert!(again.rewritten.is_empty() && model == once);
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
    let table = json!({ "target": TARGET, "operators": rows });
    fs::write(
        out().join("table.json"),
        serde_json::to_vec_pretty(&table).unwrap(),
    )
    .unwrap();
}
