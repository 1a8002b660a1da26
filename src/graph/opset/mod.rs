//! Raising a model to a newer standard operator set without changing what it computes.
//!
//! ```text
//! each graph and function ─ table (what changed since) ─▶ convert (one function per change) ─▶ edits ─▶ model
//! ```
//!
//! Per-axis DequantizeLinear exists from version 13 on, so older models are raised to it; DequantizeLinear with blocks
//! and the types of 4 bits exist from version 21 on, so models whose weights are stored that way are raised to it.
//! [`table`] knows in which versions each operator changed, `convert` rewrites a node for one such change or refuses,
//! `facts` finds the ranks and types that some conversions need. Nothing is guessed: a node that cannot be raised exactly
//! stops it all.

mod convert;
mod facts;
pub mod table;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use thiserror::Error;

use super::names::Names;
use super::patch::{Patch, PatchError, apply, set_opset};
use super::view::{NodeId, is_standard_domain};
use crate::onnx::Model;
use crate::onnx::node::{make_node, subgraphs, tensor_attr};
use crate::onnx::op;
use crate::onnx::proto::{FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto};
use convert::Rewrite;
use facts::Facts;
use table::{Operator, Rule, operator};

/// The oldest version that can be raised. Before it, broadcasting was an attribute of each operator.
pub const OLDEST: i64 = 7;

/// What a model is raised to at least, if it is raised at all.
pub const TARGET: i64 = 13;

/// The newest version that can be reached.
pub const NEWEST_TARGET: i64 = 21;

/// The first IR version that knows an operator set.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..15 => 7,
        15..19 => 8,
        19..21 => 9,
        _ => 10,
    }
}

/// Why a model was not raised; it is unchanged then.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpsetError {
    /// A version that this module knows nothing about was asked for.
    #[error(
        "operator sets above {NEWEST_TARGET} cannot be reached by conversion, and {minimum} is needed: export the model again with opset {minimum}"
    )]
    Target {
        /// What was asked for.
        minimum: i64,
    },
    /// The model or a function is older than [`OLDEST`].
    #[error(
        "{place} uses opset {found}, and {OLDEST} is the oldest that can be raised: export the model again with opset {to} or later"
    )]
    TooOld {
        /// "the model" or the function.
        place: String,
        /// Its version; 0 if it names none and yet uses standard operators.
        found: i64,
        /// The version that was to be reached.
        to: i64,
    },
    /// A node whose operator does not exist in its version.
    #[error(
        "node `{node}`{place}: ONNX has no operator `{op}` in opset {from}, so its meaning in opset {to} is unknown: export the model again with opset {to} or later"
    )]
    UnknownOperator {
        /// Its name, or its first output's.
        node: String,
        /// Where it is, as a clause; empty for the main graph.
        place: String,
        /// Its operator.
        op: String,
        /// The model's or function's version.
        from: i64,
        /// The version that was to be reached.
        to: i64,
    },
    /// A node that has no exact counterpart.
    #[error(
        "node `{node}`{place}: {op} cannot be raised from opset {from} to {to}, because {op} changed in version {version}: {reason}; export the model again with opset {to} or later"
    )]
    Refused {
        /// Its name, or its first output's.
        node: String,
        /// Where it is, as a clause; empty for the main graph.
        place: String,
        /// Its operator.
        op: String,
        /// The model's or function's version.
        from: i64,
        /// The version that was to be reached.
        to: i64,
        /// The version of the change that stands in the way.
        version: i64,
        /// What about it cannot be kept.
        reason: String,
    },
    /// Training graphs share the model's operator set, and would change their meaning with it.
    #[error(
        "the model carries training graphs, which cannot be raised from opset {from}: export the model for inference, with opset {to} or later"
    )]
    Training {
        /// The model's version.
        from: i64,
        /// The version that was to be reached.
        to: i64,
    },
    /// A defect of a conversion.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raised {
    /// The model's version before.
    pub from: i64,
    /// The model's version now; equal to `from` if nothing had to be done for the main graph.
    pub to: i64,
    /// Nodes that got another form, as `operator name`, main graph first and then functions.
    pub rewritten: Vec<String>,
    /// Functions with an operator set of their own that were raised.
    pub functions: Vec<String>,
}

