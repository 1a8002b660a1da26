"""No lint rule is folklore: for each a file that breaks it and its mended twin, and the runtime's own word on both.

`onnx-osplus lint` finds exactly the rule in the first and nothing in the second; then the runtime itself shows that the
first is rejected, computed wrongly or in float, slow or inaccurate, and the second is not.
"""

import json
import re
import subprocess
import sys
import time
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import block_forms
import lint_forms as forms
import lint_runtimes as rt
import numpy as np
import onnx
import pytest
from block_forms import nbits, per_token, run_time_blocks
from conftest import ROOT, run_tool
from onnx import TensorProto, helper, numpy_helper

U8, S8 = np.uint8, np.int8

# ------------------------------------------------------------------------------- what a runtime does to both files


def feed_of(model):
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return forms.feed(len(shape), shape[-1])


def ort_rejects(broken, mended, level=rt.ALL):
    with pytest.raises(Exception):
        rt.ort_run(broken, feed_of(broken), level)
    assert np.isfinite(rt.ort_run(mended, feed_of(mended), level)).all()


def ort_rejects_unfused(broken, mended):
    ort_rejects(broken, mended, rt.NONE)


def ort_in_float(broken, mended, dims=None):
    def in_float(model):
        # From 1.32 on a weight alone may stay stored in integers: MatMulNBits multiplies it by floats.
        return any(op in ("MatMul", "Gemm", "MatMulNBits") for op in rt.ort_operators(model, dims))

    assert in_float(broken) and not in_float(mended), (rt.ort_operators(broken, dims), rt.ort_operators(mended, dims))


def ort_in_float_if_static(broken, mended):
    ort_in_float(broken, mended, {"b": 2, "s": 8})


def error(found, wanted):
    return np.sqrt(((found - wanted) ** 2).sum() / (wanted**2).sum())


def ort_wrong(broken, mended):
    def change(model):
        return error(rt.ort_run(model, feed_of(model)), rt.ort_run(model, feed_of(model), rt.NONE))

    assert change(broken) > 0.05 and change(mended) < 0.001, (change(broken), change(mended))


def ort_loses_bias(broken, mended):
    """Column 0 of the weight is zero in both, so the bias is all there is to see."""
    lost, whole = (rt.ort_run(model, feed_of(model))[:, 0] for model in (broken, mended))
    assert error(lost, whole) > 0.05, (lost, whole)


def ort_slow(broken, mended, k=512):
    def seconds(model):
        session = rt.ort_session(model)
        given = {"x": np.random.default_rng(0).normal(size=(4, 128, k)).astype(np.float32)}
        session.run(None, given)
        best = []
        for _ in range(7):
            start = time.thread_time()
            session.run(None, given)
            best.append(time.thread_time() - start)
        return min(best)

    assert seconds(broken) > 1.5 * seconds(mended)


def ort_slow_1024(broken, mended):
    ort_slow(broken, mended, 1024)


def ort_slow_for_one_token(broken, mended):
    def seconds(model):
        session = rt.ort_session(model)
        given = {"x": np.ones((1, 1, 512), np.float32)}
        times = []
        for _ in range(30):
            start = time.thread_time()
            session.run(None, given)
            times.append(time.thread_time() - start)
        return min(times)

    assert seconds(broken) > 3 * seconds(mended)


def ort_reads_other_zero_points(broken, mended):
    """The groups of the first follow each other, so that both mean the same."""
    found, wanted = (rt.ort_run(model, feed_of(model)) for model in (broken, mended))
    assert error(found, wanted) > 0.05


def trt_builds_no_engine(broken, mended):
    parsed, _ = rt.trt_parse(broken)
    assert parsed
    with pytest.raises(AssertionError):
        rt.trt_engine(broken)
    assert rt.trt_engine(mended)


def ov_weights_in_float(broken, mended):
    assert rt.ov_weight_types(broken) == ["f32"] and rt.ov_weight_types(mended) == ["u4"]


def ov_multiplies_floats(broken, mended):
    """Activations that are rounded to 8 bits show in the output."""

    def change(model):
        return error(rt.ov_run(model, feed_of(model)), rt.ort_run(model, feed_of(model), rt.NONE))

    assert change(broken) < 1e-5 and 1e-3 < change(mended) < 0.02, (change(broken), change(mended))


