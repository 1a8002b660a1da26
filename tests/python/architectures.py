"""The exports of models/architectures: their rows of table.json, data for them, and what the tool makes of them.

`quantize(row, options…)` runs the tool once per session; the same arguments give the same files again.
"""

import atexit
import json
import tempfile
from pathlib import Path

import measure
import numpy as np
import onnx
from conftest import MODELS, run_tool
from specified import arrays

FOLDER = MODELS / "architectures"
ROWS = {row["file"].removesuffix(".onnx"): row for row in json.loads((FOLDER / "table.json").read_text())["rows"]}
CALIBRATION, HELD_OUT = (32, 1), (64, 2)  # rows, seed

_folder = tempfile.TemporaryDirectory(prefix="onnx-osplus-architectures-")
atexit.register(_folder.cleanup)
_done = {}


def feeds_of(row, model, rows, seed, specs=None):
    """Data for the inputs that the exporter kept."""
    kept = {i.name for i in model.graph.input}
    return {name: a for name, a in arrays(specs or row["inputs"], rows, seed).items() if name in kept}


def quantize(row, *options):
    """The result of the tool, the path it wrote and its report."""
    key = (row["file"], *options)
    if key in _done:
        return _done[key]
    folder = Path(_folder.name) / row["file"].removesuffix(".onnx")
    calib = folder / "calib"
    if not calib.exists():
        calib.mkdir(parents=True)
        model = onnx.load(FOLDER / row["file"])
        np.savez(calib / "0.npz", **feeds_of(row, model, *CALIBRATION))
        if "other_branch" in row:
            np.savez(calib / "1.npz", **feeds_of(row, model, *CALIBRATION, row["other_branch"]))
    name = "-".join(["out", *(o.strip("-") for o in options)])
    out, report = folder / f"{name}.onnx", folder / f"{name}.json"
    done = run_tool(FOLDER / row["file"], out, "--calib", calib, "--no-layers", "--report", report, "-q", *options)
    _done[key] = done, out, json.loads(report.read_text()) if done.returncode == 0 else None
    return _done[key]


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
