"""Linears in the branches of If: merged decoders, and decoders with past keys and values alone."""

import json

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from conftest import run_tool
from decoders import LAYERS, data, decoder, merged
from measure import is_orthogonal, sqnr
from onnx import TensorProto, helper, numpy_helper

LINEARS = 6 * LAYERS + 1


def said(report):
    """The notes, but for how the mask is read."""
    return [note for note in report["notes"] if "is read as a mask" not in note]


def run(model, feeds, optimized=False):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v for k, v in feeds.items() if k in names})


def tool(folder, model, batches, *options, status=0):
    source, out, report = folder / "in.onnx", folder / "out.onnx", folder / "report.json"
    onnx.save(model, source)
    calib = folder / "calib"
    calib.mkdir(exist_ok=True)
    for i, batch in enumerate(batches):
        np.savez(calib / f"{i}.npz", **batch)
    done = run_tool(source, out, "--calib", calib, "--no-layers", "--report", report, "--force", *options)
    assert done.returncode == status, done.stderr
    return (onnx.load(out), json.loads(report.read_text())) if status == 0 else done


WITHOUT = data(48, 9, 0, 1, False)
WITH = data(96, 5, 7, 2, True)
HELD_OUT = [data(4, 8, 0, 11, False), data(4, 2, 6, 12, True)]


def branches(model):
    (node,) = [n for n in model.graph.node if n.op_type == "If"]
    return {a.name: a.g for a in node.attribute}


