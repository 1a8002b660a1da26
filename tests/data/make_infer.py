"""Makes infer.pb: one node per case, its inputs, and what ONNX Runtime or the ONNX reference computes of them.

The file is a container, no model that runs: every node has values of its own, and its inputs and outputs are initializers,
so that types, shapes and elements are all there. `src/graph/infer/tests.rs` holds every row of the table against it.

    python tests/data/make_infer.py
"""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

MS = "com.microsoft"
RNG = np.random.default_rng(7)
PAIRS = [((), (3,)), ((3,), (3,)), ((2, 1), (4,)), ((2, 1, 3), (2, 3)), ((1,), ())]


def floats(*shape):
    return RNG.uniform(0.25, 2, shape).astype(np.float32)


def ints(*shape, low=-6, high=7, dtype=np.int64):
    return np.asarray(RNG.integers(low, high, shape), dtype)


def bools(*shape):
    return np.asarray(RNG.integers(0, 2, shape), bool)


def i64(*values):
    return np.array(values, np.int64)


def elementwise():
    """Name, inputs, and what differs from opset 18 with one output."""
    floating = (
        "Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Dropout Elu Erf Exp HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log "
        "Mish Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Tan Tanh ThresholdedRelu"
    )
    for op in floating.split():
        yield op, [floats(2, 3) / 2.5]
    yield "Gelu", [floats(2, 3)], {"opset": 20}
    yield "Swish", [floats(2, 3)], {"opset": 24}
    yield "BitwiseNot", [ints(2, 3)]
    yield "PRelu", [floats(2, 3), floats(3)]
    yield "Clip", [floats(2, 3), floats(), floats() + 2]
    for op in ("Abs", "Neg", "Identity"):
        yield op, [ints(3)]
        yield op, [floats(2, 2) - 1]
    yield "Neg", [ints(3, dtype=np.int32)]
    for op in ("Ceil", "Floor", "Sqrt", "Reciprocal"):
        yield op, [floats(2, 3)]
        yield op, [floats(4).astype(np.float16)]
    yield "Not", [bools(4)]
    kinds = [floats(2, 3) * 3 - 2, floats(3).astype(np.float16), ints(2, 2), ints(3, dtype=np.int32), bools(4)]
    for to in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
        for x in kinds:
            yield "Cast", [x], {"to": to}
    yield "Cast", [ints(3, low=0, high=9)], {"to": TensorProto.UINT8}
    yield "CastLike", [ints(3), floats(2)]
    yield "CastLike", [floats(3) * 9, ints(2, dtype=np.int32)]
    for op in "Add Sub Mul Div".split():
        for a, b in PAIRS:
            yield op, [ints(*a), ints(*b, low=1)]
            yield op, [floats(*a), floats(*b)]
        yield op, [floats(3).astype(np.float16), floats(3).astype(np.float16)]
        yield op, [ints(3, dtype=np.int32), ints(3, low=1, dtype=np.int32)]
    yield "Div", [i64(-7, 7, -7, 7), i64(2, -2, -2, 2)]
    yield "Sub", [ints(2, 1, 3), ints(4, 1)]
    for op in "Max Min".split():
        yield op, [ints(2, 3), ints(3)]
        yield op, [ints(3), ints(), ints(2, 1)]
        yield op, [floats(2), floats(2)]
    yield "Sum", [floats(2, 3), floats(3), floats()]
    yield "Mean", [floats(2, 3), floats(3)]
    yield "Mod", [ints(6), ints(6, low=1)]
    yield "Mod", [ints(6), -ints(6, low=1)]
    yield "Mod", [ints(6), -ints(6, low=1)], {"fmod": 1}
    yield "Pow", [ints(4), ints(4, low=0, high=4)]
    yield "Pow", [floats(4), floats(2, 1)]
    for op in "And Or Xor".split():
        yield op, [bools(2, 4), bools(4)]
    for op in "Equal Greater GreaterOrEqual Less LessOrEqual".split():
        yield op, [ints(9, low=-1, high=2), ints(1, low=-1, high=2)]
        yield op, [floats(3), floats(3)]
    for op in "BitwiseAnd BitwiseOr BitwiseXor".split():
        yield op, [ints(2, 3), ints(3)]
    yield "Where", [bools(2, 3), ints(3), ints(2, 1)]
    yield "Where", [bools(3), floats(), floats(2, 1)]