def ov_dies(broken, mended):
    def status(model, folder):
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        code = "import sys, onnx, lint_forms, lint_runtimes as rt; rt.ov_run(onnx.load(sys.argv[1]), lint_forms.feed())"
        return subprocess.run([sys.executable, "-c", code, path], cwd=Path(__file__).parent, capture_output=True).returncode

    with tempfile.TemporaryDirectory() as folder:
        assert status(broken, folder) != 0 and status(mended, folder) == 0


def trt_rotates_in_float(broken, mended):
    """Each value is rounded on its way in the imported network; which products are in int8 is the builder's choice."""
    assert rt.trt_quantize_types(broken) == ["INT8"] * 3 and rt.trt_engine(broken)
    assert rt.trt_quantize_types(mended) == ["INT8"] and rt.trt_engine(mended)


def ov_rotates_in_float(broken, mended):
    assert "f32" not in rt.ov_product_types(broken)
    assert rt.ov_product_types(mended) == ["f32", "u8"]


def only_mended_fuses(*operators):
    def check(broken, mended):
        def fused(model):
            return any(op in operators for op in rt.ort_operators(model))

        assert fused(mended) and not fused(broken), (rt.ort_operators(broken), rt.ort_operators(mended))

    return check


def less_accurate(reference, factor):
    """`broken` is at least `factor` times as far from the float model as `mended`."""

    def check(broken, mended):
        wanted = rt.ort_run(reference, feed_of(reference))
        errors = [error(rt.ort_run(model, feed_of(model)), wanted) for model in (broken, mended)]
        assert errors[0] > factor * errors[1] and errors[0] > 0.005, errors

    return check


def float_residual():
    model = forms.linear(bias=None, n=forms.K, quantize_x=False, quantize_w=False)
    nodes = list(model.graph.node)
    nodes[-1].output[0] = "product"
    nodes.append(forms.node("Add", ["product", "x"], ["y"]))
    return forms.model(nodes, {"W": model.graph.initializer[0]}, y=("b", "s", forms.K))


def trt_rejects(broken, mended):
    network, errors = rt.trt_parse(broken)
    assert network is None and errors
    assert rt.trt_engine(mended)


def trt_in_float(broken, mended):
    assert rt.trt_product_types(broken) == ["float"]
    assert rt.trt_product_types(mended) == ["int8"]


def trt_misreads(broken, mended):
    """ONNX says uint8, the network int8: 128 to 255 steps become 127."""

    def said(model):
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        info = next(v for v in inferred.graph.value_info if v.name == "x_q")
        return info.type.tensor_type.elem_type

    assert said(broken) == TensorProto.UINT8 and rt.trt_quantize_types(broken) == ["INT8"]
    assert said(mended) == TensorProto.INT8 and rt.trt_quantize_types(mended) == ["INT8"]


def ov_rejects(broken, mended):
    with pytest.raises(Exception):
        rt.ov_compile(broken)
    assert rt.ov_compile(mended)


def ov_in_float(broken, mended):
    assert rt.ov_product_types(broken) == ["f32"]
    assert set(rt.ov_product_types(mended)) <= {"i8", "u8"}


def ov_wrong(broken, mended):
    def change(model):
        return error(rt.ov_run(model, feed_of(model)), rt.ort_run(model, feed_of(model), rt.NONE))

    assert change(broken) > 0.05 and change(mended) < 0.001, (change(broken), change(mended))


# ------------------------------------------------------------------------------------------------------ the files


@dataclass(frozen=True)
class Case:
    rule: str
    target: str
    cost: str
    broken: Callable
    mended: Callable
    confirm: Callable
    also: tuple = ()  # rules that the same fault breaks as well
    name: str = ""


def u8(**more):
    return lambda: forms.linear(U8, **more)


def s8(**more):
    return lambda: forms.linear(S8, **more)


def contrib(op, inputs, constants, y=("b", "s", forms.K), **attributes):
    return lambda: forms.model([helper.make_node(op, inputs, ["y"], name=op, domain="com.microsoft", **attributes)], constants, y=y)


def with_constant(dtype):
    extra = helper.make_tensor("unread", dtype, [2], [1, 2])
    return forms.model([forms.node("Relu", ["x"], ["y"])], {"unread": extra}, y=("b", "s", forms.K))


