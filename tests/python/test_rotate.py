"""Rotations end to end: exact in float, no Linear less in integers on any runtime, the same bytes, and left alone later.

The models (rotations.py) have tokens that stick out each in a channel of its own, in the forms that could go wrong: float16,
rank 2, a fixed batch, odd and prime numbers of channels, shared weights, several readers of one value.
"""

import json
from dataclasses import dataclass

import measure
import numpy as np
import onnx
import pytest
import rotations
import runtimes
from conftest import TINY, TINY_LLAMA, run_tool
from onnx import numpy_helper

LINEARS = ["query/MatMul", "key/MatMul", "value/MatMul", "output/MatMul"]


@dataclass(frozen=True)
class Form:
    model: object
    data: dict
    factors: tuple
    linears: tuple = tuple(LINEARS)


FORMS = {
    "several readers": lambda: Form(rotations.readers(64), rotations.tokens(64, 160, 1), (4, 16)),
    "float16": lambda: Form(rotations.readers(64, dtype="float16"), rotations.tokens(64, 160, 1, dtype="float16"), (4, 16)),
    "rank 2": lambda: Form(rotations.readers(64, rank=2), rotations.tokens(64, 160, 1, rank=2), (4, 16)),
    "fixed batch": lambda: Form(rotations.readers(64, batch=4), rotations.tokens(64, 160, 1), (4, 16)),
    "45 channels": lambda: Form(rotations.readers(45), rotations.tokens(45, 160, 1), (3, 15)),
    "1365 channels": lambda: Form(rotations.readers(1365), rotations.tokens(1365, 64, 1), (35, 39)),
    "2816 channels": lambda: Form(rotations.readers(2816, n=128), rotations.tokens(2816, 48, 1), (44, 64)),
    "shared weights": lambda: Form(
        rotations.shared(), rotations.tokens(96, 160, 1), (6, 16), tuple(f"{i}/{x}/MatMul" for i in "01" for x in ("up", "down"))
    ),
}
SMALL = ["several readers", "float16", "rank 2", "45 channels", "shared weights"]
forms = pytest.mark.parametrize("name", FORMS)
small = pytest.mark.parametrize("name", SMALL)


@dataclass(frozen=True)
class Written:
    form: Form
    source: object  # the path of the model, and of its data
    calib: object
    path: object
    report: dict


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """written(name, options…) → what the tool makes of a form; with rotations, unless the options say otherwise."""
    sources, done = {}, {}

    def run(name, *options):
        if name not in sources:
            folder, form = tmp_path_factory.mktemp("rotate"), FORMS[name]()
            onnx.save(form.model, folder / "in.onnx")
            np.savez(folder / "calib.npz", **form.data)
            sources[name] = form, folder / "in.onnx", folder / "calib.npz"
        form, model, calib = sources[name]
        if (name, *options) not in done:
            folder = tmp_path_factory.mktemp("rotated")
            more = [] if "--max-slowdown" in options else ["--max-slowdown", "100"]
            report, out = folder / "report.json", folder / "out.onnx"
            result = run_tool(model, out, "--calib", calib, "--no-layers", "--report", report, *more, *options)
            assert result.returncode == 0, result.stderr
            done[(name, *options)] = Written(form, model, calib, out, json.loads(report.read_text()))
        return done[(name, *options)]

    return run


def unseen(form):
    """Four rows of other data."""
    x = form.data["x"]
    return rotations.tokens(x.shape[-1], 4, 99, x.ndim, x.dtype.name)


def rotation_nodes(model):
    """The four nodes of every rotation, by their names."""
    nodes = {n.name: n for n in model.graph.node if "_rotate_" in n.name}
    assert len(nodes) % 4 == 0
    return nodes


def products_of(nodes):
    return sorted(name for name, node in nodes.items() if node.op_type == "MatMul")


# --- What is written ---


