"""Small models whose Linears are so by value and not by form, each with data of outlier channels.

`make(name)` gives a model of one LayerNormalization and the product of that name, with rows to calibrate on and others.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper

C, N, S = 32, 64, 8  # channels before and after, positions


@dataclass(frozen=True)
class Product:
    """The nodes from `h` to `y`, their constants, and how many Linears they are."""

    nodes: list
    constants: dict
    linears: int = 1


def node(op, inputs, output, name=None, **attributes):
    outputs = output if isinstance(output, list) else [output]
    return helper.make_node(op, inputs, outputs, name or f"/{outputs[0]}/{op}", **attributes)


def product_node(op, inputs, output="y", **attributes):
    return node(op, inputs, output, "/proj", **attributes)


def weight(rng, *shape):
    return (rng.standard_normal(shape) / np.sqrt(C)).astype(np.float32)


def i64(*values):
    return np.array(values, np.int64)


def expressions(rng):
    """A weight [C, N] that constants alone tell."""
    matmul = product_node("MatMul", ["h", "w"])
    table = weight(rng, 3, C, N)
    yield "gather", Product([node("Gather", ["t", "i"], "w", axis=0), matmul], {"t": table, "i": np.int64(1)})
    rows = node("Slice", ["t", "from", "to", "axes"], "w")
    yield "slice", Product(
        [rows, matmul], {"t": weight(rng, 2 * C, N), "from": i64(C), "to": i64(2 * C), "axes": i64(0)}
    )
    split = node("Split", ["t", "parts"], ["v", "w"], axis=1)
    yield "split", Product([split, matmul], {"t": weight(rng, C, 2 * N), "parts": i64(N, N)})
    concat = node("Concat", ["a", "b"], "w", axis=1)
    yield "concat", Product([concat, matmul], {"a": weight(rng, C, 24), "b": weight(rng, C, N - 24)})
    pad = node("Pad", ["t", "pads"], "w")
    yield "pad", Product([pad, matmul], {"t": weight(rng, C, N - 8), "pads": i64(0, 0, 0, 8)})
    flatten = node("Flatten", ["t"], "w", axis=1)
    yield "flatten", Product([flatten, matmul], {"t": weight(rng, C, 4, N // 4)})
    expand = node("Expand", ["t", "shape"], "e"), node("Reshape", ["e", "flat"], "w")
    yield "expand", Product(
        [*expand, matmul], {"t": weight(rng, C, 1, N // 2), "shape": i64(C, 2, N // 2), "flat": i64(C, N)}
    )
    lora = [node("MatMul", ["a", "b"], "ab"), node("Mul", ["ab", "alpha"], "l"), node("Add", ["t", "l"], "w")]
    yield "lora", Product(
        [*lora, matmul],
        {"t": weight(rng, C, N), "a": weight(rng, C, 4), "b": weight(rng, 4, N), "alpha": np.float32(0.5)},
    )
    # Neighbours: a weight that is normed, and an expert's bias beside its matrix.
    normed = [node("ReduceL2", ["v"], "l", axes=[0]), node("Div", ["v", "l"], "u"), node("Mul", ["u", "g"], "w")]
    yield "weight_norm", Product([*normed, matmul], {"v": weight(rng, C, N), "g": np.abs(weight(rng, N)) * 5})
    expert = [
        node("Gather", ["t", "i"], "w", axis=0),
        node("Gather", ["bs", "i"], "b", axis=0),
        product_node("MatMul", ["h", "w"], "p"),
        node("Add", ["p", "b"], "y"),
    ]
    yield "expert_bias", Product(expert, {"t": table, "i": np.int64(2), "bs": weight(rng, 3, N)})


def layouts(rng):
    """The product in another layout."""
    yield "unit_axis", Product([product_node("MatMul", ["h", "w"])], {"w": weight(rng, 1, C, N)})
    rows = node("Reshape", ["h", "rows"], "r")
    yield "unit_axes_of_rows", Product(
        [rows, product_node("MatMul", ["r", "w"])], {"rows": i64(-1, C), "w": weight(rng, 1, 1, C, N)}
    )
    turned = node("Transpose", ["h"], "t", perm=[0, 2, 1])
    yield "on_the_left", Product([turned, product_node("MatMul", ["w", "t"])], {"w": weight(rng, N, C)})
    both = [
        turned,
        product_node("MatMul", ["w", "t"], "p"),
        node("Add", ["p", "b"], "q"),
        node("Transpose", ["q"], "y", perm=[0, 2, 1]),
    ]
    yield "on_the_left_with_bias", Product(both, {"w": weight(rng, N, C), "b": weight(rng, N, 1)})
    yield "einsum", Product(
        [product_node("Einsum", ["h", "w"], equation="bsd,dhk->bshk")], {"w": weight(rng, C, 4, N // 4)}
    )
    yield "einsum_dots", Product(
        [product_node("Einsum", ["w", "h"], equation="nd,...d->...n")], {"w": weight(rng, N, C)}
    )
    heads = [
        product_node("Einsum", ["h", "w"], "p", equation="abc,cde->abde"),
        node("Add", ["p", "b"], "q"),
        node("Einsum", ["q", "v"], "y", "/out", equation="abde,dec->abc"),
    ]
    yield "einsum_of_heads", Product(
        heads, {"w": weight(rng, C, 4, 16), "b": weight(rng, 4, 16), "v": weight(rng, 4, 16, C)}, 2
    )
    yield "einsum_turned", Product(
        [product_node("Einsum", ["h", "w"], equation="bsd,hdk->bhsk")], {"w": weight(rng, 4, C, N // 4)}
    )
    yield "conv1d", Product(
        [turned, product_node("Conv", ["t", "w", "b"], kernel_shape=[1])],
        {"w": weight(rng, N, C, 1), "b": weight(rng, N)},
    )
    image = [
        node("Reshape", ["h", "image"], "i"),
        node("Transpose", ["i"], "t", perm=[0, 3, 1, 2]),
        product_node("Conv", ["t", "w"], "c", strides=[1, 1], pads=[0, 0, 0, 0]),
        node("Relu", ["c"], "r"),
        node("Conv", ["r", "v", "b"], "y", "/next", auto_pad="SAME_UPPER"),
    ]
    constants = {"image": i64(-1, 2, S // 2, C), "w": weight(rng, 96, C, 1, 1), "v": weight(rng, 96, 96, 1, 1)}
    yield "conv2d", Product(image, {**constants, "b": weight(rng, 96)}, 2)


def others(rng):
    """Products that stay as they are, beside a Linear that does not."""
    proj = product_node("MatMul", ["h", "w0"], "p")
    w0 = {"w0": weight(rng, C, C)}
    turned = node("Transpose", ["p"], "t", perm=[0, 2, 1])
    heads = [
        proj,
        node("Reshape", ["p", "split"], "s"),
        node("Transpose", ["s"], "t", perm=[0, 2, 1, 3]),
        node("MatMul", ["t", "w"], "y", "/other"),
    ]
    yield "per_head", Product(heads, {**w0, "split": i64(0, 0, 4, C // 4), "w": weight(rng, 4, C // 4, 16)})
    yield "einsum_per_head", Product(
        [proj, node("Reshape", ["p", "split"], "s"), node("Einsum", ["s", "w"], "y", "/other", equation="bshd,hdk->bshk")],
        {**w0, "split": i64(0, 0, 4, C // 4), "w": weight(rng, 4, C // 4, 16)},
    )
    yield "conv_small", Product(
        [proj, turned, node("Conv", ["t", "w"], "u"), node("Conv", ["u", "v"], "y", "/other")],
        {**w0, "w": weight(rng, 16, C, 3), "v": weight(rng, 8, 16, 1)},
    )
    yield "conv_strided", Product(
        [proj, turned, node("Conv", ["t", "w"], "y", "/other", strides=[2])], {**w0, "w": weight(rng, N, C, 1)}
    )


def make(name, form):
    """The model, rows to calibrate on and others, and the number of Linears that can be quantized."""
    rng = np.random.default_rng(3)
    product = {key: value for key, value in form(rng)}[name]
    norm = helper.make_node(
        "LayerNormalization", ["x", "norm.weight", "norm.bias"], ["h"], "/norm/LayerNormalization", axis=-1
    )
    gamma = np.ones(C, np.float32)
    gamma[[3, 17]] = 60
    constants = {"norm.weight": gamma, "norm.bias": weight(rng, C), **product.constants}
    graph = helper.make_graph(
        [norm, *product.nodes],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", S, C])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = rng.standard_normal((32, S, C)).astype(np.float32)
    return model, {"x": rows[:24]}, {"x": rows[24:]}, product.linears
