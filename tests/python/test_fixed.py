"""Linears over constants, as those of relative positions, stay in float; random numbers do not disturb what is compared."""

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from conftest import run_tool
from onnx import TensorProto, helper, numpy_helper
from runtimes import onnx_runtime_graph

K, TOKENS, ROWS = 16, 8, 16


def model_of(nodes, path):
    rng = np.random.default_rng(1)
    constants = {name: rng.normal(size=(K, K)).astype(np.float32) for name in ("table", "w", "v")}
    info = helper.make_tensor_value_info
    shape = ["batch", "tokens", K]
    graph = helper.make_graph(
        nodes,
        "fixed",
        [info("x", TensorProto.FLOAT, shape)],
        [info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def run(tmp_path):
    def quantize(nodes):
        model, out, report, data = (tmp_path / name for name in ("in.onnx", "out.onnx", "report.json", "x.npy"))
        model_of(nodes, model)
        np.save(data, np.random.default_rng(2).normal(size=(ROWS, TOKENS, K)).astype(np.float32))
        done = run_tool(model, out, "--calib", data, "--no-layers", "--report", report)
        assert done.returncode == 0, done.stderr
        return out, json.loads(report.read_text())

    return quantize


def test_a_product_of_constants_is_the_weight_of_what_reads_it(run, tmp_path):
    make = helper.make_node
    out, report = run(
        [
            make("Relu", ["table"], ["positions"], "relu"),
            make("MatMul", ["positions", "w"], ["keys"], "linear_of_positions"),
            make("MatMul", ["x", "v"], ["q"], "linear"),
            make("Transpose", ["keys"], ["kt"], "transpose", perm=[1, 0]),
            make("MatMul", ["q", "kt"], ["y"], "scores"),
        ]
    )
    linears = {linear["name"]: linear for linear in report["linears"]}
    # Its product is the weight of the scores, which are a Linear by their value.
    assert {name: linear["status"] for name, linear in linears.items()} == {"linear": "quantized", "scores": "quantized"}
    # What is left of it in ONNX Runtime is a constant: two products in int8.
    counts = Counter(node.op_type for node in onnx_runtime_graph(out, tmp_path).graph.node)
    assert counts["Relu"] == 0 and counts["MatMul"] == 0
    assert sum(n for op, n in counts.items() if op.startswith("MatMulInteger")) == 2


@pytest.mark.parametrize("op", ["RandomUniformLike", "RandomNormalLike"])
def test_random_numbers_are_the_same_for_all_that_is_compared(run, op):
    make = helper.make_node
    _, report = run(
        [
            make("Relu", ["x"], ["r"], "relu"),
            make(op, ["r"], ["noise"], "noise"),
            make("Add", ["r", "noise"], ["a"], "add"),
            make("MatMul", ["a", "v"], ["y"], "linear"),
        ]
    )
    assert report["outputs"]["y"]["sqnr_db"] > 30
    # Where something was migrated or rewritten, the float model draws what the original draws.
    assert report["float_check"] is None or report["float_check"]["max_relative_error"] < 1e-6
