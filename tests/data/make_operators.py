"""Makes operators.npz: single operators with inputs and the outputs that ONNX defines for them.

    python tests/data/make_operators.py            # the committed file
    python tests/data/make_operators.py ALL OUT    # every float node test of the onnx package, for a survey

The cases are node tests of the onnx package, with outputs by onnx.reference, and some of our own, with outputs by ONNX
Runtime where it runs them. Integers and scalars become initializers, outputs that are not float are cast, so that a case
is float arrays in and float arrays out. `tests/operators.rs` runs them.

Needs onnx 1.20 and onnxruntime 1.31; the committed file was made with 1.20.1 and 1.31.1.
"""

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

import block_operators

OPSET = 24
SELECTED = re.compile(
    r"^test_("
    r"attention_(3d|3d_attn_mask|3d_causal|3d_diff_heads_sizes|3d_gqa|3d_gqa_causal|3d_scaled|3d_softcap"
    r"|3d_with_past_and_present|3d_gqa_with_past_and_present"
    r"|4d|4d_attn_mask|4d_attn_mask_3d|4d_attn_mask_4d|4d_attn_mask_bool|4d_causal|4d_gqa|4d_scaled"
    r"|4d_with_past_and_present|4d_with_qk_matmul|4d_with_qk_matmul_softmax|4d_diff_heads_mask4d_padded_kv)"
    r"|rotary_embedding(_\w+)?|rms_normalization_(2d|3d|4d)_axis_\w+|gelu_(default|tanh)_\d"
    r"|layer_normalization_(2d|3d)_axis_\w+|group_normalization_\w+|mish|hardswish|swish|trilu\w*|tril\w*|triu\w*"
    r"|cumsum_\w+|isinf\w*|isnan|gathernd_example_float32|scatternd|scatter_elements_\w+|tensorscatter\w*"
    r"|range_\w+|constantofshape_\w+|reduce_sum_\w+|reduce_mean_\w+|reduce_l2_\w+|softmax_\w+|slice\w*"
    r"|split_\w+|castlike_FLOAT_to_DOUBLE|expand_dim_\w+|clip_\w+|where_\w+|mod_\w+|identity_sequence"
    r"|sequence_\w+|split_to_sequence\w*)$"
)


def dtype(value):
    return helper.np_dtype_to_tensor_dtype(value.dtype)


def prepared(model, inputs):
    """The model as a function of its float inputs that have an axis."""
    graph = onnx.ModelProto.FromString(model.SerializeToString()).graph
    kept, constants = {}, []
    for info, value in zip(graph.input, inputs):
        if not isinstance(value, np.ndarray):
            return None
        if value.dtype in (np.float16, np.float64):
            return None
        if value.dtype == np.float32 and value.ndim:
            kept[info.name] = value
        else:
            constants.append(numpy_helper.from_array(value, info.name))
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in kept.items()]
    if not kept:
        # The engine wants an input.
        kept["unused"] = np.ones((1, 1), np.float32)
        infos = [helper.make_tensor_value_info("unused", TensorProto.FLOAT, (1, 1))]
        graph.node.append(helper.make_node("Identity", ["unused"], ["unused_too"]))
    outputs = []
    for info in graph.output:
        if not info.type.HasField("tensor_type") or info.type.tensor_type.elem_type == TensorProto.STRING:
            return None
        name = info.name
        if info.type.tensor_type.elem_type != TensorProto.FLOAT:
            name = f"{info.name}_float"
            graph.node.append(helper.make_node("Cast", [info.name], [name], to=TensorProto.FLOAT))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    graph = helper.make_graph(list(graph.node), "case", infos, outputs, list(graph.initializer) + constants)
    opsets = [op for op in model.opset_import]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=min(model.ir_version, 11))
    return model, kept


def expected(model, feed, runtime):
    """Output values; `runtime`: from ONNX Runtime if it runs the model."""
    names = [output.name for output in model.graph.output]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not runtime:
                raise NotImplementedError
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            given = {i.name: feed[i.name] for i in session.get_inputs()}
            values = session.run(names, given)
        except Exception:  # noqa: BLE001: whatever it does not run, the reference does
            values = ReferenceEvaluator(model).run(names, feed)
    return dict(zip(names, values))


