//! Every row of the table against what ONNX Runtime and the ONNX reference compute: `tests/data/infer.pb` (made by
//! `make_infer.py` beside it) has a node per case, and its inputs and outputs as initializers.

use std::collections::{BTreeMap, BTreeSet};

use super::rule::{Shapes, Values};
use super::table::{TABLE, row_of};
use super::{Call, Fact, Facts, Limits, Value, infer};
use crate::onnx::proto::NodeProto;
use crate::onnx::{Model, load};

/// Rows whose sizes are not known although all inputs are: they depend on data, or on attributes that are not read.
const PARTLY: [&str; 4] = ["Resize", "Upsample", "ConvTranspose", "Attention"];

/// The cases, and all that is true of their values.
struct Cases {
    model: Model,
    truth: BTreeMap<String, Fact>,
}

impl Cases {
    fn load() -> Cases {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/infer.pb");
        let model = load(std::path::Path::new(&path)).unwrap();
        let tensors = model.graph().initializer.iter();
        let truth = tensors.map(|t| (t.name().to_owned(), Fact::of_tensor(t, Limits::NONE)));
        Cases {
            truth: truth.collect(),
            model,
        }
    }

    fn nodes(&self) -> &[NodeProto] {
        &self.model.graph().node
    }

    /// What is inferred of the outputs of a node where `known` is known of its inputs.
    fn infer(&self, node: &NodeProto, known: &BTreeMap<&str, Fact>) -> Vec<Fact> {
        infer(&Call::new(node, Limits::NONE, |_, name| known.get(name)))
    }

    fn inputs<'a>(&'a self, node: &'a NodeProto) -> BTreeMap<&'a str, Fact> {
        let names = node.input.iter().filter(|name| !name.is_empty());
        names
            .map(|name| (name.as_str(), self.truth[name].clone()))
            .collect()
    }
}

fn close(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Ints(a), Value::Ints(b)) => a == b,
        (Value::Floats(a), Value::Floats(b)) => {
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs();
            a.shape() == b.shape() && a.iter().zip(b.iter()).all(near)
        }
        _ => false,
    }
}

/// What in `found` is not true.
fn wrong(found: &Fact, truth: &Fact) -> Option<&'static str> {
    if found.dtype.is_some() && found.dtype != truth.dtype {
        return Some("type");
    }
    if let (Some(found), Some(truth)) = (&found.dims, &truth.dims) {
        let pairs = found.iter().zip(truth);
        if found.len() != truth.len() || pairs.into_iter().any(|(a, b)| a.is_some() && a != b) {
            return Some("shape");
        }
    }
    let values = found.value.as_ref().zip(truth.value.as_ref());
    values.is_some_and(|(a, b)| !close(a, b)).then_some("value")
}

#[test]
fn what_is_inferred_from_everything_is_everything() {
    let cases = Cases::load();
    let mut evaluated = BTreeSet::new();
    for node in cases.nodes() {
        let found = cases.infer(node, &cases.inputs(node));
        for (found, name) in found.iter().zip(&node.output) {
            let truth = &cases.truth[name];
            assert_eq!(wrong(found, truth), None, "{name} of {node:?}: {found:?}");
        }
        assert!(found[0].dtype.is_some(), "no type: {node:?}");
        assert!(
            found[0].shape().is_some() || PARTLY.contains(&node.op_type()) || partly_known(node),
            "no shape: {node:?}"
        );
        if found[0].value.is_some() {
            evaluated.insert(node.op_type());
        }
    }
    for row in TABLE {
        let computes = row.values.compute().is_some();
        assert!(!computes || evaluated.contains(row.op), "{}", row.op);
    }
}

/// Windows that are padded or rounded in ways that no rule follows, and counts that are floats.
fn partly_known(node: &NodeProto) -> bool {
    let open = |a: &str| node.attribute.iter().any(|b| b.name() == a);
    open("auto_pad") || open("ceil_mode") || node.op_type() == "Range"
}

#[test]
fn every_row_has_a_case() {
    let cases = Cases::load();
    let seen: BTreeSet<(&str, &str)> = cases
        .nodes()
        .iter()
        .map(|node| (node.domain(), node.op_type()))
        .collect();
    for row in TABLE {
        // A sequence is no tensor: the container cannot hold it.
        let of_sequences = row.op == "SequenceLength";
        assert!(
            of_sequences || seen.contains(&(row.domain, row.op)),
            "{} {}",
            row.domain,
            row.op
        );
    }
    let mut names: Vec<_> = TABLE.iter().map(|row| (row.domain, row.op)).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TABLE.len(), "an operator has two rows");
}

