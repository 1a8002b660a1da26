"""Raised models compute what the originals computed, in ONNX Runtime."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ORIGINALS = sorted((ROOT / "tests" / "data" / "opset").glob("*.onnx"))
RAISED = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "tmp" / "opset"


def run(path, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Optimizations may rewrite the two differently; the question is what the operators mean.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def random_feeds(model, seed):
    random = np.random.default_rng(seed)
    constants = {t.name for t in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in constants:
            shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feeds[value.name] = random.normal(size=shape).astype(dtype)
    return feeds


def every_node(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_node(attribute.g)


def test_there_are_models():
    assert len(ORIGINALS) > 40


@pytest.mark.parametrize("original", ORIGINALS, ids=lambda p: p.stem)
def test_raised_model_computes_the_same(original):
    raised = RAISED / original.name
    assert raised.exists(), f"{raised} is missing: run `cargo test --test all opset_raise::` first"
    before, after = onnx.load(original), onnx.load(raised)
    assert before.opset_import[0].version < 13
    assert [o.version for o in after.opset_import if o.domain == ""] == [13]
    assert after.ir_version >= 7
    onnx.checker.check_model(after, full_check=True)
    names = {n.name for n in every_node(after.graph)}
    assert {n.name for n in every_node(before.graph)} <= names
    for seed in range(3):
        feeds = random_feeds(before, seed)
        for old, new in zip(run(original, feeds), run(raised, feeds), strict=True):
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(old, new)


def test_attention_keeps_its_softmax():
    """Its rank is found through Reshape and Transpose, so that nothing is wrapped around the Softmax."""
    ops = lambda path: [n.op_type for n in onnx.load(path).graph.node]
    assert ops(RAISED / "attention.onnx") == ops(ROOT / "tests" / "data" / "opset" / "attention.onnx")
