"""Fine-grained forms that this tool and others write, as its commands that read models see them."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import block_forms
import measure
from conftest import run_tool


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every form as a file beside the float model, and what its integers mean."""
    folder = tmp_path_factory.mktemp("forms")
    model = block_forms.float_model()
    onnx.save(model, folder / "float.onnx")
    np.savez(folder / "data.npz", **block_forms.feeds())
    meanings = {}
    for name, form in block_forms.FORMS.items():
        made, meanings[name] = form(model)
        onnx.save(made, folder / f"{name}.onnx")
    return folder, meanings


def is_on_integers(op):
    return "Quantize" in op or "Integer" in op or "NBits" in op


@pytest.mark.parametrize("form", block_forms.FORMS)
def test_dequantize_gives_the_float_model(form, written, tmp_path):
    folder, meanings = written
    run = run_tool("dequantize", folder / f"{form}.onnx", tmp_path / "out.onnx")
    assert run.returncode == 0, run.stderr
    result, source = onnx.load(tmp_path / "out.onnx"), onnx.load(folder / "float.onnx")
    onnx.checker.check_model(result)
    # The nodes of the float model, and no other; a bias inside the operator becomes an Add.
    expected = sorted(n.op_type for n in source.graph.node) + ["Add"] * (5 if "bias" in form else 0)
    assert sorted(n.op_type for n in result.graph.node) == sorted(expected)
    arrays = [numpy_helper.to_array(t) for t in result.graph.initializer]
    for name, exact in meanings[form].items():
        assert any(a.shape == exact.shape and np.allclose(a, exact, rtol=1e-6, atol=1e-7) for a in arrays), name
    # It computes what the quantized model does but for the rounding of activations.
    feeds = block_forms.feeds()
    got = measure.outputs(result, feeds)["y"]
    assert measure.sqnr(measure.outputs(folder / f"{form}.onnx", feeds)["y"], got) > (120 if "level_0" in form or "float_zero" in form else 38)


def test_what_is_dequantized_has_its_names_again(written, tmp_path):
    folder, _ = written
    for form in ("nbits_4_g32", "blocks_int4", "per_token_u8", "table_4_nbits_4", "dynamic_quantize_matmul"):
        run = run_tool("dequantize", folder / f"{form}.onnx", tmp_path / "out.onnx", "--force")
        assert run.returncode == 0, run.stderr
        source, result = onnx.load(folder / "float.onnx"), onnx.load(tmp_path / "out.onnx")
        names = lambda model: ({n.name for n in model.graph.node}, {t.name for t in model.graph.initializer})
        assert names(result) == names(source), form
