"""The committed and fetched models are what their scripts make, and the graph builder is right."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import MODELS, TINY_CASES
from measure import op_counts, outputs
from onnx.reference import ReferenceEvaluator


def test_committed_files_are_what_the_script_makes():
    done = subprocess.run([sys.executable, MODELS / "make_tiny.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_fetched_files_have_their_checksums():
    done = subprocess.run([sys.executable, MODELS / "fetch", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda c: c.name)
def test_committed_models_are_small_and_valid(case):
    assert case.model.stat().st_size < 1_000_000
    onnx.checker.check_model(str(case.model), full_check=True)
    feeds = {name: array[:2] for name, array in case.load_heldout().items()}
    (expected,) = ReferenceEvaluator(onnx.load(case.model)).run(None, feeds)
    got = outputs(case.model, feeds)[case.output]
    assert np.isfinite(got).all() and np.abs(expected - got).max() <= 1e-4 * np.ptp(expected)


def test_both_forms_of_l6_are_one_function(l6):
    feeds = {name: array[:8] for name, array in l6["fused"].load_heldout().items()}
    fused, decomposed = (outputs(l6[form].model, feeds)["last_hidden_state"] for form in ("fused", "decomposed"))
    assert np.abs(fused - decomposed).max() <= 1e-5 * np.ptp(fused)
    assert op_counts(onnx.load(l6["fused"].model))["LayerNormalization"] == 13
    counts = op_counts(onnx.load(l6["decomposed"].model))
    assert counts["LayerNormalization"] == 0 and counts["ReduceMean"] == 26
