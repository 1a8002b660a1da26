//! Calls of model-local functions, replaced by what the functions do.
//!
//! ```text
//! y = F<a = 2>(x)   with   F(u) → v = { t = Op<k = @a>(u); v = Op2(t) }
//!       becomes      N_t = Op<k = 2>(x);  y = Op2(N_t)              N: the call's node name
//! ```
//!
//! A function is a macro: its values live in a scope of their own, its attributes are parameters, and it may import
//! other operator sets than the model. So a call is expanded by renaming (`body`), and only where every operator of
//! the body means the same in the model's operator sets (`opsets`); otherwise it stays, with the reason.
//!
//! What the calls hand over and get keeps its names; what was inside of a function gets names that derive from the
//! call's. Nodes keep doc strings and metadata, and take over those of the call where they have none. Functions that
//! nothing calls any longer are removed. Source: the ONNX IR specification, section "Functions".

mod body;
mod opsets;

use std::collections::{BTreeMap, BTreeSet};

use super::functions::{Functions, Key, domain, full_name, key_of, label};
use super::names::Names;
use super::patch::{Patch, PatchError, apply};
use super::view::NodeId;
use crate::onnx::Model;
use crate::onnx::proto::{FunctionProto, NodeProto, OperatorSetIdProto, ValueInfoProto};

/// Where a call stands: the index of its node, after those of the calls (and of the nodes with subgraphs, each with the
/// number of the subgraph) that it is inside of.
pub type CallPath = Vec<usize>;

/// A call that was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlinedCall {
    /// The call's node name, or its first output's.
    pub node: String,
    /// `domain.name` of the function.
    pub function: String,
}

/// A call that was to be replaced and could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedCall {
    /// The call's node name, or its first output's.
    pub node: String,
    /// `domain.name` of the function.
    pub function: String,
    /// Why it was left alone.
    pub reason: String,
    /// The operators of its body and of the functions called there, standard domain only.
    pub operators: BTreeSet<String>,
}

/// What [`inline`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inlined {
    /// The calls that were replaced; nested ones come before those they were inside of.
    pub calls: Vec<InlinedCall>,
    /// The calls that stay although they were wanted.
    pub refused: Vec<RefusedCall>,
    /// For each value that a replaced call of the main graph computes, the innermost call it comes from.
    pub origin: BTreeMap<String, CallPath>,
}

/// Replaces every call of a model-local function for which `wanted` says so by the nodes of the function, in the main
/// graph and in its subgraphs. A call inside of a function's body is asked for only if that function's call is replaced.
///
/// # Errors
/// A defect of this module: the result would be no graph. The model is unchanged then.
pub fn inline(model: &mut Model, wanted: &dyn Fn(&[usize]) -> bool) -> Result<Inlined, PatchError> {
    if model.proto.functions.is_empty() {
        return Ok(Inlined::default());
    }
    let mut changed = model.clone();
    let called_before = called(model);
    let mut expansion = Expansion {
        functions: Functions::new(&model.proto.functions),
        imports: imports(&model.proto.opset_import),
        new_imports: BTreeMap::new(),
        wanted,
        names: Names::new(model),
        done: Inlined::default(),
        path: Vec::new(),
        stack: Vec::new(),
        infos: Vec::new(),
        subgraph_depth: 0,
    };
    let mut patches = Vec::new();
    for (index, node) in model.graph().node.iter().enumerate() {
        let (calls, id) = (expansion.done.calls.len(), NodeId(index));
        let mut nodes = Vec::new();
        expansion.node(index, node.clone(), &mut nodes);
        let Some(last) = expansion.done.calls.get(calls..).and_then(<[_]>::last) else {
            continue;
        };
        let mut patch = Patch::new(format!(
            "inline the call `{}` of function {}",
            last.node, last.function
        ));
        if expansion.functions.of(node).is_some() {
            for node in nodes {
                patch.insert_before(id, node);
            }
            patch.remove(id);
        } else {
            // The calls are in its subgraphs.
            nodes.into_iter().for_each(|n| patch.replace(id, n));
        }
        patches.push(patch);
    }
    let Expansion {
        done,
        infos,
        new_imports,
        ..
    } = expansion;
    if patches.is_empty() {
        return Ok(done);
    }
    apply(&mut changed, patches)?;
    let still_called = called(&changed);
    changed.proto.functions.retain(|f| {
        let key = key_of(f);
        !called_before.contains(&key) || still_called.contains(&key)
    });
    let defined: BTreeSet<String> = changed
        .graph()
        .node
        .iter()
        .flat_map(|n| n.output.iter().cloned())
        .collect();
    let stated: BTreeSet<String> = changed
        .graph()
        .value_info
        .iter()
        .chain(&changed.graph().output)
        .map(|i| i.name().to_owned())
        .collect();
    let new = |i: &ValueInfoProto| defined.contains(i.name()) && !stated.contains(i.name());
    changed
        .graph_mut()
        .value_info
        .extend(infos.into_iter().filter(new));
    for (domain, version) in new_imports {
        changed.proto.opset_import.push(OperatorSetIdProto {
            domain: Some(domain),
            version: Some(version),
        });
    }
    *model = changed;
    Ok(done)
}

