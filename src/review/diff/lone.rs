//! Nodes that only one of the models has: Q/DQ pairs and chains of Mul and Add in one line each, the others as they are.

use super::change::{Change, Kind, Part, Sign, name, range_parts, word};
use super::compare::{Comparer, constant_parts};
use super::constant::range;
use super::per_token;
use super::rotation;
use super::scope::{Scope, label, op};
use super::trace::affine_input;
use crate::onnx::node;
use crate::onnx::op;
use crate::onnx::proto::TensorProto;

/// One of the two models, as seen from the nodes it has alone.
struct Side<'c, 'm> {
    own: &'c Scope<'m>,
    other: &'c Scope<'m>,
    matched: &'c [Option<usize>],
    sign: Sign,
}

impl Comparer<'_, '_> {
    /// Fills `at_a` and `at_b` for nodes without a counterpart.
    pub(super) fn lone_nodes(&mut self) {
        for sign in [Sign::Removed, Sign::Added] {
            let m = &self.m;
            let (own, other, matched) = match sign {
                Sign::Removed => (&m.a, &m.b, &m.to_b),
                _ => (&m.b, &m.a, &m.to_a),
            };
            let side = Side {
                own,
                other,
                matched,
                sign,
            };
            let folded = match sign {
                Sign::Removed => &mut self.folded.0,
                _ => &mut self.folded.1,
            };
            let mut found: Vec<(usize, Change)> = Vec::new();
            // Pairs first: they account for nodes before them.
            let lone = || (0..matched.len()).filter(|&i| matched[i].is_none());
            let is_pair = |&i: &usize| own.node(i).op_type() == op::QuantizeLinear;
            for i in lone().filter(is_pair).chain(lone().filter(|i| !is_pair(i))) {
                if folded.contains(&i) {
                    continue;
                }
                let (change, nodes) = side
                    .pair(i)
                    .or_else(|| side.rotation(i))
                    .or_else(|| side.chain(i))
                    .unwrap_or_else(|| (side.plain(i), vec![i]));
                folded.extend(&nodes);
                found.push((i, change));
            }
            for (i, change) in found {
                match sign {
                    Sign::Removed => self.at_a[i].push(change),
                    _ => self.at_b[i].push(change),
                }
            }
        }
    }
}

impl Side<'_, '_> {
    fn lone(&self, i: usize, op_type: &str) -> bool {
        self.matched[i].is_none() && self.own.node(i).op_type() == op_type
    }

    fn change(&self, kind: Kind, i: usize, nodes: usize, line: Vec<Part>) -> Change {
        let node = self.own.node(i);
        let mut change = Change::new(self.sign, kind, label(node), line);
        change.op = op(node);
        change.nodes = nodes;
        change
    }

    /// `Q/DQ u8 scale=0.0312 zp=112 on VALUE → READERS`.
    fn pair(&self, i: usize) -> Option<(Change, Vec<usize>)> {
        if !self.lone(i, op::QuantizeLinear) {
            return None;
        }
        let q = self.own.node(i);
        let output = q.output.first()?;
        let readers = self.own.readers(output).iter().map(|r| r.0);
        let mut nodes: Vec<usize> = readers
            .filter(|&r| self.lone(r, op::DequantizeLinear))
            .collect();
        if nodes.is_empty() {
            return None;
        }
        let behind = nodes
            .iter()
            .filter_map(|&n| self.own.node(n).output.first());
        let targets: Vec<usize> = behind
            .flat_map(|v| self.own.readers(v).iter().map(|r| r.0))
            .collect();
        let constant = |slot: usize| q.input.get(slot).and_then(|v| self.own.constant(v));
        let zero = constant(2);
        let ty = match (zero.map(|z| z.data_type()), node::attr_i(q, "output_dtype")) {
            (Some(dtype), _) => dtype,
            (None, Some(dtype)) if dtype != 0 => i32::try_from(dtype).unwrap_or(2),
            // QuantizeLinear makes uint8 where nothing is said.
            _ => 2,
        };
        let token = per_token::around(self.own, q.input.first()?);
        let token = token.filter(|t| t.nodes.iter().all(|&n| self.matched[n].is_none()));
        let shared = if token.is_some() { " per token" } else { "" };
        let mut line = vec![word(format!("Q/DQ {}{shared} scale=", short_type(ty)))];
        match constant(1) {
            Some(scale) => line.extend(numbers(scale)),
            None => line.push(word("computed")),
        }
        if constant(1).is_some_and(|s| !s.dims.is_empty() && s.dims != [1]) {
            let axis = node::attr_i(q, "axis").unwrap_or(1);
            line.push(word(format!(" per channel (axis {axis})")));
        }
        line.push(word(" zp="));
        line.extend(match zero {
            Some(zero) => numbers(zero),
            None => vec![Part::number(0.0)],
        });
        let input = token
            .as_ref()
            .map_or(q.input.first()?.as_str(), |t| t.input);
        line.extend([word(" on "), name(input)]);
        line.extend(self.readers(&targets));
        nodes.push(i);
        nodes.extend(token.into_iter().flat_map(|t| t.nodes));
        Some((self.change(Kind::Qdq, i, nodes.len(), line), nodes))
    }

