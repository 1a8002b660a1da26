"""`--embeddings int8`: the table stays in 8 bits in the file, in ONNX Runtime's optimized graph and in OpenVINO's."""

import json

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

import measure
from conftest import run_tool
from layouts import node, weight

V, C = 2000, 64


def encoder(form="float"):
    """Two tables, of words and of positions, a norm and two Linears; the words with outlier rows."""
    rng = np.random.default_rng(12)
    words = weight(rng, V, C)
    words[:40] *= 20
    if form == "sensitive":
        # One large element a row: the others keep few levels.
        words[:, 0] = 400 * words[:, 1]
    kind = np.float16 if form == "float16" else np.float32
    constants = {"words": words.astype(kind), "places": weight(rng, 512, C).astype(kind)}
    constants |= {"gamma": np.ones(C, kind), "beta": weight(rng, C).astype(kind)}
    constants |= {"w1": weight(rng, C, 128).astype(kind), "w2": weight(rng, 128, C).astype(kind)}
    nodes = [node("Gather", ["words", "ids"], "e"), node("Gather", ["places", "positions"], "p")]
    if form == "sensitive":
        nodes += [node("Slice", ["e", "one", "end", "last"], "rest"), node("Identity", ["rest"], "z")]
        constants |= {"one": np.array([1]), "end": np.array([C]), "last": np.array([2])}
    nodes += [
        node("Add", ["e", "p"], "s"),
        node("LayerNormalization", ["s", "gamma", "beta"], "h", axis=-1),
        node("MatMul", ["h", "w1"], "u"),
        node("Relu", ["u"], "r"),
        node("MatMul", ["r", "w2"], "y"),
    ]
    if form == "tied":
        nodes += [node("Transpose", ["words"], "head", perm=[1, 0]), node("MatMul", ["y", "head"], "logits")]
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    names = ["y"] + {"tied": ["logits"], "sensitive": ["z"]}.get(form, [])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in ("ids", "positions")],
        [helper.make_tensor_value_info(name, elem, None) for name in names],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ids = rng.integers(0, V, (48, 12))
    return model, {"ids": ids, "positions": np.broadcast_to(np.arange(12), ids.shape).copy()}


def quantized(form, folder, *options):
    model, data = encoder(form)
    onnx.save(model, folder / "in.onnx")
    np.savez(folder / "calib.npz", **{name: value[:32] for name, value in data.items()})
    # With 8 bits this shallow model is so accurate that its tables would be most of the error.
    options = options if "--preset" in options else ("--activation-bits", "6", *options)
    paths = folder / "in.onnx", folder / "out.onnx", "--calib", folder / "calib.npz", "--report", folder / "r.json"
    run = run_tool(*paths, "--force", *options)
    assert run.returncode == 0, run.stderr
    held = {name: value[32:] for name, value in data.items()}
    return model, held, json.loads((folder / "r.json").read_text()), run.stdout


def tables(model):
    """Type and shape of every constant of rank 2 as large as a table."""
    inits = [i for i in model.graph.initializer if list(i.dims) in ([V, C], [512, C])]
    return sorted((TensorProto.DataType.Name(i.data_type), i.dims[0]) for i in inits)


@pytest.mark.parametrize("form", ["float", "float16"])
@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_tables_stay_in_8_bits_and_outputs_hold(form, target, tmp_path):
    model, held, before, _ = quantized(form, tmp_path, "--target", target)
    size = (tmp_path / "out.onnx").stat().st_size
    reference = measure.outputs(model, held)["y"]
    without = measure.sqnr(reference, measure.outputs(tmp_path / "out.onnx", held)["y"])
    assert before["embeddings"] is None
    model, held, report, summary = quantized(form, tmp_path, "--target", target, "--embeddings", "int8")
    assert tables(onnx.load(tmp_path / "out.onnx")) == [("INT8", 512), ("INT8", V)]
    assert measure.sqnr(reference, measure.outputs(tmp_path / "out.onnx", held)["y"]) > without - 0.5
    saved = sum(t["bytes_before"] - t["bytes_after"] for t in report["embeddings"]["tables"])
    assert abs(size - (tmp_path / "out.onnx").stat().st_size - saved) < 3000
    assert "embeddings 2 tables in 8 bits" in summary
    # As the runtimes hold them.
    assert tables(measure.optimized_model(tmp_path / "out.onnx", tmp_path / "o.onnx")) == [("INT8", 512), ("INT8", V)]
    runtime = openvino.Core().compile_model(str(tmp_path / "out.onnx"), "CPU").get_runtime_model()
    shapes = {(str(n.get_output_element_type(0)), n.get_output_partial_shape(0).to_string()) for n in runtime.get_ops() if not n.inputs()}
    assert ("<Type: 'int8_t'>", f"[{V},{C}]") in shapes
    assert not any(shape == f"[{V},{C}]" and "int8" not in kind for kind, shape in shapes)
    listed = run_tool("inspect", tmp_path / "out.onnx")
    assert "2 embedding tables" in listed.stdout