def own():
    """Cases that the node tests do not have: (name, nodes, inputs, initializers, outputs, opset)."""
    rng = np.random.default_rng(0)

    def wave(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def node(op, inputs, outputs, **attributes):
        return helper.make_node(op, inputs, outputs, **attributes)

    q4, k4, v4 = wave(2, 4, 3, 8), wave(2, 2, 5, 8), wave(2, 2, 5, 6)
    q3, k3, v3 = wave(2, 3, 32), wave(2, 5, 16), wave(2, 5, 12)
    past_k, past_v = wave(2, 2, 2, 8), wave(2, 2, 2, 6)
    heads = {"q_num_heads": 4, "kv_num_heads": 2}
    mask = rng.random((3, 5)) < 0.7
    mask[:, 0] = True
    for form, q, k, v, more in (("4d", q4, k4, v4, {}), ("3d", q3, k3, v3, heads)):
        feed = {"q": q, "k": k, "v": v}
        yield f"gqa_{form}", [node("Attention", "qkv", "y", **more)], feed, {}, ["y"], 23
        yield (
            f"softcap_bool_mask_{form}",
            [node("Attention", ["q", "k", "v", "m"], ["y"], softcap=2.0, **more)],
            feed, {"m": mask}, ["y"], 23,
        )
        yield (
            f"past_causal_{form}",
            [node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "k2", "v2"], is_causal=1, **more)],
            {**feed, "pk": past_k, "pv": past_v}, {}, ["y", "k2", "v2"], 23,
        )
        for mode in range(4):
            yield (
                f"mode_{mode}_{form}",
                [node("Attention", ["q", "k", "v", "m"], ["y", "", "", "s"], qk_matmul_output_mode=mode, scale=0.3,
                      softcap=1.5, **more)],
                feed, {"m": wave(3, 5)}, ["y", "s"], 23,
            )
        yield (
            f"mask_of_cast_{form}",
            [node("Greater", ["m", "zero"], ["seen"]), node("Unsqueeze", ["seen", "axes"], ["mask"]),
             node("Attention", ["q", "k", "v", "mask"], ["y"], **more)],
            feed, {"m": mask.astype(np.float32), "zero": np.float32(0), "axes": np.array([0, 1])}, ["y"], 23,
        )
    x = wave(2, 3, 4, 8)
    cos, sin = wave(10, 4), wave(10, 4)
    ids = np.array([[1, 5, 2, 9], [0, 3, 3, 7]])
    for interleaved in (0, 1):
        yield (
            f"rotary_{interleaved}",
            [node("RotaryEmbedding", ["x", "c", "s", "i"], ["y"], interleaved=interleaved)],
            {"x": x}, {"c": cos, "s": sin, "i": ids}, ["y"], 23,
        )
    yield (
        "rotary_of_one_row_of_positions",
        [node("RotaryEmbedding", ["x", "c", "s"], ["y"])],
        {"x": x}, {"c": wave(2, 4, 4), "s": wave(2, 4, 4)}, ["y"], 23,
    )
    long = wave(2, 7, 6)
    sizes = [np.array(3), np.array([1, 2, 4])]
    for name, split in (("scalar", sizes[0]), ("list", sizes[1])):
        yield (
            f"sequence_split_{name}",
            [node("SplitToSequence", ["x", "n"], ["q"], axis=1), node("Identity", ["q"], ["p"]),
             node("SequenceAt", ["p", "last"], ["y"]), node("SequenceErase", ["p"], ["r"]),
             node("ConcatFromSequence", ["r"], ["z"], axis=1), node("SequenceLength", ["p"], ["c"]),
             node("Cast", ["c"], ["count"], to=1)],
            {"x": long}, {"n": split, "last": np.array(-1)}, ["y", "z", "count"], 18,
        )
    yield (
        "sequence_rows",
        [node("SplitToSequence", ["x"], ["q"], axis=1, keepdims=0), node("SequenceInsert", ["q", "w", "one"], ["r"]),
         node("ConcatFromSequence", ["r"], ["y"], axis=-1, new_axis=1)],
        {"x": long, "w": wave(2, 6)}, {"one": np.array(1)}, ["y"], 18,
    )
    yield (
        "nd_negative",
        [node("GatherND", ["x", "i"], ["y"]), node("ScatterND", ["x", "i", "u"], ["z"]),
         node("Cast", ["f"], ["computed"], to=7), node("GatherND", ["x", "computed"], ["w"]),
         node("GatherND", ["x", "b"], ["v"], batch_dims=1)],
        {"x": long, "u": wave(2, 6), "f": np.array([[0, -1], [-1, 2]], np.float32)},
        {"i": np.array([[0, -1], [-2, 3]]), "b": np.array([[-1], [2]])}, ["y", "z", "w", "v"], 18,
    )
    # Sizes computed as unoptimised exports do.
    yield (
        "sizes_through_casts",
        [node("Shape", ["x"], ["s"]), node("Gather", ["s", "one"], ["n"], axis=0), node("Cast", ["big"], ["b"], to=7),
         node("Reshape", ["b", "minus"], ["end"]), node("CastLike", ["zero", "n"], ["start"]),
         node("CastLike", ["step", "n"], ["by"]), node("Range", ["start", "n", "by"], ["positions"]),
         node("Slice", ["positions", "from", "end", "axes"], ["tail"]), node("Gather", ["x", "tail"], ["y"], axis=1),
         node("Div", ["n", "two"], ["half"]), node("Sub", ["n", "half"], ["rest"]),
         node("Unsqueeze", ["half", "axes"], ["h"]), node("Unsqueeze", ["rest", "axes"], ["r"]),
         node("Concat", ["h", "r"], ["parts"], axis=0), node("Split", ["x", "parts"], ["p0", "p1"], axis=1),
         node("Max", ["half", "rest"], ["most"]), node("Equal", ["most", "rest"], ["same"]),
         node("Where", ["same", "h", "r"], ["picked"]), node("ConstantOfShape", ["picked"], ["zeros"]),
         node("ReduceProd", ["s"], ["all"], keepdims=0), node("Cast", ["all"], ["count"], to=1)],
        {"x": long},
        {"one": np.array(1), "big": np.array(2**63 - 1), "minus": np.array([-1]), "zero": np.float32(0),
         "step": np.float32(1), "from": np.array([1]), "axes": np.array([0]), "two": np.array(2)},
        ["y", "p0", "p1", "zeros", "count"], 18,
    )
    layer = [node("LayerNormalization", ["x", "g"], ["y", "mean", "inv"], axis=-1)]
    yield "layer_normalization_without_bias", layer, {"x": long}, {"g": wave(6)}, ["y", "mean", "inv"], 17
    blocks = {"q": wave(2, 3, 4, 2, 5), "k": wave(2, 3, 6, 2, 5)}
    dots = node("Einsum", "qk", "y", equation="...qhd, ...khd -> ...hqk")
    yield "einsum_dots", [dots], blocks, {}, ["y"], 17
    # LongT5: a mask that all heads share between the products of its blocks.
    nodes = [dots, node("Add", "ym", "a"), node("Softmax", "a", "p", axis=-1)]
    nodes.append(node("Einsum", "pk", "z", equation="...hqk,...khd->...qhd"))
    yield "einsum_local_attention", nodes, blocks | {"m": wave(2, 3, 1, 4, 6)}, {}, ["z"], 17
    fewer = {"q": wave(2, 3, 4, 5), "k": wave(3, 5, 6)}
    yield "einsum_fewer_dots", [node("Einsum", "qk", "y", equation="...ij,...jk->...ik")], fewer, {}, ["y"], 17
    # LeViT halves both sides of an image that is a sequence.
    nodes = [node("Reshape", "xs", "r"), node("Slice", "rabcd", "y")]
    shape = {"s": np.array([2, 4, 4, 3]), "a": np.zeros(2, int), "b": np.full(2, 9), "c": np.array([1, 2]), "d": np.full(2, 2)}
    yield "slice_every_second", nodes, {"x": wave(2, 16, 3)}, shape, ["y"], 17
    yield "swish_alpha", [node("Swish", "x", "y", alpha=0.7)], {"x": long}, {}, ["y"], 24
    yield "mish_far", [node("Mish", "x", "y")], {"x": long * 100}, {}, ["y"], 18
    yield "softmax_far", [node("Softmax", "x", "y", axis=1)], {"x": long * 100}, {}, ["y"], 13
    yield "cumsum_back", [node("CumSum", "xa", "y", reverse=1, exclusive=1)], {"x": long}, {"a": np.array(-1)}, ["y"], 14


