use super::*;
use crate::onnx::{DataType, load, proto::GraphProto, proto::OperatorSetIdProto, tensor};
use std::fs::{self, File};

fn save_within(
    model: &Model,
    path: &Path,
    options: &SaveOptions,
    limit: usize,
) -> Result<SaveSummary, SaveError> {
    prepare_within(model, path, options, limit)?.commit()
}

/// Two tensors of 400 kB, far more than the buffer, between small fields.
fn model() -> Model {
    let data: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    let float = |name| tensor::from_f32(name, &[data.len()], &data, DataType::Float);
    let mut typed = float("typed");
    typed.raw_data = None;
    typed.float_data = data.clone();
    let graph = GraphProto {
        name: Some("g".into()),
        initializer: vec![
            float("a"),
            tensor::from_i8("b", &[2], &[1, 2]),
            float("c"),
            typed,
        ],
        ..Default::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(17),
        }],
        graph: Some(graph),
        ..Default::default()
    };
    Model { proto }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Takes so many bytes, then the disk is full; remembers the largest piece.
struct SmallDisk {
    room: usize,
    taken: Vec<u8>,
    largest: usize,
}

impl Write for SmallDisk {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(self.room);
        if len == 0 && !data.is_empty() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.room -= len;
        self.largest = self.largest.max(data.len());
        self.taken.extend(&data[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn disk(room: usize) -> SmallDisk {
    SmallDisk {
        room,
        taken: Vec::new(),
        largest: 0,
    }
}

#[test]
fn the_stream_writes_what_prost_encodes_in_memory() {
    let model = model();
    let mut out = disk(usize::MAX);
    let written = encode(&model.proto, &mut out).unwrap();
    assert!(out.taken == model.proto.encode_to_vec());
    assert_eq!(written, out.taken.len() as u64);
    // Tensors go past the buffer in one piece.
    assert_eq!(out.largest, 400_000);
}

#[test]
fn the_stream_copes_with_pieces_of_every_size_around_its_buffer() {
    use bytes::BufMut;
    let size = 64 * 1024;
    for first in [0, 1, size - 1, size, size + 1] {
        for second in [1, size - 1, size, size + 1] {
            let mut out = disk(usize::MAX);
            let mut stream = Stream::new(&mut out);
            stream.put_slice(&vec![1; first]);
            stream.put_u8(2);
            stream.put(Bytes::from(vec![3; second]));
            // By way of the part that is there because the trait demands it.
            stream.put_bytes(4, second);
            let expected = [
                &vec![1; first][..],
                &[2],
                &vec![3; second],
                &vec![4; second],
            ]
            .concat();
            assert_eq!(stream.finish().unwrap(), expected.len() as u64);
            assert!(out.taken == expected, "{first} {second}");
        }
    }
}

#[test]
fn a_full_disk_is_an_error_wherever_it_happens() {
    let model = model();
    let whole = model.proto.encoded_len();
    for room in [0, 10, 70_000, 399_990, 500_000, whole - 1] {
        let error = encode(&model.proto, &mut disk(room)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{room}");
    }
    assert!(encode(&model.proto, &mut disk(whole)).is_ok());
}

#[test]
fn a_model_above_the_limit_gets_external_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let model = model();
    let len = model.proto.encoded_len();
    let plain = SaveOptions::default();
    let summary = save_within(&model, &path, &plain, len).unwrap();
    assert_eq!((summary.bytes, summary.external_bytes), (len as u64, 0));
    assert_eq!(files(folder.path()), ["m.onnx"]);

    let other = folder.path().join("n.onnx");
    let summary = save_within(&model, &other, &plain, len - 1).unwrap();
    // The second tensor starts at the next multiple of 4096 after the first.
    assert_eq!(summary.external_bytes, 401_408 + 400_000);
    assert_eq!(files(folder.path()), ["m.onnx", "n.onnx", "n.onnx.data"]);
    assert_eq!(load(&other).unwrap(), model);

    // The typed tensor alone is above this limit, and cannot be moved.
    let error = save_within(&model, &folder.path().join("o.onnx"), &plain, 400_000).unwrap_err();
    assert!(
        matches!(error, SaveError::TooLarge { bytes } if bytes > 400_000),
        "{error}"
    );
    assert_eq!(files(folder.path()).len(), 3);
}

#[test]
fn tensors_are_aligned_to_64_or_4096_bytes() {
    let mut proto = model().proto;
    let graph = proto.graph.get_or_insert_default();
    let bytes = |name: &str, len: usize| tensor::from_u8(name, &[len], &vec![1; len]);
    graph.initializer = vec![
        bytes("a", 1025),
        bytes("small", 1023),
        bytes("b", 4095),
        bytes("c", 4096),
        bytes("d", 1024),
    ];
    let moved = move_out(&mut proto, "data");
    let offsets: Vec<_> = moved.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [0, 1088, 8192, 12288]);
    let mut out = Vec::new();
    assert_eq!(write_data(&moved, &mut out).unwrap(), 13312);
    assert_eq!(
        out.iter().filter(|&&byte| byte == 1).count(),
        1025 + 4095 + 4096 + 1024
    );
    for (offset, data) in &moved {
        assert_eq!(&out[*offset as usize..][..data.len()], data);
    }
}

#[test]
fn files_that_exist_are_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let data = folder.path().join("m.onnx.data");
    let model = model();
    let with = |external_data, overwrite| SaveOptions {
        external_data,
        overwrite,
    };
    fs::write(&path, b"old").unwrap();
    let error = save(&model, &path, &with(false, false)).unwrap_err();
    assert!(
        matches!(&error, SaveError::Exists { path: p } if *p == path),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"old");
    save(&model, &path, &with(false, true)).unwrap();
    assert_eq!(load(&path).unwrap(), model);

    fs::remove_file(&path).unwrap();
    fs::write(&data, b"old").unwrap();
    let error = save(&model, &path, &with(true, false)).unwrap_err();
    assert!(
        matches!(&error, SaveError::Exists { path: p } if *p == data),
        "{error}"
    );
    assert_eq!(files(folder.path()), ["m.onnx.data"]);
    assert_eq!(fs::read(&data).unwrap(), b"old");
    save(&model, &path, &with(true, true)).unwrap();
    assert_eq!(load(&path).unwrap(), model);
}

#[test]
fn a_target_that_cannot_be_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        external_data: false,
        overwrite: true,
    };
    for path in [folder.path(), Path::new("/"), Path::new("..")] {
        let error = save(&model(), path, &options).unwrap_err();
        assert!(matches!(error, SaveError::NotAFile { .. }), "{error}");
    }
    let missing = folder.path().join("none").join("m.onnx");
    let error = save(&model(), &missing, &options).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot write {}: ", missing.display())),
        "{error}"
    );
}

