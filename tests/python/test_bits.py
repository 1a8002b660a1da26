"""Every width, exactly: what ONNX Runtime computes at each Linear is the b-bit quantization that numpy defines."""

import json

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import run_tool
from measure import constants, op_counts, optimized_model, outputs, producers, sqnr
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

K, HIDDEN, N = 23, 19, 15  # odd, so that the last byte of a 4-bit weight is half empty
FLOATS = {
    "float32": (np.float32, TensorProto.FLOAT),
    "float16": (np.float16, TensorProto.FLOAT16),
    "bfloat16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
    "float64": (np.float64, TensorProto.DOUBLE),
}


def layers(opset, dtype="float32", norm=1.0, up=1.0, down=1.0):
    """A norm with outlier channels; MatMul + Add, Relu, MatMul; over rank 2 two forms of Gemm, and MatMul + Add.

    norm, up and down are factors of what the norm gives and of two weights.
    """
    array_type, elem_type = FLOATS[dtype]
    random = np.random.default_rng(5)
    gamma = random.uniform(0.5, 1.5, K)
    gamma[[3, 11]] = 30
    made = {
        "gamma": gamma,
        "beta": random.normal(size=K),
        "w1": random.normal(size=(K, HIDDEN)) * random.uniform(0.1, 2, HIDDEN),
        "b1": random.normal(size=HIDDEN),
        "w2": random.normal(size=(HIDDEN, N)),
        "w3": random.normal(size=(N, K)),
        "b3": random.normal(size=N),
        "w4": random.normal(size=(K, N)),
        "w5": random.normal(size=(K, N)),
        "b5": random.normal(size=N),
    }
    made["w2"][:, 4] = 0  # a column without an extent
    for name, factor in {"gamma": norm, "beta": norm, "w1": up, "w2": down}.items():
        made[name] = made[name] * factor
    made = {name: array.astype(array_type) for name, array in made.items()} | {"rows": np.array([-1, K], np.int64)}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "w1"], ["h0"], "up"),
        helper.make_node("Add", ["h0", "b1"], ["h1"], "up_bias"),
        helper.make_node("Relu", ["h1"], ["h2"], "act"),
        helper.make_node("MatMul", ["h2", "w2"], ["y1"], "down"),
        helper.make_node("Reshape", ["n", "rows"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y2"], "head", transB=1),
        helper.make_node("Gemm", ["flat", "w4"], ["y3"], "head2", alpha=0.5),
        helper.make_node("MatMul", ["flat", "w5"], ["p4"], "head3"),
        helper.make_node("Add", ["b5", "p4"], ["y4"], "head3_bias"),
    ]
    info = lambda name, *shape: helper.make_tensor_value_info(name, elem_type, shape)  # noqa: E731
    graph = helper.make_graph(
        nodes,
        "layers",
        [info("x", "b", "s", K)],
        [info("y1", "b", "s", N), *(info(y, "t", N) for y in ("y2", "y3", "y4"))],
        [numpy_helper.from_array(array, name) for name, array in made.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset >= 21 else 8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="session")
def quantized(tmp_path_factory):
    """quantized(opset, dtype, options…) → (the model as given, the model as written, the report)."""
    done = {}

    def run(opset, dtype, *options, **factors):
        key = (opset, dtype, *map(str, options), *factors.items())
        if key not in done:
            folder = tmp_path_factory.mktemp("layers")
            given, calib = folder / "in.onnx", folder / "x.npy"
            onnx.save(layers(opset, dtype, **factors), given)
            x = np.random.default_rng(6).normal(size=(16, 6, K))
            np.save(calib, x.astype({"float16": np.float16, "float64": np.float64}.get(dtype, np.float32)))
            out, report = folder / "out.onnx", folder / "report.json"
            result = run_tool(given, out, "--calib", calib, "--no-layers", "--report", report, *options)
            assert result.returncode == 0, result.stderr
            onnx.checker.check_model(str(out), full_check=True)
            done[key] = onnx.load(given), onnx.load(out), json.loads(report.read_text())
        return done[key]

    return run


def linears(model):
    """(name of the product, the nodes from its float input to it, the QuantizeLinear, weight DequantizeLinear)."""
    made_by = producers(model)
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            dq, weight = made_by[node.input[0]], made_by[node.input[1]]
            yield node, made_by[dq.input[0]], dq, weight


def alone(model, node, source, ends):
    """The nodes between the value `source` and `node`, as a model from `x` in float32 that shows the values `ends`."""
    made_by, wanted, names = producers(model), [node.output[0], *ends], set()
    while wanted:
        name = wanted.pop()
        if name in made_by and name != source and name not in names:
            names.add(name)
            wanted += made_by[name].input
    nodes = [n for n in model.graph.node if set(n.output) & names]
    used = {i for n in nodes for i in n.input}
    elem_type = next(i for i in model.graph.initializer if i.name == "gamma").data_type
    nodes.insert(0, helper.make_node("Cast", ["x"], [source], to=elem_type))
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * (2 if node.op_type == "Gemm" else 3))
    outputs = [onnx.ValueInfoProto(name=name) for name in (node.output[0], *ends)]
    weights = [i for i in model.graph.initializer if i.name in used]
    graph = helper.make_graph(nodes, "alone", [info], outputs, weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 9))