def quantized_linears(graph):
    return sum(n.op_type == "QuantizeLinear" for n in graph.node), sum(n.op_type == "MatMul" for n in graph.node)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The merged decoder, quantized with data for both branches."""
    return tool(tmp_path_factory.mktemp("both"), merged(), [WITHOUT, WITH])


def test_both_branches_are_quantized(both):
    result, report = both
    onnx.checker.check_model(result, full_check=True)
    assert len(report["linears"]) == 2 * LINEARS
    assert all(l["status"] == "quantized" for l in report["linears"])
    assert report["float_check"]["max_relative_error"] <= 1e-4
    assert said(report) == []
    for graph in branches(result).values():
        assert quantized_linears(graph)[0] > 0


@pytest.mark.parametrize("feeds", HELD_OUT, ids=["without", "with"])
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
def test_both_branches_run(both, feeds, optimized, tmp_path):
    result, _ = both
    before = run(merged(), feeds)
    after = run(result, feeds, optimized)
    for expected, found in zip(before, after, strict=True):
        assert expected.shape == found.shape
        assert sqnr(expected, found) > 25


def test_the_file_does_not_grow(both):
    """A weight that both branches read is one int8 weight afterwards."""
    result, _ = both
    before, after = merged(), both[0]
    assert after.ByteSize() < 0.75 * before.ByteSize()
    kinds = [t.name for t in after.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert len(kinds) == LINEARS
    floats = [t.name for t in after.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2]
    # Biases are rows of one.
    matrices = [t for t in after.graph.initializer if t.name in floats and t.dims[0] > 1]
    matrices = [t for t in matrices if not is_orthogonal(numpy_helper.to_array(t))]
    assert [t.name for t in matrices] == ["embedding"]


def test_one_decision_for_both(both):
    _, report = both
    by_linears = {}
    for site in report["sites"]:
        by_linears.setdefault(tuple(site["linears"]), []).append(site)
    assert all(len(sites) == 2 for sites in by_linears.values())
    for first, second in by_linears.values():
        for key in ("kind", "shift", "scale", "range_before", "range_after", "range_margin"):
            assert first[key] == second[key]
    kinds = {sites[0]["linears"][0]: sites[0]["kind"] for sites in by_linears.values()}
    assert kinds["/layer.0/q/product/MatMul"] == "LayerNormalization"
    # V is an output as well: it must stay as it was.
    assert kinds["/layer.0/o/product/MatMul"] in ("explicit", "plain")


def test_float_result_is_equal(tmp_path):
    result, report = tool(tmp_path, merged(), [WITHOUT, WITH], "--format", "float")
    assert report["float_check"]["max_relative_error"] > 0
    for feeds in HELD_OUT:
        for expected, found in zip(run(merged(), feeds), run(result, feeds), strict=True):
            assert np.abs(expected - found).max() <= 1e-4 * (expected.max() - expected.min())
    stored = {t.name for t in result.graph.initializer if len(t.dims) == 2}
    assert len(stored) == LINEARS + 1


@pytest.mark.parametrize("order", [("then_branch", "else_branch"), ("else_branch", "then_branch")], ids=["then", "else"])
def test_untouched_is_unchanged(tmp_path, order):
    """With nothing to do the file has the same bytes; with one Linear selected everything else is as it was."""
    model = merged(order=order)
    for graph in branches(model).values():
        info = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "sequence", 32])
        graph.value_info.append(info)
        graph.doc_string = "a branch"
    result, _ = tool(tmp_path, model, [WITHOUT, WITH], "--format", "float", "--method", "none", "--no-metadata")
    assert result.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)

    pattern = "layer.1/up"
    result, report = tool(tmp_path, model, [WITHOUT, WITH], "--include", pattern, "--method", "none")
    assert sum(l["status"] == "quantized" for l in report["linears"]) == 2
    for name, graph in branches(result).items():
        before = {n.name: n for n in branches(model)[name].node}
        after = {n.name: n for n in graph.node}
        changed = [n for n in before if before[n] != after.get(n)]
        assert changed == ["/layer.1/up/product/MatMul"] or changed == [
            "/layer.1/up/product/MatMul",
            "/layer.1/up/Add",
        ]
        order_before = [n.name for n in branches(model)[name].node]
        assert [n.name for n in graph.node if n.name in before] == order_before
        assert list(graph.output) == list(branches(model)[name].output)
        assert list(graph.value_info) == list(branches(model)[name].value_info)
        # What is new in a branch is its own scale and zero point.
        kept, new = list(branches(model)[name].initializer), len(branches(model)[name].initializer)
        assert list(graph.initializer)[:new] == kept
        assert all(not i.dims and i.name.endswith(("_scale", "_zero_point")) for i in graph.initializer[new:])


@pytest.mark.parametrize("batch, silent", [(WITHOUT, "then_branch"), (WITH, "else_branch")], ids=["without", "with"])
def test_a_branch_that_never_ran_has_the_other_decisions(tmp_path, batch, silent):
    result, report = tool(tmp_path, merged(), [batch])
    assert all(l["status"] == "quantized" for l in report["linears"])
    (note,) = said(report)
    assert silent in note and f"{LINEARS} of its Linears" in note and "0 stay in float" in note
    for feeds in HELD_OUT:
        for expected, found in zip(run(merged(), feeds), run(result, feeds), strict=True):
            assert sqnr(expected, found) > 20
    matrices = [t for t in result.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert len(matrices) == LINEARS


def test_a_weight_without_twin_stays_in_float(tmp_path):
    """Decisions for a branch that never runs come from the same weight only."""
    own = ["layer.0.up.weight", "layer.0.down.weight"]
    model = merged(own_weights=own, factor=0.9)
    result, report = tool(tmp_path, model, [WITH])
    skipped = [l for l in report["linears"] if l["status"] == "skipped"]
    assert [l["name"] for l in skipped] == ["/layer.0/up/product/MatMul", "/layer.0/down/product/MatMul"]
    assert all("no calibration data takes the else_branch" in l["reason"] for l in skipped)
    assert f"{LINEARS - 2} of its Linears" in said(report)[0] and "2 stay in float" in said(report)[0]
    own_names = {f"own.{name}" for name in own}
    assert own_names <= {t.name for t in branches(result)["else_branch"].initializer}
    for feeds in HELD_OUT:
        for expected, found in zip(run(model, feeds), run(result, feeds), strict=True):
            assert sqnr(expected, found) > 20


def test_an_equal_weight_is_a_twin(tmp_path):
    """Exporters name a constant anew in every export."""
    result, report = tool(tmp_path, merged(own_weights=["layer.0.up.weight"]), [WITH])
    assert all(l["status"] == "quantized" for l in report["linears"])
    for feeds in HELD_OUT:
        for expected, found in zip(run(merged(), feeds), run(result, feeds), strict=True):
            assert sqnr(expected, found) > 20


def test_onnx_runtime_fuses_both_branches(both, tmp_path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(both[0].SerializeToString(), options, providers=["CPUExecutionProvider"])
    for graph in branches(onnx.load(tmp_path / "optimized.onnx")).values():
        assert sum(n.op_type == "MatMulIntegerToFloat" for n in graph.node) == LINEARS


def test_missing_switch_and_past_are_filled(tmp_path):
    bare = {k: v for k, v in WITHOUT.items() if k in ("input_ids", "attention_mask")}
    _, report = tool(tmp_path, merged(), [bare])
    assert report["filled_inputs"]["use_cache_branch"] == "false"
    assert report["filled_inputs"]["past_key_values.0.key"] == "zero length"
    assert "then_branch" in said(report)[0]


def test_a_past_without_switch_means_cache(tmp_path):
    cached = {k: v for k, v in WITH.items() if k != "use_cache_branch"}
    _, report = tool(tmp_path, merged(), [cached])
    assert report["filled_inputs"] == {"use_cache_branch": "true"}
    assert "else_branch" in said(report)[0]


# Decoders that are not merged.


@pytest.mark.parametrize("past", [False, True], ids=["without", "with"])
def test_decoder_alone(tmp_path, past):
    model = decoder(past)
    batch = {k: v for k, v in (WITH if past else WITHOUT).items() if k != "use_cache_branch"}
    result, report = tool(tmp_path, model, [batch] if past else [{k: v for k, v in batch.items() if "past" not in k}])
    assert all(l["status"] == "quantized" for l in report["linears"])
    assert report["float_check"]["max_relative_error"] <= 1e-4
    feeds = HELD_OUT[past]
    for expected, found in zip(run(model, feeds), run(result, feeds), strict=True):
        assert sqnr(expected, found) > 25
    # present_value is an output: the projection behind it must not be migrated through V.
    kinds = {s["linears"][0]: s["kind"] for s in report["sites"]}
    assert kinds["/layer.0/o/product/MatMul"] in ("explicit", "plain")


def test_decoder_with_the_past_filled(tmp_path):
    """Without a past in the data it has zero length, and what is learnt there holds for a real one."""
    model = decoder(True)
    bare = {k: WITHOUT[k] for k in ("input_ids", "attention_mask")}
    result, report = tool(tmp_path, model, [bare])
    assert set(report["filled_inputs"].values()) == {"zero length"} and len(report["filled_inputs"]) == 2 * LAYERS
    for expected, found in zip(run(model, HELD_OUT[1]), run(result, HELD_OUT[1]), strict=True):
        assert sqnr(expected, found) > 20


def test_an_empty_past_is_not_taken_for_none(tmp_path):
    """Nothing but the attention reads V here, so only the past is in the way of a shift and scale through V."""
    model = decoder(True)
    del model.graph.output[1:]
    kept = [n for n in model.graph.node if "present" not in n.output[0]]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    bare = {k: WITHOUT[k] for k in ("input_ids", "attention_mask")}
    result, report = tool(tmp_path, model, [bare], "--format", "float")
    assert set(report["filled_inputs"].values()) == {"zero length"}
    kinds = {s["linears"][0]: s["kind"] for s in report["sites"]}
    assert kinds["/layer.0/o/product/MatMul"] in ("explicit", "plain")
    (expected,), (found,) = run(model, HELD_OUT[1]), run(result, HELD_OUT[1])
    assert np.abs(expected - found).max() <= 1e-4 * (expected.max() - expected.min())


# Other If nodes.


def weight(name, *shape, seed=0):
    return numpy_helper.from_array(np.random.default_rng(seed).normal(size=shape).astype(np.float32), name)


def small(nodes, initializers, extra_inputs=(), outputs=("y",)):
    return model(graph(nodes, initializers, extra_inputs, outputs))


def graph(nodes, initializers, extra_inputs=(), outputs=("y",)):
    return helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]), *extra_inputs],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["n", f"{o}_columns"]) for o in outputs],
        initializers,
    )


def model(graph):
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def branch(name, nodes, output):
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def shape_check(value, output, prefix, named=True):
    """What TorchScript leaves for squeeze: If the axis has length one, Squeeze, else Identity."""
    name = (lambda n: f"{prefix}/{n}") if named else (lambda n: "")
    one = numpy_helper.from_array(np.array([1], np.int64))
    axis = numpy_helper.from_array(np.array([0], np.int64))
    wide = helper.make_node("Identity", [value], [f"{prefix}_same"])
    narrow = helper.make_node("Squeeze", [value, f"{prefix}_axis"], [f"{prefix}_squeezed"])
    return [
        helper.make_node("Constant", [], [f"{prefix}_one"], value=one, name=name("one")),
        helper.make_node("Constant", [], [f"{prefix}_axis"], value=axis, name=name("axis")),
        helper.make_node("Shape", [value], [f"{prefix}_shape"], name=name("shape")),
        helper.make_node("Gather", [f"{prefix}_shape", f"{prefix}_axis"], [f"{prefix}_length"], name=name("length")),
        helper.make_node("Equal", [f"{prefix}_length", f"{prefix}_one"], [f"{prefix}_flag"], name=name("flag")),
        helper.make_node(
            "If",
            [f"{prefix}_flag"],
            [output],
            name=name("if"),
            then_branch=branch(f"{prefix}_then", [narrow], f"{prefix}_squeezed"),
            else_branch=branch(f"{prefix}_else", [wide], f"{prefix}_same"),
        ),
    ]


X = np.random.default_rng(5).normal(size=(32, 4)).astype(np.float32) * [1, 1, 60, 1]
X = X.astype(np.float32)


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_shape_checks_stay(tmp_path, named):
    """Several Ifs without Linears between the Linears: they are run, and left as they are."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="one"),
        *shape_check("a", "b", "first", named),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="two"),
        *shape_check("c", "d", "second", named),
        helper.make_node("MatMul", ["d", "w3"], ["y"], name="three"),
    ]
    source = small(nodes, [weight("w1", 4, 8), weight("w2", 8, 6, seed=1), weight("w3", 6, 4, seed=2)])
    result, report = tool(tmp_path, source, [{"x": X}])
    assert [l["status"] for l in report["linears"]] == ["quantized"] * 3
    ifs = [n for n in source.graph.node if n.op_type == "If"]
    assert [n for n in result.graph.node if n.op_type == "If"] == ifs
    (expected,), (found,) = run(source, {"x": X}), run(result, {"x": X})
    assert sqnr(expected, found) > 25


