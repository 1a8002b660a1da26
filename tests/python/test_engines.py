"""The engine of ONNX Runtime: the same decisions as tract's where both run, and models that tract does not run."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import runtimes
from conftest import ROOT, run_tool
from onnx import TensorProto, helper, numpy_helper

LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*"))
ORT = ("--engine", "onnxruntime", "--ort-library", LIBRARY)


def quantize(model, calib, out, *options):
    report = out.with_suffix(".json")
    result = run_tool(model, out, "--calib", calib, "--report", report, "--force", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(report.read_text())


def decisions(report):
    """What was decided: where every scale went, which sites rotate, what is quantized."""
    sites = [(s["value"], s["sink"], s["rotation"] is not None, s["loss"]) for s in report["sites"]]
    return report["decision"], sites, [(linear["name"], linear["status"]) for linear in report["linears"]]


@pytest.mark.parametrize("name", ["tiny", "tiny-decomposed", "tiny-llama"])
def test_the_same_decisions(name, tmp_path):
    folder = ROOT / "models" / name
    ours = quantize(folder / "model.onnx", folder / "calib.npz", tmp_path / "tract.onnx")
    theirs = quantize(folder / "model.onnx", folder / "calib.npz", tmp_path / "ort.onnx", *ORT)
    assert decisions(theirs) == decisions(ours)
    for output, found in theirs["outputs"].items():
        assert found["sqnr_db"] == pytest.approx(ours["outputs"][output]["sqnr_db"], abs=0.5)
        assert found["plain_sqnr_db"] == pytest.approx(ours["outputs"][output]["plain_sqnr_db"], abs=0.1)
    assert len(theirs["layers"]) == len(ours["layers"]) > 0
    again = run_tool(folder / "model.onnx", tmp_path / "again.onnx", "--calib", folder / "calib.npz", *ORT)
    assert again.returncode == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "ort.onnx").read_bytes()


@pytest.fixture
def contrib(tmp_path):
    """Two Linears with an operator of Microsoft's domain between them that tract does not have."""
    random = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array((random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32), name)

    gamma = np.where(np.arange(32) == 3, 40, 1).astype(np.float32)
    constants = [
        numpy_helper.from_array(gamma, "gamma"),
        numpy_helper.from_array(np.zeros(32, np.float32), "beta"),
        weight("w1", 32, 64),
        weight("w2", 64, 32),
    ]
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], "norm", axis=-1),
        helper.make_node("MatMul", ["n", "w1"], ["u"], "up"),
        helper.make_node("SampleOp", ["u"], ["a"], "sample", domain="com.microsoft"),
        helper.make_node("MatMul", ["a", "w2"], ["y"], "down"),
    ]
    shape = ["batch", "sequence", 32]
    graph = helper.make_graph(
        nodes,
        "contrib",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8)
    onnx.save(model, tmp_path / "contrib.onnx")
    np.savez(tmp_path / "calib.npz", x=random.normal(size=(16, 12, 32)).astype(np.float32))
    return tmp_path / "contrib.onnx", tmp_path / "calib.npz"


def test_an_operator_that_tract_has_not(contrib, tmp_path):
    model, calib = contrib
    result = run_tool(model, tmp_path / "out.onnx", "--calib", calib)
    assert result.returncode == 1
    assert "--engine onnxruntime" in result.stderr
    report = quantize(model, calib, tmp_path / "out.onnx", *ORT)
    assert [linear["status"] for linear in report["linears"]] == ["quantized", "quantized"]
    assert report["outputs"]["y"]["sqnr_db"] > report["outputs"]["y"]["plain_sqnr_db"] + 3
    # The figure is that of the file in the runtime itself, on the rows that were held out.
    x = np.load(calib)["x"][[7, 15]]
    r, o = (runtimes.onnx_runtime_session(path, "basic").run(None, {"x": x})[0] for path in (model, tmp_path / "out.onnx"))
    assert 10 * np.log10((r**2).sum() / ((r - o) ** 2).sum()) == pytest.approx(report["outputs"]["y"]["sqnr_db"], abs=0.1)
    result = run_tool("verify", model, tmp_path / "out.onnx", "--calib", calib, *ORT)
    assert result.returncode == 0, result.stderr
    result = run_tool("inspect", model, "--calib", calib, *ORT)
    assert result.returncode == 0, result.stderr
    # By parts and by shards too.
    result = run_tool("stats", model, "--calib", calib, "-o", tmp_path / "all.stats", *ORT)
    assert result.returncode == 0, result.stderr
    again = quantize(model, calib, tmp_path / "again.onnx", *ORT, "--stats", tmp_path / "all.stats")
    assert decisions(again) == decisions(report)
    assert "--engine" in run_tool(model, tmp_path / "x.onnx", "--calib", calib, "--stats", tmp_path / "all.stats").stderr


def test_types_that_are_not_float32(tmp_path):
    """Inputs and outputs of float16, integers among the outputs."""
    random = np.random.default_rng(1)
    weight = numpy_helper.from_array((random.normal(size=(32, 32)) / 6).astype(np.float16), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "linear"),
        helper.make_node("ArgMax", ["y"], ["best"], "best", axis=-1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", "t", 32])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", "t", 32]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["n", "t"]),
        ],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", random.normal(size=(16, 8, 32)).astype(np.float16))
    report = quantize(tmp_path / "in.onnx", tmp_path / "x.npy", tmp_path / "out.onnx", *ORT)
    assert report["outputs"]["y"]["sqnr_db"] > 25
    assert report["agreements"]["best"]["elements"] == 2 * 8


def test_what_is_no_library(tmp_path):
    model, calib = ROOT / "models/tiny/model.onnx", ROOT / "models/tiny/calib.npz"
    result = run_tool(model, tmp_path / "out.onnx", "--calib", calib, "--engine", "onnxruntime", "--ort-library", calib)
    assert result.returncode == 1
    assert "calib.npz" in result.stderr and "1.17" in result.stderr
    result = run_tool(model, tmp_path / "out.onnx", "--calib", calib, "--ort-library", LIBRARY)
    assert result.returncode == 2
    assert "--engine onnxruntime" in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_the_library_of_the_active_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("ORT_DYLIB_PATH", raising=False)
    monkeypatch.setenv("VIRTUAL_ENV", str(LIBRARY.parents[5]))
    assert os.path.isdir(LIBRARY.parents[5])
    model, calib = ROOT / "models/tiny/model.onnx", ROOT / "models/tiny/calib.npz"
    result = run_tool(model, tmp_path / "out.onnx", "--calib", calib, "--engine", "onnxruntime")
    assert result.returncode == 0, result.stderr
