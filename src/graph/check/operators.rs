//! Whether a node can mean anything: as many inputs and outputs as its operator has in any version, and attributes within
//! the ranges that hold whatever the shapes are. (Those that depend on shapes are checked where shapes are known, in the
//! calibration copy.)

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::error::GraphError;
use crate::graph::functions::{Functions, label};
use crate::onnx::node::{attr_s, subgraphs};
use crate::onnx::op;
use crate::onnx::proto::{AttributeProto, NodeProto};
use crate::onnx::{DataType, Model};

/// The newest operator set that `proto/arity.txt` was made from.
const NEWEST: i64 = 28;

/// More axes than any tensor has.
const MOST_AXES: i64 = 64;

/// Fewest and most inputs, fewest and most outputs.
type Arity = [usize; 4];

static ARITY: LazyLock<BTreeMap<&str, Arity>> = LazyLock::new(|| {
    let lines = include_str!("../../../proto/arity.txt").lines();
    let rows = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let mut arity = [0, usize::MAX, 0, usize::MAX];
        for (number, word) in arity.iter_mut().zip(words) {
            // A star is no limit.
            *number = word.parse().unwrap_or(*number);
        }
        (name, arity)
    });
    rows.collect()
});

pub(super) fn check(model: &Model) -> Result<(), GraphError> {
    let functions = Functions::new(&model.proto.functions);
    let known = model.opset() <= NEWEST;
    nodes(&model.graph().node, &functions, known)?;
    let bodies = model.proto.functions.iter();
    bodies
        .map(|f| &f.node)
        .try_for_each(|body| nodes(body, &functions, known))
}

fn nodes(all: &[NodeProto], functions: &Functions, known: bool) -> Result<(), GraphError> {
    for node in all {
        let standard = matches!(node.domain(), "" | "ai.onnx") && functions.of(node).is_none();
        let problem = match standard {
            true if known => arity(node).or_else(|| attributes(node)),
            true => attributes(node),
            false => None,
        };
        let problem = problem.or_else(|| equation(node).filter(|_| standard));
        if let Some(problem) = problem {
            return Err(GraphError::Node {
                node: label(node),
                op: node.op_type().to_owned(),
                problem,
            });
        }
        subgraphs(node).try_for_each(|graph| nodes(&graph.node, functions, known))?;
    }
    Ok(())
}

/// What is wrong with the number of inputs and outputs. Names left out at the end do not count.
fn arity(node: &NodeProto) -> Option<String> {
    let [fewest, most, fewest_out, most_out] = *ARITY.get(node.op_type())?;
    let count = |names: &[String]| {
        names
            .iter()
            .rposition(|n| !n.is_empty())
            .map_or(0, |i| i + 1)
    };
    let (inputs, outputs) = (count(&node.input), count(&node.output));
    let wanted = |fewest: usize, most: usize| match most {
        _ if fewest == most => format!("{fewest}"),
        usize::MAX => format!("{fewest} or more"),
        most => format!("{fewest} to {most}"),
    };
    if !(fewest..=most).contains(&inputs) {
        return Some(format!(
            "has {inputs} inputs, expected {}",
            wanted(fewest, most)
        ));
    }
    if !(fewest_out..=most_out).contains(&outputs) {
        let wanted = wanted(fewest_out, most_out);
        return Some(format!("has {outputs} outputs, expected {wanted}"));
    }
    // The few operators with an input that may be left out before one that may not.
    let free = matches!(
        node.op_type(),
        op::Loop | op::Resize | op::Upsample | op::Scan
    );
    let missing = node.input.iter().take(fewest).position(String::is_empty);
    missing
        .filter(|_| !free)
        .map(|slot| format!("leaves out input {slot}, which it needs"))
}

/// What is wrong with an attribute.
fn attributes(node: &NodeProto) -> Option<String> {
    let own = node
        .attribute
        .iter()
        .filter(|a| a.ref_attr_name().is_empty());
    own.filter_map(|attribute| Some((attribute, out_of_range(attribute)?)))
        .map(|(attribute, wanted)| {
            format!(
                "has {} {}, expected {wanted}",
                attribute.name(),
                given(attribute)
            )
        })
        .next()
}

/// What is wrong with the equation of an Einsum: as many terms as inputs, and no letter in the output that no input has.
fn equation(node: &NodeProto) -> Option<String> {
    let text = attr_s(node, "equation").filter(|_| node.op_type() == op::Einsum)?;
    let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let (inputs, output) = plain.split_once("->").unwrap_or((&plain, ""));
    let terms = inputs.split(',').count();
    if terms != node.input.len() {
        return Some(format!(
            "has the equation `{text}` for {} inputs",
            node.input.len()
        ));
    }
    let mut letters = output.chars().filter(|&c| c != '.');
    let new = letters.find(|&c| !inputs.contains(c))?;
    Some(format!(
        "has the equation `{text}`, in which no input has `{new}`"
    ))
}

