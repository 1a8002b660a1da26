//! Writes committed models as text for `tests/python/test_text.py`, which reads them back with ONNX's parser.

mod common;

use onnx_osplus::onnx::{TextOptions, load, text};
use std::path::Path;

#[test]
fn the_texts_are_written_for_the_python_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("text");
    std::fs::create_dir_all(&out).unwrap();
    let opset = std::fs::read_dir(root.join("tests/data/opset")).unwrap();
    let opset = opset.map(|entry| entry.unwrap().path());
    let tiny = ["tiny", "tiny-decomposed", "tiny-llama"];
    let tiny = tiny.map(|name| root.join("models").join(name).join("model.onnx"));
    let models = common::committed_models()
        .into_iter()
        .chain(opset)
        .chain(tiny);
    for path in models.filter(|path| path.extension().is_some_and(|e| e == "onnx")) {
        let model = load(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let stem = name.replace(['/', '\\'], "+");
        for (suffix, options) in [("full", TextOptions::FULL), ("short", TextOptions::SHORT)] {
            let text = text(&model, options);
            std::fs::write(out.join(format!("{stem}.{suffix}.txt")), text).unwrap();
        }
    }
}