/// The permissions of a file that `File::create` makes here and now, with whatever umask there is.
#[cfg(unix)]
#[test]
fn permissions_are_those_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| {
        fs::metadata(folder.path().join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    File::create(folder.path().join("ordinary")).unwrap();
    let options = SaveOptions {
        external_data: true,
        overwrite: false,
    };
    save(&model(), folder.path().join("m.onnx"), &options).unwrap();
    assert_eq!(mode("m.onnx"), mode("ordinary"));
    assert_eq!(mode("m.onnx.data"), mode("ordinary"));
}

#[test]
fn a_model_beside_the_data_of_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let data = folder.path().join("m.onnx.data");
    let options = SaveOptions {
        external_data: true,
        overwrite: true,
    };
    save(&model(), &path, &options).unwrap();
    assert_eq!(load(&path).unwrap(), model());
    let mut bytes = fs::read(&data).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&data, &bytes).unwrap();
    let told = load(&path).unwrap_err().to_string();
    assert!(told.contains("m.onnx.data is not the file"), "{told}");
    save(&model(), &path, &options).unwrap();
    assert_eq!(load(&path).unwrap(), model());
    assert_eq!(files(folder.path()), ["m.onnx", "m.onnx.data"]);
}

#[test]
fn data_that_a_model_in_one_file_does_not_need_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let data = folder.path().join("m.onnx.data");
    let with = |external_data| SaveOptions {
        external_data,
        overwrite: true,
    };
    assert_eq!(save(&model(), &path, &with(true)).unwrap().left_over, None);
    let saved = save(&model(), &path, &with(false)).unwrap();
    assert_eq!(saved.left_over, Some(data));
}
