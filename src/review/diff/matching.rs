//! Which node of one graph is which of the other.
//!
//! ```text
//! identical nodes, names that say something ─▶ equal computations ─▶ neighbours of what is matched ─┐
//!                                                     ▲                                          │ until nothing
//!                                                     └──────────────────────────────────────────┘ new is found
//! then names that are only numbered (`val_12`, `node_MatMul_3`), and the loop once more
//! ```
//!
//! Two nodes compute the same if operator, attributes and inputs are, where inputs are the same by an earlier match or by
//! the content of a small constant. Names that are only numbered come late because one node more shifts all of them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::scope::{Scope, family, op};
use crate::onnx::node;
use crate::onnx::op;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use crate::onnx::text::{bytes, digest};
use prost::Message;

/// Constants up to this many bytes are recognised by their content.
const SMALL: usize = 512;
/// Nodes longer than this hold a large constant.
const LARGE: usize = 1 << 16;

/// The two graphs and what corresponds.
pub(super) struct Matching<'m> {
    pub a: Scope<'m>,
    pub b: Scope<'m>,
    /// Node of A to node of B.
    pub to_b: Vec<Option<usize>>,
    /// And back.
    pub to_a: Vec<Option<usize>>,
    /// Value of A to value of B, enclosing graphs included.
    values: HashMap<&'m str, &'m str>,
}

impl<'m> Matching<'m> {
    /// Matches two graphs; `outer` are those around them.
    pub(super) fn new(a: Scope<'m>, b: Scope<'m>, outer: Option<&Matching<'m>>) -> Self {
        let mut this = Matching {
            to_b: vec![None; a.graph.node.len()],
            to_a: vec![None; b.graph.node.len()],
            values: outer.map(|o| o.values.clone()).unwrap_or_default(),
            a,
            b,
        };
        this.seed();
        this.identical();
        this.by_name(|name| !is_numbered(name));
        this.by_path();
        this.by_computation();
        this.by_name(|_| true);
        this.by_computation();
        this
    }

    /// Nodes of which nothing differs, names included; the first with the first where there are several.
    fn identical(&mut self) {
        // A large constant is matched by its name.
        let text = |node: &NodeProto| (node.encoded_len() <= LARGE).then(|| node.encode_to_vec());
        let mut theirs: HashMap<Vec<u8>, VecDeque<usize>> = HashMap::new();
        for (j, node) in self.b.graph.node.iter().enumerate() {
            if let Some(text) = text(node) {
                theirs.entry(text).or_default().push_back(j);
            }
        }
        for (i, node) in self.a.graph.node.iter().enumerate() {
            let list = text(node).and_then(|text| theirs.get_mut(&text));
            if let Some(j) = list.and_then(VecDeque::pop_front) {
                self.pair(i, j);
            }
        }
    }

