"""Scales per token and weights in groups, on the real runtimes: each form against its definition in numpy, the kernels that
runtimes make of it, and what it is for: no token is clipped, no Linear is left in float.
"""

import json

import architectures
import conftest
import fine_grained
import numpy as np
import onnx
import pytest
import runtimes
from conftest import run_tool
from decoders import data as decoder_data
from decoders import decoder, merged
from measure import op_counts, sqnr

SHAPES = {"x": (2, 6, fine_grained.K)}
FEED = np.random.default_rng(8).normal(size=SHAPES["x"]).astype(np.float32)
LINEARS = ["up", "down", "head", "head2", "head3", "head4"]
TARGETS = ["ort", "openvino", "tensorrt", "portable"]


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """written(target, opset, dtype, options…) → the path of the small model as the tool writes it, and the report."""
    done = {}

    def run(target, opset=17, dtype="float32", *options, **form):
        key = (target, opset, dtype, *options, *form.items())
        if key not in done:
            folder = tmp_path_factory.mktemp("fine")
            onnx.save(fine_grained.model(opset, dtype, **form), folder / "in.onnx")
            k = form.get("k", fine_grained.K)
            x = np.random.default_rng(6).normal(size=(16, 6, k))
            np.save(folder / "x.npy", x.astype(fine_grained.FLOATS[dtype][0]))
            out, report = folder / "out.onnx", folder / "report.json"
            arguments = ["--calib", folder / "x.npy", "--target", target, "--report", report, *options]
            result = run_tool(folder / "in.onnx", out, *arguments)
            assert result.returncode == 0, result.stderr
            onnx.checker.check_model(str(out), full_check=True)
            done[key] = out, json.loads(report.read_text())
        return done[key]

    return run


def original(path):
    return path.parent / "in.onnx"


def run_onnx_runtime(path, x=FEED, level="all"):
    session = runtimes.onnx_runtime_session(path, level)
    narrow = session.get_inputs()[0].type == "tensor(float16)"
    return session.run(None, {"x": x.astype(np.float16) if narrow else x})


