"""What a model computes decides, not how it is written: each form of the same function ends as the original does."""

import json

import measure
import numpy as np
import onnx
import pytest
from architectures import FOLDER, HELD_OUT, ROWS, feeds_of, quantize, run
from conftest import run_tool
from rewritings import ALL

BASES = ["bert-script14-sdpa", "llama-dynamo18-sdpa", "vit-script17-sdpa"]


def quantized(report):
    return sum(linear["status"] == "quantized" for linear in report["linears"])


@pytest.mark.parametrize("rewriting", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("base", BASES)
def test_as_good_as_the_original(tmp_path, base, rewriting):
    row = ROWS[base]
    model = onnx.load(FOLDER / row["file"])
    calib = tmp_path / "calib.npz"
    np.savez(calib, **feeds_of(row, model, 32, 1))
    feeds = feeds_of(row, model, *HELD_OUT)
    path, out, report = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "report.json"
    onnx.save(rewriting(model), path)
    (output,) = row["outputs"]
    reference = run(FOLDER / row["file"], row, feeds)[output]
    assert np.abs(run(path, row, feeds)[output] - reference).max() < 1e-4 * np.ptp(reference), "not the same function"

    done = run_tool(path, out, "--calib", calib, "--no-layers", "--report", report, "-q")
    assert done.returncode == 0, done.stderr
    _, original, of_original = quantize(row)
    assert quantized(json.loads(report.read_text())) == quantized(of_original)
    expected = measure.sqnr(reference, run(original, row, feeds)[output])
    assert measure.sqnr(reference, run(out, row, feeds)[output]) > expected - 1.5
