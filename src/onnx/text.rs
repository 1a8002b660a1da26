//! A model as text, in ONNX's own syntax (`docs/Syntax.md` of the ONNX project), one node a line.
//!
//! ```text
//! <ir_version: 8, opset_import: ["" : 17]>
//! main (float[N, 4] x) => (float[N, 2] y)
//! <
//!   float[4, 2] w = {},  # 8 elements, -1.5 to 2.25, 5d0e3fa1c2b47a90
//!   float[2] b = {0.5, -1.0}
//! >
//! {
//!   [proj] p = MatMul (x, w)
//!   [bias] y = Add (p, b)
//! }
//! ```
//!
//! `onnx.parser.parse_model` reads it back. In [`TextOptions::FULL`] the model it gives has every node, attribute,
//! subgraph, function, type and element of this one; floats are written with as many digits as they need. The syntax
//! has no place for doc strings and metadata of graphs and nodes, for denotations, sharding and training graphs: they
//! are left out. What else it cannot hold is said in a comment at the end of the line: sparse initializers, lists of
//! tensors or graphs, names of symbolic lengths and of subgraphs that are no identifiers. (The parser of ONNX 1.20
//! also refuses float elements below 1.2e-38 and operators or attributes whose names are no identifiers.)
//!
//! [`TextOptions::SHORT`] elides weights: type, shape, range and a digest of the bytes (64-bit FNV-1a) stay.

mod words;

use std::fmt::Write;

use super::proto::attribute_proto::AttributeType;
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, StringStringEntryProto, TensorProto,
    ValueInfoProto,
};
use super::shown;
use super::{DataType, Model, tensor};
use words::{
    attribute_type, id, ids, is_held, is_identifier, is_word, join, literals, opsets, quoted,
    quoted_bytes, range, symbols,
};
pub(crate) use words::{bytes, digest, tensor_type, type_text};

/// How much of a model is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// The largest number of elements of a tensor that is written in full.
    pub max_elements: usize,
}

impl TextOptions {
    /// Every element.
    pub const FULL: TextOptions = TextOptions {
        max_elements: usize::MAX,
    };
    /// Tensors of up to eight elements; larger ones as type, shape, range and digest.
    pub const SHORT: TextOptions = TextOptions { max_elements: 8 };
}

/// The text of a model. The same model gives the same text, however its tensors are stored.
pub fn text(model: &Model, options: TextOptions) -> String {
    let proto = &model.proto;
    let mut writer = Writer {
        out: String::new(),
        notes: Vec::new(),
        options,
    };
    let mut header = vec![
        format!("ir_version: {}", proto.ir_version()),
        format!("opset_import: {}", opsets(&proto.opset_import)),
    ];
    let strings = [
        ("producer_name", &proto.producer_name),
        ("producer_version", &proto.producer_version),
        ("domain", &proto.domain),
        ("doc_string", &proto.doc_string),
    ];
    for (key, value) in strings {
        header.extend(value.as_ref().map(|v| format!("{key}: {}", quoted(v))));
    }
    header.extend(proto.model_version.map(|v| format!("model_version: {v}")));
    if !proto.metadata_props.is_empty() {
        let entry =
            |e: &StringStringEntryProto| format!("{}: {}", quoted(e.key()), quoted(e.value()));
        let entries = join(proto.metadata_props.iter().map(entry));
        header.push(format!("metadata_props: [{entries}]"));
    }
    let _ = writeln!(writer.out, "<{}>", header.join(", "));
    writer.graph(model.graph(), &id(model.graph().name()), 0);
    writer.end_line();
    for function in &proto.functions {
        writer.function(function);
    }
    writer.out
}

struct Writer {
    out: String,
    /// The comment at the end of the current line.
    notes: Vec<String>,
    options: TextOptions,
}

impl Writer {
    fn put(&mut self, text: impl AsRef<str>) {
        self.out.push_str(text.as_ref());
    }

    fn note(&mut self, note: String) {
        self.notes.push(shown(&note).into_owned());
    }

    fn end_line(&mut self) {
        if !self.notes.is_empty() {
            let notes = self.notes.join("; ");
            let _ = write!(self.out, "  # {notes}");
            self.notes.clear();
        }
        self.out.push('\n');
    }

