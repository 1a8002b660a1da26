//! What one change is: the entry of the list that text, counts and JSON are made from.

use super::constant::{Distance, Facts};
use super::number;

/// Whether something came, went, or is otherwise now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// Only in B.
    Added,
    /// Only in A.
    Removed,
    /// In both.
    Changed,
}

/// What changed; [`Kind::word`] is its name in the JSON form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Operator sets, versions, metadata and the like of the model, a function or a graph.
    Model,
    /// An input of a graph.
    Input,
    /// An output of a graph.
    Output,
    /// A stated type of a value inside.
    ValueInfo,
    /// A model-local function.
    Function,
    /// A node, or a chain of nodes that do one thing.
    Node,
    /// Where a node reads from.
    Wiring,
    /// QuantizeLinear and DequantizeLinear, one after the other.
    Qdq,
    /// A rotation before Linears: Reshape, MatMul, MatMul, Reshape.
    Rotation,
    /// A constant that is stored in another form: quantized or not.
    Weight,
    /// The elements, type or shape of a constant.
    Constant,
    /// A name alone.
    Name,
    /// The order in which things are stored.
    Order,
}

impl Kind {
    /// The name of the kind in the JSON form.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Input => "input",
            Kind::Output => "output",
            Kind::ValueInfo => "value_info",
            Kind::Function => "function",
            Kind::Node => "node",
            Kind::Wiring => "wiring",
            Kind::Qdq => "qdq",
            Kind::Rotation => "rotation",
            Kind::Weight => "weight",
            Kind::Constant => "constant",
            Kind::Name => "name",
            Kind::Order => "order",
        }
    }
}

/// A part of a line. Blocks that changed alike have the same parts, but for numbers and digests.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Words that are the same in blocks that changed alike.
    Word(String),
    /// The name of a node or value; may be shortened in the middle.
    Name(String),
    /// A number; over several blocks the smallest and the largest.
    Number(f64, f64),
    /// Smallest and largest element; over several blocks of all of them.
    Range(f64, f64),
    /// A digest; left out where several blocks have different ones.
    Digest(Option<u64>),
}

impl Part {
    /// A number.
    pub fn number(value: f64) -> Part {
        Part::Number(value, value)
    }

    /// As it is written.
    pub fn text(&self) -> String {
        match self {
            Part::Word(text) | Part::Name(text) => text.clone(),
            Part::Number(a, b) if number(*a) == number(*b) => number(*a),
            Part::Number(a, b) => format!("{}–{}", number(*a), number(*b)),
            Part::Range(a, b) if number(*a) == number(*b) => number(*a),
            Part::Range(a, b) => format!("{}..{}", number(*a), number(*b)),
            Part::Digest(Some(digest)) => format!("{digest:016x}"),
            Part::Digest(None) => "(digests differ)".to_owned(),
        }
    }
}

/// A constant before and after.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Constants {
    /// In A.
    pub before: Option<Facts>,
    /// In B.
    pub after: Option<Facts>,
    /// How far B, dequantized, is from A.
    pub distance: Option<Distance>,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// Came, went, or otherwise.
    pub sign: Sign,
    /// What.
    pub kind: Kind,
    /// The block it belongs to; empty for the model itself.
    pub block: String,
    /// The operator, for nodes.
    pub op: String,
    /// The name of the node, value or field.
    pub name: String,
    /// How many nodes it stands for.
    pub nodes: usize,
    /// The line without its sign.
    pub line: Vec<Part>,
    /// More lines beneath.
    pub details: Vec<Vec<Part>>,
    /// New names of a node and its outputs; shown where there is nothing else, with [`Style::full`](super::Style::full), and in JSON.
    pub renames: Vec<Vec<Part>>,
    /// Facts about the constant it is about.
    pub constants: Option<Constants>,
    /// Follows from another change or is of no account to a reader; shown with [`Style::full`](super::Style::full) only and counted
    /// otherwise.
    pub minor: bool,
    /// Only says again what another change does: a value got a new name because new nodes give another its old one.
    pub echo: bool,
    /// Which constants are still to be read for it.
    pub(super) job: Option<usize>,
}

impl Change {
    pub(super) fn new(sign: Sign, kind: Kind, name: &str, line: Vec<Part>) -> Change {
        Change {
            sign,
            kind,
            block: String::new(),
            op: String::new(),
            name: name.to_owned(),
            nodes: 0,
            line,
            details: Vec::new(),
            renames: Vec::new(),
            constants: None,
            minor: false,
            echo: false,
            job: None,
        }
    }
}

/// A word of a line.
pub(super) fn word(text: impl Into<String>) -> Part {
    Part::Word(text.into())
}

/// A name in a line.
pub(super) fn name(text: impl Into<String>) -> Part {
    Part::Name(text.into())
}

/// `min..max`, or one number.
pub(super) fn range_parts(range: Option<(f64, f64)>) -> Vec<Part> {
    match range {
        Some((min, max)) => vec![Part::Range(min, max)],
        None => vec![word("–")],
    }
}