def lowest(reference, got):
    pairs = zip(reference, got)
    return min(sqnr(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs)


# --- A scale per token ---


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_a_scale_per_token_by_definition(written, target, bits):
    pair = ("--weight-bits", str(bits), "--activation-bits", str(bits))
    path, report = written(target, 21, "float32", "--activation-granularity", "per-token", *pair)
    assert report["settings"]["activation_granularity"] == "per-token"
    assert not [line["name"] for line in report["linears"] if line["status"] != "quantized"]
    counts = op_counts(onnx.load(path))
    assert counts["ReduceMax"] == 4, "one for each value that Linears read"
    reference = fine_grained.execute(path, {"x": FEED})
    assert lowest(reference, run_onnx_runtime(path)) > 60
    assert lowest(run_onnx_runtime(original(path)), reference) > {8: 40, 6: 28, 4: 14}[bits]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_linear_with_a_scale_per_token_is_multiplied_in_integers(written, opset, dtype, tmp_path):
    path, _ = written("ort", opset, dtype, "--preset", "robust")
    integer, left = runtimes.products(runtimes.onnx_runtime_graph(path, tmp_path))
    assert (integer, left) == (len(LINEARS), [])


def test_openvino_and_tensorrt_multiply_in_integers_too(written):
    for target in ("openvino", "portable"):
        path, _ = written(target, 17, "float32", "--preset", "robust", "--max-slowdown", "0")
        compiled = runtimes.openvino_compile(path)
        layers = runtimes.openvino_layers(compiled)
        types = [layer.types[0] for layer in layers if layer.kind in ("FullyConnected", "MatMul")]
        assert types == ["i8"] * len(LINEARS)
        got = compiled({"x": FEED})
        assert lowest(run_onnx_runtime(path), [got[o] for o in compiled.outputs]) > 45
    for target in ("tensorrt", "portable"):
        path, _ = written(target, 17, "float32", "--preset", "robust", "--max-slowdown", "0")
        parsed = runtimes.tensorrt_parse(path)
        assert parsed.ok, parsed.errors
        engine, warnings = runtimes.tensorrt_layers(parsed, SHAPES, SHAPES)
        assert engine is not None, warnings
        assert [name for name in LINEARS if not runtimes.tensorrt_integer(engine, name)] == []


@pytest.mark.parametrize("act", ["Relu", "Silu", "Gelu", "Tanh"])
@pytest.mark.parametrize("opset", [13, 21])
def test_one_sided_tokens_have_few_integers_below_zero(written, act, opset, tmp_path):
    """Behind Relu, Silu and Gelu; what has two sides, and what a symmetric target gets, keeps as many below as above."""
    options = ("--preset", "robust", "--max-slowdown", "0")
    path, report = written("ort", opset, "float32", *options, act=act)
    below = {site["value"]: site["levels_below"] for site in report["sites"]}
    one_sided = act != "Tanh"
    assert (below.pop("h2") is not None) == one_sided
    assert set(below.values()) == {None}
    counts = op_counts(onnx.load(path))
    assert (counts["LeakyRelu"], counts["Abs"]) == ((1, 3) if one_sided else (0, 4))
    assert runtimes.products(runtimes.onnx_runtime_graph(path, tmp_path)) == (len(LINEARS), [])
    reference, got = run_onnx_runtime(original(path)), run_onnx_runtime(path)
    if opset == 21:  # of 13 numpy has no definition
        assert lowest(fine_grained.execute(path, {"x": FEED}), got) > 60
    # The other outputs do not read it; behind it there is nearly a bit more.
    both, _ = written("tensorrt", opset, "float32", *options, act=act)
    assert op_counts(onnx.load(both))["LeakyRelu"] == 0
    gain = sqnr(reference[0], got[0]) - sqnr(reference[0], run_onnx_runtime(both)[0])
    assert gain > (1 if one_sided else -1)
    text = run_tool("diff", original(path), path)
    assert "LeakyRelu" not in text.stdout, text.stdout
    back = tmp_path / "float.onnx"
    assert run_tool("dequantize", path, back).returncode == 0
    assert not {"LeakyRelu", "ReduceMax", "QuantizeLinear"} & set(op_counts(onnx.load(back)))
    # What is left is the error of the weights.
    assert lowest(reference, run_onnx_runtime(back)) > lowest(reference, got)


def test_no_one_sided_token_is_clipped(written):
    """A token of which calibration has seen nothing: what is below zero sets its scale."""
    path, report = written("ort", 17, "float32", "--preset", "robust", "--max-slowdown", "0", act="Silu")
    assert any(site["levels_below"] for site in report["sites"])
    x = FEED.copy()
    model = onnx.load(original(path))
    weight = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}["w1"]
    # Against most columns, so that Silu gives little else than what is below zero.
    x[0, 0] = -weight.sum(1)
    reference = run_onnx_runtime(original(path), x)
    assert sqnr(reference[0][0, 0], run_onnx_runtime(path, x)[0][0, 0]) > 30


def test_no_token_is_clipped(written):
    x = FEED.copy()
    # Behind a norm tokens have one size; before it they do not, so the norm's own gamma is what a constant range saw.
    x[0, 0] = 0
    x[0, 0, 3] = 1000
    static, _ = written("ort", 17, "float32")
    fine, _ = written("ort", 17, "float32", "--preset", "robust")
    reference = run_onnx_runtime(original(fine), x)
    per_token = lambda path: sqnr(reference[0][0, 0], run_onnx_runtime(path, x)[0][0, 0])  # noqa: E731
    assert per_token(fine) > 30
    assert per_token(fine) > per_token(static) + 10


# --- Weights in groups ---

GROUPS = [
    ("ort", 17, ("--preset", "llm")),
    ("ort", 17, ("--weight-only",)),
    ("ort", 17, ("--weight-only", "--weight-bits", "2", "--weight-granularity", "group:16")),
    ("ort", 17, ("--weight-only", "--weight-symmetry", "asymmetric", "--weight-bits", "4")),
    ("ort", 17, ("--weight-only", "--weight-symmetry", "symmetric", "--weight-bits", "4")),
    ("ort", 17, ("--weight-granularity", "group:64", "--weight-bits", "4")),
    ("ort", 17, ("--weight-only", "--activation-granularity", "float")),
    ("ort", 21, ("--weight-only", "--weight-bits", "4", "--format", "qdq")),
    ("openvino", 17, ("--preset", "llm")),
    ("openvino", 17, ("--weight-only",)),
    ("openvino", 21, ("--preset", "llm", "--format", "qdq")),
    ("tensorrt", 21, ("--preset", "llm")),
    ("portable", 21, ("--preset", "llm")),
    # Raised to the operator set that has blocks.
    ("ort", 17, ("--weight-only", "--weight-bits", "4", "--format", "qdq")),
    ("openvino", 17, ("--preset", "llm", "--format", "qdq")),
    ("tensorrt", 17, ("--preset", "llm")),
    ("portable", 13, ("--preset", "llm")),
    ("portable", 17, ("--preset", "llm")),
    ("portable", 18, ("--preset", "llm")),
    ("portable", 20, ("--preset", "llm")),
]


