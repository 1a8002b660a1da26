//! What is loaded and saved unchanged is the same file.

use crate::common;
use onnx_osplus::onnx::proto::tensor_proto::DataLocation;
use onnx_osplus::onnx::{DataType, Model, SaveOptions, load, save, tensor};
use proptest::prelude::*;
use prost::Message;
use std::fs;

const EXTERNAL: SaveOptions = SaveOptions {
    external_data: true,
    overwrite: true,
};
const REPLACE: SaveOptions = SaveOptions {
    external_data: false,
    overwrite: true,
};

#[test]
fn models_by_the_packages_come_out_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    for path in common::committed_models() {
        let summary = save(&load(&path).unwrap(), &out, &REPLACE).unwrap();
        let (before, after) = (fs::read(&path).unwrap(), fs::read(&out).unwrap());
        assert!(before == after, "{} differs", path.display());
        assert_eq!(summary.bytes, before.len() as u64);
        assert_eq!((summary.external_path, summary.external_bytes), (None, 0));
    }
}

#[test]
fn the_committed_models_are_by_the_packages_they_are_named_after() {
    let producers: Vec<_> = common::committed_models()
        .iter()
        .map(|path| load(path).unwrap().proto.producer_name().to_owned())
        .collect();
    let expected = ["make.py", "tf2onnx", "pytorch", "pytorch", "pytorch"];
    assert_eq!(producers, expected);
}

#[test]
fn tensor_data_is_not_copied_on_loading() {
    let path = &common::committed_models()[0];
    let model = load(path).unwrap();
    let weight = &model.graph().initializer[0];
    assert_eq!(weight.name(), "w_raw");
    // Alone in its allocation, the bytes would be unique; as a slice of the map they are shared with the others.
    let raw = weight.raw_data.clone().unwrap();
    assert!(raw.try_into_mut().is_err());
}

/// A model with tensors just below and above the limit of 1 KiB, of which one is in a subgraph and one in an attribute.
fn with_large_tensors() -> Model {
    use onnx_osplus::onnx::node::{graph_attr, make_node, tensor_attr};
    use onnx_osplus::onnx::proto::GraphProto;
    let data = |len: usize| (0..len).map(|i| i as f32).collect::<Vec<_>>();
    let float =
        |name: &str, len: usize| tensor::from_f32(name, &[len], &data(len), DataType::Float);
    let mut model = load(&common::committed_models()[0]).unwrap();
    let inner = GraphProto {
        initializer: vec![float("in_subgraph", 2000)],
        ..Default::default()
    };
    let graph = model.graph_mut();
    graph.initializer.push(float("small", 255));
    graph.initializer.push(float("limit", 256));
    graph.initializer.push(float("large", 5000));
    let value = tensor_attr("value", float("in_attribute", 300));
    graph
        .node
        .push(make_node("Constant", "", &[], &["k"], vec![value]));
    let body = graph_attr("body", inner);
    graph
        .node
        .push(make_node("Loop", "loop", &[], &[], vec![body]));
    model
}

#[test]
fn external_data_comes_back_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (inline, outer) = (
        folder.path().join("inline.onnx"),
        folder.path().join("outer.onnx"),
    );
    let model = with_large_tensors();
    save(&model, &inline, &REPLACE).unwrap();
    let before = model.clone();
    let summary = save(&model, &outer, &EXTERNAL).unwrap();
    assert_eq!(model, before, "saving changed the model");

    let data = folder.path().join("outer.onnx.data");
    assert_eq!(summary.external_path.as_deref(), Some(data.as_path()));
    assert_eq!(summary.external_bytes, fs::metadata(&data).unwrap().len());
    assert_eq!(summary.bytes, fs::metadata(&outer).unwrap().len());

    let written =
        onnx_osplus::onnx::proto::ModelProto::decode(&*fs::read(&outer).unwrap()).unwrap();
    let initializers = &written.graph.as_ref().unwrap().initializer;
    let mut places = Vec::new();
    for tensor in initializers {
        if tensor.data_location == Some(DataLocation::External as i32) {
            let entries = tensor.external_data.iter();
            let entries: Vec<_> = entries.map(|entry| (entry.key(), entry.value())).collect();
            // The SHA-1 of the file comes last.
            let (checksum, entries) = entries.split_last().unwrap();
            assert_eq!((checksum.0, checksum.1.len()), ("checksum", 40));
            let entries = entries.to_vec();
            places.push((tensor.name(), entries));
            assert_eq!(tensor.raw_data, None);
        }
    }
    let entry = |offset, length| {
        vec![
            ("location", "outer.onnx.data"),
            ("offset", offset),
            ("length", length),
        ]
    };
    assert_eq!(
        places,
        [
            ("limit", entry("0", "1024")),
            ("large", entry("4096", "20000"))
        ]
    );

    let back = load(&outer).unwrap();
    assert_eq!(back, model);
    let again = folder.path().join("again.onnx");
    save(&back, &again, &REPLACE).unwrap();
    assert!(fs::read(&again).unwrap() == fs::read(&inline).unwrap());
}

#[test]
fn external_data_is_deterministic_and_may_replace_the_files_that_are_being_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    save(&with_large_tensors(), &path, &EXTERNAL).unwrap();
    let data = path.with_extension("onnx.data");
    let first = (fs::read(&path).unwrap(), fs::read(&data).unwrap());
    let model = load(&path).unwrap();
    save(&model, &path, &EXTERNAL).unwrap();
    assert!(first == (fs::read(&path).unwrap(), fs::read(&data).unwrap()));
    assert_eq!(load(&path).unwrap(), model);
}

#[test]
fn without_a_large_tensor_no_data_file_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let source = &common::committed_models()[0];
    let summary = save(&load(source).unwrap(), &path, &EXTERNAL).unwrap();
    assert_eq!(summary.external_path, None);
    assert!(fs::read(&path).unwrap() == fs::read(source).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_models_come_back(proto in common::model()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let model = Model { proto };
        save(&model, &path, &SaveOptions::default()).unwrap();
        let bytes = fs::read(&path).unwrap();
        prop_assert_eq!(&bytes, &model.proto.encode_to_vec());
        let back = load(&path).unwrap();
        prop_assert_eq!(&back, &model);
        save(&back, &path, &REPLACE).unwrap();
        prop_assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}
