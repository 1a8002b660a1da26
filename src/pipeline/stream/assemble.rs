//! Parts put back into the whole model.
//!
//! A node of the whole model stays where it was; what a part has inserted stands in front of the node of the whole model that
//! follows it there. Names that two parts have made alike, or that the whole model has elsewhere, are told apart.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::graph::{self, Names};
use crate::onnx::Model;
use crate::onnx::node::subgraphs_mut;
use crate::onnx::proto::{NodeProto, TensorProto};

/// A part's result, and the nodes of the whole model that the part had.
pub(super) struct Outcome<'a> {
    pub nodes: &'a [usize],
    /// Nodes of other parts that it has too.
    pub borrowed: &'a [usize],
    pub model: Model,
}

/// The whole model with `results` in the place of the parts.
///
/// # Errors
/// The outcome is no valid graph, which is a defect of this tool.
pub(super) fn assemble(whole: &Model, results: Vec<Outcome>) -> Result<Model, Error> {
    let mut assembly = Assembly::new(whole);
    for (number, result) in results.into_iter().enumerate() {
        assembly.add(number, result);
    }
    let model = assembly.finish();
    graph::check(&model)?;
    Ok(model)
}

/// Where a node stands: before which node of the whole model, and after which others that stand there too.
type Place = (usize, bool, usize, usize);

struct Assembly<'a> {
    whole: &'a Model,
    names: Names,
    /// Position in the whole model, by the name of the first output.
    at: BTreeMap<&'a str, usize>,
    nodes: BTreeMap<Place, NodeProto>,
    /// Nodes of the whole model that a part with a result has, and those that are placed.
    covered: BTreeSet<usize>,
    placed: BTreeSet<usize>,
    constants: Vec<TensorProto>,
    /// Constants of the whole model, by name, and those that parts have made.
    known: BTreeMap<String, TensorProto>,
    opsets: Vec<(String, i64)>,
    ir_version: i64,
}

fn key(node: &NodeProto) -> &str {
    node.output
        .iter()
        .find(|o| !o.is_empty())
        .map_or("", String::as_str)
}

impl<'a> Assembly<'a> {
    fn new(whole: &'a Model) -> Self {
        let graph = whole.graph();
        let at = graph
            .node
            .iter()
            .enumerate()
            .map(|(i, node)| (key(node), i));
        let known = graph
            .initializer
            .iter()
            .map(|t| (t.name().to_owned(), t.clone()));
        Assembly {
            whole,
            names: Names::new(whole),
            at: at.collect(),
            nodes: BTreeMap::new(),
            covered: BTreeSet::new(),
            placed: BTreeSet::new(),
            constants: Vec::new(),
            known: known.collect(),
            opsets: Vec::new(),
            ir_version: whole.proto.ir_version.unwrap_or(0),
        }
    }

    fn add(&mut self, number: usize, result: Outcome) {
        let mut own: BTreeSet<String> = BTreeSet::new();
        let nodes = &self.whole.graph().node;
        for &i in result.nodes.iter().chain(result.borrowed) {
            own.extend(nodes[i].output.iter().chain(&nodes[i].input).cloned());
        }
        self.covered.extend(result.nodes);
        let proto = result.model.proto;
        self.ir_version = self.ir_version.max(proto.ir_version.unwrap_or(0));
        for import in proto.opset_import {
            self.opsets
                .push((import.domain().to_owned(), import.version()));
        }
        let graph = proto.graph.unwrap_or_default();
        let whole_inputs: BTreeSet<&str> =
            self.whole.graph().input.iter().map(|i| i.name()).collect();
        let fed = graph.input.iter().map(|input| input.name());
        let fed: BTreeSet<String> = fed
            .filter(|name| !whole_inputs.contains(name))
            .map(str::to_owned)
            .collect();
        let renames = self.constants(graph.initializer, &own);
        let renames = self.values(&graph.node, &own, renames);
        let borrowed = result
            .borrowed
            .iter()
            .map(|&i| key(&self.whole.graph().node[i]));
        let borrowed: BTreeSet<String> = borrowed.map(str::to_owned).collect();
        let mut nodes = graph.node;
        nodes.retain(|node| !borrowed.contains(key(node)));
        // The Casts that feed the part have no place in the whole model.
        nodes.retain(|node| {
            !node
                .input
                .iter()
                .any(|name| fed.contains(name) && !own.contains(name))
        });
        let before: BTreeSet<&str> = result
            .nodes
            .iter()
            .map(|&i| self.whole.graph().node[i].name())
            .collect();
        let mut follower = usize::MAX;
        for (position, mut node) in nodes.into_iter().enumerate().rev() {
            let place = match self
                .at
                .get(key(&node))
                .copied()
                .filter(|_| own.contains(key(&node)))
            {
                Some(at) => {
                    follower = at;
                    if !self.placed.insert(at) {
                        // A mask, or sizes, that an earlier part has too.
                        continue;
                    }
                    (at, true, 0, 0)
                }
                None => (follower, false, number, position),
            };
            rename(&mut node, &renames);
            if !before.contains(node.name()) && !node.name().is_empty() {
                node.name = Some(self.names.unique(node.name()));
            }
            self.nodes.insert(place, node);
        }
    }

