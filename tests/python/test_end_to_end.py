"""The written file in ONNX Runtime: int8 where it should be, more accurate than min-max, otherwise unchanged."""

import measure
import numpy as np
import onnx
import pytest
from conftest import TINY, TINY_CASES, TINY_DECOMPOSED, TINY_LLAMA
from measure import capture, constants, consumers, heldout_sqnr, largest_relative_error, op_counts, outputs, producers, session
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

TARGETS = ["ort", "portable"]


def plain(job, case, target):
    """The same placement and arithmetic without migration: what min-max quantization gives."""
    return heldout_sqnr(case, job(case, "--target", target, "--method", "none").path)


def check_file(run):
    """Every promise about the finished file that does not need it to run."""
    model = run.model()
    onnx.checker.check_model(str(run.path), full_check=True)
    consts, readers, made_by = constants(model), consumers(model), producers(model)
    target = run.report["settings"]["target"]
    activation_type = np.uint8 if target == "ort" else np.int8
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    assert opset >= 13
    assert not any(a.name == "output_dtype" for n in model.graph.node for a in n.attribute)

    quantize = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert quantize, "nothing is quantized"
    for node in quantize:
        assert len(node.input) == 3, f"{node.name}: a zero point that is not written means uint8"
        scale, zero_point = consts[node.input[1]], consts[node.input[2]]
        assert scale.size == 1 and scale > 0 and np.isfinite(scale)
        assert zero_point.dtype == activation_type and zero_point.shape == scale.shape
        users = readers[node.output[0]]
        assert users and all(u.op_type == "DequantizeLinear" for u in users)
        if target == "portable":
            assert zero_point == 0
            assert len(users) == 1, f"{node.name}: one consumer per QuantizeLinear, found {len(users)}"
            assert len(readers[users[0].output[0]]) == 1
        for user in users:
            for reader in readers[user.output[0]]:
                assert reader.op_type in ("MatMul", "Gemm"), f"{reader.name} reads a dequantized value"

    quantized = 0
    for node in model.graph.node:
        weight = made_by.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        quantized += 1
        w, scale, zero_point = (consts[i] for i in weight.input)
        (axis,) = [a.i for a in weight.attribute if a.name == "axis"]
        assert w.dtype == np.int8 and w.ndim == 2 and axis == 1
        assert scale.shape == zero_point.shape == (w.shape[1],) and not zero_point.any() and (scale > 0).all()
        assert np.abs(w.astype(int)).max() <= 127
        for reader in readers[node.output[0]]:
            if reader.op_type == "Add":
                bias = [consts[i] for i in reader.input if i in consts]
                assert all(b.shape == (1, w.shape[1]) for b in bias), f"{reader.name}: bias {[b.shape for b in bias]}"
    assert quantized == run.case.linears


def check_fused(run, optimized):
    """Every Linear runs as MatMulIntegerToFloat, and no MatMul with a constant float weight is left."""
    status = [entry["status"] for entry in run.report["linears"]]
    assert status == ["quantized"] * run.case.linears
    graph = optimized(run.path)
    counts = op_counts(graph)
    assert counts["MatMulIntegerToFloat"] == run.case.linears, counts
    consts = {i.name for i in graph.graph.initializer}
    left = [n.name for n in graph.graph.node if n.op_type in ("MatMul", "FusedMatMul", "Gemm") and set(n.input) & consts]
    # Rotations stay in float: two products for all channels, one for blocks, none for heads.
    assert left == measure.rotation_products(graph)
    products = {"kronecker": 2, "blocks": 1, "heads": 0}
    assert len(left) == sum(products[site["rotation"]["form"]] for site in run.report["sites"] if site["rotation"])


def check_report(run):
    """The keys of the report, and that its numbers can be true."""
    report, case = run.report, run.case
    assert {"settings", "linears", "sites", "float_check", "outputs", "seconds", "peak_memory_mb"} <= set(report)
    names = {n.name for n in onnx.load(case.model).graph.node}
    for entry in report["linears"]:
        assert {"name", "k", "n", "status", "reason"} <= set(entry) and entry["name"] in names
        assert entry["status"] in ("quantized", "skipped")
    in_sites = [name for site in report["sites"] for name in site["linears"]]
    assert len(in_sites) == len(set(in_sites)) and set(in_sites) <= {entry["name"] for entry in report["linears"]}
    for site in report["sites"]:
        assert {"value", "kind", "linears", "sink", "shift", "scale"} <= set(site)
        assert {"range_before", "range_after", "validated_gain_db"} <= set(site)
        assert site["validated_gain_db"] >= 0
    assert 0 <= report["float_check"]["max_relative_error"] <= 1e-5
    entry = report["outputs"][case.output]
    assert {"sqnr_db", "cosine", "plain_sqnr_db"} <= set(entry) and 0.9 < entry["cosine"] <= 1 + 1e-6
    assert report["peak_memory_mb"] > 0 and all(v >= 0 for v in report["seconds"].values())


