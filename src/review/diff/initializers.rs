//! Initializers, by name and by what became of their readers.

use std::collections::{HashMap, HashSet};

use super::change::{Change, Kind, Sign, name, word};
use super::compare::{Comparer, is_product, keyed, weight_slot};
use super::scope::{Scope, op};
use super::trace::{Trace, trace};
use crate::onnx::proto::{NodeProto, TensorProto};

impl<'m> Comparer<'m, '_> {
    /// Initializers that changed, came or went, unless a change of a node accounts for them.
    pub(super) fn initializers(&mut self) {
        let (a, b) = (self.m.a.graph, self.m.b.graph);
        let (ours, theirs) = (keyed(&a.initializer), keyed(&b.initializer));
        let index: HashMap<&(String, usize), &'m TensorProto> =
            theirs.iter().map(|(k, t)| (k, *t)).collect();
        let back: HashSet<&(String, usize)> = ours.iter().map(|(k, _)| k).collect();
        let mut renamed: HashSet<&str> = HashSet::new();
        for (key, x) in &ours {
            let explained = self.explained.0.contains(x.name());
            let Some(y) = index.get(key).copied() else {
                let new = self.m.value(x.name());
                if new != x.name() && !explained {
                    renamed.insert(new);
                    let line = vec![name(format!("{} → {new}", x.name()))];
                    let mut change = Change::new(Sign::Changed, Kind::Name, x.name(), line);
                    change.minor = true;
                    self.head.push(change);
                } else if !explained && !read_by_lone(&self.m.a, &self.m.to_b, x.name()) {
                    let title = vec![name(x.name())];
                    let change = Change::new(Sign::Removed, Kind::Constant, x.name(), title);
                    let change = self.with_job(change, Some((x, Trace::default())), None, 0);
                    self.head.push(change);
                }
                continue;
            };
            if same_tensor(x, y) {
                continue;
            }
            let title = vec![name(x.name())];
            let mut change = Change::new(Sign::Changed, Kind::Constant, x.name(), title);
            let reader = self
                .m
                .b
                .readers(y.name())
                .first()
                .map(|&(reader, _)| reader);
            change.op = reader.map_or(String::new(), |j| op(self.m.b.node(j)));
            let rotated = reader.is_some_and(|j| self.is_rotated(j, y.name()));
            let whole = Trace {
                moved: rotated,
                rotated,
                ..Trace::default()
            };
            let change = self.with_job(change, Some((x, whole.clone())), Some((y, whole)), 0);
            match reader {
                Some(j) => self.at_b[j].push(change),
                None => self.head.push(change),
            }
        }
        for (key, y) in theirs.iter().filter(|(k, _)| !back.contains(k)) {
            let known = self.explained.1.contains(y.name()) || renamed.contains(y.name());
            if !known && !read_by_lone(&self.m.b, &self.m.to_a, y.name()) {
                let title = vec![name(key.0.clone())];
                let change = Change::new(Sign::Added, Kind::Constant, y.name(), title);
                let change = self.with_job(change, None, Some((y, Trace::default())), 0);
                self.head.push(change);
            }
        }
        let names = |list: &[((String, usize), &TensorProto)], other: &HashSet<(String, usize)>| {
            let kept = list.iter().filter(|(k, _)| other.contains(k));
            kept.map(|(k, _)| k.clone()).collect::<Vec<_>>()
        };
        let sets: [HashSet<_>; 2] =
            [&ours, &theirs].map(|l| l.iter().map(|(k, _)| k.clone()).collect());
        if names(&ours, &sets[1]) != names(&theirs, &sets[0]) {
            let line = vec![word("initializers are stored in another order")];
            let mut change = Change::new(Sign::Changed, Kind::Order, "initializers", line);
            change.minor = true;
            self.head.push(change);
        }
    }
}

impl<'m> Comparer<'m, '_> {
    /// Whether `weight` is that of a product, node `j` of B, which reads a value that is rotated in one of the models alone.
    fn is_rotated(&self, j: usize, weight: &str) -> bool {
        let b = self.m.b.node(j);
        let a = self.m.to_a[j].map(|i| self.m.a.node(i));
        let own = b.input.get(weight_slot(b)).is_some_and(|v| v == weight);
        own && a.is_some_and(|a| self.rotated(a, b))
    }

    /// Whether a product reads a value that is rotated in one of the models alone.
    pub(super) fn rotated(&self, a: &'m NodeProto, b: &'m NodeProto) -> bool {
        if !is_product(a) || !is_product(b) {
            return false;
        }
        let rotated = |scope: &Scope<'m>, matched: &[Option<usize>], node: &'m NodeProto| {
            let value = node.input.first();
            value.is_some_and(|v| trace(scope, matched, v).rotated)
        };
        rotated(&self.m.a, &self.m.to_b, a) != rotated(&self.m.b, &self.m.to_a, b)
    }
}

/// Whether all readers are nodes without a counterpart, and there is one.
fn read_by_lone(scope: &Scope, matched: &[Option<usize>], value: &str) -> bool {
    let readers = scope.readers(value);
    let lone = readers.iter().all(|&(reader, _)| matched[reader].is_none());
    !readers.is_empty() && lone && !scope.is_output(value)
}

/// Bit by bit, with name, type, shape and everything else.
pub(super) fn same_tensor(a: &TensorProto, b: &TensorProto) -> bool {
    let bare = |t: &TensorProto| TensorProto {
        raw_data: None,
        float_data: Vec::new(),
        double_data: Vec::new(),
        ..t.clone()
    };
    let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|x| x.to_bits()).collect() };
    let wide = |x: &[f64]| -> Vec<u64> { x.iter().map(|x| x.to_bits()).collect() };
    a.raw_data == b.raw_data
        && bits(&a.float_data) == bits(&b.float_data)
        && wide(&a.double_data) == wide(&b.double_data)
        && bare(a) == bare(b)
}
