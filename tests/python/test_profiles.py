"""The table of targets (src/target/table.rs) on the real runtimes: what is written for a target runs there in 8 bits and
gives the right numbers, and what is not written for it would not.

All on one small model (test_bits.layers: five Linears in every form); test_targets.py has the architectures.
"""

import numpy as np
import onnx
import pytest
import runtimes
from conftest import run_tool
from measure import constants, sqnr
from onnx import TensorProto, helper, numpy_helper
from test_bits import FLOATS, K, layers

SHAPES = {"x": (2, 6, K)}
LINEARS = ["up", "down", "head", "head2", "head3"]
BITS = [("8", "8"), ("6", "6"), ("4", "4"), ("4", "8")]
FEEDS = {"x": np.random.default_rng(8).normal(size=SHAPES["x"]).astype(np.float32)}


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """written(target, opset, dtype, options…) → the path of the small model as the tool writes it."""
    done = {}

    def run(target, opset=17, dtype="float32", *options):
        key = (target, opset, dtype, *options)
        if key not in done:
            folder = tmp_path_factory.mktemp("profile")
            onnx.save(layers(opset, dtype), folder / "in.onnx")
            x = np.random.default_rng(6).normal(size=(16, 6, K))
            np.save(folder / "x.npy", x.astype(np.float16 if dtype == "float16" else np.float32))
            out = folder / "out.onnx"
            result = run_tool(folder / "in.onnx", out, "--calib", folder / "x.npy", "--target", target, *options)
            assert result.returncode == 0, result.stderr
            onnx.checker.check_model(str(out), full_check=True)
            done[key] = out
        return done[key]

    return run


def bits(pair):
    return ["--weight-bits", pair[0], "--activation-bits", pair[1]]


def unoptimized(path):
    """What the file says, by ONNX Runtime without any fusion."""
    session = runtimes.onnx_runtime_session(path, "disable")
    x = FEEDS["x"].astype(np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x})))


def tensorrt_float(path):
    """The Linears of a file that TensorRT-RTX would not multiply in int8."""
    parsed = runtimes.tensorrt_parse(path)
    assert parsed.ok, parsed.errors
    assert not [w for w in parsed.warnings if runtimes.QUANTIZATION.search(w)], parsed.warnings
    engine, warnings = runtimes.tensorrt_layers(parsed, SHAPES, SHAPES)
    assert engine is not None, warnings
    return [name for name in LINEARS if not runtimes.tensorrt_integer(engine, name)]


def openvino_types(path):
    layers = runtimes.openvino_layers(runtimes.openvino_compile(path))
    return [layer.types[0] for layer in layers if layer.kind in ("FullyConnected", "MatMul")]


# --- What is written ---

EXTRA = [(), ("--weight-granularity", "per-tensor"), ("--weights-as-float-qdq",)]
FORMS = [(opset, "float32", (*bits(pair),)) for opset in (17, 21) for pair in BITS]
FORMS += [(17, "float32", extra) for extra in EXTRA[1:]] + [(opset, "float16", ()) for opset in (17, 21)]
FORMS += [(21, "float16", ("--weights-as-float-qdq",)), (21, "bfloat16", ())]
NEWEST = 27  # of every target
FORMS += [(NEWEST, "float32", ())]


def form_id(form):
    opset, dtype, options = form
    return f"{opset}-{dtype}-{'-'.join(o.strip('-') for o in options)}"


@pytest.mark.parametrize("form", FORMS, ids=form_id)
@pytest.mark.parametrize("target", ["tensorrt", "portable"])
def test_tensorrt_multiplies_in_int8(written, target, form):
    opset, dtype, options = form
    assert tensorrt_float(written(target, opset, dtype, *options)) == []


@pytest.mark.parametrize("form", FORMS, ids=form_id)
@pytest.mark.parametrize("target", ["openvino", "portable"])
def test_openvino_multiplies_in_8_bits(written, target, form):
    opset, dtype, options = form
    path = written(target, opset, dtype, *options)
    assert openvino_types(path) == ["i8"] * len(LINEARS)
    if dtype == "bfloat16":
        return  # ONNX Runtime has nothing to compare with
    expected = unoptimized(path)
    compiled = runtimes.openvino_compile(path)
    got = compiled({"x": FEEDS["x"].astype(FLOATS[dtype][0])})
    for name, reference in expected.items():
        # A rounding that falls the other way at a tie is one step; a Clip that is lost would be far more.
        assert np.array_equal(reference, got[name]) or sqnr(reference, got[name]) > 45, name


@pytest.mark.parametrize("form", [f for f in FORMS if f[1] != "bfloat16"], ids=form_id)
@pytest.mark.parametrize("target", ["ort", "portable"])
def test_onnx_runtime_multiplies_integers(written, target, form, tmp_path):
    opset, dtype, options = form
    path = written(target, opset, dtype, *options)
    graph = runtimes.onnx_runtime_graph(path, tmp_path)
    assert runtimes.products(graph) == (len(LINEARS), [])
    if "--weights-as-float-qdq" in options:
        stored = constants(graph).values()
        assert not any(a.ndim == 2 and a.dtype == np.float32 and a.shape[0] > 1 for a in stored), "folded to int8"


@pytest.mark.parametrize("target", ["ort", "openvino", "portable"])
def test_reduced_range_cannot_saturate(written, target):
    """No two weights with which a uint8 gives more than 16 bits, the sum before VNNI."""
    consts = constants(onnx.load(written(target, 17, "float32", "--reduce-range")))
    weights = [a for a in consts.values() if a.dtype == np.int8 and a.ndim == 2]
    assert len(weights) == len(LINEARS)
    assert max(np.abs(w.astype(int)).max() for w in weights) == 63
    assert 2 * 255 * 63 <= np.iinfo(np.int16).max < 2 * 255 * 127


