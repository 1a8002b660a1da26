//! The flat form of If nodes from outside: there and back again, and one branch taken.

use crate::common::graphs::{info, model};
use onnx_osplus::graph::branches::{Branch, FlatModel};
use onnx_osplus::graph::{NodeId, Patch, check};
use onnx_osplus::onnx::node::{graph_attr, int_attr, make_node, subgraphs};
use onnx_osplus::onnx::proto::*;
use onnx_osplus::onnx::{DataType, Model, tensor};

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    make_node(
        op,
        &format!("/{op}/{}", outputs[0]),
        inputs,
        outputs,
        vec![],
    )
}

fn value(name: &str) -> ValueInfoProto {
    info(name, DataType::Float, &[Err("n"), Ok(4)])
}

fn switch(name: &str) -> ValueInfoProto {
    info(name, DataType::Bool, &[Ok(1)])
}

fn float(name: &str, value: f32) -> TensorProto {
    tensor::from_f32(name, &[4], &[value; 4], DataType::Float)
}

fn branch(nodes: Vec<NodeProto>, outputs: &[&str], initializer: Vec<TensorProto>) -> GraphProto {
    GraphProto {
        name: Some("branch".to_owned()),
        node: nodes,
        output: outputs.iter().map(|o| value(o)).collect(),
        initializer,
        ..GraphProto::default()
    }
}

fn choice(
    condition: &str,
    outputs: &[&str],
    then_branch: GraphProto,
    else_branch: GraphProto,
) -> NodeProto {
    let mut node = node("If", &[condition], outputs);
    // The order of attributes is the file's affair.
    node.attribute.push(graph_attr("else_branch", else_branch));
    node.attribute.push(graph_attr("then_branch", then_branch));
    node
}

/// Two branches that use the same names for other values, read x from outside, have constants of their own and hold an
/// If each: one on a second switch, one on data.
fn nested() -> Model {
    let inner = choice(
        "other",
        &["c"],
        branch(vec![node("Neg", &["b"], &["t"])], &["t"], vec![]),
        branch(
            vec![node("Mul", &["b", "k"], &["t"])],
            &["t"],
            vec![float("k", 3.0)],
        ),
    );
    let mut then = branch(
        vec![
            node("Add", &["x", "k"], &["b"]),
            inner,
            node("Relu", &["c"], &["d"]),
        ],
        &["d", "b"],
        vec![float("k", 1.0)],
    );
    then.value_info = vec![value("b"), value("x")];
    then.doc_string = Some("with".to_owned());
    let on_data = choice(
        "positive",
        &["d"],
        branch(vec![node("Neg", &["b"], &["t"])], &["t"], vec![]),
        branch(vec![node("Exp", &["b"], &["t"])], &["t"], vec![]),
    );
    let mut otherwise = branch(
        vec![
            node("Sub", &["x", "k"], &["b"]),
            node("ReduceMax", &["b"], &["top"]),
            node("Cast", &["top"], &["positive"]),
            on_data,
        ],
        &["d", "x"],
        vec![float("k", 2.0)],
    );
    otherwise.node[2]
        .attribute
        .push(int_attr("to", DataType::Bool as i64));
    otherwise.value_info = vec![value("top"), value("b")];
    let mut outer = choice("flag", &["y", "z"], then, otherwise);
    outer.doc_string = Some("the outer one".to_owned());
    outer.domain = Some("ai.onnx".to_owned());
    model(
        17,
        8,
        GraphProto {
            name: Some("main".to_owned()),
            node: vec![
                node("Abs", &["raw"], &["x"]),
                outer,
                node("Exp", &["y"], &["end"]),
            ],
            input: vec![value("raw"), switch("flag"), switch("other")],
            output: vec![value("end"), value("z")],
            value_info: vec![value("x"), value("y")],
            ..GraphProto::default()
        },
    )
}

fn flat(model: &Model) -> FlatModel {
    FlatModel::of(model.clone())
}

#[test]
fn there_and_back_is_the_same_model() {
    let model = nested();
    let flat = flat(&model);
    let view = flat.view();
    check(view.model()).unwrap();
    let ops: Vec<&str> = view.graph().node.iter().map(|n| n.op_type()).collect();
    // The If on data stays a node.
    assert_eq!(ops.iter().filter(|op| **op == "If").count(), 3);
    for op in ["Add", "Sub", "Mul", "Neg"] {
        assert!(ops.contains(&op), "{op} is in the list: {ops:?}");
    }
    assert_eq!(flat.unflatten(), model);
    let twice = FlatModel::of(view.model().clone());
    assert_eq!(twice, flat, "what is flat stays so");
}

#[test]
fn nodes_know_their_branch() {
    let flat = flat(&nested());
    let branches = flat.branch_of_nodes();
    let of = |op: &str| {
        let at = flat
            .view()
            .graph()
            .node
            .iter()
            .position(|n| n.op_type() == op);
        branches[at.unwrap()].clone()
    };
    assert_eq!(of("Abs"), None);
    assert_eq!(of("Add").unwrap(), "then_branch of If `/If/y`");
    assert_eq!(of("Sub").unwrap(), "else_branch of If `/If/y`");
    assert_eq!(of("Mul").unwrap(), "else_branch of If `/If/c`");
    assert_eq!(of("Exp"), None, "behind the If");
}