# --- small models with planted outliers ---


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", TINY_CASES, ids=lambda c: c.name)
class TestTiny:
    def test_file(self, job, case, target):
        check_file(job(case, "--target", target))

    def test_fused(self, job, optimized, case, target):
        check_fused(job(case, "--target", target), optimized)

    def test_report(self, job, case, target):
        check_report(job(case, "--target", target))

    def test_beats_min_max(self, job, case, target):
        got = heldout_sqnr(case, job(case, "--target", target).path)
        assert got >= plain(job, case, target) + 3

    def test_linears_compute_what_the_standard_says(self, job, case, target):
        """Each Q → DQ → MatMul of the file, fed with real values: ONNX Runtime's int8 kernel against onnx.reference."""
        model, feeds = job(case, "--target", target).model(), case.load_heldout()
        feeds = {name: array[:4] for name, array in feeds.items()}
        made_by = producers(model)
        inner = [
            n for n in model.graph.node if n.op_type == "MatMul" and made_by.get(n.input[1], n).op_type == "DequantizeLinear"
        ]
        sources = {n.output[0]: made_by[made_by[n.input[0]].input[0]].input[0] for n in inner}
        values = capture(model, sorted(set(sources.values())), feeds)
        for node in inner:
            source, output = sources[node.output[0]], node.output[0]
            piece = linear_alone(model, source, node)
            # onnx.reference has these operators from opset 19 on; for int8 and uint8 they mean what they meant at 13.
            standard = linear_alone(model, source, node, opset=19)
            (expected,) = ReferenceEvaluator(standard).run(None, {source: values[source]})
            (got,) = session(piece).run([output], {source: values[source]})
            assert largest_relative_error(expected, got) <= 1e-5, node.name


def linear_alone(model, source, matmul, opset=None):
    """The nodes between the float value `source` and the output of `matmul`, as a model of the same or another opset."""
    made_by = producers(model)
    dq = made_by[matmul.input[0]]
    nodes = [made_by[dq.input[0]], dq, made_by[matmul.input[1]], matmul]
    assert nodes[0].input[0] == source
    used = {i for n in nodes for i in n.input}
    rank3 = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", None])  # noqa: E731
    graph = helper.make_graph(
        nodes, "one-linear", [rank3(source)], [rank3(matmul.output[0])], [i for i in model.graph.initializer if i.name in used]
    )
    opsets = model.opset_import if opset is None else [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(model.ir_version, 9))


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda c: c.name)
def test_float_format_is_the_same_function(job, case):
    """--format float changes constants, never the outputs."""
    run = job(case, "--format", "float")
    onnx.checker.check_model(str(run.path), full_check=True)
    counts = op_counts(run.model())
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 0
    feeds = case.load_heldout()
    expected, got = outputs(case.model, feeds), outputs(run.path, feeds)
    assert list(expected) == list(got)
    for name in expected:
        assert largest_relative_error(expected[name], got[name]) <= 1e-5, name


@pytest.mark.parametrize("case", [TINY, TINY_DECOMPOSED, TINY_LLAMA], ids=lambda c: c.name)
def test_float_format_has_weaker_outliers(job, case):
    """What the Linears read in the migrated float model is closer to uniform over its channels."""

    def worst_ratio(path):
        model, feeds = onnx.load(path), case.load_heldout()
        weights = {n for n, a in constants(model).items() if a.ndim == 2 and a.dtype == np.float32}
        read = {n.input[0] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights}
        made_by = producers(model)
        norms = {v for v in read if "orm" in made_by[v].name}
        assert norms, "no Linear reads a norm"
        real = feeds["attention_mask"].astype(bool)
        largest = [np.abs(x[real]).max(axis=0) for x in capture(model, sorted(norms), feeds).values()]
        return max(x.max() / np.median(x) for x in largest)

    assert worst_ratio(job(case, "--format", "float").path) < 0.5 * worst_ratio(case.model)