def execute(model, x):
    """{how: outputs} by ONNX Runtime without and with its optimizations, and by onnx.reference."""
    results = {}
    for how, level in (("plain", "ORT_DISABLE_ALL"), ("optimized", "ORT_ENABLE_ALL")):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results[how] = session.run(None, {"x": x})
    # onnx.reference has QuantizeLinear from opset 19 on; for int8 and uint8 it means what it meant before.
    standard = onnx.ModelProto()
    standard.CopyFrom(model)
    for opset in standard.opset_import:
        opset.version = max(opset.version, 19)
    results["reference"] = ReferenceEvaluator(standard).run(None, {"x": x})
    return results


def check_exact(given, model, bits, target, per_channel, effective):
    """The integers bit for bit, the products to the rounding of float32."""
    weight_bits, activation_bits = bits
    symmetric, int4 = target != "ort", target == "ort"
    consts, made_by = constants(model), producers(model)
    low, high = (-(2 ** (activation_bits - 1)), 2 ** (activation_bits - 1) - 1) if symmetric else (0, 2**activation_bits - 1)
    top = 2 ** (weight_bits - 1) - 1
    found = list(linears(model))
    assert len(found) == 5
    for node, quantize, dq, weight in found:
        # Weights: integers and scale from their definition, on the effective weight of the Linear.
        w = effective(node)
        extreme = np.abs(w).max(axis=0) if per_channel else np.abs(w).max()
        # A column of zeros has the scale of the largest one: the bias beside it is in steps of it.
        scale = np.where(extreme == 0, extreme.max(), extreme).astype(np.float64) / top
        scale = np.where(scale == 0, 1, scale).astype(np.float32)
        expected = np.clip(np.rint(w / scale), -top, top)
        stored = weight.input[0]
        packed = stored not in consts
        if packed:
            assert made_by[stored].op_type == "Cast"
            stored = made_by[stored].input[0]
            assert consts[stored].dtype == ml_dtypes.int4
        else:
            assert consts[stored].dtype == np.int8
        assert packed == (int4 and weight_bits <= 4 and model.opset_import[0].version >= 21)
        integers = consts[stored].astype(np.int64)
        trans_b = any(a.name == "transB" and a.i for a in node.attribute)
        assert np.array_equal(integers.T if trans_b else integers, expected), node.name
        assert np.array_equal(consts[weight.input[1]], scale) and consts[weight.input[1]].shape == scale.shape
        axes = [a.i for a in weight.attribute if a.name == "axis"]
        assert axes == ([0 if trans_b else 1] if per_channel else [])

        # Activations: saturated well outside of the range that was calibrated.
        s, zero = consts[quantize.input[1]], int(consts[quantize.input[2]])
        assert low <= zero <= high and (zero == 0 or not symmetric)
        source = quantize.input[0]
        while source in made_by and made_by[source].op_type in ("Clip", "Cast"):
            source = made_by[source].input[0]
        x = steps(s, low - zero, high - zero, w.shape[0], 2 if node.op_type == "Gemm" else 3)
        x = x.astype(consts["gamma"].dtype).astype(np.float32)
        q = np.clip(np.rint(x / s) + zero, low, high)
        product = (q - zero) @ expected * (np.float64(s) * scale.astype(np.float64))
        if len(node.input) > 2 and node.input[2] in consts:
            product += consts[node.input[2]].astype(np.float64)
        elif len(node.input) > 2:
            bias = consts[made_by[node.input[2]].input[0]]
            product += bias.astype(np.float64) * (np.float64(s) * scale.astype(np.float64))
        piece = alone(model, node, source, [quantize.output[0], weight.output[0], dq.output[0]])
        for how, (y, got, dequantized, activation) in execute(piece, x).items():
            assert np.array_equal(got.astype(np.int64), q), (node.name, how)
            assert np.array_equal(activation, ((q - zero).astype(np.float32) * s)), (node.name, how)
            real = expected.astype(np.float32) * scale
            assert np.array_equal(dequantized, real.T if trans_b else real), (node.name, how)
            assert np.abs(y - product).max() <= 1e-6 * np.abs(product).max(), (node.name, how)
        # Without the other values shown, ONNX Runtime is free to fuse.
        for how, (y,) in execute(alone(model, node, source, []), x).items():
            assert np.abs(y - product).max() <= 1e-6 * np.abs(product).max(), (node.name, how)


