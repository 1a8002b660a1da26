"""Cases of make_operators.py: weights and tables in blocks, scales that are computed, and the form per token.

ONNX Runtime computes what is expected. At accuracy_level 4 it rounds activations per row and block (see
src/calibrate/engine/decompose/blocks.rs); these were made on x86-64 with AVX-512. What it cannot run (8 bits with float
zero points) has no case.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper

RANGES = {TensorProto.INT4: (-8, 8), TensorProto.UINT4: (0, 16), TensorProto.INT2: (-2, 2), TensorProto.UINT2: (0, 4),
          TensorProto.INT8: (-128, 128), TensorProto.UINT8: (0, 256)}
BITS = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "INT8": 8, "UINT8": 8}


def ms(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, domain="com.microsoft", **attributes)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


def packed(values, bits):
    """Unsigned integers of the last axis in bytes, the first in the lowest bits; every row begins with a byte."""
    per = 8 // bits
    values = np.concatenate([values, np.zeros(values.shape[:-1] + (-values.shape[-1] % per,), values.dtype)], -1)
    values = values.reshape(*values.shape[:-1], -1, per).astype(np.uint8)
    return np.bitwise_or.reduce(values << (bits * np.arange(per, dtype=np.uint8)), axis=-1)


def tensor(name, values, dtype):
    """A tensor of a type below 8 bits, which NumPy has not."""
    bits = BITS[TensorProto.DataType.Name(dtype)]
    flat = (values.reshape(-1).astype(np.int32) & ((1 << bits) - 1)).astype(np.uint8)
    made = TensorProto(name=name, data_type=dtype, raw_data=packed(flat[None], bits).tobytes())
    made.dims.extend(values.shape)
    return made


class Weights:
    def __init__(self, rng):
        self.rng = rng

    def wave(self, *shape):
        return self.rng.normal(size=shape).astype(np.float32)

    def scales(self, *shape):
        return (self.rng.random(shape) * 0.1 + 0.02).astype(np.float32)

    def nbits(self, k, n, bits, block, zero=None, groups=False, bias=False, level=None):
        """A MatMulNBits node of `x`, with its constants."""
        blocks = -(-k // block)
        given = {
            "B": packed(self.rng.integers(0, 1 << bits, (n, blocks, block)), bits),
            "s": self.scales(n, blocks),
        }
        if zero == "packed":
            given["z"] = packed(self.rng.integers(0, 1 << bits, (n, blocks)), bits)
        if zero == "float":
            given["z"] = (self.rng.random((n, blocks)) * (1 << bits)).astype(np.float32)
        if groups:
            given["g"] = self.rng.permutation(np.arange(k) // block).astype(np.int32)
        if bias:
            given["b"] = self.wave(n)
        inputs = ["x"] + [name if name in given else "" for name in "Bszgb"]
        while not inputs[-1]:
            inputs.pop()
        attributes = {} if level is None else {"accuracy_level": level}
        made = ms("MatMulNBits", inputs, ["y"], K=k, N=n, bits=bits, block_size=block, **attributes)
        return made, given


def products(w):
    x = {"x": w.wave(2, 3, 80)}
    x["x"][0, 0, :32] = 0
    for bits in (2, 4, 8):
        for block in (16, 32, 128):
            for level in (0, 4):
                made, given = w.nbits(80, 12, bits, block, level=level)
                yield f"nbits_{bits}_block_{block}_level_{level}", [made], x, given
    for bits in (2, 4, 8):
        for level in (1, 4):
            made, given = w.nbits(80, 12, bits, 32, "packed", bias=True, level=level)
            yield f"nbits_{bits}_zero_point_bias_level_{level}", [made], x, given
    for bits in (2, 4):
        made, given = w.nbits(80, 12, bits, 32, "float", level=4)
        yield f"nbits_{bits}_float_zero_point", [made], x, given
    for zero in (None, "packed", "float"):
        made, given = w.nbits(80, 12, 4, 32, zero, groups=True, level=4)
        yield f"nbits_g_idx_zero_{zero}", [made], x, given
    made, given = w.nbits(80, 12, 4, 64)
    given = {name: value.reshape(12, -1, value.shape[-1]) if name == "B" else value.reshape(-1) for name, value in given.items()}
    yield "nbits_flat_scales", [made], x, given
    made, given = w.nbits(80, 12, 8, 256, level=4)
    yield "nbits_one_short_block", [made], {"x": x["x"][0]}, given


def tables(w):
    ids = {"i": np.array([[0, 3, 6], [2, -1, 3]], np.float32)}
    cast = node("Cast", ["i"], ["ids"], to=TensorProto.INT64)

    def gather(inputs, **attributes):
        return [cast, ms("GatherBlockQuantized", inputs, ["y"], **attributes)]

    for bits in (2, 4, 8):
        for width in (64, 40):
            for zero in (False, True):
                blocks = -(-width // 16)
                given = {"q": packed(w.rng.integers(0, 1 << bits, (7, width)), bits), "s": w.scales(7, blocks)}
                if zero:
                    given["z"] = packed(w.rng.integers(0, 1 << bits, (7, blocks)), bits)
                yield (f"rows_{bits}_width_{width}_zero_{zero}",
                       gather(["q", "ids", "s", "z"][: 4 if zero else 3], bits=bits, block_size=16), ids, given)
    for dtype in (TensorProto.INT4, TensorProto.UINT4):
        for gather_axis, quantize_axis in ((0, 1), (0, 2), (1, 2), (2, 1), (1, 0), (0, 0), (1, -2)):
            shape = (20, 7, 18)
            blocks = list(shape)
            blocks[quantize_axis] = -(-shape[quantize_axis] // 16)
            low, high = RANGES[dtype]
            for zero in (False, True):
                given = {"q": tensor("q", w.rng.integers(low, high, shape), dtype), "s": w.scales(*blocks)}
                if zero:
                    given["z"] = tensor("z", w.rng.integers(low, high, blocks), dtype)
                name = TensorProto.DataType.Name(dtype).lower()
                yield (f"rows_{name}_gather_{gather_axis}_blocks_{quantize_axis}_zero_{zero}",
                       gather(["q", "ids", "s", "z"][: 4 if zero else 3], block_size=16, gather_axis=gather_axis,
                              quantize_axis=quantize_axis), ids, given)


def dequantized(w):
    for dtype, (low, high) in RANGES.items():
        name = TensorProto.DataType.Name(dtype)
        for shape, axis in (((64, 6), 0), ((40, 6), 0), ((6, 64), 1), ((3, 32, 4), -2)):
            blocks = list(shape)
            blocks[axis] = -(-shape[axis] // 16)
            for zero in (False, True):
                q, z = w.rng.integers(low, high, shape), w.rng.integers(low, high, blocks)
                made = {"q": tensor("q", q, dtype), "s": w.scales(*blocks)}
                if zero:
                    made["z"] = tensor("z", z, dtype)
                # A sum, not a product: ONNX Runtime would make a MatMulNBits of that.
                nodes = [node("DequantizeLinear", list(made), ["d"], axis=axis, block_size=16), node("Add", ["x", "d"], ["y"])]
                yield f"blocks_{name.lower()}_{'x'.join(map(str, shape))}_zero_{zero}", nodes, {"x": w.wave(*shape)}, made


def products_of_dequantized(w):
    """ONNX Runtime makes a MatMulNBits at accuracy_level 4 of those in blocks of 32 with one reader. At 2 bits that computes something
    else here (three blocks; 1.31.1), so they have no case."""
    for dtype, (low, high) in RANGES.items():
        name = TensorProto.DataType.Name(dtype)
        if name.endswith("INT2"):
            continue
        for block, axis, readers in ((32, 0, 1), (48, 0, 1), (32, 0, 2)):
            q, z = w.rng.integers(low, high, (96, 6)), w.rng.integers(low, high, (96 // block, 6))
            made = {"q": tensor("q", q, dtype), "s": w.scales(96 // block, 6), "z": tensor("z", z, dtype)}
            nodes = [node("DequantizeLinear", list(made), ["d"], axis=axis, block_size=block)]
            nodes += [node("MatMul", ["x", "d"], ["y" if readers == 1 else "p"])]
            nodes += [node("MatMul", ["p", "t"], ["r"]), node("MatMul", ["r", "d"], ["y"])] if readers == 2 else []
            if readers == 2:
                made["t"] = w.wave(6, 96)
            yield f"product_{name.lower()}_block_{block}_readers_{readers}", nodes, {"x": w.wave(2, 5, 96)}, made


def dynamic(w):
    """Scales that are computed."""
    x = {"x": w.wave(2, 5, 24) * 3}
    signed = w.rng.integers(-128, 128, (24, 6)).astype(np.int8)
    unsigned = w.rng.integers(0, 256, (24, 6)).astype(np.uint8)
    quantize = node("DynamicQuantizeLinear", ["x"], ["a", "sa", "za"])
    for name, weight in (("s8", signed), ("u8", unsigned)):
        for zero in (None, np.zeros(6, weight.dtype) + weight.dtype.type(3), weight.dtype.type(5)):
            given = {"B": weight} | ({} if zero is None else {"zb": zero})
            what = "none" if zero is None else "scalar" if zero.ndim == 0 else "columns"
            nodes = [quantize, node("MatMulInteger", ["a", "B", "za", *list(given)[1:]], ["sum"]),
                     node("Cast", ["sum"], ["float"], to=1), node("Mul", ["float", "sa"], ["y"])]
            yield f"integer_product_{name}_zero_{what}", nodes, x, given
            columns = zero is not None and zero.ndim
            scale = w.scales(6) if columns else w.scales()
            given = {"B": weight, "sb": scale} | ({} if zero is None else {"zb": zero}) | {"bias": w.wave(6)}
            zb = "" if zero is None else "zb"
            yield (f"dynamic_quantize_matmul_{name}_zero_{what}",
                   [ms("DynamicQuantizeMatMul", ["x", "B", "sb", zb, "bias"], ["y"])], x, given)
            yield (f"integer_to_float_{name}_zero_{what}",
                   [quantize, ms("MatMulIntegerToFloat", ["a", "B", "sa", "sb", "za", zb, "bias"], ["y"])], x, given)
    # Blocks of the values themselves, symmetric, with scales of their own.
    largest = [node("Abs", ["x"], ["abs"]), node("Reshape", ["abs", "blocks"], ["r"]), node("ReduceMax", ["r", "last"], ["m"], keepdims=0),
               node("Mul", ["m", "per"], ["s0"]), node("Max", ["s0", "least"], ["s"])]
    given = {"blocks": np.array([0, 0, 3, 8]), "last": np.array([-1]), "per": np.float32(1 / 127), "least": np.float32(1e-8)}
    for dtype in (TensorProto.INT8, TensorProto.INT4):
        rounding = [node("QuantizeLinear", ["x", "s"], ["q"], axis=-1, block_size=8, output_dtype=dtype),
                    node("DequantizeLinear", ["q", "s"], ["y"], axis=-1, block_size=8)]
        name = TensorProto.DataType.Name(dtype).lower()
        yield f"run_time_blocks_{name}", largest + rounding, x, given | {"per": np.float32(1 / (127 if name == "int8" else 7))}
    one = [node("Abs", ["x"], ["abs"]), node("ReduceMax", ["abs"], ["m"], keepdims=0), node("Mul", ["m", "per"], ["s"]),
           node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    yield "run_time_scale", one, x, {"per": np.float32(1 / 127), "z": np.uint8(128)}
    along = [node("Abs", ["x"], ["abs"]), node("ReduceMax", ["abs", "axes"], ["m"], keepdims=0), node("Mul", ["m", "per"], ["s"]),
             node("QuantizeLinear", ["x", "s"], ["q"], axis=1, output_dtype=TensorProto.INT8), node("DequantizeLinear", ["q", "s"], ["y"], axis=1)]
    yield "run_time_scale_of_an_axis", along, x, {"per": np.float32(1 / 127), "axes": np.array([0, 2])}


def per_token(w):
    """Divided by the largest magnitude of the token, quantized with a constant scale, multiplied behind."""
    weight = w.rng.integers(-127, 128, (24, 6)).astype(np.int8)
    given = {"last": np.array([-1]), "least": np.float32(1e-6), "s": np.float32(1 / 127), "W": weight, "sw": w.scales(6),
             "zw": np.zeros(6, np.int8), "b": w.wave(6)}
    for name, zero in (("u8", np.uint8(128)), ("s8", np.int8(0))):
        nodes = [node("Abs", ["x"], ["abs"]), node("ReduceMax", ["abs", "last"], ["m"], keepdims=1), node("Max", ["m", "least"], ["a"]),
                 node("Div", ["x", "a"], ["xn"]), node("QuantizeLinear", ["xn", "s", "z"], ["q"]),
                 node("DequantizeLinear", ["q", "s", "z"], ["xd"]), node("DequantizeLinear", ["W", "sw", "zw"], ["Wd"], axis=1),
                 node("MatMul", ["xd", "Wd"], ["p"]), node("Mul", ["p", "a"], ["t"]), node("Add", ["t", "b"], ["y"])]
        x = {"x": w.wave(2, 5, 24) * 3}
        x["x"][1, 2] = 0
        yield f"per_token_{name}", nodes, x, given | {"z": zero}
        half = [node("Cast", ["x"], ["xh"], to=10), node("Abs", ["xh"], ["abs"]), node("ReduceMax", ["abs", "last"], ["m"], keepdims=1),
                node("Max", ["m", "least"], ["a"]), node("Div", ["xh", "a"], ["xn0"]), node("Cast", ["xn0"], ["xn"], to=1), *nodes[4:8],
                node("Cast", ["p"], ["ph"], to=10), node("Mul", ["ph", "a"], ["t"]), node("Add", ["t", "b"], ["yh"]),
                node("Cast", ["yh"], ["y"], to=1)]
        yield f"per_token_{name}_float16", half, x, given | {"z": zero, "least": np.float16(1e-6), "b": w.wave(6).astype(np.float16)}


def cases():
    """(name, nodes, feed, initializers, outputs, opset)"""
    w = Weights(np.random.default_rng(15))
    for some in (products, tables, dequantized, products_of_dequantized, dynamic, per_token):
        for name, nodes, feed, given in some(w):
            yield name, nodes, feed, given, ["y"], 25 if "int2" in name else 21
