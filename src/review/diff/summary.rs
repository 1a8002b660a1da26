//! The first paragraph: what a reviewer wants to know before the details.

use crate::onnx::op;
use std::collections::BTreeMap;

use super::change::{Kind, Sign};
use super::{Diff, number};

/// Below this share of nodes in common two models are not versions of one another.
const LITTLE: f64 = 0.3;
/// Smaller graphs are shown whatever they have in common.
const SMALL: usize = 30;

impl Diff {
    /// Whether so little matches that listing everything else would tell nothing.
    pub fn little_in_common(&self) -> bool {
        let smaller = self.nodes.0.min(self.nodes.1);
        smaller > SMALL && (self.matched_nodes as f64) < LITTLE * smaller as f64
    }

    /// One paragraph: what was quantized, inserted, changed, and what stayed.
    pub fn summary(&self) -> String {
        if self.is_empty() {
            return "The models are the same.".to_owned();
        }
        let mut said = Vec::new();
        if self.little_in_common() {
            said.push(format!(
                "These models have little in common: {} of {} and {} nodes correspond.",
                self.matched_nodes, self.nodes.0, self.nodes.1
            ));
        }
        said.extend(self.quantized());
        said.extend(self.counted());
        let touched = |c: &&super::Change| {
            c.sign == Sign::Changed && matches!(c.kind, Kind::Node | Kind::Wiring)
        };
        let changed = self.changes().filter(touched).count();
        let same = self.matched_nodes.saturating_sub(changed);
        let same = match same == self.nodes.0 {
            true => format!("All {same}"),
            false => format!("{same} of {}", self.nodes.0),
        };
        said.push(match self.nodes.0 == self.nodes.1 {
            true => format!("{same} nodes are the same."),
            false => format!("{same} nodes are the same, there are {} now.", self.nodes.1),
        });
        if self.bytes.0 != self.bytes.1 {
            said.push(format!(
                "Weights {} → {}.",
                size(self.bytes.0),
                size(self.bytes.1)
            ));
        }
        said.join(" ")
    }

    /// "36 weights: float → int8 per channel. 24 Q/DQ pairs (u8)."
    fn quantized(&self) -> Vec<String> {
        let mut weights: BTreeMap<String, usize> = BTreeMap::new();
        let mut rotations: BTreeMap<Sign, usize> = BTreeMap::new();
        let mut pairs: BTreeMap<(Sign, String), usize> = BTreeMap::new();
        for change in self.changes() {
            match (change.kind, &change.constants) {
                (Kind::Weight, Some(c)) => {
                    let ty = |f: &Option<super::Facts>| {
                        let ty = f.as_ref().map_or("?", |f| f.ty.as_str());
                        ty.split('[').next().unwrap_or("?").to_owned()
                    };
                    let line: String = change.line.iter().map(|p| p.text()).collect();
                    let group = line
                        .split(" → ")
                        .find(|side| side.contains(" in groups of "));
                    let group = group.and_then(|side| side.split(", scale").next());
                    let how = match (line.contains("per channel"), line.contains("per tensor")) {
                        (true, _) => " per channel",
                        (_, true) => " per tensor",
                        _ => "",
                    };
                    let (before, after) = (ty(&c.before), ty(&c.after));
                    let small = |ty: &str| ty.contains("int") || ty.contains("float8");
                    let verb = match (small(&before), small(&after)) {
                        (false, true) => "quantized",
                        (true, false) => "in float again",
                        _ => "stored otherwise",
                    };
                    let stored = |ty: String| match group {
                        Some(group) if small(&ty) => {
                            group.rsplit("  ").next().unwrap_or(group).to_owned()
                        }
                        _ => ty,
                    };
                    let what = format!("{verb} ({} → {}{how})", stored(before), stored(after));
                    *weights.entry(what).or_default() += 1;
                }
                (Kind::Qdq, _) => {
                    let first = change.line.first().map(|p| p.text()).unwrap_or_default();
                    let ty = first.trim_start_matches("Q/DQ ").split(" scale=").next();
                    let ty = ty.unwrap_or_default().to_owned();
                    *pairs.entry((change.sign, ty)).or_default() += 1;
                }
                (Kind::Rotation, _) => *rotations.entry(change.sign).or_default() += 1,
                _ => {}
            }
        }
        let mut said: Vec<String> = weights
            .into_iter()
            .map(|(what, n)| format!("{} {what}.", plural(n, "weight")))
            .collect();
        let how = |sign| match sign {
            Sign::Added => "inserted",
            _ => "removed",
        };
        said.extend(
            pairs
                .into_iter()
                .map(|((sign, ty), n)| format!("{} ({ty}) {}.", plural(n, "Q/DQ pair"), how(sign))),
        );
        said.extend(
            rotations
                .into_iter()
                .map(|(sign, n)| format!("{} {}.", plural(n, "rotation"), how(sign))),
        );
        said
    }

