//! Broken and hostile files: an error that says what is wrong, never a panic, never a silent loss.

use crate::common;
use bytes::Bytes;
use onnx_osplus::onnx::proto::*;
use onnx_osplus::onnx::{DataType, Model, SaveOptions, load, save, tensor};
use proptest::prelude::*;
use prost::Message;
use std::fs;

/// Loads bytes as a file; the error as text, with the file called `FILE`.
fn load_bytes(bytes: &[u8]) -> Result<Model, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(&path, bytes).unwrap();
    load(&path).map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"))
}

/// If the bytes load at all, then they can be saved, nothing is lost, and every tensor can be asked for.
fn never_panics(bytes: &[u8]) {
    let Ok(model) = load_bytes(bytes) else { return };
    for tensor in &model.graph().initializer {
        let _ = (
            tensor::shape(tensor),
            tensor::float_array(tensor),
            tensor::int_array(tensor),
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    save(&model, &path, &SaveOptions::default()).unwrap();
    let again = load(&path).unwrap();
    // Not `==`, because a flipped bit can make a NaN.
    assert_eq!(again.proto.encode_to_vec(), model.proto.encode_to_vec());
}

#[test]
fn files_cut_short_are_errors_or_whole_models() {
    for path in common::committed_models() {
        let whole = fs::read(&path).unwrap();
        let step = 1 + whole.len() / 500;
        for end in (0..whole.len()).step_by(step) {
            if let Ok(model) = load_bytes(&whole[..end]) {
                // Cut between two fields, after the graph and the operator sets: a shorter but valid file.
                assert_eq!(
                    model.proto.encode_to_vec(),
                    &whole[..end],
                    "{} cut at {end}",
                    path.display()
                );
                assert!(!model.graph().node.is_empty() && model.opset() > 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits(file in 0..5usize, flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..6)) {
        let mut bytes = fs::read(&common::committed_models()[file]).unwrap();
        for (place, bit) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
        }
        never_panics(&bytes);
    }

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        never_panics(&bytes);
    }
}

#[test]
fn files_that_are_no_models() {
    let error = |bytes: &[u8]| load_bytes(bytes).unwrap_err();
    assert_eq!(
        error(b""),
        "FILE holds no ONNX graph: expected a model, found an empty file"
    );
    let text = error(b"Not a model, but a line of text.\n");
    assert!(
        text.starts_with("FILE is not an ONNX file, or is truncated: "),
        "{text}"
    );
    let no_graph = ModelProto {
        ir_version: Some(8),
        ..Default::default()
    };
    assert_eq!(
        error(&no_graph.encode_to_vec()),
        "FILE holds no ONNX graph: expected a model, found a message without one"
    );
    let no_opset = ModelProto {
        graph: Some(GraphProto::default()),
        ..no_graph
    };
    assert_eq!(
        error(&no_opset.encode_to_vec()),
        "FILE names no operator set (opset_import), which IR version 8 requires: is the file truncated?"
    );
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("cannot read {}: is a directory", folder.path().display())
    );
    let missing = folder.path().join("missing.onnx");
    let error = load(&missing).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot read {}: No such file", missing.display())),
        "{error}"
    );
}

#[test]
fn float_data_of_the_wrong_length() {
    let mut tensor = tensor::from_f32("weight", &[2, 3], &[1.0; 6], DataType::Float);
    tensor.raw_data = Some(Bytes::from_static(&[0; 20]));
    assert_eq!(
        load_bytes(&common::with_initializer(tensor).encode_to_vec()).unwrap_err(),
        "FILE: tensor `weight`: its shape needs 24 bytes, found 20 in raw_data"
    );
}

// ---- what prost would lose -----------------------------------------------------------------------------------------

/// A length-delimited field below number 16.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    assert!(number < 16 && content.len() < 1 << 14);
    let len = content.len();
    let mut bytes = vec![number << 3 | 2];
    match len {
        0..0x80 => bytes.push(len as u8),
        _ => bytes.extend([len as u8 | 0x80, (len >> 7) as u8]),
    }
    bytes.extend(content);
    bytes
}

/// A model around the encoding of a graph.
fn around(graph: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x08, 8]; // ir_version: 8
    bytes.extend(field(7, graph));
    bytes.extend(field(8, &[0x10, 17])); // opset_import { version: 17 }
    bytes
}

