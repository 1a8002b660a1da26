"""Small transformers in which a quantizer can be blind: masks of one sequence of two, tokens on any axis, filled outputs, pools.

Every function returns a model and a function that makes rows of data for it.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

C, HEADS = 32, 4
FLOAT_MIN = float(np.finfo(np.float32).min)


class Graph:
    """Nodes in order; values are names."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.inputs, self.outputs = [], [], [], []

    def input(self, name, dtype, shape):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value, dtype, shape, name):
        self.op("Identity", value, name=name)
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def const(self, array, name=None):
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def f32(self, value):
        return self.const(np.asarray(value, np.float32))

    def i64(self, *values):
        return self.const(np.asarray(values, np.int64))

    def op(self, op, *inputs, name=None, **attrs):
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"/{name}", **attrs))
        return name

    def linear(self, x, k, n):
        weight = self.rng.normal(0, 1 / np.sqrt(k), (k, n))
        product = self.op("MatMul", x, self.f32(weight))
        return self.op("Add", product, self.f32(self.rng.normal(0, 0.1, n)))

    def norm(self, x, channels=C, outliers=True):
        """With two channels of large γ and β, as trained transformers have."""
        gamma, beta = self.rng.uniform(0.5, 1.5, channels), self.rng.normal(0, 0.1, channels)
        if outliers:
            gamma[[3, channels // 2]] *= 20
            beta[3] += 6
        return self.op("LayerNormalization", x, self.f32(gamma), self.f32(beta), axis=-1)

    def gelu(self, x):
        erf = self.op("Erf", self.op("Div", x, self.f32(np.sqrt(2))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.f32(1))), self.f32(0.5))

    def heads(self, x, perm, shape):
        return self.op("Transpose", self.op("Reshape", x, self.i64(*shape)), perm=perm)

    def attention(self, x, y, bias=None, channels=C):
        """Queries from x, keys and values from y, both [B, L, C]; `bias` is added to the scores."""
        shape, perm = (0, -1, HEADS, channels // HEADS), [0, 2, 1, 3]
        q, k, v = (self.heads(self.linear(of, channels, channels), perm, shape) for of in (x, y, y))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Div", scores, self.f32(np.sqrt(channels / HEADS)))
        if bias is not None:
            scores = bias(scores) if callable(bias) else self.op("Add", scores, bias)
        out = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        out = self.op("Reshape", self.op("Transpose", out, perm=perm), self.i64(0, -1, channels))
        return self.linear(out, channels, channels)

    def ffn(self, x, channels=C):
        return self.linear(self.gelu(self.linear(x, channels, 2 * channels)), 2 * channels, channels)

    def block(self, x, bias=None, channels=C):
        n = self.norm(x, channels)
        x = self.op("Add", x, self.attention(n, n, bias, channels))
        return self.op("Add", x, self.ffn(self.norm(x, channels), channels))

    def embed(self, ids, vocabulary=100):
        return self.op("Gather", self.f32(self.rng.normal(0, 1, (vocabulary, C))), ids)

    def model(self, opset=17):
        graph = helper.make_graph(self.nodes, "truth", self.inputs, self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model


I64, F32, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL


def lengths(rng, rows, length):
    """[B, S], 1 at real tokens: most rows have far more padding than tokens."""
    real = rng.integers(1, length + 1, rows)
    real[::2] = rng.integers(1, length // 3 + 1, len(real[::2]))
    return (np.arange(length) < real[:, None]).astype(np.int64)


def keys(g, mask, read):
    """The bias [B, 1, 1, S] of a mask, or a function that lays it over scores, by how it is read."""
    mask = g.op("Unsqueeze", mask, g.i64(1, 2))
    if read == "additive":
        return mask
    if read == "inverted":
        return lambda scores: g.op("Where", mask, g.f32(-1e9), scores)
    gone = g.op("Sub", g.f32(1), g.op("Cast", mask, to=F32))
    return g.op("Mul", gone, g.f32(FLOAT_MIN))


def encoder_decoder(source=16, target=16, mask_name="attention_mask", causal=False):
    """Cross attention of two sequences, of which one has a mask."""
    g = Graph(1)
    ids = g.input("input_ids", I64, ["b", source])
    mask = g.input(mask_name, I64, ["b", source])
    own = g.input("decoder_input_ids", I64, ["b", target])
    memory = g.norm(g.embed(ids))
    x = g.op("Add", g.embed(own), g.f32(g.rng.normal(0, 1, (1, target, C))))
    if causal:
        bias = g.f32(np.triu(np.full((1, 1, target, target), -1e9), 1))
        n = g.norm(x)
        x = g.op("Add", x, g.attention(n, n, bias))
    x = g.op("Add", x, g.attention(g.norm(x), memory, keys(g, mask, "usual")))
    x = g.op("Add", x, g.ffn(g.norm(x)))
    g.output(g.linear(g.norm(x, outliers=False), C, 20), F32, ["b", target, 20], "logits")

    def data(rows, seed):
        rng = np.random.default_rng(seed)
        return {
            "input_ids": rng.integers(0, 100, (rows, source)),
            mask_name: lengths(rng, rows, source),
            "decoder_input_ids": rng.integers(0, 100, (rows, target)),
        }

    return g.model(), data


def masked_encoder(read, name="attention_mask", length=12):
    """An encoder whose mask is read as `usual`, `additive` or `inverted`; padding is another part of the vocabulary."""
    g = Graph(2)
    ids = g.input("input_ids", I64, ["b", length])
    dtype = {"usual": I64, "additive": F32, "inverted": BOOL}[read]
    mask = g.input(name, dtype, ["b", length])
    x = g.block(g.linear(g.embed(ids), C, C), keys(g, mask, read))
    g.output(g.linear(g.norm(x, outliers=False), C, 20), F32, ["b", length, 20], "y")

    def data(rows, seed):
        rng = np.random.default_rng(seed)
        real = lengths(rng, rows, length)
        values = {"usual": real, "additive": np.where(real, 0, -1e9).astype(np.float32), "inverted": real == 0}
        ids = np.where(real, rng.integers(0, 90, (rows, length)), rng.integers(90, 100, (rows, length)))
        return {"input_ids": ids, name: values[read]}

    return g.model(), data


def tokens(rows, seed, shape):
    """Rows of floats with outlier channels on the last axis, each of its own size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (rows, *shape))
    return x.astype(np.float32)


def patches(layout, length=12):
    """One attention over patches held as `batch_first`, `seq_first`, `windows`, `image`, `fixed` (a batch of 1) or `flat`."""
    g = Graph(3)
    rows = 1 if layout == "fixed" else "b"
    x = g.input("x", F32, [rows, length, C] if layout != "image" else [rows, C, 3, length // 3])
    value, shape, perm = x, (0, -1, HEADS, C // HEADS), [0, 2, 1, 3]
    back, merge = [0, 2, 1, 3], (0, -1, C)
    if layout == "seq_first":
        value, shape, perm = g.op("Transpose", x, perm=[1, 0, 2]), (length, -1, HEADS, C // HEADS), [1, 2, 0, 3]
        back, merge = [2, 0, 1, 3], (length, -1, C)
    elif layout == "windows":
        value, shape = g.op("Reshape", x, g.i64(-1, 4, C)), (-1, 4, HEADS, C // HEADS)
    elif layout == "image":
        value = g.op("Transpose", g.op("Reshape", x, g.i64(0, C, -1)), perm=[0, 2, 1])
    elif layout == "flat":
        value, shape, merge = g.op("Reshape", x, g.i64(-1, C)), (-1, length, HEADS, C // HEADS), (-1, C)
    n = g.norm(value)
    q, k, v = (g.heads(g.linear(n, C, C), perm, shape) for _ in range(3))
    scores = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), g.f32((C / HEADS) ** -0.5))
    out = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    out = g.linear(g.op("Reshape", g.op("Transpose", out, perm=back), g.i64(*merge)), C, C)
    out = g.op("Transpose", out, perm=[1, 0, 2]) if layout == "seq_first" else out
    out = g.op("Reshape", out, g.i64(-1, length, C)) if layout in ("windows", "flat") else out
    g.output(out, F32, [rows, length, C], "y")

    def data(rows, seed):
        x = tokens(rows, seed, (length, C))
        return {"x": x.transpose(0, 2, 1).reshape(rows, C, 3, -1) if layout == "image" else x}

    return g.model(), data


def filled(how, length=16):
    """Logits of spans, of which a mask leaves out some: `where` with the smallest float, `where1e4`, `added` or `infinite`."""
    g = Graph(4)
    x = g.input("x", F32, ["b", length, C])
    valid = g.input("span_valid", BOOL, ["b", length])
    logits = g.linear(g.norm(g.block(x)), C, 2)
    mask = g.op("Unsqueeze", valid, g.i64(2))
    if how == "added":
        gone = g.op("Sub", g.f32(1), g.op("Cast", mask, to=F32))
        logits = g.op("Add", logits, g.op("Mul", gone, g.f32(-1e4)))
    else:
        fill = {"where": FLOAT_MIN, "where1e4": -1e4, "infinite": -np.inf}[how]
        logits = g.op("Where", mask, logits, g.f32(fill))
    g.output(logits, F32, ["b", length, 2], "logits")

    def data(rows, seed):
        valid = np.random.default_rng(seed + 1).random((rows, length)) < 0.8
        return {"x": tokens(rows, seed, (length, C)), "span_valid": valid}

    return g.model(), data


def filled_within(fill, whole=True, length=16):
    """Tokens that a mask leaves out become `fill` before a Linear, all of each or half of its channels, and its outputs do behind it."""
    g = Graph(6)
    x = g.input("x", F32, ["b", length, C])
    valid = g.input("span_valid", BOOL, ["b", length])
    mask = g.op("Unsqueeze", valid, g.i64(2))
    left = mask if whole else g.op("Or", mask, g.const(np.arange(C) % 2 == 0))
    n = g.op("Where", left, g.norm(g.block(x)), g.f32(fill))
    pooled = g.op("Where", mask, g.linear(n, C, 8), g.f32(fill))
    g.output(g.op("ReduceMax", pooled, axes=[1], keepdims=0), F32, ["b", 8], "y")

    def data(rows, seed):
        valid = np.random.default_rng(seed + 1).random((rows, length)) < 0.8
        return {"x": tokens(rows, seed, (length, C)), "span_valid": valid}

    return g.model(), data


def labels(logits_too=False, length=8):
    """The classes of tokens, as numbers alone or beside the logits."""
    g = Graph(5)
    x = g.input("x", F32, ["b", length, C])
    logits = g.linear(g.norm(x), C, 10)
    g.output(g.op("ArgMax", logits, axis=-1, keepdims=0), I64, ["b", length], "label")
    if logits_too:
        g.output(logits, F32, ["b", length, 10], "logits")
    return g.model(), lambda rows, seed: {"x": tokens(rows, seed, (length, C))}


def classes(count=40, sharp=6.0, length=8, axis=-1, decomposed=False):
    """Probabilities of a model that is sure: nearly all are 0 or 1. As one operator, or as JAX writes it."""
    g = Graph(21)
    x = g.input("x", F32, ["b", length, C])
    logits = g.op("Mul", g.linear(g.norm(x), C, count), g.const(np.float32(sharp)))
    if decomposed:
        power = g.op("Exp", g.op("Sub", logits, g.op("ReduceMax", logits, axes=[-1], keepdims=1)))
        total = g.op("ReduceSum", power, g.const(np.array([-1], np.int64)), keepdims=1)
        g.output(g.op("Div", power, total), F32, ["b", length, count], "p")
    else:
        g.output(g.op("Softmax", logits, axis=axis), F32, ["b", length, count], "p")
    return g.model(), lambda rows, seed: {"x": tokens(rows, seed, (length, C))}


def convolved(size=12):
    """Convolutions whose pads the runtime works out, before a Linear: what they multiply follows from no attribute alone."""
    g = Graph(22)
    x = g.input("x", F32, ["b", 3, size, size])
    for step, (given, made) in enumerate([(3, 8), (8, 8), (8, 4)]):
        x = g.op("Conv", x, g.const((g.rng.normal(size=(made, given, 3, 3)) / 6).astype(np.float32)), auto_pad="SAME_UPPER", strides=[1 + step % 2] * 2)
        x = g.op("MaxPool", x, auto_pad="SAME_UPPER", kernel_shape=[2, 2], strides=[1, 1])
    rows = g.op("Transpose", g.op("Reshape", x, g.const(np.array([0, 4, -1], np.int64))), perm=[0, 2, 1])
    g.output(g.linear(rows, 4, 16), F32, ["b", size * size // 4, 16], "y")
    return g.model(), lambda rows, seed: {"x": np.random.default_rng(seed).normal(size=(rows, 3, size, size)).astype(np.float32)}


def scalar():
    """One number per row."""
    g = Graph(6)
    x = g.input("x", F32, ["b", C])
    g.output(g.linear(g.norm(x), C, 1), F32, ["b", 1], "y")
    return g.model(), lambda rows, seed: {"x": tokens(rows, seed, (C,))}


def long_rows(length=1500):
    g = Graph(7)
    x = g.input("x", F32, ["b", length, C])
    g.output(g.linear(g.norm(x), C, C), F32, ["b", length, C], "y")
    return g.model(), lambda rows, seed: {"x": tokens(rows, seed, (length, C))}


def pooled(op="ReduceMean", keepdims=0, channels=64, length=8, mask=False):
    """A Linear behind a pool over tokens."""
    g = Graph(8)
    x = g.input("x", F32, ["b", length, channels])
    n = g.norm(x, channels)
    if op == "masked":
        real = g.op("Unsqueeze", g.input("mask", F32, ["b", length]), g.i64(2))
        total = g.op("ReduceSum", g.op("Mul", n, real), g.i64(1), keepdims=keepdims)
        pool = g.op("Div", total, g.op("ReduceSum", real, g.i64(1), keepdims=keepdims))
    elif op == "ReduceSum":
        pool = g.op(op, n, g.i64(1), keepdims=keepdims)
    else:
        pool = g.op(op, n, axes=[1], keepdims=keepdims)
    y = g.linear(pool, channels, 32)
    g.output(y, F32, ["b", 32] if not keepdims else ["b", 1, 32], "y")

    def data(rows, seed):
        rng = np.random.default_rng(seed + 9)
        arrays = {"x": tokens(rows, seed, (length, channels))}
        if op == "masked":
            arrays["mask"] = lengths(rng, rows, length).astype(np.float32)
        return arrays

    return g.model(), data


def softmaxes():
    """Softmaxes that are no attention: a pooler's, a router's, a classifier's."""
    g = Graph(9)
    x = g.input("x", F32, ["b", 8, C])
    x = g.block(x)
    # Attention pooling: one learned query, so the scores come from a Linear.
    weights = g.op("Softmax", g.op("Transpose", g.linear(x, C, 1), perm=[0, 2, 1]), axis=-1)
    pool = g.op("Squeeze", g.op("MatMul", weights, x), g.i64(1))
    # A router over two experts.
    gates = g.op("Unsqueeze", g.op("Softmax", g.linear(pool, C, 2), axis=-1), g.i64(1))
    experts = g.op("Concat", *(g.op("Unsqueeze", g.linear(pool, C, C), g.i64(1)) for _ in range(2)), axis=1)
    mixed = g.op("Squeeze", g.op("MatMul", gates, experts), g.i64(1))
    # A classifier by similarity with computed prototypes.
    prototypes = g.linear(g.f32(g.rng.normal(0, 1, (5, C))), C, C)
    scores = g.op("MatMul", mixed, g.op("Transpose", prototypes, perm=[1, 0]))
    g.output(g.op("Softmax", scores, axis=-1), F32, ["b", 5], "y")
    return g.model(), lambda rows, seed: {"x": tokens(rows, seed, (8, C))}
