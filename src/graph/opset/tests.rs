mod later;

use insta::assert_snapshot;

use super::*;
use crate::onnx::DataType;
use crate::onnx::node::{float_attr, floats_attr, graph_attr, int_attr, ints_attr, string_attr};
use crate::onnx::op;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, ModelProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::onnx::tensor::{float_array, from_f32, from_i64, int_array};

fn info(name: &str, dtype: DataType, shape: &[i64]) -> ValueInfoProto {
    let dim = shape.iter().map(|&d| Dimension {
        value: Some(dimension::Value::DimValue(d)),
        ..Dimension::default()
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype as i32),
        shape: Some(TensorShapeProto { dim: dim.collect() }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn named(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        ..ValueInfoProto::default()
    }
}

fn import(version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(String::new()),
        version: Some(version),
    }
}

/// A model with a float input `x: [2, 3, 4]` and the output `y`.
fn model(opset: i64, nodes: Vec<NodeProto>) -> Model {
    let graph = GraphProto {
        node: nodes,
        input: vec![info("x", DataType::Float, &[2, 3, 4])],
        output: vec![named("y")],
        ..GraphProto::default()
    };
    Model {
        proto: ModelProto {
            ir_version: Some(4),
            opset_import: vec![import(opset)],
            graph: Some(graph),
            ..ModelProto::default()
        },
    }
}

fn single(opset: i64, op: &str, attributes: Vec<AttributeProto>) -> Model {
    model(
        opset,
        vec![make_node(op, "node", &["x"], &["y"], attributes)],
    )
}

fn attribute(a: &AttributeProto) -> String {
    let value = match AttributeType::try_from(a.r#type.unwrap()).unwrap() {
        AttributeType::Int => a.i().to_string(),
        AttributeType::Float => a.f().to_string(),
        AttributeType::Ints => format!("{:?}", a.ints),
        AttributeType::String => String::from_utf8_lossy(a.s()).into_owned(),
        AttributeType::Tensor => tensor(a.t.as_ref().unwrap()),
        AttributeType::Graph => format!("{{\n{}}}", graph(a.g.as_ref().unwrap())),
        other => panic!("{other:?}"),
    };
    format!("{}={value}", a.name())
}

fn tensor(t: &TensorProto) -> String {
    let dtype = crate::onnx::tensor::dtype(t).unwrap();
    let values = match float_array(t) {
        Ok(array) => format!("{:?}", array.into_iter().collect::<Vec<_>>()),
        Err(_) => format!(
            "{:?}",
            int_array(t).unwrap().into_iter().collect::<Vec<_>>()
        ),
    };
    format!("{}{:?} {values}", dtype.as_str_name(), t.dims)
}

fn nodes(nodes: &[NodeProto]) -> String {
    let line = |n: &NodeProto| {
        let attributes: Vec<_> = n.attribute.iter().map(attribute).collect();
        let (outputs, inputs) = (n.output.join(", "), n.input.join(", "));
        let attributes = attributes.join(", ");
        format!(
            "[{}] {outputs} = {}<{attributes}>({inputs})\n",
            n.name(),
            n.op_type()
        )
    };
    nodes.iter().map(line).collect()
}

fn graph(g: &GraphProto) -> String {
    let constants = g
        .initializer
        .iter()
        .map(|t| format!("{}: {}\n", t.name(), tensor(t)));
    constants.collect::<String>() + &nodes(&g.node)
}

fn raised(mut model: Model) -> String {
    let report = raise(&mut model, 13).unwrap();
    assert_eq!((report.to, model.opset()), (13, 13));
    assert_eq!(model.proto.ir_version, Some(7));
    graph(model.graph())
}

/// The message of the refusal; the model must be as it was.
fn refused(mut model: Model) -> String {
    let before = model.clone();
    let error = raise(&mut model, 13).unwrap_err();
    assert_eq!(model, before);
    error.to_string()
}

#[test]
fn a_new_model_is_left_alone() {
    let mut new = single(13, op::Softmax, vec![]);
    let before = new.clone();
    let report = raise(&mut new, 13).unwrap();
    assert_eq!((report.from, report.to), (13, 13));
    assert_eq!(new, before);
}

#[test]
fn a_compatible_node_keeps_everything() {
    let mut relu = make_node(op::Relu, "node", &["x"], &["y"], vec![]);
    relu.doc_string = Some("kept".to_owned());
    let mut old = model(7, vec![relu.clone()]);
    let report = raise(&mut old, 13).unwrap();
    assert!(report.rewritten.is_empty());
    assert_eq!(old.graph().node, [relu]);
}

#[test]
fn lists_become_inputs_and_the_rest_of_the_node_stays() {
    let mut node = make_node(
        op::Squeeze,
        "node",
        &["x"],
        &["y"],
        vec![ints_attr("axes", &[0])],
    );
    node.doc_string = Some("kept".to_owned());
    let mut old = model(11, vec![node]);
    let report = raise(&mut old, 13).unwrap();
    assert_eq!(report.rewritten, ["Squeeze node"]);
    assert_eq!(old.graph().node[0].doc_string(), "kept");
    assert_snapshot!(graph(old.graph()), @r"
    node_axes: INT64[1] [0]
    [node] y = Squeeze<>(x, node_axes)
    ");
    assert_snapshot!(raised(single(12, "Unsqueeze", vec![ints_attr("axes", &[0, -1])])), @r"
    node_axes: INT64[2] [0, -1]
    [node] y = Unsqueeze<>(x, node_axes)
    ");
    let sum = vec![ints_attr("axes", &[1]), int_attr("keepdims", 0)];
    assert_snapshot!(raised(single(11, "ReduceSum", sum)), @r"
    node_axes: INT64[1] [1]
    [node] y = ReduceSum<keepdims=0>(x, node_axes)
    ");
    assert_snapshot!(raised(single(11, "Split", vec![ints_attr("split", &[2])])), @r"
    node_split: INT64[1] [2]
    [node] y = Split<>(x, node_split)
    ");
    assert_snapshot!(raised(single(9, "TopK", vec![int_attr("k", 2)])), @r"
    node_k: INT64[1] [2]
    [node] y = TopK<>(x, node_k)
    ");
    let slice = vec![ints_attr("starts", &[1, 0]), ints_attr("ends", &[2, 9])];
    assert_snapshot!(raised(single(9, "Slice", slice)), @r"
    node_starts: INT64[2] [1, 0]
    node_ends: INT64[2] [2, 9]
    node_axes: INT64[2] [0, 1]
    [node] y = Slice<>(x, node_starts, node_ends, node_axes)
    ");
    assert_snapshot!(raised(single(10, "Dropout", vec![float_attr("ratio", 0.25)])), @r"
    node_ratio: FLOAT[] [0.25]
    [node] y = Dropout<>(x, node_ratio)
    ");
}

#[test]
fn scalars_take_the_type_of_their_input() {
    assert_snapshot!(raised(single(10, "Clip", vec![float_attr("max", 6.0)])), @r"
    node_max: FLOAT[] [6.0]
    [node] y = Clip<>(x, , node_max)
    ");
    let pad = || vec![ints_attr("pads", &[0, 1]), float_attr("value", 0.5)];
    let mut half = single(10, op::Pad, pad());
    half.graph_mut().input[0] = info("x", DataType::Float16, &[2]);
    assert_snapshot!(raised(half), @r"
    node_pads: INT64[2] [0, 1]
    node_value: FLOAT16[] [0.5]
    [node] y = Pad<>(x, node_pads, node_value)
    ");
    // Its type is known through its neighbour, two nodes later.
    let mut untyped = model(
        10,
        vec![
            make_node(
                op::Clip,
                "node",
                &["x"],
                &["a"],
                vec![float_attr("min", 0.0)],
            ),
            make_node(op::Reshape, "reshape", &["a", "s"], &["b"], vec![]),
            make_node(op::Add, "add", &["b", "c"], &["y"], vec![]),
        ],
    );
    untyped.graph_mut().input[0] = named("x");
    untyped.graph_mut().initializer = vec![
        from_i64("s", &[1], &[-1]),
        from_f32("c", &[], &[1.0], DataType::Double),
    ];
    assert!(raised(untyped.clone()).contains("node_min: DOUBLE[] [0.0]"));
    untyped.graph_mut().initializer.pop();
    untyped.graph_mut().input.push(named("c"));
    assert_snapshot!(refused(untyped), @"node `node`: Clip cannot be raised from opset 10 to 13, because Clip changed in version 11: `min` becomes an input of the type of `x`, which the file does not say (shape inference would); export the model again with opset 13 or later");
}

#[test]
fn softmax_keeps_its_form_only_on_the_last_axis() {
    assert_snapshot!(raised(single(11, "Softmax", vec![int_attr("axis", 2)])), @"[node] y = Softmax<axis=2>(x)");
    assert_snapshot!(raised(single(11, "LogSoftmax", vec![])), @r"
    [node_Shape] node_shape = Shape<>(x)
    [node_Flatten] node_flat = Flatten<axis=1>(x)
    [node] node_result = LogSoftmax<axis=-1>(node_flat)
    [node_Reshape] y = Reshape<>(node_result, node_shape)
    ");
    let mut unknown = single(11, op::Hardmax, vec![int_attr("axis", -1)]);
    unknown.graph_mut().input[0] = named("x");
    assert_snapshot!(raised(unknown), @"[node] y = Hardmax<axis=-1>(x)");
    let mut unknown = single(11, op::Hardmax, vec![int_attr("axis", 2)]);
    unknown.graph_mut().input[0] = named("x");
    assert!(raised(unknown).contains("Flatten<axis=2>"));
    let outside = refused(single(11, op::Softmax, vec![int_attr("axis", 3)]));
    assert!(
        outside.contains("its axis is 3 and the rank of its input 3"),
        "{outside}"
    );
}

/// The mask of a BERT export: its rank is the length of a shape that is computed at run time.
#[test]
fn ranks_are_found_through_computed_shapes() {
    let vector = |values: &[i64]| tensor_attr("value", from_i64("", &[values.len()], values));
    let mut old = model(
        11,
        vec![
            make_node(op::Shape, "a", &["x"], &["dims"], vec![]),
            make_node(op::Constant, "b", &[], &["first"], vec![vector(&[0])]),
            make_node(op::Gather, "c", &["dims", "first"], &["batch"], vec![]),
            make_node(op::Constant, "d", &[], &["rest"], vec![vector(&[-1, 3, 4])]),
            make_node(
                op::Concat,
                "e",
                &["batch", "rest"],
                &["wanted"],
                vec![int_attr("axis", 0)],
            ),
            make_node(op::Constant, "f", &[], &["flat"], vec![vector(&[-1])]),
            make_node(op::Reshape, "g", &["wanted", "flat"], &["again"], vec![]),
            make_node(op::Shape, "h", &["again"], &["length"], vec![]),
            make_node(op::ConstantOfShape, "i", &["length"], &["ones"], vec![]),
            make_node(op::Equal, "j", &["again", "flat"], &["open"], vec![]),
            make_node(
                op::Where,
                "k",
                &["open", "ones", "again"],
                &["target"],
                vec![],
            ),
            make_node(op::Expand, "l", &["s", "target"], &["mask"], vec![]),
            make_node(
                op::Softmax,
                "node",
                &["mask"],
                &["y"],
                vec![int_attr("axis", 3)],
            ),
        ],
    );
    old.graph_mut().initializer = vec![from_f32("s", &[], &[1.0], DataType::Float)];
    let before = old.graph().node.clone();
    raise(&mut old, 13).unwrap();
    assert_eq!(old.graph().node, before);
}

fn resize(scales: &[f32], mode: &str) -> Model {
    let node = make_node(
        op::Resize,
        "node",
        &["x", "s"],
        &["y"],
        vec![string_attr("mode", mode)],
    );
    let mut model = model(10, vec![node]);
    model.graph_mut().initializer = vec![from_f32("s", &[3], scales, DataType::Float)];
    model
}

#[test]
fn resize_rounds_as_it_did() {
    assert_snapshot!(raised(resize(&[1.0, 2.0, 1.5], "nearest")), @r"
    s: FLOAT[3] [1.0, 2.0, 1.5]
    [node] y = Resize<mode=nearest, coordinate_transformation_mode=asymmetric, nearest_mode=floor>(x, , s)
    ");
    assert!(raised(resize(&[1.0, 0.5, 1.0], "nearest")).contains("nearest_mode=ceil"));
    assert!(!raised(resize(&[1.0, 0.5, 2.0], "linear")).contains("nearest_mode"));
    let mixed = refused(resize(&[1.0, 0.5, 2.0], "nearest"));
    assert!(
        mixed.contains("enlarges one axis and shrinks another"),
        "{mixed}"
    );
    // Listed as an input, the scales are only a default.
    let mut default = resize(&[1.0, 2.0, 2.0], "nearest");
    default
        .graph_mut()
        .input
        .push(info("s", DataType::Float, &[3]));
    assert!(refused(default).contains("the scales `s`, which are not constant"));

    let upsample = single(
        7,
        op::Upsample,
        vec![floats_attr("scales", &[1.0, 2.0, 2.0])],
    );
    assert_snapshot!(raised(upsample), @r"
    node_scales: FLOAT[3] [1.0, 2.0, 2.0]
    [node] y = Resize<coordinate_transformation_mode=asymmetric, nearest_mode=floor>(x, , node_scales)
    ");
}

#[test]
fn what_cannot_be_exact_is_refused_by_name() {
    assert_snapshot!(refused(single(8, "Scan", vec![])), @"node `node`: Scan cannot be raised from opset 8 to 13, because Scan changed in version 9: version 8 runs over a batch axis and takes sequence lengths, version 9 does neither; export the model again with opset 13 or later");
    assert_snapshot!(refused(single(12, "Gelu", vec![])), @"node `node`: ONNX has no operator `Gelu` in opset 12, so its meaning in opset 13 is unknown: export the model again with opset 13 or later");
    assert_snapshot!(refused(single(6, "Relu", vec![])), @"the model uses opset 6, and 7 is the oldest that can be raised: export the model again with opset 13 or later");
    for (old, reason) in [
        (
            single(8, op::Erf, vec![]),
            "ONNX has no operator `Erf` in opset 8",
        ),
        (
            single(7, op::BatchNormalization, vec![int_attr("spatial", 0)]),
            "`spatial = 0`",
        ),
        (
            single(
                9,
                op::ConvTranspose,
                vec![string_attr("auto_pad", "SAME_UPPER")],
            ),
            "automatic padding",
        ),
        (
            single(9, op::ConvTranspose, vec![ints_attr("output_shape", &[4])]),
            "automatic padding",
        ),
        (
            single(9, op::Slice, vec![ints_attr("starts", &[0])]),
            "required attribute `ends` is missing",
        ),
        (
            single(9, op::Squeeze, vec![ints_attr("axes", &[])]),
            "an empty list",
        ),
        (
            single(9, op::Unsqueeze, vec![int_attr("axes", 0)]),
            "attribute `axes` has another type",
        ),
        (
            single(
                11,
                op::Resize,
                vec![string_attr(
                    "coordinate_transformation_mode",
                    "tf_half_pixel_for_nn",
                )],
            ),
            "`tf_half_pixel_for_nn` was removed",
        ),
    ] {
        let message = refused(old);
        assert!(message.contains(reason), "{message}");
    }
    let mut integers = single(9, op::Erf, vec![]);
    integers.graph_mut().input[0] = info("x", DataType::Int32, &[2]);
    assert!(refused(integers).contains("it takes INT32"));
    let mut training = single(12, op::Relu, vec![]);
    training.proto.training_info = vec![Default::default()];
    assert!(refused(training).starts_with("the model carries training graphs"));
    let target = raise(&mut single(12, op::Relu, vec![]), 22).unwrap_err();
    assert_eq!(target, OpsetError::Target { minimum: 22 });
}

#[test]
fn a_dropout_mask_must_be_unread() {
    let dropout = make_node(op::Dropout, "node", &["x"], &["y", "mask"], vec![]);
    let mut old = model(9, vec![dropout]);
    old.graph_mut().value_info = vec![info("mask", DataType::Float, &[2, 3, 4])];
    let mut read = old.clone();
    raise(&mut old, 13).unwrap();
    assert!(old.graph().value_info.is_empty());
    assert_snapshot!(graph(old.graph()), @"[node] y = Dropout<>(x)");
    read.graph_mut().output.push(named("mask"));
    assert!(refused(read.clone()).contains("its mask `mask` is read"));
    read.proto.opset_import[0].version = Some(10);
    assert!(refused(read).contains("all ones in inference only from version 12 on"));
}

#[test]
fn old_ir_versions_do_not_turn_weights_into_defaults() {
    let mut old = model(
        7,
        vec![make_node(op::Add, "node", &["x", "w"], &["y"], vec![])],
    );
    old.proto.ir_version = Some(3);
    old.graph_mut().initializer = vec![from_f32("w", &[1], &[1.0], DataType::Float)];
    old.graph_mut().input.push(info("w", DataType::Float, &[1]));
    raise(&mut old, 13).unwrap();
    let inputs: Vec<_> = old.graph().input.iter().map(|i| i.name()).collect();
    assert_eq!(inputs, ["x"]);
}

#[test]
fn subgraphs_are_raised_too_and_new_names_are_free() {
    let branch = |name: &str, op: &str| GraphProto {
        name: Some(name.to_owned()),
        node: vec![make_node(
            op,
            "inner",
            &["x"],
            &["out"],
            vec![ints_attr("axes", &[0])],
        )],
        output: vec![named("out")],
        ..GraphProto::default()
    };
    let choose = |op: &str| {
        let attributes = vec![
            graph_attr("then_branch", branch("then", op::Unsqueeze)),
            graph_attr("else_branch", branch("else", op)),
        ];
        let mut m = model(
            11,
            vec![
                make_node(op::Identity, "", &["x"], &["inner_axes"], vec![]),
                make_node(op::If, "choose", &["c"], &["y"], attributes),
            ],
        );
        m.graph_mut().input.push(info("c", DataType::Bool, &[]));
        m
    };
    assert_snapshot!(raised(choose("Unsqueeze")), @r"
    [] inner_axes = Identity<>(x)
    [choose] y = If<then_branch={
    inner_axes_2: INT64[1] [0]
    [inner] out = Unsqueeze<>(x, inner_axes_2)
    }, else_branch={
    inner_axes_3: INT64[1] [0]
    [inner] out = Unsqueeze<>(x, inner_axes_3)
    }>(c)
    ");
    assert!(refused(choose("NoSuch")).starts_with("node `inner` in a subgraph of `choose`: "));
}

fn with_function(model_opset: i64, opset: i64, node: NodeProto) -> Model {
    let call = make_node("Local", "call", &["x"], &["y"], vec![]);
    let mut model = model(
        model_opset,
        vec![NodeProto {
            domain: Some("own".to_owned()),
            ..call
        }],
    );
    model.proto.ir_version = Some(8);
    model.proto.functions = vec![FunctionProto {
        name: Some("Local".to_owned()),
        domain: Some("own".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        node: vec![node],
        opset_import: vec![import(opset)],
        ..FunctionProto::default()
    }];
    model
}

#[test]
fn functions_have_a_version_of_their_own() {
    let node = make_node(
        op::Squeeze,
        "inner",
        &["a"],
        &["b"],
        vec![ints_attr("axes", &[0])],
    );
    let mut old = with_function(17, 11, node);
    let report = raise(&mut old, 13).unwrap();
    assert_eq!((report.from, report.to), (17, 17));
    assert_eq!(report.functions, ["Local"]);
    let function = &old.proto.functions[0];
    assert_eq!(function.opset_import, [import(13)]);
    assert_eq!(old.opset(), 17);
    assert_snapshot!(nodes(&function.node), @r"
    [inner_axes] inner_axes = Constant<value=INT64[1] [0]>()
    [inner] b = Squeeze<>(a, inner_axes)
    ");

    let mut parameter = int_attr("axis", 0);
    (parameter.i, parameter.ref_attr_name) = (None, Some("axis".to_owned()));
    let node = make_node(op::Softmax, "inner", &["a"], &["b"], vec![parameter]);
    let message = refused(with_function(17, 11, node));
    assert!(
        message.starts_with("node `inner` in function `Local`: Softmax"),
        "{message}"
    );
    assert!(
        message.contains("attribute `axis` is a parameter of the function"),
        "{message}"
    );

    let node = make_node(op::Relu, "inner", &["a"], &["b"], vec![]);
    assert!(refused(with_function(17, 6, node)).starts_with("function `Local` uses opset 6"));
}

#[test]
fn other_domains_and_fused_norms_of_the_runtime_pass() {
    let mut foreign = make_node(op::Gelu, "node", &["x"], &["g"], vec![]);
    foreign.domain = Some("com.microsoft".to_owned());
    let norm = make_node(op::LayerNormalization, "norm", &["g", "w"], &["y"], vec![]);
    let mut old = model(11, vec![foreign.clone(), norm.clone()]);
    old.graph_mut().initializer = vec![from_f32("w", &[4], &[1.0; 4], DataType::Float)];
    raise(&mut old, 13).unwrap();
    assert_eq!(old.graph().node, [foreign, norm]);
}

#[test]
fn the_table_is_in_order() {
    assert!(table::OPERATORS.windows(2).all(|w| w[0].name < w[1].name));
    for operator in table::OPERATORS {
        let changed = |v: &i64| operator.changed.contains(v);
        assert!(operator.changed.is_sorted() && operator.rules.is_sorted_by_key(|(v, _)| *v));
        assert!(
            operator.rules.iter().all(|(v, _)| changed(v)),
            "{}",
            operator.name
        );
    }
}
