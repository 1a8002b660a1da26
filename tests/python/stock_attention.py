"""torch's own nn.TransformerEncoder of post-norm layers, batch_first, in the graph that its export writes: attention is
computed as [sequence, batch, channels], so that a Transpose stands between each norm and its projections."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from layouts import node, weight

C, H, F = 32, 4, 64  # channels, heads, channels of the FFN


def layer(at, x, rng, constants):
    """The nodes of one layer and the name of what it gives."""
    nodes = []

    def add(op, inputs, name, **attributes):
        output = f"/layers.{at}/{name}_output_0"
        nodes.append(node(op, inputs, output, f"/layers.{at}/{name}", **attributes))
        return output

    def constant(name, value):
        constants[f"layers.{at}.{name}"] = value
        return f"layers.{at}.{name}"

    def linear(x, name, k, n):
        product = add("MatMul", [x, constant(f"{name}.weight", weight(rng, k, n))], f"{name}/MatMul")
        return add("Add", [constant(f"{name}.bias", weight(rng, n)), product], f"{name}/Add")

    def norm(x, name):
        gamma = np.ones(C, np.float32)
        gamma[[3, 17]] = 40
        scale, shift = constant(f"{name}.weight", gamma), constant(f"{name}.bias", weight(rng, C))
        return add("LayerNormalization", [x, scale, shift], f"{name}/LayerNormalization", axis=-1)

    turned = add("Transpose", [x], "self_attn/Transpose", perm=[1, 0, 2])
    qkv = linear(turned, "self_attn/in_proj", C, 3 * C)
    qkv = add("Reshape", [qkv, "parts"], "self_attn/Reshape")
    qkv = add("Unsqueeze", [qkv, "zero"], "self_attn/Unsqueeze")
    qkv = add("Transpose", [qkv], "self_attn/Transpose_1", perm=[3, 1, 2, 0, 4])
    qkv = add("Squeeze", [qkv, "minus_two"], "self_attn/Squeeze")
    heads = []
    for part in range(3):
        one = add("Gather", [qkv, f"index_{part}"], f"self_attn/Gather_{part}", axis=0)
        one = add("Reshape", [one, "heads"], f"self_attn/Reshape_{part + 1}")
        heads.append(add("Transpose", [one], f"self_attn/Transpose_{part + 2}", perm=[1, 2, 0, 3]))
    key = add("Transpose", [heads[1]], "self_attn/Transpose_5", perm=[0, 1, 3, 2])
    scores = add("MatMul", [add("Mul", [heads[0], "scale"], "self_attn/Mul"), key], "self_attn/MatMul")
    weighted = add("MatMul", [add("Softmax", [scores], "self_attn/Softmax", axis=-1), heads[2]], "self_attn/MatMul_1")
    rows = add("Transpose", [weighted], "self_attn/Transpose_6", perm=[2, 0, 1, 3])
    rows = add("Reshape", [rows, "flat"], "self_attn/Reshape_4")
    out = constant("self_attn.out_proj.weight", weight(rng, C, C)), constant("self_attn.out_proj.bias", weight(rng, C))
    rows = add("Gemm", [rows, *out], "self_attn/Gemm", transB=1)
    batch = add("Shape", [turned], "self_attn/Shape")
    rows = add("Reshape", [rows, batch], "self_attn/Reshape_5")
    attended = add("Transpose", [rows], "self_attn/Transpose_7", perm=[1, 0, 2])
    h = norm(add("Add", [x, attended], "Add"), "norm1")
    inner = add("Relu", [linear(h, "linear1", C, F)], "Relu")
    return nodes, norm(add("Add", [h, linear(inner, "linear2", F, C)], "Add_1"), "norm2")


def encoder(layers=2, sequence=8):
    """The model, and rows of it."""
    rng = np.random.default_rng(11)
    constants = {
        "parts": np.array([0, 0, 3, C]),
        "zero": np.array([0]),
        "minus_two": np.array([-2]),
        "heads": np.array([0, 0, H, C // H]),
        "flat": np.array([-1, C]),
        "scale": np.float32((C // H) ** -0.5),
        **{f"index_{part}": np.int64(part) for part in range(3)},
    }
    nodes, x = [], "x"
    for at in range(layers):
        more, x = layer(at, x, rng, constants)
        nodes += more
    graph = helper.make_graph(
        [*nodes, node("Identity", [x], "y")],
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", sequence, C])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", sequence, C])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, rng.standard_normal((48, sequence, C)).astype(np.float32)