/// Raises the standard operator set of `model`, and of each of its functions, to `minimum` where it is below it, and then
/// at least to [`TARGET`].
///
/// Every node keeps its name, place, doc string and metadata; new nodes and constants have names that derive from the
/// node's. The IR version becomes at least the first
/// that knows the operator set: 7 for version 13, 10 for version 21.
///
/// # Errors
/// [`OpsetError`] names the node that cannot be raised; the model is unchanged then.
pub fn raise(model: &mut Model, minimum: i64) -> Result<Raised, OpsetError> {
    let from = model.opset();
    let is_old = |f: &FunctionProto| version(&f.opset_import).unwrap_or(from) < minimum;
    let mut report = Raised {
        from,
        to: from,
        ..Raised::default()
    };
    if from >= minimum && !model.proto.functions.iter().any(is_old) {
        return Ok(report);
    }
    if minimum > NEWEST_TARGET {
        return Err(OpsetError::Target { minimum });
    }
    let to = minimum.max(TARGET);
    if from < minimum && !model.proto.training_info.is_empty() {
        return Err(OpsetError::Training { from, to });
    }
    let mut scope = Scope {
        from,
        to,
        place: String::new(),
        overridable: model.proto.ir_version() >= 4,
        in_function: false,
        functions: own_functions(&model.proto.functions),
        read: HashSet::new(),
        names: Names::new(model),
        rewritten: Vec::new(),
    };
    let mut changed = model.clone();
    if from < minimum {
        scope.raise_main(&mut changed)?;
        report.to = to;
    }
    for function in changed.proto.functions.iter_mut() {
        if is_old(function) {
            scope.raise_function(function, from)?;
            report.functions.push(function.name().to_owned());
        }
    }
    report.rewritten = scope.rewritten;
    *model = changed;
    Ok(report)
}

/// The version of the standard operator set in a list of imports.
fn version(imports: &[OperatorSetIdProto]) -> Option<i64> {
    let standard = imports
        .iter()
        .filter(|o| matches!(o.domain(), "" | "ai.onnx"));
    standard.map(OperatorSetIdProto::version).max()
}

/// The names of functions in the standard domain: there they hide the operator of that name.
fn own_functions(functions: &[FunctionProto]) -> HashSet<String> {
    let standard = functions
        .iter()
        .filter(|f| matches!(f.domain(), "" | "ai.onnx"));
    standard.map(|f| f.name().to_owned()).collect()
}

/// One changed node and what comes with it.
struct Edit {
    /// Its place in the list of nodes.
    index: usize,
    before: Vec<NodeProto>,
    node: NodeProto,
    after: Vec<NodeProto>,
    /// Tensors that the node reads, under new names.
    constants: Vec<TensorProto>,
    /// Outputs that the node has no more; nothing reads them.
    dropped: Vec<String>,
}

/// The main graph or a function on its way.
struct Scope {
    from: i64,
    to: i64,
    /// Where in the model, as a clause for messages.
    place: String,
    /// Whether an initializer that is listed as an input is only a default.
    overridable: bool,
    in_function: bool,
    functions: HashSet<String>,
    /// Every name that something reads, at any depth.
    read: HashSet<String>,
    names: Names,
    rewritten: Vec<String>,
}

