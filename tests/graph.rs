//! The graph module from outside: the index, the constants, new names, patches.

use std::collections::BTreeSet;

use crate::common;
use crate::common::graphs::{FORMS, Size, info, model};
use ndarray::{ArrayD, IxDyn};
use onnx_osplus::graph::{
    Constant, GraphError, Names, NodeId, Patch, PatchError, Source, Use, View, apply, check,
};
use onnx_osplus::onnx::node::{
    float_attr, floats_attr, graph_attr, int_attr, ints_attr, make_node, string_attr, tensor_attr,
};
use onnx_osplus::onnx::proto::*;
use onnx_osplus::onnx::{DataType, Model, load, tensor};
use proptest::prelude::*;

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    make_node(op, outputs[0], inputs, outputs, vec![])
}

fn float(name: &str, shape: &[usize], data: &[f32]) -> TensorProto {
    tensor::from_f32(name, shape, data, DataType::Float)
}

fn value(name: &str) -> ValueInfoProto {
    info(name, DataType::Float, &[Err("n"), Ok(4)])
}

/// x ─ Split ─ (a, b); a ─ Relu ─ c; If(flag) reads b two graphs deep; outputs c and b; w is a constant.
fn branching() -> GraphProto {
    let inner = GraphProto {
        node: vec![node("Neg", &["b"], &["inner_out"])],
        output: vec![value("inner_out")],
        ..GraphProto::default()
    };
    let mut nested = node("If", &["local"], &["nested_out"]);
    nested.attribute.push(graph_attr("then_branch", inner));
    let outer = GraphProto {
        node: vec![node("Not", &["flag"], &["local"]), nested],
        output: vec![value("nested_out")],
        initializer: vec![float("a", &[1], &[0.0])],
        ..GraphProto::default()
    };
    let mut chosen = node("If", &["flag"], &["chosen"]);
    chosen.attribute.push(graph_attr("then_branch", outer));
    GraphProto {
        node: vec![
            node("Split", &["x"], &["a", "", "b"]),
            node("Relu", &["a"], &["c"]),
            node("Add", &["c", "c"], &["d"]),
            chosen,
        ],
        input: vec![value("x"), info("flag", DataType::Bool, &[]), value("w")],
        output: vec![value("c"), value("b"), value("d"), value("chosen")],
        initializer: vec![float("w", &[2, 4], &[0.0; 8])],
        ..GraphProto::default()
    }
}

mod view {
    use super::*;

    #[test]
    fn producers_know_their_slot() {
        let model = model(17, 8, branching());
        let view = View::new(&model);
        let id = |name| view.value(name).unwrap();
        assert_eq!(view.producer(id("b")), Some((NodeId(0), 2)));
        assert_eq!(view.producer_is(id("c"), "Relu"), Some(NodeId(1)));
        assert_eq!(view.producer_is(id("c"), "Neg"), None);
        assert_eq!(
            view.producer_is(id("b"), "Split"),
            None,
            "not the first output"
        );
        assert_eq!(view.output(NodeId(0), 1), None, "left out");
        assert_eq!(view.output(NodeId(0), 2), Some(id("b")));
        assert_eq!(view.input(NodeId(2), 1), Some(id("c")));
        assert_eq!(view.input(NodeId(2), 2), None);
        assert_eq!(view.value(""), None);
        assert_eq!(view.value("nowhere"), None);
    }

    #[test]
    fn uses_are_nodes_captures_and_graph_outputs() {
        let model = model(17, 8, branching());
        let view = View::new(&model);
        let uses = |name| view.uses(view.value(name).unwrap());
        let read = |node, input| Use::Node {
            node: NodeId(node),
            input,
        };
        assert_eq!(
            uses("a"),
            [read(1, 0)],
            "the subgraph has an `a` of its own"
        );
        assert_eq!(
            uses("b"),
            [Use::Captured { node: NodeId(3) }, Use::GraphOutput(1)]
        );
        assert_eq!(uses("c"), [read(2, 0), read(2, 1), Use::GraphOutput(0)]);
        assert_eq!(
            uses("flag"),
            [read(3, 0), Use::Captured { node: NodeId(3) }]
        );
        assert_eq!(
            view.only_reader(view.value("a").unwrap()),
            Some((NodeId(1), 0))
        );
        assert_eq!(view.only_reader(view.value("b").unwrap()), None);
        assert_eq!(view.value("local"), None, "defined inside of the subgraph");
    }