def along():
    x, g = floats(2, 3, 4), floats(3)
    yield "BatchNormalization", [x, g, g, g, g]
    yield "InstanceNormalization", [x, g, g]
    yield "LayerNormalization", [x, floats(4), floats(4)]
    yield "LayerNormalization", [x, floats(4)], {"outputs": 3}
    yield "GroupNormalization", [floats(2, 4, 3), floats(4), floats(4)], {"opset": 21, "num_groups": 2}
    yield "RMSNormalization", [x, floats(4)], {"opset": 23}
    yield "SimplifiedLayerNormalization", [x, floats(4)], {"epsilon": 1e-5}
    for op in "Hardmax LogSoftmax LpNormalization MeanVarianceNormalization Softmax".split():
        yield op, [floats(2, 3, 2, 2)]
    yield "Softmax", [x], {"opset": 11}
    yield "LRN", [floats(2, 3, 2, 2)], {"size": 3}
    yield "CumSum", [x, i64(1)[0]]
    yield "DequantizeLinear", [ints(2, 3, dtype=np.int8), floats(), ints(dtype=np.int8)], {"opset": 13}
    yield "QuantizeLinear", [floats(2, 3), floats(), ints(dtype=np.int8)], {"opset": 13}
    yield "QuantizeLinear", [floats(2, 3), floats()], {"opset": 13}
    yield "DynamicQuantizeLinear", [floats(2, 3)], {"outputs": 3}
    yield "ReverseSequence", [x, i64(1, 2, 2)]
    yield "RotaryEmbedding", [floats(2, 3, 4, 6), floats(2, 4, 3), floats(2, 4, 3)], {"opset": 23}
    index = ints(2, 3, 4, low=0, high=2)
    yield "Scatter", [x, index, floats(2, 3, 4)], {"opset": 9}
    yield "ScatterElements", [x, index, floats(2, 3, 4)]
    yield "ScatterND", [x, i64(1, 0).reshape(1, 2), floats(1, 4)]
    yield "Trilu", [x]
    yield "Trilu", [x, i64(1)[0]]


def layout():
    x = floats(2, 3, 4)
    yield "DepthToSpace", [floats(2, 12, 2, 3)], {"blocksize": 2}
    yield "SpaceToDepth", [floats(2, 3, 4, 6)], {"blocksize": 2}
    yield "Expand", [ints(3, 1), i64(2, 1, 4)]
    yield "Expand", [floats(2, 1, 4), i64(3, 1)]
    for axis in (-1, 0, 1, 3):
        yield "Flatten", [x], {"axis": axis}
    yield "Flatten", [ints(2, 2)], {"axis": 0}
    for target in ((-1,), (0, -1), (4, 3, 2), (2, 0, 2, 2), (24,)):
        yield "Reshape", [x, i64(*target)]
    yield "Reshape", [floats(0, 3), i64(3, 0)], {"allowzero": 1}
    yield "Reshape", [ints(), i64(-1)]
    yield "Squeeze", [floats(1, 3, 1)]
    yield "Squeeze", [floats(1, 3, 1), i64(-1)]
    yield "Squeeze", [ints(1), i64(0)]
    yield "Squeeze", [floats(1, 3, 1)], {"opset": 11, "axes": [0]}
    yield "Unsqueeze", [floats(3), i64(0, -1)]
    yield "Unsqueeze", [ints(), i64(0)]
    yield "Unsqueeze", [floats(2, 3)], {"opset": 11, "axes": [1]}
    yield "Tile", [ints(2, 2), i64(2, 3)]
    yield "Tile", [floats(2, 1), i64(1, 2)]
    yield "Transpose", [x]
    yield "Transpose", [x], {"perm": [1, 0, 2]}
    yield "Transpose", [ints(2, 3)], {"perm": [1, 0]}
    yield "Resize", [floats(1, 1, 2, 2), None, np.array([1, 1, 2, 2], np.float32)]
    yield "Upsample", [floats(1, 1, 2, 2), np.array([1, 1, 2, 2], np.float32)], {"opset": 9}


