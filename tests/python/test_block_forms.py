"""Fine-grained forms that this tool and others write, as its commands that read models see them."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import block_forms
import measure
from conftest import ROOT, run_tool


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
    assert measure.sqnr(measure.outputs(folder / f"{form}.onnx", feeds)["y"], got) > (120 if "level_0" in form or "float_zero" in form else 34)


def test_what_is_dequantized_has_its_names_again(written, tmp_path):
    folder, _ = written
    for form in ("nbits_4_g32", "per_token_u8", "table_4_nbits_4", "dynamic_quantize_matmul"):
        run = run_tool("dequantize", folder / f"{form}.onnx", tmp_path / "out.onnx", "--force")
        assert run.returncode == 0, run.stderr
        source, result = onnx.load(folder / "float.onnx"), onnx.load(tmp_path / "out.onnx")
        names = lambda model: ({n.name for n in model.graph.node}, {t.name for t in model.graph.initializer})
        assert names(result) == names(source), form


WORDS = {
    "nbits_4_g32": "MatMulNBits of INT8 activations (scales found at run time per token and group) and 4 bits weights, in groups of 32, symmetric",
    "nbits_4_float_zero": "MatMulNBits of float activations and 4 bits weights, in groups of 32, asymmetric, with float zero points",
    "nbits_8_asymmetric": "and 8 bits weights, in groups of 64, asymmetric",
    "blocks_uint4_asymmetric": "MatMul of float activations and UINT4 weights, in groups of 32, asymmetric",
    "per_token_s8": "MatMul of INT8 activations (scales found at run time per token) and INT8 weights, per-channel",
    "run_time_blocks": "MatMul of INT8 activations (scales found at run time per token and group) and INT8 weights, per-channel",
    "dynamic_quantize_matmul": "DynamicQuantizeMatMul of UINT8 activations (scales found at run time) and INT8 weights, per-channel",
}


@pytest.mark.parametrize("form", WORDS)
def test_inspect_says_what_is_quantized(form, written):
    folder, _ = written
    run = run_tool("inspect", folder / f"{form}.onnx")
    assert WORDS[form] in " ".join(run.stdout.split()), run.stdout + run.stderr


def outputs(path):
    """In batches of 8 as the tool runs them: some scales are those of a batch."""
    ids = block_forms.feeds()["ids"]
    return np.concatenate([measure.outputs(path, {"ids": ids[i : i + 8]})["y"] for i in range(0, len(ids), 8)])


def verified(folder, path, out):
    run = run_tool("verify", folder / "float.onnx", path, "--calib", folder / "data.npz", "--json", out / "verify.json")
    assert run.returncode == 0, run.stderr
    return json.loads((out / "verify.json").read_text())


@pytest.mark.parametrize("form", block_forms.FORMS)
def test_verify_compares_every_linear_with_what_onnx_runtime_computes(form, written, tmp_path):
    folder, _ = written
    found = verified(folder, folder / f"{form}.onnx", tmp_path)
    expected = measure.sqnr(outputs(folder / "float.onnx"), outputs(folder / f"{form}.onnx"))
    output = next(o for o in found["outputs"] if o["name"] == "y")
    assert output["sqnr_db"] == pytest.approx(expected, abs=0.05), expected
    assert len(found["layers"]) == 5
    for layer in found["layers"]:
        assert layer["quantized"] and layer["fed"]["sqnr_db"] > (1 if "nbits_2" in form or "bias" in form else 12), layer


SUMMARIES = {
    "nbits_4_g32": "5 weights quantized (float → 4 bits in groups of 32, symmetric).",
    "nbits_8_asymmetric": "5 weights quantized (float → 8 bits in groups of 64, asymmetric).",
    "blocks_int4": "5 weights quantized (float → int4 in groups of 32, symmetric).",
    "per_token_u8": "5 weights quantized (float → int8 per channel). 5 Q/DQ pairs (u8 per token) inserted.",
}


@pytest.mark.parametrize("form", SUMMARIES)
def test_diff_tells_a_linear_in_one_line(form, written):
    folder, _ = written
    run = run_tool("diff", folder / "float.onnx", folder / f"{form}.onnx", "--full")
    assert run.returncode == 0, run.stderr
    text = run.stdout
    assert " ".join(text.split()).startswith(SUMMARIES[form]), text
    lines = [line.strip() for line in text.splitlines()]
    assert sum(line.startswith("~ weight") for line in lines) == 5, text
    # No dump of the nodes and constants of the form.
    for word in ("accuracy_level", "Abs", "ReduceMax", "zero_points", "_scales", "+ Mul", "+ Div"):
        assert word not in text, (word, text)
    back = run_tool("diff", folder / f"{form}.onnx", folder / "float.onnx").stdout
    assert "5 weights in float again" in " ".join(back.split()), back


def test_the_largest_change_of_a_weight_in_groups_is_numpys(written):
    folder, meanings = written
    source = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "float.onnx").graph.initializer}
    for form in ("nbits_4_g32", "nbits_8_g128", "blocks_uint4_asymmetric", "nbits_4_float_zero"):
        found = json.loads(run_tool("diff", folder / "float.onnx", folder / f"{form}.onnx", "--json").stdout)
        changes = {c["name"]: c["largest_change"] for c in found["changes"] if c["kind"] == "weight"}
        expected = {name: np.abs(source[name] - meanings[form][name]).max() for name in changes}
        assert changes == pytest.approx(expected, rel=1e-5) and len(changes) == 5, form


@pytest.mark.parametrize("path", sorted((ROOT / "tests/data/peers").glob("*.onnx")), ids=lambda path: path.stem)
def test_files_of_onnx_runtimes_quantizer(path, written, tmp_path):
    folder, _ = written
    linears = 5
    found = verified(folder, path, tmp_path)
    feeds = block_forms.feeds()
    expected = measure.sqnr(outputs(folder / "float.onnx"), outputs(path))
    assert found["outputs"][0]["sqnr_db"] == pytest.approx(expected, abs=0.05)
    assert sum(layer["quantized"] is not None for layer in found["layers"]) == linears
    text = " ".join(run_tool("diff", folder / "float.onnx", path).stdout.split())
    assert "5 weights quantized" in text and "in groups of" in text, text
    run = run_tool("dequantize", path, tmp_path / "out.onnx")
    assert run.returncode == 0, run.stderr
    result, source = onnx.load(tmp_path / "out.onnx"), onnx.load(folder / "float.onnx")
    assert sorted(n.op_type for n in result.graph.node) == sorted(n.op_type for n in source.graph.node)
    assert measure.sqnr(measure.outputs(path, feeds)["y"], measure.outputs(result, feeds)["y"]) > 38
    if "qdq" not in path.stem:  # there the MatMul is renamed, and stays
        assert {n.name for n in result.graph.node} == {n.name for n in source.graph.node}
    # And what was dequantized is a float model to start from.
    run = run_tool(tmp_path / "out.onnx", tmp_path / "again.onnx", "--calib", folder / "data.npz", "-q")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("bits", [4, 8])
def test_models_of_onnx_runtime_genai(bits, tmp_path):
    """GroupQueryAttention with a cache, SkipSimplifiedLayerNormalization, MatMulNBits: one token behind three."""
    source, feeds = block_forms.genai_model()
    made, _ = block_forms.nbits(bits, 32, "packed")(source)
    onnx.save(source, tmp_path / "float.onnx")
    onnx.save(made, tmp_path / "made.onnx")
    np.savez(tmp_path / "data.npz", **feeds)
    found = verified(tmp_path, tmp_path / "made.onnx", tmp_path)
    reference, got = (measure.outputs(tmp_path / f"{name}.onnx", feeds) for name in ("float", "made"))
    for output in found["outputs"]:
        name = output["name"]
        assert output["sqnr_db"] == pytest.approx(measure.sqnr(reference[name], got[name]), abs=0.05), name
    assert len(found["layers"]) == 15 and all(layer["quantized"]["bits"] == bits for layer in found["layers"])
    inspected = " ".join(run_tool("inspect", tmp_path / "made.onnx").stdout.split())
    assert f"15 × MatMulNBits of INT8 activations (scales found at run time per token and group) and {bits} bits weights" in inspected
    run = run_tool("dequantize", tmp_path / "made.onnx", tmp_path / "out.onnx")
    assert run.returncode == 0, run.stderr
    back = measure.outputs(tmp_path / "out.onnx", feeds)
    assert measure.sqnr(got["logits"], back["logits"]) > 30
    assert sorted(n.op_type for n in onnx.load(tmp_path / "out.onnx").graph.node) == sorted(n.op_type for n in source.graph.node)
