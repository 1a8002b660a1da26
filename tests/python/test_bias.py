"""A column of a weight that is nearly dead has a tiny scale, and an int32 bias is in steps of it: the bias must not saturate,
in any form, for any target, with or without migration. Plain min-max has the same fault, so "never worse" cannot see it.
"""

import json

import numpy as np
import onnx
import pytest
from conftest import run_tool
from measure import outputs
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8
BIAS = np.array([1.5, -2, 0.3, 1, 1, -1, 0.5, 2], np.float32)
# What the first column is multiplied with.
COLUMNS = {"tiny": 1e-10, "dead": 0.0, "small": 1e-6, "denormal": 1e-40}
FORMS = ["gemm", "gemm-transposed", "matmul-add"]


def model(form, factor, path):
    """x [b, s, 8] → Reshape → LayerNormalization → Linear with a bias → y"""
    w = np.random.RandomState(0).standard_normal((CHANNELS, CHANNELS)).astype(np.float32)
    w[:, 0] *= np.float32(factor)
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "shape"], ["r"], name="flat"),
        node("LayerNormalization", ["r", "g", "zero"], ["n"], name="norm", axis=-1),
    ]
    if form == "matmul-add":
        nodes += [node("MatMul", ["n", "w"], ["m"], name="linear"), node("Add", ["m", "bias"], ["y"], name="add")]
    else:
        transposed = int(form == "gemm-transposed")
        w = w.T.copy() if transposed else w
        nodes.append(node("Gemm", ["n", "w", "bias"], ["y"], name="linear", transB=transposed))
    constants = dict(shape=np.array([-1, CHANNELS]), g=np.ones(CHANNELS, np.float32), zero=np.zeros(CHANNELS, np.float32), w=w, bias=BIAS)
    graph = helper.make_graph(
        nodes,
        "bias",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", CHANNELS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CHANNELS])],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("options", [[], ["--method", "none"], ["--target", "portable"], ["--target", "openvino"], ["--format", "qoperator"]], ids=" ".join)
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("form", FORMS)
def test_the_bias_of_a_dead_column_is_kept(form, column, options, tmp_path):
    source = model(form, COLUMNS[column], tmp_path / "in.onnx")
    rows = lambda seed: np.random.RandomState(seed).standard_normal((16, 4, CHANNELS)).astype(np.float32)  # noqa: E731
    np.savez(tmp_path / "x.npz", x=rows(1))
    out = tmp_path / "out.onnx"
    done = run_tool(source, out, "--calib", tmp_path / "x.npz", "--threads", "1", *options)
    assert done.returncode == 0, done.stderr
    wanted, found = (outputs(path, {"x": rows(2)})["y"] for path in (source, out))
    # The median: what lies beyond the calibrated range is cut off, which is not the question here.
    error = np.median(np.abs(found - wanted), axis=0)
    # Steps of 8 bits of activations within ±3 and weights within ±2, in a sum of eight.
    assert error.max() < 0.05, error
    # The column that is all bias.
    coarse = "qoperator" in options  # whose outputs are quantized too
    assert error[0] < (0.05 if coarse else 1e-3), error
    target = options[1] if "--target" in options else "ort"
    lint = run_tool("lint", out, "--target", target, "--json")
    rules = {finding["rule"] for finding in json.loads(lint.stdout)["findings"]}
    assert not any(rule.startswith("R5") for rule in rules), rules
