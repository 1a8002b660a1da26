"""Linears in model-local functions: the calls are inlined, exactly, and everything else stays as it was.

onnx.inliner and ONNX Runtime, which run functions by themselves, are the oracles.
"""

import json

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from conftest import TINY, TINY_DECOMPOSED, TINY_LLAMA, run_tool
from grouped import pack, same_up_to_names
from onnx import TensorProto, helper, numpy_helper, parser


def run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v for k, v in feeds.items() if k in names})


def tool(folder, model, calib, *options, status=0):
    """The tool's result and report."""
    source, out, report = folder / "in.onnx", folder / "out.onnx", folder / "report.json"
    onnx.save(model, source)
    done = run_tool(source, out, "--calib", calib, "--no-layers", "--report", report, "--force", *options)
    assert done.returncode == status, done.stderr
    return (onnx.load(out), json.loads(report.read_text())) if status == 0 else done


CASES = [(TINY, 7), (TINY_DECOMPOSED, 20), (TINY_LLAMA, 11), (TINY_LLAMA, 1000)]
IDS = [f"{case.name}-{size}" for case, size in CASES]


@pytest.mark.parametrize("case, size", CASES, ids=IDS)
def test_inlined_as_onnx_does_it(case, size, tmp_path):
    """With nothing to migrate or quantize, what is left is the inlining."""
    packed = pack(onnx.load(case.model), size)
    result, report = tool(tmp_path, packed, case.calib, "--format", "float", "--method", "none")
    assert report["inlined"] and not report["near_misses"]
    assert len(report["linears"]) == case.linears
    # Calls without Linears or norms stay; whatever is left of them, the oracle inlines.
    ours = onnx.inliner.inline_local_functions(result)
    oracle = onnx.inliner.inline_local_functions(packed)
    assert not ours.functions
    assert same_up_to_names(ours.graph, oracle.graph)
    assert {f.name for f in result.functions} == called(result)
    names = [n.name for n in result.graph.node if n.name]
    assert len(names) == len(set(names))


def called(model):
    names, todo = set(), list(model.graph.node)
    functions = {f.name: f for f in model.functions}
    while todo:
        node = todo.pop()
        if node.op_type in functions and node.op_type not in names:
            names.add(node.op_type)
            todo += functions[node.op_type].node
    return names


@pytest.mark.parametrize("case, size", CASES, ids=IDS)
def test_quantized_like_the_flat_model(case, size, tmp_path):
    flat = onnx.load(case.model)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    result, report = tool(tmp_path / "a", pack(flat, size, defaults_too=True), case.calib)
    expected, flat_report = tool(tmp_path / "b", flat, case.calib)
    assert len(report["linears"]) == case.linears
    assert len(report["sites"]) == len(flat_report["sites"])
    kinds = [[s["kind"] for s in r["sites"]] for r in (report, flat_report)]
    assert kinds[0] == kinds[1]
    assert report["float_check"]["max_relative_error"] <= 1e-4
    feeds = case.load_heldout()
    for ours, theirs in zip(run(result, feeds), run(expected, feeds)):
        assert np.array_equal(ours, theirs)


def weight(name, *shape, seed=0):
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(data, name)