    /// `rotated by 24×16 before query, key, value on VALUE`.
    fn rotation(&self, i: usize) -> Option<(Change, Vec<usize>)> {
        if !self.lone(i, op::Reshape) {
            return None;
        }
        let chain = rotation::starting_at(self.own, i)?;
        if chain.nodes.iter().any(|&n| self.matched[n].is_some()) {
            return None;
        }
        // The Linears, whatever quantization is in between.
        let mut readers: Vec<usize> = Vec::new();
        let mut values = vec![chain.output];
        while let Some(value) = values.pop() {
            for &(reader, _) in self.own.readers(value) {
                match [op::QuantizeLinear, op::DequantizeLinear]
                    .iter()
                    .any(|op| self.lone(reader, op))
                {
                    true => values.extend(self.own.node(reader).output.first().map(String::as_str)),
                    false => readers.push(reader),
                }
            }
        }
        readers.sort_unstable();
        let (a, b) = chain.factors;
        let what = match chain.all {
            true => format!("rotated by {a}×{b}"),
            false => format!("rotated in {a} blocks of {b}"),
        };
        let mut line = vec![word(what)];
        line.extend(self.named(&readers, " before "));
        line.extend([word(" on "), name(chain.input)]);
        let change = self.change(Kind::Rotation, i, chain.nodes.len(), line);
        Some((change, chain.nodes))
    }

    /// `  → query, key, value`.
    fn readers(&self, nodes: &[usize]) -> Vec<Part> {
        self.named(nodes, "  → ")
    }

    /// Nodes by the last parts of their names, after the word `first`.
    fn named(&self, nodes: &[usize], first: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        for (k, &node) in nodes.iter().take(4).enumerate() {
            parts.push(word(if k == 0 { first } else { ", " }));
            if self.lone(node, op::QuantizeLinear) {
                parts.push(word("Q/DQ"));
                continue;
            }
            let label = label(self.own.node(node)).to_owned();
            let pieces: Vec<&str> = label.rsplit(['/', '.']).take(2).collect();
            let short: Vec<&str> = pieces.into_iter().rev().collect();
            parts.push(name(short.join("/")));
        }
        if nodes.len() > 4 {
            parts.push(word(format!(" and {} more", nodes.len() - 4)));
        }
        parts
    }

    /// Mul and Add with constants, one behind the other: `Mul float[384] 1..5.03, Add float[384] -3..14`.
    fn chain(&self, i: usize) -> Option<(Change, Vec<usize>)> {
        let affine = |i: usize| {
            let slot = affine_input(self.own, i).filter(|_| self.matched[i].is_none())?;
            self.own
                .constant(self.own.node(i).input.get(1 - slot.min(1))?)
        };
        let (mut at, mut nodes, mut line) = (i, Vec::new(), Vec::new());
        while let Some(constant) = affine(at) {
            if !nodes.is_empty() {
                line.push(word(", "));
            }
            line.push(word(format!("{} ", op(self.own.node(at)))));
            line.extend(constant_parts(constant));
            nodes.push(at);
            let output = self.own.node(at).output.first()?;
            match self.own.readers(output) {
                [(next, slot)] if *slot != usize::MAX && !self.own.is_output(output) => at = *next,
                _ => break,
            }
        }
        let &last = nodes.last()?;
        let (first, end) = (self.own.node(i), self.own.node(last).output.first()?);
        let slot = affine_input(self.own, i)?;
        line.extend([word(" on "), name(first.input[slot].as_str())]);
        let known = self.other.producer.contains_key(end.as_str());
        let readers: Vec<usize> = self.own.readers(end).iter().map(|r| r.0).collect();
        if known {
            // The value keeps its name, so that its readers need no change.
            line.extend([word(" gives "), name(end.as_str()), word(" again")]);
        }
        line.extend(self.readers(&readers));
        Some((self.change(Kind::Node, i, nodes.len(), line), nodes))
    }

    fn plain(&self, i: usize) -> Change {
        let node = self.own.node(i);
        let mut line = vec![
            word(format!("{}  ", op(node))),
            name(label(node)),
            word(" ("),
        ];
        for (k, input) in node.input.iter().enumerate() {
            line.extend((k > 0).then(|| word(", ")));
            match self.own.constant(input) {
                Some(constant) => line.extend(constant_parts(constant)),
                None => line.push(name(input.as_str())),
            }
        }
        line.push(word(")"));
        if let Some(value) = node::attr_t(node, "value") {
            line.push(word(" = "));
            line.extend(constant_parts(value));
        }
        self.change(Kind::Node, i, 1, line)
    }
}

/// One number of several blocks is not a range.
fn numbers(t: &TensorProto) -> Vec<Part> {
    match range(t) {
        Some((min, max)) if min == max => vec![Part::number(min)],
        range => range_parts(range),
    }
}

/// `u8` for UINT8.
fn short_type(dtype: i32) -> String {
    use crate::onnx::DataType;
    let name = DataType::try_from(dtype).map_or("?", |dtype| dtype.as_str_name());
    let name = name.to_lowercase();
    name.replace("uint", "u").replace("int", "i")
}