def with_input(dtype):
    mask = helper.make_tensor_value_info("mask", dtype, ("b", "s", 1))
    nodes = [forms.node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT), forms.node("Mul", ["x", "m"], ["y"])]
    return forms.model(nodes, {}, y=("b", "s", forms.K), more_inputs=[mask])


def mean(folded):
    nodes, constants = [forms.node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)], {"axes": np.array([-1])}
    if not folded:
        constants = {"axis": np.array(-1), "shape": np.array([1])}
        nodes.insert(0, forms.node("Reshape", ["axis", "shape"], ["axes"]))
    return forms.model(nodes, constants, y=("b", "s", 1), opset=18)


def attention(mask):
    """The builder crashes where Q, K and V are one value, so each gets a product of its own."""
    constants = {name: np.eye(forms.K, dtype=np.float32) for name in "qkv"}
    nodes = [forms.node("MatMul", ["x", name], [f"{name}_x"]) for name in "qkv"]
    inputs = ["q_x", "k_x", "v_x"]
    if mask:
        constants["mask"] = np.ones((1, 8), np.int32)
        inputs += ["", "mask"]
    nodes.append(helper.make_node("MultiHeadAttention", inputs, ["y"], name="attention", domain="com.microsoft", num_heads=4))
    return forms.model(nodes, constants, x=(1, 8, forms.K), y=(1, 8, forms.K))


def window(size):
    """Each token sees as many before it, as an attribute of opset 25 or in a mask."""
    constants, inputs, attributes = {}, ["x", "x", "x"], {"left_window_size": size}
    if size is None:
        own = np.arange(8)
        constants, attributes = {"mask": own[None] >= own[:, None] - 1}, {}
        inputs.append("mask")
    nodes = [forms.node("Attention", inputs, ["y"], q_num_heads=4, kv_num_heads=4, **attributes)]
    return forms.model(nodes, constants, x=(2, 8, forms.K), y=(2, 8, forms.K), opset=25)


def integer_operator():
    q, scale = forms.quantized(forms.weights(), axis=None)
    nodes = [
        forms.node("DynamicQuantizeLinear", ["x"], ["x_q", "x_scale", "x_zero"]),
        forms.node("MatMulInteger", ["x_q", "W_q", "x_zero"], ["sum"]),
        forms.node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
        forms.node("Mul", ["x_scale", "W_scale"], ["scale"]),
        forms.node("Mul", ["float", "scale"], ["y"]),
    ]
    return forms.model(nodes, dict(W_q=q, W_scale=scale))


def in_form(form, k=forms.K, opset=21):
    """One Linear in a fine-grained form."""

    def make():
        model = forms.model([forms.node("MatMul", ["x", "W"], ["y"])], {"W": forms.weights(k)}, x=("b", "s", k), opset=opset)
        model.opset_import.append(helper.make_opsetid(block_forms.MS, 1))
        made, _ = form(model)
        if not any(node.domain for node in made.graph.node):
            del made.opset_import[1:]
        return made

    return make


def typed_output(attributes):
    return forms.linear(S8, opset=21, a_attributes=attributes)


