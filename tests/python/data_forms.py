"""Small models that data reaches in other ways than row by row, each with what it is calibrated on.

`FORMS[name]()` gives a model and a list of files (each a dict of arrays), of which some are for calibration.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from layouts import node, weight

C, S = 32, 4
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(nodes, inputs, constants, output="y"):
    """inputs: name → (type, shape)"""
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    out = helper.make_tensor_value_info(output, FLOAT, None)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "g", infos, [out], tensors), opset_imports=opsets, ir_version=8
    )


def norm(x="x", h="h"):
    return node("LayerNormalization", [x, "norm.weight", "norm.bias"], h, axis=-1)


def norm_constants(rng):
    gamma = np.ones(C, np.float32)
    gamma[[3, 17]] = 60
    return {"norm.weight": gamma, "norm.bias": weight(rng, C)}


def rows(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def cache(batch, axis):
    """A state with the batch on another axis than the first; `axis` says on which, of [layers, batch, C]."""
    rng = np.random.default_rng(5)
    first = node("Gather", ["cache", "zero"], "c", axis=1 - axis)
    nodes = [norm(), first, node("Unsqueeze", ["c", "one"], "u"), node("Concat", ["u", "h"], "all", axis=1)]
    shape = [2, "N", C] if axis else ["N", 2, C]
    built = model(
        [*nodes, node("MatMul", ["all", "w"], "y")],
        {"cache": (FLOAT, shape), "x": (FLOAT, ["N", S, C])},
        {**norm_constants(rng), "zero": np.int64(0), "one": np.array([1]), "w": weight(rng, C, 16)},
    )
    state = (2, batch, C) if axis else (batch, 2, C)
    return built, [{"x": rows(rng, batch, S, C), "cache": rows(rng, *state)} for _ in range(24)]


def single_row(reshaped=1):
    """A batch that has a name, and a Reshape with the one row (or another number) that the exporter saw; and rows."""
    rng = np.random.default_rng(8)
    nodes = [norm(), node("Reshape", ["h", "shape"], "r"), node("MatMul", ["r", "w"], "y")]
    shape = np.array([reshaped, S, C], np.int64)
    constants = {**norm_constants(rng), "shape": shape, "w": weight(rng, C, 16)}
    return model(nodes, {"x": (FLOAT, ["batch", S, C])}, constants), rows(rng, 304, S, C)


def graphs():
    """Nodes and edges: no axis in common."""
    rng = np.random.default_rng(6)
    nodes = [norm(), node("MatMul", ["h", "w1"], "m"), node("Relu", ["m"], "r")]
    for end, index in (("from", "zero"), ("to", "one")):
        nodes.append(node("Gather", ["edges", index], end, axis=0))
    nodes += [
        node("Gather", ["r", "from"], "sent", axis=0),
        node("Concat", ["sent", "features"], "message", axis=1),
        node("MatMul", ["message", "w2"], "update"),
        node("Shape", ["r"], "shape"),
        node("ConstantOfShape", ["shape"], "zeros"),
        node("Unsqueeze", ["to", "axis"], "rows"),
        node("ScatterND", ["zeros", "rows", "update"], "sum", reduction="add"),
        node("Add", ["r", "sum"], "s"),
        node("MatMul", ["s", "w3"], "y"),
    ]
    weights = {"w1": weight(rng, C, 32), "w2": weight(rng, 40, 32), "w3": weight(rng, 32, 16)}
    built = model(
        nodes,
        {"x": (FLOAT, ["nodes", C]), "edges": (INT64, [2, "edges"]), "features": (FLOAT, ["edges", 8])},
        {**norm_constants(rng), **weights, "zero": np.int64(0), "one": np.int64(1), "axis": np.array([1])},
    )
    files = []
    for _ in range(24):
        n, m = rng.integers(10, 30), rng.integers(20, 60)
        edges = rng.integers(0, n, (2, m))
        files.append({"x": rows(rng, n, C), "edges": edges, "features": rows(rng, m, 8)})
    return built, files


def packed():
    """Sequences one behind the other, and where they begin: each first token is taken."""
    rng = np.random.default_rng(7)
    built = model(
        [norm(), node("Gather", ["h", "starts"], "f", axis=0), node("MatMul", ["f", "w"], "y")],
        {"x": (FLOAT, ["total", C]), "starts": (INT64, ["sequences"])},
        {**norm_constants(rng), "w": weight(rng, C, 16)},
    )
    files = []
    for _ in range(24):
        starts = np.sort(rng.integers(0, 40, rng.integers(2, 9)))
        files.append({"x": rows(rng, 40, C), "starts": starts})
    return built, files


def sized(kind):
    """A size that is the value of an integer input: padding of that length behind each row."""
    rng = np.random.default_rng(8)
    constants = {**norm_constants(rng), "w": weight(rng, C, C), "v": weight(rng, C, 16), "c": np.array([C])}
    nodes = [norm(), node("MatMul", ["h", "w"], "p"), node("ReduceMax", ["lengths"], "n", keepdims=0)]
    if kind == "range":
        # Positions 0, 1, … n − 1, as many as the longest row has.
        constants |= {"zero": np.int64(0), "step": np.int64(1), "axes": np.array([0, 2])}
        nodes += [
            node("Range", ["zero", "n", "step"], "positions"),
            node("Cast", ["positions"], "f", to=FLOAT),
            node("Unsqueeze", ["f", "axes"], "part"),
            node("ReduceMean", ["p"], "mean", axes=[1], keepdims=1),
            node("Mul", ["part", "mean"], "all"),
        ]
    else:
        constants |= {"axis": np.array([0]), "first": np.array([0]), "end": np.array([1])}
        nodes += [
            node("Unsqueeze", ["n", "axis"], "n1"),
            node("Shape", ["x"], "s"),
            node("Slice", ["s", "first", "end"], "b"),
            node("Concat", ["b", "n1", "c"], "size", axis=0),
        ]
        if kind == "constant_of_shape":
            nodes += [node("ConstantOfShape", ["size"], "part")]
        else:
            constants |= {"row": rows(rng, 1, 1, C)}
            nodes += [node("Expand", ["row", "size"], "part")]
        nodes += [node("Concat", ["p", "part"], "all", axis=1)]
    built = model(
        [*nodes, node("MatMul", ["all", "v"], "y")],
        {"x": (FLOAT, ["batch", S, C]), "lengths": (INT64, ["batch", 1])},
        constants,
    )
    files = [{"x": rows(rng, 8, S, C), "lengths": rng.integers(1, 6, (8, 1))} for _ in range(4)]
    return built, files


def attention_behind(kind):
    """MultiHeadAttention, whose form depends on shapes, behind an operator of whose shape little is known."""
    rng = np.random.default_rng(9)
    constants = {**norm_constants(rng), **{name: weight(rng, C, C) for name in "qkvo"}}
    behind = {
        "resize": [
            node("Unsqueeze", ["h", "front"], "h4"),
            node("Resize", ["h4", "", "scales"], "r4", mode="nearest"),
            node("Squeeze", ["r4", "front"], "r"),
        ],
        "nonzero": [node("NonZero", ["keep"], "at2", "/at"), node("Squeeze", ["at2", "front"], "at"),
                    node("Gather", ["h", "at"], "r", axis=1)],
    }[kind]
    constants |= {"front": np.array([0]), "scales": np.array([1, 1, 2, 1], np.float32)}
    linears = [node("MatMul", ["r", name], f"{name}1") for name in "qkv"]
    attention = helper.make_node(
        "MultiHeadAttention", ["q1", "k1", "v1"], ["a"], "/attention", domain="com.microsoft", num_heads=2
    )
    inputs = {"x": (FLOAT, ["batch", S, C])}
    if kind == "nonzero":
        inputs["keep"] = (FLOAT, [S])
    built = model([norm(), *behind, *linears, attention, node("MatMul", ["a", "o"], "y")], inputs, constants)
    files = [{"x": rows(rng, 8, S, C)} for _ in range(4)]
    if kind == "nonzero":
        files = [{**file, "keep": np.array([1, 0, 1, 1], np.float32)} for file in files]
    return built, files


FORMS = {
    "cache_batch_1": lambda: cache(1, axis=1),
    "cache_batch_4": lambda: cache(4, axis=1),
    "cache_batch_first": lambda: cache(4, axis=0),
    "graphs": graphs,
    "packed": packed,
    "constant_of_shape": lambda: sized("constant_of_shape"),
    "expand": lambda: sized("expand"),
    "range": lambda: sized("range"),
    "attention_behind_resize": lambda: attention_behind("resize"),
}
