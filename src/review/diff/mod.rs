//! What differs between two models, for people.
//!
//! ```text
//! two models ─ matching ─▶ pairs of nodes ─ compare ─▶ entries (changes and unchanged nodes in order)
//!            ─ facts of changed constants, in parallel ─▶ Diff ─▶ text | counts | Markdown | JSON | a page
//! ```
//!
//! Nodes are matched (`matching`) by name, then by what they compute. Every field of the schema is compared, known or not
//! (`rest`); what a reviewer knows under one name is one change: a Q/DQ pair, a weight that was quantized, a Mul and Add
//! behind a norm, a rotation. Blocks (`block`) that changed alike are shown once. Constants are compared byte by byte where they lie in
//! the memory map, and only those that differ are read as numbers.

mod attributes;
mod block;
mod blocks;
mod change;
mod compare;
mod constant;
mod drawing;
mod group;
mod initializers;
mod json;
mod lone;
mod markdown;
mod matching;
mod per_token;
mod replaced;
mod rest;
mod rotation;
mod scope;
mod stat;
mod style;
mod summary;
mod text;
mod trace;

pub use change::{Change, Constants, Kind, Part, Sign};
pub use constant::{Distance, Facts};
pub use json::{
    ByteCounts, ChangeReport, ConstantChange, ConstantFacts, DiffReport, NodeCounts, SCHEMA_VERSION,
};
pub use markdown::{MARKDOWN_BYTES, Page};
pub use style::Style;

use rayon::prelude::*;

use crate::graph::{Blocked, Symmetry};
use crate::onnx::proto::{FunctionProto, GraphProto, ModelProto, TensorProto, ValueInfoProto};
use crate::onnx::{DataType, Model, tensor};
use block::Blocks;
use change::{range_parts, word};
use compare::{Compared, Entry, Job, keyed};

/// The differences between two models.
pub struct Diff {
    entries: Vec<Entry>,
    blocks: Blocks,
    /// Nodes that are in both models, subgraphs and functions included.
    pub matched_nodes: usize,
    /// Nodes of A and of B.
    pub nodes: (usize, usize),
    /// Bytes of the initializers of A and of B.
    pub bytes: (usize, usize),
}

impl Diff {
    /// Every change, in the order of the graphs.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Change(change) => Some(&**change),
            Entry::Same { .. } => None,
        })
    }

    /// Whether the models are the same.
    pub fn is_empty(&self) -> bool {
        self.changes().next().is_none()
    }
}

/// Compares two models. The same models give the same result with any number of threads.
///
/// ```
/// use onnx_osplus::onnx::{self, LoadError};
/// use onnx_osplus::review::diff::{Style, diff};
///
/// let before = onnx::load("models/tiny/model.onnx")?;
/// let mut after = before.clone();
/// after.graph_mut().node[0].name = Some("renamed".to_owned());
/// let found = diff(&before, &after);
/// assert_eq!(found.changes().count(), 1);
/// assert!(found.text(Style { full: true, ..Style::default() }).contains("renamed"));
/// # Ok::<(), LoadError>(())
/// ```
pub fn diff(a: &Model, b: &Model) -> Diff {
    let functions = (bodies(a), bodies(b));
    let names = |model: &'_ Model| -> Vec<String> {
        let mut found = Vec::new();
        collect_names(model.graph(), &mut found);
        found
    };
    let all = [names(a), names(b)].concat();
    let blocks = Blocks::new(all.iter().map(String::as_str));
    let mut compared = Compared::default();
    let bare = |m: &Model| ModelProto {
        graph: None,
        functions: Vec::new(),
        ..shallow(&m.proto)
    };
    let mut head = rest::field_changes(&bare(a), &bare(b), "ModelProto", "");
    let sets = rest::operator_sets(&a.proto.opset_import, &b.proto.opset_import);
    if !sets.is_empty() {
        head.retain(|change| !change.name.starts_with("opset_import"));
        head.splice(0..0, sets);
    }
    let head = head.into_iter().map(|c| Entry::Change(Box::new(c)));
    compared.entries.extend(head);
    compare::graphs(a.graph(), b.graph(), None, "", &blocks, &mut compared);
    compare_functions(&functions.0, &functions.1, &blocks, &mut compared);
    if compared
        .entries
        .iter()
        .all(|e| matches!(e, Entry::Same { .. }))
        && a.proto != b.proto
    {
        // Nothing should come here but NaNs, which are not equal to themselves.
        use prost::Message;
        if a.proto.encode_to_vec() != b.proto.encode_to_vec() {
            let line = vec![word("the files differ in a way that has no name here")];
            let change = Change::new(Sign::Changed, Kind::Model, "model", line);
            compared.entries.push(Entry::Change(Box::new(change)));
        }
    }
    read_constants(&mut compared);
    Diff {
        matched_nodes: compared.matched,
        nodes: compared.nodes,
        entries: compared.entries,
        blocks,
        bytes: (bytes(a), bytes(b)),
    }
}

