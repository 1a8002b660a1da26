//! Two graphs, matched node by node, to a list of changes in the order of the graphs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::block::Blocks;
use super::blocks;
use super::change::{Change, Constants, Kind, Part, Sign, name, range_parts, word};
use super::constant::same_elements;
use super::matching::Matching;
use super::rest::{field_changes, value_infos, with_default};
use super::scope::{Scope, family, label, op};
use super::trace::{Trace, by_operator, trace};
use crate::onnx::op;
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// One place in the merged order of both graphs.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// A node that is in both and did not change.
    Same {
        block: String,
        op: String,
        name: String,
    },
    /// A change.
    Change(Box<Change>),
}

/// Constants whose facts have yet to be read, in parallel, for a change.
pub(super) struct Job<'m> {
    pub before: Option<(&'m TensorProto, Trace<'m>)>,
    pub after: Option<(&'m TensorProto, Trace<'m>)>,
}

/// What a comparison of graphs gives.
#[derive(Default)]
pub(super) struct Compared<'m> {
    pub entries: Vec<Entry>,
    /// By [`Change::job`].
    pub jobs: Vec<Job<'m>>,
    pub matched: usize,
    /// Nodes of A and of B.
    pub nodes: (usize, usize),
}

/// Compares two graphs and those inside them. `place` says which graph it is, empty for the main one.
pub(super) fn graphs<'m>(
    a: &'m GraphProto,
    b: &'m GraphProto,
    outer: Option<&Matching<'m>>,
    place: &str,
    blocks: &Blocks,
    out: &mut Compared<'m>,
) {
    let scopes = (
        Scope::new(a, outer.map(|o| &o.a)),
        Scope::new(b, outer.map(|o| &o.b)),
    );
    let m = Matching::new(scopes.0, scopes.1, outer);
    out.nodes.0 += a.node.len();
    out.nodes.1 += b.node.len();
    out.matched += m.to_b.iter().flatten().count();
    let mut this = Comparer {
        of_a: blocks.of_nodes(&m.a, place),
        of_b: blocks.of_nodes(&m.b, place),
        at_a: vec![Vec::new(); a.node.len()],
        at_b: vec![Vec::new(); b.node.len()],
        head: Vec::new(),
        inner: BTreeMap::new(),
        folded: (HashSet::new(), HashSet::new()),
        explained: (HashSet::new(), HashSet::new()),
        place,
        blocks,
        m,
        out,
    };
    this.matched_nodes();
    this.lone_nodes();
    this.initializers();
    this.order();
    let rest = value_infos(a, b);
    this.head.extend(rest);
    let bare = |g: &GraphProto| GraphProto {
        name: g.name.clone(),
        doc_string: g.doc_string.clone(),
        sparse_initializer: g.sparse_initializer.clone(),
        quantization_annotation: g.quantization_annotation.clone(),
        metadata_props: g.metadata_props.clone(),
        ..GraphProto::default()
    };
    let fields = field_changes(&bare(a), &bare(b), "GraphProto", "graph ");
    this.head.extend(fields);
    this.finish();
}

pub(super) struct Comparer<'m, 'o> {
    pub m: Matching<'m>,
    pub of_a: Vec<String>,
    pub of_b: Vec<String>,
    pub at_a: Vec<Vec<Change>>,
    pub at_b: Vec<Vec<Change>>,
    pub head: Vec<Change>,
    /// Entries of subgraphs, behind the node of B (or, if it is gone, of A).
    pub inner: BTreeMap<usize, Vec<Entry>>,
    /// Nodes of A and B that another change accounts for.
    pub folded: (HashSet<usize>, HashSet<usize>),
    /// Constants of A and B that another change accounts for.
    pub explained: (HashSet<&'m str>, HashSet<&'m str>),
    pub place: &'o str,
    pub blocks: &'o Blocks,
    pub out: &'o mut Compared<'m>,
}

