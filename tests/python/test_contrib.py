"""ONNX Runtime's own operators: the committed expected values are what it computes, and taking a Linear out of one of
them changes nothing in it.
"""

import json

import numpy as np
import onnx
import pytest
from conftest import ROOT, run_tool
from measure import largest_relative_error, op_counts, outputs

CASES = dict(np.load(ROOT / "tests" / "data" / "contrib" / "contrib.npz"))
NAMES = sorted({key.split("|")[0] for key in CASES})


def parts(case, kind):
    """{name: array} of the inputs ("in") or outputs ("out") of a case."""
    prefix = f"{case}|{kind}|"
    return {key[len(prefix) :]: array for key, array in CASES.items() if key.startswith(prefix)}


def model(case):
    return onnx.load_from_string(CASES[f"{case}|model"].tobytes())


def close(expected, got):
    assert expected.shape == got.shape
    assert np.abs(expected - got).max() <= 1e-5 * (1 + np.abs(expected).max())


@pytest.mark.parametrize("case", NAMES)
def test_committed_values_are_those_of_onnx_runtime(case):
    got = outputs(model(case), parts(case, "in"))
    for name, expected in parts(case, "out").items():
        close(expected, got[name])


# Forms that MultiHeadAttention does not take, and an input whose axis 0 is no batch.
KEPT = ("Attention_start_and_end", "Attention_dummy_mask", "Attention_attention_bias_1")
APART = [n for n in NAMES if n.startswith("Attention") and not n.startswith(KEPT)] + ["FusedMatMul_matrix"]
APART += [n for n in NAMES if n.startswith("FusedGemm")]


@pytest.mark.parametrize("case", APART)
def test_what_is_taken_apart_computes_the_same(case, tmp_path):
    before = model(case)
    paths = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "calib.npz", tmp_path / "report.json"
    onnx.save(before, paths[0])
    if case.startswith("Attention_lengths"):
        # That a mask of rank 1 is one length per row, and not ends and starts, shows where it comes from.
        before = with_lengths_from_mask(before)
        onnx.save(before, paths[0])
    feeds = calibration_feeds(before, parts(case, "in"))
    np.savez(paths[2], **feeds)
    options = ["--format", "float", "--method", "none", "--no-layers", "--report", paths[3]]
    result = run_tool(paths[0], paths[1], "--calib", paths[2], *options)
    assert result.returncode == 0, result.stderr
    after = onnx.load(paths[1])
    assert op_counts(after)["Attention"] + op_counts(after)["FusedMatMul"] + op_counts(after)["FusedGemm"] == 0
    linears = json.loads(paths[3].read_text())["linears"]
    assert len(linears) == (3 if case.startswith("Attention") else 1)
    expected, got = outputs(before, feeds), outputs(after, feeds)
    assert expected.keys() == got.keys()
    for name in expected:
        assert largest_relative_error(expected[name], got[name]) <= 1e-6


def with_lengths_from_mask(graph):
    """`mask`: [B] computed from an input [B, T]."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    info = next(i for i in graph.graph.input if i.name == "mask")
    batch = info.type.tensor_type.shape.dim[0].dim_value
    total = 8 if any(i.name == "past" for i in graph.graph.input) else 5
    graph.graph.input.remove(info)
    graph.graph.input.append(onnx.helper.make_tensor_value_info("raw", onnx.TensorProto.INT32, [batch, total]))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    graph.graph.node.insert(0, onnx.helper.make_node("ReduceSum", ["raw", "axis"], ["mask"], keepdims=0))
    return graph


def calibration_feeds(graph, feeds):
    names = [i.name for i in graph.graph.input]
    if "raw" in names:
        dims = next(i for i in graph.graph.input if i.name == "raw").type.tensor_type.shape.dim
        lengths = feeds["mask"][:, None]
        feeds = {**feeds, "raw": (np.arange(dims[1].dim_value) < lengths).astype(np.int32)}
    return {name: feeds[name] for name in names}


def test_what_cannot_be_taken_apart_is_told(tmp_path):
    onnx.save(model("Attention_dummy_mask"), tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", **parts("Attention_dummy_mask", "in"))
    result = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz")
    assert result.returncode == 3, result.stderr
    assert "projections are not taken out" in result.stderr