    /// Paths that differ in the root only, as where a wrapper module was renamed.
    fn by_path(&mut self) {
        let below_root = |node: &'m NodeProto| {
            let path = node.name().trim_start_matches('/');
            let (_, rest) = path.split_once('/')?;
            rest.contains('/').then(|| (op(node), rest))
        };
        let mut theirs: HashMap<_, Option<usize>> = HashMap::new();
        for j in (0..self.to_a.len()).filter(|&j| self.to_a[j].is_none()) {
            if let Some(key) = below_root(self.b.node(j)) {
                theirs
                    .entry(key)
                    .and_modify(|e| *e = None)
                    .or_insert(Some(j));
            }
        }
        for i in 0..self.to_b.len() {
            let key = below_root(self.a.node(i)).filter(|_| self.to_b[i].is_none());
            if let Some(j) = key.and_then(|key| theirs.get(&key).copied().flatten())
                && self.to_a[j].is_none()
            {
                self.pair(i, j);
            }
        }
    }

    /// The value of B that is `value` of A. Values of graphs around that were not matched keep their name.
    pub(super) fn value(&self, value: &'m str) -> &'m str {
        self.values.get(value).copied().unwrap_or(value)
    }

    fn pair(&mut self, i: usize, j: usize) {
        self.to_b[i] = Some(j);
        self.to_a[j] = Some(i);
        let (a, b) = (self.a.node(i), self.b.node(j));
        for (x, y) in a.output.iter().zip(&b.output) {
            if !x.is_empty() && !y.is_empty() {
                self.values.insert(x, y);
            }
        }
    }

    fn seed(&mut self) {
        let (a, b) = (self.a.graph, self.b.graph);
        let named: HashMap<&str, ()> = b.input.iter().map(|i| (i.name(), ())).collect();
        let back: HashMap<&str, ()> = a.input.iter().map(|i| (i.name(), ())).collect();
        let lone_a = a.input.iter().filter(|i| !named.contains_key(i.name()));
        let lone_b = b.input.iter().filter(|i| !back.contains_key(i.name()));
        for (x, y) in lone_a.zip(lone_b) {
            self.values.insert(x.name(), y.name());
        }
        for input in a.input.iter().filter(|i| named.contains_key(i.name())) {
            self.values.insert(input.name(), input.name());
        }
        // Initializers: by name, then the large ones by content; small ones are told by content wherever they are read.
        let names: HashMap<&str, ()> = b.initializer.iter().map(|t| (t.name(), ())).collect();
        let mut lone: HashMap<String, VecDeque<&'m TensorProto>> = HashMap::new();
        let olds: HashMap<&str, ()> = a.initializer.iter().map(|t| (t.name(), ())).collect();
        for tensor in b
            .initializer
            .iter()
            .filter(|t| !olds.contains_key(t.name()))
        {
            lone.entry(sketch(tensor)).or_default().push_back(tensor);
        }
        for tensor in &a.initializer {
            if names.contains_key(tensor.name()) {
                self.values.insert(tensor.name(), tensor.name());
            } else if let Some(others) = lone.get_mut(&sketch(tensor))
                && let Some(at) = others.iter().position(|o| bytes(o) == bytes(tensor))
                && let Some(other) = others.remove(at)
            {
                self.values.insert(tensor.name(), other.name());
            }
        }
    }

    fn by_name(&mut self, counts: impl Fn(&str) -> bool) {
        let unique = |nodes: &'m [NodeProto], free: &[Option<usize>], by_output: bool| {
            let mut found: HashMap<&'m str, Option<usize>> = HashMap::new();
            for (i, node) in nodes.iter().enumerate().filter(|(i, _)| free[*i].is_none()) {
                let name = match by_output {
                    true => node.output.first().map_or("", |o| o.as_str()),
                    false => node.name(),
                };
                if !name.is_empty() {
                    found
                        .entry(name)
                        .and_modify(|e| *e = None)
                        .or_insert(Some(i));
                }
            }
            found
        };
        for by_output in [false, true] {
            let theirs = unique(&self.b.graph.node, &self.to_a, by_output);
            let ours = unique(&self.a.graph.node, &self.to_b, by_output);
            for i in 0..self.to_b.len() {
                let node = self.a.node(i);
                let name = match by_output {
                    true => node.output.first().map_or("", |o| o.as_str()),
                    false => node.name(),
                };
                let only = ours.get(name).copied().flatten() == Some(i);
                let Some(j) = theirs.get(name).copied().flatten().filter(|_| only) else {
                    continue;
                };
                let same_op = op(node) == op(self.b.node(j));
                if self.to_b[i].is_none()
                    && self.to_a[j].is_none()
                    && counts(name)
                    && (same_op || !by_output)
                {
                    self.pair(i, j);
                }
            }
        }
    }

    fn by_computation(&mut self) {
        while self.equal() + self.neighbours() > 0 {}
    }

    /// Nodes with the same operator, attributes and inputs.
    fn equal(&mut self) -> usize {
        let mut open: HashMap<String, Vec<usize>> = HashMap::new();
        for j in (0..self.to_a.len()).filter(|&j| self.to_a[j].is_none()) {
            let node = self.b.node(j);
            let inputs = node.input.iter().map(|v| Some(token(&self.b, v, v)));
            if let Some(key) = key(node, inputs) {
                open.entry(key).or_default().push(j);
            }
        }
        let mut found = 0;
        for i in 0..self.to_b.len() {
            if self.to_b[i].is_some() {
                continue;
            }
            let node = self.a.node(i);
            let inputs = node.input.iter().map(|v| {
                let small = self.a.constant(v).is_some_and(is_small);
                // What is made by no node of the graph comes from around it, under the same name.
                let made = self.a.producer.contains_key(v.as_str());
                let known = v.is_empty() || small || !made || self.values.contains_key(v.as_str());
                known.then(|| token(&self.a, v, self.value(v)))
            });
            let Some(list) = key(node, inputs).and_then(|key| open.get_mut(&key)) else {
                continue;
            };
            list.retain(|&j| self.to_a[j].is_none());
            let same = list.iter().find(|&&j| self.b.node(j).name() == node.name());
            if let Some(j) = same.or(list.first()).copied() {
                self.pair(i, j);
                found += 1;
            }
        }
        found
    }

    /// Readers and producers of matched values, if there are as many of an operator on both sides.
    fn neighbours(&mut self) -> usize {
        let mut found = 0;
        let inputs = self.a.graph.input.iter().map(|i| i.name());
        let made = self
            .a
            .graph
            .node
            .iter()
            .flat_map(|n| &n.output)
            .map(String::as_str);
        // Weights have one reader or few; small constants are read everywhere.
        let weights = self.a.graph.initializer.iter().filter(|t| !is_small(t));
        let values = inputs.chain(weights.map(|t| t.name())).chain(made);
        let values: Vec<&'m str> = values.filter(|v| !v.is_empty()).collect();
        for value in values {
            let Some(&other) = self.values.get(value) else {
                continue;
            };
            let ours = open_readers(&self.a, &self.to_b, value);
            let theirs = open_readers(&self.b, &self.to_a, other);
            for (op, list) in &ours {
                let Some(others) = theirs.get(op).filter(|o| o.len() == list.len()) else {
                    continue;
                };
                for (&i, &j) in list.iter().zip(others) {
                    if self.to_b[i].is_none() && self.to_a[j].is_none() {
                        self.pair(i, j);
                        found += 1;
                    }
                }
            }
        }
        for i in (0..self.to_b.len()).rev() {
            let Some(j) = self.to_b[i] else { continue };
            let (a, b) = (self.a.node(i), self.b.node(j));
            for (x, y) in a.input.iter().zip(&b.input) {
                let producers = (
                    self.a.producer.get(x.as_str()),
                    self.b.producer.get(y.as_str()),
                );
                let (Some(&(x, s)), Some(&(y, t))) = producers else {
                    continue;
                };
                let same = s == t && op(self.a.node(x)) == op(self.b.node(y));
                if same && self.to_b[x].is_none() && self.to_a[y].is_none() {
                    self.pair(x, y);
                    found += 1;
                }
            }
        }
        found
    }
}