@pytest.mark.parametrize("options", [["--target", "ort"], ["--target", "portable"], ["--format", "float"]], ids=" ".join)
@pytest.mark.parametrize("case", TINY_CASES, ids=lambda c: c.name)
def test_everything_else_is_untouched(job, case, options):
    """Names and order of the nodes stay; nodes that are no part of a site or Linear keep every byte."""
    before, run = onnx.load(case.model), job(case, *options)
    after = run.model()
    consts = constants(before)
    weights = {name for name, array in consts.items() if array.ndim == 2 and array.dtype == np.float32}
    weights |= {n.output[0] for n in before.graph.node if n.op_type == "Transpose" and n.input[0] in weights}
    linears = [n for n in before.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    assert len(linears) == case.linears
    at_site = {n.input[0] for n in linears} | {n.output[0] for n in linears}
    kept = {n.name: n for n in after.graph.node}
    touchable = set()
    for node in before.graph.node:
        reads_float_constant = any(consts[i].dtype == np.float32 and consts[i].ndim for i in node.input if i in consts)
        if (
            at_site & {*node.input, *node.output}
            or (reads_float_constant and node.op_type != "Gather")
            or weights & {*node.output}
        ):
            touchable.add(node.name)
    untouched = [n for n in before.graph.node if n.name not in touchable]
    assert len(untouched) > 20
    for node in untouched:
        assert node.name in kept, f"{node.name} ({node.op_type}) is gone"
        assert kept[node.name].SerializeToString() == node.SerializeToString(), node.name
    old = [n.name for n in before.graph.node]
    assert [n.name for n in after.graph.node if n.name in set(old)] == [name for name in old if name in kept]
    assert len({n.name for n in after.graph.node}) == len(after.graph.node)
    assert after.graph.input == before.graph.input and after.graph.output == before.graph.output
    for table in ("embeddings.word_embeddings.weight", "embed_tokens.weight"):
        if table in consts:
            assert np.array_equal(constants(after)[table], consts[table])


# --- models that nobody here made ---


@pytest.mark.parametrize("target, gain", [("ort", 1.0), ("portable", 1.0)])
class TestMiniLmL3:
    def test_file(self, job, l3, target, gain):
        check_file(job(l3, "--target", target))

    def test_fused(self, job, optimized, l3, target, gain):
        check_fused(job(l3, "--target", target), optimized)

    def test_report(self, job, l3, target, gain):
        check_report(job(l3, "--target", target))

    def test_beats_min_max(self, job, l3, target, gain):
        assert heldout_sqnr(l3, job(l3, "--target", target).path) >= plain(job, l3, target) + gain

    def test_integer_outputs_are_exact(self, job, l3, target, gain):
        feeds = l3.load_heldout()
        expected, got = outputs(l3.model, feeds), outputs(job(l3, "--target", target).path, feeds)
        assert list(expected) == list(got)
        exact = [name for name in expected if expected[name].dtype == np.int64]
        assert len(exact) == 2 and all(np.array_equal(expected[name], got[name]) for name in exact)


@pytest.mark.parametrize("form, target", [("fused", "ort"), ("fused", "portable"), ("decomposed", "ort")])
class TestMiniLmL6:
    def test_file(self, job, l6, form, target):
        check_file(job(l6[form], "--target", target))

    def test_fused(self, job, optimized, l6, form, target):
        check_fused(job(l6[form], "--target", target), optimized)

    def test_report(self, job, l6, form, target):
        check_report(job(l6[form], "--target", target))

    def test_beats_min_max(self, job, l6, form, target):
        """Both forms are one function, so the fused one gives the plain figure."""
        got = heldout_sqnr(l6[form], job(l6[form], "--target", target).path)
        baseline = plain(job, l6["fused"], target)
        if target == "ort":
            assert got >= baseline + 2 and got >= 18.5
        else:
            assert got >= baseline + 1.5


def test_real_float_format_is_the_same_function(job, l3):
    run = job(l3, "--format", "float")
    feeds = l3.load_heldout()
    expected, got = outputs(l3.model, feeds), outputs(run.path, feeds)
    for name in expected:
        if expected[name].dtype == np.float32:
            assert largest_relative_error(expected[name], got[name]) <= 1e-5, name


@pytest.mark.parametrize("case_name", ["tiny", "l3"])
def test_two_runs_give_the_same_bytes(job, request, case_name):
    """Whatever the number of threads."""
    case = TINY if case_name == "tiny" else request.getfixturevalue("l3")
    first = job(case, "--target", "ort").path.read_bytes()
    assert job(case, "--target", "ort", "--threads", "1").path.read_bytes() == first
    assert job(case, "--target", "ort", "--threads", "3").path.read_bytes() == first


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda c: c.name)
def test_every_linear_input_has_a_sink(job, case):
    """Norms, V and the up projection take shift and scale for free; only behind GELU a Mul is inserted."""
    run = job(case)
    kinds = {site["value"]: site["kind"] for site in run.report["sites"]}
    assert "plain" not in kinds.values(), kinds
    explicit = [value for value, kind in kinds.items() if kind == "explicit"]
    assert all("act" in value for value in explicit), explicit
    assert bool(explicit) == (case is not TINY_LLAMA), "a gated FFN folds into its up projection"


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda c: c.name)
def test_no_extra_nodes(job, case):
    """Everything that can be folded still is; on the way to the Linears nothing is added but Q and DQ."""
    default, run = job(case), job(case, "--no-extra-nodes")
    count = lambda job: sum("migrate_scale" in n.name for n in job.model().graph.node)  # noqa: E731
    folded = [s for s in default.report["sites"] if s["kind"] == "explicit" and s["sink"]]
    assert count(default) == len(folded) and count(run) == 0
    assert "explicit" not in {site["kind"] for site in run.report["sites"]}
    assert heldout_sqnr(case, run.path) > plain(job, case, "ort")
