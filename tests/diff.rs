//! `review::diff`: nothing for a model against itself, something for any edit, and what people read.

use std::path::{Path, PathBuf};

use crate::common;
use bytes::Bytes;
use onnx_osplus::onnx::node::{float_attr, int_attr, make_node, tensor_attr};
use onnx_osplus::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use onnx_osplus::onnx::{DataType, Model, load, tensor};
use onnx_osplus::review::diff::{Diff, Kind, Sign, Style, diff};
use onnx_osplus::solve::Rotation;
use proptest::prelude::*;
use prost::Message;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn architecture(name: &str) -> Model {
    load(root().join("models/architectures").join(name)).unwrap()
}

fn plain(diff: &Diff) -> String {
    diff.text(Style {
        ask_for_all: Some("--full"),
        ..Style::default()
    })
}

/// Every committed model.
fn models() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(root().join("models/architectures")).unwrap();
    let mut found = common::committed_models();
    found.extend(folder.map(|entry| entry.unwrap().path()));
    found.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    found.sort();
    found
}

#[test]
fn no_model_differs_from_itself() {
    let models = models();
    assert!(models.len() > 100);
    for path in models {
        let model = load(&path).unwrap();
        let found = diff(&model, &model.clone());
        assert!(found.is_empty(), "{}: {}", path.display(), plain(&found));
        assert_eq!(found.matched_nodes, found.nodes.0, "{}", path.display());
    }
}

/// Nodes without names, values with others: what is computed tells them apart.
#[test]
fn renamed_nodes_and_values_match_by_what_they_compute() {
    for name in [
        "bert-script14-sdpa.onnx",
        "gpt2-dynamo18-eager.onnx",
        "llama-script17-eager.onnx",
    ] {
        let model = architecture(name);
        let mut renamed = model.clone();
        let graph = renamed.graph_mut();
        let outputs: Vec<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
        let made: std::collections::BTreeSet<String> =
            graph.node.iter().flat_map(|n| n.output.clone()).collect();
        for node in &mut graph.node {
            node.name = None;
            for value in node.input.iter_mut().chain(&mut node.output) {
                if made.contains(value) && !outputs.contains(value) {
                    *value = format!("v{value}");
                }
            }
        }
        graph.value_info.clear();
        let found = diff(&model, &renamed);
        let nodes = found.nodes.0;
        assert!(
            found.matched_nodes + nodes / 50 >= nodes,
            "{name}: {} of {nodes}\n{}",
            found.matched_nodes,
            plain(&found)
        );
    }
}

/// The wire format as an edit: one byte of an encoded message is another, and it still decodes to another model.
fn with_other_byte(model: &ModelProto, at: usize, by: u8) -> Option<ModelProto> {
    let mut data = model.encode_to_vec();
    let at = at % data.len();
    data[at] = data[at].wrapping_add(by);
    let edited = ModelProto::decode(Bytes::from(data)).ok()?;
    (edited.encode_to_vec() != model.encode_to_vec() && edited.graph.is_some()).then_some(edited)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_random_model_does_not_differ_from_itself(proto in common::model()) {
        let model = Model { proto };
        let found = diff(&model, &model.clone());
        prop_assert!(found.is_empty(), "{}", plain(&found));
    }

    /// Whatever the byte belongs to: names, types, doc strings, metadata, elements, order.
    #[test]
    fn any_edit_shows(proto in common::model(), at in any::<usize>(), by in 1..=255u8) {
        if let Some(edited) = with_other_byte(&proto, at, by) {
            let (a, b) = (Model { proto }, Model { proto: edited });
            let (there, back) = (diff(&a, &b), diff(&b, &a));
            prop_assert!(!there.is_empty() && !back.is_empty());
            prop_assert!(plain(&there).lines().count() > 1, "{}", plain(&there));
            prop_assert!(!there.stat(Style::default()).is_empty());
        }
    }
}

#[test]
fn any_edit_of_a_real_export_shows() {
    let model = architecture("bert-dynamo18-eager.onnx");
    let size = model.proto.encoded_len();
    let mut edits = 0;
    for k in 0..400 {
        let at = k * size / 400 + k % 7;
        if let Some(proto) = with_other_byte(&model.proto, at, 1) {
            let found = diff(&model, &Model { proto });
            assert!(!found.is_empty(), "byte {at}");
            edits += 1;
        }
    }
    assert!(edits > 200, "{edits}");
}