def test_reduced_range_is_refused_where_nothing_saturates(tmp_path):
    onnx.save(layers(17), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", np.ones((2, 6, K), np.float32))
    arguments = ["--calib", tmp_path / "x.npy", "--target", "tensorrt", "--reduce-range"]
    result = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", *arguments)
    assert result.returncode == 2 and "--target tensorrt" in result.stderr and "leave it out" in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_float_weights_are_the_same_weights(written):
    """The same numbers bit for bit: error feedback survives."""
    stored, float_ = unoptimized(written("ort")), unoptimized(written("ort", 17, "float32", "--weights-as-float-qdq"))
    assert all(np.array_equal(stored[name], float_[name]) for name in stored)


@pytest.mark.parametrize("opset", [NEWEST, NEWEST + 1])
@pytest.mark.parametrize("target", ["ort", "tensorrt", "openvino", "portable"])
def test_a_newer_operator_set_is_told(target, opset, tmp_path):
    onnx.save(layers(opset), tmp_path / "in.onnx")
    np.save(tmp_path / "x.npy", FEEDS["x"])
    result = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "x.npy", "--target", target)
    assert result.returncode == 0, result.stderr
    assert (f"opset {opset} is newer than {NEWEST}" in result.stdout + result.stderr) == (opset > NEWEST)


# --- Why it is not written otherwise ---


def test_each_linear_needs_a_pair_of_its_own_in_onnx_runtime(written, tmp_path):
    """R4, R5: an int8 Q that is shared, and a Gemm with a float bias, stay in float. So `portable` is not `tensorrt`."""
    _, left = runtimes.products(runtimes.onnx_runtime_graph(written("tensorrt"), tmp_path))
    assert left
    assert "head" in left  # a Gemm with a float bias


@pytest.mark.parametrize("opset", range(21, NEWEST + 1))
def test_output_dtype_is_what_onnx_runtime_stumbles_over(written, opset):
    """R6: int8 Q/DQ is fine at any operator set, if only the zero point tells the type."""
    model = onnx.load(written("portable", 21))
    model.opset_import[0].version = opset
    model.ir_version = 10 if opset < 23 else 11
    runtimes.onnx_runtime_session(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            node.attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    onnx.checker.check_model(model, full_check=True)
    with pytest.raises(Exception, match="output_dtype INT8 does not match y_zero_point type UINT8"):
        runtimes.onnx_runtime_session(model)


def test_tensorrt_has_no_cast_of_int4(written):
    """So only targets without it get weights in INT4."""
    path = written("openvino", 21, "float32", *bits(("4", "8")))
    assert any(i.data_type == TensorProto.INT4 for i in onnx.load(path).graph.initializer)
    parsed = runtimes.tensorrt_parse(path)
    engine, warnings = runtimes.tensorrt_layers(parsed, SHAPES, SHAPES) if parsed.ok else (None, parsed.warnings)
    assert engine is None and any("Int4" in w for w in warnings), warnings
    for target in ("tensorrt", "portable"):
        model = onnx.load(written(target, 21, "float32", *bits(("4", "8"))))
        assert not any(i.data_type == TensorProto.INT4 for i in model.graph.initializer)


def float16_linear(scales):
    """One Linear in float16 at opset 21 with its scales in `scales`: float16, or float32 between Casts."""
    random = np.random.default_rng(3)
    wide = scales == np.float32
    made = {
        "x_scale": np.asarray(0.02, scales),
        "x_zero": np.int8(0),
        "w": random.integers(-127, 128, (K, 16)).astype(np.int8),
        "w_scale": random.uniform(0.001, 0.002, 16).astype(scales),
        "w_zero": np.zeros(16, np.int8),
        "b": random.normal(size=(1, 16)).astype(np.float16),
    }
    nodes = [helper.make_node("Cast", ["x"], ["x0"], "widen", to=TensorProto.FLOAT)] if wide else []
    nodes += [
        helper.make_node("QuantizeLinear", ["x0" if wide else "x", "x_scale", "x_zero"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], "dq"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], "w_dq", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["p"], "linear"),
    ]
    nodes += [helper.make_node("Cast", ["p"], ["p0"], "narrow", to=TensorProto.FLOAT16)] if wide else []
    nodes.append(helper.make_node("Add", ["p0" if wide else "p", "b"], ["y"], "bias"))
    info = lambda name, n: helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["b", "s", n])  # noqa: E731
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in made.items()]
    graph = helper.make_graph(nodes, "half", [info("x", K)], [info("y", 16)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("scales, sums", [(np.float16, "Half"), (np.float32, "Float")], ids=["scales in float16", "Casts"])
def test_integer_sums_need_float32(scales, sums, tmp_path):
    """With scales in float16 TensorRT-RTX hands the unscaled integer sums on in float16, whose largest number is 65504."""
    onnx.save(float16_linear(scales), tmp_path / "half.onnx")
    engine, warnings = runtimes.tensorrt_layers(runtimes.tensorrt_parse(tmp_path / "half.onnx"), SHAPES, SHAPES)
    assert engine is not None, warnings
    assert runtimes.tensorrt_integer(engine, "linear")
    (behind,) = [layer for layer in engine if "bias" in layer.nodes and layer.types.count("Int8") == 0]
    assert behind.types[0] == sums, "what the product gives, the scales being applied behind it"
