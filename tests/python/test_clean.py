"""`--clean` makes TensorRT take what exporters leave behind, and nothing else of the file changes."""

import json

import lint_runtimes as rt
import numpy as np
import onnx
import pytest
from architectures import CALIBRATION, FOLDER, ROWS, feeds_of
from conftest import run_tool
from onnx import TensorProto, helper, numpy_helper

# Raw exports of torch that the parser refuses: sequences in place of a Split, axes behind a Reshape.
RAW = ["gpt2-raw18-eager", "llama-raw18-eager"]


def quantize(model, row, folder, *options):
    given, calib, report = folder / "in.onnx", folder / "calib.npz", folder / "report.json"
    onnx.save(model, given)
    np.savez(calib, **feeds_of(row, model, *CALIBRATION))
    out = folder / "out.onnx"
    done = run_tool(given, out, "--calib", calib, "--no-layers", "--report", report, "--force", *options)
    assert done.returncode == 0, done.stderr
    return onnx.load(out), json.loads(report.read_text()), done.stdout


def littered():
    """A BERT with a Dropout in training mode, unread outputs of its norms, a node and a constant that nothing reads."""
    row = ROWS["bert-script17-eager"]
    model = onnx.load(FOLDER / row["file"])
    graph = model.graph
    norms = [n for n in graph.node if n.op_type == "LayerNormalization"]
    for i, norm in enumerate(norms):
        norm.output.extend([f"mean_{i}", f"deviation_{i}"])
    first = norms[0]
    kept, first.output[0] = first.output[0], "before_dropout"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(0.1), "ratio"),
            numpy_helper.from_array(np.array(True), "training"),
            helper.make_tensor("unread_constant", TensorProto.INT16, [2], [1, 2]),
            numpy_helper.from_array(np.array([1, 2], np.uint8), "unread_bits"),
        ]
    )
    at = list(graph.node).index(first) + 1
    graph.node.insert(at, helper.make_node("Dropout", ["before_dropout", "ratio", "training"], [kept], name="dropout"))
    graph.node.append(helper.make_node("BitShift", ["unread_bits", "unread_bits"], ["unread"], name="unread_node", direction="LEFT"))
    onnx.checker.check_model(model)
    return model, row


def test_without_clean_the_findings_are_warnings(tmp_path):
    model, row = littered()
    out, report, text = quantize(model, row, tmp_path, "--target", "tensorrt")
    rules = {f["rule"] for f in report["lint"]}
    assert rules == {"T10-dropout", "T10-outputs", "T10-operator", "T10-constant"}
    assert "`clean`" in text and "--clean" in text and report["cleaned"] == []
    assert rt.trt_parse(out)[0] is None


def test_clean_makes_tensorrt_take_it(tmp_path):
    model, row = littered()
    out, report, text = quantize(model, row, tmp_path, "--target", "tensorrt", "--clean")
    assert report["lint"] == [] and "cleaned" in text
    assert any("dropout" in reason for reason in report["cleaned"])
    network, errors = rt.trt_parse(out)
    assert network is not None, errors
    onnx.checker.check_model(out, full_check=True)
    names = {n.name for n in out.graph.node} | {t.name for t in out.graph.initializer}
    assert not names & {"dropout", "unread_node", "unread_constant", "unread_bits", "training"}
    # What was not litter is as without it.
    plain, _, _ = quantize(onnx.load(FOLDER / row["file"]), row, tmp_path, "--target", "tensorrt")
    assert [n.op_type for n in out.graph.node] == [n.op_type for n in plain.graph.node]


@pytest.mark.parametrize("name", RAW)
def test_clean_makes_tensorrt_take_raw_exports(name, tmp_path):
    row = ROWS[name]
    model = onnx.load(FOLDER / row["file"])
    assert rt.trt_parse(model)[0] is None
    out, report, _ = quantize(model, row, tmp_path, "--target", "tensorrt", "--clean")
    assert report["lint"] == [] and report["cleaned"]
    network, errors = rt.trt_parse(out)
    assert network is not None, errors


def test_a_clean_file_is_left_alone(tmp_path):
    row = ROWS["bert-script17-eager"]
    model = onnx.load(FOLDER / row["file"])
    plain, _, _ = quantize(model, row, tmp_path, "--target", "tensorrt")
    cleaned, report, _ = quantize(model, row, tmp_path, "--target", "tensorrt", "--clean")
    assert report["cleaned"] == [] and cleaned.graph == plain.graph
