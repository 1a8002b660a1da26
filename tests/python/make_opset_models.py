"""Writes tests/data/opset/*.onnx: one small model per conversion that raising the operator set must get right, up to
version 13; and tests/data/opset21/*.onnx: those of later versions, up to 21.

Run it from anywhere: `python tests/python/make_opset_models.py`. The same call gives the same bytes.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DATA = Path(__file__).resolve().parent.parent / "data"
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RANDOM = np.random.default_rng(7)


def value(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def write(
    name, opset, nodes, inputs, outputs, initializers=(), value_info=(), functions=(), imports=(), ir=None, later=False
):
    """Saves a model. Inputs and outputs are value infos; IR 3 lists the initializers as inputs, as it must."""
    ir = ir or {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7}.get(opset, 8)
    inputs = list(inputs)
    if ir < 4:
        inputs += [value(t.name, t.dims, t.data_type) for t in initializers]
    graph = helper.make_graph(nodes, name, inputs, outputs, list(initializers), value_info=list(value_info))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *imports],
        functions=list(functions),
        producer_name="make_opset_models",
        ir_version=ir,
    )
    # The checker takes neither an operator of a runtime nor one that became deprecated in a later version.
    if not {n.op_type for n in nodes} & {"LayerNormalization", "GroupNormalization"}:
        onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    assert len(data) < 4096, (name, len(data))
    folder = "opset21" if later or opset >= 13 else "opset"
    (DATA / folder / f"{name}.onnx").write_bytes(data)


def one(name, opset, op, shape, out_shape, initializers=(), extra_inputs=(), dtype=FLOAT, **attributes):
    """A model of one node between an input x and an output y."""
    inputs = ["x", *extra_inputs]
    node = helper.make_node(op, inputs, ["y"], name=f"{op}_0", **attributes)
    write(name, opset, [node], [value("x", shape, dtype)], [value("y", out_shape, dtype)], initializers)


def softmaxes():
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        low = op.lower()
        one(f"{low}_default_rank3", 11, op, ["b", 3, 4], ["b", 3, 4])
        one(f"{low}_last", 12, op, [2, 3, 4], [2, 3, 4], axis=2)
    one("softmax_axis0", 7, "Softmax", [2, 3, 4], [2, 3, 4], axis=0)
    one("softmax_negative", 11, "Softmax", [2, 3, 4, 5], [2, 3, 4, 5], axis=-3)
    one("softmax_minus1", 11, "Softmax", [2, 3, 4], [2, 3, 4], axis=-1)
    one("softmax_default_rank2", 9, "Softmax", [2, 5], [2, 5])


def attributes_to_inputs():
    one("squeeze", 11, "Squeeze", [2, 1, 3, 1], [2, 3], axes=[1, -1])
    one("squeeze_all", 7, "Squeeze", [2, 1, 3, 1], [2, 3])
    one("unsqueeze", 12, "Unsqueeze", [2, 3], [1, 2, 3, 1], axes=[0, -1])
    one("reduce_sum", 11, "ReduceSum", [2, 3, 4], [2, 4], axes=[-2], keepdims=0)
    one("reduce_sum_all", 7, "ReduceSum", [2, 3, 4], [1, 1, 1])
    one("clip_both", 7, "Clip", [2, 3, 4], [2, 3, 4], min=-0.5, max=0.25)
    one("clip_max", 10, "Clip", [2, 3, 4], [2, 3, 4], max=0.25)
    one("clip_none", 7, "Clip", [2, 3, 4], [2, 3, 4])
    one("pad_constant", 10, "Pad", [2, 3], [4, 5], pads=[1, 2, 1, 0], value=1.5)
    one("pad_zero", 8, "Pad", [2, 3], [4, 5], pads=[1, 2, 1, 0])
    one("pad_negative", 9, "Pad", [3, 4], [3, 3], pads=[-1, 0, 1, -1], value=0.5)
    one("pad_reflect", 7, "Pad", [3, 4], [5, 5], pads=[1, 1, 1, 0], mode="reflect", value=9.0)
    one("slice", 9, "Slice", [4, 5], [2, 3], starts=[1, -3], ends=[3, 1000], axes=[0, 1])
    one("slice_no_axes", 7, "Slice", [4, 5, 6], [2, 3, 6], starts=[1, 0], ends=[3, 3])
    one("slice_axis1", 9, "Slice", [4, 5], [4, 2], starts=[2], ends=[4], axes=[1])
    one("dropout7", 7, "Dropout", [2, 3], [2, 3], ratio=0.3)
    one("dropout10", 10, "Dropout", [2, 3], [2, 3], ratio=0.3)
    split = lambda name, opset, parts, **attrs: write(
        name,
        opset,
        [helper.make_node("Split", ["x"], ["y", "z"], name="Split_0", **attrs)],
        [value("x", [6, 3])],
        [value("y", parts[0]), value("z", parts[1])],
    )
    split("split", 12, ([4, 3], [2, 3]), axis=0, split=[4, 2])
    split("split_equal", 11, ([3, 3], [3, 3]), axis=-2)
    for opset in (9, 7):
        write(
            f"top_k{opset}",
            opset,
            [helper.make_node("TopK", ["x"], ["y", "i"], name="TopK_0", k=3, axis=1)],
            [value("x", [2, 7])],
            [value("y", [2, 3]), value("i", [2, 3], INT64)],
        )
    write(
        "dropout_mask_unread",
        7,
        [
            helper.make_node("Dropout", ["x"], ["d", "mask"], name="Dropout_0", ratio=0.5),
            helper.make_node("Relu", ["d"], ["y"], name="Relu_0"),
        ],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
        value_info=[value("mask", [2, 3])],
    )


def resizes():
    big, small = np.float32([1, 1, 2, 3]), np.float32([1, 1, 0.6, 0.5])
    for mode in ("nearest", "linear"):
        one(f"upsample7_{mode}", 7, "Upsample", [1, 2, 3, 4], [1, 2, 6, 12], mode=mode, scales=big.tolist())
        one(f"upsample9_{mode}", 9, "Upsample", [1, 2, 3, 4], [1, 2, 6, 12], [constant("s", big)], ["s"], mode=mode)
        one(f"resize10_up_{mode}", 10, "Resize", [1, 2, 3, 4], [1, 2, 6, 12], [constant("s", big)], ["s"], mode=mode)
        one(f"resize10_down_{mode}", 10, "Resize", [1, 2, 5, 6], [1, 2, 3, 3], [constant("s", small)], ["s"], mode=mode)
    fraction = np.float32([1, 1, 1.7, 2.3])
    one("resize10_fraction", 10, "Resize", [1, 2, 5, 6], [1, 2, 8, 13], [constant("s", fraction)], ["s"])
    one(
        "resize11_sizes",
        11,
        "Resize",
        [1, 2, 3, 4],
        [1, 2, 7, 5],
        [
            constant("roi", np.float32([])),
            constant("s", np.float32([])),
            constant("sizes", np.int64([1, 2, 7, 5])),
        ],
        ["roi", "s", "sizes"],
        mode="linear",
    )


def others():
    channel = lambda name, array: constant(name, np.float32(array))
    write(
        "batch_normalization",
        7,
        [helper.make_node("BatchNormalization", list("xgbmv"), ["y"], name="BN_0", epsilon=1e-3, spatial=1)],
        [value("x", [2, 3, 4])],
        [value("y", [2, 3, 4])],
        [
            channel("g", [1, 2, 0.5]),
            channel("b", [0.1, -0.2, 0.3]),
            channel("m", [0.5, 0, -0.5]),
            channel("v", [1, 0.5, 2]),
        ],
    )
    write(
        "scatter",
        10,
        [helper.make_node("Scatter", ["x", "i", "u"], ["y"], name="Scatter_0", axis=1)],
        [value("x", [2, 5])],
        [value("y", [2, 5])],
        [constant("i", np.int64([[0, 3], [4, 1]])), channel("u", [[1, 2], [3, 4]])],
    )
    write(
        "gemm",
        7,
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="Gemm_0", alpha=0.5, transB=1)],
        [value("x", [2, 3])],
        [value("y", [2, 4])],
        [channel("w", RANDOM.normal(size=(4, 3))), channel("b", RANDOM.normal(size=4))],
    )
    write(
        "quantize",
        10,
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="Q_0"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="DQ_0"),
        ],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
        [channel("s", 0.02), constant("z", np.uint8(120))],
    )


def attention(prefix=""):
    """Decomposed attention as old exporters write it: ranks are stated nowhere inside."""
    n = lambda op, i, o, **a: helper.make_node(op, i, o, name=prefix + o[0], **a)
    return [
        n("MatMul", ["x", "wq"], ["q"]),
        n("Shape", ["x"], ["xs"]),
        n("Constant", [], ["zero"], value=constant("", np.int64(0))),
        n("Gather", ["xs", "zero"], ["batch"], axis=0),
        n("Unsqueeze", ["batch"], ["batch1"], axes=[0]),
        n("Constant", [], ["rest"], value=constant("", np.int64([-1, 2, 4]))),
        n("Concat", ["batch1", "rest"], ["heads"], axis=0),
        n("Reshape", ["q", "heads"], ["q4"]),
        n("Transpose", ["q4"], ["qt"], perm=[0, 2, 1, 3]),
        n("Transpose", ["q4"], ["kt"], perm=[0, 2, 3, 1]),
        n("MatMul", ["qt", "kt"], ["scores"]),
        n("Softmax", ["scores"], ["p"], axis=3),
        n("MatMul", ["p", "qt"], ["y"]),
    ]


def containers():
    weight = constant("wq", np.float32(RANDOM.normal(size=(6, 8))))
    x, y = value("x", ["b", 5, 6]), value("y", ["b", 2, 5, 4])
    write("attention", 11, attention(), [x], [y], [weight])

    branch = lambda name, nodes: helper.make_graph(nodes, name, [], [value(f"{name}_y", [3, 4])])
    then = branch(
        "then",
        [
            helper.make_node("Softmax", ["x"], ["s"], name="then_softmax"),
            helper.make_node("Squeeze", ["s"], ["then_y"], name="then_squeeze", axes=[0]),
        ],
    )
    other = branch(
        "else",
        [
            helper.make_node("Clip", ["x"], ["s"], name="else_clip", min=-0.1, max=0.1),
            helper.make_node("Squeeze", ["s"], ["else_y"], name="else_squeeze", axes=[0]),
        ],
    )
    write(
        "if_clip",
        10,
        [
            helper.make_node("ReduceSum", ["x"], ["total"], name="total", keepdims=0),
            helper.make_node("Constant", [], ["nought"], name="nought", value=constant("", np.float32(0))),
            helper.make_node("Greater", ["total", "nought"], ["positive"], name="positive"),
            helper.make_node("If", ["positive"], ["y"], name="choose", then_branch=then, else_branch=other),
        ],
        [value("x", [1, 3, 4])],
        [value("y", [3, 4])],
    )

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_on"], name="going_on"),
            helper.make_node("Unsqueeze", ["state"], ["wide"], name="widen", axes=[1]),
            helper.make_node("Add", ["wide", "x"], ["sum"], name="sum"),
            helper.make_node("ReduceSum", ["sum"], ["next"], name="reduce", axes=[1], keepdims=0),
            helper.make_node("Identity", ["next"], ["seen"], name="seen"),
        ],
        "body",
        [value("i", [], INT64), value("going", [], BOOL), value("state", [3])],
        [value("going_on", [], BOOL), value("next", [3]), value("seen", [3])],
    )
    write(
        "loop",
        11,
        [helper.make_node("Loop", ["count", "yes", "start"], ["last", "y"], name="repeat", body=body)],
        [value("x", [3, 2])],
        [value("last", [3]), value("y", [4, 3])],
        [constant("count", np.int64(4)), constant("yes", np.bool_(True)), constant("start", np.float32([0, 1, 2]))],
    )

    function = helper.make_function(
        "local",
        "Pool",
        ["a"],
        ["r"],
        [
            helper.make_node("Softmax", ["a"], ["s"], name="soft", axis=1),
            helper.make_node("ReduceSum", ["s"], ["t"], name="sum", axes=[2], keepdims=0),
            helper.make_node("Unsqueeze", ["t"], ["r"], name="widen", axes=[0]),
        ],
        [helper.make_opsetid("", 11)],
    )
    write(
        "function",
        11,
        [helper.make_node("Pool", ["x"], ["y"], name="pool", domain="local")],
        [value("x", [2, 3, 4])],
        [value("y", [1, 2, 3])],
        functions=[function],
        imports=[helper.make_opsetid("local", 1)],
    )


def later(name, opset, op, inputs, outputs, initializers=(), **attributes):
    """A model of one node; `inputs` and `outputs` are value infos, a text is an initializer's name."""
    names = [i if isinstance(i, str) else i.name for i in inputs]
    node = helper.make_node(op, names, [o.name for o in outputs], name=f"{op}_0", **attributes)
    open_inputs = [i for i in inputs if not isinstance(i, str)]
    write(name, opset, [node], open_inputs, outputs, initializers, later=True)