impl Scope {
    fn raise_main(&mut self, model: &mut Model) -> Result<(), OpsetError> {
        let graph = model.graph();
        self.check_age("the model", graph.node.iter().any(is_standard_domain))?;
        self.collect_reads(&graph.node);
        self.read
            .extend(graph.output.iter().map(|o| o.name().to_owned()));
        let mut facts = Facts::default();
        facts.add_graph(graph, self.overridable);
        let edits = self.edits(&graph.node, &facts)?;
        let mut patches = Vec::new();
        let mut dropped = Vec::new();
        for edit in edits {
            let reason = format!(
                "raise {} from opset {} to {}",
                edit.node.op_type(),
                self.from,
                self.to
            );
            let (id, mut patch) = (NodeId(edit.index), Patch::new(reason));
            edit.before
                .into_iter()
                .for_each(|n| patch.insert_before(id, n));
            edit.after
                .into_iter()
                .for_each(|n| patch.insert_after(id, n));
            edit.constants
                .into_iter()
                .for_each(|t| patch.add_initializer(t));
            patch.replace(id, edit.node);
            patches.push(patch);
            dropped.extend(edit.dropped);
        }
        apply(model, patches)?;
        model
            .graph_mut()
            .value_info
            .retain(|i| !dropped.iter().any(|d| d == i.name()));
        set_opset(model, self.to, ir_version(self.to));
        Ok(())
    }

    /// `from` of the model counts for a function that does not say its own.
    fn raise_function(
        &mut self,
        function: &mut FunctionProto,
        from: i64,
    ) -> Result<(), OpsetError> {
        self.from = version(&function.opset_import).unwrap_or(from);
        self.place = format!(" in function `{}`", function.name());
        self.in_function = true;
        self.check_age(
            &format!("function `{}`", function.name()),
            function.node.iter().any(is_standard_domain),
        )?;
        self.read = function.output.iter().cloned().collect();
        self.collect_reads(&function.node);
        let mut facts = Facts::default();
        facts.add_nodes(&function.node);
        let edits = self.edits(&function.node, &facts)?;
        let dropped = self.splice(&mut function.node, &mut Vec::new(), edits);
        function
            .value_info
            .retain(|i| !dropped.iter().any(|d| d == i.name()));
        let to = self.to;
        let standard = |o: &&mut OperatorSetIdProto| matches!(o.domain(), "" | "ai.onnx");
        function
            .opset_import
            .iter_mut()
            .filter(standard)
            .for_each(|o| o.version = Some(to));
        Ok(())
    }

    fn check_age(&self, place: &str, uses_standard_operators: bool) -> Result<(), OpsetError> {
        if self.from < OLDEST && uses_standard_operators {
            return Err(OpsetError::TooOld {
                place: place.to_owned(),
                found: self.from,
                to: self.to,
            });
        }
        Ok(())
    }

    fn collect_reads(&mut self, nodes: &[NodeProto]) {
        for node in nodes {
            self.read.extend(node.input.iter().cloned());
            for graph in subgraphs(node) {
                self.read
                    .extend(graph.output.iter().map(|o| o.name().to_owned()));
                self.collect_reads(&graph.node);
            }
        }
    }