fn given(attribute: &AttributeProto) -> String {
    match attribute.ints.as_slice() {
        [] => attribute.i().to_string(),
        ints if ints.len() > 8 => format!("{:?} …", &ints[..8]),
        ints => format!("{ints:?}"),
    }
}

/// What an attribute should be, if it is not.
fn out_of_range(attribute: &AttributeProto) -> Option<&'static str> {
    let (one, all) = (attribute.i(), attribute.ints.as_slice());
    let is_one = attribute.i.is_some();
    let axis = |axis: i64| (-MOST_AXES..MOST_AXES).contains(&axis);
    let (fits, wanted) = match attribute.name() {
        "axis" => (!is_one || axis(one), "an axis"),
        "axes" => (all.iter().all(|&a| axis(a)), "axes"),
        "perm" => (is_permutation(all), "each axis once"),
        "split" => (all.iter().all(|&n| n >= 0), "sizes of 0 or more"),
        "num_outputs" => (!is_one || (1..=1 << 16).contains(&one), "1 to 65536"),
        "block_size" => (!is_one || one >= 0, "0 or more"),
        "blocksize" | "group" | "num_heads" => (!is_one || one >= 1, "1 or more"),
        "kernel_shape" | "strides" | "dilations" => {
            let fits = |n: &i64| (1..=i64::from(i32::MAX)).contains(n);
            (all.iter().all(fits), "sizes of 1 or more")
        }
        "to" | "dtype" | "output_dtype" | "saturate_to" => {
            (!is_one || is_type(one), "an element type")
        }
        _ => return None,
    };
    (!fits).then_some(wanted)
}

fn is_permutation(perm: &[i64]) -> bool {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    sorted.iter().enumerate().all(|(i, &axis)| axis == i as i64)
}

/// 0, no type, is the default of some.
fn is_type(code: i64) -> bool {
    i32::try_from(code).is_ok_and(|code| DataType::try_from(code).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::node::{int_attr, ints_attr, make_node};

    fn told(node: &NodeProto) -> Option<String> {
        arity(node).or_else(|| attributes(node))
    }

    #[test]
    fn a_node_has_what_its_operator_allows() {
        let node = |op: &str, inputs: &[&str], outputs: &[&str], attributes| {
            told(&make_node(op, "", inputs, outputs, attributes))
        };
        let good = [
            node("MatMul", &["a", "b"], &["y"], vec![]),
            node("Clip", &["x", "", "max"], &["y"], vec![]),
            node("Gemm", &["a", "b", ""], &["y"], vec![]),
            node("Concat", &["a"; 40], &["y"], vec![int_attr("axis", -1)]),
            node(
                "Transpose",
                &["a"],
                &["y"],
                vec![ints_attr("perm", &[2, 0, 1])],
            ),
            node("Loop", &["", "go"], &["y"], vec![]),
        ];
        assert_eq!(good, [const { None }; 6]);
        let bad = [
            (
                node("MatMul", &["a"], &["y"], vec![]),
                "1 inputs, expected 2",
            ),
            (
                node("Relu", &["a", "b"], &["y"], vec![]),
                "2 inputs, expected 1",
            ),
            (
                node("MatMul", &["", "b"], &["y"], vec![]),
                "leaves out input 0",
            ),
            (
                node("Add", &["a", "b"], &["y", "z"], vec![]),
                "2 outputs, expected 1",
            ),
            (
                node("Softmax", &["a"], &["y"], vec![int_attr("axis", 1 << 40)]),
                "an axis",
            ),
            (
                node(
                    "Transpose",
                    &["a"],
                    &["y"],
                    vec![ints_attr("perm", &[0, 0])],
                ),
                "perm [0, 0]",
            ),
            (
                node("Cast", &["a"], &["y"], vec![int_attr("to", 99)]),
                "an element type",
            ),
            (
                node("Split", &["a"], &["y"], vec![ints_attr("split", &[-1])]),
                "split [-1]",
            ),
        ];
        for (found, wanted) in bad {
            let found = found.unwrap();
            assert!(found.contains(wanted), "{found}");
        }
    }

    #[test]
    fn an_equation_fits_its_inputs() {
        let told = |text: &str| {
            let attribute = crate::onnx::node::string_attr("equation", text);
            equation(&make_node(
                "Einsum",
                "",
                &["a", "b"],
                &["y"],
                vec![attribute],
            ))
        };
        assert_eq!(told("bsk, kn -> bsn"), None);
        assert_eq!(told("...k,kn->...n"), None);
        assert_eq!(told("ij,jk"), None);
        assert!(told("bsk,kn->bsq").unwrap().contains("`q`"));
        assert!(told("bsk->bsk").unwrap().contains("2 inputs"));
    }
}