/// A copy without graph and functions, which are compared by themselves.
fn shallow(m: &ModelProto) -> ModelProto {
    ModelProto {
        ir_version: m.ir_version,
        opset_import: m.opset_import.clone(),
        producer_name: m.producer_name.clone(),
        producer_version: m.producer_version.clone(),
        domain: m.domain.clone(),
        model_version: m.model_version,
        doc_string: m.doc_string.clone(),
        graph: None,
        metadata_props: m.metadata_props.clone(),
        training_info: m.training_info.clone(),
        functions: Vec::new(),
        configuration: m.configuration.clone(),
    }
}

fn bytes(model: &Model) -> usize {
    let size = |t: &TensorProto| t.raw_data.as_ref().map_or(0, |r| r.len());
    model.graph().initializer.iter().map(size).sum()
}

fn collect_names(graph: &GraphProto, found: &mut Vec<String>) {
    found.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
    for node in &graph.node {
        found.push(scope::label(node).to_owned());
        for inner in crate::onnx::node::subgraphs(node) {
            collect_names(inner, found);
        }
    }
}

/// A function as a graph, with its own fields beside it.
struct Body {
    name: String,
    graph: GraphProto,
    bare: FunctionProto,
}

impl compare::Named for Body {
    fn key(&self) -> &str {
        &self.name
    }
}

fn bodies(model: &Model) -> Vec<Body> {
    let info = |name: &String| ValueInfoProto {
        name: Some(name.clone()),
        ..ValueInfoProto::default()
    };
    let body = |f: &FunctionProto| Body {
        name: match f.overload() {
            "" => format!("{}.{}", f.domain(), f.name()),
            overload => format!("{}.{}:{overload}", f.domain(), f.name()),
        },
        graph: GraphProto {
            node: f.node.clone(),
            value_info: f.value_info.clone(),
            input: f.input.iter().map(info).collect(),
            output: f.output.iter().map(info).collect(),
            ..GraphProto::default()
        },
        bare: FunctionProto {
            node: Vec::new(),
            value_info: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
            ..f.clone()
        },
    };
    model.proto.functions.iter().map(body).collect()
}

fn compare_functions<'m>(a: &'m [Body], b: &'m [Body], blocks: &Blocks, out: &mut Compared<'m>) {
    let (ours, theirs) = (keyed(a), keyed(b));
    let whole = |sign, body: &Body| {
        let text = format!("function {}, {} nodes", body.name, body.graph.node.len());
        let mut change = Change::new(sign, Kind::Function, &body.name, vec![word(text)]);
        change.block = "functions".to_owned();
        Entry::Change(Box::new(change))
    };
    for (key, x) in &ours {
        let Some((_, y)) = theirs.iter().find(|(k, _)| k == key) else {
            out.entries.push(whole(Sign::Removed, x));
            continue;
        };
        let place = format!("function {} › ", x.name);
        for mut change in rest::field_changes(&x.bare, &y.bare, "FunctionProto", "") {
            change.block = format!("function {}", x.name);
            out.entries.push(Entry::Change(Box::new(change)));
        }
        compare::graphs(&x.graph, &y.graph, None, &place, blocks, out);
    }
    let new = theirs
        .iter()
        .filter(|(k, _)| ours.iter().all(|(l, _)| l != k));
    out.entries.extend(new.map(|(_, y)| whole(Sign::Added, y)));
    let order = |list: &[((String, usize), &Body)]| -> Vec<(String, usize)> {
        list.iter().map(|(k, _)| k.clone()).collect()
    };
    let (mut x, mut y) = (order(&ours), order(&theirs));
    let same = x == y;
    x.sort();
    y.sort();
    if !same && x == y {
        let line = vec![word("functions are stored in another order")];
        let change = Change::new(Sign::Changed, Kind::Order, "functions", line);
        out.entries.push(Entry::Change(Box::new(change)));
    }
}

