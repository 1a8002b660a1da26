"""--format qoperator: integer operators whose numbers are those that ONNX and ONNX Runtime define, and calibrated outputs."""

import json
import re

import architectures
import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import runtimes
from conftest import TINY, TINY_CASES, run_tool
from measure import capture, constants, heldout_sqnr, op_counts, optimized_model, outputs, producers, sqnr, stored_matrices
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from test_architectures import sqnrs
from test_bits import K, layers
from test_snapshots import SNAPSHOTS

INTEGER = ("QLinearMatMul", "QGemm")
FORMAT = ("--format", "qoperator")


class QGemm(OpRun):
    """ONNX Runtime's operator by its definition, in integers up to the last step."""

    op_domain = "com.microsoft"

    def _run(self, a, a_scale, a_zero, b, b_scale, b_zero, c=None, y_scale=None, y_zero=None, alpha=1.0, transA=0, transB=0):  # noqa: N803
        a, b = a.astype(np.int64) - a_zero, b.astype(np.int64) - (b_zero[:, None] if transB and b_zero.ndim else b_zero)
        total = (a.T if transA else a) @ (b.T if transB else b)
        if c is not None:
            total = total + c
        assert y_scale is None and y_zero is None
        return ((total * (np.float64(alpha) * a_scale * b_scale.astype(np.float64))).astype(np.float32),)


