//! Every integration test, in one program: tract is linked once, and `cargo test --test all diff::` runs one file of them.
//! `architecture.rs` checks that no file is forgotten here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a failed `unwrap` is a failed test, and what is `pub` is so for the other files of this program"
)]

mod architecture;
mod architectures;
mod branches;
mod common;
mod contrib;
mod diff;
mod fixed;
mod fold_sizes;
mod fuzz;
mod graph;
mod inline;
mod library;
mod onnx_decoder;
mod onnx_external;
mod onnx_malformed;
mod onnx_round_trip;
mod operators;
mod opset_raise;
mod qoperator;
mod quantize_relu;
mod recognise;
mod response;
mod rewrite;
mod run;
mod schema;
mod shared;
mod site;
mod site_trace;
mod solver_golden;
mod targets;
mod text;
