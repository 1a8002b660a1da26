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


def aligned(model, weight, rows, seed, length=48):
    """Tokens of which every ninth has all elements of the size of two, and the signs of one column of `weight`: the Linear makes an
    outlier of it that its own input does not have."""
    x = model.graph.input[0].type.tensor_type
    stored = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == weight).astype(np.float64)
    k, n = stored.shape
    random = np.random.default_rng(seed)
    flat = random.normal(size=(rows * length, k))
    out = np.arange(0, len(flat), 9)
    flat[out] = 2 * np.sign(stored[:, random.permuted(np.arange(len(out)) % n)].T)
    return {"x": flat.reshape(rows, length, k).astype(helper.tensor_dtype_to_np_dtype(x.elem_type))}


def attention(k, heads, kv_heads=None):
    """One attention. With `kv_heads`, several heads of queries read one of keys and values."""
    g = _Graph("float32", k)
    kv_heads = kv_heads or heads
    size, width = k // heads, k // heads * kv_heads

    def split(x, count, name):
        return g.add("Transpose", [g.add("Reshape", [x, shape(f"{name}_heads", 0, 0, count, size)], f"{name}_split")], name, perm=[0, 2, 1, 3])

    def shape(name, *sizes):
        g.nodes.append(helper.make_node("Constant", [], [name], name=f"{name}_constant", value_ints=list(sizes)))
        return name

    def shared(x, name):
        if kv_heads == heads:
            return x
        one = g.add("Unsqueeze", [x, shape(f"{name}_axis", 2)], f"{name}_one")
        more = g.add("Expand", [one, shape(f"{name}_more", 1, 1, heads // kv_heads, 1, 1)], f"{name}_expand")
        return g.add("Reshape", [more, shape(f"{name}_all", 0, heads, -1, size)], f"{name}_repeated")

    query = split(g.linear("x", k, k, "query"), heads, "q")
    key = shared(split(g.linear("x", k, width, "key"), kv_heads, "k"), "k")
    value = shared(split(g.linear("x", k, width, "value"), kv_heads, "v"), "v")
    keys = g.add("Transpose", [key], "keys", perm=[0, 1, 3, 2])
    scores = g.add("Div", [g.add("MatMul", [query, keys], "scores"), g.constant("root", size**0.5 / 3)], "scaled")
    context = g.add("MatMul", [g.add("Softmax", [scores], "softmax", axis=-1), value], "context")
    joined = g.add("Reshape", [g.add("Transpose", [context], "back", perm=[0, 2, 1, 3]), shape("joined_shape", 0, 0, k)], "joined")
    y = g.linear(joined, k, 32, "output")
    return g.model(("batch", "length", k), {y: 32})