/// Reads the constants that changed, and says in the lines of their changes what they are.
fn read_constants(compared: &mut Compared) {
    let read = |job: &Job| -> Constants {
        let tensors = [&job.before, &job.after].map(|side| side.as_ref().map(|(t, _)| *t));
        let [before, after] = constant::facts(tensors);
        let distance = match (&job.before, &job.after) {
            (Some((_, p)), Some((_, q))) if p.moved || q.moved => None,
            (Some((a, p)), Some((b, q))) => distance((a, p), (b, q)),
            _ => None,
        };
        Constants {
            before,
            after,
            distance,
        }
    };
    let facts: Vec<Constants> = compared.jobs.par_iter().map(read).collect();
    for entry in &mut compared.entries {
        let Entry::Change(change) = entry else {
            continue;
        };
        let Some(i) = change.job else { continue };
        let (job, facts) = (&compared.jobs[i], &facts[i]);
        let mut line = vec![word(match change.kind {
            Kind::Weight => "weight  ",
            _ => "constant  ",
        })];
        line.append(&mut change.line);
        line.push(word("  "));
        line.extend(constant_line(job, facts));
        change.line = line;
        if let (Some((a, _)), Some((b, _))) = (&job.before, &job.after) {
            let bare = |t: &TensorProto| TensorProto {
                dims: Vec::new(),
                data_type: None,
                raw_data: None,
                float_data: Vec::new(),
                double_data: Vec::new(),
                int32_data: Vec::new(),
                int64_data: Vec::new(),
                uint64_data: Vec::new(),
                string_data: Vec::new(),
                ..(*t).clone()
            };
            let rest = rest::field_changes(&bare(a), &bare(b), "TensorProto", "");
            let shown = rest.into_iter().filter(|c| c.name != "name");
            change.details.extend(shown.map(|c| c.line));
            let before = facts.before.as_ref().map(|f| f.digest);
            let same = before == facts.after.as_ref().map(|f| f.digest);
            if same && change.details.is_empty() && a.dims == b.dims {
                change.details.push(vec![word(
                    "the same elements, stored in another field of the tensor",
                )]);
            }
        }
        change.constants = Some(facts.clone());
    }
}

/// How far two constants are apart, of which one at least is in blocks.
fn distance(
    a: (&TensorProto, &trace::Trace),
    b: (&TensorProto, &trace::Trace),
) -> Option<constant::Distance> {
    let floats = |(t, trace): (&TensorProto, &trace::Trace)| {
        let blocked = trace.blocked.as_ref()?;
        let floats = blocked.floats()?;
        Some(tensor::from_f32(
            t.name(),
            &blocked.shape,
            &floats,
            DataType::Float,
        ))
    };
    let (x, y) = (floats(a), floats(b));
    // What could not be read as floats is not compared as integers.
    if x.is_none() && a.1.blocked.is_some() || y.is_none() && b.1.blocked.is_some() {
        return None;
    }
    let left = x
        .as_ref()
        .map_or((a.0, a.1.quantized.as_ref()), |t| (t, None));
    let right = y
        .as_ref()
        .map_or((b.0, b.1.quantized.as_ref()), |t| (t, None));
    constant::distance(left, right)
}

/// What a weight is stored as.
fn words(blocked: &Blocked) -> Vec<Part> {
    let what = match blocked.integers() {
        Some(DataType::Uint8) | None => format!("{} bits", blocked.bits),
        Some(dtype) => dtype.as_str_name().to_lowercase(),
    };
    let symmetry = match blocked.symmetry() {
        Symmetry::Symmetric => "symmetric",
        Symmetry::Asymmetric => "asymmetric",
        Symmetry::FloatZero => "with float zero points",
    };
    let permuted = if blocked.is_permuted() {
        ", with g_idx"
    } else {
        ""
    };
    let group = blocked.block;
    let text = format!("{what} in groups of {group}, {symmetry}{permuted}, scale ");
    let mut parts = vec![word(text)];
    parts.extend(range_parts(constant::range(blocked.scales())));
    parts
}

