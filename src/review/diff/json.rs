//! A diff as JSON, for other programs.
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
//!     "kind": "model" | "input" | "output" | "value_info" | "function" | "node" | "wiring" | "qdq" | "weight"
//!           | "constant" | "name" | "order",
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

use serde_json::{Value, json};

use super::Diff;
use super::change::{Change, Sign};
use super::constant::Facts;

/// The version of the schema above.
pub const SCHEMA_VERSION: u32 = 1;

impl Diff {
    /// The whole diff as JSON; the module's text has the schema.
    pub fn json(&self) -> Value {
        let changes: Vec<Value> = self.changes().map(change).collect();
        json!({
            "schema": SCHEMA_VERSION,
            "same": self.is_empty(),
            "summary": self.summary(),
            "nodes": {"before": self.nodes.0, "after": self.nodes.1, "matched": self.matched_nodes},
            "bytes": {"before": self.bytes.0, "after": self.bytes.1},
            "changes": changes,
        })
    }
}

fn change(change: &Change) -> Value {
    let text = |parts: &Vec<super::Part>| -> String { parts.iter().map(|p| p.text()).collect() };
    let details: Vec<String> = change
        .renames
        .iter()
        .chain(&change.details)
        .map(text)
        .collect();
    let sign = match change.sign {
        Sign::Added => "added",
        Sign::Removed => "removed",
        Sign::Changed => "changed",
    };
    let facts = |facts: Option<&Facts>| {
        facts.map_or(Value::Null, |f| {
            json!({
                "type": f.ty,
                "digest": format!("{:016x}", f.digest),
                "min": f.range.map(|r| r.0),
                "max": f.range.map(|r| r.1),
                "bytes": f.bytes,
            })
        })
    };
    let mut value = json!({
        "sign": sign,
        "kind": change.kind.word(),
        "block": change.block,
        "op": change.op,
        "name": change.name,
        "nodes": change.nodes,
        "text": text(&change.line),
        "details": details,
    });
    if let (Some(constants), Value::Object(map)) = (&change.constants, &mut value) {
        map.insert("before".to_owned(), facts(constants.before.as_ref()));
        map.insert("after".to_owned(), facts(constants.after.as_ref()));
        let distance = constants.distance;
        map.insert(
            "largest_change".to_owned(),
            json!(distance.map(|d| d.largest)),
        );
        map.insert(
            "relative_change".to_owned(),
            json!(distance.and_then(|d| d.relative)),
        );
    }
    value
}