def pick():
    x = floats(2, 5, 3)
    yield "Concat", [ints(2), ints(3), ints(1)], {"axis": 0}
    yield "Concat", [floats(2, 1), floats(2, 3)], {"axis": -1}
    yield "Concat", [ints(2, 1, dtype=np.int32), ints(2, 1, dtype=np.int32)], {"axis": 1}
    yield "Gather", [ints(5), i64(0, -1)]
    yield "Gather", [ints(5), i64(3)[0]]
    yield "Gather", [x, ints(2, 2, low=-5, high=5)], {"axis": 1}
    yield "Gather", [floats(2, 3), ints(2, low=-3, high=3, dtype=np.int32)], {"axis": -1}
    yield "GatherElements", [x, ints(2, 2, 3, low=0, high=5)], {"axis": 1}
    yield "GatherND", [x, ints(4, 2, low=0, high=2)]
    yield "GatherND", [x, ints(2, 4, 1, low=0, high=5)], {"batch_dims": 1}
    yield "OneHot", [ints(2, 3, low=0, high=4), i64(4)[0], floats(2)]
    yield "OneHot", [ints(3, low=0, high=4), i64(4), i64(0, 1)], {"axis": 0}
    yield "Pad", [x, i64(0, 1, 2, 1, 0, 0)]
    yield "Pad", [x, i64(2, 1), floats(), i64(1)]
    yield "Pad", [x], {"opset": 10, "pads": [0, 0, 1, 0, 2, 0]}
    bounds = [(0, 2, 1), (-3, 9, 1), (1, 100, 2), (4, 0, -1), (-1, -100, -2), (3, 2, 1), (100, -1, -3)]
    for start, end, step in bounds:
        yield "Slice", [ints(5), i64(start), i64(end), i64(0), i64(step)]
        yield "Slice", [x, i64(0, start), i64(1, end), i64(0, -2), i64(1, step)]
    yield "Slice", [x, i64(1), i64(2)]
    yield "Slice", [ints(4, dtype=np.int32), i64(1), i64(2**63 - 1)]
    yield "Slice", [x], {"opset": 9, "starts": [1], "ends": [4], "axes": [1]}
    yield "Split", [ints(5), i64(2, 3)], {"outputs": 2}
    yield "Split", [x, i64(1, 4)], {"outputs": 2, "axis": 1}
    yield "Split", [floats(2, 4)], {"outputs": 2, "axis": -1, "opset": 13}
    yield "Split", [ints(5)], {"outputs": 3, "num_outputs": 3}
    yield "Split", [floats(3, 2)], {"outputs": 2, "opset": 11, "split": [1, 2]}
    yield "TopK", [x, i64(2)], {"outputs": 2, "axis": 1}
    yield "TopK", [x], {"outputs": 2, "opset": 1, "k": 2}


def reduce():
    x = floats(2, 3, 4)
    for op in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split():
        op = "Reduce" + op
        yield op, [x], {}
        yield op, [x], {"keepdims": 0}
        yield op, [x, i64(1)], {"keepdims": 0}
        yield op, [x, i64(-1, 0)], {}
        yield op, [x], {"noop_with_empty_axes": 1}
        yield op, [x], {"opset": 11, "axes": [1], "keepdims": 0}
    for op in "ReduceMax ReduceMin ReduceProd ReduceSum".split():
        yield op, [ints(4, low=1)], {"keepdims": 0, "opset": 18}
        yield op, [ints(1, 4)], {"opset": 18}
        yield op, [ints(3), i64(0)], {"keepdims": 0, "opset": 18}
        yield op, [ints(2, 3), i64(1)], {"opset": 18}
    for op in ("ArgMax", "ArgMin"):
        yield op, [x], {}
        yield op, [x], {"axis": -1, "keepdims": 0}