/// Unmatched readers of a value by family of operators, quantization and casts looked through.
fn open_readers<'m>(
    scope: &Scope<'m>,
    matched: &[Option<usize>],
    value: &str,
) -> BTreeMap<(&'m str, &'m str), Vec<usize>> {
    let mut found: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    let mut values = vec![value];
    while let Some(value) = values.pop() {
        for &(reader, slot) in scope.readers(value) {
            if matched[reader].is_some() || slot == usize::MAX {
                continue;
            }
            let node = scope.node(reader);
            let through = [
                op::QuantizeLinear,
                op::DequantizeLinear,
                op::DynamicQuantizeLinear,
            ];
            if through.contains(&node.op_type()) {
                values.extend(node.output.first().map(String::as_str));
                continue;
            }
            let family = family(node.op_type());
            let domain = if family == node.op_type() {
                node.domain()
            } else {
                ""
            };
            let list = found.entry((domain, family)).or_default();
            if !list.contains(&reader) {
                list.push(reader);
            }
        }
    }
    for list in found.values_mut() {
        list.sort_unstable();
    }
    found
}

/// No path, and a number at the end: a name that says only how many nodes came before.
fn is_numbered(name: &str) -> bool {
    let digits = name.ends_with(|c: char| c.is_ascii_digit());
    digits && !name.contains(['/', '.'])
}

fn is_small(tensor: &TensorProto) -> bool {
    let stored = tensor.raw_data.as_ref().map_or(0, |raw| raw.len());
    let typed = tensor.float_data.len() + tensor.int32_data.len() + tensor.int64_data.len();
    stored + 8 * typed <= SMALL
}

/// Type, shape and the first and last bytes.
fn sketch(tensor: &TensorProto) -> String {
    let raw: &[u8] = tensor.raw_data.as_ref().map_or(&[], |raw| raw);
    let ends = [
        &raw[..raw.len().min(64)],
        &raw[raw.len().saturating_sub(64)..],
    ]
    .concat();
    format!(
        "{:?} {:?} {:x}",
        tensor.data_type,
        tensor.dims,
        digest(&ends)
    )
}

/// What an input is, for a key: a small constant by content, any other value by its name in B.
fn token(scope: &Scope, value: &str, name_in_b: &str) -> String {
    match scope.constant(value).filter(|t| is_small(t)) {
        Some(t) => format!("={:?}{:?}{:x}", t.data_type, t.dims, digest(&bytes(t))),
        None => format!(":{name_in_b}"),
    }
}

/// `None` if an input is not known.
fn key(node: &NodeProto, inputs: impl Iterator<Item = Option<String>>) -> Option<String> {
    let mut key = format!("{}|{}|{}", op(node), node.overload(), node.output.len());
    let mut attributes: Vec<&AttributeProto> = node.attribute.iter().collect();
    attributes.sort_by_key(|a| a.name().to_owned());
    for attribute in attributes {
        let inner = attribute.g.is_some() || !attribute.graphs.is_empty();
        let value = match (&attribute.t, inner) {
            (Some(t), _) => format!("{}{:x}", sketch(t), digest(&bytes(t))),
            (None, true) => "graph".to_owned(),
            (None, false) => format!("{:x}", digest(&attribute.encode_to_vec())),
        };
        key += &format!("|{}={value}", attribute.name());
    }
    for input in inputs {
        key += "|";
        key += &input?;
    }
    // Captures of subgraphs are inputs as well.
    let captured = node::subgraphs(node).map(|g| g.node.len());
    captured.for_each(|count| key += &format!("|{count}"));
    Some(key)
}
