"""`onnx-osplus verify`: models of this tool and of ONNX Runtime's quantizer against the float model.

The tool's figures are compared with those of ONNX Runtime and numpy on the same rows.
"""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from architectures import ROWS, calibration, quantize
from conftest import MODELS, TINY, TINY_LLAMA, run_tool
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

# One for each form of norm, gate and residual, for attention operators and for functions.
ARCHITECTURES = [
    "bert-script14-eager-optimizer0",
    "bert-script17-eager-functions",
    "gpt2-dynamo18-eager",
    "llama-script14-sdpa",
    "t5_decoder-dynamo20-eager",
    "whisper_decoder-script17-sdpa",
]
FORMATS = ["qdq", "qoperator", "dynamic", "everything"]


def feeds(path, data):
    names = [i.name for i in onnx.load(path, load_external_data=False).graph.input]
    data = dict(np.load(data))
    data.setdefault("token_type_ids", np.zeros_like(data["input_ids"]))
    return {n: data[n].astype(np.int64) for n in names}


class Reader(CalibrationDataReader):
    def __init__(self, feed):
        self.batches = iter([{k: v[i : i + 4] for k, v in feed.items()} for i in range(0, 16, 4)])

    def get_next(self):
        return next(self.batches, None)


@pytest.fixture(scope="module")
def of_ort(tmp_path_factory):
    """of_ort(format) → tiny BERT quantized by ONNX Runtime's own tool."""
    folder, done = tmp_path_factory.mktemp("ort"), {}

    def make(kind):
        if kind not in done:
            path = folder / f"{kind}.onnx"
            reader = Reader(feeds(TINY.model, TINY.calib))
            linears = dict(op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
            if kind == "dynamic":
                quantize_dynamic(TINY.model, path)
            elif kind == "everything":
                quantize_static(TINY.model, path, reader)
            else:
                form = QuantFormat.QDQ if kind == "qdq" else QuantFormat.QOperator
                quantize_static(TINY.model, path, reader, quant_format=form, **linears)
            done[kind] = path
        return done[kind]

    return make


def verify(quant, *options, case=TINY):
    result = run_tool("verify", case.model, quant, "--calib", case.heldout, "--json", "-", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def run(model, feed, names, optimized=False):
    """Values of a model in ONNX Runtime, taken as it is written."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    given = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in given)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feed)))


def db(energy):
    """None is no error at all."""
    return np.inf if energy["sqnr_db"] is None else energy["sqnr_db"]


def sqnr(reference, other, mask):
    r, o = (x.astype(np.float64)[mask] for x in (reference, other))
    return 10 * np.log10((r * r).sum() / ((r - o) ** 2).sum())


@pytest.mark.parametrize("kind", FORMATS)
def test_outputs_are_those_of_onnx_runtime(of_ort, kind):
    found = verify(of_ort(kind), "--no-layers")["outputs"][0]
    feed = feeds(TINY.model, TINY.heldout)
    real = feed["attention_mask"] == 1
    assert not real.all(), "some padding must be there"
    r, o = (run(onnx.load(p), feed, [TINY.output])[TINY.output] for p in (TINY.model, of_ort(kind)))
    # ONNX Runtime and the tool's engine may round a value that lies between two levels to different ones; dynamic
    # quantization sees the whole batch, padding included.
    slack = 1.5 if kind in ("dynamic", "everything") else 0.3
    assert found["sqnr_db"] == pytest.approx(sqnr(r, o, real), abs=slack)
    assert found["top1_agreement"] == pytest.approx((r.argmax(-1) == o.argmax(-1))[real].mean(), abs=0.02)
    if kind == "qdq":
        assert found["max_abs_error"] == pytest.approx(np.abs(r - o)[real].max(), rel=0.2)
        assert found["range"] == pytest.approx([r[real].min(), r[real].max()], rel=1e-4)
        assert found["elements"] == real.sum() * r.shape[-1]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_linear_is_matched(of_ort, kind):
    layers = verify(of_ort(kind))["layers"]
    assert len(layers) == TINY.linears
    for layer in layers:
        assert layer["fed"] and layer["accumulated"] and not layer["reason"] and not layer["migrated"], layer
        weight = layer["quantized"]
        assert weight["weight"] == "INT8" and weight["dynamic"] == (kind == "dynamic"), weight
        per_channel = kind in ("qdq", "qoperator")
        assert weight["granularity"] == ("per-channel" if per_channel else "per-tensor"), weight
        assert 8 < layer["fed"]["sqnr_db"] < 60
    # Errors add up: what a Linear deep in the model reads is wrong already.
    deep = [x for x in layers if "layer.1" in x["name"]]
    assert all(x["accumulated"]["sqnr_db"] < x["fed"]["sqnr_db"] for x in deep)


def test_errors_of_a_linear_are_those_of_onnx_runtime(of_ort):
    """Fed: the quantized Linear cut out by hand and run on the float model's values."""
    path = of_ort("qdq")
    layers = {x["name"]: x for x in verify(path)["layers"]}
    float_model, quant = onnx.load(TINY.model), onnx.load(path)
    # The rows that the tool takes: about 512 tokens of those that are not the eighth.
    rows = [i for i in range(32) if i % 8 != 7][:16]
    feed = {k: v[rows] for k, v in feeds(TINY.model, TINY.heldout).items()}
    real = feed["attention_mask"] == 1
    producers = {o: n for n in float_model.graph.node for o in n.output}
    for name, layer in layers.items():
        y = layer["value"]
        add = producers[y]
        product = next(producers[i] for i in add.input if i in producers)
        assert product.name == name
        x = product.input[0]
        values = run(float_model, feed, [x, y])
        accumulated = run(quant, feed, [y])[y]
        own = cut_out(quant, x, y)
        fed = run(own, {x: values[x]}, [y])[y]
        assert layer["fed"]["sqnr_db"] == pytest.approx(sqnr(values[y], fed, real), abs=0.1), name
        assert layer["accumulated"]["sqnr_db"] == pytest.approx(sqnr(values[y], accumulated, real), abs=0.5), name


def cut_out(model, x, y):
    producers = {o: n for n in model.graph.node for o in n.output}
    nodes, todo = [], [y]
    while todo:
        name = todo.pop()
        if name != x and name in producers and producers[name] not in nodes:
            nodes.append(producers[name])
            todo += producers[name].input
    nodes = [n for n in model.graph.node if n in nodes]
    read = {i for n in nodes for i in n.input}
    constants = [t for t in model.graph.initializer if t.name in read]
    value = lambda n: onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)  # noqa: E731
    graph = onnx.helper.make_graph(nodes, "cut", [value(x)], [value(y)], constants)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


@pytest.mark.parametrize("case", [TINY, TINY_LLAMA], ids=lambda c: c.name)
def test_migrated_values_are_compared_as_what_they_were(job, case):
    """In float every Linear must come out as it was, although V and up projections hold scaled values under old names."""
    layers = verify(job(case, "--format", "float").path, case=case)["layers"]
    assert len(layers) == case.linears and any(x["migrated"] for x in layers)
    for layer in layers:
        assert layer["quantized"] is None
        assert db(layer["fed"]) > 90 and db(layer["accumulated"]) > 90, layer


@pytest.mark.parametrize("options", [(), ("--target", "portable"), ("--method", "none"), ("--weight-bits", "4")], ids=str)
def test_own_results(job, options):
    done = job(TINY, *options)
    found = verify(done.path)
    assert found["outputs"][0]["name"] == TINY.output
    assert all(x["quantized"]["activation"] == ("INT8" if "portable" in options else "UINT8") for x in found["layers"])
    assert all(x["fed"]["sqnr_db"] > 12 for x in found["layers"]), found["layers"]
    if options == ("--method", "none"):
        assert not any(x["migrated"] for x in found["layers"])
    if options == ():
        plain = verify(job(TINY, "--method", "none").path)
        own = lambda report: np.mean([x["fed"]["sqnr_db"] for x in report["layers"]])  # noqa: E731
        assert own(found) > own(plain) + 6


def test_a_model_against_itself_is_exact():
    found = verify(TINY.model)
    assert found["outputs"][0]["sqnr_db"] is None and found["outputs"][0]["max_abs_error"] == 0
    assert all(x["fed"]["error"] == 0 and x["accumulated"]["error"] == 0 for x in found["layers"])


def test_the_threshold_decides_the_exit_status(of_ort):
    arguments = ["verify", TINY.model, of_ort("qdq"), "--calib", TINY.heldout, "--no-layers"]
    assert run_tool(*arguments, "--min-sqnr", "10").returncode == 0
    below = run_tool(*arguments, "--min-sqnr", "60", "-q")
    assert below.returncode == 1 and not below.stdout
    assert f"error: output {TINY.output} has" in below.stderr and "--min-sqnr 60" in below.stderr
    assert run_tool("verify", TINY.model, TINY.model, "--calib", TINY.heldout, "--min-sqnr", "200").returncode == 0
    assert run_tool(*arguments, "--min-sqnr", "nan").returncode == 2


def test_the_text(of_ort):
    result = run_tool("verify", TINY.model, of_ort("qdq"), "--calib", TINY.heldout)
    lines = result.stdout.splitlines()
    assert any("SQNR dB" in line and "top-1" in line for line in lines)
    rows = [line.split() for line in lines if "i8 x i8/ch" in line]
    own = [float(row[0]) for row in rows]
    assert len(rows) == 10 and own == sorted(own) and "2 more; -v shows all" in result.stdout
    whole = run_tool("verify", TINY.model, of_ort("qdq"), "--calib", TINY.heldout, "-v").stdout
    assert sum("i8 x i8/ch" in line for line in whole.splitlines()) == 12 and "…" not in whole


def test_json_beside_the_text_and_the_same_with_any_number_of_threads(of_ort, tmp_path):
    for threads in ("1", "2"):
        result = run_tool(
            "verify", TINY.model, of_ort("qdq"), "--calib", TINY.heldout, "--json", tmp_path / threads, "--threads", threads
        )
        assert result.returncode == 0 and "outputs" in result.stdout
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert json.loads((tmp_path / "1").read_text())["schema"] == 1


def test_what_does_not_belong_together(tmp_path):
    fails = run_tool("verify", TINY.model, TINY_LLAMA.model, "--calib", TINY.heldout)
    assert fails.returncode == 1 and "error: the float model gives output `last_hidden_state`" in fails.stderr
    model = onnx.load(TINY.model)
    for graph_input in model.graph.input:
        graph_input.type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.save(model, tmp_path / "other.onnx")
    fails = run_tool("verify", TINY.model, tmp_path / "other.onnx", "--calib", TINY.heldout)
    assert fails.returncode == 1 and "takes input input_ids (int32)" in fails.stderr, fails.stderr
    np.save(tmp_path / "wrong.npy", np.zeros((2, 3), np.float32))
    fails = run_tool("verify", TINY.model, TINY.model, "--calib", tmp_path / "wrong.npy")
    assert fails.returncode == 1 and "wrong.npy" in fails.stderr and "panicked" not in fails.stderr
    fails = run_tool("verify", TINY.model, tmp_path / "none.onnx", "--calib", TINY.heldout)
    assert fails.returncode == 1 and "none.onnx" in fails.stderr
    assert run_tool("verify", TINY.model, "--calib", TINY.heldout).returncode == 2


def test_linears_without_a_counterpart_say_so(tmp_path):
    """Another exporter's names: outputs are compared, Linears are not, and the text says why."""
    model = onnx.load(TINY.model)
    kept = {v.name for v in [*model.graph.input, *model.graph.output, *model.graph.initializer]}
    for node in model.graph.node:
        node.name = f"other {node.name}"
        for names in (node.input, node.output):
            names[:] = [n if not n or n in kept else f"other {n}" for n in names]
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "renamed.onnx")
    found = verify(tmp_path / "renamed.onnx")
    assert found["outputs"][0]["sqnr_db"] is None
    assert all("neither its output nor a node" in x["reason"] and x["value"] is None for x in found["layers"])
    text = run_tool("verify", TINY.model, tmp_path / "renamed.onnx", "--calib", TINY.heldout).stdout
    assert "12 in the float model, 0 quantized; own error of 0" in text


