"""The committed and fetched models are what their scripts make, and the graph builder is right."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import MODELS, TINY_CASES
from measure import heldout_sqnr, op_counts, outputs, stored_matrices
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


@pytest.mark.parametrize("bits", [8, 6])
def test_weights_that_all_layers_share_stay_shared(albert, job, bits):
    bits = ("--weight-bits", bits, "--activation-bits", bits) if bits != 8 else ()
    ours, plain = job(albert, *bits), job(albert, "--method", "none", *bits)
    assert ours.report["decision"] == "migrated"
    # The gain is clear on half of them, but the figures are of all.
    assert ours.report["verified_on"] == "8 rows held out of calibration"
    assert len(ours.report["linears"]) == albert.linears
    assert heldout_sqnr(albert, ours.path) >= heldout_sqnr(albert, plain.path) + 2
    assert stored_matrices(ours.model(), onnx.TensorProto.INT8) == stored_matrices(plain.model(), onnx.TensorProto.INT8) == 7
    # What each layer needs of its own are small constants: not much more than half of the float file all the same.
    assert ours.path.stat().st_size < 0.55 * albert.model.stat().st_size
    assert ours.path.stat().st_size < 1.2 * plain.path.stat().st_size


def test_shared_weights_stay_shared_in_the_migrated_float_model(albert, job):
    migrated = job(albert, "--format", "float")
    assert migrated.report["float_check"]["max_relative_error"] <= 1e-4
    float32 = onnx.TensorProto.FLOAT
    assert stored_matrices(migrated.model(), float32) == stored_matrices(onnx.load(albert.model), float32)
    feeds = {name: array[:8] for name, array in albert.load_heldout().items()}
    real = feeds["attention_mask"].astype(bool)
    expected, got = (outputs(path, feeds)[albert.output][real] for path in (albert.model, migrated.path))
    assert np.abs(expected - got).max() <= 1e-4 * np.ptp(expected)