/// `float[384, 1536] -0.5..0.7 → int8 per channel (axis 1), scale 0.0009..0.027, largest change 0.011 (1.6 %)`.
fn constant_line(job: &Job, facts: &Constants) -> Vec<Part> {
    let whole = |f: &Facts| {
        let mut parts = vec![word(format!("{} ", f.ty))];
        parts.extend(range_parts(f.range));
        parts.extend([word("  "), Part::Digest(Some(f.digest))]);
        parts
    };
    let quantized = |f: &Facts, trace: &trace::Trace, other: &Facts| {
        if let Some(blocked) = &trace.blocked {
            return words(blocked);
        }
        let Some(q) = &trace.quantized else {
            let mut parts = vec![word(format!("{} ", f.ty))];
            parts.extend(range_parts(f.range));
            return parts;
        };
        let (ty, shape) = f.ty.split_once('[').unwrap_or((&f.ty, ""));
        let same = other.ty.split_once('[').map_or("", |(_, shape)| shape) == shape;
        let shape = if same {
            String::new()
        } else {
            format!("[{shape}")
        };
        let of = match q.scale.dims.as_slice() {
            [] | [1] => "per tensor".to_owned(),
            [_] => format!("per channel (axis {})", q.axis),
            dims => match dims
                .iter()
                .enumerate()
                .filter(|(_, d)| **d != 1)
                .collect::<Vec<_>>()[..]
            {
                [] => "per tensor".to_owned(),
                [(axis, _)] => format!("per channel (axis {axis})"),
                _ => format!("by blocks, scale {dims:?}"),
            },
        };
        let mut parts = vec![word(format!("{ty}{shape} {of}, scale "))];
        parts.extend(range_parts(constant::range(q.scale)));
        parts
    };
    let mut line = match (&facts.before, &facts.after, &job.before, &job.after) {
        (Some(x), Some(y), Some((_, p)), Some((_, q))) => {
            let known = |t: &trace::Trace| t.quantized.is_some() || t.blocked.is_some();
            let stored = known(p) || known(q);
            let mut line = match stored {
                true => quantized(x, p, y),
                false => {
                    let mut parts = vec![word(format!("{} ", x.ty))];
                    parts.extend(range_parts(x.range));
                    parts
                }
            };
            line.push(word(" → "));
            match stored {
                true => line.extend(quantized(y, q, x)),
                false => {
                    line.extend((x.ty != y.ty).then(|| word(format!("{} ", y.ty))));
                    line.extend(range_parts(y.range));
                }
            }
            line
        }
        (Some(x), None, ..) | (None, Some(x), ..) => whole(x),
        _ => Vec::new(),
    };
    let rotated = |side: &Option<(_, trace::Trace)>| side.as_ref().is_some_and(|(_, t)| t.rotated);
    if rotated(&job.before) || rotated(&job.after) {
        line.push(word(", rotated"));
    }
    if let Some(distance) = facts.distance {
        line.extend([word(", largest change "), Part::number(distance.largest)]);
        if let Some(relative) = distance.relative {
            let percent = Part::number(100.0 * relative);
            line.extend([word(" ("), percent, word(" %)")]);
        }
    }
    if let (Some(x), Some(y)) = (&facts.before, &facts.after) {
        let digests = [
            Part::Digest(Some(x.digest)),
            word("→"),
            Part::Digest(Some(y.digest)),
        ];
        line.push(word("  "));
        line.extend(digests);
    }
    line
}

/// A number with four significant digits.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{}", if value == 0.0 { 0.0 } else { value });
    }
    if value.fract() == 0.0 && value.abs() < 1e7 {
        return format!("{value}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-4..7).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let text = format!("{value:.*}", usize::try_from(3 - magnitude).unwrap_or(0));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}