def own_models():
    for name, nodes, feed, constants, outputs, opset in [*own(), *block_operators.cases()]:
        infos = [helper.make_tensor_value_info(n, dtype(v), v.shape) for n, v in feed.items()]
        results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
        tensors = [stored(n, v) for n, v in constants.items()]
        graph = helper.make_graph(nodes, name, infos, results, tensors)
        domains = sorted({n.domain for n in nodes if n.domain})
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        yield name, helper.make_model(graph, opset_imports=opsets, ir_version=10 if opset < 25 else 12), feed


def stored(name, value):
    return value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)


def node_tests(every):
    """The node tests of the onnx package."""
    for case in collect_testcases(None):
        if case.model is None or not every and not SELECTED.match(case.name) or "_expanded" in case.name:
            continue
        for inputs, _ in case.data_sets or []:
            if ready := prepared(case.model, inputs):
                yield case.name.removeprefix("test_"), *ready
            break


def main():
    every = len(sys.argv) > 1
    out = Path(sys.argv[2] if every else Path(__file__).with_name("operators.npz"))
    arrays = {}
    of_ours = {name for name, _, _ in own_models()}
    for name, model, feed in [*node_tests(every), *own_models()]:
        try:
            values = expected(model, feed, name in of_ours)
        except Exception as error:  # noqa: BLE001
            print(f"{name}: {type(error).__name__}", file=sys.stderr)
            continue
        if any(v is None or not np.isfinite(v).all() for v in values.values()):
            print(f"{name}: not finite", file=sys.stderr)
            continue
        arrays[f"{name}/model"] = np.frombuffer(model.SerializeToString(), np.uint8)
        arrays.update({f"{name}/in/{n}": v for n, v in feed.items()})
        arrays.update({f"{name}/out/{n}": np.asarray(v, np.float32) for n, v in values.items()})
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main()
