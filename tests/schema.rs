//! Hands the descriptor of `proto/onnx.proto` to `tests/python/test_schema.py`, which compares it with the `onnx` package's.

use onnx_osplus::onnx::FILE_DESCRIPTOR_SET;
use onnx_osplus::onnx::proto::Version;
use std::path::Path;

#[test]
fn the_descriptor_is_written_for_the_python_test() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnx.fds");
    std::fs::write(&path, FILE_DESCRIPTOR_SET).unwrap();
    let contains = |text: &str| {
        let mut windows = FILE_DESCRIPTOR_SET.windows(text.len());
        windows.any(|window| window == text.as_bytes())
    };
    assert!(contains("onnx.proto") && contains("ModelProto") && contains("SimpleShardedDimProto"));
}

#[test]
fn the_ir_version_is_14() {
    assert_eq!(Version::IrVersion as i32, 14);
}
