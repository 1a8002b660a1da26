//! The target that the environment names, for `cargo fuzz`: `FUZZ_TARGET=load cargo fuzz run target --features libfuzzer`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use onnx_osplus_fuzz::TARGETS;

fuzz_target!(|data: &[u8]| {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder to work in");
    }
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("FUZZ_TARGET names a target");
    FOLDER.with(|folder| (target.run)(data, folder.path()));
});