impl<'m> Comparer<'m, '_> {
    fn matched_nodes(&mut self) {
        for i in 0..self.m.to_b.len() {
            if let Some(j) = self.m.to_b[i] {
                self.pair(i, j);
            }
        }
    }

    /// A node that is in both.
    fn pair(&mut self, i: usize, j: usize) {
        let (a, b) = (self.m.a.node(i), self.m.b.node(j));
        let (mut details, mut renames): (Vec<Vec<Part>>, Vec<Vec<Part>>) = Default::default();
        let mut kind = Kind::Name;
        if a.name != b.name {
            renames.push(arrow("name", with_default(&a.name), with_default(&b.name)));
        }
        for (slot, (x, y)) in padded(&a.output, &b.output).enumerate() {
            if x != y {
                renames.push(arrow(
                    &format!("output {slot}"),
                    show_value(x),
                    show_value(y),
                ));
            }
        }
        if a.output.len() != b.output.len() {
            let count = |n: &NodeProto| n.output.len().to_string();
            details.push(arrow("outputs", count(a), count(b)));
            kind = Kind::Wiring;
        }
        if a.overload != b.overload || (a.domain != b.domain && op(a) == op(b)) {
            let show = |n: &NodeProto| format!("{:?} {:?}", n.domain, n.overload);
            details.push(arrow("domain and overload", show(a), show(b)));
        }
        let wiring = self.inputs(i, j);
        if !wiring.is_empty() {
            kind = Kind::Wiring;
        }
        details.extend(wiring);
        let mut attributes = self.attributes(i, j);
        self.without_explained(&mut attributes, a, b);
        if !attributes.is_empty() || op(a) != op(b) || a.overload != b.overload {
            kind = Kind::Node;
        }
        details.extend(attributes);
        let bare = |n: &NodeProto| NodeProto {
            doc_string: n.doc_string.clone(),
            metadata_props: n.metadata_props.clone(),
            device_configurations: n.device_configurations.clone(),
            domain: n.domain.clone(),
            ..NodeProto::default()
        };
        let rest = field_changes(&bare(a), &bare(b), "NodeProto", "");
        if !rest.is_empty() && kind == Kind::Name {
            kind = Kind::Node;
        }
        details.extend(rest.into_iter().map(|change| change.line));
        if details.is_empty() && renames.is_empty() && op(a) == op(b) {
            return;
        }
        if details.is_empty() && self.told_by_weight(j, a, &renames) {
            return;
        }
        let shown = match op(a) == op(b) {
            true => op(a),
            false => format!("{} → {}", op(a), op(b)),
        };
        let mut line = vec![word(format!("{shown}  ")), name(label(b))];
        if label(a) != label(b) {
            line.extend([word(" (was "), name(label(a)), word(")")]);
        }
        let mut change = Change::new(Sign::Changed, kind, label(b), line);
        change.renames = renames;
        change.op = op(b);
        change.details = details;
        change.minor = kind == Kind::Name;
        let again = |v: &String| self.m.b.producer.contains_key(v.as_str());
        change.echo = change.minor && a.name == b.name && a.output.iter().all(again);
        self.at_b[j].push(change);
    }

    /// What a node reads, slot by slot; constants and inserted chains get changes of their own.
    fn inputs(&mut self, i: usize, j: usize) -> Vec<Vec<Part>> {
        let (a, b) = (self.m.a.node(i), self.m.b.node(j));
        let mut found = Vec::new();
        let mut slots: Vec<(usize, usize)> = (0..a.input.len().max(b.input.len()))
            .map(|slot| (slot, slot))
            .collect();
        if op(a) != op(b) && is_product(a) && is_product(b) {
            slots = vec![(0, 0), (weight_slot(a), weight_slot(b))];
            // Scales and zero points come with the operator.
            let read = |scope: &Scope<'m>, n: &'m NodeProto| -> Vec<&'m str> {
                let inputs = n.input.iter().map(String::as_str);
                inputs.filter(|v| scope.constant(v).is_some()).collect()
            };
            self.explained.0.extend(read(&self.m.a, a));
            self.explained.1.extend(read(&self.m.b, b));
        }
        let rotated = self.rotated(a, b);
        for (s, t) in slots {
            let x: &'m str = a.input.get(s).map_or("", String::as_str);
            let y: &'m str = b.input.get(t).map_or("", String::as_str);
            if x == y && self.m.a.constant(x).is_some() == self.m.b.constant(y).is_some() {
                let absent = s >= a.input.len() || t >= b.input.len();
                if absent && a.input.len() != b.input.len() && op(a) == op(b) {
                    found.push(vec![word(format!("input {s} left out in another way"))]);
                }
                continue;
            }
            let mut from = trace(&self.m.a, &self.m.to_b, x);
            let mut to = trace(&self.m.b, &self.m.to_a, y);
            if s > 0 && op(a) != op(b) {
                let (old, new) = (from.source, to.source);
                from.quantized = from.quantized.or_else(|| by_operator(&self.m.a, a, new));
                to.quantized = to.quantized.or_else(|| by_operator(&self.m.b, b, old));
                from.blocked = from.blocked.or_else(|| blocks::of(&self.m.a, a));
                to.blocked = to.blocked.or_else(|| blocks::of(&self.m.b, b));
            }
            let constants = (self.m.a.constant(from.source), self.m.b.constant(to.source));
            if let (Some(before), Some(after)) = constants {
                if from.nodes.is_empty() && to.nodes.is_empty() && self.m.value(x) == y {
                    continue;
                }
                // What no input channel has in common with what it was cannot be compared with it.
                if rotated && t == weight_slot(b) {
                    (to.moved, to.rotated) = (true, true);
                }
                self.constant_pair(j, (before, from), (after, to));
                continue;
            }
            let follows = self.m.value(from.source) == to.source
                || from.source == to.source
                || self.m.value(x) == y;
            if x.is_empty() || y.is_empty() || !follows {
                found.push(arrow(&format!("input {s}"), show_value(x), show_value(y)));
            }
        }
        found
    }

    /// A constant that a node read before, and the one that it reads now.
    fn constant_pair(
        &mut self,
        j: usize,
        before: (&'m TensorProto, Trace<'m>),
        after: (&'m TensorProto, Trace<'m>),
    ) {
        let chains = before.1.nodes.len() + after.1.nodes.len();
        let known = |t: &Trace| t.quantized.is_some() || t.blocked.is_some();
        let stored = chains > 0 || known(&before.1) || known(&after.1);
        self.explained
            .0
            .extend(before.1.constants.iter().copied().chain([before.1.source]));
        self.explained
            .1
            .extend(after.1.constants.iter().copied().chain([after.1.source]));
        let known = after.1.nodes.iter().all(|n| self.folded.1.contains(n));
        let seen = before.1.nodes.iter().all(|n| self.folded.0.contains(n));
        if chains > 0 && known && seen {
            return;
        }
        self.folded.0.extend(before.1.nodes.iter().copied());
        self.folded.1.extend(after.1.nodes.iter().copied());
        let (old, new) = (before.1.source, after.1.source);
        let title = match (stored, old == new) {
            (true, _) | (_, true) => old.to_owned(),
            (false, false) => format!("{old} → {new}"),
        };
        let kind = if stored { Kind::Weight } else { Kind::Constant };
        let mut change = Change::new(Sign::Changed, kind, old, vec![name(title)]);
        if !stored && same_elements(before.0, after.0) {
            change.kind = Kind::Name;
            change.minor = true;
        }
        change.op = op(self.m.b.node(j));
        let nodes = after.1.nodes.len() + before.1.nodes.len();
        let change = self.with_job(change, Some(before), Some(after), nodes);
        self.at_b[j].push(change);
    }

    /// A change whose constants are read later.
    pub(super) fn with_job(
        &mut self,
        mut change: Change,
        before: Option<(&'m TensorProto, Trace<'m>)>,
        after: Option<(&'m TensorProto, Trace<'m>)>,
        nodes: usize,
    ) -> Change {
        change.constants = Some(Constants::default());
        change.job = Some(self.out.jobs.len());
        change.nodes = nodes;
        self.out.jobs.push(Job { before, after });
        change
    }

    /// Matched nodes that stand at another place: those outside of the longest common order.
    fn order(&mut self) {
        let pairs: Vec<usize> = self.m.to_b.iter().flatten().copied().collect();
        let kept: BTreeSet<usize> = increasing(&pairs).into_iter().collect();
        let moved: Vec<usize> = pairs.into_iter().filter(|j| !kept.contains(j)).collect();
        if moved.is_empty() {
            return;
        }
        let line = vec![
            Part::number(moved.len() as f64),
            word(" nodes are stored at another place"),
        ];
        let mut change = Change::new(Sign::Changed, Kind::Order, "nodes", line);
        let line = |&j: &usize| vec![name(label(self.m.b.node(j)))];
        change.details = moved.iter().take(5).map(line).collect();
        if moved.len() > 5 {
            change.details.push(vec![word("…")]);
        }
        change.minor = true;
        self.head.push(change);
    }

    /// Merges both orders: B's, with what only A has behind what was before it there.
    fn finish(mut self) {
        for mut change in std::mem::take(&mut self.head) {
            change.block = self.place.trim_end_matches([' ', '›']).to_owned();
            self.out.entries.push(Entry::Change(Box::new(change)));
        }
        let mut behind: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        let mut last = None;
        for i in 0..self.m.to_b.len() {
            match self.m.to_b[i] {
                Some(j) => last = Some(j),
                None => behind.entry(last).or_default().push(i),
            }
        }
        self.removed(behind.get(&None));
        for j in 0..self.m.to_a.len() {
            let node = self.m.b.node(j);
            let changes = std::mem::take(&mut self.at_b[j]);
            let own = |c: &Change| matches!(c.kind, Kind::Node | Kind::Wiring | Kind::Name);
            let unchanged = self.m.to_a[j].is_some() && !changes.iter().any(own);
            for mut change in changes {
                change.block.clone_from(&self.of_b[j]);
                self.out.entries.push(Entry::Change(Box::new(change)));
            }
            if unchanged {
                self.out.entries.push(Entry::Same {
                    block: self.of_b[j].clone(),
                    op: op(node),
                    name: label(node).to_owned(),
                });
            }
            if let Some(inner) = self.inner.remove(&j) {
                self.out.entries.extend(inner);
            }
            self.removed(behind.get(&Some(j)));
        }
    }

    fn removed(&mut self, nodes: Option<&Vec<usize>>) {
        for &i in nodes.into_iter().flatten() {
            for mut change in std::mem::take(&mut self.at_a[i]) {
                change.block.clone_from(&self.of_a[i]);
                self.out.entries.push(Entry::Change(Box::new(change)));
            }
        }
    }
}