    /// The nodes that change, in order.
    fn edits(&mut self, nodes: &[NodeProto], facts: &Facts) -> Result<Vec<Edit>, OpsetError> {
        let mut edits = Vec::new();
        for (index, original) in nodes.iter().enumerate() {
            let mut edit = self.raise_node(index, original, facts)?;
            let place = self.place.clone();
            for attribute in &mut edit.node.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.place = format!(" in a subgraph of `{}`{place}", label(original));
                    self.raise_subgraph(graph, facts)?;
                }
            }
            self.place = place;
            if edit.node != *original {
                edits.push(edit);
            }
        }
        Ok(edits)
    }

    fn raise_subgraph(&mut self, graph: &mut GraphProto, outer: &Facts) -> Result<(), OpsetError> {
        let mut facts = outer.clone();
        facts.add_graph(graph, self.overridable);
        let edits = self.edits(&graph.node, &facts)?;
        let dropped = self.splice(&mut graph.node, &mut graph.initializer, edits);
        graph
            .value_info
            .retain(|i| !dropped.iter().any(|d| d == i.name()));
        Ok(())
    }

    /// Carries out edits on a list of nodes; says which values are gone.
    fn splice(
        &self,
        nodes: &mut Vec<NodeProto>,
        initializers: &mut Vec<TensorProto>,
        edits: Vec<Edit>,
    ) -> Vec<String> {
        let mut dropped = Vec::new();
        let mut edits = edits.into_iter().peekable();
        for (index, node) in std::mem::take(nodes).into_iter().enumerate() {
            let Some(edit) = edits.next_if(|e| e.index == index) else {
                nodes.push(node);
                continue;
            };
            if self.in_function {
                // A function has no initializers, and the subgraphs in it follow suit.
                nodes.extend(edit.constants.into_iter().map(constant_node));
            } else {
                initializers.extend(edit.constants);
            }
            nodes.extend(edit.before);
            nodes.push(edit.node);
            nodes.extend(edit.after);
            dropped.extend(edit.dropped);
        }
        dropped
    }

    fn raise_node(
        &mut self,
        index: usize,
        node: &NodeProto,
        facts: &Facts,
    ) -> Result<Edit, OpsetError> {
        let op = node.op_type();
        let mut edit = Edit {
            index,
            before: Vec::new(),
            node: node.clone(),
            after: Vec::new(),
            constants: Vec::new(),
            dropped: Vec::new(),
        };
        if !is_standard_domain(node) || self.functions.contains(op) {
            return Ok(edit);
        }
        let unknown = || OpsetError::UnknownOperator {
            node: label(node).to_owned(),
            place: self.place.clone(),
            op: op.to_owned(),
            from: self.from,
            to: self.to,
        };
        let operator = operator(op)
            .filter(|o| o.first <= self.from)
            .ok_or_else(unknown)?;
        edit = self.follow(operator, self.from, edit, node, facts)?;
        if edit.node.op_type() != op
            && let Some(renamed) = table::operator(edit.node.op_type())
        {
            // A conversion to another operator writes that one's form of version 13.
            edit = self.follow(renamed, TARGET.max(self.from), edit, node, facts)?;
        }
        if edit.node != *node {
            self.rewritten.push(format!("{op} {}", label(node)));
        }
        Ok(edit)
    }

    /// Carries out the rules of one operator for the versions after `done`.
    fn follow(
        &mut self,
        operator: &Operator,
        done: i64,
        mut edit: Edit,
        original: &NodeProto,
        facts: &Facts,
    ) -> Result<Edit, OpsetError> {
        let to = self.to;
        let due = |version: i64| done < version && version <= to;
        for (version, rule) in operator.rules.iter().filter(|(version, _)| due(*version)) {
            let refused = |reason: String| OpsetError::Refused {
                node: label(original).to_owned(),
                place: self.place.clone(),
                op: original.op_type().to_owned(),
                from: self.from,
                to,
                version: *version,
                reason,
            };
            let convert = match rule {
                Rule::Convert(convert) => convert,
                Rule::Refuse(reason) => return Err(refused((*reason).to_owned())),
            };
            let mut rewrite = Rewrite {
                edit,
                facts,
                names: &mut self.names,
                read: &self.read,
            };
            convert(&mut rewrite).map_err(refused)?;
            edit = rewrite.edit;
        }
        Ok(edit)
    }
}

fn constant_node(mut tensor: TensorProto) -> NodeProto {
    let name = tensor.name.take().unwrap_or_default();
    make_node(
        op::Constant,
        &name,
        &[],
        &[&name],
        vec![tensor_attr("value", tensor)],
    )
}

/// The node's name, or its first output's where it has none.
fn label(node: &NodeProto) -> &str {
    match node.name() {
        "" => node
            .output
            .iter()
            .find(|o| !o.is_empty())
            .map_or("(unnamed)", |o| o.as_str()),
        name => name,
    }
}