def test_a_condition_on_data_stays(tmp_path):
    """Which branch runs is known only at run time: its Linears stay, and the report says so."""
    linear = helper.make_node("MatMul", ["a", "w2"], ["t"], name="inside")
    other = helper.make_node("Neg", ["a"], ["e"])
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="outside"),
        helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.float32(0))),
        helper.make_node("Greater", ["sum", "zero"], ["flag"]),
        helper.make_node(
            "If",
            ["flag"],
            ["y"],
            name="choice",
            then_branch=branch("then", [linear], "t"),
            else_branch=branch("else", [other], "e"),
        ),
    ]
    source = small(nodes, [weight("w1", 4, 4), weight("w2", 4, 4, seed=1)])
    result, report = tool(tmp_path, source, [{"x": X}])
    assert [l["name"] for l in report["linears"]] == ["outside"]
    misses = {m["name"]: m["reason"] for m in report["near_misses"]}
    assert "data" in misses["choice"]
    assert [n for n in result.graph.node if n.op_type == "If"] == [nodes[-1]]


def test_an_older_opset_is_raised_in_branches(tmp_path):
    """Squeeze takes its axes as an attribute up to version 12."""
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    narrow = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "mm"),
        helper.make_node("Unsqueeze", ["m"], ["u"], "unsqueeze", axes=[0]),
        helper.make_node("Squeeze", ["u"], ["t"], "squeeze", axes=[0]),
    ]
    same = [helper.make_node("MatMul", ["x", "w"], ["t"], "mm")]
    choice = helper.make_node(
        "If", ["flag"], ["y"], "choice", then_branch=branch("then", narrow, "t"), else_branch=branch("else", same, "t")
    )
    imports = [helper.make_opsetid("", 12)]
    source = helper.make_model(graph([choice], [weight("w", 4, 4)], [flag]), opset_imports=imports, ir_version=7)
    result, report = tool(tmp_path, source, [{"x": X, "flag": np.array(v)} for v in (True, False)])
    onnx.checker.check_model(result)
    assert [o.version for o in result.opset_import] == [13]
    old_names = ("mm", "unsqueeze", "squeeze")
    assert tuple(n.name for n in branches(result)["then_branch"].node if n.name in old_names) == old_names
    assert len([t for t in result.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]) == 1
    for value in (True, False):
        feeds = {"x": X, "flag": np.array(value)}
        (expected,), (found,) = run(source, feeds), run(result, feeds)
        assert sqnr(expected, found) > 25