/// The functions that the graphs of a model call, directly or not.
fn called(model: &Model) -> BTreeSet<Key> {
    let functions = Functions::new(&model.proto.functions);
    let mut seen = BTreeSet::new();
    let training = model.proto.training_info.iter();
    let graphs = training.flat_map(|t| t.initialization.iter().chain(&t.algorithm));
    for graph in graphs.chain([model.graph()]) {
        functions.walk(&graph.node, &mut seen, &mut |_| {});
    }
    seen
}

/// The version of each imported operator set; the standard one under `""`.
fn imports(sets: &[OperatorSetIdProto]) -> BTreeMap<String, i64> {
    let mut all = BTreeMap::new();
    for set in sets {
        let version = all.entry(domain(set.domain()).to_owned()).or_insert(0);
        *version = set.version().max(*version);
    }
    all
}

/// The state of one run over a model.
struct Expansion<'a, 'm> {
    functions: Functions<'m>,
    /// What the model imports.
    imports: BTreeMap<String, i64>,
    /// What inlined bodies import besides.
    new_imports: BTreeMap<String, i64>,
    wanted: &'a dyn Fn(&[usize]) -> bool,
    names: Names,
    done: Inlined,
    path: CallPath,
    /// The functions that are being expanded.
    stack: Vec<Key>,
    infos: Vec<ValueInfoProto>,
    subgraph_depth: usize,
}

impl Expansion<'_, '_> {
    /// Appends to `out` what becomes of a node, number `index` of its graph or function.
    fn node(&mut self, index: usize, mut node: NodeProto, out: &mut Vec<NodeProto>) {
        self.path.push(index);
        let function = self.functions.of(&node);
        match function.filter(|_| (self.wanted)(&self.path)) {
            None if function.is_some() => out.push(node),
            None => {
                let graphs = node
                    .attribute
                    .iter_mut()
                    .flat_map(|a| a.g.iter_mut().chain(&mut a.graphs));
                self.subgraph_depth += 1;
                for (number, graph) in graphs.enumerate() {
                    self.path.push(number);
                    let nodes = std::mem::take(&mut graph.node);
                    for (i, inner) in nodes.into_iter().enumerate() {
                        self.node(i, inner, &mut graph.node);
                    }
                    self.path.pop();
                }
                self.subgraph_depth -= 1;
                out.push(node);
            }
            Some(function) => match self.problem(function, &node) {
                Some(reason) => {
                    let refused = self.refused(function, &node, reason);
                    self.done.refused.push(refused);
                    out.push(node);
                }
                None => self.call(function, &node, out),
            },
        }
        self.path.pop();
    }

    fn call(&mut self, function: &FunctionProto, node: &NodeProto, out: &mut Vec<NodeProto>) {
        for (domain, version) in imports(&function.opset_import) {
            let used = opsets::domains(&function.node).contains(&domain);
            if used && !self.imports.contains_key(&domain) {
                self.imports.insert(domain.clone(), version);
                self.new_imports.insert(domain, version);
            }
        }
        let body = body::instantiate(function, node, &mut self.names);
        if self.subgraph_depth == 0 {
            self.infos.extend(body.infos);
            for value in body.nodes.iter().flat_map(|n| &n.output) {
                if !value.is_empty() {
                    self.done.origin.insert(value.clone(), self.path.clone());
                }
            }
        }
        self.stack.push(key_of(function));
        for (i, inner) in body.nodes.into_iter().enumerate() {
            self.node(i, inner, out);
        }
        self.stack.pop();
        self.done.calls.push(InlinedCall {
            node: label(node),
            function: full_name(function),
        });
    }

    /// Why this call cannot be replaced, if it cannot.
    fn problem(&self, function: &FunctionProto, node: &NodeProto) -> Option<String> {
        if self.stack.contains(&key_of(function)) {
            return Some("the function calls itself".to_owned());
        }
        body::problem(function, node).or_else(|| {
            let local = |node: &NodeProto| self.functions.of(node).is_some();
            let own = imports(&function.opset_import);
            opsets::problem(&function.node, &own, &self.imports, &local)
        })
    }

    fn refused(&self, function: &FunctionProto, node: &NodeProto, reason: String) -> RefusedCall {
        let mut operators = BTreeSet::new();
        let mut visit = |n: &NodeProto| {
            if domain(n.domain()).is_empty() {
                operators.insert(n.op_type().to_owned());
            }
        };
        // The function of the model, whose bodies outlive this call.
        if let Some(function) = self.functions.0.get(&key_of(function)) {
            self.functions
                .walk(&function.node, &mut BTreeSet::new(), &mut visit);
        }
        RefusedCall {
            node: label(node),
            function: full_name(function),
            reason,
            operators,
        }
    }
}