def test_random_numbers_are_the_same_in_both_models_which_is_said(tmp_path):
    """As a masked autoencoder has them: no run of ONNX Runtime repeats another, so a figure of one run is of those numbers."""
    model = onnx.load(TINY.model)
    output = model.graph.output[0].name
    next(node for node in model.graph.node if output in node.output).output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("RandomNormalLike", ["before"], ["noise"], "noise", scale=5.0))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "noise"], [output], "noisy"))
    onnx.save(model, tmp_path / "in.onnx")
    data = ["--calib", TINY.calib]
    done = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", *data)
    assert done.returncode == 0, done.stderr
    assert "RandomNormalLike `noise` draws random numbers" in " ".join(done.stdout.split())
    done = run_tool("verify", tmp_path / "in.onnx", tmp_path / "out.onnx", *data, "--json", "-")
    found = json.loads(done.stdout)
    assert found["outputs"][0]["sqnr_db"] > 40 and any("draws random numbers" in note for note in found["notes"])


def test_data_with_other_lengths_and_one_row(job, tmp_path):
    quant = job(TINY).path
    for length in (5, 9):
        np.savez(tmp_path / f"{length}.npz", input_ids=np.arange(length)[None], attention_mask=np.ones((1, length), int))
    result = run_tool("verify", TINY.model, quant, "--calib", tmp_path, "--json", tmp_path / "out.json")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["rows"] == 2 and found["outputs"][0]["elements"] == 14 * 64
    assert any("token_type_ids" in note for note in found["notes"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_of_other_architectures_is_found(name):
    """The migrated float model: whatever was folded through, each Linear is compared as what it was."""
    row = ROWS[name]
    done, out, report = quantize(row, "--format", "float")
    assert done.returncode == 0, done.stderr
    result = run_tool("verify", MODELS / "architectures" / row["file"], out, "--calib", calibration(row), "--json", "-")
    assert result.returncode == 0, result.stderr
    layers = json.loads(result.stdout)["layers"]
    assert len(layers) == len(report["linears"])
    wrong = [x for x in layers if not x["fed"] or db(x["fed"]) < 60 or db(x["accumulated"]) < 60]
    assert not wrong, wrong
