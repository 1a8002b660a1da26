"""A decision that lowers the outputs on held-out rows is dropped, and only that one."""

import json

import numpy as np
import onnx
import pytest
from conftest import run_tool
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

K, N, TOKENS, ROWS = 32, 24, 32, 16


def two_blocks():
    """y = (a * g) W + (b * h) V: two Linears, each behind a constant that takes a scale."""
    rng = np.random.default_rng(5)
    constants = {
        "g": np.ones(K, np.float32),
        "h": np.ones(K, np.float32),
        "W": rng.normal(size=(K, N)).astype(np.float32),
        "V": rng.normal(size=(K, N)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["a", "g"], ["ag"], "scale_a"),
        helper.make_node("MatMul", ["ag", "W"], ["aw"], "linear_a"),
        helper.make_node("Mul", ["b", "h"], ["bh"], "scale_b"),
        helper.make_node("MatMul", ["bh", "V"], ["bv"], "linear_b"),
        helper.make_node("Add", ["aw", "bv"], ["y"], "sum"),
    ]
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.FLOAT, ["batch", "tokens", K]) for name in "ab"]
    graph = helper.make_graph(
        nodes,
        "two",
        inputs,
        [info("y", TensorProto.FLOAT, ["batch", "tokens", N])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(surprise, factor):
    """Channel 0 of both inputs is an outlier. In rows that are held out (every 8th) channels of `surprise` are larger, too:
    one of them very much, or by `factor` all, which fits into the range before the scale and is clipped behind it."""
    rng = np.random.default_rng(6)
    arrays = {name: rng.normal(size=(ROWS, TOKENS, K)).astype(np.float32) for name in "ab"}
    for name, x in arrays.items():
        x[..., 0] *= 40
        if name in surprise:
            if factor:
                x[7::8, :, 1:] *= factor
            else:
                x[7::8, :, 3] *= 25
    return arrays


@pytest.fixture
def run(tmp_path):
    def quantize(surprise, factor=None):
        arrays = data(surprise, factor)
        onnx.save(two_blocks(), tmp_path / "in.onnx")
        np.savez(tmp_path / "calib.npz", **arrays)
        paths = [tmp_path / name for name in ("in.onnx", "out.onnx", "report.json")]
        options = ["--calib", tmp_path / "calib.npz", "--no-layers", "--report", paths[2], "--force"]
        done = run_tool(*paths[:2], *options)
        assert done.returncode == 0, done.stderr
        report = json.loads(paths[2].read_text())
        held_out = {name: x[7::8] for name, x in arrays.items()}
        want, got = (InferenceSession(str(path)).run(["y"], held_out)[0] for path in paths[:2])
        sqnr = 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())
        assert abs(sqnr - report["outputs"]["y"]["sqnr_db"]) < 0.5
        return report, done.stdout

    return quantize


def folded(report):
    return {site["value"]: site["sink"] is not None for site in report["sites"]}


def test_all_is_kept_where_all_helps(run):
    report, _ = run("")
    assert report["decision"] == "migrated" and report["dropped_sites"] == 0
    assert folded(report) == {"ag": True, "bh": True}
    assert report["outputs"]["y"]["sqnr_db"] > report["outputs"]["y"]["plain_sqnr_db"] + 3


@pytest.mark.parametrize("bad, good", ["ab", "ba"])
def test_only_the_one_that_hurts_is_dropped(run, bad, good):
    report, summary = run(bad)
    assert report["decision"] == "partly_migrated" and report["dropped_sites"] == 1
    value = {"a": "ag", "b": "bh"}
    assert folded(report) == {value[bad]: False, value[good]: True}
    (site,) = [s for s in report["sites"] if s["value"] == value[bad]]
    assert site["reason"].startswith("dropped after validation: "), site
    with_it, without_it = (float(part.split(" dB")[0]) for part in site["reason"].split(": ")[1].split(" -> "))
    output = report["outputs"]["y"]
    assert with_it < output["plain_sqnr_db"] < output["sqnr_db"]
    assert abs(without_it - output["sqnr_db"]) < 0.01
    assert site["scale"] is None and site["range_after"] == site["range_before"] and site["range_margin"] == 1
    assert "1 sites lowered" not in summary and "1 site lowered" in summary


def test_nothing_is_migrated_where_everything_hurts(run):
    report, _ = run("ab")
    assert not any(folded(report).values())
    assert report["dropped_sites"] == 2
    assert report["outputs"]["y"]["sqnr_db"] >= report["outputs"]["y"]["plain_sqnr_db"]


def test_ranges_are_widened_where_tokens_exceed_them_a_little(run):
    usual, _ = run("")
    report, summary = run("ab", factor=4.4)
    assert report["decision"] == "migrated" and report["dropped_sites"] == 0
    for site, before in zip(report["sites"], usual["sites"]):
        assert site["scale"] == before["scale"] and site["scale"] is not None
        assert site["range_margin"] == pytest.approx(1.25 * before["range_margin"])
    assert report["outputs"]["y"]["sqnr_db"] > report["outputs"]["y"]["plain_sqnr_db"]
    assert "ranges are wider by 1.25" in " ".join(summary.split())