fn floats(name: &str, shape: &[usize], start: f32) -> TensorProto {
    let count: usize = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|i| start + i as f32 / 8.0).collect();
    tensor::from_f32(name, shape, &data, DataType::Float)
}

/// Two layers: norm, MatMul, Add, Relu.
fn layers(count: usize) -> Model {
    let (mut node, mut initializer, mut last) = (Vec::new(), Vec::new(), "x".to_owned());
    for i in 0..count {
        let path = |rest: &str| format!("/encoder/layer.{i}/{rest}");
        let weight = format!("encoder.layer.{i}.ffn.up.weight");
        let bias = format!("encoder.layer.{i}.ffn.up.bias");
        let (m, a, r) = (
            path("ffn/up/MatMul_out"),
            path("ffn/up/Add_out"),
            path("ffn/Relu_out"),
        );
        let op = |op: &str, name: &str, inputs: &[&str], output: &str| {
            make_node(op, &path(name), inputs, &[output], vec![])
        };
        node.push(op("MatMul", "ffn/up/MatMul", &[&last, &weight], &m));
        node.push(op("Add", "ffn/up/Add", &[&m, &bias], &a));
        node.push(op("Relu", "ffn/Relu", &[&a], &r));
        initializer.push(floats(&weight, &[4, 4], -1.0));
        initializer.push(floats(&bias, &[4], 0.25));
        last = r;
    }
    let info = |name: &str| ValueInfoProto {
        name: Some(name.to_owned()),
        ..ValueInfoProto::default()
    };
    let graph = GraphProto {
        node,
        initializer,
        input: vec![info("x")],
        output: vec![info(&last)],
        ..GraphProto::default()
    };
    common::graphs::model(17, 8, graph)
}

/// Q/DQ before each MatMul, int8 weights with one scale per channel, as this and other tools write them.
fn quantize(model: &mut Model) {
    let graph = model.graph_mut();
    let mut nodes: Vec<NodeProto> = Vec::new();
    for mut node in std::mem::take(&mut graph.node) {
        if node.op_type() == "MatMul" {
            let (x, w) = (node.input[0].clone(), node.input[1].clone());
            let name = |of: &str, what: &str| format!("{of}_{what}");
            let (s, z) = (name(&x, "scale"), name(&x, "zero_point"));
            let (q, d) = (name(&x, "quantized"), name(&x, "dequantized"));
            nodes.push(make_node(
                "QuantizeLinear",
                &name(&q, "node"),
                &[&x, &s, &z],
                &[&q],
                vec![],
            ));
            nodes.push(make_node(
                "DequantizeLinear",
                &name(&d, "node"),
                &[&q, &s, &z],
                &[&d],
                vec![],
            ));
            let (ws, wq, wd) = (
                name(&w, "scale"),
                name(&w, "quantized"),
                name(&w, "dequantized"),
            );
            let axis = vec![int_attr("axis", 1)];
            nodes.push(make_node(
                "DequantizeLinear",
                &name(&wd, "node"),
                &[&wq, &ws],
                &[&wd],
                axis,
            ));
            node.input = vec![d, wd];
            let steps: Vec<u8> = (0..16i32).map(|i| (8 * (i - 8)) as i8 as u8).collect();
            graph.initializer.retain(|t| t.name() != w);
            graph
                .initializer
                .push(tensor::from_f32(&s, &[], &[0.0312], DataType::Float));
            let raw = |name: &str, dtype: DataType, dims: &[i64], data: Vec<u8>| TensorProto {
                name: Some(name.to_owned()),
                dims: dims.to_vec(),
                data_type: Some(dtype as i32),
                raw_data: Some(data.into()),
                ..TensorProto::default()
            };
            graph
                .initializer
                .push(raw(&z, DataType::Uint8, &[], vec![112]));
            graph
                .initializer
                .push(raw(&wq, DataType::Int8, &[4, 4], steps));
            let scales = [1.0 / 64.0, 1.0 / 64.0, 1.0 / 64.0, 1.0 / 32.0];
            graph
                .initializer
                .push(tensor::from_f32(&ws, &[4], &scales, DataType::Float));
        }
        nodes.push(node);
    }
    graph.node = nodes;
}

