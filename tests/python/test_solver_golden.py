"""The golden file is what golden_solver.py makes, and its quantizers are those of the ONNX reference evaluator."""

import json
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import golden_solver as golden


def assert_close(a, b, where="file"):
    assert type(a) is type(b) or {type(a), type(b)} <= {int, float}, where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            assert_close(a[k], b[k], f"{where}.{k}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_close(x, y, f"{where}[{i}]")
    elif isinstance(a, float):
        assert math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-9), f"{where}: {a} and {b}"
    else:
        assert a == b, where


def test_committed_file_is_what_the_script_makes():
    assert_close(json.loads(golden.PATH.read_text()), golden.cases())


def test_every_case_has_a_clear_winner():
    """Otherwise rounding could decide, and a different winner would not mean a wrong solver."""
    for case in json.loads(golden.PATH.read_text())["cases"]:
        assert case["expected"]["solution"]["lead"] > 1e-4


def reference(x, scale, zero_point, dtype, axis=None):
    """x through QuantizeLinear and DequantizeLinear in onnx.reference."""
    attributes = {} if axis is None else {"axis": axis}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        ],
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            onnx.numpy_helper.from_array(np.asarray(scale, np.float32), "s"),
            onnx.numpy_helper.from_array(np.asarray(zero_point, dtype), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("low,high", [(-1.0, 3.0), (0.5, 7.0), (-8.0, -2.0), (-100.0, 0.3), (0.0, 0.0)])
def test_activations_quantize_as_in_onnx_reference(low, high, symmetric):
    params = golden.activation_params(low, high, 8, symmetric)
    scale, zero_point = params[:2]
    steps = np.arange(-300, 300, dtype=np.float32)
    x = np.concatenate([steps * scale, (steps + np.float32(0.5)) * scale, np.linspace(2 * low, 2 * high, 501, dtype=np.float32)])
    expected = reference(x, scale, zero_point, np.int8 if symmetric else np.uint8)
    np.testing.assert_array_equal(golden.fake_quantize(x, *params), expected)


def test_weights_quantize_as_in_onnx_reference():
    w = np.random.default_rng(3).normal(0, 1, (16, 5)).astype(np.float32)
    w[:, 2] = 0
    levels = np.abs(w).max(0)
    scale = np.where(levels > 0, levels.astype(np.float64) / 127, 1).astype(np.float32)
    expected = reference(w, scale, np.zeros(5), np.int8, axis=1)
    np.testing.assert_array_equal(golden.fake_quantize_weight(w, 8, True), expected)