ORT = [
    Case("R1-one-side", "ort", "float", u8(quantize_w=False), u8(), ort_in_float),
    Case("R1-activation-scale", "ort", "rejected", u8(a_shape=(forms.K,)), u8(), ort_rejects),
    Case("R2-type", "ort", "float", lambda: forms.linear(np.uint16, opset=21), u8(opset=21), ort_in_float),
    Case("R2-type", "ort", "float", lambda: forms.int4_weight(False), lambda: forms.int4_weight(True), ort_in_float, name="int4"),
    Case("R2-output", "ort", "float", lambda: forms.two_readers(True), lambda: forms.two_readers(False), ort_in_float),
    Case("R3-axis", "ort", "wrong", u8(w_axis=0, n=forms.K), u8(n=forms.K), ort_wrong, name="square"),
    Case("R3-axis", "ort", "rejected", u8(w_axis=0), u8(), ort_rejects),
    Case("R3-axis", "ort", "float", lambda: forms.gemm(w_axis=0), forms.gemm, ort_in_float, name="gemm"),
    Case("R3-block", "ort", "wrong", lambda: forms.blocks(32, bits=8, quantize_x=True), u8(), ort_wrong),
    Case("R3-size", "ort", "rejected", u8(w_zero_shape=()), u8(), ort_rejects_unfused),
    Case("R4-shared", "ort", "float", lambda: forms.two_linears(S8, 1), lambda: forms.two_linears(S8, 2), ort_in_float),
    Case("R4-shared", "ort", "float", lambda: forms.two_linears(S8, 2, own=False), lambda: forms.two_linears(S8, 2), ort_in_float, name="merged"),
    Case("R5-bias", "ort", "float", u8(bias=(forms.N,)), u8(), ort_in_float_if_static),
    Case("R5-bias", "ort", "float", u8(rank=2), forms.gemm, ort_in_float, name="rank2"),
    Case("R5-gemm-bias", "ort", "float", lambda: forms.gemm(bias="float"), forms.gemm, ort_in_float),
    Case("R5-gemm-bias", "ort", "float", lambda: forms.gemm(alpha=0.5), forms.gemm, ort_in_float, name="alpha"),
    Case("R5-bias-scale", "ort", "wrong", lambda: forms.gemm(bias_factor=2.0), forms.gemm, ort_wrong),
    Case("R5-bias-range", "ort", "wrong", lambda: forms.gemm(dead_scale=1e-11), lambda: forms.gemm(dead_scale=1e-4), ort_loses_bias),
    Case("R5-bias-scale", "ort", "wrong", lambda: forms.gemm(bias_zero=2000), lambda: forms.gemm(bias_zero=0), ort_wrong, name="zero"),
    Case("R6-output-dtype", "ort", "rejected", lambda: typed_output({"output_dtype": TensorProto.INT8}), lambda: typed_output({}), ort_rejects),
    Case("R6-opset", "ort", "rejected", u8(opset=12), u8(opset=13), ort_rejects),
    Case("R7-residual", "ort", "inaccurate", lambda: forms.residual("x_dq"), lambda: forms.residual("x"), less_accurate(float_residual(), 1.1)),
    Case("R7-gelu", "ort", "slow", lambda: forms.gelu(True), lambda: forms.gelu(False), only_mended_fuses("Gelu", "BiasGelu")),
    Case("R7-mask", "ort", "wrong", lambda: forms.masked(1.3e36), forms.masked_float, less_accurate(forms.masked_float(), 100)),
    Case("R11-rotation", "ort", "inaccurate", lambda: forms.rotated(form="quantized"), forms.rotated, less_accurate(forms.rotated(quantize=False), 1.2)),
    Case("R11-dense-rotation", "ort", "slow", lambda: forms.rotated(form="dense", k=1024, n=8), lambda: forms.rotated(k=1024, n=8), ort_slow_1024),
    Case("R8-int8-operator", "ort", "slow", lambda: forms.qlinear(S8, S8, S8, k=512, n=512), lambda: forms.qlinear(U8, S8, U8, k=512, n=512), ort_slow),
    *(
        Case("R9-types", "ort", "rejected", lambda t=t: forms.qlinear(*t), lambda: forms.qlinear(U8, S8, U8), ort_rejects,
             also=("R8-int8-operator",) if t[0] is S8 else (), name="-".join(d.__name__ for d in t))
        for t in [(U8, U8, S8), (U8, S8, S8), (S8, U8, U8), (S8, U8, S8), (S8, S8, U8)]
    ),
    Case("R9-row-scale", "ort", "rejected", lambda: forms.qlinear(U8, S8, U8, rows=True), lambda: forms.qlinear(U8, S8, U8), ort_rejects),
    Case("R10-blocks", "ort", "slow", lambda: forms.blocks(8), lambda: forms.blocks(16), only_mended_fuses("MatMulNBits")),
    Case("R10-blocks", "ort", "slow", lambda: forms.blocks(32, axis=1), lambda: forms.blocks(32), only_mended_fuses("MatMulNBits"), name="axis"),
    Case("R10-form", "ort", "rejected", in_form(nbits(4, 48)), in_form(nbits()), ort_rejects),
    Case("R10-form", "ort", "rejected", in_form(nbits(8, 32, "float")), in_form(nbits(8, 32, "packed")), ort_rejects, name="zero"),
    Case("R10-form", "ort", "rejected", in_form(nbits(8, groups=True)), in_form(nbits(8)), ort_rejects, name="g_idx"),
    Case("R10-kernel", "ort", "slow", in_form(nbits(zero="float"), 512), in_form(nbits(zero="packed"), 512), ort_slow_for_one_token),
    Case("R10-kernel", "ort", "slow", in_form(nbits(groups=True), 512), in_form(nbits(), 512), ort_slow_for_one_token, name="g_idx"),
    Case("R10-kernel", "ort", "slow", in_form(nbits(8, level=0), 512), in_form(nbits(8), 512), ort_slow_for_one_token, name="level"),
    Case("R10-kernel", "ort", "slow", in_form(nbits(2, 16), 512), in_form(nbits(2, 32), 512), ort_slow_for_one_token, name="2-bits"),
    Case("R10-g-idx", "ort", "wrong", in_form(nbits(4, 32, "packed", True)), in_form(nbits(4, 32, "packed")), ort_reads_other_zero_points, also=("R10-kernel",)),
    Case("R3-activation-block", "ort", "float", in_form(run_time_blocks()), in_form(per_token()), ort_in_float),
    Case("R6-opset", "ort", "rejected", in_form(block_forms.blocks("int8"), opset=19), in_form(block_forms.blocks("int8")), ort_rejects, name="blocks"),
    Case("R6-opset", "ort", "rejected", in_form(block_forms.blocks("int2")), in_form(block_forms.blocks("int2"), opset=25), ort_rejects, name="int2"),
    Case("R6-opset-28", "ort", "rejected", u8(opset=28), u8(opset=27), ort_rejects),
    Case("R10-blocks", "ort", "slow", lambda: forms.blocks(48, k=288), lambda: forms.blocks(32, k=288), only_mended_fuses("MatMulNBits"), name="power"),
]  # fmt: skip

