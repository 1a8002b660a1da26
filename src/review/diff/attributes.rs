//! Attributes of a node that is in both models, and the graphs inside it.

use super::change::{Change, Kind, Part, Sign, name, word};
use super::compare::{Compared, Comparer, arrow, graphs, keyed};
use super::initializers::same_tensor;
use super::rest::field_changes;
use super::scope::{label, op};
use super::trace::Trace;
use crate::onnx::op;
use crate::onnx::proto::{AttributeProto, GraphProto};

impl<'m> Comparer<'m, '_> {
    /// What differs between the attributes of node `i` of A and `j` of B; tensors get changes of their own.
    pub(super) fn attributes(&mut self, i: usize, j: usize) -> Vec<Vec<Part>> {
        let (a, b) = (self.m.a.node(i), self.m.b.node(j));
        let simple = |x: &AttributeProto| x.t.is_none() && x.g.is_none() && x.f.is_none();
        let plain = a.attribute.iter().all(|x| simple(x) && x.floats.is_empty());
        if plain && a.attribute == b.attribute {
            return Vec::new();
        }
        let mut found = Vec::new();
        let (ours, theirs) = (keyed(&a.attribute), keyed(&b.attribute));
        for (key, x) in &ours {
            let Some(y) = theirs.iter().find(|(k, _)| k == key).map(|(_, y)| *y) else {
                found.push(arrow(x.name(), attribute_text(x), "–".to_owned()));
                continue;
            };
            let graphs = |x: &'m AttributeProto| -> Vec<&'m GraphProto> {
                x.g.iter().chain(&x.graphs).collect()
            };
            let (gx, gy) = (graphs(x), graphs(y));
            if gx.len() != gy.len() {
                found.push(arrow(x.name(), attribute_text(x), attribute_text(y)));
            }
            for (p, q) in gx.into_iter().zip(gy) {
                self.subgraphs(j, x.name(), p, q);
            }
            if let (Some(p), Some(q)) = (&x.t, &y.t)
                && !same_tensor(p, q)
            {
                // The value of a Constant node is the node.
                let constant = op(b) == op::Constant;
                let title = vec![name(if constant { label(b) } else { x.name() })];
                let change = Change::new(Sign::Changed, Kind::Constant, label(b), title);
                let whole = |_| Trace::default();
                let change = self.with_job(change, Some((p, whole(p))), Some((q, whole(q))), 0);
                self.at_b[j].push(change);
            } else if x.t.is_some() != y.t.is_some() {
                found.push(arrow(x.name(), attribute_text(x), attribute_text(y)));
            }
            let bare = |x: &AttributeProto| AttributeProto {
                t: None,
                g: None,
                graphs: Vec::new(),
                ..x.clone()
            };
            let (p, q) = (bare(x), bare(y));
            let changes = field_changes(&p, &q, "AttributeProto", "");
            if !changes.is_empty() {
                let (p, q) = (attribute_text(&p), attribute_text(&q));
                match p == q {
                    false => found.push(arrow(x.name(), p, q)),
                    true => found.extend(changes.into_iter().map(|change| {
                        let mut line = vec![word(format!("{} ", x.name()))];
                        line.extend(change.line);
                        line
                    })),
                }
            }
        }
        let new = theirs
            .iter()
            .filter(|(k, _)| ours.iter().all(|(l, _)| l != k));
        found.extend(new.map(|(_, y)| arrow(y.name(), "–".to_owned(), attribute_text(y))));
        let order = |list: &[((String, usize), &AttributeProto)]| -> Vec<(String, usize)> {
            list.iter().map(|(k, _)| k.clone()).collect()
        };
        if found.is_empty() && order(&ours) != order(&theirs) {
            found.push(vec![word("attributes in another order")]);
        }
        found
    }

    fn subgraphs(&mut self, j: usize, attribute: &str, p: &'m GraphProto, q: &'m GraphProto) {
        let of = label(self.m.b.node(j));
        let place = format!("{}{of} {attribute} › ", self.place);
        let mut inner = Compared {
            jobs: std::mem::take(&mut self.out.jobs),
            ..Compared::default()
        };
        graphs(p, q, Some(&self.m), &place, self.blocks, &mut inner);
        self.out.jobs = inner.jobs;
        self.out.matched += inner.matched;
        self.out.nodes.0 += inner.nodes.0;
        self.out.nodes.1 += inner.nodes.1;
        self.inner.entry(j).or_default().extend(inner.entries);
    }
}

fn attribute_text(attribute: &AttributeProto) -> String {
    let skip = ["name", "type", "doc_string"];
    let fields = crate::onnx::fields(attribute, "AttributeProto");
    let values: Vec<String> = fields
        .iter()
        .filter(|f| !skip.contains(&f.path.as_str()))
        .map(|f| f.value.clone())
        .collect();
    match values.len() {
        0 => "–".to_owned(),
        1 if attribute.ints.is_empty() && attribute.floats.is_empty() => values.concat(),
        n if n > 12 => format!("[{}, … {n} values]", values[..12].join(", ")),
        _ => format!("[{}]", values.join(", ")),
    }
}
