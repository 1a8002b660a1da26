//! Whether a runtime will take a file, understand it, and run it in integers: before a device finds out.
//!
//! ```text
//! model ── scopes: main graph, subgraphs, calls of functions opened ── facts: Q/DQ pairs, products ── rules ── findings
//! ```
//!
//! A rule is a row of data ([`Rule`]: what it costs, in which runtime and version that was measured, how to mend it) and
//! one function that finds it in a `Scope`. `tests/python/test_lint_rules.py` holds a file for each rule that breaks
//! it, and its mended twin, and shows on the runtime itself that the first is rejected, misread or run in float and the
//! second is not.

mod facts;
mod onnxruntime;
mod openvino;
mod operators;
mod rotation;
mod sarif;
mod scope;
mod tensorrt;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Target;
use crate::onnx::Model;
pub use sarif::{Checked, sarif};
use scope::{Scope, scopes};

/// What a broken rule costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Cost {
    /// The runtime refuses the file, at loading or at the first run.
    Rejected,
    /// The runtime takes the file and computes something else.
    Wrong,
    /// A quantized product is computed in float.
    Float,
    /// Slower than it could be.
    Slow,
    /// The same speed with a larger error.
    Inaccurate,
}

impl Cost {
    /// Every cost, the gravest first.
    pub const ALL: [Cost; 5] = [
        Cost::Rejected,
        Cost::Wrong,
        Cost::Float,
        Cost::Slow,
        Cost::Inaccurate,
    ];

    /// Whether the file must not be used on that runtime as it is.
    pub fn is_fatal(self) -> bool {
        matches!(self, Cost::Rejected | Cost::Wrong)
    }

    /// In words, as in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Cost::Rejected => "rejected",
            Cost::Wrong => "wrong",
            Cost::Float => "float",
            Cost::Slow => "slow",
            Cost::Inaccurate => "inaccurate",
        }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a rule is about; it decides whose mistake a finding in our own output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Subject {
    /// QuantizeLinear, DequantizeLinear and the products between them.
    Quantization,
    /// Operators, types and modes that the runtime does not have.
    #[default]
    Graph,
}

/// One rule.
pub struct Rule {
    /// Its identity in messages and in the JSON: `T1-zero-point`.
    pub id: &'static str,
    /// What it asks for, in a few words.
    pub title: &'static str,
    /// What breaking it costs, unless a finding says otherwise.
    pub cost: Cost,
    /// What it is about.
    pub subject: Subject,
    /// The runtime and version in which this was measured, and the document that says so, if one does.
    pub source: &'static str,
    /// What to do about a finding.
    pub mend: &'static str,
    find: fn(&Scope, &mut Hits),
}

/// One place where a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// [`Rule::id`].
    pub rule: String,
    /// What it costs.
    pub cost: Cost,
    /// The node's name, or that of its first output; where it is inside of a subgraph, after the names of the nodes
    /// that own it. Empty where the finding is about no node.
    pub node: String,
    /// The node's operator.
    pub operator: String,
    /// What is wrong.
    pub message: String,
    /// [`Rule::mend`].
    pub mend: String,
    /// [`Rule::source`].
    pub source: String,
    /// [`Rule::subject`].
    #[serde(default)]
    pub subject: Subject,
}

/// The findings of one rule in one scope.
struct Hits<'a, 'm> {
    rule: &'a Rule,
    scope: &'a Scope<'m>,
    findings: &'a mut Vec<Finding>,
}

impl Hits<'_, '_> {
    /// A finding at `node`. Nodes that are only the surroundings of the scope have their own.
    fn at(&mut self, node: crate::graph::NodeId, message: impl Into<String>) {
        self.costs(self.rule.cost, node, message);
    }

    /// A finding whose cost is not the usual one.
    fn costs(&mut self, cost: Cost, node: crate::graph::NodeId, message: impl Into<String>) {
        if self.scope.owns(node) {
            let view = &self.scope.view;
            let name = format!("{}{}", self.scope.place, view.node_name(node));
            let operator = view.node(node).op_type().to_owned();
            self.push(cost, name, operator, message.into());
        }
    }

    /// A finding about an input or initializer.
    fn value(&mut self, name: &str, message: impl Into<String>) {
        let name = format!("{}{name}", self.scope.place);
        self.push(self.rule.cost, name, String::new(), message.into());
    }

    fn push(&mut self, cost: Cost, node: String, operator: String, message: String) {
        self.findings.push(Finding {
            rule: self.rule.id.to_owned(),
            cost,
            node,
            operator,
            message,
            mend: self.rule.mend.to_owned(),
            source: self.rule.source.to_owned(),
            subject: self.rule.subject,
        });
    }
}

/// The rules of a target; of [`Target::Portable`] those of all three runtimes.
pub fn rules(target: Target) -> Vec<&'static Rule> {
    let tables: &[&'static [Rule]] = match target {
        Target::Ort => &[onnxruntime::RULES],
        Target::Tensorrt => &[tensorrt::RULES],
        Target::Openvino => &[openvino::RULES],
        Target::Portable => &[onnxruntime::RULES, tensorrt::RULES, openvino::RULES],
    };
    tables.iter().flat_map(|table| table.iter()).collect()
}

/// Checks `model`, whoever wrote it, against the rules of `target`: rule by rule in the order of their table, within a
/// rule in the order of the graph.
///
/// Calls of model-local functions are opened first, as the runtimes do; one that cannot be is looked at as an operator
/// like any other. What cannot be known from the file (a shape, a scale that the caller gives) is no finding.
///
/// ```
/// use onnx_osplus::onnx::{self, LoadError};
/// use onnx_osplus::target::{Target, lint::lint};
///
/// let model = onnx::load("models/tiny/model.onnx")?;
/// let fatal = lint(&model, Target::Portable).into_iter().find(|f| f.cost.is_fatal());
/// assert_eq!(fatal, None);
/// # Ok::<(), LoadError>(())
/// ```
pub fn lint(model: &Model, target: Target) -> Vec<Finding> {
    let mut findings = Vec::new();
    let graphs = scopes(model);
    let scopes: Vec<Scope> = graphs.iter().map(Scope::new).collect();
    for rule in rules(target) {
        for scope in &scopes {
            (rule.find)(
                scope,
                &mut Hits {
                    rule,
                    scope,
                    findings: &mut findings,
                },
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests;
