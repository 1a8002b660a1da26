"""Int8 attention: what the tool writes for `--attention`, and what the three runtimes make of it.

The models are pre-LN encoders with heads of 32 channels, written by hand in the forms of the exporters: with the scale
behind Q Kᵀ ("eager"), with half of it on either side and a guard against NaN ("sdpa"), with rotary embedding ("rotary").
Every third row is padded, and the embedding of the padding token is a hundred times larger than any other.
"""

import json
import subprocess
import sys

import measure
import numpy as np
import onnx
import openvino
import pytest
from conftest import run_tool
from onnx import TensorProto, helper, numpy_helper

HEADS, HEAD, TOKENS, VOCABULARY, LAYERS = 2, 32, 16, 64, 2
HIDDEN = HEADS * HEAD
PADDING = 0


class Graph:
    """A graph under construction; `op` gives the name of the node's output, which is the node's name too."""

    def __init__(self):
        self.nodes, self.constants, self.random = [], [], np.random.RandomState(0)

    def constant(self, array):
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def float(self, *shape, factor=1.0):
        return self.constant((self.random.standard_normal(shape) * factor).astype(np.float32))

    def scalar(self, x):
        return self.constant(np.float32(x))

    def op(self, op, *inputs, **attributes):
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def linear(self, x):
        weight = self.float(HIDDEN, HIDDEN, factor=HIDDEN**-0.5)
        return self.op("Add", self.op("MatMul", x, weight), self.float(HIDDEN, factor=0.1))


