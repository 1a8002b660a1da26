"""`onnx-osplus dequantize`: the float model behind what ONNX Runtime's quantizers and this tool write."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization as ort_quantization

import measure
from conftest import TINY, TINY_LLAMA, run_tool
from layouts import node, weight

C = 32


def transformer(rng):
    """Two blocks' worth of operators: projections, scores, Gemm with a bias, Sigmoid, Concat, a residual."""
    linear = lambda x, w, y: [node("MatMul", [x, w], f"{y}_p"), node("Add", [f"{y}_p", f"{w}_b"], y)]
    nodes = [
        node("LayerNormalization", ["x", "gamma", "beta"], "h", axis=-1),
        *linear("h", "wq", "q"),
        *linear("h", "wk", "k"),
        node("Transpose", ["k"], "kt", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], "scores"),
        node("Softmax", ["scores"], "p", axis=-1),
        node("MatMul", ["p", "h"], "a"),
        node("Add", ["a", "x"], "r"),
        *linear("r", "w1", "u"),
        node("Relu", ["u"], "act"),
        *linear("act", "w2", "v"),
        node("Sigmoid", ["v"], "gate"),
        node("Mul", ["gate", "r"], "g"),
        node("Concat", ["g", "r"], "both", axis=-1),
        node("Reshape", ["both", "flat"], "rows"),
        node("Gemm", ["rows", "w3", "w3_b"], "y", transB=1),
    ]
    constants = {"gamma": np.ones(C, np.float32), "beta": weight(rng, C), "flat": np.array([-1, 2 * C])}
    for name, shape in {"wq": (C, C), "wk": (C, C), "w1": (C, 64), "w2": (64, C), "w3": (16, 2 * C)}.items():
        constants[name] = weight(rng, *shape)
        constants[f"{name}_b"] = weight(rng, shape[0 if name == "w3" else 1])
    return nodes, constants, ["batch", 8, C]


def convolutions(rng):
    """A Relu that quantizers leave out, a pool, a residual, a Conv without a bias."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], "c1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], "r1"),
        node("MaxPool", ["r1"], "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["m", "w2"], "c2", kernel_shape=[1, 1]),
        node("Clip", ["c2", "low", "six"], "r2"),
        node("Add", ["r2", "m"], "s"),
        node("GlobalAveragePool", ["s"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "w3", "b3"], "y"),
    ]
    constants = {
        "w1": weight(rng, 16, 3, 3, 3) * 3, "b1": weight(rng, 16), "w2": weight(rng, 16, 16, 1, 1) * 8,
        "low": np.float32(0), "six": np.float32(6), "w3": weight(rng, 16, 8), "b3": weight(rng, 8),
    }
    return nodes, constants, ["batch", 3, 8, 8]


def float_model(form, folder):
    rng = np.random.default_rng(4)
    nodes, constants, shape = form(rng)
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None))]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, form.__name__, infos[:1], infos[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "float.onnx")
    rows = rng.standard_normal((16, *shape[1:])).astype(np.float32)
    return model, rows


class Rows(ort_quantization.CalibrationDataReader):
    def __init__(self, rows):
        self.rows = iter([{"x": rows[i : i + 4]} for i in range(0, len(rows), 4)])

    def get_next(self):
        return next(self.rows, None)


QDQ, QOPERATOR = ort_quantization.QuantFormat.QDQ, ort_quantization.QuantFormat.QOperator
WAYS = {
    "qdq": dict(quant_format=QDQ),
    "qdq_int8_per_channel": dict(quant_format=QDQ, per_channel=True, activation_type=ort_quantization.QuantType.QInt8),
    "qoperator": dict(quant_format=QOPERATOR),
    "qoperator_per_channel": dict(quant_format=QOPERATOR, per_channel=True),
    "dynamic": None,
    "dynamic_per_channel": dict(per_channel=True),
}


def quantized(way, folder, rows):
    """The model that ONNX Runtime's quantizer makes."""
    source, result = str(folder / "float.onnx"), str(folder / "quantized.onnx")
    if way.startswith("dynamic"):
        ort_quantization.quantize_dynamic(source, result, **(WAYS[way] or {}))
    else:
        ort_quantization.quantize_static(source, result, Rows(rows), **WAYS[way])
    return onnx.load(result)


def is_on_integers(op):
    return "Quantize" in op or "Integer" in op or op.startswith(("QLinear", "QGemm", "QAttention"))


def stored(model, name):
    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name)).astype(np.float32)