#[test]
fn repeated_blocks_that_were_quantized_alike_are_shown_once() {
    let before = layers(12);
    let mut after = before.clone();
    quantize(&mut after);
    let found = diff(&before, &after);
    insta::assert_snapshot!("quantized", plain(&found));
    let narrow = found.text(Style {
        width: Some(80),
        ..Style::default()
    });
    assert!(
        narrow.lines().all(|line| line.chars().count() <= 80),
        "{narrow}"
    );
    insta::assert_snapshot!("quantized_80", narrow);
    insta::assert_snapshot!("quantized_stat", found.stat(Style::default()));
    let full = found.text(Style {
        full: true,
        ..Style::default()
    });
    assert_eq!(
        full.matches("Q/DQ u8 scale=0.0312 zp=112 on").count(),
        12,
        "{full}"
    );
    // The other way round it is the same story.
    let back = diff(&after, &before);
    let count = |d: &Diff, kind, sign| {
        d.changes()
            .filter(|c| c.kind == kind && c.sign == sign)
            .count()
    };
    assert_eq!(count(&back, Kind::Qdq, Sign::Removed), 12);
    assert_eq!(count(&back, Kind::Weight, Sign::Changed), 12);
    assert_eq!(found.changes().count(), back.changes().count());
}

#[test]
fn the_largest_change_of_a_quantized_weight_is_that_of_its_dequantized_elements() {
    let before = layers(1);
    let mut after = before.clone();
    quantize(&mut after);
    let found = diff(&before, &after);
    let weight = found.changes().find(|c| c.kind == Kind::Weight).unwrap();
    let distance = weight.constants.as_ref().unwrap().distance.unwrap();
    // Columns 0 to 2 have steps of 1/8, which is what the weight has; that of column 3 is 1/4, so that 0.875 becomes
    // 1.75 at its end and -0.625 becomes -1.25.
    assert_eq!(distance.largest, 0.875);
    assert_eq!(distance.relative, Some(0.5));
}

#[test]
fn what_a_person_changes_is_said() {
    let before = layers(2);
    let mut after = before.clone();
    let graph = after.graph_mut();
    // An attribute and another operator, a wire, a constant, a new node, a doc string, metadata.
    graph.node[2].op_type = Some("LeakyRelu".to_owned());
    graph.node[2].attribute.push(float_attr("alpha", 0.125));
    graph.node[4].input[0] = "/encoder/layer.0/ffn/up/Add_out".to_owned();
    graph.initializer[1] = floats("encoder.layer.0.ffn.up.bias", &[4], 0.5);
    graph.doc_string = Some("edited".to_owned());
    graph
        .node
        .push(make_node("Exp", "tail", &["x"], &["tail_out"], vec![]));
    let value = tensor::from_i64("", &[1], &[7]);
    graph.node.push(make_node(
        "Constant",
        "",
        &[],
        &["c"],
        vec![tensor_attr("value", value)],
    ));
    after.proto.producer_name = Some("somebody".to_owned());
    after.proto.opset_import[0].version = Some(18);
    insta::assert_snapshot!("edited", plain(&diff(&before, &after)));
}

#[test]
fn moved_nodes_and_reordered_initializers_show() {
    let before = layers(2);
    let mut after = before.clone();
    after.graph_mut().node.swap(0, 3);
    let found = diff(&before, &after);
    assert!(
        found.changes().all(|c| c.kind == Kind::Order),
        "{}",
        plain(&found)
    );
    assert!(!found.is_empty());
    let mut after = before.clone();
    after.graph_mut().initializer.swap(0, 3);
    let found = diff(&before, &after);
    assert_eq!(found.changes().count(), 1, "{}", plain(&found));
}

#[test]
fn exports_of_one_model_by_different_exporters() {
    let (a, b) = ("gpt2-script17-sdpa.onnx", "gpt2-dynamo18-eager.onnx");
    let found = diff(&architecture(a), &architecture(b));
    let text = plain(&found);
    assert!(text.lines().count() < 450, "{text}");
    insta::assert_snapshot!("exporters", found.summary());
}

/// Pairs of committed exports: what changed between two ways to export, subgraphs and functions included.
#[test]
fn summaries_of_committed_pairs() {
    let pairs = [
        (
            "bert-script14-sdpa.onnx",
            "bert-script14-sdpa-float16ort.onnx",
        ),
        (
            "bert-script17-eager.onnx",
            "bert-script17-eager-functions.onnx",
        ),
        (
            "gpt2-script14-eager-past.onnx",
            "gpt2-script14-eager-merged.onnx",
        ),
        (
            "llama-script17-eager.onnx",
            "llama-script17-eager-optimizer0.onnx",
        ),
        (
            "bert-script13-eager.onnx",
            "bert-script13-eager-onnxsim.onnx",
        ),
    ];
    let said = pairs.map(|(a, b)| {
        let found = diff(&architecture(a), &architecture(b));
        format!(
            "{a}\n{b}\n{}",
            found.text(Style {
                ask_for_all: Some("--full"),
                width: Some(100),
                ..Style::default()
            })
        )
    });
    insta::assert_snapshot!("pairs", said.join("\n\n"));
}