def group_id(case):
    target, opset, options = case
    return f"{target}-{opset}-{'-'.join(o.strip('-') for o in options)}"


def least(options):
    """What weights of so many bits have on this model at least, in dB."""
    if "--weight-bits" in options:
        return {"2": 8, "4": 20}[options[options.index("--weight-bits") + 1]]
    return 20 if "llm" in options else 38


@pytest.mark.parametrize("case", GROUPS, ids=group_id)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_in_groups_by_definition(written, case, dtype):
    target, opset, options = case
    path, report = written(target, opset, dtype, *options)
    assert not [line["name"] for line in report["linears"] if line["status"] != "quantized"]
    assert report["settings"]["weight_granularity"].startswith("group:")
    blocks = any(n.op_type == "DequantizeLinear" for n in onnx.load(path).graph.node)
    raised = blocks and opset < 21
    assert report["settings"]["opset"] == (21 if raised else opset)
    assert report["settings"]["opset_raised_from"] == (opset if raised else None)
    x = FEED.astype(fine_grained.FLOATS[dtype][0])
    reference = fine_grained.execute(path, {"x": x})
    # Where the file says nothing of activations, ONNX Runtime quantizes them all the same.
    silent = "qdq" in options or target in ("tensorrt", "portable")
    bound = {"float32": 60, "float16": 35}[dtype] if not silent else 33
    if "2" in options:
        # Its kernel for 2 bits rounds activations in another way.
        bound = min(bound, 40)
    assert lowest(reference, run_onnx_runtime(path)) > bound
    assert lowest(run_onnx_runtime(original(path)), reference) > least(options)


@pytest.mark.parametrize("case", GROUPS, ids=group_id)
def test_onnx_runtime_makes_one_kernel_of_a_weight_in_groups(written, case, tmp_path):
    target, opset, options = case
    path, _ = written(target, opset, "float32", *options)
    nodes = list(runtimes.all_nodes(runtimes.onnx_runtime_graph(path, tmp_path).graph))
    kernels = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert len(kernels) == len(LINEARS)
    level = {a.name: a.i for a in kernels[0].attribute}["accuracy_level"]
    assert level == (0 if "float" in options else 4)


@pytest.mark.parametrize("case", [c for c in GROUPS if c[0] in ("openvino", "portable")], ids=group_id)
def test_openvino_multiplies_compressed_weights(written, case):
    target, opset, options = case
    path, _ = written(target, opset, "float32", "--max-slowdown", "0", *options)
    compiled = runtimes.openvino_compile(path)
    layers = runtimes.openvino_layers(compiled)
    types = {layer.types[0] for layer in layers if layer.kind in ("FullyConnected", "MatMul")}
    expected = "i4" if target == "portable" else "u8" if "--weight-only" in options else "u4"
    assert types == {expected}
    got = compiled({"x": FEED})
    assert lowest(fine_grained.execute(path, {"x": FEED}), [got[o] for o in compiled.outputs]) > 33


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_tensorrt_takes_weights_in_groups(written, target, group):
    form = {"k": 128, "hidden": 256}
    path, _ = written(target, 21, "float32", "--preset", "llm", "--weight-granularity", f"group:{group}", **form)
    parsed = runtimes.tensorrt_parse(path)
    assert parsed.ok, parsed.errors
    shapes = {"x": (2, 6, 128)}
    engine, warnings = runtimes.tensorrt_layers(parsed, shapes, shapes)
    assert engine is not None, warnings


@pytest.mark.parametrize("case", [c for c in GROUPS if c[0] in ("tensorrt", "portable") and c[1] < 21], ids=group_id)
def test_tensorrt_takes_models_that_were_raised(written, case):
    target, opset, options = case
    path, _ = written(target, opset, "float32", *options)
    parsed = runtimes.tensorrt_parse(path)
    assert parsed.ok, parsed.errors
    engine, warnings = runtimes.tensorrt_layers(parsed, SHAPES, SHAPES)
    assert engine is not None, warnings


def test_an_ir_version_that_is_older_than_the_operator_set_is_raised(written):
    path, report = written("portable", 21, "float32", "--preset", "llm", ir=9)
    assert onnx.load(path).ir_version == 10
    assert report["settings"]["opset_raised_from"] is None
    assert runtimes.tensorrt_parse(path).ok