def steps(scale, low, high, channels, rank):
    """Values around every step of the range and far beyond it, the borders between steps (ties) among them."""
    random = np.random.default_rng(7)
    x = random.uniform(low * 1.5 - 2, high * 1.5 + 2, (40, channels))
    x[:10] = np.rint(x[:10])
    x[10:20] = np.rint(x[10:20]) + 0.5
    x = (x * np.float64(scale)).astype(np.float32)
    x[20], x[21] = 6e4, -6e4
    return x if rank == 2 else x.reshape(4, 10, channels)


def effective_weights(model):
    """W: [K, N] of each Linear of a float model, by node name."""
    consts = constants(model)
    found = {}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            w = consts[node.input[1]].astype(np.float32)
            w = w.T if attributes.get("transB") else w
            found[node.name] = w * np.float32(attributes.get("alpha", 1.0))
    return found


WIDTHS = [(b, b) for b in range(2, 9)] + [(4, 8), (8, 4), (6, 8), (3, 7)]


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("target, opset", [("ort", 17), ("ort", 21), ("portable", 17), ("portable", 21), ("tensorrt", 21)])
@pytest.mark.parametrize("bits", WIDTHS, ids=lambda b: f"w{b[0]}a{b[1]}")
def test_every_width_is_executed_exactly(quantized, bits, target, opset, granularity):
    options = ["--target", target, "--weight-bits", bits[0], "--activation-bits", bits[1], "--weight-granularity", granularity]
    given, model, report = quantized(opset, "float32", *options, "--method", "none")
    assert report["settings"]["weight_granularity"] == granularity
    weights = effective_weights(given)
    check_exact(given, model, bits, target, granularity == "per-channel", lambda node: weights[node.name])


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4), (6, 6)], ids=lambda b: f"w{b[0]}a{b[1]}")
@pytest.mark.parametrize("dtype, granularity", [("float32", "per-channel"), ("float32", "per-tensor"), ("float16", "per-channel")])
@pytest.mark.parametrize("target, opset", [("ort", 17), ("ort", 21), ("portable", 17), ("portable", 21)])
def test_every_form_is_fused(quantized, target, opset, dtype, granularity, bits, tmp_path):
    """ONNX Runtime multiplies integers, whatever the width; INT4 becomes int8 when the file is loaded."""
    options = ["--target", target, "--weight-bits", bits[0], "--activation-bits", bits[1], "--weight-granularity", granularity]
    _, model, _ = quantized(opset, dtype, *options)
    onnx.save(model, tmp_path / "model.onnx")
    counts = op_counts(optimized_model(tmp_path / "model.onnx", tmp_path / "optimized.onnx"))
    assert counts["MatMulIntegerToFloat"] + counts["QGemm"] == 5 and counts["DequantizeLinear"] == 0, counts