def product():
    for a, b in [((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)), ((2, 1, 2, 3), (5, 3, 4)), ((5, 3), (2, 3, 1))]:
        yield "MatMul", [floats(*a), floats(*b)]
    yield "MatMulInteger", [ints(2, 3, dtype=np.int8, low=0).astype(np.uint8), ints(3, 4, dtype=np.int8)]
    q = (np.float32(0.1), np.uint8(3))
    u8 = [ints(2, 3, low=0, dtype=np.uint8), ints(3, 4, low=0, dtype=np.uint8)]
    yield "QLinearMatMul", [u8[0], *q, u8[1], *q, *q], {"opset": 13}
    yield "Gemm", [floats(2, 3), floats(3, 4), floats(4)]
    yield "Gemm", [floats(3, 2), floats(4, 3)], {"transA": 1, "transB": 1}
    yield "Einsum", [floats(2, 3), floats(3, 4)], {"equation": "ij,jk->ki"}
    yield "Einsum", [floats(5, 2, 3), floats(1, 3, 4)], {"equation": "...ij, ...jk -> ...ik"}
    yield "Attention", [floats(1, 2, 3, 4)] * 3, {"opset": 23}
    x, w = floats(2, 3, 7, 8), floats(4, 3, 3, 2)
    yield "Conv", [x, w]
    yield "Conv", [x, w, floats(4)], {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [2, 1]}
    yield "Conv", [floats(1, 4, 9), floats(6, 2, 3)], {"group": 2}
    yield "Conv", [x, w], {"auto_pad": "SAME_UPPER"}
    yield "ConvInteger", [ints(1, 2, 5, low=0, dtype=np.uint8), ints(3, 2, 2, low=0, dtype=np.uint8)]
    yield "ConvTranspose", [floats(1, 3, 4, 4), floats(3, 2, 3, 3)]
    for op in ("AveragePool", "MaxPool"):
        yield op, [x], {"kernel_shape": [3, 2]}
        yield op, [x], {"kernel_shape": [2, 2], "strides": [2, 3], "pads": [1, 0, 1, 1]}
        yield op, [x], {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield op, [x]


def make():
    x = floats(2, 3, 4)
    yield "Shape", [x]
    yield "Shape", [x], {"start": 1}
    yield "Shape", [x], {"start": -2, "end": -1}
    yield "Shape", [x], {"start": 2, "end": 1}
    yield "Size", [x]
    yield "NonZero", [bools(3, 4)]
    for start, limit, step in [(0, 5, 1), (5, -5, -3), (2, 2, 1), (0, 7, 2)]:
        yield "Range", [np.int64(start), np.int64(limit), np.int64(step)]
    yield "Range", [np.float32(0), np.float32(2), np.float32(0.5)]
    yield "ConstantOfShape", [i64(2, 3)]
    yield "ConstantOfShape", [i64(2)], {"value": numpy_helper.from_array(i64(7))}
    yield "ConstantOfShape", [i64()], {"value": numpy_helper.from_array(np.array([True]))}
    yield "Constant", [], {"value": numpy_helper.from_array(ints(2, 3))}
    yield "Constant", [], {"value": numpy_helper.from_array(floats(3).astype(np.float16))}
    yield "Constant", [], {"value_int": 5}
    yield "Constant", [], {"value_float": 0.5}
    yield "Constant", [], {"value_ints": [1, 2]}
    yield "Constant", [], {"value_floats": [1.0, 2.0, 3.0]}


def microsoft():
    x = floats(2, 3, 4)
    ms = {"domain": MS}
    yield "BiasGelu", [x, floats(4)], ms
    for op in ("FastGelu", "Gelu", "QuickGelu"):
        yield op, [x], ms
    yield "QuantizeLinear", [x, floats(), np.uint8(2)], ms
    yield "DequantizeLinear", [ints(2, 3, low=0, dtype=np.uint8), floats(), np.uint8(2)], ms
    yield "RotaryEmbedding", [floats(1, 2, 3, 4), i64(0), floats(5, 2), floats(5, 2)], ms
    yield "SkipLayerNormalization", [x, floats(2, 3, 4), floats(4), floats(4)], ms
    yield "SkipSimplifiedLayerNormalization", [x, floats(2, 3, 4), floats(4)], ms
    yield "FusedConv", [floats(2, 3, 7, 8), floats(4, 3, 3, 2), floats(4)], ms | {"activation": "Relu", "strides": [2, 3], "pads": [1, 0, 2, 1]}
    yield "FusedGemm", [floats(3, 2), floats(4, 3)], ms | {"activation": "Relu", "transA": 1, "transB": 1}
    for first, *flags in (((2, 5, 3, 4),), ((2, 5, 4, 3), "transA"), ((3, 2, 5, 4), "transBatchA"), ((4, 2, 5, 3), "transA", "transBatchA")):
        yield "FusedMatMul", [floats(*first), floats(2, 5, 4, 6)], ms | dict.fromkeys(flags, 1)
    for second, *flags in (((2, 5, 6, 4), "transB"), ((4, 2, 5, 6), "transBatchB"), ((6, 2, 5, 4), "transB", "transBatchB"), ((6, 4), "transB")):
        yield "FusedMatMul", [floats(2, 5, 3, 4), floats(*second)], ms | dict.fromkeys(flags, 1)
    weight, scale = ints(4, 6, low=0, dtype=np.uint8), floats()
    yield "DynamicQuantizeMatMul", [x, weight, scale, np.uint8(2)], ms
    yield "MatMulIntegerToFloat", [ints(2, 3, 4, low=0, dtype=np.uint8), weight, scale, scale, np.uint8(3), np.uint8(2)], ms


def computed(model, feed):
    """By ONNX Runtime; by the reference where it has no kernel."""
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, feed)
    except Exception:  # noqa: BLE001
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ReferenceEvaluator(model).run(None, feed)