def test_functions_and_branches_inside_each_other(tmp_path):
    """A call in a branch, of a function with an If of its own."""
    text = """<opset_import: ["" : 17], domain: "f"> Block (u, w, flag) => (v) {
        m = MatMul(u, w)
        v = If (flag) <
            then_branch = g1 () => (t) { t = MatMul(m, w) },
            else_branch = g2 () => (t) { t = Neg(m) }
        > }"""
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [1])
    choice = helper.make_node(
        "If",
        ["flag"],
        ["y"],
        name="choice",
        then_branch=branch("then", [helper.make_node("Block", ["x", "w1", "flag"], ["t"], "call", domain="f")], "t"),
        else_branch=branch("else", [helper.make_node("MatMul", ["x", "w2"], ["t"], "mm")], "t"),
    )
    main = graph([choice], [weight("w1", 4, 4), weight("w2", 4, 4, seed=1)], [flag])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    source = helper.make_model(main, opset_imports=imports, ir_version=9, functions=[onnx.parser.parse_function(text)])
    batches = [{"x": X, "flag": np.array([v])} for v in (True, False)]
    result, report = tool(tmp_path, source, batches)
    onnx.checker.check_model(result)
    assert len(report["linears"]) == 3 and all(l["status"] == "quantized" for l in report["linears"])
    assert not result.functions
    for value in (True, False):
        feeds = {"x": X, "flag": np.array([value])}
        (expected,), (found,) = run(source, feeds), run(result, feeds)
        assert sqnr(expected, found) > 25