def qlinear_matmul(a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    """The operator by its definition, before rounding."""
    total = (a.astype(np.int64) - a_zero) @ (b.astype(np.int64) - b_zero)
    return total * (np.float64(a_scale) * b_scale.astype(np.float64) / np.float64(y_scale)) + y_zero


class QLinearMatMul(OpRun):
    """The reference's own (onnx 1.20) wraps around where ONNX says that it saturates."""

    def _run(self, *args):
        return (np.clip(np.rint(qlinear_matmul(*args)), 0, 255).astype(np.uint8),)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """written(model, x, options…) → (the model as written, its path, the report)."""

    def run(model, x, *options, status=0):
        folder = tmp_path_factory.mktemp("qoperator")
        onnx.save(model, folder / "in.onnx")
        np.save(folder / "x.npy", x)
        out, report = folder / "out.onnx", folder / "report.json"
        result = run_tool(folder / "in.onnx", out, "--calib", folder / "x.npy", "--no-layers", "--report", report, *FORMAT, *options)
        assert result.returncode == status, result.stderr
        if status:
            return result.stderr
        onnx.checker.check_model(str(out), full_check=True)
        return onnx.load(out), out, json.loads(report.read_text())

    return run


def check_numbers(model, feeds):
    """Every integer operator gives what its definition says: QLinearMatMul to the integer, but for sums that end within
    float32's rounding of a half; QGemm to the rounding of float32."""
    known, made_by = constants(model), producers(model)
    nodes = [n for n in model.graph.node if n.op_type in INTEGER]
    names = {i for n in nodes for i in (n.input[0], n.output[0])}
    names |= {n.input[3] for n in nodes if n.input[3] not in known}
    values = known | capture(model, sorted(names), feeds)
    for node in nodes:
        a, *_ = args = [values[i] for i in node.input]
        assert a.dtype == np.uint8 and args[3].dtype == np.int8, node.name
        assert made_by[node.input[0]].op_type == "QuantizeLinear"
        found = values[node.output[0]]
        if node.op_type == "QGemm":
            attributes = {at.name: helper.get_attribute_value(at) for at in node.attribute}
            (expected,) = QGemm._run(None, *args, **attributes)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
            continue
        exact = qlinear_matmul(*args)
        expected = np.clip(np.rint(exact), 0, 255)
        assert found.dtype == np.uint8 and args[-1].dtype == np.uint8
        close = np.abs(exact - np.floor(exact) - 0.5) < 1e-3
        np.testing.assert_array_equal(found[~close], expected[~close])
        assert np.abs(found - expected).max() <= 1
    return nodes


def agree(model, feeds):
    """All optimization levels of ONNX Runtime and onnx.reference give the same, but for steps at rounding borders."""
    names = [o.name for o in model.graph.output]
    levels = ort.GraphOptimizationLevel
    results = []
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_EXTENDED, levels.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results.append(session.run(names, feeds))
    if model.opset_import[0].version >= 19:  # the reference has no older DequantizeLinear
        reference = ReferenceEvaluator(model, new_ops=[QGemm, QLinearMatMul])
        results.append(reference.run(names, feeds))
    for other in results[1:]:
        for name, a, b in zip(names, results[0], other):
            assert a.shape == b.shape and a.dtype == b.dtype, name
            assert np.array_equal(a, b) or sqnr(a, b) > 40, name


def batch(dtype=np.float32, rows=16):
    return np.random.default_rng(6).normal(size=(rows, 6, K)).astype(dtype)


@pytest.mark.parametrize("options", [(), ("--weight-bits", "4", "--activation-bits", "6"), ("--weight-granularity", "per-tensor")],
                         ids=["8 bits", "4 bits", "per tensor"])
@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_every_form_is_what_it_is_defined_to_be(written, tmp_path, dtype, opset, options):
    given = layers(opset, dtype)
    x = batch(np.dtype(dtype))
    model, path, report = written(given, x, *options)
    counts = op_counts(model)
    # Two MatMuls over three axes; two Gemms and a MatMul over two.
    assert counts["QLinearMatMul"] == 2 and counts["QGemm"] == 3 and counts["MatMul"] == counts["Gemm"] == 0
    assert all(linear["status"] == "quantized" for linear in report["linears"])
    feeds = {"x": batch(np.dtype(dtype), rows=3)}
    nodes = check_numbers(model, feeds)
    per_tensor = "per-tensor" in options
    for node in nodes:
        scale = constants(model)[node.input[4]]
        assert (scale.ndim == 0) == per_tensor, node.name
    assert not per_tensor or not any("factors" in i.name for i in model.graph.initializer)
    agree(model, feeds)
    left = op_counts(optimized_model(path, tmp_path / "optimized.onnx"))
    assert left["QLinearMatMul"] == 2 and left["QGemm"] == 3
    for name, value in outputs(given, feeds).items():
        limit = 12 if "4" in options else 25
        assert sqnr(value, outputs(model, feeds)[name]) > limit, name


def test_linears_of_one_input_and_of_one_weight(written):
    """q and k read one QuantizeLinear; two Linears with one weight keep it one, each with the output scale of its own."""
    random = np.random.default_rng(0)
    made = {"g": np.ones(K), "wq": random.normal(size=(K, K)), "wk": random.normal(size=(K, K)), "w": random.normal(size=(K, K))}
    made["wq"][:, 2] *= 60  # an outlier column
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "wq"], ["q"], "query"),
        helper.make_node("MatMul", ["n", "wk"], ["k"], "key"),
        helper.make_node("Add", ["q", "k"], ["s"], "sum"),
        helper.make_node("Tanh", ["s"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w"], ["u"], "first"),
        helper.make_node("Sigmoid", ["u"], ["v"], "sigmoid"),
        helper.make_node("MatMul", ["v", "w"], ["y"], "second"),
    ]
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", K])  # noqa: E731
    constants_ = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in made.items()]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y"), info("q")], constants_)
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    model, _, _ = written(given, batch())
    by_name = {n.name: n for n in model.graph.node}
    assert by_name["query"].input[0] == by_name["key"].input[0]
    assert by_name["first"].input[3] == by_name["second"].input[3]
    assert by_name["first"].input[6] != by_name["second"].input[6]
    assert stored_matrices(model, TensorProto.INT8) == 3
    # The outlier column has a step of its own; `q` is a graph output and keeps its name.
    values = constants(model)
    (factors,) = (values[i.name] for i in model.graph.initializer if i.name.startswith("q_factors"))
    assert factors.argmax() == 2 and np.median(factors) < 0.1
    feeds = {"x": batch(rows=3)}
    check_numbers(model, feeds)
    agree(model, feeds)
    for name in ("y", "q"):
        assert sqnr(outputs(given, feeds)[name], outputs(model, feeds)[name]) > 30
    # Without more nodes there is one step for all columns.
    plain, _, _ = written(given, batch(), "--no-extra-nodes")
    assert "Mul" not in op_counts(plain)
    ordinary = [c for c in range(K) if c != 2]
    error = [sqnr(outputs(given, feeds)["q"][..., ordinary], outputs(m, feeds)["q"][..., ordinary]) for m in (model, plain)]
    assert error[0] > error[1] + 10, error


def test_a_computed_bias_and_a_vector(written):
    """Gemm with a computed bias and beta; a MatMul of a vector for each row is a matrix, of one vector alone none."""
    random = np.random.default_rng(1)
    made = {"w": random.normal(size=(K, 5)), "v": random.normal(size=(K, 7))}
    sizes = {"shape": np.array([-1, K]), "last": np.array([1]), "first": np.array([0, 1])}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"], "flatten"),
        helper.make_node("ReduceMean", ["rows", "last"], ["c"], "mean", keepdims=1),
        helper.make_node("Gemm", ["rows", "w", "c"], ["y"], "gemm", alpha=2.0, beta=3.0),
        helper.make_node("ReduceMean", ["x", "first"], ["one"], "pool", keepdims=0),
        helper.make_node("MatMul", ["one", "v"], ["z"], "vector"),
    ]
    info = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    constants_ = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in made.items()]
    constants_ += [numpy_helper.from_array(a, n) for n, a in sizes.items()]
    graph = helper.make_graph(nodes, "g", [info("x", "b", "s", K)], [info("y", "t", 5), info("z", 7)], constants_)
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    model, _, _ = written(given, batch())
    assert op_counts(model)["QGemm"] == 1 and op_counts(model)["QLinearMatMul"] == 1
    feeds = {"x": batch(rows=3)}
    check_numbers(model, feeds)
    agree(model, feeds)
    assert sqnr(outputs(given, feeds)["y"], outputs(model, feeds)["y"]) > 30