def test_a_tied_table_is_counted_once_it_stays(tmp_path):
    _, _, report, _ = quantized("tied", tmp_path, "--embeddings", "int8", "--exclude", "logits")
    words = next(t for t in report["embeddings"]["tables"] if t["name"] == "words")
    assert words["bytes_after"] > words["bytes_before"]
    _, _, report, _ = quantized("tied", tmp_path, "--embeddings", "int8")
    # The head has a copy of its own in 8 bits, so the float table goes.
    assert tables(onnx.load(tmp_path / "out.onnx")) == [("INT8", 512), ("INT8", V)]


@pytest.mark.parametrize(
    "form, options, why",
    [
        ("sensitive", ("--target", "openvino"), "would lose"),
        ("float", ("--target", "tensorrt"), "widens"),
        ("float", ("--target", "portable"), "widens"),
    ],
)
def test_tables_stay_in_float_and_it_is_said(form, options, why, tmp_path):
    _, _, report, _ = quantized(form, tmp_path, "--embeddings", "int8", *options)
    assert report["embeddings"] is None
    assert [note for note in report["notes"] if "embedding tables stay in float" in note and why in note]
    assert ("FLOAT", V) in tables(onnx.load(tmp_path / "out.onnx"))


def blocks(model):
    """Bits of every table in blocks."""
    return [{a.name: a.i for a in n.attribute}["bits"] for n in model.graph.node if n.op_type == "GatherBlockQuantized"]


def dequantized(table, scales, bits, block):
    """The floats of bytes with the first element in the lowest bits, by definition."""
    parts = [table >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    levels = np.stack(parts, -1).reshape(len(table), -1).astype(np.float32) - 2 ** (bits - 1)
    return levels * np.repeat(scales, block, axis=1)[:, : levels.shape[1]]


def test_rows_with_outliers_have_a_scale_for_16_elements(tmp_path):
    model, held, report, summary = quantized("sensitive", tmp_path, "--embeddings", "int8")
    told = report["embeddings"]
    if told is None:
        # What is in the block of the outlier is lost all the same, and the output reads it.
        assert [note for note in report["notes"] if "would lose" in note]
        return
    assert (told["bits"], told["block"]) == (8, 16) and "by blocks of 16" in summary
    assert blocks(onnx.load(tmp_path / "out.onnx")) == [8, 8]


@pytest.mark.parametrize("form", ["float", "float16"])
def test_tables_of_4_bits(form, tmp_path):
    # Weights of 2 bits leave more than a table of 4 does.
    options = ("--embeddings", "int4", "--preset", "llm", "--weight-bits", "2")
    model, held, report, summary = quantized(form, tmp_path, *options)
    assert report["embeddings"]["bits"] == 4, report["notes"]
    assert "2 tables in 4 bits by blocks of 32" in summary
    written = onnx.load(tmp_path / "out.onnx")
    assert blocks(written) == [4, 4]
    stored = {i.name: numpy_helper.to_array(i) for i in written.graph.initializer}
    node = next(n for n in written.graph.node if n.op_type == "GatherBlockQuantized")
    words = numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == "words")).astype(np.float32)
    back = dequantized(stored[node.input[0]], stored[node.input[2]], 4, 32)
    assert measure.sqnr(words, back) > 20
    # What ONNX Runtime gathers is what the bytes say.
    probe = onnx.ModelProto()
    probe.CopyFrom(written)
    value = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    probe.graph.output.append(value)
    got = measure.outputs(probe, held)[node.output[0]]
    assert np.allclose(got, back[held["ids"]], atol=1e-6)


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "portable"])
def test_no_tables_of_4_bits_where_none_are_gathered(target, tmp_path):
    _, _, report, _ = quantized("float", tmp_path, "--embeddings", "int4", "--target", target)
    assert report["embeddings"] is None
    assert [note for note in report["notes"] if "embedding tables stay in float" in note]


def test_dequantize_gives_the_tables_back(tmp_path):
    model, held, _, _ = quantized("float", tmp_path, "--embeddings", "int8")
    run = run_tool("dequantize", tmp_path / "out.onnx", tmp_path / "float.onnx")
    assert run.returncode == 0, run.stderr
    result = onnx.load(tmp_path / "float.onnx")
    assert tables(result) == [("FLOAT", 512), ("FLOAT", V)]
    assert [n.op_type for n in result.graph.node].count("Gather") == 2
    words = [numpy_helper.to_array(i) for i in result.graph.initializer if list(i.dims) == [V, C]][0]
    original = numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == "words"))
    assert np.abs(words - original).max() <= np.abs(original).max() / 127


def test_verify_compares_what_has_tables_in_8_bits(tmp_path):
    quantized("float", tmp_path, "--embeddings", "int8")
    run = run_tool("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz")
    assert run.returncode == 0, run.stderr