TENSORRT = [
    Case("T1-zero-point", "tensorrt", "rejected", s8(a_zero=3), s8(), trt_rejects),
    Case("T1-zero-point", "tensorrt", "rejected", u8(), s8(), trt_rejects, name="uint8"),
    Case("T1-zero-point", "tensorrt", "rejected", s8(w_zero=3), s8(), trt_rejects, name="weight"),
    Case("T1-scale", "tensorrt", "rejected", s8(a_scale=0.0), s8(), trt_rejects, name="zero"),
    Case("T1-scale", "tensorrt", "rejected", s8(a_scale=-0.02), s8(), trt_rejects, name="negative"),
    Case("T1-type", "tensorrt", "rejected", lambda: forms.linear(np.int16, opset=21), s8(opset=21), trt_rejects, name="int16"),
    Case("T1-type", "tensorrt", "rejected", s8(w=U8), s8(), trt_rejects, name="uint8"),
    Case("T1-type", "tensorrt", "rejected", lambda: forms.gemm(S8), lambda: forms.gemm(S8, bias="float"), trt_rejects, name="int32"),
    Case("T1-size", "tensorrt", "rejected", s8(w_zero_shape=()), s8(), trt_rejects),
    Case("T1-operator", "tensorrt", "rejected", integer_operator, s8(), trt_rejects, name="dynamic"),
    Case("T1-operator", "tensorrt", "rejected", contrib("DynamicQuantizeMatMul", ["x", "W_q", "W_scale"], dict(zip(("W_q", "W_scale"), forms.quantized(forms.weights()))), y=("b", "s", forms.N)), s8(), trt_rejects, name="contrib"),
    Case("T2-uint8", "tensorrt", "wrong", u8(a_zero=0), s8(), trt_misreads),
    Case("T2-no-zero-point", "tensorrt", "wrong", u8(a_has_zero=False), s8(), trt_misreads),
    Case("T3-axis", "tensorrt", "float", s8(w_axis=0), s8(), trt_in_float),
    Case("T3-axis", "tensorrt", "float", lambda: forms.gemm(S8, bias="float", trans=True, w_axis=1), lambda: forms.gemm(S8, bias="float", trans=True), trt_in_float, name="gemm"),
    Case("T3-activation-scale", "tensorrt", "float", s8(a_shape=(forms.K,)), s8(), trt_in_float),
    Case("T3-run-time-scale", "tensorrt", "float", s8(scale_of_x=True), s8(), trt_in_float),
    Case("T3-activation-block", "tensorrt", "rejected", in_form(run_time_blocks()), in_form(per_token(False)), trt_builds_no_engine),
    Case("T1-type", "tensorrt", "rejected", in_form(block_forms.blocks("uint4")), in_form(block_forms.blocks("int4")), trt_rejects, also=("T1-zero-point",), name="uint4"),
    Case("T3-one-side", "tensorrt", "float", s8(quantize_w=False), s8(), trt_in_float, name="activation"),
    Case("T3-one-side", "tensorrt", "float", s8(quantize_x=False), s8(), trt_in_float, name="weight"),
    Case("T11-rotation", "tensorrt", "inaccurate", lambda: forms.rotated(S8, "quantized"), lambda: forms.rotated(S8), trt_rotates_in_float),
    Case("T10-operator", "tensorrt", "rejected", contrib("BiasGelu", ["x", "b"], dict(b=np.ones(forms.K, np.float32))), s8(), trt_rejects),
    Case("T10-dropout", "tensorrt", "rejected", lambda: forms.dropout(True), lambda: forms.dropout(False), trt_rejects),
    Case("T10-dropout", "tensorrt", "rejected", lambda: forms.dropout(True, old=True), lambda: forms.dropout(False, old=True), trt_rejects, name="old"),
    Case("T10-outputs", "tensorrt", "rejected", lambda: forms.norm(3), lambda: forms.norm(1), trt_rejects),
    Case("T10-constant", "tensorrt", "rejected", lambda: with_constant(TensorProto.INT16), lambda: with_constant(TensorProto.INT32), trt_rejects),
    Case("T10-input", "tensorrt", "rejected", lambda: with_input(TensorProto.INT16), lambda: with_input(TensorProto.INT32), trt_rejects),
    Case("T10-attention", "tensorrt", "rejected", lambda: attention(True), lambda: attention(False), trt_rejects),
    Case("T10-axes", "tensorrt", "rejected", lambda: mean(False), lambda: mean(True), trt_rejects),
]  # fmt: skip