def hand_made(functions, nodes, initializers, opset=18, ir=10, outputs=("y",)):
    """A model over x: [n, 4] with functions in ONNX's text form."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["n", f"{o}_columns"]) for o in outputs],
        initializers,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir)
    model.functions.extend(f if isinstance(f, onnx.FunctionProto) else parser.parse_function(f) for f in functions)
    return model


@pytest.fixture
def x(tmp_path):
    data = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
    data[:, 2] *= 50
    np.save(tmp_path / "x.npy", data)
    return data


HEAD = '<opset_import: ["" : 18, "f" : 1], domain: "f">'
LINEAR = f"{HEAD} Linear (u, w, b) => (v) {{ p = MatMul(u, w)  v = Add(p, b) }}"


def check(folder, model, x, *options, inliner=True):
    """The float result computes what the model does, and is inlined as the oracle does it."""
    result, report = tool(folder, model, folder / "x.npy", "--format", "float", "--method", "none", *options)
    onnx.checker.check_model(result, full_check=True)
    assert all(np.array_equal(a, b) for a, b in zip(run(model, {"x": x}), run(result, {"x": x})))
    if inliner:
        oracle = onnx.inliner.inline_local_functions(model)
        assert same_up_to_names(onnx.inliner.inline_local_functions(result).graph, oracle.graph)
    return result, report


def test_calls_without_linears_stay(tmp_path, x):
    soft = f"{HEAD} Squash (u) => (v) {{ t = Tanh(u)  v = Mul(t, t) }}"
    unused = f"{HEAD} Unused (u) => (v) {{ v = Neg(u) }}"
    nodes = [
        helper.make_node("Squash", ["x"], ["s"], name="squash", domain="f"),
        helper.make_node("Linear", ["s", "w", "b"], ["t"], name="linear", domain="f", doc_string="from the call"),
        helper.make_node("Squash", ["t"], ["y"], name="again", domain="f"),
    ]
    model = hand_made([LINEAR, soft, unused], nodes, [weight("w", 4, 3), weight("b", 3)])
    nodes[1].metadata_props.add(key="scope", value="layer.0")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    result, report = check(tmp_path, model, x)
    assert [(c["node"], c["function"]) for c in report["inlined"]] == [("linear", "f.Linear")]
    assert [n.name for n in result.graph.node] == ["squash", "", "", "again"] or [
        n.op_type for n in result.graph.node
    ] == ["Squash", "MatMul", "Add", "Squash"]
    assert result.graph.node[0] == nodes[0] and result.graph.node[3] == nodes[2]
    # A function that nothing called before is not ours to remove.
    assert [f.name for f in result.functions] == ["Squash", "Unused"]
    assert list(result.functions) == list(model.functions)[1:]
    for node in result.graph.node[1:3]:
        assert node.doc_string == "from the call"
        assert [(p.key, p.value) for p in node.metadata_props] == [("scope", "layer.0")]


def test_parameters_and_defaults(tmp_path, x):
    norm = f"""{HEAD} Norm <axis, epsilon: float = 0.25> (u, g) => (v) {{
        v = LayerNormalization <axis: int = @axis, epsilon: float = @epsilon, stash_type: int = @missing> (u, g) }}"""
    nodes = [
        helper.make_node("Norm", ["x", "g"], ["a"], name="first", domain="f", axis=-1),
        helper.make_node("Norm", ["a", "g"], ["b"], name="second", domain="f", axis=1, epsilon=2.0),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="mm"),
    ]
    norm = parser.parse_function(norm)
    norm.attribute.append("missing")
    model = hand_made([norm], nodes, [weight("g", 4), weight("w", 4, 3)])
    # onnx.inliner (1.20) does not know defaults; ONNX Runtime does.
    result, report = check(tmp_path, model, x, inliner=False)
    assert len(report["inlined"]) == 2 and not result.functions
    attributes = [{a.name: helper.get_attribute_value(a) for a in n.attribute} for n in result.graph.node[:2]]
    assert attributes == [{"axis": -1, "epsilon": 0.25}, {"axis": 1, "epsilon": 2.0}]


def test_left_out_inputs_and_outputs(tmp_path, x):
    """An input left out is left out inside; outputs may be inputs, be given twice, or not be wanted."""
    block = f"""{HEAD} Block (u, low, high, w) => (v, extra, u) {{
        c = Clip(u, low, high)  v = MatMul(c, w)  extra = Neg(c) }}"""
    nodes = [
        helper.make_node("Block", ["x", "", "high", "w"], ["a", "", "same"], name="one", domain="f"),
        helper.make_node("Block", ["a", "low", "", "w"], ["y", "z"], name="two", domain="f"),
        helper.make_node("Identity", ["same"], ["q"], name="q"),
    ]
    numbers = [numpy_helper.from_array(np.float32(v), n) for n, v in (("low", -0.5), ("high", 0.5))]
    model = hand_made([block], nodes, [*numbers, weight("w", 4, 4)], outputs=("y", "z", "q"))
    result, report = tool(tmp_path, model, tmp_path / "x.npy", "--format", "float", "--method", "none")
    onnx.checker.check_model(result, full_check=True)
    # ONNX Runtime takes no call that leaves out an output before another one.
    w = numpy_helper.to_array(model.graph.initializer[-1])
    clipped = np.maximum(np.minimum(x, 0.5) @ w, -0.5)
    expected = [clipped @ w, -clipped, x]
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(expected, run(result, {"x": x})))
    assert len(report["inlined"]) == 2 and not result.functions
    assert [list(n.input) for n in result.graph.node if n.op_type == "Clip"] == [["x", "", "high"], ["a", "low", ""]]


def test_subgraphs_see_the_function(tmp_path, x):
    """Branches inside of a function read its values, parameters included; their own names become unique."""
    block = f"""{HEAD} Block <slope> (u, w) => (v) {{
        m = MatMul(u, w)
        n = Shape(m)
        one = Constant <value_int: int = 1> ()
        first = Gather(n, one)
        four = Constant <value_int: int = 4> ()
        flag = Equal(first, four)
        v = If (flag) <
            then_branch = g1 () => (t) {{
                r = ReduceMax(u)  s = LeakyRelu <alpha: float = @slope> (m)  t = Add(s, r) }},
            else_branch = g2 () => (t) {{ t = Neg(m) }}
        > }}"""
    nodes = [
        helper.make_node("Block", ["x", "w"], ["a"], name="one", domain="f", slope=0.5),
        helper.make_node("Block", ["a", "w2"], ["y"], name="two", domain="f", slope=0.1),
    ]
    model = hand_made([block], nodes, [weight("w", 4, 4), weight("w2", 4, 3, seed=3)])
    result, report = check(tmp_path, model, x)
    assert len(report["inlined"]) == 2 and len(report["linears"]) == 2


def test_overloads(tmp_path, x):
    """From IR 10 on functions of one name are told apart by their overload."""
    plain, other = parser.parse_function(LINEAR), parser.parse_function(LINEAR)
    other.overload = "negative"
    other.node[0].op_type, other.node[0].input[:] = "Neg", ["u"]
    other.node.insert(1, helper.make_node("MatMul", ["p", "w"], ["q"]))
    other.node[2].input[0] = "q"
    nodes = [
        helper.make_node("Linear", ["x", "w", "b"], ["a"], name="one", domain="f"),
        helper.make_node("Linear", ["a", "w", "b"], ["y"], name="two", domain="f", overload="negative"),
    ]
    model = hand_made([plain, other], nodes, [weight("w", 4, 4), weight("b", 4)])
    result, report = check(tmp_path, model, x)
    assert [n.op_type for n in result.graph.node] == ["MatMul", "Add", "Neg", "MatMul", "Add"]


def test_another_operator_set(tmp_path, x):
    """ReduceMean takes its axes as an attribute up to version 17: such a call stays, and the report says why."""
    old = """<opset_import: ["" : 17], domain: "f"> Mean (u, w) => (v) {
        m = MatMul(u, w)  r = ReduceMean <axes: ints = [-1]> (m)  v = Sub(m, r) }"""
    new = """<opset_import: ["" : 17], domain: "f"> Other (u, w) => (v) { m = MatMul(u, w)  v = Relu(m) }"""
    nodes = [
        helper.make_node("Mean", ["x", "w"], ["a"], name="stays", domain="f"),
        helper.make_node("Other", ["x", "w"], ["y"], name="goes", domain="f"),
    ]
    model = hand_made([old, new], nodes[1:], [weight("w", 4, 4)])
    result, report = tool(tmp_path, model, tmp_path / "x.npy", "--format", "float", "--method", "none")
    assert [c["node"] for c in report["inlined"]] == ["goes"]
    # Running it needs the other call's operators too, which is refused with the reason.
    model = hand_made([old, new], nodes, [weight("w", 4, 4)], outputs=("a", "y"))
    failed = tool(tmp_path, model, tmp_path / "x.npy", status=1)
    assert "stays" in failed.stderr and "ReduceMean" in failed.stderr and "opset 17" in failed.stderr


def test_an_older_operator_set_is_raised(tmp_path, x):
    """Up to version 12 the axes of Unsqueeze are an attribute: the function is raised, and then it fits."""
    old = """<opset_import: ["" : 11], domain: "f"> Old (u, w) => (v) {
        m = MatMul(u, w)  t = Unsqueeze <axes: ints = [0]> (m)  v = Squeeze <axes: ints = [0]> (t) }"""
    nodes = [helper.make_node("Old", ["x", "w"], ["y"], name="old", domain="f")]
    model = hand_made([old], nodes, [weight("w", 4, 4)], opset=17)
    result, report = tool(tmp_path, model, tmp_path / "x.npy", "--format", "float", "--method", "none")
    onnx.checker.check_model(result, full_check=True)
    assert [c["node"] for c in report["inlined"]] == ["old"] and not result.functions
    assert report["near_misses"] == []
    (found,) = run(result, {"x": x})
    assert np.allclose(found, x @ numpy_helper.to_array(model.graph.initializer[0]), atol=1e-4)
