"""The exports of models/architectures: their rows of table.json, data for them, and what the tool makes of them.

`quantize(row, options…)` runs the tool once per session; the same arguments give the same files again.
"""

import json
import subprocess

import measure
import numpy as np
import onnx
from conftest import MODELS, run_tool
from once import once
from specified import arrays

FOLDER = MODELS / "architectures"
ROWS = {row["file"].removesuffix(".onnx"): row for row in json.loads((FOLDER / "table.json").read_text())["rows"]}
CALIBRATION, HELD_OUT = (32, 1), (64, 2)  # rows, seed

_done = {}


def feeds_of(row, model, rows, seed, specs=None):
    """Data for the inputs that the exporter kept."""
    kept = {i.name for i in model.graph.input}
    return {name: a for name, a in arrays(specs or row["inputs"], rows, seed).items() if name in kept}


def quantize(row, *options):
    """The result of the tool, the path it wrote and its report."""
    key = (row["file"], *options)
    if key not in _done:
        name = "-".join(["out", *(o.strip("-") for o in options)])
        folder = once(f"architectures/{row['file'].removesuffix('.onnx')}/{name}", lambda folder: _quantize(row, folder, options))
        code, stdout, stderr = json.loads((folder / "result.json").read_text())
        report = json.loads((folder / "report.json").read_text()) if code == 0 else None
        _done[key] = subprocess.CompletedProcess(name, code, stdout, stderr), folder / "out.onnx", report
    return _done[key]


def _quantize(row, folder, options):
    paths = folder / "out.onnx", "--calib", calibration(row), "--no-layers", "--report", folder / "report.json"
    done = run_tool(FOLDER / row["file"], *paths, "-q", *options)
    (folder / "result.json").write_text(json.dumps([done.returncode, done.stdout, done.stderr]))


def calibration(row):
    """The folder with the data that `quantize` calibrates with."""
    return once(f"architectures/{row['file'].removesuffix('.onnx')}/calib", lambda folder: _calibration(row, folder)) / "rows"


def _calibration(row, folder):
    model, folder = onnx.load(FOLDER / row["file"]), folder / "rows"
    folder.mkdir(exist_ok=True)
    np.savez(folder / "0.npz", **feeds_of(row, model, *CALIBRATION))
    if "other_branch" in row:
        np.savez(folder / "1.npz", **feeds_of(row, model, *CALIBRATION, row["other_branch"]))


def run(path, row, feeds):
    """All outputs in ONNX Runtime, in chunks of the batch that the model fixes, if any."""
    runner = measure.session(path)
    fixed = runner.get_inputs()[0].shape[0]
    names = [o.name for o in runner.get_outputs()]
    rows = next(len(a) for a in feeds.values() if a.ndim > 1)
    step = fixed if isinstance(fixed, int) else rows
    chunks = [
        runner.run(names, {n: a[start : start + step] if a.ndim > 1 else a for n, a in feeds.items()})
        for start in range(0, rows, step)
    ]
    return {name: np.concatenate([c[i] for c in chunks]) for i, name in enumerate(names)}