    #[test]
    fn an_initializer_that_is_an_input_is_constant_before_ir_4_only() {
        for (ir, constant) in [(3, true), (4, false), (8, false)] {
            let model = model(9, ir, branching());
            let view = View::new(&model);
            let w = view.value("w").unwrap();
            let expected = if constant {
                Source::Initializer(0)
            } else {
                Source::Input(2)
            };
            assert_eq!(view.source(w), expected, "IR {ir}");
            assert_eq!(view.is_constant(w), constant);
            assert_eq!(view.constant(w).is_some(), constant);
            assert_eq!(view.initializer(w).is_some(), constant);
        }
    }

    #[test]
    fn shapes_come_from_initializers_and_value_infos() {
        let mut graph = branching();
        graph
            .value_info
            .push(info("a", DataType::Float16, &[Err("n"), Ok(7), Ok(-1)]));
        let model = model(17, 3, graph);
        let view = View::new(&model);
        let shape = |name| view.shape(view.value(name).unwrap());
        assert_eq!(shape("x"), Some(vec![None, Some(4)]));
        assert_eq!(
            shape("w"),
            Some(vec![Some(2), Some(4)]),
            "the constant knows better"
        );
        assert_eq!(shape("flag"), Some(vec![]));
        assert_eq!(shape("a"), Some(vec![None, Some(7), None]));
        assert_eq!(shape("c"), Some(vec![None, Some(4)]));
        let elem_type = |name| view.elem_type(view.value(name).unwrap());
        assert_eq!(elem_type("a"), Some(DataType::Float16 as i32));
        assert_eq!(elem_type("w"), Some(DataType::Float as i32));
    }

    #[test]
    fn operators_of_other_domains_have_no_standard_name() {
        let mut graph = branching();
        graph.node[1].domain = Some("com.microsoft".to_owned());
        graph.node[2].domain = Some("ai.onnx".to_owned());
        graph.node[2].name = Some(String::new());
        let model = model(17, 8, graph);
        let view = View::new(&model);
        assert_eq!(view.op(NodeId(1)), "");
        assert_eq!(view.op(NodeId(2)), "Add");
        assert_eq!(view.node_name(NodeId(2)), "d", "its first output stands in");
    }
}

mod constants {
    use super::*;

    /// The constant `out` of a graph with these nodes and initializers.
    fn evaluate(nodes: Vec<NodeProto>, initializers: Vec<TensorProto>) -> Option<Constant> {
        let graph = GraphProto {
            node: nodes,
            initializer: initializers,
            input: vec![value("x")],
            ..GraphProto::default()
        };
        let model = model(17, 8, graph);
        let view = View::new(&model);
        let out = view.value("out").unwrap();
        let constant = view.constant(out);
        assert!(constant.is_none() || view.is_constant(out));
        constant
    }

    fn with(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
        node.attribute = attributes;
        node
    }

    fn floats(shape: &[usize], data: &[f32]) -> Option<Constant> {
        Some(Constant::Float {
            array: ArrayD::from_shape_vec(IxDyn(shape), data.to_vec()).unwrap(),
            dtype: DataType::Float,
        })
    }

