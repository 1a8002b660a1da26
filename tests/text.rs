//! Writes committed models as text for `tests/python/test_text.py`, which reads them back with ONNX's parser.

use crate::common;
use onnx_osplus::onnx::node::{make_node, string_attr};
use onnx_osplus::onnx::proto::GraphProto;
use onnx_osplus::onnx::{Model, TextOptions, load, text};
use proptest::prelude::*;
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

#[test]
fn the_short_text_of_a_model_with_everything() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = load(root.join("tests/data/onnx.onnx")).unwrap();
    insta::assert_snapshot!(text(&model, TextOptions::SHORT));
}

#[test]
fn names_and_strings_are_quoted_where_they_must_be() {
    let names = ["plain_1", "1st", "a/b", "float", "seq", "say \"\\\"", "é"];
    let graph = GraphProto {
        name: Some("bfloat16".to_owned()),
        node: vec![make_node(
            "Op",
            "",
            &names,
            &["y"],
            vec![string_attr("s", "\"\\")],
        )],
        ..GraphProto::default()
    };
    let text = text(&common::graphs::model(17, 8, graph), TextOptions::FULL);
    let expected = r#""bfloat16" () => ()
{
  y = Op <s = "\"\\"> (plain_1, "1st", "a/b", "float", "seq", "say \"\\\"", "é")
}
"#;
    assert_eq!(text.split_once('\n').unwrap().1, expected);
}

proptest! {
    /// Models that make no sense have a text, too, and the same one for the same bytes.
    #[test]
    fn any_model_has_a_text(proto in common::model()) {
        let model = Model { proto };
        prop_assert_eq!(text(&model, TextOptions::FULL), text(&model.clone(), TextOptions::FULL));
        let elided = text(&model, TextOptions { max_elements: 0 });
        prop_assert!(elided.starts_with("<ir_version"));
    }
}
