"""Linears that are so by value and not by form: constant expressions as weights, other layouts, 1×1 Conv."""

import json

import numpy as np
import onnx
import pytest

import layouts
import measure
from conftest import run_tool


def forms(form):
    return [name for name, _ in form(np.random.default_rng(3))]


def quantized(name, form, folder, *options):
    """The original, the result, its report, and feeds that it was not calibrated on."""
    model, calib, held, linears = layouts.make(name, form)
    source, data, result = folder / "in.onnx", folder / "calib.npz", folder / "out.onnx"
    onnx.save(model, source)
    np.savez(data, **calib)
    run = run_tool(source, result, "--calib", data, "--report", folder / "report.json", *options)
    assert run.returncode == 0, run.stderr
    return model, result, json.loads((folder / "report.json").read_text()), held, linears


@pytest.mark.parametrize(
    "name, form",
    [(name, form) for form in (layouts.expressions, layouts.layouts) for name in forms(form)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_linear_is_found_and_multiplied_in_int8(name, form, tmp_path):
    model, result, report, held, linears = quantized(name, form, tmp_path)
    assert [row.get("reason") for row in report["linears"]] == [None] * linears
    reference, got = measure.outputs(model, held)["y"], measure.outputs(result, held)["y"]
    assert reference.shape == got.shape
    sqnr, told = measure.sqnr(reference, got), report["outputs"]["y"]
    assert sqnr > told["plain_sqnr_db"] + (3 if linears > 1 else 6)
    assert abs(sqnr - told["sqnr_db"]) < 2
    ops = measure.optimized_model(result, tmp_path / "optimized.onnx").graph.node
    integer = [n for n in ops if n.op_type in ("MatMulIntegerToFloat", "QGemm", "QLinearMatMul")]
    assert len(integer) == linears, [n.op_type for n in ops]


@pytest.mark.parametrize("name", forms(layouts.others))
def test_what_stays_in_float_is_named_and_left_as_it_is(name, tmp_path):
    model, result, report, held, _ = quantized(name, layouts.others, tmp_path)
    assert [miss["name"] for miss in report["near_misses"]] == ["/other"]
    other = next(n for n in model.graph.node if n.name == "/other")
    kept = next(n for n in onnx.load(result).graph.node if n.name == "/other")
    assert other == kept
    weights = [{i.name: i.raw_data for i in m.graph.initializer} for m in (model, onnx.load(result))]
    assert weights[0][other.input[1]] == weights[1][other.input[1]]


def test_what_is_excluded_keeps_its_form(tmp_path):
    model, result, _, _, _ = quantized("conv2d", layouts.layouts, tmp_path, "--exclude", "next")
    conv = next(n for n in model.graph.node if n.name == "/next")
    assert conv in list(onnx.load(result).graph.node)


@pytest.mark.parametrize("name", [name for name in forms(layouts.layouts) if "unit" not in name])
def test_what_ends_in_float_is_put_back(name, tmp_path):
    if layouts.make(name, layouts.layouts)[3] > 1:
        model, result, *_ = quantized(name, layouts.layouts, tmp_path, "--keep-float", "99%", "--method", "none")
        kept = [n.SerializeToString() for n in onnx.load(result).graph.node]
        assert any(n.SerializeToString() in kept for n in model.graph.node if n.op_type in ("Conv", "Einsum"))
        return
    # Alone, it must stay quantized: beside another Linear it may not.
    model, calib, _, _ = layouts.make(name, layouts.layouts)
    onnx.save(model, tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", **calib)
    run = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz", "--format", "float", "--method", "none")
    assert run.returncode == 0, run.stderr
    result = onnx.load(tmp_path / "out.onnx")
    assert list(result.graph.node) == list(model.graph.node)
    assert {i.name: i.raw_data for i in result.graph.initializer} == {i.name: i.raw_data for i in model.graph.initializer}
