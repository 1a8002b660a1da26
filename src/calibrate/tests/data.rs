//! From files to batches, and every error on that way.

use ndarray::{Array2, Array3, ArrayD, Axis, IxDyn, array};
use ndarray_npy::{NpzWriter, write_npy};
use prost::Message;
use std::fs::File;
use std::path::Path;

use super::*;
use crate::calibrate::FillRule;
use crate::onnx::node::make_node;
use crate::onnx::op;
use crate::onnx::tensor;

/// A model of the BERT kind: three integer inputs, of which two can be filled.
fn bert() -> Model {
    model(
        17,
        vec![
            info("input_ids", DataType::Int64, &["batch", "sequence"]),
            info("attention_mask", DataType::Int64, &["batch", "sequence"]),
            info("token_type_ids", DataType::Int64, &["batch", "sequence"]),
        ],
        vec![make_node(op::Identity, "n", &["input_ids"], &["y"], vec![])],
        vec![],
        &["y"],
    )
}

fn float_model(dims: &[&str], dtype: DataType) -> Model {
    model(
        17,
        vec![info("x", dtype, dims)],
        vec![make_node(op::Identity, "n", &["x"], &["y"], vec![])],
        vec![],
        &["y"],
    )
}

fn ids(rows: usize, length: usize) -> Array2<i64> {
    Array2::from_shape_fn((rows, length), |(r, s)| (100 * r + s) as i64)
}

fn i64_values(batch: &Batch, name: &str) -> ArrayD<i64> {
    match batch.inputs[name].values().unwrap() {
        Values::I64(array) => array,
        other => panic!("expected int64, got {other:?}"),
    }
}

fn write_npz(path: &Path, arrays: &[(&str, &Array2<i64>)]) {
    let mut npz = NpzWriter::new_compressed(File::create(path).unwrap());
    for (name, array) in arrays {
        npz.add_array(*name, *array).unwrap();
    }
    npz.finish().unwrap();
}

#[test]
fn one_npy_feeds_the_one_input_that_is_not_filled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ids.npy");
    write_npy(&path, &ids(5, 3)).unwrap();
    let data = Dataset::open(&bert(), &[source(path)], 2).unwrap();
    let filled: Vec<String> = data
        .filled()
        .iter()
        .map(|f| format!("{}: {}", f.input, f.rule))
        .collect();
    assert_eq!(filled, ["attention_mask: ones", "token_type_ids: zeros"]);
    let split = data.split();
    assert!(!split.held_out_used);
    assert_eq!(split.held_out.len(), 3);
    let rows: Vec<&[u64]> = split.calibration.iter().map(|b| &*b.rows).collect();
    assert_eq!(rows, [&[0, 1][..], &[2, 3], &[4]]);
    let batch = &split.calibration[1];
    assert_eq!(
        i64_values(batch, "input_ids"),
        array![[200, 201, 202], [300, 301, 302]].into_dyn()
    );
    assert_eq!(
        i64_values(batch, "attention_mask"),
        ArrayD::from_elem(IxDyn(&[2, 3]), 1i64)
    );
    assert_eq!(
        i64_values(batch, "token_type_ids"),
        ArrayD::<i64>::zeros(IxDyn(&[2, 3]))
    );
    assert_eq!(batch.mask().cloned(), Some(Array2::from_elem((2, 3), true)));
}

#[test]
fn every_eighth_row_is_held_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ids.npy");
    write_npy(&path, &ids(20, 3)).unwrap();
    let split = Dataset::open(&bert(), &[source(path)], 100)
        .unwrap()
        .split();
    assert!(split.held_out_used);
    // A batch for each of two cores.
    let held: Vec<_> = split.held_out.iter().map(|b| b.rows.clone()).collect();
    assert_eq!(held, [[7], [15]]);
    assert_eq!(split.calibration[0].rows.len(), 18);
    assert_eq!(
        i64_values(&split.held_out[1], "input_ids"),
        array![[1500, 1501, 1502]].into_dyn()
    );
}