EXPORTS = [
    conftest.TINY_DECOMPOSED.model,
    conftest.MODELS / "architectures" / "bert-script17-eager-functions.onnx",
    conftest.MODELS / "architectures" / "llama-dynamo18-eager-past.onnx",
]


@pytest.mark.parametrize("original", EXPORTS, ids=lambda p: p.parent.name + "-" + p.stem)
def test_exports_are_raised_to_the_operator_set_that_has_blocks(tmp_path, original):
    """Written for all runtimes, loaded by all, and compared with the original by the tool, which is of another opset."""
    if original == conftest.TINY_DECOMPOSED.model:
        calib, heldout = conftest.TINY_DECOMPOSED.calib, conftest.TINY_DECOMPOSED.heldout
    else:
        row = architectures.ROWS[original.stem]
        calib, heldout = tmp_path / "calib.npz", tmp_path / "heldout.npz"
        for file, rows in ((calib, architectures.CALIBRATION), (heldout, architectures.HELD_OUT)):
            np.savez(file, **architectures.feeds_of(row, onnx.load(original), *rows))
    before = onnx.load(original).opset_import[0].version
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    options = ["--calib", calib, "--preset", "llm", "--target", "portable", "--report", report]
    result = run_tool(original, out, *options)
    assert result.returncode == 0, result.stderr
    told = json.loads(report.read_text())
    assert (told["settings"]["opset_raised_from"], told["settings"]["opset"]) == (before, 21)
    assert f"raised from {before} to 21" in result.stdout + result.stderr
    assert "quantized" in {line["status"] for line in told["linears"]}
    assert told["float_check"] is None or told["float_check"]["max_relative_error"] <= 1e-4
    onnx.checker.check_model(str(out), full_check=True)

    runtimes.onnx_runtime_session(out)
    runtimes.openvino_compile(out)
    parsed = runtimes.tensorrt_parse(out)
    assert parsed.ok, parsed.errors

    result = run_tool("verify", original, out, "--calib", heldout, "--json", "-")
    assert result.returncode == 0, result.stderr
    compared = json.loads(result.stdout)
    quantized = {line["name"] for line in told["linears"] if line["status"] == "quantized"}
    assert quantized <= {layer["name"] for layer in compared["layers"]}
    assert all(output["sqnr_db"] > 5 for output in compared["outputs"] if output["sqnr_db"] is not None)
    assert run_tool("diff", original, out).returncode in (0, 1)


@pytest.mark.parametrize(
    "options, words",
    [
        (("--preset", "llm", "--target", "tensorrt"), "--weight-granularity per-channel"),
        (("--preset", "llm", "--target", "ort", "--format", "qdq"), "--format matmulnbits"),
    ],
)
def test_what_cannot_be_raised_is_told_with_what_helps(tmp_path, options, words):
    made = fine_grained.model(13)
    statistics = [f"{name}_of_training" for name in ("mean", "variance")]
    channel = [onnx.numpy_helper.from_array(np.ones(fine_grained.N, np.float32), name) for name in "gbmv"]
    made.graph.initializer.extend(channel)
    trained = onnx.helper.make_node("BatchNormalization", ["y4", *"gbmv"], ["y6", *statistics], "trains")
    made.graph.node.append(trained)
    made.graph.output.append(onnx.helper.make_tensor_value_info("y6", onnx.TensorProto.FLOAT, ["t", fine_grained.N]))
    onnx.save(made, tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", FEED)
    result = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "x.npy", *options)
    assert result.returncode != 0 and "`trains`" in result.stderr, result.stderr
    assert "with opset 21 or later" in result.stderr and words in result.stderr, result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_groups_that_do_not_divide_the_channels(written):
    # 72 = 2 · 32 + 8: MatMulNBits takes it as it is, others the largest group that divides it, or none.
    ragged, _ = written("ort", 17, "float32", "--preset", "llm", k=72)
    assert lowest(fine_grained.execute(ragged, {"x": x_of(72)}), run_onnx_runtime(ragged, x_of(72))) > 60
    path, report = written("openvino", 17, "float32", "--preset", "llm", k=80)
    blocks = {n.name: {a.name: a.i for a in n.attribute} for n in onnx.load(path).graph.node if n.op_type == "MatMulNBits"}
    assert {name: b["block_size"] for name, b in blocks.items()} == {n: 32 if n == "down" else 16 for n in LINEARS}
    assert [n for n in report["notes"] if "groups of 16" in n]
    _, report = written("openvino", 17, "float32", "--preset", "llm", k=72)
    left = {line["name"]: line["reason"] for line in report["linears"] if line["status"] != "quantized"}
    assert set(left) == set(LINEARS) - {"down"} and all("multiple of 16" in reason for reason in left.values())


