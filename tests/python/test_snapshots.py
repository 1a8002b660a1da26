"""Runs the graphs in the snapshots of tests/rewrite.rs: each is a valid model to ONNX Runtime, and migration keeps the function."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "snapshots"
# One model is no story; test_profiles.py runs models with float weights.
SNAPSHOTS = sorted(p for p in FOLDER.glob("all__rewrite__*.snap") if not p.stem.endswith("float_weights"))


def chapters(path):
    """Title and text of the model before and after each step."""
    text = path.read_text().split("---\n", 2)[2]
    parts = re.split(r"^# (?=before|migrated|quantized)", text, flags=re.MULTILINE)[1:]
    return [part.split("\n", 1) for part in parts]


def run(text):
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    kind = model.graph.input[0].type.tensor_type
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).reshape((2, 3, 4) if len(kind.shape.dim) == 3 else (6, 4))
    x = x.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def test_there_are_snapshots():
    assert len(SNAPSHOTS) >= 30


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem.removeprefix("all__rewrite__"))
def test_snapshot_runs(path):
    models = dict(chapters(path))
    targets = ["ort", "tensorrt", "openvino", "portable"]
    assert list(models) == ["before", "migrated", *(f"quantized for {target}" for target in targets)]
    if models["migrated"].startswith("(the same)"):
        models["migrated"] = models["before"]
    for title, text in models.items():
        if other := re.match(r"\(as for (\w+)\)", text):
            models[title] = models[f"quantized for {other[1]}"]
    results = {title: run(text) for title, text in models.items()}
    for title, result in results.items():
        assert [r.shape for r in result] == [r.shape for r in results["before"]], title
    for before, after in zip(results["before"], results["migrated"]):
        limit = 1e-5 if before.dtype == np.float32 else 8 * np.finfo(before.dtype).eps
        assert before.dtype == after.dtype and np.abs(after - before).max() <= limit * np.ptp(before)