    /// Whose constants changed: " (24 of LayerNormalization, 36 of Add)".
    fn readers(&self) -> String {
        let mut ops: BTreeMap<&str, usize> = BTreeMap::new();
        let own = |c: &&super::Change| c.kind == Kind::Constant && c.sign == Sign::Changed;
        for change in self.changes().filter(own).filter(|c| !c.op.is_empty()) {
            *ops.entry(&change.op).or_default() += 1;
        }
        let mut ops: Vec<(&str, usize)> = ops.into_iter().collect();
        ops.sort_by_key(|&(op, n)| (std::cmp::Reverse(n), op));
        let more = if ops.len() > 4 { ", …" } else { "" };
        let list: Vec<String> = ops
            .iter()
            .take(4)
            .map(|(op, n)| format!("{n} of {op}"))
            .collect();
        match list.is_empty() {
            true => String::new(),
            false => format!(" ({}{more})", list.join(", ")),
        }
    }

    /// "37 other constants changed; nodes added: 13 Mul, 12 Add; 3 rewired."
    fn counted(&self) -> Vec<String> {
        let count = |kind: Kind, sign: Sign| {
            let own = self.changes().filter(|c| c.kind == kind && c.sign == sign);
            own.count()
        };
        let mut parts = Vec::new();
        let constants =
            [Sign::Changed, Sign::Added, Sign::Removed].map(|s| count(Kind::Constant, s));
        let verbs = ["changed", "added", "removed"];
        for (n, verb) in constants.into_iter().zip(verbs).filter(|(n, _)| *n > 0) {
            let readers = if verb == "changed" {
                self.readers()
            } else {
                String::new()
            };
            parts.push(format!("{} {verb}{readers}", plural(n, "constant")));
        }
        for (sign, verb) in [(Sign::Added, "added"), (Sign::Removed, "removed")] {
            let own = |c: &&super::Change| c.kind == Kind::Node && c.sign == sign;
            let mut ops: BTreeMap<String, usize> = BTreeMap::new();
            let mut nodes = 0;
            for change in self.changes().filter(own) {
                nodes += change.nodes;
                *ops.entry(shape_of(change)).or_default() += 1;
            }
            let mut ops: Vec<(String, usize)> = ops.into_iter().collect();
            ops.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            if nodes > 0 {
                let more = ops.len().saturating_sub(5);
                let list: Vec<String> = ops
                    .iter()
                    .take(5)
                    .map(|(op, n)| format!("{n} {op}"))
                    .collect();
                let more = if more > 0 {
                    ", …".to_owned()
                } else {
                    String::new()
                };
                parts.push(format!(
                    "{} {verb} ({}{more})",
                    plural(nodes, "node"),
                    list.join(", ")
                ));
            }
        }
        let kinds = [
            (Kind::Node, "node", "changed"),
            (Kind::Wiring, "node", "rewired"),
            (Kind::Input, "input", "changed"),
            (Kind::Output, "output", "changed"),
        ];
        for (kind, what, verb) in kinds {
            let n = match kind {
                Kind::Input | Kind::Output => self.changes().filter(|c| c.kind == kind).count(),
                _ => count(kind, Sign::Changed),
            };
            if n > 0 {
                parts.push(format!("{} {verb}", plural(n, what)));
            }
        }
        let model = self.changes().filter(|c| c.kind == Kind::Model).count();
        if model > 0 {
            parts.push(format!("{} changed", plural(model, "field")));
        }
        if parts.is_empty() {
            return Vec::new();
        }
        let mut text = parts.join("; ");
        text.push('.');
        vec![text]
    }
}

/// "Mul", or "Mul+Add" for a chain.
fn shape_of(change: &super::Change) -> String {
    if change.nodes < 2 {
        return change.op.clone();
    }
    let words: Vec<String> = change.line.iter().map(|p| p.text()).collect();
    let line = words.concat();
    let ops = line.split(", ").filter_map(|part| part.split(' ').next());
    let ops: Vec<&str> = ops
        .filter(|op| [op::Mul, op::Add, op::Sub, op::Div].contains(op))
        .collect();
    match ops.is_empty() {
        true => change.op.clone(),
        false => ops.join("+"),
    }
}

/// "1 node", "2 nodes".
pub(super) fn plural(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// Bytes as people say them.
pub(super) fn size(bytes: usize) -> String {
    let bytes = bytes as f64;
    match bytes {
        b if b >= 1e9 => format!("{} GB", number((b / 1e7).round() / 100.0)),
        b if b >= 1e6 => format!("{} MB", number((b / 1e5).round() / 10.0)),
        b if b >= 1e3 => format!("{} kB", number((b / 1e2).round() / 10.0)),
        b => format!("{b} bytes"),
    }
}