/// Less and less of a fact.
fn weaker(fact: &Fact) -> Vec<Option<Fact>> {
    let without_value = Fact {
        value: None,
        ..fact.clone()
    };
    let mut all = vec![Some(fact.clone()), Some(without_value.clone())];
    let dims = fact.dims.as_deref().unwrap_or_default();
    for at in 0..dims.len() {
        let mut fewer = dims.to_vec();
        fewer[at] = None;
        all.push(Some(Fact {
            dims: Some(fewer),
            ..without_value.clone()
        }));
    }
    let rank_alone = Fact {
        dims: Some(vec![None; dims.len()]),
        ..without_value.clone()
    };
    let type_alone = Fact {
        dims: None,
        ..without_value
    };
    let shape_alone = Fact {
        dtype: None,
        ..rank_alone.clone()
    };
    all.extend([Some(rank_alone), Some(type_alone), Some(shape_alone), None]);
    all
}

/// Every combination of what may be known of the inputs, but of long lists of inputs only some.
#[test]
fn what_is_inferred_from_less_is_true() {
    let cases = Cases::load();
    for node in cases.nodes() {
        let inputs = cases.inputs(node);
        let options: Vec<(&str, Vec<Option<Fact>>)> = inputs
            .iter()
            .map(|(name, fact)| (*name, weaker(fact)))
            .collect();
        let count: usize = options.iter().map(|(_, o)| o.len()).product();
        for number in (0..count).step_by((count / 3000).max(1)) {
            let mut rest = number;
            let mut known = BTreeMap::new();
            for (name, options) in &options {
                if let Some(fact) = &options[rest % options.len()] {
                    known.insert(*name, fact.clone());
                }
                rest /= options.len();
            }
            for (found, name) in cases.infer(node, &known).iter().zip(&node.output) {
                let wrong = wrong(found, &cases.truth[name]);
                assert_eq!(wrong, None, "{name} of {node:?} from {known:?}: {found:?}");
            }
        }
    }
}

/// The rank of the outputs follows from the ranks of the inputs, unless an input says what it is.
#[test]
fn ranks_follow_from_ranks() {
    let cases = Cases::load();
    for node in cases.nodes() {
        let mut known = cases.inputs(node);
        for fact in known.values_mut() {
            // A list tells by its length.
            if fact.rank() != Some(1) {
                fact.dims = fact.dims.take().map(|dims| vec![None; dims.len()]);
            }
            fact.value = None;
        }
        let found = cases.infer(node, &known);
        let squeezes_all = node.op_type() == "Squeeze" && node.attribute.is_empty();
        if !(squeezes_all || ["GatherND", "Attention"].contains(&node.op_type())) {
            assert!(found[0].rank().is_some(), "no rank: {node:?} {known:?}");
        }
    }
}

/// A type that is known of one value is spread to those that share it, and never to another.
#[test]
fn types_are_tied_as_they_are() {
    let cases = Cases::load();
    for node in cases.nodes() {
        let names = || node.input.iter().chain(&node.output);
        for of in names().filter(|name| !name.is_empty()) {
            let mut facts = Facts::new(Limits::NONE);
            let dtype = cases.truth[of].dtype;
            facts.know(
                of,
                Fact {
                    dtype,
                    ..Fact::default()
                },
            );
            facts.follow(std::iter::once(node));
            for name in names().filter(|name| !name.is_empty()) {
                let found = facts.dtype(name);
                assert!(
                    found.is_none() || found == cases.truth[name].dtype,
                    "{name} is {found:?} by {of}: {node:?}"
                );
            }
        }
    }
}

#[test]
fn large_values_are_not_computed() {
    let cases = Cases::load();
    let none = Limits { ints: 0, floats: 0 };
    for node in cases.nodes() {
        let inputs = cases.inputs(node);
        let found = infer(&Call::new(node, none, |_, name| inputs.get(name)));
        for (found, name) in found.iter().zip(&node.output) {
            let empty = cases.truth[name]
                .value
                .as_ref()
                .is_some_and(Value::is_empty);
            assert!(empty || found.value.is_none(), "{node:?}: {found:?}");
        }
    }
}

/// An operator whose outputs have values each must say their shapes each.
#[test]
fn rows_are_sound() {
    for row in TABLE {
        let shapes = !matches!(row.shapes, Shapes::Unknown);
        let values = !matches!(row.values, Values::Unknown);
        assert!(shapes || !values, "{} has values without a shape", row.op);
        let node = NodeProto {
            op_type: Some(row.op.to_owned()),
            domain: Some(row.domain.to_owned()),
            ..Default::default()
        };
        assert!(row_of(&node).is_some_and(|found| found.op == row.op));
        // A node without inputs or attributes is no reason to panic.
        infer(&Call::new(&node, Limits::NONE, |_, _| None));
    }
}