#[test]
fn npz_and_its_mask() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npz");
    let mask = array![[1, 1, 0], [1, 0, 0]];
    write_npz(
        &path,
        &[("input_ids", &ids(2, 3)), ("attention_mask", &mask)],
    );
    let data = Dataset::open(&bert(), &[source(path)], 8).unwrap();
    assert_eq!(data.filled().len(), 1);
    let batch = &data.split().calibration[0];
    assert_eq!(batch.mask().cloned(), Some(mask.mapv(|v| v != 0)));
    assert_eq!(i64_values(batch, "attention_mask"), mask.into_dyn());
}

#[test]
fn a_large_npz_array_goes_through_a_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npz");
    // 48 MB, above the limit for unpacking in memory; it compresses to almost nothing.
    let rows = 6 << 20;
    let mut large = Array2::zeros((rows, 1));
    large[[rows - 1, 0]] = 7;
    write_npz(&path, &[("input_ids", &large)]);
    let split = Dataset::open(&bert(), &[source(path)], rows)
        .unwrap()
        .split();
    let last = i64_values(split.held_out.last().unwrap(), "input_ids");
    assert_eq!(last[[last.len() - 1, 0]], 7);
}

#[test]
fn long_sequences_run_a_few_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npy");
    // Of few rows none is held out if they are short, and one if they are long.
    for (length, batch, rows, kept) in
        [(3, 8, 7, 7), (192, 8, 2, 6), (192, 1, 1, 6), (600, 8, 1, 6)]
    {
        write_npy(&path, &ids(7, length)).unwrap();
        let data = Dataset::open(&bert(), &[source(path.clone())], batch).unwrap();
        let split = data.split();
        assert_eq!(split.held_out_used, kept < 7);
        let calibration = split.calibration;
        assert_eq!(calibration[0].rows.len(), rows, "{length}");
        let all: usize = calibration.iter().map(|b| b.rows.len()).sum();
        assert_eq!(all, kept);
    }
}

#[test]
fn a_folder_of_files_of_different_lengths() {
    let dir = tempfile::tempdir().unwrap();
    write_npy(dir.path().join("b.npy"), &ids(1, 5)).unwrap();
    write_npy(dir.path().join("a.npy"), &ids(2, 3)).unwrap();
    write_npz(&dir.path().join("c.npz"), &[("input_ids", &ids(1, 4))]);
    std::fs::write(dir.path().join("README.txt"), "not data").unwrap();
    let data = Dataset::open(&bert(), &[source(dir.path().into())], 8).unwrap();
    let batches = data.split().calibration;
    let shapes: Vec<&[usize]> = batches
        .iter()
        .map(|b| b.inputs["input_ids"].shape())
        .collect();
    assert_eq!(shapes, [&[2, 3][..], &[1, 5], &[1, 4]]);
    assert_eq!(batches[2].rows, [3]);
}

#[test]
fn named_files_combine_and_a_repeated_name_starts_the_next_set() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    write_npy(file("a.npy"), &ids(2, 3)).unwrap();
    write_npy(file("am.npy"), &array![[1i64, 0, 0], [1, 1, 0]]).unwrap();
    write_npy(file("b.npy"), &ids(1, 4)).unwrap();
    let sources = [
        named_source("input_ids", file("a.npy")),
        named_source("attention_mask", file("am.npy")),
        named_source("input_ids", file("b.npy")),
    ];
    let batches = Dataset::open(&bert(), &sources, 8)
        .unwrap()
        .split()
        .calibration;
    assert_eq!(batches.len(), 2);
    assert_eq!(
        batches[0].mask().cloned(),
        Some(array![[true, false, false], [true, true, false]])
    );
    assert_eq!(
        batches[1].mask().cloned(),
        Some(Array2::from_elem((1, 4), true))
    );
}

