"""A small model with Linears in every form, for scales per token and weights in groups: what the forms are, in numpy.

`model` has a norm with outlier channels (written out before opset 17, which has no operator for it), MatMul + Add, a Relu, MatMul, and over rank 2 Gemms with alpha, beta, transB, transA
and a computed bias; the Relu can be another function. `linear_by_definition` computes one Linear of a written file from its initializers, by the definitions
of ONNX and of com.microsoft.MatMulNBits; `execute` runs the file node by node so.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

K, HIDDEN, N = 64, 96, 24
FLOATS = {
    "float32": (np.float32, TensorProto.FLOAT),
    "float16": (np.float16, TensorProto.FLOAT16),
}


def norm(opset, constants, array_type):
    """n = LayerNormalization(x, gamma, beta); `constants` gets what it needs."""
    if opset >= 17:
        return [helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], "norm")]
    constants |= {"two": array_type(2), "epsilon": array_type(1e-5)}
    mean = lambda x, y: helper.make_node("ReduceMean", [x], [y], f"norm_{y}", axes=[-1])  # noqa: E731
    node = lambda op, inputs, y: helper.make_node(op, inputs, [y], f"norm_{y}")  # noqa: E731
    return [
        mean("x", "mean"),
        node("Sub", ["x", "mean"], "centred"),
        node("Pow", ["centred", "two"], "squares"),
        mean("squares", "variance"),
        node("Add", ["variance", "epsilon"], "positive"),
        node("Sqrt", ["positive"], "deviation"),
        node("Div", ["centred", "deviation"], "normal"),
        node("Mul", ["normal", "gamma"], "scaled"),
        node("Add", ["scaled", "beta"], "n"),
    ]


def activation(kind, constants, array_type):
    """h2 = act(h1): "Relu", "Tanh", or "Silu" and "Gelu" written out; `constants` gets what it needs."""
    node = helper.make_node
    if kind == "Silu":
        return [node("Sigmoid", ["h1"], ["gate"], "act_gate"), node("Mul", ["h1", "gate"], ["h2"], "act")]
    if kind == "Gelu":
        constants |= {"root": array_type(2**0.5), "one": array_type(1), "half": array_type(0.5)}
        steps = [("Div", ["h1", "root"], "e0"), ("Erf", ["e0"], "e1"), ("Add", ["e1", "one"], "e2"), ("Mul", ["h1", "e2"], "e3")]
        return [node(op, inputs, [y], f"act_{y}") for op, inputs, y in steps] + [node("Mul", ["e3", "half"], ["h2"], "act")]
    return [node(kind, ["h1"], ["h2"], "act")]


def model(opset=21, dtype="float32", k=K, hidden=HIDDEN, seed=5, ir=None, act="Relu"):
    array_type, elem_type = FLOATS[dtype]
    random = np.random.default_rng(seed)
    gamma = random.uniform(0.5, 1.5, k)
    gamma[[3, 11]] = 30
    made = {
        "gamma": gamma,
        "beta": random.normal(size=k),
        "w1": random.normal(size=(k, hidden)) * random.uniform(0.3, 2, hidden),
        "b1": random.normal(size=hidden),
        "w2": random.normal(size=(hidden, N)),
        "w3": random.normal(size=(N, k)),
        "b3": random.normal(size=N),
        "w4": random.normal(size=(k, N)),
        "w5": random.normal(size=(k, N)),
        "b5": random.normal(size=N),
    }
    made = {name: array.astype(array_type) for name, array in made.items()} | {"rows": np.array([-1, k], np.int64)}
    nodes = [
        *norm(opset, made, array_type),
        helper.make_node("MatMul", ["n", "w1"], ["h0"], "up"),
        helper.make_node("Add", ["h0", "b1"], ["h1"], "up_bias"),
        *activation(act, made, array_type),
        helper.make_node("MatMul", ["h2", "w2"], ["y1"], "down"),
        helper.make_node("Reshape", ["n", "rows"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y2"], "head", transB=1, beta=0.5),
        helper.make_node("Gemm", ["flat", "w4"], ["y3"], "head2", alpha=0.5),
        helper.make_node("MatMul", ["flat", "w5"], ["p4"], "head3"),
        helper.make_node("Add", ["b5", "p4"], ["y4"], "head3_bias"),
        helper.make_node("Transpose", ["flat"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("Gemm", ["turned", "w4", "y2"], ["y5"], "head4", transA=1, alpha=0.25, beta=2.0),
    ]
    info = lambda name, *shape: helper.make_tensor_value_info(name, elem_type, shape)  # noqa: E731
    graph = helper.make_graph(
        nodes,
        "fine_grained",
        [info("x", "b", "s", k)],
        [info("y1", "b", "s", N), *(info(y, "t", N) for y in ("y2", "y3", "y4", "y5"))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in made.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    made_model = helper.make_model(graph, opset_imports=imports, ir_version=ir or (10 if opset >= 21 else 8))
    onnx.checker.check_model(made_model, full_check=True)
    return made_model


def unpacked(packed, bits, count):
    """Unsigned integers, the lowest bits of a byte first: the last axis becomes `count` long."""
    parts = [packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    flat = np.stack(parts, -1).reshape(*packed.shape[:-1], -1)
    return flat[..., :count]


def in_groups(x, group, qmax=127):
    """Values in 8 bits, with a scale for every group of the last axis: what MatMulNBits does at accuracy level 4."""
    k = x.shape[-1]
    groups = -(-k // group)
    padded = np.zeros((*x.shape[:-1], groups * group), np.float32)
    padded[..., :k] = x
    padded = padded.reshape(*x.shape[:-1], groups, group)
    scale = np.abs(padded).max(-1, keepdims=True) / qmax
    rounded = np.round(padded / np.where(scale == 0, 1, scale)) * scale
    return rounded.reshape(*x.shape[:-1], -1)[..., :k]


class MatMulNBits(OpRun):
    """com.microsoft.MatMulNBits."""

    op_domain = "com.microsoft"

    def _run(self, a, b, scales, zero_points=None, K=0, N=0, accuracy_level=0, bits=4, block_size=0):  # noqa: N803
        groups = -(-K // block_size)
        q = unpacked(b, bits, block_size).astype(np.float32)
        zeros = np.full((N, groups), 1 << bits - 1, np.float32)
        if zero_points is not None:
            zeros = unpacked(zero_points.reshape(N, -1), bits, groups).astype(np.float32)
        w = (q - zeros[..., None]) * scales.reshape(N, groups)[..., None]
        w = w.reshape(N, -1)[:, :K]
        x = in_groups(a, block_size) if accuracy_level == 4 else a
        return ((x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.float32),)


def execute(path, feeds):
    """The outputs of a file by the definitions of its operators."""
    return ReferenceEvaluator(str(path), new_ops=[MatMulNBits]).run(None, feeds)