/// The parts of a constant that a chain brings in: `float[384] 1..5.03`.
pub(super) fn constant_parts(t: &TensorProto) -> Vec<Part> {
    let ty = crate::onnx::text::tensor_type(t);
    let mut parts = vec![word(format!("{ty} "))];
    parts.extend(range_parts(super::constant::range(t)));
    parts
}

/// `what: before → after`.
pub(super) fn arrow(what: &str, before: impl Into<String>, after: impl Into<String>) -> Vec<Part> {
    vec![
        word(format!("{what}: ")),
        name(before),
        word(" → "),
        name(after),
    ]
}

fn show_value(value: &str) -> String {
    match value {
        "" => "–".to_owned(),
        value => value.to_owned(),
    }
}

/// Two lists side by side, the shorter filled up with nothing.
fn padded<'a>(
    a: &'a [String],
    b: &'a [String],
) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    let get = |list: &'a [String], i: usize| list.get(i).map_or("", String::as_str);
    (0..a.len().max(b.len())).map(move |i| (get(a, i), get(b, i)))
}

/// Where an operator of the MatMul family has its weight.
pub(super) fn weight_slot(node: &NodeProto) -> usize {
    match node.op_type() {
        op::QLinearMatMul | op::QLinearConv | op::QGemm => 3,
        _ => 1,
    }
}