#[test]
fn onnx_test_data_with_and_without_names() {
    let dir = tempfile::tempdir().unwrap();
    for (set, name) in [("test_data_set_0", "input_ids"), ("test_data_set_1", "")] {
        let folder = dir.path().join(set);
        std::fs::create_dir(&folder).unwrap();
        let values: Vec<i64> = (0..6).collect();
        let tensor = tensor::from_i64(name, &[2, 3], &values);
        std::fs::write(folder.join("input_0.pb"), tensor.encode_to_vec()).unwrap();
        // The second tensor keeps its data in int64_data.
        let mask = TensorProto {
            dims: vec![2, 3],
            data_type: Some(DataType::Int64 as i32),
            int64_data: vec![1, 1, 0, 1, 0, 0],
            ..Default::default()
        };
        std::fs::write(folder.join("input_1.pb"), mask.encode_to_vec()).unwrap();
    }
    let data = Dataset::open(&bert(), &[source(dir.path().into())], 8).unwrap();
    let batches = data.split().calibration;
    assert_eq!(batches.len(), 2);
    for batch in &batches {
        assert_eq!(
            i64_values(batch, "input_ids"),
            array![[0, 1, 2], [3, 4, 5]].into_dyn()
        );
        assert_eq!(
            batch.mask().cloned(),
            Some(array![[true, true, false], [true, false, false]])
        );
    }
}

#[test]
fn integer_widths_convert_when_exact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ids.npy");
    write_npy(&path, &array![[1u8, 255]]).unwrap();
    let batch = &Dataset::open(&bert(), &[source(path.clone())], 8)
        .unwrap()
        .split()
        .calibration[0];
    assert_eq!(i64_values(batch, "input_ids"), array![[1, 255]].into_dyn());

    let narrow = float_model(&["b", "s"], DataType::Int32);
    write_npy(&path, &array![[-5i64, 1 << 31]]).unwrap();
    insta::assert_snapshot!(open_error(&narrow, &[source(path.clone())], dir.path()), @"ids.npy holds 2147483648 at index [0, 1], which input x of type int32 cannot hold exactly");
    write_npy(&path, &array![[-5i64, 1 << 30]]).unwrap();
    let batch = &Dataset::open(&narrow, &[source(path)], 8)
        .unwrap()
        .split()
        .calibration[0];
    assert_eq!(
        batch.inputs["x"].values().unwrap(),
        Values::I32(array![[-5, 1 << 30]].into_dyn())
    );
}

#[test]
fn float_widths_convert_when_exact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    let model = float_model(&["b", "2"], DataType::Float);
    write_npy(&path, &array![[0.5f64, -2.0]]).unwrap();
    let batch = &Dataset::open(&model, &[source(path.clone())], 8)
        .unwrap()
        .split()
        .calibration[0];
    assert_eq!(
        batch.inputs["x"].values().unwrap(),
        Values::F32(array![[0.5, -2.0]].into_dyn())
    );
    write_npy(&path, &array![[0.5f64, 0.1]]).unwrap();
    insta::assert_snapshot!(open_error(&model, &[source(path.clone())], dir.path()), @"x.npy holds 0.1 at index [0, 1], which input x of type float32 cannot hold exactly; convert with array.astype('float32') if rounding is fine");

    // A float16 input rounds, as any runtime does, but does not overflow.
    let half = float_model(&["b", "2"], DataType::Float16);
    write_npy(&path, &array![[0.1f32, 65504.0]]).unwrap();
    let batch = &Dataset::open(&half, &[source(path.clone())], 8)
        .unwrap()
        .split()
        .calibration[0];
    let rounded = half::f16::from_f32(0.1).to_f32();
    assert_eq!(
        batch.inputs["x"].values().unwrap(),
        Values::F32(array![[rounded, 65504.0]].into_dyn())
    );
    write_npy(&path, &array![[0.1f32, 70000.0]]).unwrap();
    insta::assert_snapshot!(open_error(&half, &[source(path)], dir.path()), @"x.npy holds 70000 at index [0, 1], which input x of type float16 cannot hold exactly");
}