    /// Takes constants that the whole model has not, and those that are no longer what they were. How they are called now.
    fn constants(
        &mut self,
        constants: Vec<TensorProto>,
        own: &BTreeSet<String>,
    ) -> BTreeMap<String, String> {
        let mut renames = BTreeMap::new();
        for mut tensor in constants {
            let name = tensor.name().to_owned();
            if self.known.get(&name) == Some(&tensor) {
                continue;
            }
            let taken = self.known.contains_key(&name)
                || self.at.contains_key(name.as_str()) && !own.contains(&name);
            let new = if taken {
                self.names.unique(&name)
            } else {
                name.clone()
            };
            if new != name {
                renames.insert(name, new.clone());
                tensor.name = Some(new.clone());
            } else {
                self.names.unique(&new);
            }
            self.known.insert(new, tensor.clone());
            self.constants.push(tensor);
        }
        renames
    }

    /// How the values are called now that a part has made.
    fn values(
        &mut self,
        nodes: &[NodeProto],
        own: &BTreeSet<String>,
        mut renames: BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let made = nodes.iter().flat_map(|node| &node.output);
        for name in made.filter(|name| !name.is_empty() && !own.contains(*name)) {
            let unique = self.names.unique(name);
            if unique != *name {
                renames.insert(name.clone(), unique);
            }
        }
        renames
    }

    fn finish(mut self) -> Model {
        let mut model = self.whole.clone();
        for (i, node) in self.whole.graph().node.iter().enumerate() {
            if !self.covered.contains(&i) {
                self.nodes.insert((i, true, 0, 0), node.clone());
            }
        }
        model.proto.ir_version = model.proto.ir_version.map(|_| self.ir_version);
        for (domain, version) in self.opsets {
            let imports = &mut model.proto.opset_import;
            match imports.iter_mut().find(|import| import.domain() == domain) {
                Some(import) => import.version = Some(import.version().max(version)),
                None => imports.push(crate::onnx::proto::OperatorSetIdProto {
                    domain: Some(domain),
                    version: Some(version),
                }),
            }
        }
        let graph = model.graph_mut();
        graph.node = self.nodes.into_values().collect();
        graph.initializer.append(&mut self.constants);
        without_unused(graph);
        model
    }
}

/// Removes the constants that only replaced nodes have read, and what is stated of values that are gone.
fn without_unused(graph: &mut crate::onnx::proto::GraphProto) {
    let mut read: BTreeSet<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let mut made: BTreeSet<&str> = BTreeSet::new();
    for node in &graph.node {
        read.extend(graph::names_read(node).map(str::to_owned));
        made.extend(node.output.iter().map(String::as_str));
    }
    graph.value_info.retain(|info| made.contains(info.name()));
    graph
        .initializer
        .retain(|tensor| read.contains(tensor.name()));
}

fn rename(node: &mut NodeProto, names: &BTreeMap<String, String>) {
    for name in node.input.iter_mut().chain(&mut node.output) {
        if let Some(new) = names.get(name.as_str()) {
            *name = new.clone();
        }
    }
    for graph in subgraphs_mut(node) {
        graph.node.iter_mut().for_each(|inner| rename(inner, names));
    }
}
