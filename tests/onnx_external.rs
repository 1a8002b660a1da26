//! External data: found where it may be, refused where it may not.

use crate::common::with_initializer;
use onnx_osplus::onnx::proto::*;
use onnx_osplus::onnx::{DataType, load, tensor};
use prost::Message;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder with `dir/m.onnx`, whose one tensor `w` of [2, 3] floats has its data outside.
struct Outside {
    folder: tempfile::TempDir,
}

impl Outside {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("dir")).unwrap();
        let this = Self { folder };
        fs::write(this.path("w.bin"), Self::data()).unwrap();
        fs::write(this.folder.path().join("out.bin"), Self::data()).unwrap();
        this
    }

    fn data() -> Vec<u8> {
        (0..10).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("dir").join(name)
    }

    fn load_as(
        &self,
        entries: &[(&str, &str)],
        dtype: DataType,
        from: &Path,
    ) -> Result<Vec<f32>, String> {
        let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value.into()),
        };
        let tensor = TensorProto {
            name: Some("w".into()),
            dims: vec![2, 3],
            data_type: Some(dtype as i32),
            data_location: Some(1),
            external_data: entries.iter().map(entry).collect(),
            ..Default::default()
        };
        fs::write(
            self.path("m.onnx"),
            with_initializer(tensor).encode_to_vec(),
        )
        .unwrap();
        let folder = self.folder.path().canonicalize().unwrap();
        let model =
            load(from).map_err(|error| error.to_string().replace(folder.to_str().unwrap(), ""))?;
        let tensor = &model.graph().initializer[0];
        assert_eq!(
            (tensor.data_location, tensor.external_data.len()),
            (None, 0)
        );
        Ok(tensor::float_array(tensor)
            .unwrap()
            .into_raw_vec_and_offset()
            .0)
    }

    fn load(&self, entries: &[(&str, &str)]) -> Result<Vec<f32>, String> {
        self.load_as(entries, DataType::Float, &self.path("m.onnx"))
    }

    fn refused(&self, entries: &[(&str, &str)]) -> String {
        let error = self.load(entries).unwrap_err();
        error
            .strip_prefix("external data of tensor `w`: ")
            .expect(&error)
            .to_owned()
    }
}