#[test]
fn fortran_order_and_big_endian() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    let model = float_model(&["b", "2", "3"], DataType::Float);
    let values = Array3::from_shape_fn((2, 2, 3), |(a, b, c)| (100 * a + 10 * b + c) as f32);
    // A transposed view of a column-major array is written with fortran_order.
    let fortran = values.t().as_standard_layout().into_owned().reversed_axes();
    write_npy(&path, &fortran).unwrap();
    assert!(
        String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains("'fortran_order': True")
    );
    let batch = &Dataset::open(&model, &[source(path.clone())], 8)
        .unwrap()
        .split()
        .calibration[0];
    assert_eq!(
        batch.inputs["x"].values().unwrap(),
        Values::F32(values.clone().into_dyn())
    );

    write_npy(&path, &values).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let little = bytes.windows(3).position(|w| w == b"<f4").unwrap();
    bytes[little] = b'>';
    let start = bytes.len() - values.len() * 4;
    for chunk in bytes[start..].chunks_exact_mut(4) {
        chunk.reverse();
    }
    std::fs::write(&path, bytes).unwrap();
    let batch = &Dataset::open(&model, &[source(path)], 8)
        .unwrap()
        .split()
        .calibration[0];
    assert_eq!(
        batch.inputs["x"].values().unwrap(),
        Values::F32(values.into_dyn())
    );
}

#[test]
fn a_fixed_batch_size_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    let model = float_model(&["2", "3"], DataType::Float);
    write_npy(&path, &Array2::<f32>::zeros((16, 3))).unwrap();
    let split = Dataset::open(&model, &[source(path.clone())], 8)
        .unwrap()
        .split();
    assert_eq!(split.calibration.len(), 7);
    assert_eq!(split.held_out[0].rows, [14, 15]);
    write_npy(&path, &Array2::<f32>::zeros((5, 3))).unwrap();
    insta::assert_snapshot!(open_error(&model, &[source(path)], dir.path()), @"x.npy has 5 rows, but the model's batch size is fixed to 2: give a multiple of it");
}

#[test]
fn a_decoder_gets_positions_and_an_empty_past() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ids.npy");
    write_npy(&path, &ids(2, 3)).unwrap();
    let past = ["batch", "4", "past_sequence", "8"];
    let decoder = model(
        17,
        vec![
            info("input_ids", DataType::Int64, &["batch", "sequence"]),
            info(
                "attention_mask",
                DataType::Int64,
                &["batch", "past_sequence + sequence"],
            ),
            info("position_ids", DataType::Int64, &["batch", "sequence"]),
            info("past_key_values.0.key", DataType::Float, &past),
            info("past_key_values.0.value", DataType::Float16, &past),
            info("use_cache_branch", DataType::Bool, &["1"]),
        ],
        vec![make_node(op::Identity, "n", &["input_ids"], &["y"], vec![])],
        vec![],
        &["y"],
    );
    let data = Dataset::open(&decoder, &[source(path.clone())], 8).unwrap();
    let rules: Vec<FillRule> = data.filled().iter().map(|f| f.rule).collect();
    assert_eq!(
        rules,
        [
            FillRule::Ones,
            FillRule::Positions,
            FillRule::EmptyPast,
            FillRule::EmptyPast,
            FillRule::False
        ]
    );
    let batch = &data.split().calibration[0];
    assert_eq!(batch.inputs["past_key_values.0.key"].shape(), [2, 4, 0, 8]);
    assert_eq!(
        i64_values(batch, "position_ids"),
        array![[0, 1, 2], [0, 1, 2]].into_dyn()
    );
    assert_eq!(
        batch.inputs["use_cache_branch"].values().unwrap(),
        Values::Bool(array![false].into_dyn())
    );

    // batch · heads cannot be known from the ids.
    let mut bloom = decoder.clone();
    bloom.graph_mut().input[3] = info(
        "past_key_values.0.key",
        DataType::Float,
        &["batch_x_heads", "8", "past"],
    );
    insta::assert_snapshot!(open_error(&bloom, &[source(path)], dir.path()), @r"
    input past_key_values.0.key is not in ids.npy and cannot be filled in: give a source that is named after it, or an array of a .npz
    the model's inputs are:
      input_ids: int64 [batch, sequence]
      attention_mask: int64 [batch, past_sequence + sequence]
      position_ids: int64 [batch, sequence]
      past_key_values.0.key: float32 [batch_x_heads, 8, past]
      past_key_values.0.value: float16 [batch, 4, past_sequence, 8]
      use_cache_branch: bool [1]
    ");
}