#[test]
fn json_holds_every_change() {
    let before = layers(3);
    let mut after = before.clone();
    quantize(&mut after);
    let found = diff(&before, &after);
    let json = found.json();
    assert_eq!(json["schema"], 1);
    assert_eq!(
        json["changes"].as_array().unwrap().len(),
        found.changes().count()
    );
    let weight = &json["changes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["kind"] == "weight");
    assert_eq!(weight.unwrap()["before"]["type"], "float[4, 4]");
}

/// The value that Linears read, rotated before them: one change, whatever nodes it takes; and back again.
#[test]
fn a_rotation_is_one_change() {
    let before = load(root().join("models/tiny/model.onnx")).unwrap();
    let rotation = Rotation::of(64, 3).unwrap().unsigned();
    let mut after = before.clone();
    let graph = after.graph_mut();
    let is_reader = |n: &NodeProto| {
        ["query", "key", "value"]
            .iter()
            .any(|q| n.name() == format!("/encoder/layer.0/attention/self/{q}/MatMul"))
    };
    let first = graph.node.iter().position(is_reader).unwrap();
    let value = graph.node[first].input[0].clone();
    let mut weights = Vec::new();
    for node in graph.node.iter_mut().filter(|n| is_reader(n)) {
        node.input[0] = "turned".to_owned();
        weights.push(node.input[1].clone());
    }
    for stored in graph
        .initializer
        .iter_mut()
        .filter(|t| weights.contains(&t.name().to_owned()))
    {
        let weight = tensor::float_array(stored)
            .unwrap()
            .into_dimensionality()
            .unwrap();
        let turned = rotation.rotate_weight(weight.view(), None);
        *stored = tensor::from_f32(
            stored.name(),
            turned.shape(),
            turned.as_slice().unwrap(),
            DataType::Float,
        );
    }
    let (a, b) = rotation.factors();
    let names = ["H_A", "H_B"];
    for (name, h) in names
        .iter()
        .zip([rotation.outer().unwrap(), rotation.inner()])
    {
        let stored = tensor::from_f32(name, h.shape(), h.as_slice().unwrap(), DataType::Float);
        graph.initializer.push(stored);
    }
    graph
        .initializer
        .push(tensor::from_i64("split", &[4], &[0, 0, a as i64, b as i64]));
    graph
        .initializer
        .push(tensor::from_i64("joined", &[3], &[0, 0, 64]));
    let chain = [
        ("Reshape", [value.as_str(), "split"], "r1"),
        ("MatMul", ["r1", "H_B"], "r2"),
        ("MatMul", ["H_A", "r2"], "r3"),
        ("Reshape", ["r3", "joined"], "turned"),
    ];
    let chain = chain.map(|(op, inputs, output)| make_node(op, output, &inputs, &[output], vec![]));
    graph.node.splice(first..first, chain);

    for (from, to, sign) in [
        (&before, &after, Sign::Added),
        (&after, &before, Sign::Removed),
    ] {
        let found = diff(from, to);
        let all: Vec<_> = found.changes().filter(|c| c.kind != Kind::Order).collect();
        let kinds = |kind| all.iter().filter(|c| c.kind == kind).count();
        assert_eq!(
            (kinds(Kind::Rotation), kinds(Kind::Constant), all.len()),
            (1, 3, 4),
            "{}",
            plain(&found)
        );
        let change = all.iter().find(|c| c.kind == Kind::Rotation).unwrap();
        assert_eq!((change.sign, change.nodes), (sign, 4));
        let text = found.text(Style {
            full: true,
            ..Style::default()
        });
        let line = format!("rotated by {a}×{b} before query/MatMul, key/MatMul, value/MatMul on ");
        assert!(text.contains(&line), "{text}");
        // How far a rotated weight is from the other one says nothing.
        assert_eq!(text.matches(", rotated").count(), 3, "{text}");
        assert!(!text.contains("largest change"), "{text}");
        let verb = if sign == Sign::Added {
            "inserted"
        } else {
            "removed"
        };
        assert!(
            found.summary().contains(&format!("1 rotation {verb}.")),
            "{}",
            found.summary()
        );
        let json = serde_json::to_string(&found.json()).unwrap();
        assert_eq!(json.matches(r#""kind":"rotation""#).count(), 1);
    }
}
