//! Which block of the network a node belongs to, by its name: `encoder.layer.3.attention`.
//!
//! Exporters write the path of the module into names of nodes (`/encoder/layer.3/attention/self/query/MatMul`) or only
//! into those of weights (`encoder.layer.3.attention.self.query.weight`). A block is the path up to the number that
//! tells repeated layers apart, and one step more. A node without a path belongs to the block of the node before it.

use std::collections::{BTreeMap, BTreeSet};

use super::scope::{Scope, label};
use crate::onnx::proto::NodeProto;

/// The paths before the numbers of repeated layers.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    prefixes: BTreeSet<Vec<String>>,
}

impl Blocks {
    /// Learns from the names of both models where layers are numbered.
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        // What follows each number behind each prefix.
        let mut numbers: BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> =
            BTreeMap::new();
        for path in names.map(tokens) {
            for (i, token) in path.iter().enumerate().skip(1) {
                if is_number(token) {
                    let seen = numbers.entry(path[..i].to_vec()).or_default();
                    let next = seen.entry(token.clone()).or_default();
                    next.extend(path.get(i + 1).cloned());
                }
            }
        }
        // Layers have the same parts; a list of different modules (`model.0`, `model.1`) is not one of layers.
        let alike = |seen: &BTreeMap<String, BTreeSet<String>>| {
            let parts: Vec<_> = seen.values().collect();
            let same = |w: &[&BTreeSet<String>]| {
                let common = w[0].intersection(w[1]).count();
                common > 0 && 2 * common >= w[0].len().min(w[1].len())
            };
            parts.windows(2).any(same)
        };
        let repeated = numbers.into_iter().filter(|(_, seen)| alike(seen));
        let all: BTreeSet<Vec<String>> = repeated.map(|(prefix, _)| prefix).collect();
        // A list inside of a layer (`layer.3.mlp.0`) is part of the layer.
        let inside = |p: &Vec<String>| all.iter().any(|q| q.len() < p.len() && p.starts_with(q));
        let prefixes = all.iter().filter(|p| !inside(p)).cloned().collect();
        Blocks { prefixes }
    }

    /// The block of each node of a graph.
    pub(super) fn of_nodes(&self, scope: &Scope, place: &str) -> Vec<String> {
        let mut last = String::new();
        let block = |node: &NodeProto, last: &mut String| {
            let own = tokens(label(node));
            let by_name = if own.len() > 1 { Some(own) } else { None };
            let weights = node.input.iter().filter(|v| scope.constant(v).is_some());
            let mut by_weight = weights.map(|v| tokens(v)).filter(|path| path.len() > 1);
            if let Some(path) = by_name.or_else(|| by_weight.next()) {
                *last = self.of(&path[..path.len() - 1]);
            }
            format!("{place}{last}")
        };
        scope
            .graph
            .node
            .iter()
            .map(|n| block(n, &mut last))
            .collect()
    }

    /// The block of a path.
    fn of(&self, path: &[String]) -> String {
        let number = (1..path.len()).find(|&i| self.prefixes.contains(&path[..i]));
        let end = match number.filter(|&i| is_number(&path[i])) {
            Some(i) => i + 2,
            // As far as the way to the layers goes, and one step.
            None => {
                let common =
                    |p: &Vec<String>| p.iter().zip(path).take_while(|(a, b)| a == b).count();
                self.prefixes.iter().map(common).max().unwrap_or(0) + 1
            }
        };
        path[..end.min(path.len())].join(".")
    }

    /// The block with its number taken out, and the number: blocks with the same first part repeat each other.
    pub(super) fn template(&self, block: &str) -> (String, Option<usize>) {
        let (place, path) = block.rsplit_once(" › ").unwrap_or(("", block));
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        let number =
            (1..path.len()).find(|&i| is_number(&path[i]) && self.prefixes.contains(&path[..i]));
        let Some(i) = number else {
            return (block.to_owned(), None);
        };
        let mut template = path.clone();
        template[i] = "*".to_owned();
        let separator = if place.is_empty() { "" } else { " › " };
        let template = format!("{place}{separator}{}", template.join("."));
        (template, path[i].parse().ok())
    }

    /// A name as it would be in layer 0: numbers of layers relative to `own`, counters of exporters left out.
    pub(super) fn relative(&self, text: &str, own: usize) -> String {
        let mut out = String::new();
        let words: BTreeSet<&str> = self
            .prefixes
            .iter()
            .filter_map(|p| p.last())
            .map(String::as_str)
            .collect();
        let mut before = "";
        for token in text.split_inclusive(['/', '.', ' ']) {
            let bare = token.trim_end_matches(['/', '.', ' ']);
            match bare.parse::<usize>() {
                Ok(number) if words.contains(before) => {
                    out += &format!("{{{}}}", number as i64 - own as i64);
                    out += &token[bare.len()..];
                }
                _ => out += token,
            }
            before = bare;
        }
        if text.contains(['/', '.']) {
            return out;
        }
        // `node_MatMul_12`, `onnx::MatMul_855`: the number is only a counter.
        let digits = |c: char| c.is_ascii_digit();
        out.split(digits)
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("#")
    }
}

fn is_number(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_digit())
}

/// The steps of a path. A name without `/` and `.` has one.
fn tokens(name: &str) -> Vec<String> {
    let steps = name.split(['/', '.']).filter(|step| !step.is_empty());
    steps.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_ends_one_step_behind_the_number_of_its_layer() {
        let names = [
            "/m.0/encoder/layer.0/attention/self/query/MatMul",
            "/m.0/encoder/layer.1/attention/self/query/MatMul",
            "/m.0/encoder/layer.1/mlp.0/MatMul",
            "/m.0/encoder/layer.1/mlp.1/MatMul",
            "/m.1/pooling/ReduceMean",
        ];
        let blocks = Blocks::new(names.into_iter());
        let of = |name: &str| {
            let path = tokens(name);
            blocks.of(&path[..path.len() - 1])
        };
        assert_eq!(of(names[1]), "m.0.encoder.layer.1.attention");
        assert_eq!(of(names[3]), "m.0.encoder.layer.1.mlp");
        assert_eq!(of("/m.0/embeddings/LayerNorm/Add"), "m.0.embeddings");
        assert_eq!(of("/pooler/Gemm"), "pooler");
        let (template, number) = blocks.template("m.0.encoder.layer.1.mlp");
        assert_eq!(
            (template.as_str(), number),
            ("m.0.encoder.layer.*.mlp", Some(1))
        );
        let relative = blocks.relative("/m.0/encoder/layer.0/output/Add", 1);
        assert_eq!(relative, "/m.0/encoder/layer.{-1}/output/Add");
        assert_eq!(blocks.relative("onnx::MatMul_855", 1), "onnx::MatMul_");
    }
}