#[test]
fn a_mask_of_another_rank_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.npz");
    let mut model = bert();
    model.graph_mut().input[1] = info("attention_mask", DataType::Float, &["b", "1", "s", "s"]);
    let mut npz = NpzWriter::new(File::create(&path).unwrap());
    npz.add_array("input_ids", &ids(1, 2)).unwrap();
    npz.add_array(
        "attention_mask",
        &ndarray::Array4::<f32>::zeros((1, 1, 2, 2)),
    )
    .unwrap();
    npz.finish().unwrap();
    let data = Dataset::open(&model, &[source(path)], 8).unwrap();
    insta::assert_snapshot!(data.notes().join("\n"), @"attention_mask has 4 axes; only a mask [batch, sequence] tells padding, so every position counts");
    assert_eq!(data.split().calibration[0].mask(), None);
}

#[test]
fn initializers_listed_as_inputs_are_not_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    write_npy(&path, &Array2::<f32>::zeros((1, 3))).unwrap();
    let mut model = float_model(&["b", "3"], DataType::Float);
    model
        .graph_mut()
        .input
        .push(info("w", DataType::Float, &["3"]));
    model
        .graph_mut()
        .initializer
        .push(tensor::from_f32("w", &[3], &[0.0; 3], DataType::Float));
    let data = Dataset::open(&model, &[source(path)], 8).unwrap();
    assert_eq!(data.split().calibration[0].inputs.len(), 1);
}