def feed_forward(bias, relu, form):
    """Two Linears over rank 2, with or without a bias and a Relu between them."""
    random = np.random.default_rng(11)
    made = {"w1": random.normal(size=(K, HIDDEN)), "b1": random.normal(size=HIDDEN), "w2": random.normal(size=(HIDDEN, N))}
    if form == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", "w1", "b1"][: 2 + bias], ["h"], "up")]
    else:
        nodes = [helper.make_node("MatMul", ["x", "w1"], ["p" if bias else "h"], "up")]
        nodes += [helper.make_node("Add", ["p", "b1"], ["h"], "up_bias")] if bias else []
    nodes += [helper.make_node("Relu", ["h"], ["a"], "act")] if relu else []
    nodes.append(helper.make_node(form, [nodes[-1].output[0], "w2"], ["y"], "down"))
    info = lambda name, n: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["t", n])  # noqa: E731
    used = {i for node in nodes for i in node.input}
    initializers = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in made.items() if name in used]
    graph = helper.make_graph(nodes, "feed-forward", [info("x", K)], [info("y", N)], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("options", [[], ["--activation-bits", 6], ["--exclude", "down"]], ids=["8", "6", "down in float"])
@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("form", ["Gemm", "MatMul"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_clip_behind_a_gemm_keeps_it_from_nothing(tmp_path, bias, relu, form, target, options):
    """ONNX Runtime looks through Relu and Clip for a QuantizeLinear, and leaves the Gemm in float if that is of no use."""
    path, out, calib = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "x.npy"
    onnx.save(feed_forward(bias, relu, form), path)
    np.save(calib, np.random.default_rng(12).normal(size=(64, K)).astype(np.float32))
    result = run_tool(path, out, "--calib", calib, "--target", target, "--method", "none", *options)
    assert result.returncode == 0, result.stderr
    counts = op_counts(optimized_model(out, tmp_path / "optimized.onnx"))
    linears = 1 if "--exclude" in options else 2
    integer = counts["MatMulIntegerToFloat"] + counts["QGemm"] + counts["QLinearMatMul"]
    assert integer == linears and counts["DequantizeLinear"] <= 1, counts


# --- float16 and bfloat16 ---

HALF_WIDTHS = [(8, 8), (4, 4), (4, 8), (6, 6)]


@pytest.mark.parametrize("target, opset", [("ort", 17), ("ort", 21), ("portable", 17), ("tensorrt", 21)])
@pytest.mark.parametrize("bits", HALF_WIDTHS, ids=lambda b: f"w{b[0]}a{b[1]}")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_are_executed_exactly(quantized, dtype, bits, target, opset):
    options = ["--target", target, "--weight-bits", bits[0], "--activation-bits", bits[1]]
    given, model, _ = quantized(opset, dtype, *options, "--method", "none")
    weights = effective_weights(given)
    check_exact(given, model, bits, target, True, lambda node: weights[node.name])


@pytest.mark.parametrize("format", ["qdq", "float"])
@pytest.mark.parametrize("target", ["ort", "portable"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_16_bit_file_stays_one(quantized, dtype, target, format):
    """Only what belongs to an integer product is float32: its scales, the limits of its Clips."""
    given, model, report = quantized(17, dtype, "--target", target, "--format", format, "--activation-bits", 7)
    assert model.graph.input == given.graph.input and model.graph.output == given.graph.output
    parts = ("scale", "clip_min", "clip_max")
    wide = [n for n, a in constants(model).items() if a.dtype == np.float32 and not n.endswith(parts)]
    assert not wide
    counts = op_counts(model)
    assert counts["QuantizeLinear"] == 0 if format == "float" else counts["DequantizeLinear"] >= 5 + 2
    assert 0 < report["float_check"]["max_relative_error"] <= 1e-5
    rounded = report["float_check"]["rounded"]
    assert rounded["dtype"] == dtype.upper() and 0 < rounded["max_relative_error"] <= rounded["limit"] < 0.07


# Weights up to 6·10⁴ behind a norm that gives 10⁻⁴; weights of a few steps of the smallest float16.
EXTREMES = {"huge": {"norm": 1e-4, "up": 6e3}, "tiny": {"up": 3e-5, "down": 1e-6}, "both": {"norm": 1e-4, "up": 6e3, "down": 1e-6}}


@pytest.mark.parametrize("format", ["qdq", "float"])
@pytest.mark.parametrize("factors", EXTREMES.values(), ids=EXTREMES)
def test_float16_at_the_ends_of_its_range(quantized, factors, format):
    """Nothing overflows, nothing is lost: as good as the same layers in the middle of the range."""
    options = ["--target", "ort", "--format", format]
    given, model, report = quantized(17, "float16", *options, **factors)
    x = {"x": np.random.default_rng(8).normal(size=(8, 6, K)).astype(np.float16)}
    expected, got = outputs(given, x), outputs(model, x)
    assert all(np.isfinite(a).all() for a in got.values())
    for name in ("y2", "y3", "y4"):
        assert sqnr(expected[name], got[name]) >= 30, name
    ordinary = quantized(17, "float16", *options)[2]["outputs"]
    # No number stands for no error at all.
    decibels = lambda entry: np.inf if entry["sqnr_db"] is None else entry["sqnr_db"]  # noqa: E731
    for name, entry in report["outputs"].items():
        assert decibels(entry) >= min(decibels(ordinary[name]) - 3, 38), name


@pytest.mark.parametrize("format", ["qdq", "float"])
def test_what_float16_cannot_hold_is_left_unmigrated(quantized, format):
    """γ of one or two steps of the smallest float16 cannot be divided by 30; the rest of the job goes on."""
    _, _, report = quantized(17, "float16", "--format", format, norm=6e-8, up=6e3)
    assert any("not migrated at all" in note and "FLOAT16" in note for note in report["notes"]), report["notes"]
    assert all(site["sink"] is None for site in report["sites"])
    assert report["decision"] == "nothing_to_migrate"


def with_narrow_weights(dtype):
    """The layers in float32, each weight stored in 16 bits behind a Cast."""
    model = layers(17)
    for weight in [i for i in model.graph.initializer if len(i.dims) == 2]:
        narrow = numpy_helper.to_array(weight).astype(FLOATS[dtype][0])
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(narrow, f"{name}_stored"))
        model.graph.node.insert(0, helper.make_node("Cast", [f"{name}_stored"], [name], f"{name}_Cast", to=TensorProto.FLOAT))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("format", ["qdq", "float"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_stored_in_16_bits_stay_that_small(tmp_path, dtype, format):
    given, path, out, report = with_narrow_weights(dtype), tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "report.json"
    onnx.save(given, path)
    np.save(tmp_path / "x.npy", np.random.default_rng(6).normal(size=(16, 6, K)).astype(np.float32))
    result = run_tool(path, out, "--calib", tmp_path / "x.npy", "--no-layers", "--report", report, "--format", format)
    assert result.returncode == 0, result.stderr
    onnx.checker.check_model(str(out), full_check=True)
    model, feeds = onnx.load(out), {"x": np.random.default_rng(8).normal(size=(8, 6, K)).astype(np.float32)}
    matrices = [i.data_type for i in model.graph.initializer if len(i.dims) == 2 and min(i.dims) > 1]
    expected, got = outputs(path, feeds), outputs(out, feeds)
    if format == "qdq":
        assert matrices == [TensorProto.INT8] * 5
        assert op_counts(model)["Cast"] == 0
    else:
        assert matrices == [FLOATS[dtype][1]] * 5
        assert [n.name for n in given.graph.node if n.op_type == "Cast"] == [n.name for n in model.graph.node if n.op_type == "Cast"]
    assert all(sqnr(expected[name], got[name]) >= (35 if format == "qdq" or dtype == "bfloat16" else 55) for name in expected)
    rounded = json.loads(report.read_text())["float_check"]["rounded"]
    assert (rounded is None) if format == "qdq" else rounded["dtype"] == dtype.upper()


# --- models that have 4-bit numbers already ---


def with_int4(kind):
    """A norm, a Linear whose weight is INT4 already, and one in float: [2, 4, 32] → [2, 4, 32]."""
    random, k, n = np.random.default_rng(9), 32, 16
    made = {
        "gamma": random.uniform(1, 3, k).astype(np.float32),
        "beta": random.normal(size=k).astype(np.float32),
        "w2": random.normal(size=(n, k)).astype(np.float32),
        "w_scale": random.uniform(0.01, 0.03, (k // 16, n) if kind == "blocks" else n).astype(np.float32),
        "x_scale": np.array(0.2, np.float32),
    }
    int4 = {
        "w": ("INT4", random.integers(-8, 8, (k, n))),
        "w_zero": ("INT4", random.integers(-3, 3, (k // 16, n))),
        "x_zero": ("UINT4", np.array(7)),
    }
    attributes = {"axis": 0, "block_size": 16} if kind == "blocks" else {"axis": 1}
    weight = ["w", "w_scale", "w_zero"] if kind == "blocks" else ["w", "w_scale"]
    nodes = [helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], "norm")]
    if kind == "zero_point":
        nodes.append(helper.make_node("QuantizeLinear", ["n", "x_scale", "x_zero"], ["nq"], "quantize"))
        nodes.append(helper.make_node("DequantizeLinear", ["nq", "x_scale", "x_zero"], ["nd"], "dequantize"))
    elif kind == "output_dtype":
        nodes.append(helper.make_node("QuantizeLinear", ["n", "x_scale"], ["nq"], "quantize", output_dtype=TensorProto.INT4))
        nodes.append(helper.make_node("DequantizeLinear", ["nq", "x_scale"], ["nd"], "dequantize"))
    nodes += [
        helper.make_node("DequantizeLinear", weight, ["wd"], "weight", **attributes),
        helper.make_node("MatMul", [nodes[-1].output[0], "wd"], ["y"], "first"),
        helper.make_node("MatMul", ["y", "w2"], ["z"], "second"),
    ]
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", k])  # noqa: E731
    used = {i for node in nodes for i in node.input}
    initializers = [numpy_helper.from_array(a, name) for name, a in made.items() if name in used]
    for name, (dtype, array) in int4.items():
        if name in used:
            initializers.append(helper.make_tensor(name, getattr(TensorProto, dtype), array.shape, array.flatten()))
    graph = helper.make_graph(nodes, "with-int4", [info("x")], [info("z")], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("kind", ["columns", "blocks", "zero_point", "output_dtype"])
def test_4_bit_numbers_of_the_model_are_calibrated_and_kept(tmp_path, kind):
    given, path, out, report = with_int4(kind), tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "report.json"
    onnx.save(given, path)
    x = np.random.default_rng(10).normal(size=(8, 4, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    result = run_tool(path, out, "--calib", tmp_path / "x.npy", "--no-layers", "--report", report, "--batch", 1)
    assert result.returncode == 0, result.stderr
    made = onnx.load(out)
    for before in given.graph.initializer:
        if before.data_type in (TensorProto.INT4, TensorProto.UINT4):
            assert before in list(made.graph.initializer)
    names = {node.name for node in given.graph.node} - {"norm", "second"}
    assert [n for n in made.graph.node if n.name in names] == [n for n in given.graph.node if n.name in names]
    # The engine that calibrates saw the numbers of the standard. (ONNX Runtime itself turns some of these forms into
    # MatMulNBits, which rounds its input.)
    (site,) = [s for s in json.loads(report.read_text())["sites"] if s["value"] == "y"]
    calibrated = np.delete(x, np.s_[7::8], axis=0)
    given.graph.output.append(onnx.ValueInfoProto(name="y"))
    (y,) = ReferenceEvaluator(given).run(["y"], {"x": calibrated})
    assert site["range_before"] == pytest.approx([y.min(), y.max()], rel=1e-5)
