//! The branches of If nodes in one list with the nodes around them: the *flat form*.
//!
//! ```text
//! y = If(c) { then: a; b } else { d }   ──flatten──▶   [then] a  b  [else] d  y = If'(c)   ──unflatten──▶   the same
//! ```
//!
//! A merged decoder is one If whose branches are a whole model each. In the flat form norms, Linears, sites and
//! weights of both branches are found, folded and quantized by the same code as everywhere else, and a weight that both
//! read is seen to be shared. Markers in the list say where a branch begins; If' keeps what else there is to say of
//! the If, and reads the branches' outputs. Nothing outside of a run ever sees the form, because it is a type of its own, [`FlatModel`], which no file is written
//! from: [`FlatModel::unflatten`] turns it back, byte for byte where nothing was changed.
//!
//! Flattened is every If whose condition follows from the shapes of the inputs and from inputs of one boolean
//! (`use_cache_branch`): for given inputs one branch can be [taken](FlatModel::take), and the rest left out.

mod flat;
mod flatten;
mod names;
mod unflatten;

use crate::onnx::Model;
use crate::onnx::node::{attr, attr_i, make_node};
use crate::onnx::op;
use crate::onnx::proto::NodeProto;

pub use flat::FlatModel;

/// The domain of markers and of If'.
const DOMAIN: &str = "onnx-osplus";

/// Whether a node begins a branch.
fn is_marker(node: &NodeProto) -> bool {
    node.domain() == DOMAIN && node.op_type() != op::If
}

/// Whether a node ends the second branch, and is the If.
fn is_end(node: &NodeProto) -> bool {
    node.domain() == DOMAIN && node.op_type() == op::If
}

/// 0 or 1: which of the two branches a marker begins, in the order of the If's attributes.
fn number(marker: &NodeProto) -> i64 {
    attr_i(marker, "number").unwrap_or(0)
}

/// A list of names that a marker carries.
fn listed(marker: &NodeProto, list: &str) -> Vec<String> {
    let strings = attr(marker, list).map_or(&[][..], |a| &a.strings);
    let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
    strings.iter().map(text).collect()
}

/// The branch that each node of the list is in, from the outermost on: number of the If in the list, number of the
/// branch. An If' is outside of its branches, and so are markers.
fn paths(nodes: &[NodeProto]) -> Vec<Vec<(usize, usize)>> {
    let (mut path, mut count) = (Vec::new(), 0);
    let mut all = Vec::with_capacity(nodes.len());
    for node in nodes {
        if is_marker(node) {
            if number(node) == 0 {
                all.push(path.clone());
                path.push((count, 0));
                count += 1;
            } else if let Some((id, _)) = path.pop() {
                all.push(path.clone());
                path.push((id, 1));
            }
            continue;
        }
        if is_end(node) {
            path.pop();
        }
        all.push(path.clone());
    }
    all
}

/// For each node of a model in flat form the innermost branch it is in, in words; `None` outside.
pub(crate) fn branch_of_nodes(model: &Model) -> Vec<Option<String>> {
    let nodes = &model.graph().node;
    let mut open: Vec<String> = Vec::new();
    let mut all = Vec::with_capacity(nodes.len());
    for node in nodes {
        if is_marker(node) {
            if number(node) > 0 {
                open.pop();
            }
            open.push(format!("{} of If `{}`", node.op_type(), node.name()));
            all.push(None);
            continue;
        }
        if is_end(node) {
            open.pop();
        }
        all.push(open.last().cloned());
    }
    all
}

/// The condition of the first If of a model in flat form that is in no other; `None` if there is no If left to decide.
fn first_condition(model: &Model) -> Option<&str> {
    let (_, _, end) = first(&model.graph().node)?;
    model.graph().node[end].input.first().map(String::as_str)
}

/// The places of the two markers and of the end of the first If.
fn first(nodes: &[NodeProto]) -> Option<(usize, usize, usize)> {
    let start = nodes.iter().position(is_marker)?;
    let (mut depth, mut second) = (0, None);
    for (i, node) in nodes.iter().enumerate().skip(start) {
        if is_marker(node) && number(node) == 0 {
            depth += 1;
        } else if is_marker(node) && depth == 1 {
            second = Some(i);
        } else if is_end(node) {
            depth -= 1;
            if depth == 0 {
                return Some((start, second?, i));
            }
        }
    }
    None
}

/// A branch of an If.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// That of a condition which is true.
    Then,
    /// That of one which is false.
    Else,
}

/// Puts one branch of the first If in the place of the If, and leaves the other out. Returns the names of the values
/// that nothing computes any more.
fn take(model: &mut Model, branch: Branch) -> Vec<String> {
    let Some((start, second, end)) = first(&model.graph().node) else {
        return Vec::new();
    };
    let nodes = std::mem::take(&mut model.graph_mut().node);
    let wanted = match branch {
        Branch::Then => "then_branch",
        Branch::Else => "else_branch",
    };
    let first_is_wanted = nodes[start].op_type() == wanted;
    let mut dropped = Vec::new();
    let mut kept = Vec::with_capacity(nodes.len());
    for (i, node) in nodes.into_iter().enumerate() {
        let inside = start < i && i < end;
        if i == start || i == second {
            continue;
        } else if inside && (i < second) != first_is_wanted {
            dropped.extend(node.output.into_iter().filter(|o| !o.is_empty()));
        } else if i == end {
            let outputs = attr(&node, wanted).and_then(|a| a.g.as_ref());
            let outputs = outputs.map_or(&[][..], |g| &g.output);
            for (from, to) in outputs.iter().zip(&node.output) {
                if !to.is_empty() {
                    let name = format!("{}/{to}", node.name());
                    kept.push(make_node(
                        op::Identity,
                        &name,
                        &[from.name()],
                        &[to],
                        vec![],
                    ));
                }
            }
        } else {
            kept.push(node);
        }
    }
    model.graph_mut().node = kept;
    dropped
}
