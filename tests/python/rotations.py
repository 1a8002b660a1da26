"""Small models with outlier tokens: what no scale per channel cures, and a rotation does.

A few tokens have one element that is far larger than all others, each in a channel of its own. Behind the norm they are
√K times their deviation, where other tokens reach four times theirs.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
LENGTH = 8


def tokens(k, rows, seed, rank=3, dtype="float32"):
    """x: [rows, LENGTH, k], or [rows, k] of rank 2. Every ninth token sticks out in a channel of its own."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, LENGTH, k) if rank == 3 else (rows * LENGTH, k))
    flat = x.reshape(-1, k)
    out = np.arange(0, len(flat), 9)
    flat[out, random.permuted(np.arange(len(out)) % k)] = 60 * random.choice([-1, 1], len(out))
    return {"x": x.astype(dtype)}


class _Graph:
    def __init__(self, dtype, seed):
        self.nodes, self.constants, self.dtype = [], {}, dtype
        self.random = np.random.default_rng(seed)

    def constant(self, name, values):
        self.constants.setdefault(name, np.asarray(values, self.dtype))
        return name

    def add(self, op, inputs, name, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def norm(self, x, k, name):
        scale = self.constant(f"{name}.weight", self.random.uniform(0.5, 2, k))
        shift = self.constant(f"{name}.bias", self.random.normal(size=k))
        return self.add("LayerNormalization", [x, scale, shift], name)

    def linear(self, x, k, n, name, weight=None):
        weight = self.constant(weight or f"{name}.weight", self.random.normal(0, k**-0.5, (k, n)))
        product = self.add("MatMul", [x, weight], f"{name}/MatMul")
        return self.add("Add", [product, self.constant(f"{name}.bias", self.random.normal(size=n))], f"{name}/Add")

    def model(self, x, outputs, opset=17):
        stored = [numpy_helper.from_array(v, n) for n, v in self.constants.items()]
        info = lambda name, shape: helper.make_tensor_value_info(name, TYPES[self.dtype], shape)  # noqa: E731
        outputs = [info(name, (*x[:-1], n)) for name, n in outputs.items()]
        graph = helper.make_graph(self.nodes, "planted", [info("x", x)], outputs, stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def readers(k, n=256, rank=3, batch="batch", dtype="float32"):
    """query, key and value of one norm, and an output Linear: four Linears. `batch`: a name, or a number."""
    g = _Graph(dtype, k)
    normed = g.norm("x", k, "norm")
    query, key, value = (g.linear(normed, k, n, name) for name in ("query", "key", "value"))
    gate = g.add("Sigmoid", [query], "gate")
    mixed = g.add("Add", [g.add("Mul", [gate, key], "gated"), value], "mixed")
    y = g.linear(mixed, n, 16, "output")
    return g.model((batch, LENGTH, k) if rank == 3 else (batch, k), {y: 16})


def shared(k=96, n=96):
    """Two layers with the weights of one, as in ALBERT: four Linears, two weights."""
    g = _Graph("float32", k)
    x = "x"
    for layer in "01":
        normed = g.norm(x, k, f"{layer}/norm")
        up = g.linear(normed, k, n, f"{layer}/up", weight="up.weight")
        down = g.linear(g.add("Tanh", [up], f"{layer}/act"), n, k, f"{layer}/down", weight="down.weight")
        # The residual brings the outlier tokens to the next layer.
        x = g.add("Add", [x, down], f"{layer}/sum")
    return g.model(("batch", LENGTH, k), {x: k})
