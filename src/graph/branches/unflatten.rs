//! Back from the flat form.
//!
//! What was inserted between the nodes of a branch belongs to it. A node of one branch that the other, or the graph
//! around them, reads as well (the QuantizeLinear of a value that both read) is copied to where it is read. A new scalar
//! that one branch reads goes into that branch: with int8 activations ONNX Runtime fuses no Linear whose scale and zero
//! point are constants of the graph around it.

use std::collections::{HashMap, HashSet};

use super::names::{Renaming, rename, rename_node};
use super::{is_end, is_marker, listed, number, paths};
use crate::graph::Names;
use crate::graph::view::captured_names;
use crate::onnx::Model;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};

type Path = Vec<(usize, usize)>;

/// The model with its If nodes again.
pub(super) fn unflatten(model: &Model) -> Model {
    if !model.graph().node.iter().any(is_marker) {
        return model.clone();
    }
    let mut names = Names::new(model);
    let mut model = model.clone();
    let graph = model.graph_mut();
    let nodes = complete(std::mem::take(&mut graph.node), &mut names);
    let mut rest = nodes.into_iter().peekable();
    let mut building = Building {
        readers: HashMap::new(),
        old: HashSet::new(),
        count: 0,
    };
    let listed: Vec<NodeProto> = rest.clone().collect();
    for marker in listed.iter().filter(|node| is_marker(node)) {
        building.old.extend(super::listed(marker, "initializers"));
        building.old.extend(super::listed(marker, "scalars"));
    }
    for (node, path) in listed.iter().zip(paths(&listed)) {
        let mut read: Vec<&str> = node.input.iter().map(String::as_str).collect();
        // What an If' captures are the results of its branches, which are read inside of them: one may be a constant.
        if !is_end(node) {
            read.extend(captured_names(node));
        }
        for name in read {
            let at = building.readers.entry(name.to_owned()).or_default();
            at.push(path.clone());
        }
    }
    for output in &graph.output {
        let at = building
            .readers
            .entry(output.name().to_owned())
            .or_default();
        at.push(Path::new());
    }
    let nodes = building.nodes(&mut rest, &Path::new(), graph);
    graph.node = nodes;
    model
}

/// The list with copies of what is read outside of the branch that it is in.
fn complete(nodes: Vec<NodeProto>, names: &mut Names) -> Vec<NodeProto> {
    let places = paths(&nodes);
    let mut producers: HashMap<String, usize> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            producers.insert(output.clone(), i);
        }
    }
    let mut copies = Copies {
        nodes: &nodes,
        places: &places,
        producers,
        names,
        made: HashMap::new(),
        out: Vec::with_capacity(nodes.len()),
    };
    for (i, node) in nodes.iter().enumerate() {
        let mut node = node.clone();
        // If' reads the branches' outputs, each in its branch.
        if !is_end(&node) {
            copies.localize(&mut node, &places[i]);
        }
        copies.out.push(node);
    }
    copies.out
}

struct Copies<'a> {
    nodes: &'a [NodeProto],
    places: &'a [Path],
    producers: HashMap<String, usize>,
    names: &'a mut Names,
    /// The copy of a value in a branch.
    made: HashMap<(Path, String), String>,
    out: Vec<NodeProto>,
}

impl Copies<'_> {
    /// Makes `node`, at `place`, read nothing that is not visible there.
    fn localize(&mut self, node: &mut NodeProto, place: &Path) {
        let mut to = Renaming::new();
        let read: Vec<String> = node
            .input
            .iter()
            .cloned()
            .chain(captured_names(node).into_iter().map(str::to_owned))
            .collect();
        for name in read {
            let Some(&producer) = self.producers.get(&name) else {
                continue;
            };
            if !place.starts_with(&self.places[producer]) {
                let copy = self.copy(producer, &name, place);
                to.insert(name, copy);
            }
        }
        rename_node(node, &to);
    }

    fn copy(&mut self, producer: usize, name: &str, place: &Path) -> String {
        let key = |name: &str| (place.clone(), name.to_owned());
        if let Some(copy) = self.made.get(&key(name)) {
            return copy.clone();
        }
        let mut node = self.nodes[producer].clone();
        self.localize(&mut node, place);
        if !node.name().is_empty() {
            node.name = Some(self.names.derive(node.name(), "copy"));
        }
        let mut to = Renaming::new();
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            let copy = self.names.derive(output, "copy");
            self.made.insert(key(output), copy.clone());
            to.insert(output.clone(), copy);
        }
        node.output.iter_mut().for_each(|o| rename(o, &to));
        self.out.push(node);
        to.get(name).cloned().unwrap_or_default()
    }
}