@forms
def test_the_rotated_model_is_the_same_function_in_float(written, name):
    done = written(name)
    assert done.report["float_check"]["max_relative_error"] <= 1e-5
    rotated = [s for s in done.report["sites"] if s["rotation"]]
    # Behind the norm; the input of the output Linear may have one of its own.
    assert done.form.factors in {tuple(s["rotation"]["factors"]) for s in rotated}
    widths = {x["name"]: x["k"] for x in done.report["linears"]}
    assert all(np.prod(s["rotation"]["factors"]) == widths[s["linears"][0]] for s in rotated)
    assert len(rotation_nodes(onnx.load(done.path))) == 4 * len(rotated)
    onnx.checker.check_model(str(done.path), full_check=True)


@forms
def test_what_was_bought_shows_on_unseen_tokens(written, name):
    """With rotations every output is better than without, by 3 dB or more, in ONNX Runtime."""
    ours, without = written(name), written(name, "--max-slowdown", "0")
    feeds = unseen(ours.form)
    reference = measure.outputs(ours.source, feeds)
    for output, expected in reference.items():
        after, before = (measure.sqnr(expected, measure.outputs(x.path, feeds)[output]) for x in (ours, without))
        assert after > before + 3, (before, after)


def test_a_prime_number_of_channels_has_none(tmp_path):
    onnx.save(rotations.readers(61), tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", **rotations.tokens(61, 64, 1))
    report = tmp_path / "report.json"
    arguments = (tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "calib.npz", "--report", report)
    result = run_tool(*arguments, "--max-slowdown", "100")
    assert result.returncode == 0 and "rotations" not in result.stdout
    assert json.loads(report.read_text())["rotations"] is None and not rotation_nodes(onnx.load(tmp_path / "out.onnx"))


def test_shared_weights_stay_shared(written):
    """One S and R for all layers that have a weight: it is stored once."""
    done = written("shared weights")
    model = onnx.load(done.path)
    assert measure.stored_matrices(model, onnx.TensorProto.INT8) == 2
    first, second = (s["rotation"] for s in done.report["sites"] if s["rotation"])
    assert first["negative"] == second["negative"]
    # And so are the matrices of both rotations.
    assert {n.input[1] for n in rotation_nodes(model).values() if n.name.endswith("inner")} == {"0/norm_rotation_16"}


def test_albert_has_one_rotation_for_all_layers(albert, job, tmp_path):
    """An export whose twelve layers have the weights of one: S and R are of all of them, and no weight is stored twice."""
    ours, without = (job(albert, "--max-slowdown", slowdown) for slowdown in ("50", "0"))
    rotated = [s for s in ours.report["sites"] if s["rotation"]]
    assert len(rotated) == ours.report["rotations"]["sites"] and len(rotated) % 12 == 0 and rotated
    by_weight = {}
    for site in rotated:
        weight = site["linears"][0].split(".", 1)[1].lstrip("0123456789")
        by_weight.setdefault(weight, []).append(site)
    for sites in by_weight.values():
        assert len(sites) == 12 and all(s["rotation"] == sites[0]["rotation"] for s in sites)
        assert all(s["scale"] == sites[0]["scale"] for s in sites)
    assert ours.report["float_check"]["max_relative_error"] <= 1e-5
    models = [x.model() for x in (ours, without)]
    assert len({measure.stored_matrices(m, onnx.TensorProto.INT8) for m in models}) == 1
    graphs = [runtimes.onnx_runtime_graph(x.path, tmp_path) for x in (ours, without)]
    assert [runtimes.products(graph) for graph in graphs] == [(albert.linears, [])] * 2
    assert sorted(measure.rotation_products(graphs[0])) == products_of(rotation_nodes(models[0]))
    assert measure.heldout_sqnr(albert, ours.path) > measure.heldout_sqnr(albert, without.path) + 1


@small
def test_the_same_bytes_every_time(written, name):
    first = written(name).path.read_bytes()
    for options in (("--threads", "1"), ("--threads", "3")):
        assert written(name, *options).path.read_bytes() == first


@forms
def test_what_reviewers_and_users_see(written, name):
    done = written(name)
    factors = sorted(s["rotation"]["factors"] for s in done.report["sites"] if s["rotation"])
    count = len(factors)
    changes = json.loads(run_tool("diff", done.source, done.path, "--json").stdout)["changes"]
    assert [c["nodes"] for c in changes if c["kind"] == "rotation"] == [4] * count
    assert not [c for c in changes if "_rotate_" in c["name"] and c["kind"] != "rotation"]
    anatomy = json.loads(run_tool("inspect", done.path, "--json", "-").stdout)
    assert sorted(r["factors"] for r in anatomy["rotations"]) == factors
    assert not anatomy["linears"] and {x["name"] for x in anatomy["quantized"]["linears"]} == set(done.form.linears)
    assert not anatomy["near_misses"] and not done.report["lint"]
    seen = json.loads(run_tool("verify", done.source, done.path, "--calib", done.calib, "--json", "-").stdout)
    assert {x["name"] for x in seen["layers"]} == set(done.form.linears)
    assert all(x["quantized"] and x["fed"] and x["accumulated"] for x in seen["layers"]), seen["layers"]


# --- What runtimes make of it ---


# One target is enough for the larger ones.
RUNS = [(name, "ort") for name in FORMS] + [(name, "portable") for name in SMALL]


@pytest.mark.parametrize("name, target", RUNS)
def test_onnx_runtime_has_as_many_integer_linears_as_without(written, name, target, tmp_path):
    found = []
    for i, slowdown in enumerate(("100", "0")):
        path = written(name, "--target", target, "--max-slowdown", slowdown).path
        (tmp_path / str(i)).mkdir()
        graph = runtimes.onnx_runtime_graph(path, tmp_path / str(i))
        assert runtimes.products(graph) == (len(FORMS[name]().linears), [])
        found.append(sorted(measure.rotation_products(graph)) == products_of(rotation_nodes(onnx.load(path))))
    assert found == [True, True]


@pytest.mark.parametrize("target", ["openvino", "portable"])
@small
def test_openvino_keeps_rotations_in_float_and_linears_in_8_bits(written, name, target):
    done = written(name, "--target", target)
    layers = runtimes.openvino_layers(runtimes.openvino_compile(done.path))
    types = sorted(x.types[0] for x in layers if x.kind in ("FullyConnected", "MatMul"))
    rotated = len(rotation_nodes(onnx.load(done.path))) // 4
    assert rotated and types == ["f32"] * (2 * rotated) + ["i8"] * len(done.form.linears)


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
@small
def test_tensorrt_builds_int8_linears_beside_float_rotations(written, name, target):
    done = written(name, "--target", target)
    parsed = runtimes.tensorrt_parse(done.path)
    assert parsed.ok, parsed.errors
    shape = done.form.data["x"].shape
    small, large = ({"x": (rows, *shape[1:])} for rows in (1, 8))
    engine, warnings = runtimes.tensorrt_layers(parsed, small, large)
    assert engine is not None, warnings
    assert [n for n in done.form.linears if not runtimes.tensorrt_integer(engine, n)] == []
    rotated = products_of(rotation_nodes(onnx.load(done.path)))
    assert rotated and not [n for n in rotated if runtimes.tensorrt_integer(engine, n)]


# --- Rotations of blocks and of heads ---


def test_heads_are_mixed_without_a_node(l3, job):
    """MiniLM-L3 for no time: R of two attentions stands in the columns of V, and verify undoes it."""
    done = job(l3, "--max-slowdown", "0")
    rotated = [s["rotation"] for s in done.report["sites"] if s["rotation"]]
    assert rotated and {(r["form"], *r["factors"], r["percent"]) for r in rotated} == {("heads", 12, 32, 0)}
    assert all(r["gain_db"] >= 0.5 for r in rotated) and done.report["rotations"] is None
    assert done.report["float_check"]["max_relative_error"] <= 1e-5
    before, after = (measure.op_counts(onnx.load(x)) for x in (l3.model, done.path))
    assert (after["MatMul"], after["Reshape"]) == (before["MatMul"], before["Reshape"])
    seen = json.loads(run_tool("verify", l3.model, done.path, "--calib", l3.calib, "--json", "-").stdout)
    own = {x["name"]: x["fed"]["sqnr_db"] for x in seen["layers"] if x["fed"]}
    assert len(own) == 18 and min(own.values()) > 25, own


@pytest.fixture(scope="session")
def blocks(tmp_path_factory):
    """A LLaMA for so little time that a gated FFN's second Linear has blocks: what was written, and the report."""
    folder = tmp_path_factory.mktemp("blocks")

    def run(*options):
        out, report = folder / "out.onnx", folder / "report.json"
        model = TINY_LLAMA.model, out, "--calib", TINY_LLAMA.calib, "--report", report, "--no-layers", "--force"
        result = run_tool(*model, "--max-slowdown", "8", *options)
        assert result.returncode == 0, result.stderr
        return out, json.loads(report.read_text())

    return run


def test_blocks_behind_an_order_that_up_and_gate_take(blocks, tmp_path):
    out, report = blocks()
    first = out.read_bytes()
    (site,) = (s for s in report["sites"] if s["rotation"] and s["rotation"]["form"] == "blocks")
    (count, width), order = site["rotation"]["factors"], site["rotation"]["order"]
    assert sorted(order) == list(range(count * width)) and order != sorted(order)
    assert report["float_check"]["max_relative_error"] <= 1e-5
    chain = [n for n in onnx.load(out).graph.node if "_rotate_" in n.name and site["linears"][0] in n.name]
    assert [n.op_type for n in chain] == ["Reshape", "MatMul", "Reshape"]
    graph = runtimes.onnx_runtime_graph(out, tmp_path)
    assert runtimes.products(graph) == (len(report["linears"]), [])
    types = [x.types[0] for x in runtimes.openvino_layers(runtimes.openvino_compile(blocks("--target", "openvino")[0]))
             if x.kind == "FullyConnected"]  # fmt: skip
    assert types.count("i8") == len(report["linears"])
    assert blocks("--threads", "1")[0].read_bytes() == first


def test_reviewers_see_one_line_for_blocks_and_verify_undoes_the_order(blocks):
    out, report = blocks()
    changes = json.loads(run_tool("diff", TINY_LLAMA.model, out, "--json").stdout)["changes"]
    nodes = [c["nodes"] for c in changes if c["kind"] == "rotation"]
    assert sorted(nodes) == sorted(3 if s["rotation"]["form"] == "blocks" else 4 for s in report["sites"] if s["rotation"])
    anatomy = json.loads(run_tool("inspect", out, "--json", "-").stdout)
    assert [r["factors"] for r in anatomy["rotations"] if r["blocks"]] == [s["rotation"]["factors"] for s in report["sites"]
            if s["rotation"] and s["rotation"]["form"] == "blocks"]  # fmt: skip
    assert not anatomy["linears"] and not report["lint"]
    seen = json.loads(run_tool("verify", TINY_LLAMA.model, out, "--calib", TINY_LLAMA.calib, "--json", "-").stdout)
    own = {x["name"]: x["fed"]["sqnr_db"] for x in seen["layers"]}
    assert min(own.values()) > 20, own


# --- A second run ---


def in_float(model):
    """The model with its Q/DQ pairs passed by, and dequantized weights."""
    constants, made = measure.constants(model), measure.producers(model)
    kept, values = [], {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            stored = node.input[0]
            if stored in constants:
                scale, axis = constants[node.input[1]], next((a.i for a in node.attribute if a.name == "axis"), 1)
                scale = scale.reshape([-1 if i == axis else 1 for i in range(constants[stored].ndim)]) if scale.ndim else scale
                zero = constants[node.input[2]].reshape(scale.shape) if len(node.input) > 2 else 0
                real = ((constants[stored].astype(np.float32) - zero) * scale).astype(np.float32)
                model.graph.initializer.append(numpy_helper.from_array(real, node.output[0]))
            else:
                values[node.output[0]] = made[stored].input[0]
        elif node.op_type != "QuantizeLinear":
            kept.append(node)
    for node in kept:
        node.input[:] = [values.get(v, v) for v in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


@small
def test_a_rotated_float_model_is_quantized_without_its_rotations(written, name, tmp_path):
    done = written(name)
    model = in_float(onnx.load(done.path))
    before = rotation_nodes(model)
    onnx.save(model, tmp_path / "float.onnx")
    report = tmp_path / "report.json"
    arguments = (tmp_path / "float.onnx", tmp_path / "out.onnx", "--calib", done.calib, "--report", report)
    result = run_tool(*arguments, "--max-slowdown", "100", "--no-layers")
    assert result.returncode == 0, result.stderr
    seen = json.loads(report.read_text())
    assert {x["name"] for x in seen["linears"]} == set(done.form.linears)
    assert all(x["status"] == "quantized" for x in seen["linears"]) and not seen["near_misses"]
    again = onnx.load(tmp_path / "out.onnx")
    stored = [measure.constants(x) for x in (model, again)]
    for node in before.values():
        same = next(n for n in again.graph.node if n.name == node.name)
        for slot, value in enumerate(node.input):
            if value in stored[0]:
                assert np.array_equal(stored[0][value], stored[1][same.input[slot]])
    for output, expected in measure.outputs(done.source, unseen(done.form)).items():
        # Weights are rounded twice.
        assert measure.sqnr(expected, measure.outputs(tmp_path / "out.onnx", unseen(done.form))[output]) > 30


def test_what_is_left_is_quantized_in_a_second_run(written, tmp_path):
    """The first run has query, key and value; the second finds the output Linear, and nothing in R."""
    first = written("several readers", "--include", "query|key|value")
    before = rotation_nodes(onnx.load(first.path))
    assert before
    report = tmp_path / "report.json"
    result = run_tool(
        first.path, tmp_path / "out.onnx", "--calib", first.calib, "--report", report, "--max-slowdown", "100", "--no-layers"
    )
    assert result.returncode == 0, result.stderr
    assert [x["name"] for x in json.loads(report.read_text())["linears"]] == ["output/MatMul"]
    after = onnx.load(tmp_path / "out.onnx")
    assert {n.name: n for n in after.graph.node if n.name in before} == before
    matrices = {v for n in before.values() for v in n.input} & set(measure.constants(after))
    assert len(matrices) == 4
    for value in matrices:
        assert np.array_equal(measure.constants(after)[value], measure.constants(onnx.load(first.path))[value])


# --- Integer operators ---


@small
def test_integer_operators_have_rotations_too(written, name):
    """The outputs of Linears are followed through R and its signs: as many integer operators, and better outputs."""
    ours, without = (written(name, "--format", "qoperator", "--max-slowdown", price) for price in ("100", "0"))
    rotated = rotation_nodes(onnx.load(ours.path))
    assert rotated and ours.report["float_check"]["max_relative_error"] <= 1e-5
    counts = [measure.op_counts(onnx.load(x.path)) for x in (ours, without)]
    integer = [c["QLinearMatMul"] + c["QGemm"] for c in counts]
    assert integer == [len(ours.form.linears)] * 2 and counts[0]["MatMul"] == len(rotated) // 2
    feeds = unseen(ours.form)
    for output, expected in measure.outputs(ours.source, feeds).items():
        after, before = (measure.sqnr(expected, measure.outputs(x.path, feeds)[output]) for x in (ours, without))
        assert after > before + 2, (before, after)


def test_signs_in_the_columns_of_v_turn_its_range(job):
    """The rotation behind attention has its signs in the Linear of V, whose integer output has the range of −V there."""
    ours, without = (job(TINY, "--format", "qoperator", "--max-slowdown", price) for price in ("100", "0"))
    rotated = [s for s in ours.report["sites"] if s["rotation"] and s["kind"] == "commuted"]
    assert rotated and any(s["rotation"]["negative"] for s in rotated)
    assert measure.heldout_sqnr(TINY, ours.path) > measure.heldout_sqnr(TINY, without.path)