def later_reductions():
    for op in ("Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"):
        x, low = value("x", ["b", 3, 4]), op.lower()
        later(f"reduce_{low}", 17, f"Reduce{op}", [x], [value("y", ["b", 3])], axes=[-1], keepdims=0)
        later(f"reduce_{low}_two", 13, f"Reduce{op}", [x], [value("y", ["b", 1, 1])], axes=[1, 2])
        later(f"reduce_{low}_all", 11, f"Reduce{op}", [value("x", [2, 3, 4])], [value("y", [1, 1, 1])])


def later_attributes():
    x = value("x", [6, 3])
    parts = [value(name, [2, 3]) for name in "yzw"]
    later("split_three", 13, "Split", [x], parts)
    sizes = [value("y", [6, 1]), value("z", [6, 2])]
    later("split_sizes", 15, "Split", [x, "s"], sizes, [constant("s", np.int64([1, 2]))], axis=-1)
    image, boxes = value("x", [2, 3, 8, 8]), np.float32([[0.5, 1, 5.3, 6.1], [2, 2.5, 7, 7.5], [0, 0, 3, 4]])
    rois = [constant("r", boxes), constant("i", np.int64([0, 1, 1]))]
    for mode in ("avg", "max"):
        form = {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "spatial_scale": 0.8, "mode": mode}
        later(f"roi_align_{mode}", 10, "RoiAlign", [image, "r", "i"], [value("y", [3, 3, 2, 3])], rois, **form)
    grid = value("g", [2, 4, 5, 2])
    for mode in ("bilinear", "bicubic", "nearest"):
        sampled = [value("y", [2, 3, 4, 5])]
        later(f"grid_sample_{mode}", 16, "GridSample", [image, grid], sampled, mode=mode, padding_mode="border")
    later("grid_sample", 19, "GridSample", [image, grid], [value("y", [2, 3, 4, 5])], align_corners=1)
    signal = value("x", [2, 8, 6, 1])
    later("dft", 17, "DFT", [signal], [value("y", [2, 8, 6, 2])])
    later("dft_axis", 19, "DFT", [signal], [value("y", [2, 8, 6, 2])], axis=2)
    later("dft_onesided", 17, "DFT", [signal], [value("y", [2, 5, 6, 2])], axis=1, onesided=1)
    length = [constant("n", np.int64(5))]
    later("dft_length", 17, "DFT", [value("x", [2, 8, 6, 2]), "n"], [value("y", [2, 5, 6, 2])], length, inverse=1)