struct Building {
    /// Where each value is read.
    readers: HashMap<String, Vec<Path>>,
    /// Constants that have their place: those of branches, and the scalars of the main graph.
    old: HashSet<String>,
    /// If nodes seen.
    count: usize,
}

impl Building {
    /// The nodes of the graph at `place`, up to the end of its branch; `main` gives up what belongs to branches.
    fn nodes(
        &mut self,
        rest: &mut std::iter::Peekable<std::vec::IntoIter<NodeProto>>,
        place: &Path,
        main: &mut GraphProto,
    ) -> Vec<NodeProto> {
        let mut nodes = Vec::new();
        while let Some(node) = rest.peek() {
            if is_end(node) || (is_marker(node) && number(node) > 0) {
                break;
            }
            if !is_marker(node) {
                nodes.extend(rest.next());
                continue;
            }
            let id = self.count;
            self.count += 1;
            let mut branches = Vec::new();
            let mut domain = None;
            for branch in 0..2 {
                let Some(marker) = rest.next_if(is_marker) else {
                    break;
                };
                let mut inner = place.clone();
                inner.push((id, branch));
                let inside = self.nodes(rest, &inner, main);
                domain = listed(&marker, "domain").pop();
                branches.push((marker, inner, inside));
            }
            if let Some(mut node) = rest.next_if(is_end) {
                node.domain = domain;
                for (marker, inner, inside) in branches {
                    let graph = node
                        .attribute
                        .iter_mut()
                        .find(|a| a.name() == marker.op_type())
                        .and_then(|a| a.g.as_mut());
                    if let Some(graph) = graph {
                        self.fill(graph, &marker, &inner, inside, main);
                    }
                }
                nodes.push(node);
            }
        }
        nodes
    }

    /// Gives a branch back its nodes, constants and value infos, under their own names.
    fn fill(
        &self,
        graph: &mut GraphProto,
        marker: &NodeProto,
        place: &Path,
        nodes: Vec<NodeProto>,
        main: &mut GraphProto,
    ) {
        let own: HashSet<String> = listed(marker, "initializers").into_iter().collect();
        let belongs_here = |t: &TensorProto| {
            let readers = self.readers.get(t.name()).map_or(&[][..], Vec::as_slice);
            let new = t.dims.is_empty() && !readers.is_empty() && !self.old.contains(t.name());
            (new || own.contains(t.name())) && readers.iter().all(|at| at.starts_with(place))
        };
        graph.initializer = main
            .initializer
            .extract_if(.., |t| belongs_here(t))
            .collect();
        graph.node = nodes;
        let defined: HashSet<String> = super::names::own_names(graph).into_iter().collect();
        let infos = main
            .value_info
            .extract_if(.., |i| defined.contains(i.name()));
        graph.value_info.extend(infos);
        let (flat, own) = (listed(marker, "flat"), listed(marker, "own"));
        let to: Renaming = flat.into_iter().zip(own).collect();
        graph.node.iter_mut().for_each(|n| rename_node(n, &to));
        let infos = graph.value_info.iter_mut().chain(&mut graph.output);
        infos
            .flat_map(|i| &mut i.name)
            .chain(graph.initializer.iter_mut().flat_map(|t| &mut t.name))
            .for_each(|name| rename(name, &to));
        let order = listed(marker, "infos");
        let place = |i: &ValueInfoProto| order.iter().position(|n| n == i.name());
        graph
            .value_info
            .sort_by_cached_key(|i| place(i).unwrap_or(order.len()));
    }
}
