//! Raising to versions after 13.

use insta::assert_snapshot;

use super::*;

/// The graph in version 21.
fn raised_to_21(mut model: Model) -> String {
    let report = raise(&mut model, 21).unwrap();
    assert_eq!((report.to, model.opset()), (21, 21));
    assert_eq!(model.proto.ir_version, Some(10));
    graph(model.graph())
}

fn refused_by_21(mut model: Model) -> String {
    let before = model.clone();
    let error = raise(&mut model, 21).unwrap_err();
    assert_eq!(model, before);
    error.to_string()
}

fn with(opset: i64, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Model {
    let mut made = model(
        opset,
        vec![make_node(op, "node", inputs, &["y"], attributes)],
    );
    for input in &inputs[1..] {
        made.graph_mut().input.push(named(input));
    }
    made
}

#[test]
fn each_version_has_what_it_needs_and_no_more() {
    let axes = || vec![ints_attr("axes", &[-1]), int_attr("keepdims", 0)];
    for (minimum, to, ir, inputs) in [
        (12, 13, 7, 1),
        (13, 13, 7, 1),
        (17, 17, 8, 1),
        (18, 18, 8, 2),
        (21, 21, 10, 2),
    ] {
        let mut old = single(11, op::ReduceMean, axes());
        raise(&mut old, minimum).unwrap();
        assert_eq!((old.opset(), old.proto.ir_version), (to, Some(ir)));
        assert_eq!(old.graph().node[0].input.len(), inputs, "{minimum}");
    }
    let mut new = single(22, op::ReduceMean, vec![]);
    let before = new.clone();
    raise(&mut new, 21).unwrap();
    assert_eq!(new, before);
}

#[test]
fn reductions_and_transforms_get_inputs() {
    let axes = vec![ints_attr("axes", &[-1]), int_attr("keepdims", 0)];
    assert_snapshot!(raised_to_21(single(17, op::ReduceL2, axes)), @r"
    node_axes: INT64[1] [-1]
    [node] y = ReduceL2<keepdims=0>(x, node_axes)
    ");
    assert_snapshot!(raised_to_21(single(13, op::ReduceMax, vec![])), @"[node] y = ReduceMax<>(x)");
    assert_snapshot!(raised_to_21(single(17, op::DFT, vec![int_attr("onesided", 1)])), @r"
    node_axis: INT64[] [1]
    [node] y = DFT<onesided=1>(x, , node_axis)
    ");
    let length = with(17, op::DFT, &["x", "n"], vec![int_attr("axis", 2)]);
    assert_snapshot!(raised_to_21(length), @r"
    node_axis: INT64[] [2]
    [node] y = DFT<>(x, n, node_axis)
    ");
}

#[test]
fn defaults_are_written_where_they_changed() {
    assert_snapshot!(raised_to_21(single(13, op::Split, vec![])), @"[node] y = Split<num_outputs=1>(x)");
    assert_snapshot!(raised_to_21(with(13, op::Split, &["x", "sizes"], vec![])), @"[node] y = Split<>(x, sizes)");
    let sizes = vec![ints_attr("split", &[2])];
    assert_snapshot!(raised_to_21(single(11, op::Split, sizes)), @r"
    node_split: INT64[1] [2]
    [node] y = Split<>(x, node_split)
    ");
    assert_snapshot!(raised_to_21(with(10, op::RoiAlign, &["x", "r", "b"], vec![])), @"[node] y = RoiAlign<coordinate_transformation_mode=output_half_pixel>(x, r, b)");
    let mode = |mode: &str| {
        with(
            16,
            op::GridSample,
            &["x", "g"],
            vec![string_attr("mode", mode)],
        )
    };
    assert_snapshot!(raised_to_21(mode("bilinear")), @"[node] y = GridSample<mode=linear>(x, g)");
    assert_snapshot!(raised_to_21(mode("bicubic")), @"[node] y = GridSample<mode=cubic>(x, g)");
    assert_snapshot!(raised_to_21(mode("nearest")), @"[node] y = GridSample<mode=nearest>(x, g)");
    assert!(refused_by_21(mode("linear")).contains("unknown mode `linear`"));
}

#[test]
fn a_group_normalization_repeats_scale_and_bias() {
    let groups = vec![int_attr("num_groups", 3)];
    let norm = with(18, op::GroupNormalization, &["x", "s", "b"], groups);
    assert_snapshot!(raised_to_21(norm), @r"
    node_axis: INT64[1] [1]
    node_flat: INT64[1] [-1]
    [node_channels_Shape] node_channels = Shape<start=1, end=2>(x)
    [node_groups_Shape] node_groups = Shape<>(s)
    [node_group_Div] node_group = Div<>(node_channels, node_groups)
    [node_scale_column_Unsqueeze] node_scale_column = Unsqueeze<>(s, node_axis)
    [node_scale_table_Expand] node_scale_table = Expand<>(node_scale_column, node_group)
    [node_scale_Reshape] node_scale = Reshape<>(node_scale_table, node_flat)
    [node_bias_column_Unsqueeze] node_bias_column = Unsqueeze<>(b, node_axis)
    [node_bias_table_Expand] node_bias_table = Expand<>(node_bias_column, node_group)
    [node_bias_Reshape] node_bias = Reshape<>(node_bias_table, node_flat)
    [node] y = GroupNormalization<num_groups=3>(x, node_scale, node_bias)
    ");
}

#[test]
fn what_trains_or_has_two_types_is_refused() {
    let mut training = single(13, op::BatchNormalization, vec![]);
    training.graph_mut().node[0].output = ["y", "", "mean"].map(str::to_owned).to_vec();
    assert_snapshot!(refused_by_21(training.clone()), @"node `node`: BatchNormalization cannot be raised from opset 13 to 21, because BatchNormalization changed in version 14: with a second output (`mean`) it trains, which is no part of inference; export the model again with opset 21 or later");
    training.graph_mut().node[0].output[2].clear();
    assert_snapshot!(raised_to_21(training), @"[node] y = BatchNormalization<>(x)");

    let norm = |dtype| {
        let mut m = with(13, op::LayerNormalization, &["x", "w"], vec![]);
        m.graph_mut().input[1] = info("w", dtype, &[4]);
        m
    };
    assert_snapshot!(raised_to_21(norm(DataType::Float)), @"[node] y = LayerNormalization<>(x, w)");
    assert!(refused_by_21(norm(DataType::Float16)).contains("of another type than its scale"));
    assert!(
        refused_by_21(single(19, op::Gelu, vec![]))
            .contains("no operator `Gelu` in opset 19, so its meaning in opset 21")
    );
}

#[test]
fn a_renamed_operator_goes_on_as_the_new_one() {
    let upsample = single(
        7,
        op::Upsample,
        vec![floats_attr("scales", &[1.0, 2.0, 2.0])],
    );
    assert_eq!(raised_to_21(upsample.clone()), raised(upsample));
    // From version 13 on nothing has been renamed, and what was renamed before is rewritten in the form of 13.
    for name in [op::Resize, op::ScatterElements] {
        let rules = table::operator(name).unwrap().rules;
        assert!(rules.iter().all(|(version, _)| *version <= 13));
    }
}

#[test]
fn functions_and_subgraphs_are_raised_to_the_same() {
    let split = || make_node(op::Split, "inner", &["a"], &["b", "c"], vec![]);
    let mut old = with_function(17, 13, split());
    let report = raise(&mut old, 21).unwrap();
    assert_eq!((report.from, report.to), (17, 21));
    assert_eq!(report.functions, ["Local"]);
    assert_eq!(old.proto.functions[0].opset_import, [import(21)]);
    assert_snapshot!(nodes(&old.proto.functions[0].node), @"[inner] b, c = Split<num_outputs=2>(a)");
    // A function in a newer set than its model's stays.
    let mut mixed = with_function(13, 21, make_node(op::Gelu, "inner", &["a"], &["b"], vec![]));
    assert!(raise(&mut mixed, 21).unwrap().functions.is_empty());
    assert_eq!(mixed.opset(), 21);
}