OPENVINO = [
    Case("O1-operator", "openvino", "rejected", contrib("FusedMatMulActivation", ["x", "W"], dict(W=forms.weights()), y=("b", "s", forms.N), activation="Relu"), s8(), ov_rejects),
    Case("O1-qlinear", "openvino", "rejected", lambda: forms.qlinear(U8, S8, U8), lambda: forms.qlinear(U8, S8, U8, per_column=False), ov_rejects),
    Case("O1-dropout", "openvino", "rejected", lambda: forms.dropout(True), lambda: forms.dropout(False), ov_rejects),
    Case("O2-activation-scale", "openvino", "rejected", u8(a_shape=(forms.K,)), u8(), ov_rejects),
    Case("O3-weight", "openvino", "float", u8(w_axis=0), u8(), ov_in_float, name="axis"),
    Case("O3-weight", "openvino", "float", u8(w_zero=3), u8(), ov_in_float, name="zero"),
    Case("O3-weight", "openvino", "float", u8(w=U8, w_zero=128), u8(), ov_in_float, name="uint8"),
    Case("O3-activation", "openvino", "float", lambda: forms.linear(np.uint16, opset=21), u8(opset=21), ov_in_float),
    Case("O3-activation", "openvino", "float", s8(scale_of_x=True), s8(), ov_in_float, name="run-time"),
    Case("O3-one-side", "openvino", "float", u8(quantize_w=False), u8(), ov_in_float, name="activation"),
    Case("O3-one-side", "openvino", "float", u8(quantize_x=False), u8(), ov_in_float, name="weight"),
    Case("O3-dynamic", "openvino", "float", integer_operator, u8(), ov_in_float),
    Case("O5-rotation", "openvino", "inaccurate", lambda: forms.rotated(form="quantized"), forms.rotated, ov_rotates_in_float),
    Case("O6-pool", "openvino", "wrong", lambda: forms.pooled("Mul"), lambda: forms.pooled("Mul", keepdims=1), ov_wrong),
    Case("O6-pool", "openvino", "wrong", lambda: forms.pooled("Add", op="ReduceMax"), lambda: forms.pooled("Mul", one=True), ov_wrong, name="add"),
    Case("O6-pool", "openvino", "wrong", lambda: forms.pooled("Mul", op="ReduceSum", between="Relu"), lambda: forms.pooled(None), ov_wrong, name="relu"),
    Case("O6-pool", "openvino", "wrong", lambda: forms.pooled(None, before="Mul"), lambda: forms.pooled(None, before="Mul", between="Tanh"), ov_wrong, name="before"),
    Case("O6-pool", "openvino", "wrong", lambda: forms.pooled(None, before="norm"), lambda: forms.pooled(None, before="shifted norm"), ov_wrong, name="norm"),
    Case("O3-activation-block", "openvino", "rejected", in_form(run_time_blocks()), in_form(per_token()), ov_rejects),
    Case("O3-ragged", "openvino", "rejected", in_form(block_forms.blocks("uint4", 48)), in_form(block_forms.blocks("uint4", 32)), ov_rejects),
    Case("O3-ragged", "openvino", "float", in_form(nbits(4, 128), 192), in_form(nbits(4, 64), 192), ov_weights_in_float, name="nbits"),
    Case("O3-int4", "openvino", "float", in_form(block_forms.blocks("int4")), in_form(block_forms.blocks("uint4")), ov_multiplies_floats),
    Case("O1-g-idx", "openvino", "rejected", in_form(nbits(groups=True)), in_form(nbits()), ov_dies),
    Case("O1-2-bits", "openvino", "rejected", in_form(block_forms.blocks("int2"), opset=25), in_form(nbits(2)), ov_rejects),
    Case("O6-window", "openvino", "wrong", lambda: window(1), lambda: window(None), ov_wrong),
    Case("O4-scale", "openvino", "wrong", u8(a_scale=-0.02), u8(), ov_wrong),
]  # fmt: skip