#[test]
fn external_data_is_found() {
    let outside = Outside::new();
    let all = |location, offset, length| {
        outside
            .load(&[
                ("location", location),
                ("offset", offset),
                ("length", length),
            ])
            .unwrap()
    };
    assert_eq!(all("w.bin", "0", "24"), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(all("./w.bin", "16", "24"), [4., 5., 6., 7., 8., 9.]);
    assert_eq!(
        outside.load(&[("location", "w.bin")]).unwrap(),
        [0., 1., 2., 3., 4., 5.]
    );
    assert_eq!(
        outside
            .load(&[("location", "w.bin"), ("offset", "4")])
            .unwrap(),
        [1., 2., 3., 4., 5., 6.]
    );
}

#[test]
fn external_data_may_not_leave_the_folder() {
    let outside = Outside::new();
    for location in [
        "../out.bin",
        "x/../../out.bin",
        "../dir/w.bin",
        "/etc/passwd",
    ] {
        assert_eq!(
            outside
                .load(&[("location", location)])
                .unwrap_err()
                .replace(location, "LOCATION"),
            "external data of tensor `w`: the location `LOCATION` is refused: \
             it must be a relative path inside the model's folder, without `..`"
        );
    }
}

#[cfg(unix)]
#[test]
fn external_data_may_not_leave_the_folder_by_a_symbolic_link() {
    use std::os::unix::fs::symlink;
    let outside = Outside::new();
    symlink("../out.bin", outside.path("link.bin")).unwrap();
    symlink("..", outside.path("up")).unwrap();
    symlink("w.bin", outside.path("inner.bin")).unwrap();
    for location in ["link.bin", "up/out.bin"] {
        assert_eq!(
            outside.refused(&[("location", location)]),
            format!(
                "the location `{location}` is refused: it leads to /out.bin, outside the model's folder /dir"
            )
        );
    }
    assert!(outside.load(&[("location", "inner.bin")]).is_ok());
}

#[cfg(unix)]
#[test]
fn a_model_behind_a_symbolic_link_finds_its_data_beside_either() {
    // A download cache: names in one folder, all of them links to the contents in another.
    use std::os::unix::fs::symlink;
    let outside = Outside::new();
    let names = outside.folder.path().join("names");
    fs::create_dir(&names).unwrap();
    symlink("../dir/m.onnx", names.join("model.onnx")).unwrap();
    symlink("../dir/w.bin", names.join("model.bin")).unwrap();
    symlink("../out.bin", names.join("stray.bin")).unwrap();
    let load = |location| {
        outside.load_as(
            &[("location", location)],
            DataType::Float,
            &names.join("model.onnx"),
        )
    };
    assert!(load("model.bin").is_ok());
    let error = load("stray.bin").unwrap_err();
    assert!(
        error.contains("it leads to /out.bin, outside the model's folder"),
        "{error}"
    );
    // The names are those of the folder the user pointed to.
    assert!(load("w.bin").unwrap_err().contains("cannot read"));
}

#[test]
fn external_data_that_is_missing_or_wrong() {
    let outside = Outside::new();
    assert_eq!(outside.refused(&[]), "no `location` is given");
    assert_eq!(
        outside.refused(&[("location", "")]),
        "no `location` is given"
    );
    let file = outside.path("w.bin");
    let file = file.display();
    assert_eq!(
        outside
            .refused(&[("location", "none.bin")])
            .replace(outside.folder.path().to_str().unwrap(), ""),
        "cannot read /dir/none.bin: No such file or directory (os error 2)"
    );
    let with = |offset, length| {
        let entries = [
            ("location", "w.bin"),
            ("offset", offset),
            ("length", length),
        ];
        outside
            .refused(&entries)
            .replace(&file.to_string(), "DATA")
            .replace("/dir/w.bin", "DATA")
    };
    assert_eq!(
        with("20", "24"),
        "DATA is too short: expected 24 bytes from offset 20, the file has 40"
    );
    assert_eq!(
        with("18446744073709551615", "24"),
        "DATA is too short: expected 24 bytes from offset 18446744073709551615, the file has 40"
    );
    assert_eq!(
        with("0", "20"),
        "`length` is 20, but shape and type need 24 bytes"
    );
    assert_eq!(
        with("-4", "24"),
        "`offset` is `-4`, expected a number of bytes"
    );
    assert_eq!(
        with("0", "all"),
        "`length` is `all`, expected a number of bytes"
    );
    fs::create_dir(outside.path("sub")).unwrap();
    let error = outside.refused(&[("location", "sub")]);
    assert!(error.ends_with("/sub is not an ordinary file"), "{error}");
    let strings = outside.load_as(
        &[("location", "w.bin")],
        DataType::String,
        &outside.path("m.onnx"),
    );
    assert_eq!(
        strings.unwrap_err(),
        "external data of tensor `w`: its size cannot be found: \
         tensor `w`: expected a type of fixed size, found STRING"
    );
}

#[test]
fn external_data_is_resolved_wherever_a_tensor_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(folder.path().join("w.bin"), [7u8; 8]).unwrap();
    let tensor = |name: &str| TensorProto {
        name: Some(name.into()),
        dims: vec![8],
        data_type: Some(DataType::Uint8 as i32),
        data_location: Some(1),
        external_data: vec![StringStringEntryProto {
            key: Some("location".into()),
            value: Some("w.bin".into()),
        }],
        ..Default::default()
    };
    let sparse = |name: &str| SparseTensorProto {
        values: Some(tensor(name)),
        indices: Some(tensor(name)),
        dims: vec![9],
    };
    let attribute = |inner: Option<GraphProto>| AttributeProto {
        t: Some(tensor("t")),
        tensors: vec![tensor("tensors")],
        sparse_tensor: Some(sparse("sparse")),
        sparse_tensors: vec![sparse("sparse_tensors")],
        graphs: inner.iter().cloned().collect(),
        g: inner,
        ..Default::default()
    };
    let node = |inner| NodeProto {
        attribute: vec![attribute(inner)],
        ..Default::default()
    };
    let graph = |inner| GraphProto {
        initializer: vec![tensor("initializer")],
        sparse_initializer: vec![sparse("sparse_initializer")],
        node: vec![node(inner)],
        ..Default::default()
    };
    let mut proto = with_initializer(tensor("main"));
    proto.graph = Some(graph(Some(graph(None))));
    proto.training_info = vec![TrainingInfoProto {
        initialization: Some(graph(None)),
        algorithm: Some(graph(None)),
        ..Default::default()
    }];
    proto.functions = vec![FunctionProto {
        node: vec![node(Some(graph(None)))],
        attribute_proto: vec![attribute(None)],
        ..Default::default()
    }];
    fs::write(&path, proto.encode_to_vec()).unwrap();
    let written = format!("{:?}", proto);
    // An attribute holds 6, a graph without subgraphs 9, the main graph with two of them 27, the training graphs 18, the
    // function 24 and 6 in its node and its own attribute.
    assert_eq!(written.matches("w.bin").count(), 75);
    let loaded = format!("{:?}", load(&path).unwrap().proto);
    assert_eq!(loaded.matches("w.bin").count(), 0);
    assert_eq!(loaded.matches("raw_data: Some").count(), 75);

    fs::remove_file(folder.path().join("w.bin")).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(
        error.starts_with("external data of tensor `initializer`: cannot read"),
        "{error}"
    );
}