#[test]
fn unknown_fields_are_named() {
    let refused = |bytes: &[u8]| {
        let error = load_bytes(bytes).unwrap_err();
        let head = error.strip_prefix("FILE holds ").expect(&error);
        head.split("; it would be lost").next().unwrap().to_owned()
    };
    let unknown = [0x98, 0x06, 0x01]; // field 99: 1
    let mut model = around(&[]);
    model.extend(unknown);
    assert_eq!(
        refused(&model),
        "field 99 of ModelProto, which is not in the ONNX schema"
    );

    // graph { node { name: "first" } node { name: "second", attribute { t { 99: 1 } } } }
    let tensor = field(5, &unknown);
    let second = [field(3, b"second"), field(5, &tensor)].concat();
    let graph = [field(1, &field(3, b"first")), field(1, &second)].concat();
    assert_eq!(
        refused(&around(&graph)),
        "field 99 of TensorProto, which is not in the ONNX schema in graph.node[1] (second).attribute[0].t"
    );

    // A tensor whose data_type has bit 40 set: prost would keep the lower 32 bits.
    let initializer = [
        &[0x10, 0x81, 0x80, 0x80, 0x80, 0x80, 0x20][..],
        &field(8, b"w"),
    ]
    .concat();
    assert_eq!(
        refused(&around(&field(5, &initializer))),
        "the upper bits of field `data_type`, whose value 1099511627777 is beyond 32 bits in graph.initializer[0] (w)"
    );
}

#[test]
fn a_loss_is_found_even_where_the_lengths_agree() {
    // An unpacked `int32_data` of one element is a byte shorter than what is written for it; twice that hides the two
    // bytes of an unknown field.
    let tensor = [&[0x28, 1][..], &field(8, b"w")].concat(); // int32_data: 1, name: "w"
    let graph = [field(5, &tensor), field(5, &tensor), vec![0x20, 1]].concat(); // 4: 1
    let bytes = around(&graph);
    assert_eq!(
        ModelProto::decode(&*bytes).unwrap().encoded_len(),
        bytes.len()
    );
    let error = load_bytes(&bytes).unwrap_err();
    assert!(error.contains("field 4 of GraphProto"), "{error}");
}

#[test]
fn another_encoding_of_the_same_model_is_no_loss() {
    let attribute = [&field(8, &[1, 2, 3])[..], &[0x40, 4], &field(1, b"axes")].concat(); // ints packed, then one more
    let long_zero = [0x18, 0x80, 0x00]; // i: 0 in two bytes
    let attribute = [&attribute[..], &long_zero].concat();
    let node = [field(5, &attribute), field(4, b"Old"), field(4, b"Squeeze")].concat(); // op_type twice
    let floats = [
        &[0x25][..],
        &1.5f32.to_le_bytes(),
        &[0x25],
        &2.5f32.to_le_bytes(),
    ]
    .concat(); // float_data unpacked
    let tensor = [floats, field(8, b"w"), vec![0x10, 1, 0x08, 2]].concat(); // dims after all else
    let first = field(1, &node);
    let second = field(5, &tensor);
    // The graph comes in two parts, which merge.
    let mut bytes = around(&first);
    bytes.extend(field(7, &second));
    let model = load_bytes(&bytes).unwrap();
    let graph = model.graph();
    assert_eq!(graph.node[0].op_type(), "Squeeze");
    assert_eq!(graph.node[0].attribute[0].ints, [1, 2, 3, 4]);
    assert_eq!(graph.node[0].attribute[0].i, Some(0));
    let array = tensor::float_array(&graph.initializer[0]).unwrap();
    assert_eq!(array, ndarray::arr1(&[1.5, 2.5]).into_dyn());
}

#[test]
fn an_int32_may_be_written_without_its_sign() {
    // -1 in five bytes instead of ten.
    let tensor = [
        &[0x2a, 5, 0xff, 0xff, 0xff, 0xff, 0x0f][..],
        &[0x10, 6, 0x08, 1],
    ]
    .concat();
    let model = load_bytes(&around(&field(5, &tensor))).unwrap();
    assert_eq!(model.graph().initializer[0].int32_data, [-1]);
}