CASES = ORT + TENSORRT + OPENVINO


def lint(model, target, folder, *more):
    path = folder / "model.onnx"
    onnx.save(model, path)
    result = run_tool("lint", path, "--target", target, "--json", *more)
    assert not result.stderr
    return json.loads(result.stdout), result.returncode


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(filter(None, (c.rule, c.name))))
def test_rule(case, tmp_path):
    broken, mended = case.broken(), case.mended()
    found, status = lint(broken, case.target, tmp_path)
    assert {f["rule"] for f in found["findings"]} == {case.rule, *case.also}, found["findings"]
    assert {f["cost"] for f in found["findings"] if f["rule"] == case.rule} == {case.cost}
    fatal = case.cost in ("rejected", "wrong")
    assert (status, found["ok"]) == ((1, False) if fatal else (0, True))
    found, status = lint(mended, case.target, tmp_path)
    assert (found["findings"], status) == ([], 0)
    case.confirm(broken, mended)


def test_every_rule_has_a_file():
    source = "".join(path.read_text() for path in (ROOT / "src/target/lint").glob("*.rs"))
    ids = set(re.findall(r'^        id: "([^"]+)"', source, re.M))
    assert ids == {case.rule for case in CASES}


@pytest.mark.parametrize("operators", [("SplitToSequence", "SequenceAt"), ("SplitToSequence", "ConcatFromSequence")], ids="-".join)
def test_openvino_takes_sequences(tmp_path, operators):
    """No false alarm: it has no rule for some of these operators, and compiles them all the same."""
    first, second = operators
    inputs = ["parts", "zero"] if second == "SequenceAt" else ["parts"]
    options = {} if second == "SequenceAt" else {"axis": 1}
    nodes = [
        helper.make_node(first, ["x", "four"], ["parts"], axis=1),
        helper.make_node(second, inputs, ["y"], **options),
    ]
    info = lambda name, size: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", size])  # noqa: E731
    constants = [numpy_helper.from_array(np.array(v), n) for n, v in (("four", 4), ("zero", 0))]
    graph = helper.make_graph(nodes, "sequences", [info("x", 8)], [info("y", None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    rt.ov_compile(model)
    found = run_tool("lint", tmp_path / "model.onnx", "--target", "openvino")
    assert found.returncode == 0 and "nothing found" in found.stdout, found.stdout
