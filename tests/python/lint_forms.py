"""Small graphs around one product, in every form that a lint rule is about."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

K, N = 64, 96
IR = {21: 10, 22: 10, 23: 11, 24: 12, 25: 12}


def const(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attributes)


def model(nodes, constants, x=("b", "s", K), y=("b", "s", N), opset=17, dtype=TensorProto.FLOAT, more_inputs=()):
    """`constants`: arrays by name, or tensors."""
    stored = [const(k, v) if not isinstance(v, onnx.TensorProto) else v for k, v in constants.items()]
    inputs = [helper.make_tensor_value_info("x", dtype, x), *more_inputs]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    domains = {n.domain for n in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in sorted(domains))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR.get(opset, 9))


def weights(k=K, n=N):
    """Columns and rows differ in size, so that scales along the wrong axis show."""
    rng = np.random.default_rng(0)
    return (rng.normal(0, 0.05, (k, n)) * np.linspace(0.2, 3, k)[:, None] * np.linspace(0.5, 2, n)).astype(np.float32)


def feed(rank=3, k=K, seed=1):
    shape = {2: (8, k), 3: (2, 8, k)}[rank]
    return {"x": np.random.default_rng(seed).normal(0, 0.8, shape).astype(np.float32)}


def quantized(w, dtype=np.int8, axis=1, zero=0, trans=False):
    """`(q, scale)`; `axis`: the one that scales lie along, `None` for one scale."""
    info = np.iinfo(dtype)
    steps = (int(info.max) - int(info.min)) // 2
    other = None if axis is None else 1 - axis
    scale = (np.abs(w).max(other) / steps).astype(np.float32)
    spread = scale if axis is None else np.expand_dims(scale, other)
    return np.clip(np.round(w / spread) + zero, info.min, info.max).astype(dtype), scale


def linear(
    a=np.uint8, a_zero=None, a_scale=0.02, a_shape=(), a_zero_shape=None, a_has_zero=True, a_attributes={},
    w=np.int8, w_zero=0, w_axis=1, w_has_zero=True, w_zero_shape=None,
    bias=(1, N), rank=3, opset=17, quantize_x=True, quantize_w=True, scale_of_x=False, n=N,
):
    """y = DQ(Q(x)) · DQ(W) + bias."""
    nodes, constants = [], {}
    x_in, w_in = "x", "W"
    if quantize_x:
        zero = (0 if np.dtype(a).kind == "i" else 128) if a_zero is None else a_zero
        per = {} if np.prod(a_shape) == 1 else {"axis": rank - 1}
        constants["x_scale" if not scale_of_x else "x_factor"] = np.full(a_shape, a_scale, np.float32)
        if scale_of_x:
            nodes += [node("ReduceMax", ["x"], ["x_max"], keepdims=0), node("Mul", ["x_max", "x_factor"], ["x_scale"])]
        inputs = ["x_scale"]
        if a_has_zero:
            constants["x_zero"] = np.full(a_shape if a_zero_shape is None else a_zero_shape, zero, a)
            inputs.append("x_zero")
        nodes.append(node("QuantizeLinear", ["x", *inputs], ["x_q"], **per, **a_attributes))
        nodes.append(node("DequantizeLinear", ["x_q", *inputs], ["x_dq"], **per))
        x_in = "x_dq"
    if quantize_w:
        q, scale = quantized(weights(n=n), w, w_axis, w_zero)
        constants.update(W_q=q, W_scale=scale)
        inputs = ["W_q", "W_scale"]
        if w_has_zero:
            constants["W_zero"] = np.full(scale.shape if w_zero_shape is None else w_zero_shape, w_zero, w)
            inputs.append("W_zero")
        nodes.append(node("DequantizeLinear", inputs, ["W_dq"], **({} if w_axis is None else {"axis": w_axis})))
        w_in = "W_dq"
    else:
        constants["W"] = weights(n=n)
    nodes.append(node("MatMul", [x_in, w_in], ["y" if bias is None else "product"]))
    if bias is not None:
        constants["bias"] = np.random.default_rng(2).normal(size=bias[:-1] + (n,)).astype(np.float32)
        nodes.append(node("Add", ["product", "bias"], ["y"]))
    head = ("b", "s") if rank == 3 else ("b",)
    return model(nodes, constants, (*head, K), (*head, n), opset)


def gemm(a=np.uint8, bias="int32", bias_factor=1.0, bias_zero=None, alpha=None, trans=False, w_axis=None):
    """y = Gemm(DQ(Q(x)), DQ(W), bias)."""
    zero = 0 if np.dtype(a).kind == "i" else 128
    w = weights().T if trans else weights()
    axis = (0 if trans else 1) if w_axis is None else w_axis
    q, scale = quantized(w, axis=axis)
    constants = dict(x_scale=np.float32(0.02), x_zero=np.array(zero, a), W_q=q, W_scale=scale, W_zero=np.zeros(scale.shape, np.int8))
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"]),
        node("DequantizeLinear", ["W_q", "W_scale", "W_zero"], ["W_dq"], axis=axis),
    ]
    inputs = ["x_dq", "W_dq"]
    values = np.random.default_rng(2).normal(size=N)
    if bias == "int32":
        steps = (0.02 * scale if axis == (0 if trans else 1) else np.full(N, 0.001)).astype(np.float32) * np.float32(bias_factor)
        constants.update(b_q=np.round(values / steps).astype(np.int32), b_scale=steps)
        given = ["b_q", "b_scale"]
        if bias_zero is not None:
            constants["b_zero"] = np.full(N, bias_zero, np.int32)
            given.append("b_zero")
        nodes.append(node("DequantizeLinear", given, ["b_dq"], axis=0))
        inputs.append("b_dq")
    elif bias == "float":
        constants["b"] = values.astype(np.float32)
        inputs.append("b")
    attributes = {"transB": 1} if trans else {}
    if alpha is not None:
        attributes["alpha"] = alpha
    nodes.append(node("Gemm", inputs, ["y"], beta=1.0, **attributes))
    return model(nodes, constants, ("b", K), ("b", N))


def two_linears(a, pairs, own=True):
    """Two MatMuls of one activation, with one or two pairs of Q and DQ, each with constants of its own or not."""
    base = linear(a, bias=None)
    constants = {t.name: numpy_helper.to_array(t) for t in base.graph.initializer}
    nodes = [base.graph.node[2]]
    for name in ("x_scale", "x_zero"):
        constants[f"{name}0"] = constants[f"{name}1"] = constants.pop(name)
    for i in range(2):
        p = i if pairs == 2 else 0
        params = [f"{name}{p if own else 0}" for name in ("x_scale", "x_zero")]
        if i < pairs:
            nodes.append(node("QuantizeLinear", ["x", *params], [f"x_q{p}"]))
            nodes.append(node("DequantizeLinear", [f"x_q{p}", *params], [f"x_dq{p}"]))
        nodes.append(node("MatMul", [f"x_dq{p}", "W_dq"], [f"y{i}"]))
    return model([*nodes, node("Sum", ["y0", "y1"], ["y"])], constants)


def hadamard(n):
    """Orthogonal and symmetric; n is a power of 2."""
    bits = np.array([[bin(i & j).count("1") for j in range(n)] for i in range(n)])
    return ((-1.0) ** bits / np.sqrt(n)).astype(np.float32)


def rotated(a=np.uint8, form="float", quantize=True, k=K, n=N):
    """y = DQ(Q(x R)) · DQ(Q(Rᵀ W)), R = H ⊗ H in float, with all of its values quantized, or in one matrix."""
    size = int(np.sqrt(k))
    zero = np.array(128 if a is np.uint8 else 0, a)
    constants = {"split": np.array([0, 0, size, size]), "joined": np.array([0, 0, k]), "scale": np.float32(0.03), "zero": zero}
    nodes = []

    def pair(value):
        nodes.append(node("QuantizeLinear", [value, "scale", "zero"], [f"{value}_q"]))
        nodes.append(node("DequantizeLinear", [f"{value}_q", "scale", "zero"], [f"{value}_dq"]))
        return f"{value}_dq"

    def matrix(name, values, quantize):
        if not quantize:
            constants[name] = values
            return name
        q, step = quantized(values)
        constants.update({f"{name}_q": q, f"{name}_scale": step, f"{name}_zero": np.zeros(step.shape, np.int8)})
        nodes.append(node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], [f"{name}_dq"], axis=1))
        return f"{name}_dq"

    h, dense = hadamard(size), np.kron(hadamard(size), hadamard(size))
    if form == "dense":
        nodes.append(node("MatMul", ["x", matrix("R", dense, False)], ["turned"]))
    else:
        everywhere = form == "quantized"
        value = pair("x") if everywhere else "x"
        nodes.append(node("Reshape", [value, "split"], ["parts"]))
        nodes.append(node("MatMul", ["parts", matrix("B", h, everywhere)], ["inner"]))
        value = pair("inner") if everywhere else "inner"
        nodes.append(node("MatMul", [matrix("A", h, everywhere), value], ["outer"]))
        nodes.append(node("Reshape", ["outer", "joined"], ["turned"]))
    value = pair("turned") if quantize else "turned"
    nodes.append(node("MatMul", [value, matrix("W", dense @ weights(k, n), quantize)], ["y"]))
    return model(nodes, constants, ("b", "s", k), ("b", "s", n))


def residual(of):
    """x W + x, where x is float or dequantized; square."""
    base = linear(bias=None, n=K)
    nodes = list(base.graph.node)
    nodes[-1].output[0] = "product"
    constants = {t.name: numpy_helper.to_array(t) for t in base.graph.initializer}
    return model([*nodes, node("Add", ["product", of], ["y"])], constants, y=("b", "s", K))


def gelu(quantize):
    """A decomposed GELU after a Linear, with or without a pair of Q and DQ before it."""
    base = linear()
    nodes = list(base.graph.node)
    nodes[-1].output[0] = "h"
    constants = {t.name: numpy_helper.to_array(t) for t in base.graph.initializer}
    constants.update(root=np.float32(2**0.5), one=np.float32(1), half=np.float32(0.5))
    h = "h"
    if quantize:
        constants.update(h_scale=np.float32(0.05), h_zero=np.uint8(128))
        nodes.append(node("QuantizeLinear", ["h", "h_scale", "h_zero"], ["h_q"]))
        nodes.append(node("DequantizeLinear", ["h_q", "h_scale", "h_zero"], ["h_dq"]))
        h = "h_dq"
    nodes += [
        node("Div", [h, "root"], ["divided"]),
        node("Erf", ["divided"], ["erf"]),
        node("Add", ["erf", "one"], ["plus"]),
        node("Mul", [h, "plus"], ["times"]),
        node("Mul", ["times", "half"], ["y"]),
    ]
    return model(nodes, constants)


def masked(scale):
    """Softmax(x + mask), with the sum quantized by `scale` or (0) not."""
    mask = np.zeros(K, np.float32)
    mask[-8:] = np.finfo(np.float32).min
    nodes, constants = [node("Add", ["x", "mask"], ["sum"])], dict(mask=mask)
    if scale:
        constants.update(scale=np.float32(scale), zero=np.int8(127))
        nodes.append(node("QuantizeLinear", ["sum", "scale", "zero"], ["q"]))
        nodes.append(node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]))
    nodes.append(node("Softmax", ["dq" if scale else "sum"], ["y"], axis=-1))
    return model(nodes, constants, y=("b", "s", K))


def masked_float():
    return masked(0)


def qlinear(a, b, y, per_column=True, rows=False, k=K, n=N):
    """QLinearMatMul between a QuantizeLinear and a DequantizeLinear."""
    middle = {np.uint8: 128, np.int8: 0}
    q, scale = quantized(weights(k, n), b, 1 if per_column else None, middle[b])
    shape = (8, 1) if rows else ()
    constants = dict(
        s=np.float32(0.02), z=np.array(middle[a], a), a_scale=np.full(shape, 0.02, np.float32),
        a_zero=np.full(shape, middle[a], a), W_q=q, W_scale=scale, W_zero=np.full(scale.shape, middle[b], b),
        y_scale=np.float32(0.1), y_zero=np.array(middle[y], y),
    )
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["x_q"]),
        node("QLinearMatMul", ["x_q", "a_scale", "a_zero", "W_q", "W_scale", "W_zero", "y_scale", "y_zero"], ["y_q"]),
        node("DequantizeLinear", ["y_q", "y_scale", "y_zero"], ["y"]),
    ]
    return model(nodes, constants, ("b", "s", k), ("b", "s", n))


def blocks(size, axis=0, bits=4, quantize_x=False, k=256):
    """A weight with a scale per block, alone or beside a quantized activation."""
    rng = np.random.default_rng(3)
    high = 7 if bits == 4 else 127
    q = rng.integers(-high, high + 1, (k, N))
    shape = (k // size, N) if axis == 0 else (k, N // size)
    dtype = TensorProto.INT4 if bits == 4 else TensorProto.INT8
    constants = dict(W_q=helper.make_tensor("W_q", dtype, q.shape, q.flatten()), W_scale=rng.uniform(0.001, 0.02, shape).astype(np.float32))
    nodes = [node("DequantizeLinear", ["W_q", "W_scale"], ["W_dq"], axis=axis, block_size=size)]
    x = "x"
    if quantize_x:
        constants.update(x_scale=np.float32(0.02), x_zero=np.uint8(128))
        nodes.append(node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]))
        nodes.append(node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"]))
        x = "x_dq"
    nodes.append(node("MatMul", [x, "W_dq"], ["y"]))
    return model(nodes, constants, ("b", "s", k), opset=21)


def int4_weight(cast):
    """A quantized activation and an INT4 weight per column, behind a Cast to int8 or not."""
    rng = np.random.default_rng(3)
    q = rng.integers(-7, 8, (K, N))
    constants = dict(
        W_q=helper.make_tensor("W_q", TensorProto.INT4, q.shape, q.flatten()), W_scale=np.full(N, 0.02, np.float32),
        x_scale=np.float32(0.02), x_zero=np.uint8(128),
    )
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"]),
        *([node("Cast", ["W_q"], ["W_8"], to=TensorProto.INT8)] if cast else []),
        node("DequantizeLinear", ["W_8" if cast else "W_q", "W_scale"], ["W_dq"], axis=1),
        node("MatMul", ["x_dq", "W_dq"], ["y"]),
    ]
    return model(nodes, constants, opset=21)


def two_readers(quantize):
    """A product whose output is read by a Relu and by a QuantizeLinear (or a Neg)."""
    base = linear(bias=None)
    nodes = list(base.graph.node)
    nodes[-1].output[0] = "p"
    constants = {t.name: numpy_helper.to_array(t) for t in base.graph.initializer}
    if quantize:
        constants.update(p_scale=np.float32(0.1), p_zero=np.uint8(128))
        nodes.append(node("QuantizeLinear", ["p", "p_scale", "p_zero"], ["p_q"]))
        nodes.append(node("DequantizeLinear", ["p_q", "p_scale", "p_zero"], ["p_dq"]))
    nodes += [node("Relu", ["p"], ["r"]), node("Neg", ["p_dq" if quantize else "p"], ["m"]), node("Add", ["r", "m"], ["y"])]
    return model(nodes, constants)


def dropout(training, old=False):
    constants = {} if old else dict(ratio=np.float32(0.1), training=np.array(training))
    if old:
        return model([node("Dropout", ["x"], ["y"], ratio=0.1, is_test=int(not training))], {}, y=("b", "s", K), opset=6)
    return model([node("Dropout", ["x", "ratio", "training"], ["y"])], constants, y=("b", "s", K))


def norm(outputs):
    constants = dict(gamma=np.ones(K, np.float32), beta=np.zeros(K, np.float32))
    return model([node("LayerNormalization", ["x", "gamma", "beta"], ["y", "mean", "deviation"][:outputs])], constants, y=("b", "s", K))


def pooled(scale, op="ReduceMean", keepdims=0, between=None, before=None, one=False):
    """y = DQ(Q(pool of x over tokens, scaled)) · DQ(W); `scale` is the operator with a value per channel, or `one` for all."""
    factor = np.where(np.arange(K) % 7 == 0, 0.1, 2).astype(np.float32)
    constants = {"factor": factor[:1] if one else factor, "axes": np.array([1])}
    nodes, value = [], "x"
    if before == "Mul":
        nodes.append(node("Mul", ["x", "factor"], ["scaled"]))
        value = "scaled"
    elif before:
        constants["beta"] = np.full(K, 0.1 if "shifted" in before else 0, np.float32)
        nodes.append(node("LayerNormalization", ["x", "factor", "beta"], ["scaled"], axis=-1))
        value = "scaled"
    reduce = ([value, "axes"], {}) if op == "ReduceSum" else ([value], {"axes": [1]})
    nodes.append(node(op, reduce[0], ["pool"], keepdims=keepdims, **reduce[1]))
    value = "pool"
    if between:
        nodes.append(node(between, [value], ["between"]))
        value = "between"
    if scale:
        nodes.append(node(scale, [value, "factor"], ["own"]))
        value = "own"
    q, w_scale = quantized(weights())
    constants.update(q_scale=np.float32(0.03), q_zero=np.int8(0), W_q=q, W_scale=w_scale, W_zero=np.zeros(N, np.int8))
    nodes += [
        node("QuantizeLinear", [value, "q_scale", "q_zero"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "q_scale", "q_zero"], ["x_dq"]),
        node("DequantizeLinear", ["W_q", "W_scale", "W_zero"], ["W_dq"], axis=1),
        node("MatMul", ["x_dq", "W_dq"], ["y"]),
    ]
    return model(nodes, constants, y=("b", 1, N) if keepdims else ("b", N))