    fn a() -> TensorProto {
        float("a", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    }

    /// `out` = op(a) with attributes.
    fn unary(op: &str, attributes: Vec<AttributeProto>) -> Option<Constant> {
        evaluate(
            vec![with(node(op, &["a"], &["out"]), attributes)],
            vec![a()],
        )
    }

    /// `out` = op(a, ints).
    fn shaped(op: &str, ints: &[i64], attributes: Vec<AttributeProto>) -> Option<Constant> {
        let shape = tensor::from_i64("ints", &[ints.len()], ints);
        let node = with(node(op, &["a", "ints"], &["out"]), attributes);
        evaluate(vec![node], vec![a(), shape])
    }

    #[test]
    fn constant_nodes_of_every_kind() {
        let constant = |attribute| {
            evaluate(
                vec![with(node("Constant", &[], &["out"]), vec![attribute])],
                vec![],
            )
        };
        assert_eq!(
            constant(tensor_attr("value", float("", &[1], &[2.5]))),
            floats(&[1], &[2.5])
        );
        assert_eq!(
            constant(float_attr("value_float", 2.5)),
            floats(&[], &[2.5])
        );
        assert_eq!(
            constant(floats_attr("value_floats", &[1.0, 2.0])),
            floats(&[2], &[1.0, 2.0])
        );
        let ints = |c: Option<Constant>| c.and_then(Constant::into_ints);
        assert_eq!(ints(constant(int_attr("value_int", 7))), Some(vec![7]));
        assert_eq!(
            ints(constant(ints_attr("value_ints", &[7, 8]))),
            Some(vec![7, 8])
        );
        assert_eq!(constant(string_attr("value_string", "text")), None);
        assert_eq!(constant(int_attr("something", 7)), None);
    }

    #[test]
    fn changes_of_shape() {
        let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let transposed = floats(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(unary("Identity", vec![]), floats(&[2, 3], &data));
        assert_eq!(unary("Transpose", vec![]), transposed);
        assert_eq!(
            unary("Transpose", vec![ints_attr("perm", &[1, 0])]),
            transposed
        );
        assert_eq!(unary("Transpose", vec![ints_attr("perm", &[0, 0])]), None);
        assert_eq!(unary("Transpose", vec![ints_attr("perm", &[0, -1])]), None);
        assert_eq!(unary("Transpose", vec![ints_attr("perm", &[0])]), None);
        assert_eq!(shaped("Reshape", &[3, -1], vec![]), floats(&[3, 2], &data));
        assert_eq!(
            shaped("Reshape", &[0, 1, -1], vec![]),
            floats(&[2, 1, 3], &data)
        );
        assert_eq!(shaped("Reshape", &[-1], vec![]), floats(&[6], &data));
        assert_eq!(shaped("Reshape", &[4, -1], vec![]), None);
        assert_eq!(
            shaped("Reshape", &[0, -1], vec![int_attr("allowzero", 1)]),
            None
        );
        assert_eq!(shaped("Reshape", &[-1, -1], vec![]), None);
        assert_eq!(shaped("Reshape", &[i64::MAX, i64::MAX], vec![]), None);
        assert_eq!(
            shaped("Unsqueeze", &[0, -1], vec![]),
            floats(&[1, 2, 3, 1], &data)
        );
        assert_eq!(
            unary("Unsqueeze", vec![ints_attr("axes", &[1])]),
            floats(&[2, 1, 3], &data)
        );
        assert_eq!(shaped("Unsqueeze", &[5], vec![]), None);
        assert_eq!(shaped("Squeeze", &[0], vec![]), None, "that axis is 2 long");
        assert_eq!(shaped("Squeeze", &[4], vec![]), None);
        assert_eq!(unary("Squeeze", vec![]), floats(&[2, 3], &data));
    }

    #[test]
    fn squeeze_takes_out_axes_of_length_1() {
        let a = || float("a", &[1, 2, 1], &[1.0, 2.0]);
        let axes = tensor::from_i64("axes", &[1], &[-1]);
        let squeeze = |inputs: &[&str], attributes| {
            let node = with(node("Squeeze", inputs, &["out"]), attributes);
            evaluate(vec![node], vec![a(), axes.clone()])
        };
        assert_eq!(squeeze(&["a"], vec![]), floats(&[2], &[1.0, 2.0]));
        assert_eq!(
            squeeze(&["a", "axes"], vec![]),
            floats(&[1, 2], &[1.0, 2.0])
        );
        assert_eq!(
            squeeze(&["a"], vec![ints_attr("axes", &[0])]),
            floats(&[2, 1], &[1.0, 2.0])
        );
    }

    #[test]
    fn arithmetic_broadcasts() {
        let row = || float("row", &[3], &[1.0, 2.0, 4.0]);
        let binary = |op| evaluate(vec![node(op, &["a", "row"], &["out"])], vec![a(), row()]);
        assert_eq!(
            binary("Add"),
            floats(&[2, 3], &[2.0, 4.0, 7.0, 5.0, 7.0, 10.0])
        );
        assert_eq!(
            binary("Sub"),
            floats(&[2, 3], &[0.0, 0.0, -1.0, 3.0, 3.0, 2.0])
        );
        assert_eq!(
            binary("Mul"),
            floats(&[2, 3], &[1.0, 4.0, 12.0, 4.0, 10.0, 24.0])
        );
        assert_eq!(
            binary("Div"),
            floats(&[2, 3], &[1.0, 1.0, 0.75, 4.0, 2.5, 1.5])
        );
        assert_eq!(binary("Pow"), None);
        let bad = float("row", &[2], &[1.0, 2.0]);
        assert_eq!(
            evaluate(vec![node("Add", &["a", "row"], &["out"])], vec![a(), bad]),
            None
        );
        let half = tensor::from_f32("row", &[3], &[1.0; 3], DataType::Float16);
        assert_eq!(
            evaluate(vec![node("Add", &["a", "row"], &["out"])], vec![a(), half]),
            None
        );
        let one = |op, x| {
            evaluate(
                vec![node(op, &["s"], &["out"])],
                vec![float("s", &[], &[x])],
            )
        };
        assert_eq!(one("Neg", 4.0), floats(&[], &[-4.0]));
        assert_eq!(one("Sqrt", 4.0), floats(&[], &[2.0]));
        assert_eq!(one("Reciprocal", 4.0), floats(&[], &[0.25]));
        assert_eq!(one("Exp", 4.0), None);
    }

    #[test]
    fn casts_round_as_the_runtime_does() {
        let cast = |tensor: TensorProto, to: DataType| {
            let attributes = vec![int_attr("to", to as i64)];
            let constant = evaluate(
                vec![with(node("Cast", &["a"], &["out"]), attributes)],
                vec![tensor],
            );
            constant.and_then(Constant::into_float)
        };
        let one = |x: f32| float("a", &[], &[x]);
        let number = |found: Option<(ArrayD<f32>, DataType)>| found.unwrap().0[IxDyn(&[])];
        // 1 + 2⁻¹¹ is halfway between 1 and the next float16; ties go to even.
        assert_eq!(
            number(cast(one(1.0 + 2f32.powi(-11)), DataType::Float16)),
            1.0
        );
        assert_eq!(
            number(cast(one(1.0 + 3.0 * 2f32.powi(-11)), DataType::Float16)),
            1.0 + 2f32.powi(-9)
        );
        assert_eq!(
            number(cast(one(1.0 + 2f32.powi(-8)), DataType::Bfloat16)),
            1.0
        );
        assert_eq!(number(cast(one(0.1), DataType::Double)), 0.1);
        let int = tensor::from_i64("a", &[], &[2049]);
        assert_eq!(
            cast(int.clone(), DataType::Float).unwrap().1,
            DataType::Float
        );
        assert_eq!(number(cast(int, DataType::Float16)), 2048.0);
        assert_eq!(cast(one(1.5), DataType::Int64), None);
        assert_eq!(cast(one(1.5), DataType::String), None);
    }

    #[test]
    fn float16_arithmetic_rounds_to_float16() {
        let half = |name: &str, x| tensor::from_f32(name, &[], &[x], DataType::Float16);
        let sum = node("Add", &["a", "b"], &["out"]);
        let (sum, dtype) = evaluate(vec![sum], vec![half("a", 2048.0), half("b", 1.0)])
            .and_then(Constant::into_float)
            .unwrap();
        assert_eq!((sum[IxDyn(&[])], dtype), (2048.0, DataType::Float16));
    }

    #[test]
    fn what_is_computed_at_run_time_or_malformed_is_none() {
        assert_eq!(evaluate(vec![node("Neg", &["x"], &["out"])], vec![]), None);
        assert_eq!(
            evaluate(vec![node("Add", &["a", "x"], &["out"])], vec![a()]),
            None
        );
        assert_eq!(
            evaluate(vec![node("Add", &["a"], &["out"])], vec![a()]),
            None
        );
        let mut short = a();
        short.raw_data = Some(vec![0; 7].into());
        assert_eq!(
            evaluate(vec![node("Neg", &["a"], &["out"])], vec![short]),
            None
        );
        let mut foreign = node("Neg", &["a"], &["out"]);
        foreign.domain = Some("other".to_owned());
        assert_eq!(evaluate(vec![foreign], vec![a()]), None);
    }

    #[test]
    fn long_chains_and_cycles_end() {
        let chain = |length: usize| {
            let nodes = (0..length).map(|i| {
                let output = if i + 1 == length {
                    "out".to_owned()
                } else {
                    format!("v{}", i + 1)
                };
                let input = if i == 0 {
                    "a".to_owned()
                } else {
                    format!("v{i}")
                };
                node("Neg", &[&input], &[&output])
            });
            evaluate(nodes.collect(), vec![a()])
        };
        assert!(chain(8).is_some());
        assert!(chain(9).is_none());
        let cycle = vec![node("Neg", &["out"], &["b"]), node("Neg", &["b"], &["out"])];
        assert_eq!(evaluate(cycle, vec![]), None);
    }

    #[test]
    fn a_scalar_has_one_element_and_is_no_integer() {
        let graph = GraphProto {
            initializer: vec![
                float("one", &[1, 1], &[3.0]),
                float("two", &[2], &[3.0; 2]),
                tensor::from_i64("int", &[], &[3]),
            ],
            ..GraphProto::default()
        };
        let model = model(17, 8, graph);
        let view = View::new(&model);
        let scalar = |name| view.scalar(view.value(name).unwrap());
        assert_eq!(
            (scalar("one"), scalar("two"), scalar("int")),
            (Some(3.0), None, None)
        );
    }
}

#[test]
fn new_names_are_free_everywhere() {
    let mut graph = branching();
    graph.node[1].name = Some("c_scale".to_owned());
    let mut model = model(17, 8, graph);
    model.proto.functions.push(FunctionProto {
        node: vec![node("Neg", &["p"], &["w_scale"])],
        ..FunctionProto::default()
    });
    let mut names = Names::new(&model);
    assert_eq!(names.derive("b", "scale"), "b_scale");
    assert_eq!(names.derive("b", "scale"), "b_scale_2");
    assert_eq!(names.derive("b", "scale"), "b_scale_3");
    assert_eq!(
        names.derive("c", "scale"),
        "c_scale_2",
        "a node has that name"
    );
    assert_eq!(
        names.derive("inner", "out"),
        "inner_out_2",
        "two subgraphs deep"
    );
    assert_eq!(names.derive("w", "scale"), "w_scale_2", "inside a function");
    assert_eq!(names.derive("", "local"), "local_2", "no base");
    assert_eq!(names.derive("", "fresh"), "fresh");
}

mod patches {
    use super::*;

    /// x ─ Mul(w) ─ m ─ Add(v) ─ y, and an unread constant and node.
    fn chain() -> Model {
        let mut spare = node("Relu", &["x"], &["spare"]);
        spare.doc_string = Some("kept".to_owned());
        spare.metadata_props.push(StringStringEntryProto {
            key: Some("k".to_owned()),
            value: Some("v".to_owned()),
        });
        let graph = GraphProto {
            node: vec![
                node("Mul", &["x", "w"], &["m"]),
                spare,
                node("Add", &["m", "v"], &["y"]),
            ],
            input: vec![value("x")],
            output: vec![value("y")],
            initializer: vec![
                float("w", &[1], &[2.0]),
                float("unread", &[1], &[1.0]),
                float("v", &[1], &[3.0]),
            ],
            value_info: vec![value("m"), info("v", DataType::Float, &[Ok(1)])],
            ..GraphProto::default()
        };
        model(17, 8, graph)
    }

    fn applied(edit: impl FnOnce(&mut Patch)) -> Result<Model, PatchError> {
        let mut patch = Patch::new("test");
        edit(&mut patch);
        let before = chain();
        let mut model = before.clone();
        let result = apply(&mut model, vec![patch]);
        if result.is_err() {
            assert_eq!(model, before, "an error leaves the model alone");
        } else {
            check(&model).unwrap();
        }
        result.map(|()| model)
    }

    fn nodes(model: &Model) -> Vec<String> {
        let node = |n: &NodeProto| {
            format!(
                "{} = {}({})",
                n.output.join(","),
                n.op_type(),
                n.input.join(",")
            )
        };
        model.graph().node.iter().map(node).collect()
    }

    fn constants(model: &Model) -> Vec<&str> {
        model
            .graph()
            .initializer
            .iter()
            .map(TensorProto::name)
            .collect()
    }

    const ADD: NodeId = NodeId(2);
    const MUL: NodeId = NodeId(0);

    #[test]
    fn rewiring_prunes_what_nothing_reads_any_longer_and_only_that() {
        let model = applied(|p| p.rewire(ADD, 0, "x")).unwrap();
        assert_eq!(nodes(&model), ["spare = Relu(x)", "y = Add(x,v)"]);
        assert_eq!(
            constants(&model),
            ["unread", "v"],
            "`unread` was unread before"
        );
        let infos: Vec<_> = model.graph().value_info.iter().map(|i| i.name()).collect();
        assert_eq!(infos, ["v"], "`m` is gone");
        assert_eq!(model.graph().node[0], chain().graph().node[1], "untouched");
    }

    #[test]
    fn rewiring_an_optional_input_fills_the_gap() {
        let model = applied(|p| {
            p.replace(NodeId(1), node("Clip", &["x"], &["spare"]));
            p.rewire(NodeId(1), 2, "w");
        })
        .unwrap();
        assert_eq!(model.graph().node[1].input, ["x", "", "w"]);
    }

    #[test]
    fn renaming_replacing_and_inserting_keep_the_order() {
        let model = applied(|p| {
            p.rename_output(MUL, 0, "n");
            p.insert_after(MUL, node("Neg", &["n"], &["o"]));
            p.insert_after(MUL, node("Abs", &["o"], &["m"]));
            p.insert_before(ADD, node("Exp", &["m"], &["e"]));
            p.replace(ADD, node("Sub", &["m", "v"], &["y"]));
            p.rewire(ADD, 0, "e");
        });
        let expected = [
            "n = Mul(x,w)",
            "o = Neg(n)",
            "m = Abs(o)",
            "spare = Relu(x)",
            "e = Exp(m)",
            "y = Sub(e,v)",
        ];
        assert_eq!(nodes(&model.unwrap()), expected);
    }

    #[test]
    fn removing_and_inserting_in_its_place() {
        let model = applied(|p| {
            p.remove(MUL);
            p.insert_after(MUL, node("Neg", &["x"], &["m"]));
        });
        let model = model.unwrap();
        assert_eq!(
            nodes(&model),
            ["m = Neg(x)", "spare = Relu(x)", "y = Add(m,v)"]
        );
        assert_eq!(constants(&model), ["unread", "v"]);
    }

    #[test]
    fn initializers_are_added_at_the_end_and_overwritten_in_place() {
        let model = applied(|p| {
            p.set_initializer(float("v", &[1, 2], &[5.0, 6.0]));
            p.add_initializer(float("new", &[1], &[7.0]));
            p.rewire(NodeId(1), 0, "new");
        });
        let model = model.unwrap();
        assert_eq!(constants(&model), ["w", "unread", "v", "new"]);
        let view = View::new(&model);
        let v = view.value("v").unwrap();
        assert_eq!(view.shape(v), Some(vec![Some(1), Some(2)]));
        assert_eq!(
            model.graph().value_info[1],
            info("v", DataType::Float, &[Ok(1), Ok(2)]),
            "its value info follows"
        );
    }

    #[test]
    fn an_initializer_nobody_reads_is_removed_again() {
        let model = applied(|p| p.add_initializer(float("new", &[1], &[7.0])));
        assert_eq!(constants(&model.unwrap()), ["w", "unread", "v"]);
    }

    #[test]
    fn what_would_break_the_graph_is_refused() {
        let broken = |edit: fn(&mut Patch)| match applied(edit) {
            Err(PatchError::Broken { problem, .. }) => problem.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            broken(|p| p.rewire(ADD, 0, "nowhere")),
            "node `y` reads `nowhere`, which nothing before it defines"
        );
        assert_eq!(
            broken(|p| p.rewire(MUL, 0, "y")),
            "node `m` reads `y`, which nothing before it defines"
        );
        assert_eq!(
            broken(|p| p.remove(ADD)),
            "the list of graph outputs reads `y`, which nothing before it defines"
        );
        assert_eq!(
            broken(|p| p.rename_output(MUL, 0, "spare")),
            "`spare` is defined twice"
        );
        assert_eq!(
            broken(|p| {
                p.add_initializer(float("w", &[1], &[7.0]));
            }),
            "`w` is defined twice"
        );
        let missing = applied(|p| p.set_initializer(float("nowhere", &[1], &[7.0])));
        assert!(
            matches!(missing, Err(PatchError::NoInitializer { name, .. }) if name == "nowhere")
        );
    }

    #[test]
    fn contradictions_are_refused_and_agreement_is_not() {
        let two = |first: fn(&mut Patch), second: fn(&mut Patch)| {
            let (mut a, mut b) = (Patch::new("the first"), Patch::new("the second"));
            first(&mut a);
            second(&mut b);
            let mut model = chain();
            let result = apply(&mut model, vec![a, b]);
            assert!(result.is_ok() || model == chain());
            result
        };
        let conflict = |first, second| match two(first, second) {
            Err(PatchError::Conflict { first, second, .. }) => {
                assert_eq!(
                    (first.as_str(), second.as_str()),
                    ("the first", "the second")
                );
            }
            other => panic!("{other:?}"),
        };
        conflict(|p| p.rewire(ADD, 0, "x"), |p| p.rewire(ADD, 0, "w"));
        conflict(
            |p| p.rename_output(MUL, 0, "p"),
            |p| p.rename_output(MUL, 0, "q"),
        );
        conflict(
            |p| p.remove(MUL),
            |p| p.replace(MUL, node("Neg", &["x"], &["m"])),
        );
        conflict(|p| p.remove(MUL), |p| p.rewire(MUL, 0, "w"));
        conflict(
            |p| p.set_initializer(float("w", &[1], &[7.0])),
            |p| p.set_initializer(float("w", &[1], &[7.0])),
        );
        two(|p| p.rewire(ADD, 0, "x"), |p| p.rewire(ADD, 0, "x")).unwrap();
    }

    #[test]
    fn what_a_subgraph_reads_stays_and_cannot_be_taken_away() {
        let model = model(17, 8, branching());
        // `b` is a graph output, too; only the If shall read it.
        let mut graph = model.graph().clone();
        graph.output.retain(|o| o.name() != "b");
        let mut captured = common::graphs::model(17, 8, graph);
        let mut patch = Patch::new("stop reading `a`");
        patch.rewire(NodeId(1), 0, "x");
        apply(&mut captured, vec![patch]).unwrap();
        assert_eq!(captured.graph().node[0].output, ["a", "", "b"]);
        let mut patch = Patch::new("rename `b`");
        patch.rename_output(NodeId(0), 2, "other");
        let before = captured.clone();
        let error = apply(&mut captured, vec![patch]).unwrap_err();
        let problem = GraphError::Undefined {
            reader: "node `chosen`".to_owned(),
            value: "b".to_owned(),
        };
        assert!(matches!(error, PatchError::Broken { problem: p, .. } if p == problem));
        assert_eq!(captured, before);
    }

    #[test]
    fn an_initializer_listed_as_input_goes_from_both_lists() {
        let mut graph = chain().graph().clone();
        graph.input.push(info("w", DataType::Float, &[Ok(1)]));
        graph.input.push(info("v", DataType::Float, &[Ok(1)]));
        let mut model = model(9, 3, graph);
        let mut patch = Patch::new("test");
        patch.rewire(ADD, 0, "x");
        patch.set_initializer(float("v", &[1, 1], &[3.0]));
        apply(&mut model, vec![patch]).unwrap();
        let inputs: Vec<_> = model.graph().input.iter().map(|i| i.name()).collect();
        assert_eq!(inputs, ["x", "v"]);
        assert_eq!(
            model.graph().input[1],
            info("v", DataType::Float, &[Ok(1), Ok(1)])
        );
    }
}

#[test]
fn the_committed_models_and_forms_are_graphs_and_an_empty_patch_keeps_them() {
    let mut models: Vec<Model> = common::committed_models()
        .iter()
        .map(|path| load(path).unwrap())
        .collect();
    let size = Size {
        c: 4,
        n: 2,
        rank: 2,
    };
    models.extend(FORMS.iter().map(|form| form.model(size, &mut || 1.0)));
    for model in models {
        check(&model).unwrap();
        let mut same = model.clone();
        apply(&mut same, vec![]).unwrap();
        apply(&mut same, vec![Patch::new("nothing")]).unwrap();
        assert_eq!(same, model);
    }
}

#[test]
fn a_cycle_is_no_graph() {
    let mut graph = branching();
    graph.node[1].input[0] = "d".to_owned();
    let error = check(&model(17, 8, graph)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "node `c` reads `d`, which nothing before it defines"
    );
}

proptest! {
    /// A random graph of unary nodes, some unread: an empty patch keeps it; taking one reader away removes exactly the
    /// nodes that only that reader needed.
    #[test]
    fn pruning_removes_what_became_unread(edges in prop::collection::vec(any::<prop::sample::Index>(), 1..12), cut in any::<prop::sample::Index>()) {
        let name = |i: usize| if i == 0 { "x".to_owned() } else { format!("v{i}") };
        let nodes: Vec<NodeProto> = edges
            .iter()
            .enumerate()
            .map(|(i, edge)| node("Neg", &[&name(edge.index(i + 1))], &[&name(i + 1)]))
            .collect();
        let last = name(nodes.len());
        let graph = GraphProto {
            node: nodes.clone(),
            input: vec![value("x")],
            output: vec![value(&last)],
            ..GraphProto::default()
        };
        let before = model(17, 8, graph);
        let mut same = before.clone();
        apply(&mut same, vec![Patch::new("nothing")]).unwrap();
        prop_assert_eq!(&same, &before);

        let cut = cut.index(nodes.len());
        let mut patch = Patch::new("read x instead");
        patch.rewire(NodeId(cut), 0, "x");
        let mut after = before.clone();
        apply(&mut after, vec![patch]).unwrap();
        // Readers of each node before and after, by counting; the removed are found from the end.
        let input = |i: usize, changed: bool| if changed && i == cut { "x" } else { nodes[i].input[0].as_str() };
        let mut removed = BTreeSet::new();
        for i in (0..nodes.len()).rev() {
            let output = &nodes[i].output[0];
            let read = |changed: bool, gone: &BTreeSet<usize>| {
                *output == last || (0..nodes.len()).any(|r| !gone.contains(&r) && input(r, changed) == output)
            };
            if read(false, &BTreeSet::new()) && !read(true, &removed) {
                removed.insert(i);
            }
        }
        let kept: Vec<_> = (0..nodes.len()).filter(|i| !removed.contains(i)).map(|i| nodes[i].output[0].clone()).collect();
        let found: Vec<_> = after.graph().node.iter().map(|n| n.output[0].clone()).collect();
        prop_assert_eq!(found, kept);
    }
}
