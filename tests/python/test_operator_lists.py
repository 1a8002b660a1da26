"""Which operators TensorRT and OpenVINO have (src/target/lint/operators.rs), as they answer when asked for each."""

import io
import re

import onnx
import onnx.defs
import openvino
import pytest
import tensorrt_rtx_bindings as tensorrt
from conftest import ROOT
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state

NEWEST = onnx.defs.onnx_opset_version()
STANDARD = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
MICROSOFT = {s.name for s in onnxruntime_pybind11_state.get_all_operator_schema() if s.domain == "com.microsoft"}
# The parser takes the first for that of ONNX; the plug-in of the second is not in the library.
TENSORRT_EXCEPT = {"Attention", "GroupQueryAttention"}
# Become tensors before OpenVINO asks for rules.
SEQUENCES = {"ConcatFromSequence", "SequenceConstruct", "SequenceInsert", "SequenceLength", "SplitToSequence"}


def listed(name):
    text = (ROOT / "src" / "target" / "lint" / "operators.rs").read_text()
    return set(re.findall(r"op::(\w+),", re.search(rf"const {name}:[^=]*= \[(.*?)\];", text, re.S)[1]))


@pytest.fixture(scope="module")
def tensorrt_has():
    log = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(log)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, log)
    yield parser.supports_operator  # log, builder and network must live as long


def openvino_has(name, domain=""):
    """Whether a rule is found for one node; what else is wrong with it is told later than that."""
    # Some rules of com.microsoft read inputs without asking whether they are there.
    inputs, outputs = 12, 4
    if not domain:
        schema = onnx.defs.get_schema(name)
        inputs, outputs = max(1, schema.min_input), schema.min_output
    node = helper.make_node(name, ["x"] * inputs, ["y", *(f"y{i}" for i in range(1, outputs))], domain=domain)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", NEWEST), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets)
    try:
        openvino.Core().read_model(io.BytesIO(model.SerializeToString()))
    except RuntimeError as error:
        return "No conversion rule found" not in str(error)
    return True


def test_what_tensorrt_lacks(tensorrt_has):
    assert listed("TENSORRT_LACKS") == {name for name in STANDARD if not tensorrt_has(name)}


def test_what_tensorrt_has_of_microsoft(tensorrt_has):
    assert listed("TENSORRT_MICROSOFT") == {name for name in MICROSOFT if tensorrt_has(name)} - TENSORRT_EXCEPT


def test_what_openvino_lacks():
    assert listed("OPENVINO_LACKS") == {name for name in STANDARD if not openvino_has(name)} - SEQUENCES


def test_what_openvino_has_of_microsoft():
    assert listed("OPENVINO_MICROSOFT") == {name for name in MICROSOFT if openvino_has(name, "com.microsoft")}