#[test]
fn one_branch_is_taken() {
    for (then, kept, left_out) in [(true, "Add", "Sub"), (false, "Sub", "Add")] {
        let mut taken = flat(&nested());
        assert_eq!(taken.first_condition(), Some("flag"));
        let dropped = taken.take(if then { Branch::Then } else { Branch::Else });
        check(taken.view().model()).unwrap();
        let has = |op: &str| taken.view().graph().node.iter().any(|n| n.op_type() == op);
        assert!(has(kept) && !has(left_out));
        assert!(!dropped.is_empty());
        if then {
            assert_eq!(taken.first_condition(), Some("other"));
            taken.take(Branch::Else);
        }
        assert_eq!(taken.first_condition(), None);
        check(taken.view().model()).unwrap();
    }
}

#[test]
fn conditions_on_data_are_not_flattened() {
    let reads = |op: &str, input: &str| {
        let nodes = vec![
            node(op, &[input], &["n"]),
            node("Cast", &["n"], &["c"]),
            choice(
                "c",
                &["y"],
                branch(vec![node("Neg", &["x"], &["t"])], &["t"], vec![]),
                branch(vec![node("Exp", &["x"], &["t"])], &["t"], vec![]),
            ),
        ];
        let graph = GraphProto {
            node: nodes,
            input: vec![value("x"), switch("flag")],
            output: vec![value("y")],
            ..GraphProto::default()
        };
        let before = model(17, 8, graph);
        *flat(&before).view().model() == before
    };
    assert!(reads("ReduceMax", "x"), "the data itself");
    assert!(!reads("Shape", "x"), "shapes are fixed for a plan");
    assert!(!reads("Not", "flag"), "a switch");
    assert!(reads("RandomNormalLike", "flag"), "chance");
}

/// A branch may give what it stores: the one that has no past keys and values gives empty ones.
#[test]
fn constants_that_a_branch_gives_stay_in_it() {
    let mut stored = branch(vec![node("Neg", &["x"], &["t"])], &["t", "empty"], vec![]);
    stored.initializer = vec![float("empty", 0.5)];
    let mut read = branch(
        vec![node("Mul", &["x", "empty"], &["t"])],
        &["t", "empty"],
        vec![],
    );
    read.initializer = vec![float("empty", 2.0)];
    let graph = GraphProto {
        node: vec![choice("flag", &["y", "z"], stored, read)],
        input: vec![value("x"), switch("flag")],
        output: vec![value("y"), value("z")],
        ..GraphProto::default()
    };
    let before = model(17, 8, graph);
    let mut flat = flat(&before);
    assert_eq!(flat.unflatten(), before);
    let view = flat.view();
    let at = NodeId(
        view.nodes()
            .position(|(_, n)| n.op_type() == "Neg")
            .unwrap(),
    );
    let mut patch = Patch::new("not negative");
    patch.replace(at, node("Abs", &["x"], &[&view.node(at).output[0]]));
    drop(view);
    flat.apply(vec![patch]).unwrap();
    let after = flat.unflatten();
    check(&after).unwrap();
    for (before, after) in subgraphs(&before.graph().node[0]).zip(subgraphs(&after.graph().node[0]))
    {
        assert_eq!(before.initializer, after.initializer);
        assert_eq!(before.output, after.output);
    }
}

/// What a patch puts between the nodes of a branch belongs to it; what several places read is in each of them.
#[test]
fn insertions_stay_in_their_branch() {
    let twin = |op: &str| branch(vec![node(op, &["x"], &["t"])], &["t"], vec![]);
    let graph = GraphProto {
        node: vec![
            choice("flag", &["y"], twin("Neg"), twin("Exp")),
            node("Log", &["x"], &["z"]),
        ],
        input: vec![value("x"), switch("flag")],
        output: vec![value("y"), value("z")],
        ..GraphProto::default()
    };
    let mut changed = flat(&model(17, 8, graph));
    let view = changed.view();
    let at = |op: &str| NodeId(view.nodes().position(|(_, n)| n.op_type() == op).unwrap());
    // The branches are in the order of the file: else comes first.
    let first = at("Exp");
    let mut patch = Patch::new("halve x");
    patch.insert_before(first, node("Mul", &["x", "half"], &["halved"]));
    patch.add_initializer(float("half", 0.5));
    for op in ["Exp", "Neg", "Log"] {
        patch.rewire(at(op), 0, "halved");
    }
    changed.apply(vec![patch]).unwrap();
    let result = changed.unflatten();
    check(&result).unwrap();
    let ops = |nodes: &[NodeProto]| -> Vec<String> {
        nodes.iter().map(|n| n.op_type().to_owned()).collect()
    };
    assert_eq!(ops(&result.graph().node), ["If", "Mul", "Log"]);
    let branches: Vec<_> = subgraphs(&result.graph().node[0])
        .map(|g| ops(&g.node))
        .collect();
    assert_eq!(branches, [["Mul", "Exp"], ["Mul", "Neg"]]);
}