def rotated(g, x):
    """Rotary embedding, as LLaMA's exports have it."""
    angles = np.outer(np.arange(TOKENS), 1.0 / 100 ** (np.arange(HEAD // 2) / (HEAD // 2)))
    cos, sin = (g.constant(np.tile(f(angles), 2).astype(np.float32)) for f in (np.cos, np.sin))

    def part(low, high):
        return g.op("Slice", x, *(g.constant([i]) for i in (low, high, -1)))

    turned = g.op("Concat", g.op("Neg", part(HEAD // 2, HEAD)), part(0, HEAD // 2), axis=-1)
    return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))


def encoder(form, spoiled=None, low=-1e4):
    """spoiled: the layer whose keys have one channel that is huge, and that no query looks at. low: what masks."""
    g = Graph()
    table = g.random.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    table[PADDING] *= 100
    mask = g.op("Cast", g.op("Unsqueeze", "attention_mask", g.constant([1, 2])), to=TensorProto.BOOL)
    mask = g.op("Where", mask, g.scalar(0), g.scalar(low))
    x = g.op("Gather", g.constant(table), "input_ids")
    for layer in range(LAYERS):
        n = x if layer == 0 else g.op("LayerNormalization", x, g.constant(np.ones(HIDDEN, np.float32)), axis=-1)
        heads = [g.op("Reshape", g.linear(n), g.constant([0, 0, HEADS, HEAD])) for _ in range(3)]
        if layer == spoiled:
            huge, none = np.ones(HEAD, np.float32), np.ones(HEAD, np.float32)
            huge[3], none[3] = 3e5, 0
            heads[:2] = g.op("Mul", heads[0], g.constant(none)), g.op("Mul", heads[1], g.constant(huge))
        if form == "rotary":
            q, k, v = (g.op("Transpose", h, perm=[0, 2, 1, 3]) for h in heads)
            q, k = rotated(g, q), g.op("Transpose", rotated(g, k), perm=[0, 1, 3, 2])
        else:
            q, v = (g.op("Transpose", h, perm=[0, 2, 1, 3]) for h in (heads[0], heads[2]))
            k = g.op("Transpose", heads[1], perm=[0, 2, 3, 1])
        if form == "sdpa":
            scores = g.op("MatMul", *(g.op("Mul", side, g.scalar(HEAD**-0.25)) for side in (q, k)))
        else:
            scores = g.op("Div", g.op("MatMul", q, k), g.scalar(HEAD**0.5))
        p = g.op("Softmax", g.op("Add", scores, mask), axis=-1)
        if form == "sdpa":
            p = g.op("Where", g.op("IsNaN", p), g.scalar(0), p)
        joined = g.op("Reshape", g.op("Transpose", g.op("MatMul", p, v), perm=[0, 2, 1, 3]), g.constant([0, 0, HIDDEN]))
        x = g.op("Add", x, g.linear(joined))
    g.nodes.append(helper.make_node("Identity", [x], ["hidden"]))
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    outputs = [info("hidden", TensorProto.FLOAT, ["batch", "sequence", HIDDEN])]
    graph = helper.make_graph(g.nodes, "encoder", inputs, outputs, g.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def data(seed=0, rows=24):
    random = np.random.RandomState(seed)
    mask = np.ones((rows, TOKENS), np.int64)
    mask[::3, 11:] = 0
    ids = np.where(mask == 1, random.randint(1, VOCABULARY, mask.shape), PADDING)
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask}


@pytest.fixture(scope="session")
def quantized(tmp_path_factory):
    """quantized(FORM, options…, model=…, feeds=…) → (path of the float model, of the result, report, stdout)."""
    done = {}

    def run(form, *options, feeds=None, **model):
        key = (form, options, tuple(model.items()), feeds is None)
        if key not in done:
            folder = tmp_path_factory.mktemp(form)
            original, out, report = (folder / name for name in ("in.onnx", "out.onnx", "report.json"))
            onnx.save(encoder(form, **model), original)
            np.savez(folder / "calib.npz", **(feeds or data()))
            arguments = ("--calib", folder / "calib.npz", "--no-layers", "--report", report, *options)
            result = run_tool(original, out, *arguments)
            assert result.returncode == 0, result.stderr
            done[key] = original, out, json.loads(report.read_text()), result.stdout
        return done[key]

    return run


def sqnr(original, out):
    feeds = data(seed=1)
    real = feeds["attention_mask"].astype(bool)
    return measure.sqnr(*(measure.outputs(path, feeds)["hidden"][real] for path in (original, out)))


FORMS = ["eager", "sdpa", "rotary"]


@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("form", FORMS)
def test_onnx_runtime_fuses_both_products(form, target, quantized, optimized):
    original, out, report, stdout = quantized(form, "--target", target, "--attention", "int8")
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert [a["status"] for a in report["attention"]] == ["int8"] * LAYERS
    assert f"attention  {LAYERS} found, {LAYERS} in int8: outputs" in stdout
    counts = measure.op_counts(optimized(out))
    assert counts["MatMulIntegerToFloat"] + counts["QLinearMatMul"] == LAYERS * (4 + 2)
    assert counts["MatMul"] == counts["FusedMatMul"] == counts["Gemm"] == 0
    assert sqnr(original, out) > 25


@pytest.mark.parametrize("attention, expected", [("int8", "i8"), ("float", "f32")])
@pytest.mark.parametrize("form", FORMS)
def test_openvino_runs_attention_in_int8(form, attention, expected, quantized):
    """OpenVINO makes one layer of Q Kᵀ, softmax and P V, unless a guard stands between; it runs in int8 if all of its
    operands are."""
    _, out, _, _ = quantized(form, "--target", "openvino", "--attention", attention)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(str(out), "CPU", options)
    linears, softmaxes = [], []
    for layer in compiled.get_runtime_model().get_ops():
        info = {key: layer.rt_info[key].astype(str) for key in ("layerType", "runtimePrecision", "originalLayersNames")}
        if info["layerType"] == "FullyConnected":
            linears.append(info["runtimePrecision"])
        elif "Softmax" in info["originalLayersNames"]:
            softmaxes.append(info["runtimePrecision"])
            fused = "MatMul" in info["originalLayersNames"]
            assert fused or (form, attention) == ("sdpa", "float")
        else:
            assert info["layerType"] != "MatMul" or (form, attention) == ("sdpa", "float")
    assert linears == ["i8"] * 4 * LAYERS
    assert softmaxes == [expected] * LAYERS


# TensorRT-RTX takes the first logger of a process for all, so each engine is built in a process of its own.
ENGINE = """
import re, sys
import tensorrt_rtx_bindings as tensorrt
log = tensorrt.Logger(tensorrt.Logger.ERROR)
builder = tensorrt.Builder(log)
network = builder.create_network(0)
parser = tensorrt.OnnxParser(network, log)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(tensorrt.ComputeCapability.SM86, 0)
profile = builder.create_optimization_profile()
for i in range(network.num_inputs):
    profile.set_shape(network.get_input(i).name, *[(2, int(sys.argv[2]))] * 3)
config.add_optimization_profile(profile)
engine = builder.build_serialized_network(network, config)
if engine is None:
    sys.exit("no engine")
print(len(set(re.findall(rb"_gemm_mha_v2_0x[0-9a-f]+", bytes(engine)))))
"""


def fused_attentions(path):
    """How many fused attention kernels TensorRT-RTX has in the engine of a file."""
    result = subprocess.run([sys.executable, "-c", ENGINE, str(path), str(TOKENS)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.parametrize("form", FORMS)
def test_tensorrt_forms_its_fused_kernel(form, quantized):
    _, out, report, _ = quantized(form, "--target", "tensorrt")
    assert [a["status"] for a in report["attention"]] == ["int8"] * LAYERS, report["attention"]
    assert fused_attentions(out) == LAYERS


def test_without_q_dq_on_attention_tensorrt_does_not(quantized):
    """What the option is for."""
    _, out, report, _ = quantized("eager", "--target", "tensorrt", "--attention", "float")
    assert [a["reason"] for a in report["attention"]] == ["attention float was asked for"] * LAYERS
    assert fused_attentions(out) == 0


def test_the_guard_goes_where_it_stops_the_runtime(quantized):
    for target, guards, said in [("tensorrt", 0, "dropped"), ("openvino", 0, "dropped"), ("portable", LAYERS, "kept")]:
        _, out, report, _ = quantized("sdpa", "--target", target, "--attention", "int8")
        assert measure.op_counts(onnx.load(out))["IsNaN"] == guards
        assert [a["nan_guard"] for a in report["attention"]] == [said] * LAYERS


def test_the_guard_stays_where_a_row_has_no_key(quantized):
    feeds = data()
    feeds["attention_mask"][4] = 0
    _, out, report, _ = quantized("sdpa", "--target", "tensorrt", feeds=feeds, low=-np.inf)
    for attention in report["attention"]:
        assert attention["status"] == "float"
        assert attention["reason"].startswith("some rows have no key at all")
    assert measure.op_counts(onnx.load(out))["IsNaN"] == LAYERS


def test_padding_sets_no_range(quantized):
    """The values are those of the float model to rounding; padding has a hundred times larger ones."""
    original, _, report, _ = quantized("eager", "--target", "portable", "--attention", "int8")
    model, feeds = onnx.load(original), data()
    real = feeds["attention_mask"].astype(bool)
    products = [n for n in model.graph.node if n.op_type == "MatMul" and "constant" not in n.input[1]]
    q, k = products[0].input
    captured = measure.capture(model, [q, k], feeds)
    for name, array in [("query", captured[q].transpose(0, 2, 1, 3)), ("key", captured[k].transpose(0, 3, 1, 2))]:
        low, high = report["attention"][0][name]
        calibrated = np.arange(len(real)) % 8 != 7  # every eighth row is held out
        values = array[calibrated][real[calibrated]]
        assert np.allclose([low, high], [values.min(), values.max()], rtol=0.05), name
        assert abs(array).max() > 10 * max(-low, high)
        node = next(n for n in onnx.load(report_path(quantized)).graph.node if n.name.endswith(f"{name}_QuantizeLinear"))
        scale = measure.constants(onnx.load(report_path(quantized)))[node.input[1]]
        assert np.isclose(scale, max(-low, high) / 127, rtol=1e-4)
    assert report["attention"][0]["probabilities"] == [0, 1]


def report_path(quantized):
    return quantized("eager", "--target", "portable", "--attention", "int8")[1]


@pytest.mark.parametrize("target", ["ort", "openvino", "portable"])
def test_off_by_default_where_it_does_not_pay(target, quantized):
    _, auto, report, stdout = quantized("eager", "--target", target)
    assert f"attention  {LAYERS} found, 0 in int8" in stdout
    assert all("costs more than it gains" in a["reason"] for a in report["attention"])
    assert report["attention_cost"] is None
    model = onnx.load(auto)
    made = measure.producers(model)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[0] in made:
            sides = [made[v].op_type == "DequantizeLinear" for v in node.input]
            assert all(sides) or not any(sides)


@pytest.mark.parametrize("mode", ["auto", "int8"])
def test_a_block_that_breaks_the_outputs_is_dropped(mode, quantized):
    original, out, report, stdout = quantized("eager", "--target", "tensorrt", "--attention", mode, spoiled=1)
    first, second = report["attention"]
    assert (first["status"], second["status"]) == ("int8", "float")
    assert second["reason"].startswith("dropped after validation: all in int8 give")
    assert f"attention  {LAYERS} found, 1 in int8" in stdout and "float: dropped after validation" in stdout
    cost = report["attention_cost"]
    assert cost["int8_sqnr_db"] == pytest.approx(report["outputs"]["hidden"]["sqnr_db"])
    assert sqnr(original, out) == pytest.approx(cost["int8_sqnr_db"], abs=2)


def test_exclude_leaves_an_attention_alone(quantized):
    first = [n.name for n in encoder("eager").graph.node if n.op_type == "MatMul"][3]
    _, _, report, _ = quantized("eager", "--target", "portable", "--attention", "int8", "--exclude", f"^{first}$")
    assert [a["status"] for a in report["attention"]] == ["float", "int8"]
    assert report["attention"][0]["reason"] == "its name matches `exclude`"


def test_minilm_with_int8_attention(l6, job, optimized):
    result = job(l6["fused"], "--target", "portable", "--attention", "int8")
    counts = measure.op_counts(optimized(result.path))
    assert counts["MatMulIntegerToFloat"] + counts["QLinearMatMul"] == 36 + 12
    assert measure.heldout_sqnr(result.case, result.path) >= 19


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("left, right, causal", [(2, -1, 1), (1, 2, 0), (-1, 1, 0)])
def test_windows_are_masks(tmp_path, left, right, causal, past):
    """`left_window_size` and `right_window_size` (opset 25) when the tool runs the model, against the same as a mask."""
    length, depth = 6, 4
    row, column = np.arange(length)[:, None] + past, np.arange(length + past)[None]
    seen = (column <= row) if causal else np.ones((length, length + past), bool)
    seen &= (left < 0) | (column >= row - left)
    seen &= (right < 0) | (column <= row + right)

    def attention(path, opset, mask, **attributes):
        inputs = {name: ["b", 2, length, depth] for name in "qkv"}
        nodes, optional = [], ["mask"] if mask is not None else [""]
        if past:
            inputs |= {name: ["b", 2, past, depth] for name in ("pk", "pv")}
            optional += ["pk", "pv"]
        outputs = ["y", "k2", "v2"] if past else ["y"]
        nodes.append(helper.make_node("Attention", ["q", "k", "v", *optional], outputs, **attributes))
        info = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
        constants = [] if mask is None else [numpy_helper.from_array(mask, "mask")]
        graph = helper.make_graph(nodes, "g", [info(*item) for item in inputs.items()], [info("y", None)], constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11), path)
        return inputs

    inputs = attention(tmp_path / "window.onnx", 25, None, left_window_size=left, right_window_size=right, is_causal=causal)
    attention(tmp_path / "mask.onnx", 24, np.where(seen, 0, -1e30).astype(np.float32))
    attention(tmp_path / "all.onnx", 24, None, is_causal=causal)
    random = np.random.default_rng(5)
    data = {name: random.normal(size=(8, *shape[1:])).astype(np.float32) for name, shape in inputs.items()}
    np.savez(tmp_path / "data.npz", **data)

    def sqnr(other):
        result = run_tool("verify", tmp_path / "window.onnx", tmp_path / other, "--calib", tmp_path / "data.npz", "--json", "-")
        assert result.returncode == 0, result.stderr
        [told] = [output["sqnr_db"] for output in json.loads(result.stdout)["outputs"] if output["name"] == "y"]
        return np.inf if told is None else told

    assert sqnr("mask.onnx") > 100 and sqnr("all.onnx") < 30
    run = lambda name: measure.outputs(tmp_path / name, data)["y"]  # noqa: E731
    assert measure.sqnr(run("window.onnx"), run("mask.onnx")) > 100, "ONNX Runtime reads them so too"