pub(super) fn is_product(node: &NodeProto) -> bool {
    [op::MatMul, op::Conv].contains(&family(node.op_type()))
}

/// Something with a name.
pub(super) trait Named {
    fn key(&self) -> &str;
}

impl Named for TensorProto {
    fn key(&self) -> &str {
        self.name()
    }
}

impl Named for AttributeProto {
    fn key(&self) -> &str {
        self.name()
    }
}

impl Named for crate::onnx::proto::ValueInfoProto {
    fn key(&self) -> &str {
        self.name()
    }
}

/// Each with its name, and how many of that name came before.
pub(super) fn keyed<T: Named>(list: &[T]) -> Vec<((String, usize), &T)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut found = Vec::new();
    for item in list {
        let count = counts.entry(item.key()).or_default();
        found.push(((item.key().to_owned(), *count), item));
        *count += 1;
    }
    found
}

/// The longest increasing subsequence.
fn increasing(values: &[usize]) -> Vec<usize> {
    // `ends[k]` is the place of the smallest value that ends such a sequence of length k + 1.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; values.len()];
    for (i, &value) in values.iter().enumerate() {
        let at = ends.partition_point(|&end| values[end] < value);
        before[i] = at.checked_sub(1).map(|k| ends[k]);
        match ends.get_mut(at) {
            Some(end) => *end = i,
            None => ends.push(i),
        }
    }
    let mut found = Vec::new();
    let mut at = ends.last().copied();
    while let Some(i) = at {
        found.push(values[i]);
        at = before[i];
    }
    found.reverse();
    found
}