@pytest.mark.parametrize("case", TINY_CASES, ids=lambda case: case.name)
def test_calibrated_outputs_keep_the_gain(job, optimized, case):
    # Without rotations, which each form takes or leaves for itself.
    same = ("--max-slowdown", "0")
    ours, plain, qdq = job(case, *FORMAT, *same), job(case, *FORMAT, "--method", "none"), job(case, *same)
    for path in (ours.path, plain.path):
        counts, left = op_counts(onnx.load(path)), op_counts(optimized(path))
        assert sum(counts[op] for op in INTEGER) == case.linears == sum(left[op] for op in INTEGER)
        assert counts["QLinearMatMul"] > 0
    ours_db, plain_db, qdq_db = (heldout_sqnr(case, j.path) for j in (ours, plain, qdq))
    assert ours_db > plain_db + 5, (ours_db, plain_db)
    assert ours_db > qdq_db - 8, (ours_db, qdq_db)
    # What the tool itself measured with qdq is what qdq gives.
    (note,) = (n for n in ours.report["notes"] if "format qdq" in n)
    said = re.search(rf"`{re.escape(case.output)}` ([\d.]+) dB, ([\d.]+) dB with qdq", note)
    assert abs(float(said[1]) - ours.report["outputs"][case.output]["sqnr_db"]) < 0.006
    assert abs(float(said[2]) - qdq.report["outputs"][case.output]["sqnr_db"]) < 0.006
    assert ours.report["outputs"][case.output]["plain_sqnr_db"] == pytest.approx(
        plain.report["outputs"][case.output]["sqnr_db"], abs=1e-9
    )
    assert "usually less accurate" in ours.stdout and ours.report["settings"]["format"] == "qoperator"


def test_the_same_bytes_with_any_number_of_threads(job):
    one, two = job(TINY, *FORMAT, "--threads", "1"), job(TINY, *FORMAT, "--threads", "2")
    assert one.path.read_bytes() == two.path.read_bytes()


# Decoders with one head of values and fused scores, both branches of an If, float16, weights shared by layers.
ARCHITECTURES = [
    "falcon-dynamo18-sdpa",
    "llama-script14-eager-extended",
    "gpt2-script14-eager-merged",
    "bert-script17-eager-float16",
    "albert-script14-sdpa",
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(tmp_path, name):
    row = architectures.ROWS[name]
    done, out, report = architectures.quantize(row, *FORMAT)
    assert done.returncode == 0, done.stderr
    integer, left = runtimes.products(runtimes.onnx_runtime_graph(out, tmp_path))
    assert integer == sum(linear["status"] == "quantized" for linear in report["linears"]) and not left
    given = architectures.FOLDER / row["file"]
    feeds = architectures.feeds_of(row, onnx.load(given), *architectures.HELD_OUT)
    found = sqnrs(row, architectures.run(given, row, feeds), out, feeds)
    for output, db in found.items():
        plain = report["outputs"][output]["plain_sqnr_db"]
        assert db > plain + 5, (output, db, plain)


@pytest.mark.parametrize("target, reason", [("tensorrt", "TensorRT's parser rejects"), ("openvino", "OpenVINO fails to convert"),
                                            ("portable", "TensorRT rejects QLinearMatMul")])
def test_other_targets_refuse_with_the_reason(written, target, reason):
    stderr = written(layers(17), batch(), "--target", target, status=2)
    assert reason in stderr and f"--target {target}" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("path", sorted(SNAPSHOTS[0].parent.glob("all__qoperator__*.snap")), ids=lambda p: p.stem.removeprefix("all__qoperator__"))
def test_snapshot_runs(path):
    parts = re.split(r"^# (?=before|quantized)", path.read_text().split("---\n", 2)[2], flags=re.MULTILINE)[1:]
    models = dict(part.split("\n", 1) for part in parts)
    before, after = (onnx.parser.parse_model(models[title]) for title in ("before", "quantized"))
    kind = before.graph.input[0].type.tensor_type
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).reshape((2, 3, 4) if len(kind.shape.dim) == 3 else (6, 4))
    feeds = {"x": x.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))}
    onnx.checker.check_model(after, full_check=True)
    expected, found = outputs(before, feeds), outputs(after, feeds)
    assert {n: (v.shape, v.dtype) for n, v in expected.items()} == {n: (v.shape, v.dtype) for n, v in found.items()}
    assert check_numbers(after, feeds)
    for name, value in expected.items():
        # The ranges of the snapshots are wide for these numbers; four bits are few.
        assert sqnr(value, found[name]) > (0 if "4_bits" in path.stem else 10), name
