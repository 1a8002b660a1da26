//! The names of operators, so that a misspelt one does not compile: `op::MatMul` is `"MatMul"`.
//!
//! Made by `build.rs` from `proto/operators.txt`. Names as in `NodeProto.op_type`; of ONNX's own domain all that ever
//! were, of ONNX Runtime's those that this crate knows. A name says nothing of the domain: `op::Attention` is one
//! operator in ONNX and another in `com.microsoft`.

include!(concat!(env!("OUT_DIR"), "/operators.rs"));
