"""Data that is no table of rows: states, graphs, packed sequences, sizes that are values of an input."""

import json

import numpy as np
import onnx
import pytest

import measure
from conftest import run_tool
from data_forms import FORMS, attention_behind, single_row


def write(model, files, folder):
    onnx.save(model, folder / "in.onnx")
    (folder / "data").mkdir()
    for at, arrays in enumerate(files):
        np.savez(folder / "data" / f"{at:02}.npz", **arrays)


@pytest.mark.parametrize("name", FORMS)
def test_is_calibrated_and_better_than_plain_on_other_data(name, tmp_path):
    model, files = FORMS[name]()
    held = files[-max(1, len(files) // 4) :]
    write(model, files[: -len(held)], tmp_path)
    results = {}
    for method in ("osplus", "none"):
        result, report = tmp_path / f"{method}.onnx", tmp_path / f"{method}.json"
        run = run_tool(
            tmp_path / "in.onnx", result, "--calib", tmp_path / "data", "--report", report, "--method", method
        )
        assert run.returncode == 0, run.stderr
        told = json.loads(report.read_text())
        assert all(linear["status"] == "quantized" for linear in told["linears"])
        pairs = [(measure.outputs(model, feeds)["y"], measure.outputs(result, feeds)["y"]) for feeds in held]
        assert all(a.shape == b.shape for a, b in pairs)
        results[method] = measure.sqnr(*(np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1)))
    assert results["osplus"] > results["none"] + 3, results


def test_a_state_that_is_cut_with_its_rows_gives_what_single_rows_give(tmp_path):
    model, files = FORMS["cache_batch_4"]()
    single = []
    for arrays in files:
        for row in range(4):
            single.append({"x": arrays["x"][[row]], "cache": arrays["cache"][:, [row]]})
    reports = []
    for name, data in (("four", files), ("one", single)):
        folder = tmp_path / name
        folder.mkdir()
        write(model, data, folder)
        run = run_tool(folder / "in.onnx", folder / "out.onnx", "--calib", folder / "data", "--report", folder / "r.json")
        assert run.returncode == 0, run.stderr
        reports.append(json.loads((folder / "r.json").read_text()))
    # The same rows: the same values. (One row alone has no batch axis, so its tokens are halved by position, and the search
    # may choose otherwise.)
    ranges = [[site["range_before"] for site in report["sites"]] for report in reports]
    assert ranges[0] == ranges[1]


def test_the_node_that_makes_a_shape_unknown_is_named(tmp_path):
    model, files = attention_behind("nonzero")
    write(model, files, tmp_path)
    run = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "data")
    assert run.returncode == 1
    assert "/at (NonZero)" in run.stderr and "MultiHeadAttention `/attention` needs it" in run.stderr


def test_a_model_that_runs_one_row_only_though_its_batch_is_named_is_run_row_by_row(tmp_path):
    model, rows = single_row()
    onnx.save(model, tmp_path / "in.onnx")
    calib, held = {"x": rows[:48]}, rows[48:]
    np.savez(tmp_path / "calib.npz", **calib)
    report = tmp_path / "r.json"
    run = run_tool(
        tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz", "--report", report
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(report.read_text())
    assert any("one at a time" in note for note in told["notes"]), told["notes"]
    assert all(linear["status"] == "quantized" for linear in told["linears"])
    pairs = [[measure.outputs(m, {"x": row[None]})["y"] for m in (model, tmp_path / "out.onnx")] for row in held]
    true = measure.sqnr(*(np.stack(found) for found in zip(*pairs)))
    assert abs(true - told["outputs"]["y"]["sqnr_db"]) < 2

    run = run_tool("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz")
    assert run.returncode == 0 and "one at a time" in run.stdout, run.stdout + run.stderr
    run = run_tool("inspect", tmp_path / "in.onnx", "--calib", tmp_path / "calib.npz")
    assert run.returncode == 0, run.stderr


def test_a_model_that_runs_no_row_at_all_says_so_for_the_rows_that_were_given(tmp_path):
    model, rows = single_row(reshaped=3)
    onnx.save(model, tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", x=rows)
    run = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz")
    assert run.returncode == 1 and "[2, 4, 32]" in run.stderr, run.stderr