def test_what_both_branches_read_is_written_in_both(tmp_path):
    """Linears of both branches read one value of the graph around them: each branch gets its own Q/DQ."""
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    then = [helper.make_node("MatMul", ["n", "w1"], ["t"], name="mm")]
    other = [
        helper.make_node("MatMul", ["n", "w2"], ["t"], name="mm"),
        helper.make_node("Tanh", ["t"], ["u"], name="tanh"),
    ]
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm"),
        helper.make_node(
            "If",
            ["flag"],
            ["y"],
            name="choice",
            then_branch=branch("then", then, "t"),
            else_branch=branch("else", other, "u"),
        ),
        helper.make_node("MatMul", ["n", "w3"], ["z"], name="after"),
    ]
    gamma = numpy_helper.from_array(np.array([1, 2, 90, 1], np.float32), "g")
    constants = [gamma, weight("b", 4), *(weight(f"w{i}", 4, 4, seed=i) for i in (1, 2, 3))]
    source = small(nodes, constants, [flag], ("y", "z"))
    batches = [{"x": X, "flag": np.array(v)} for v in (True, False)]
    for target in ("ort", "portable"):
        result, report = tool(tmp_path, source, batches, "--target", target)
        onnx.checker.check_model(result, full_check=True)
        assert len(report["sites"]) == 1 and report["sites"][0]["sink"] == "norm"
        for graph in branches(result).values():
            assert [n.op_type for n in graph.node if n.op_type.startswith("Quantize")] == ["QuantizeLinear"]
        for value in (True, False):
            feeds = {"x": X, "flag": np.array(value)}
            for expected, found in zip(run(source, feeds), run(result, feeds), strict=True):
                assert sqnr(expected, found) > 25