def x_of(k):
    return np.random.default_rng(8).normal(size=(2, 6, k)).astype(np.float32)


def test_weights_that_need_them_have_eight_bits(tmp_path):
    tiny = conftest.ROOT / "models/tiny"
    found = {}
    for percent in (0, 40):
        out, report = tmp_path / f"{percent}.onnx", tmp_path / f"{percent}.json"
        options = ["--preset", "llm", "--max-raised", percent, "--report", report]
        result = run_tool(tiny / "model.onnx", out, "--calib", tiny / "calib.npz", *options)
        assert result.returncode == 0, result.stderr
        told = json.loads(report.read_text())
        bits = {line["name"]: line["weight_bits"] for line in told["linears"]}
        nodes = [n for n in onnx.load(out).graph.node if n.op_type == "MatMulNBits"]
        assert {n.name: {a.name: a.i for a in n.attribute}["bits"] for n in nodes} == bits
        found[percent] = set(bits.values()), told["outputs"]["last_hidden_state"]["sqnr_db"]
    assert found[0][0] == {4} and found[40][0] == {4, 8}
    assert found[40][1] > found[0][1] + 2


def test_an_sqnr_is_reached_with_more_bits_before_anything_stays_in_float(written):
    path, report = written("ort", 17, "float32", "--weight-only", "--weight-bits", "4", "--min-sqnr", "33")
    assert {line["status"] for line in report["linears"]} == {"quantized"}
    assert 8 in {line["weight_bits"] for line in report["linears"]}
    assert min(o["sqnr_db"] for o in report["outputs"].values()) >= 33


# --- Decoders with past keys and values ---


@pytest.mark.parametrize("preset", ["encoder", "robust", "llm", "paper-w6a6", "paper-token-w4a4"])
@pytest.mark.parametrize("form", ["prefill", "step", "merged"])
def test_decoders_with_past_keys_and_values(tmp_path, preset, form):
    made = merged() if form == "merged" else decoder(past=form == "step")
    onnx.save(made, tmp_path / "in.onnx")
    switch = None if form != "merged" else True
    arrays = decoder_data(16, 6, past=0 if form == "prefill" else 5, seed=3, switch=switch)
    known = {value.name for value in made.graph.input}
    np.savez(tmp_path / "calib.npz", **{name: array for name, array in arrays.items() if name in known})
    report = tmp_path / "report.json"
    result = run_tool(
        tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz", "--preset", preset, "--report", report
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(report.read_text())
    assert {line["status"] for line in told["linears"]} == {"quantized"}
    assert told["float_check"] is None or told["float_check"]["max_relative_error"] <= 1e-5
    runtimes.onnx_runtime_session(tmp_path / "out.onnx")


# --- What contradicts itself is refused before any work ---


@pytest.mark.parametrize(
    "options, words",
    [
        (("--weight-granularity", "group:48"), "16, 32, 64, 128 and 256"),
        (("--weight-granularity", "groups:32"), "group:N"),
        (("--activation-granularity", "per-group"), "weights must be in groups"),
        (("--weight-granularity", "group:32", "--activation-granularity", "per-token"), "no runtime"),
        (("--format", "matmulnbits"), "weights are in groups"),
        (("--format", "matmulnbits", "--preset", "llm", "--target", "tensorrt"), "TensorRT"),
        (("--format", "qoperator", "--preset", "robust"), "QLinearMatMul"),
        (("--weight-only", "--target", "tensorrt"), "4 bits"),
        (("--weight-only", "--weight-bits", "3"), "2, 4, 8"),
        (("--weight-only", "--activation-bits", "6", "--weight-bits", "4"), "8 bits"),
        (("--weight-symmetry", "asymmetric"), "groups"),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path, options, words):
    onnx.save(fine_grained.model(17), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", FEED)
    result = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "x.npy", *options)
    assert result.returncode == 2 and words in result.stderr, result.stderr
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("options", [("--preset", "robust"), ("--preset", "llm")])
def test_the_same_bytes_with_any_number_of_threads(tmp_path, options):
    onnx.save(fine_grained.model(17), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(6).normal(size=(16, 6, fine_grained.K)).astype(np.float32))
    for threads in "12":
        arguments = ["--calib", tmp_path / "x.npy", "--threads", threads, *options]
        result = run_tool(tmp_path / "in.onnx", tmp_path / f"{threads}.onnx", *arguments)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
