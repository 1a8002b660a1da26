"""Raised models compute what the originals computed, in ONNX Runtime."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "tests" / "data"
OLDER = sorted((DATA / "opset").glob("*.onnx"))
LATER = sorted((DATA / "opset21").glob("*.onnx"))
RAISED = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "tmp"
# An original, the version it was raised to and the first IR version that knows it.
CASES = [(path, 13, 7) for path in OLDER] + [(path, 21, 10) for path in [*OLDER, *LATER]]

# ONNX Runtime has a kernel of its own for AveragePool 19, which adds in another order.
ADDED_OTHERWISE = "average_pool"


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
    assert len(OLDER) > 40 and len(LATER) > 40


@pytest.mark.parametrize("original, target, ir", CASES, ids=lambda p: p.stem if isinstance(p, Path) else str(p))
def test_raised_model_computes_the_same(original, target, ir):
    raised = RAISED / ("opset" if target == 13 else "opset21") / original.name
    assert raised.exists(), f"{raised} is missing: run `cargo test --test all opset_raise::` first"
    before, after = onnx.load(original), onnx.load(raised)
    assert before.opset_import[0].version < target
    assert [o.version for o in after.opset_import if o.domain == ""] == [target]
    assert after.ir_version >= ir
    onnx.checker.check_model(after, full_check=True)
    names = {n.name for n in every_node(after.graph)}
    assert {n.name for n in every_node(before.graph)} <= names
    for seed in range(3):
        feeds = random_feeds(before, seed)
        for old, new in zip(run(original, feeds), run(raised, feeds), strict=True):
            assert old.dtype == new.dtype
            if original.stem.startswith(ADDED_OTHERWISE):
                np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(old, new)


def test_attention_keeps_its_softmax():
    """Its rank is found through Reshape and Transpose, so that nothing is wrapped around the Softmax."""
    ops = lambda path: [n.op_type for n in onnx.load(path).graph.node]
    for folder in ("opset", "opset21"):
        assert ops(RAISED / folder / "attention.onnx") == ops(DATA / "opset" / "attention.onnx")
