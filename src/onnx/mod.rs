//! The ONNX file: reading it, writing it, and the values inside.
//!
//! ```text
//! file ─ load ─▶ Model (protobuf messages; tensor data are slices of the memory-mapped file) ─ save ─▶ file
//! ```
//!
//! [`load()`] gives a [`Model`] in which every tensor is inline, wherever its data was stored, and refuses a file of
//! which anything would be lost. [`save()`] streams it out again; a model that was not changed comes out byte for
//! byte as it came in (when it has been written in the canonical order of protobuf, as every known exporter does).
//! [`tensor`] turns tensors to arrays and back, [`node`] reads and makes nodes and their attributes, [`op`] has the names
//! of operators. [`text()`] shows a
//! model in ONNX's textual syntax, [`digest_model`] says which file it was.

mod digest;
mod fields;
mod halves;
mod input;
pub mod load;
pub mod node;
#[allow(
    non_upper_case_globals,
    reason = "a constant is spelt like the operator that it names"
)]
pub mod op;
pub mod output;
pub mod save;
mod shown;
pub mod tensor;
pub mod text;
mod visit;
mod wire;

pub use digest::{Digest, digest_file};
pub use fields::{Field, fields};
pub(crate) use input::map;
pub use input::{InputFile, SourceFiles};
pub use load::{LoadError, digest_model, external_locations, load, load_with_source};
pub use proto::tensor_proto::DataType;
pub use save::{Prepared, SaveError, SaveOptions, SaveSummary, prepare, save};
pub use shown::{shown, shown_lines};
pub use tensor::TensorError;
pub use text::{TextOptions, text};

/// The ONNX schema, generated from `proto/onnx.proto`: proto2, so every scalar is an `Option`; enum fields are `i32`.
#[allow(
    missing_docs,
    clippy::all,
    rustdoc::all,
    reason = "generated; `proto/onnx.proto` has the words"
)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

/// The descriptor of `proto/onnx.proto`: an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/onnx.fds"));

/// A model with all its tensors inline and a graph.
///
/// A clone is cheap as far as `raw_data` is concerned: the bytes are shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The message as it is written to a file.
    pub proto: proto::ModelProto,
}

/// What [`Model::graph`] answers for a model that has none; only a model made by hand can be so.
static NO_GRAPH: proto::GraphProto = proto::GraphProto {
    node: Vec::new(),
    name: None,
    initializer: Vec::new(),
    sparse_initializer: Vec::new(),
    doc_string: None,
    input: Vec::new(),
    output: Vec::new(),
    value_info: Vec::new(),
    quantization_annotation: Vec::new(),
    metadata_props: Vec::new(),
};

impl Model {
    /// The main graph. [`load()`] makes sure there is one; a hand-made model without one appears as an empty graph.
    pub fn graph(&self) -> &proto::GraphProto {
        self.proto.graph.as_ref().unwrap_or(&NO_GRAPH)
    }

    /// The main graph, to be changed.
    pub fn graph_mut(&mut self) -> &mut proto::GraphProto {
        self.proto.graph.get_or_insert_default()
    }

    /// The version of the standard operator set, whose domain is written `""` or `"ai.onnx"`.
    ///
    /// Where none is named: 1 for IR versions 1 and 2, as their specification says (they had no `opset_import`), and
    /// otherwise 0, which says that the model uses no standard operator.
    pub fn opset(&self) -> i64 {
        let standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
        self.proto
            .opset_import
            .iter()
            .filter(|set| standard(set.domain()))
            .map(proto::OperatorSetIdProto::version)
            .max()
            .unwrap_or(i64::from(self.proto.ir_version() < 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(ir_version: i64, sets: &[(Option<&str>, i64)]) -> Model {
        let set = |&(domain, version): &(Option<&str>, i64)| proto::OperatorSetIdProto {
            domain: domain.map(str::to_owned),
            version: Some(version),
        };
        let proto = proto::ModelProto {
            ir_version: Some(ir_version),
            opset_import: sets.iter().map(set).collect(),
            ..Default::default()
        };
        Model { proto }
    }

    #[test]
    fn the_standard_operator_set_is_found_under_its_names() {
        let other = (Some("com.microsoft"), 1);
        for standard in [(None, 17), (Some(""), 17), (Some("ai.onnx"), 17)] {
            assert_eq!(model(8, &[other, standard]).opset(), 17);
        }
        assert_eq!(model(8, &[other]).opset(), 0);
        assert_eq!(model(2, &[]).opset(), 1);
    }

    #[test]
    fn a_hand_made_model_has_an_empty_graph() {
        let mut model = model(8, &[]);
        assert!(model.graph().node.is_empty());
        model.graph_mut().name = Some("g".into());
        assert_eq!(model.graph().name(), "g");
    }
}