def later_norms():
    channel = lambda name, array: constant(name, np.float32(array))
    x, y = value("x", [2, 6, 4]), value("y", [2, 6, 4])
    groups = [channel("s", [1, 2, 0.5]), channel("b", [0.1, -0.2, 0.3])]
    later("group_normalization", 18, "GroupNormalization", [x, "s", "b"], [y], groups, num_groups=3, epsilon=1e-3)
    open_x, open_y = value("x", ["b", "c", 4, 2]), value("y", ["b", "c", 4, 2])
    groups = [value("s", ["g"]), value("b", ["g"])]
    later("group_normalization_open", 20, "GroupNormalization", [open_x, *groups], [open_y], num_groups=2)
    constants = [channel(n, RANDOM.uniform(0.5, 2, 6)) for n in "gbmv"]
    later("batch_normalization13", 13, "BatchNormalization", [x, *"gbmv"], [y], constants, epsilon=1e-3, momentum=0.5)
    weights = [channel("w", [1, 2, 0.5, 1]), channel("b", [0, 0.5, -1, 1])]
    later("layer_normalization_of_runtime", 13, "LayerNormalization", [x, "w", "b"], [y], weights, axis=-1)


def later_pools_and_shapes():
    x = value("x", [1, 2, 7, 8])
    for name, shape, form in (
        ("ceil", [1, 2, 4, 4], {"ceil_mode": 1, "pads": [1, 0, 0, 1]}),
        ("ceil_padded", [1, 2, 4, 4], {"ceil_mode": 1, "pads": [1, 0, 0, 1], "count_include_pad": 1}),
        ("same", [1, 2, 4, 4], {"auto_pad": "SAME_UPPER"}),
        ("valid", [1, 2, 3, 3], {"auto_pad": "VALID"}),
    ):
        pooled = [value("y", shape)]
        later(f"average_pool_{name}", 11, "AveragePool", [x], pooled, kernel_shape=[3, 3], strides=[2, 2], **form)
    later("lp_pool", 11, "LpPool", [x], [value("y", [1, 2, 6, 7])], kernel_shape=[2, 2], p=3)
    for name, form in (
        ("cubic", {"mode": "cubic", "cubic_coeff_a": -0.5}),
        ("linear", {"mode": "linear"}),
        ("corners", {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
        ("pytorch", {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
        ("nearest", {"mode": "nearest"}),
        ("nearest_ceil", {"mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"}),
    ):
        scales = [constant("s", np.float32([1, 1, 1.7, 0.6]))]
        later(f"resize13_{name}", 13, "Resize", [x, "", "s"], [value("y", [1, 2, 11, 4])], scales, **form)
    crop = [constant("roi", np.float32([0, 0, 0.1, 0.2, 1, 1, 0.9, 1.3])), constant("n", np.int64([1, 2, 5, 6]))]
    cropped = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear", "extrapolation_value": 9.0}
    later("resize13_crop", 13, "Resize", [x, "roi", "", "n"], [value("y", [1, 2, 5, 6])], crop, **cropped)
    table = value("x", [4, 5])
    pads = [constant("p", np.int64([1, 2, 0, 1]))]
    for mode in ("constant", "reflect", "edge"):
        later(f"pad13_{mode}", 13, "Pad", [table, "p"], [value("y", [5, 8])], pads, mode=mode)
    indices, updates = constant("i", np.int64([[0, 3], [4, 1]])), constant("u", np.float32([[1, 2], [3, 4]]))
    later("scatter_elements", 11, "ScatterElements", [table, "i", "u"], [value("y", [4, 5])], [indices, updates], axis=1)
    rows = [constant("i", np.int64([[0], [3]])), constant("u", np.float32(RANDOM.normal(size=(2, 5))))]
    later("scatter_nd", 13, "ScatterND", [table, "i", "u"], [value("y", [4, 5])], rows)
    later("cum_sum", 11, "CumSum", [table, "a"], [value("y", [4, 5])], [constant("a", np.int64(1))], exclusive=1)
    later("shape", 13, "Shape", [value("x", ["a", 3])], [value("y", [2], INT64)])
    later("cast", 13, "Cast", [table], [value("y", [4, 5], INT64)], to=INT64)
    scale = [constant("s", np.float32([0.02, 0.1, 0.3, 0.01])), constant("z", np.uint8([120, 0, 3, 255]))]
    write(
        "quantize13",
        13,
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="Q_0", axis=0),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="DQ_0", axis=0),
        ],
        [table],
        [value("y", [4, 5])],
        scale,
    )


def later_sequences():
    x = value("x", [5, 2, 3])
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        weights = [
            constant("w", np.float32(RANDOM.normal(size=(2, gates * 4, 3)))),
            constant("r", np.float32(RANDOM.normal(size=(2, gates * 4, 4)))),
        ]
        form = {"direction": "bidirectional", "hidden_size": 4}
        later(op.lower(), 7 if op != "GRU" else 13, op, [x, "w", "r"], [value("y", [5, 2, 2, 4])], weights, **form)


def later_containers():
    """Splits and reductions in branches, bodies and functions."""
    n = helper.make_node
    branch = lambda name, nodes: helper.make_graph(nodes, name, [], [value(f"{name}_y", [2, 3])])
    then = branch("then", [n("ReduceMean", ["x"], ["then_y"], name="mean", axes=[2], keepdims=0)])
    other = branch("else", [n("ReduceMax", ["x"], ["else_y"], name="max", axes=[-1], keepdims=0)])
    write(
        "if_reduce",
        13,
        [
            n("ReduceSum", ["x"], ["total"], name="total", keepdims=0),
            n("Constant", [], ["nought"], name="nought", value=constant("", np.float32(0))),
            n("Greater", ["total", "nought"], ["positive"], name="positive"),
            n("If", ["positive"], ["y"], name="choose", then_branch=then, else_branch=other),
        ],
        [value("x", [2, 3, 4])],
        [value("y", [2, 3])],
    )
    step = [
        n("Split", ["state"], ["left", "right"], name="halves", axis=0),
        n("Concat", ["right", "left"], ["turned"], name="turned", axis=0),
        n("ReduceL2", ["part"], ["norm"], name="norm", axes=[0]),
        n("Add", ["turned", "norm"], ["next"], name="next"),
        n("Identity", ["next"], ["seen"], name="seen"),
    ]
    body = helper.make_graph(
        step, "body", [value("state", [4]), value("part", [3])], [value("next", [4]), value("seen", [4])]
    )
    write(
        "scan",
        16,
        [n("Scan", ["start", "x"], ["last", "y"], name="scan", body=body, num_scan_inputs=1)],
        [value("x", [5, 3])],
        [value("last", [4]), value("y", [5, 4])],
        [constant("start", np.float32([0, 1, 2, 3]))],
    )
    nodes = [
        n("Split", ["a"], ["b", "c"], name="halves", axis=1),
        n("ReduceMean", ["b"], ["m"], name="mean", axes=[1]),
        n("Mul", ["c", "m"], ["r"], name="product"),
    ]
    function = helper.make_function("local", "Gate", ["a"], ["r"], nodes, [helper.make_opsetid("", 17)])
    write(
        "function17",
        17,
        [n("Gate", ["x"], ["y"], name="gate", domain="local")],
        [value("x", [2, 6, 4])],
        [value("y", [2, 3, 4])],
        functions=[function],
        imports=[helper.make_opsetid("local", 1)],
    )


def main():
    for folder in ("opset", "opset21"):
        (DATA / folder).mkdir(parents=True, exist_ok=True)
        for old in (DATA / folder).glob("*.onnx"):
            old.unlink()
    softmaxes()
    attributes_to_inputs()
    resizes()
    others()
    containers()
    later_reductions()
    later_attributes()
    later_norms()
    later_pools_and_shapes()
    later_sequences()
    later_containers()


if __name__ == "__main__":
    main()
