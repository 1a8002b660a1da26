//! Compiles `proto/onnx.proto` with protox, a pure-Rust compiler, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let descriptors = protox::compile(["onnx.proto"], ["proto"])?;
    prost_build::Config::new()
        // `Bytes` fields are slices of the memory-mapped file: weights are not copied on load.
        .bytes(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
