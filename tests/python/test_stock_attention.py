"""torch's own attention: the norm before a Transpose takes the affine, and its other readers get the exact inverse."""

import json

import numpy as np
import onnx
import measure
import stock_attention
from conftest import run_tool


def quantized(model, x, folder, *options):
    onnx.save(model, folder / "in.onnx")
    np.savez(folder / "calib.npz", x=x[:24])
    paths = folder / "in.onnx", folder / "out.onnx", "--calib", folder / "calib.npz", "--force"
    run = run_tool(*paths, "--report", folder / "report.json", *options)
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "report.json").read_text())


NORM = "/layers.0/norm2/LayerNormalization"


def projection(report):
    """The site of the second layer's projections. SmoothQuant folds wherever it can, so that it shows where that is."""
    return next(site for site in report["sites"] if site["linears"] == ["/layers.1/self_attn/in_proj/MatMul"])


def test_norms_before_a_transpose_take_the_affine(tmp_path):
    model, x = stock_attention.encoder()
    report = quantized(model, x, tmp_path, "--method", "smoothquant")
    assert projection(report)["value"] == f"{NORM}_output_0" and projection(report)["sink"] == NORM
    assert report["float_check"]["max_relative_error"] < 1e-5
    reference = measure.outputs(model, {"x": x[24:]})["y"]
    smoothed = measure.sqnr(reference, measure.outputs(tmp_path / "out.onnx", {"x": x[24:]})["y"])
    report = quantized(model, x, tmp_path)
    assert projection(report)["loss"] == "attention output"
    assert measure.sqnr(reference, measure.outputs(tmp_path / "out.onnx", {"x": x[24:]})["y"]) > smoothed - 0.5


def test_a_transpose_that_others_read_stays(tmp_path):
    """Neighbour: the transposed value is an output too, so the projection gets a Transpose of its own."""
    model, x = stock_attention.encoder()
    transpose = next(n for n in model.graph.node if n.name == "/layers.1/self_attn/Transpose")
    add = onnx.helper.make_node("Relu", [transpose.output[0]], ["second"], "/second")
    model.graph.node.insert(len(model.graph.node) - 1, add)
    model.graph.output.append(onnx.ValueInfoProto(name="second"))
    report = quantized(model, x, tmp_path, "--format", "float", "--method", "smoothquant")
    assert projection(report)["sink"] == NORM
    results = (measure.outputs(path, {"x": x[24:]}) for path in (model, tmp_path / "out.onnx"))
    for a, b in zip(*(result.values() for result in results)):
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


def test_a_transpose_that_moves_the_channels_is_a_wall(tmp_path):
    """Neighbour: channels on another axis are no channels of the Linear behind."""
    model, x = stock_attention.encoder(layers=1, sequence=32)
    last = model.graph.node[-1]
    turned, product = "turned", "product"
    weight = onnx.numpy_helper.from_array(np.eye(32, dtype=np.float32), "turned.weight")
    model.graph.initializer.append(weight)
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("Transpose", [last.input[0]], [turned], "/turn", perm=[0, 2, 1]))
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("MatMul", [turned, "turned.weight"], [product], "/product"))
    last.input[0] = product
    report = quantized(model, x, tmp_path)
    site = next(site for site in report["sites"] if site["linears"] == ["/product"])
    assert site["value"] == turned