    fn graph(&mut self, graph: &GraphProto, name: &str, depth: usize) {
        self.put(format!("{name} "));
        self.typed_list(&graph.input);
        self.put(" => ");
        self.typed_list(&graph.output);
        for sparse in &graph.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |v| v.name());
            self.note(format!("without the sparse initializer `{name}`"));
        }
        self.end_line();
        let indent = "  ".repeat(depth);
        let count = graph.initializer.len() + graph.value_info.len();
        if count > 0 {
            self.put(format!("{indent}<\n"));
            for (i, tensor) in graph.initializer.iter().enumerate() {
                let ty = tensor_type(tensor);
                self.put(format!("{indent}  {ty} {} = ", id(tensor.name())));
                self.elements(tensor);
                self.end_entry(i + 1 < count);
            }
            for (i, info) in graph.value_info.iter().enumerate() {
                self.put(format!("{indent}  "));
                self.value_info(info);
                self.end_entry(graph.initializer.len() + i + 1 < count);
            }
            self.put(format!("{indent}>\n"));
        }
        self.nodes(&graph.node, depth);
    }

    fn end_entry(&mut self, more: bool) {
        self.put(if more { "," } else { "" });
        self.end_line();
    }

    fn nodes(&mut self, nodes: &[NodeProto], depth: usize) {
        let indent = "  ".repeat(depth);
        self.put(format!("{indent}{{\n"));
        for node in nodes {
            self.put(format!("{indent}  "));
            self.node(node, depth + 1);
            self.end_line();
        }
        self.put(format!("{indent}}}"));
    }

    fn node(&mut self, node: &NodeProto, depth: usize) {
        if !node.name().is_empty() {
            self.put(format!("[{}] ", id(node.name())));
        }
        self.put(format!("{} = ", ids(&node.output)));
        if !node.domain().is_empty() {
            self.put(format!("{}.", shown(node.domain())));
        }
        self.put(shown(node.op_type()));
        if !node.overload().is_empty() {
            self.put(format!(":{}", shown(node.overload())));
        }
        // Subgraphs take lines of their own and are easier to read after the inputs.
        let inputs = format!(" ({})", ids(&node.input));
        let nested = super::node::subgraphs(node).next().is_some();
        if nested {
            self.put(&inputs);
        }
        let (held, lost): (Vec<_>, Vec<_>) = node.attribute.iter().partition(|a| is_held(a));
        for attribute in lost {
            let kind = attribute_type(attribute).as_str_name().to_lowercase();
            self.note(format!("without the {kind} `{}`", attribute.name()));
        }
        if !held.is_empty() {
            self.put(" <");
            for (i, attribute) in held.into_iter().enumerate() {
                self.put(if i > 0 { ", " } else { "" });
                self.attribute(attribute, depth);
            }
            self.put(">");
        }
        if !nested {
            self.put(&inputs);
        }
    }

    fn attribute(&mut self, attribute: &AttributeProto, depth: usize) {
        use AttributeType as Kind;
        let (name, kind) = (&*shown(attribute.name()), attribute_type(attribute));
        let kind_name = kind.as_str_name().to_lowercase();
        if !attribute.ref_attr_name().is_empty() {
            let reference = id(attribute.ref_attr_name());
            return self.put(format!("{name}: {kind_name} = @{reference}"));
        }
        let mut list = |elements: Vec<String>| {
            // Only the elements tell the parser the type, if there are any.
            let annotation = if elements.is_empty() {
                format!(": {kind_name}")
            } else {
                String::new()
            };
            let elements = elements.join(", ");
            self.put(format!("{name}{annotation} = [{elements}]"));
        };
        match kind {
            Kind::Ints => return list(attribute.ints.iter().map(i64::to_string).collect()),
            Kind::Floats => {
                return list(attribute.floats.iter().map(|x| format!("{x:?}")).collect());
            }
            Kind::Strings => {
                return list(attribute.strings.iter().map(|s| quoted_bytes(s)).collect());
            }
            Kind::Int => return self.put(format!("{name} = {}", attribute.i())),
            Kind::Float => return self.put(format!("{name} = {:?}", attribute.f())),
            Kind::String => return self.put(format!("{name} = {}", quoted_bytes(attribute.s()))),
            _ => {}
        }
        match (&attribute.t, &attribute.g, &attribute.tp) {
            (Some(tensor), ..) if kind == Kind::Tensor => {
                // The parser takes a quoted name here for the end of a type.
                let own = &*shown(tensor.name());
                let own = if is_identifier(own) { own } else { "" };
                let space = if own.is_empty() { "" } else { " " };
                self.put(format!("{name} = {}{space}{own} ", tensor_type(tensor)));
                self.elements(tensor);
            }
            (_, Some(graph), _) if kind == Kind::Graph => {
                // A quoted name would be a string here.
                let plain: String = graph
                    .name()
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
                    .collect();
                let plain = if is_identifier(&plain) {
                    plain
                } else {
                    format!("_{plain}")
                };
                if plain != graph.name() {
                    self.note(format!("the subgraph's name is `{}`", graph.name()));
                }
                self.put(format!("{name} = "));
                self.graph(graph, &plain, depth);
            }
            (.., Some(ty)) if kind == Kind::TypeProto => {
                let ty = type_text(ty).unwrap_or_default();
                self.put(format!("{name} = {ty}"));
            }
            _ => {}
        }
    }

    /// `{1.0, 2.0}`, or `{}` with a digest in the comment.
    fn elements(&mut self, tensor: &TensorProto) {
        if tensor::dtype(tensor) == Some(DataType::String) {
            let strings = tensor.string_data.iter().map(|s| quoted_bytes(s));
            return self.put(format!("{{{}}}", join(strings)));
        }
        let bytes = bytes(tensor);
        let count = tensor.dims.iter().fold(1, |n: i64, &d| n.saturating_mul(d));
        if usize::try_from(count).is_ok_and(|count| count <= self.options.max_elements) {
            return self.put(format!("{{{}}}", literals(tensor, &bytes).join(", ")));
        }
        let digest = digest(&bytes);
        let range = range(tensor).map_or(String::new(), |(min, max)| format!("{min} to {max}, "));
        self.note(format!("{count} elements, {range}{digest:016x}"));
        self.put("{}");
    }

    fn value_info(&mut self, info: &ValueInfoProto) {
        if let Some(ty) = &info.r#type {
            match type_text(ty) {
                Some(text) => self.put(format!("{text} ")),
                None => self.note(format!("without the type of `{}`", info.name())),
            }
            for symbol in symbols(ty).filter(|s| !is_word(s)) {
                self.note(format!("? is {symbol}"));
            }
        }
        self.put(id(info.name()));
    }

    fn typed_list(&mut self, infos: &[ValueInfoProto]) {
        self.put("(");
        for (i, info) in infos.iter().enumerate() {
            self.put(if i > 0 { ", " } else { "" });
            self.value_info(info);
        }
        self.put(")");
    }

    fn function(&mut self, function: &FunctionProto) {
        let mut header = vec![format!("opset_import: {}", opsets(&function.opset_import))];
        let strings = [
            ("domain", &function.domain),
            ("overload", &function.overload),
            ("doc_string", &function.doc_string),
        ];
        for (key, value) in strings {
            header.extend(value.as_ref().map(|v| format!("{key}: {}", quoted(v))));
        }
        self.put(format!("<{}>\n{} ", header.join(", "), id(function.name())));
        if function.attribute.len() + function.attribute_proto.len() > 0 {
            self.put(format!("<{}", ids(&function.attribute)));
            for (i, attribute) in function.attribute_proto.iter().enumerate() {
                let first = i == 0 && function.attribute.is_empty();
                self.put(if first { "" } else { ", " });
                self.attribute(attribute, 0);
            }
            self.put("> ");
        }
        let (inputs, outputs) = (ids(&function.input), ids(&function.output));
        self.put(format!("({inputs}) => ({outputs})"));
        self.end_line();
        if !function.value_info.is_empty() {
            self.put("<\n");
            for (i, info) in function.value_info.iter().enumerate() {
                self.put("  ");
                self.value_info(info);
                self.end_entry(i + 1 < function.value_info.len());
            }
            self.put(">\n");
        }
        self.nodes(&function.node, 0);
        self.end_line();
    }
}