def case(number, op, inputs, more=None):
    """A node, its inputs and its outputs as tensors."""
    more = dict(more or {})
    opset, domain, outputs = more.pop("opset", 18), more.pop("domain", ""), more.pop("outputs", 1)
    arrays = [None if x is None else np.asarray(x) for x in inputs]
    names = ["" if x is None else f"{number}/x{i}" for i, x in enumerate(arrays)]
    ys = [f"{number}/y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, ys, f"{number}/{op}", domain=domain, **more)
    feed = {n: x for n, x in zip(names, arrays) if n}
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in feed.items()]
    results = [helper.make_empty_tensor_value_info(y) for y in ys]
    graph = helper.make_graph([node], op, infos, results)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    values = computed(helper.make_model(graph, opset_imports=imports, ir_version=8), feed)
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip([*feed, *ys], [*feed.values(), *values])]
    return node, tensors


def main():
    nodes, tensors = [], []
    for family in (elementwise, along, layout, pick, reduce, product, make, microsoft):
        for op, *rest in family():
            try:
                node, values = case(len(nodes), op, *rest)
            except Exception as error:  # noqa: BLE001
                raise SystemExit(f"{op} {rest}: {error}")
            nodes.append(node)
            tensors.extend(values)
    graph = helper.make_graph(nodes, "cases", [], [], tensors)
    model = ModelProto(ir_version=8, graph=graph, opset_import=[helper.make_opsetid("", 18)])
    Path(__file__).with_name("infer.pb").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