#[test]
fn errors_name_file_array_and_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let x = float_model(&["b", "2", "3"], DataType::Float);
    let error = |model: &Model, sources: &[CalibSource]| open_error(model, sources, dir.path());

    insta::assert_snapshot!(error(&x, &[]), @"calibration data is needed: none was given");
    insta::assert_snapshot!(error(&x, &[source(file("no.npy"))]), @"cannot read no.npy: No such file or directory (os error 2)");
    insta::assert_snapshot!(error(&x, &[source(file("no"))]), @"no: there is no such file or folder");
    std::fs::write(file("x.csv"), "1,2").unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("x.csv"))]), @"x.csv: holds text, and the model has no input of token ids such as input_ids; its inputs are x");
    std::fs::write(file("x.dat"), "1,2").unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("x.dat"))]), @"x.dat: calibration data is a .npy or .npz file, a folder of them, text (.txt, .jsonl, .csv, .tsv, .json, .parquet), images (.png, .jpg, .webp, .bmp) or recordings (.wav)");
    std::fs::create_dir(file("empty")).unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("empty"))]), @"empty: holds no .npy or .npz file, no ONNX test data (input_0.pb), no text (.txt, .jsonl, .csv, .tsv, .json, .parquet), no images (.png, .jpg, .webp, .bmp) and no recordings (.wav)");
    std::fs::write(file("bad.npy"), "text").unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("bad.npy"))]), @"bad.npy is not a .npy array: I/O error: failed to fill whole buffer");
    std::fs::write(file("bad.npz"), "text").unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("bad.npz"))]), @"bad.npz invalid Zip archive: Could not find EOCD");

    write_npy(file("x.npy"), &Array3::<f32>::zeros((1, 2, 3))).unwrap();
    let bytes = std::fs::read(file("x.npy")).unwrap();
    std::fs::write(file("short.npy"), &bytes[..bytes.len() - 3]).unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("short.npy"))]), @"short.npy is cut short: float32 [1, 2, 3] needs 24 bytes, 21 are there");
    write_npy(file("rank.npy"), &Array2::<f32>::zeros((2, 3))).unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("rank.npy"))]), @"rank.npy does not fit input x: expected float32 [b, 2, 3], found float32 [2, 3]; axis 0 must be the batch");
    write_npy(file("dim.npy"), &Array3::<f32>::zeros((2, 3, 3))).unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("dim.npy"))]), @"dim.npy does not fit input x: expected float32 [b, 2, 3], found float32 [2, 3, 3]");
    write_npy(file("int.npy"), &Array3::<i64>::zeros((2, 2, 3))).unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("int.npy"))]), @"int.npy does not fit input x: expected float32, found int64; convert with array.astype('float32')");
    write_npy(file("none.npy"), &Array3::<f32>::zeros((0, 2, 3))).unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("none.npy"))]), @"none.npy: has no rows for input x");
    let mut nan = Array3::<f32>::zeros((2, 2, 3));
    nan[[1, 0, 2]] = f32::NAN;
    write_npy(file("nan.npy"), &nan).unwrap();
    insta::assert_snapshot!(error(&x, &[source(file("nan.npy"))]), @"nan.npy holds NaN at index [1, 0, 2]; calibration data must be finite");

    write_npy(file("ids.npy"), &ids(2, 3).mapv(|v| v as f32)).unwrap();
    insta::assert_snapshot!(error(&bert(), &[source(file("ids.npy"))]), @"ids.npy does not fit input input_ids: expected int64, found float32; convert with array.astype('int64')");
    write_npz(&file("unknown.npz"), &[("ids", &ids(2, 3))]);
    insta::assert_snapshot!(error(&bert(), &[source(file("unknown.npz"))]), @r"
    unknown.npz has no input of the model's: ids is not one of them
    the model's inputs are:
      input_ids: int64 [batch, sequence]
      attention_mask: int64 [batch, sequence]
      token_type_ids: int64 [batch, sequence]
    ");
    write_npz(
        &file("rows.npz"),
        &[("input_ids", &ids(2, 3)), ("attention_mask", &ids(3, 3))],
    );
    insta::assert_snapshot!(error(&bert(), &[source(file("rows.npz"))]), @"the arrays of one calibration set must have equally many rows: input_ids has 2, attention_mask has 3");
    write_npz(&file("part.npz"), &[("attention_mask", &ids(3, 3))]);
    insta::assert_snapshot!(error(&bert(), &[source(file("part.npz"))]), @r"
    input input_ids is not in part.npz and cannot be filled in: give a source that is named after it, or an array of a .npz
    the model's inputs are:
      input_ids: int64 [batch, sequence]
      attention_mask: int64 [batch, sequence]
      token_type_ids: int64 [batch, sequence]
    ");
    insta::assert_snapshot!(error(&bert(), &[named_source("input_ids", file("part.npz"))]), @"part.npz: data for one input (input_ids) is a .npy file");
    let mut two = bert();
    two.graph_mut()
        .input
        .push(info("pixels", DataType::Float, &["?", "3"]));
    insta::assert_snapshot!(error(&two, &[source(file("ids.npy"))]), @r"
    ids.npy has no name, and the model has 2 inputs that must be given: name the input that it feeds
    the model's inputs are:
      input_ids: int64 [batch, sequence]
      attention_mask: int64 [batch, sequence]
      token_type_ids: int64 [batch, sequence]
      pixels: float32 [?, 3]
    ");
}

#[test]
fn rows_are_read_when_a_batch_is_run_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    let values = wave(&[9, 2, 3]);
    write_npy(&path, &values).unwrap();
    let model = float_model(&["b", "2", "3"], DataType::Float);
    let split = Dataset::open(&model, &[source(path)], 3).unwrap().split();
    let batch = &split.calibration[2];
    assert_eq!(batch.rows, [6, 8]);
    assert_eq!(
        batch.inputs["x"].values().unwrap(),
        Values::F32(values.select(Axis(0), &[6, 8]))
    );
}