@pytest.mark.parametrize("form", [transformer, convolutions], ids=lambda form: form.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_the_float_model_behind_ort_quantizers(way, form, tmp_path):
    model, rows = float_model(form, tmp_path)
    integers = quantized(way, tmp_path, rows)
    run = run_tool("dequantize", tmp_path / "quantized.onnx", tmp_path / "out.onnx")
    assert run.returncode == 0, run.stderr
    result = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(result)
    assert not [n.op_type for n in result.graph.node if is_on_integers(n.op_type)]
    # It is what the quantized model computes, but for the rounding of activations.
    feeds = {"x": rows}
    reference = measure.outputs(model, feeds)["y"]
    got, rounded = measure.outputs(result, feeds)["y"], measure.outputs(integers, feeds)["y"]
    assert measure.sqnr(reference, got) > max(28, measure.sqnr(reference, rounded) - 1)
    # Its weights are exactly the numbers that the integers mean.
    for name in ("wq", "w1", "w2") if form is transformer else ("w1", "w2"):
        q, zero, scale = (stored(integers, f"{name}_{part}") for part in ("quantized", "zero_point", "scale"))
        if scale.ndim and scale.size > 1:
            place = [1] * q.ndim
            place[1 if form is transformer else 0] = -1
            zero, scale = zero.reshape(place), scale.reshape(place)
        exact = (q - zero) * scale
        assert any(np.array_equal(numpy_helper.to_array(i), exact) for i in result.graph.initializer), name
    if form is convolutions:
        # What the range cut stays cut.
        far = {"x": rows * 3}
        a, b = measure.outputs(model, far)["y"], measure.outputs(result, far)["y"]
        assert measure.sqnr(a, b) > 20


@pytest.mark.parametrize("way", WAYS)
def test_it_can_be_quantized_again(way, tmp_path):
    model, rows = float_model(transformer, tmp_path)
    quantized(way, tmp_path, rows)
    assert run_tool("dequantize", tmp_path / "quantized.onnx", tmp_path / "float2.onnx").returncode == 0
    np.savez(tmp_path / "calib.npz", x=rows)
    run = run_tool(
        tmp_path / "float2.onnx", tmp_path / "again.onnx", "--calib", tmp_path / "calib.npz", "--report", tmp_path / "r.json"
    )
    assert run.returncode == 0, run.stderr
    assert len(json.loads((tmp_path / "r.json").read_text())["linears"]) == 5
    sqnr = measure.sqnr(*(measure.outputs(m, {"x": rows})["y"] for m in (model, tmp_path / "again.onnx")))
    assert sqnr > 25


@pytest.mark.parametrize("case", [TINY, TINY_LLAMA], ids=lambda case: case.name)
@pytest.mark.parametrize(
    "options",
    [
        (), ("--target", "tensorrt"), ("--target", "portable"), ("--format", "qoperator"), ("--weights-as-float-qdq",),
        ("--weight-bits", "4"), ("--attention", "int8"),
    ],
    ids=lambda options: "_".join(options).replace("--", "") or "qdq",
)
def test_what_this_tool_wrote_is_float_again(options, case, tmp_path):
    run = run_tool(case.model, tmp_path / "q.onnx", "--calib", case.calib, *options)
    assert run.returncode == 0, run.stderr
    run = run_tool("dequantize", tmp_path / "q.onnx", tmp_path / "out.onnx")
    assert run.returncode == 0, run.stderr
    result = onnx.load(tmp_path / "out.onnx")
    assert not [n.op_type for n in result.graph.node if is_on_integers(n.op_type)]
    assert not [p.key for p in result.metadata_props if p.key.startswith("onnx_osplus.")]
    feeds = case.load_heldout()
    reference = measure.outputs(case.model, feeds)[case.output]
    weights_alone = measure.sqnr(reference, measure.outputs(result, feeds)[case.output])
    assert weights_alone > measure.sqnr(reference, measure.outputs(tmp_path / "q.onnx", feeds)[case.output]) - 0.5


def test_the_refusal_of_a_quantized_model_says_what_to_do(tmp_path):
    _, rows = float_model(transformer, tmp_path)
    quantized("qoperator", tmp_path, rows)
    np.savez(tmp_path / "calib.npz", x=rows)
    run = run_tool(tmp_path / "quantized.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz")
    assert run.returncode == 3
    assert "already quantized" in run.stderr and "onnx-osplus dequantize" in run.stderr


def test_a_float_model_is_refused(tmp_path):
    float_model(transformer, tmp_path)
    run = run_tool("dequantize", tmp_path / "float.onnx", tmp_path / "out.onnx")
    assert run.returncode == 1 and "nothing in" in run.stderr and not (tmp_path / "out.onnx").exists()


def test_a_model_without_a_linear_is_refused_before_data_is_asked_for(tmp_path):
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in "xzy"]
    model = helper.make_model(helper.make_graph([node("Add", ["x", "z"], "y")], "g", infos[:2], infos[2:]))
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    run = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", f"x={tmp_path / 'x.npy'}")
    assert run.returncode == 3 and "no Linear" in run.stderr, run.stderr
