#!/usr/bin/env python3
"""The forms in which a Linear of few bits, or of a 16-bit float type, could be written: what each costs in ONNX Runtime.

    .venv/bin/python benchmarks/forms.py [--k 384] [--n 1536] [--tokens 128] [--rounds 40]

One Linear x: [1, tokens, k], W: [k, n] with a bias, random numbers, process CPU time on one thread. A form is exact if
it gives what numpy computes from its definition, to the rounding of the type it computes in (8 ulp of the largest
output); `optimized` names the operators that are left after ONNX Runtime's own fusions. The tool writes the forms
marked *.
"""

import argparse
import tempfile
import time

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# name → (bits of W, type W is stored in, Cast of W?, bits of x, how x is cut to them, float type, scales in it?)
FORMS = {
    "float32": None,
    "* W8A8": (8, "INT8", False, 8, None, "FLOAT", True),
    "W4A8, W as INT8": (4, "INT8", False, 8, None, "FLOAT", True),
    "W4A8, DequantizeLinear of INT4": (4, "INT4", False, 8, None, "FLOAT", True),
    "* W4A8, INT4 → Cast → DequantizeLinear": (4, "INT4", True, 8, None, "FLOAT", True),
    "* W4A4, Clip → QuantizeLinear to UINT8": (4, "INT4", True, 4, "Clip", "FLOAT", True),
    "W4A4, QuantizeLinear to UINT4 → Cast": (4, "INT4", True, 4, "Cast", "FLOAT", True),
    "W4A4, Q/DQ of UINT4": (4, "INT4", True, 4, "UINT4", "FLOAT", True),
    "float16": None,
    "float16 W8A8, scales and DQ in float16": (8, "INT8", False, 8, None, "FLOAT16", True),
    "* float16 W8A8, float32 between Casts": (8, "INT8", False, 8, None, "FLOAT16", False),
}
NUMPY = {"FLOAT": np.float32, "FLOAT16": np.float16}


class Graph:
    def __init__(self):
        self.nodes, self.initializers = [], []

    def constant(self, name, array, dtype=None):
        array = np.asarray(array)
        if dtype is not None:
            array = array.astype(getattr(ml_dtypes if dtype.endswith("4") else np, dtype.lower()))
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op, *inputs, **attributes):
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def model(self, output, kind, k, n):
        self.nodes[-1].output[0] = "y"
        info = lambda name, width: helper.make_tensor_value_info(name, getattr(TensorProto, kind), [1, "tokens", width])  # noqa: E731
        graph = helper.make_graph(self.nodes, "linear", [info("x", k)], [info("y", n)], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


def build(form, kind, x, w, b):
    """The model of a form, and what it should give."""
    graph, float_type = Graph(), NUMPY[kind]
    (k, n), bias = w.shape, graph.constant("b", b.astype(float_type))
    if form is None:
        product = graph.op("MatMul", "x", graph.constant("w", w.astype(float_type)))
        expected = x.astype(np.float64) @ w.astype(float_type).astype(np.float64)
        return graph.model(graph.op("Add", product, bias), kind, k, n), expected + b.astype(float_type)
    w_bits, stored, w_cast, x_bits, cut, _, own_scales = form
    scale_type = float_type if own_scales else np.float32
    top, levels = 2 ** (w_bits - 1) - 1, 2**x_bits
    w_scale = (np.abs(w).max(axis=0) / top).astype(scale_type)
    q = np.clip(np.rint(w / w_scale.astype(np.float32)), -top, top)
    x_scale = scale_type(2 * np.abs(x).max() / (levels - 1))
    zero = levels // 2
    low, high = -zero * np.float32(x_scale), (levels - 1 - zero) * np.float32(x_scale)

    value = "x" if own_scales else graph.op("Cast", "x", to=TensorProto.FLOAT)
    if cut == "Clip":
        value = graph.op("Clip", value, graph.constant("low", np.float32(low)), graph.constant("high", np.float32(high)))
    quantized = "UINT4" if cut in ("Cast", "UINT4") else "UINT8"
    scale, zero_q = graph.constant("x_scale", x_scale), graph.constant("x_zero", np.array(zero), quantized)
    value, zero_dq = graph.op("QuantizeLinear", value, scale, zero_q), zero_q
    if cut == "Cast":
        value, zero_dq = graph.op("Cast", value, to=TensorProto.UINT8), graph.constant("x_zero8", np.array(zero), "UINT8")
    value = graph.op("DequantizeLinear", value, scale, zero_dq)
    weight = graph.constant("w", q, stored)
    if w_cast:
        weight = graph.op("Cast", weight, to=TensorProto.INT8)
    zeros = graph.constant("w_zero", np.zeros(n), "INT8" if w_cast else stored)
    weight = graph.op("DequantizeLinear", weight, graph.constant("w_scale", w_scale), zeros, axis=1)
    product = graph.op("MatMul", value, weight)
    if not own_scales:
        product = graph.op("Cast", product, to=getattr(TensorProto, kind))
    x_q = np.clip(np.rint(x.astype(np.float32) / np.float32(x_scale)) + zero, 0, levels - 1) - zero
    expected = (x_q @ q) * np.float64(x_scale) * w_scale.astype(np.float64) + b.astype(float_type)
    return graph.model(graph.op("Add", product, bias), kind, k, n), expected


def main():
    parser = argparse.ArgumentParser(description="CPU time of the forms of a quantized Linear in ONNX Runtime.")
    for name, default in {"k": 384, "n": 1536, "tokens": 128, "rounds": 40}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    x, w = random.normal(size=(1, args.tokens, args.k)), random.normal(size=(args.k, args.n))
    b = random.normal(size=args.n)[None]
    rows = {}
    folder = tempfile.TemporaryDirectory()
    dump = f"{folder.name}/optimized.onnx"
    for name, form in FORMS.items():
        kind = "FLOAT16" if "float16" in name else "FLOAT"
        feed = {"x": x.astype(NUMPY[kind])}
        model, expected = build(form, kind, feed["x"], w, b)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.optimized_model_filepath = dump
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        left = [node.op_type for node in onnx.load(dump).graph.node]
        (y,) = session.run(None, feed)
        error = np.abs(y - expected).max() / np.abs(expected).max() / np.finfo(y.dtype).eps
        rows[name] = session, feed, model.ByteSize(), error, left, []
    for _ in range(args.rounds):
        for session, feed, *_, taken in rows.values():
            start = time.process_time()
            session.run(None, feed)
            taken.append(time.process_time() - start)
    print(f"ONNX Runtime {ort.__version__}, 1 thread, [1, {args.tokens}, {args.k}] · [{args.k}, {args.n}]\n")
    print("| form | kB | CPU ms | exact | optimized |\n|---|---|---|---|---|")
    for name, (_, _, size, error, left, taken) in rows.items():
        print(f"| {name} | {size / 1e3:.0f} | {1e3 * min(taken):.2f} | {'yes' if error <= 8 else f'no ({error:.0f} ulp)'} | {', '.join(left)} |")


if __name__ == "__main__":
    main()
