//! A diff as JSON, for other programs; [`DiffReport`] reads it back.
//!
//! ```text
//! {
//!   "schema": 1,                            // raised when a key changes its meaning or goes
//!   "same": false,
//!   "summary": "36 weights: …",             // the first paragraph of the text
//!   "nodes": {"before": 298, "after": 432, "matched": 298},
//!   "bytes": {"before": …, "after": …},     // of initializers
//!   "changes": [{
//!     "sign": "added" | "removed" | "changed",
//!     "kind": "model" | "input" | "output" | "value_info" | "function" | "node" | "wiring" | "qdq" | "rotation"
//!           | "weight" | "constant" | "name" | "order",
//!     "block": "encoder.layer.0.attention", // "" for the model itself
//!     "op": "QuantizeLinear",               // "" where it is not about nodes
//!     "name": "…",                          // of the node, value or field
//!     "nodes": 2,                           // that the change stands for
//!     "text": "Q/DQ u8 scale=0.0312 …",     // the line of the text form, whole
//!     "details": ["…"],
//!     "before": {"type": "float[384]", "digest": "…", "min": …, "max": …, "bytes": …} or null,  // constants
//!     "after": the same,
//!     "largest_change": 0.011 or null,      // max |a − b|, dequantized
//!     "relative_change": 0.016 or null      // over the largest |a| or |b|
//!   }]
//! }
//! ```
//!
//! Numbers that JSON cannot hold (infinite) are null. Blocks that changed alike are not folded.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::change::{Change, Sign};
use super::constant::Facts;
use super::{Diff, Part};

/// The version of the schema above.
pub const SCHEMA_VERSION: u32 = 1;

/// A diff as data. Field names are the keys of the JSON form; the module's text has an example.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DiffReport {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// Whether there is no difference.
    pub same: bool,
    /// The first paragraph of the text form.
    pub summary: String,
    /// Nodes, those of subgraphs and functions included.
    pub nodes: NodeCounts,
    /// Bytes of the initializers.
    pub bytes: ByteCounts,
    /// Every change, in the order of the graphs.
    pub changes: Vec<ChangeReport>,
}

/// Nodes of both models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NodeCounts {
    /// Nodes of the first model.
    pub before: usize,
    /// Nodes of the second.
    pub after: usize,
    /// Nodes that are in both.
    pub matched: usize,
}

/// Bytes of both models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ByteCounts {
    /// Bytes of the first model.
    pub before: usize,
    /// Bytes of the second.
    pub after: usize,
}

/// One change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ChangeReport {
    /// "added", "removed" or "changed".
    pub sign: String,
    /// What changed: [`Kind::word`](super::Kind::word).
    pub kind: String,
    /// The block it is in; empty for the model itself.
    pub block: String,
    /// The operator; empty where it is not about nodes.
    pub op: String,
    /// Of the node, value or field.
    pub name: String,
    /// Nodes that the change stands for.
    pub nodes: usize,
    /// The line of the text form, whole.
    pub text: String,
    /// More lines.
    pub details: Vec<String>,
    /// The constants before and after; only where a change is about constants.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub constants: Option<ConstantChange>,
}

/// A constant before and after. Every key is needed: without them a change is not about constants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConstantChange {
    /// `None` if it was added.
    #[serde(deserialize_with = "Option::deserialize")]
    pub before: Option<ConstantFacts>,
    /// `None` if it was removed.
    #[serde(deserialize_with = "Option::deserialize")]
    pub after: Option<ConstantFacts>,
    /// max |a − b|, dequantized; `None` if they cannot be compared.
    #[serde(deserialize_with = "Option::deserialize")]
    pub largest_change: Option<f64>,
    /// The same over the largest |a| or |b|.
    #[serde(deserialize_with = "Option::deserialize")]
    pub relative_change: Option<f64>,
}

/// A constant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ConstantFacts {
    /// Type and shape, as `float[384]`.
    #[serde(rename = "type")]
    pub ty: String,
    /// [`Facts::digest`], in 16 hexadecimal digits.
    pub digest: String,
    /// Its smallest element; `None` for strings, complex numbers and empty tensors.
    pub min: Option<f64>,
    /// Its largest element.
    pub max: Option<f64>,
    /// Bytes of the elements.
    pub bytes: usize,
}

impl Diff {
    /// The whole diff as JSON: that of [`Diff::report`], with sorted keys.
    pub fn json(&self) -> Value {
        // Plain structures of strings and numbers, for which JSON has a form.
        serde_json::to_value(self.report()).unwrap_or_default()
    }

    /// The whole diff as data.
    pub fn report(&self) -> DiffReport {
        DiffReport {
            schema: SCHEMA_VERSION,
            same: self.is_empty(),
            summary: self.summary(),
            nodes: NodeCounts {
                before: self.nodes.0,
                after: self.nodes.1,
                matched: self.matched_nodes,
            },
            bytes: ByteCounts {
                before: self.bytes.0,
                after: self.bytes.1,
            },
            changes: self.changes().map(ChangeReport::from).collect(),
        }
    }
}

impl From<&Change> for ChangeReport {
    fn from(change: &Change) -> ChangeReport {
        let text = |parts: &Vec<Part>| -> String { parts.iter().map(|p| p.text()).collect() };
        let details = change.renames.iter().chain(&change.details);
        let sign = match change.sign {
            Sign::Added => "added",
            Sign::Removed => "removed",
            Sign::Changed => "changed",
        };
        let constants = change.constants.as_ref().map(|constants| ConstantChange {
            before: constants.before.as_ref().map(ConstantFacts::from),
            after: constants.after.as_ref().map(ConstantFacts::from),
            largest_change: constants.distance.map(|d| d.largest),
            relative_change: constants.distance.and_then(|d| d.relative),
        });
        ChangeReport {
            sign: sign.to_owned(),
            kind: change.kind.word().to_owned(),
            block: change.block.clone(),
            op: change.op.clone(),
            name: change.name.clone(),
            nodes: change.nodes,
            text: text(&change.line),
            details: details.map(text).collect(),
            constants,
        }
    }
}

impl From<&Facts> for ConstantFacts {
    fn from(facts: &Facts) -> ConstantFacts {
        ConstantFacts {
            ty: facts.ty.clone(),
            digest: format!("{:016x}", facts.digest),
            min: facts.range.map(|r| r.0),
            max: facts.range.map(|r| r.1),
            bytes: facts.bytes,
        }
    }
}
