"""A small language model, and the same in every fine-grained form that tools write: what is stored is known exactly.

`float_model()` has an embedding table and five Linears. `FORMS[name](model)` gives `(model, {weight: what its integers mean})`.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from layouts import i64, node

sys.path.append(str(Path(__file__).parent.parent / "data"))
from block_operators import packed, tensor  # noqa: E402

V, C, N, S = 50, 96, 128, 8  # words, channels outside and inside, positions
MS = "com.microsoft"
TYPES = {"int2": (2, True), "uint2": (2, False), "int4": (4, True), "uint4": (4, False), "int8": (8, True), "uint8": (8, False)}


def float_model(seed=0, dtype=TensorProto.FLOAT):
    rng = np.random.default_rng(seed)
    weight = lambda k, n: (rng.standard_normal((k, n)) / np.sqrt(k)).astype(np.float32)
    numbers = {"table": rng.standard_normal((V, C)).astype(np.float32), "g0": np.ones(C, np.float32), "g1": np.ones(C, np.float32)}
    numbers["g1"][:4] = 6
    nodes = [node("Gather", ["table", "ids"], "h0", name="/embed/Gather")]
    for i in range(2):
        at = f"/layers.{i}"
        nodes += [
            node("LayerNormalization", [f"h{i}", f"g{i}"], f"n{i}", name=f"{at}/norm", axis=-1),
            node("MatMul", [f"n{i}", f"layers.{i}.up"], f"u{i}", name=f"{at}/up/MatMul"),
            node("Add", [f"u{i}", f"layers.{i}.up_b"], f"ub{i}", name=f"{at}/up/Add"),
            node("Relu", [f"ub{i}"], f"r{i}", name=f"{at}/Relu"),
            node("MatMul", [f"r{i}", f"layers.{i}.down"], f"d{i}", name=f"{at}/down/MatMul"),
            node("Add", [f"h{i}", f"d{i}"], f"h{i + 1}", name=f"{at}/Add"),
        ]
        numbers |= {f"layers.{i}.up": weight(C, N), f"layers.{i}.up_b": rng.standard_normal(N).astype(np.float32),
                    f"layers.{i}.down": weight(N, C)}
    nodes.append(node("MatMul", ["h2", "head"], "y", name="/head/MatMul"))
    numbers["head"] = weight(C, V)
    as_type = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    stored = [numpy_helper.from_array(value.astype(as_type), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "lm", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", S])],
                              [helper.make_tensor_value_info("y", dtype, ["batch", S, V])], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feeds(count=12, seed=1):
    return {"ids": np.random.default_rng(seed).integers(0, V, (count, S))}


def genai_model(layers=2, heads=4, kv=2, size=16, hidden=64, inner=96, past=3, seed=0):
    """A language model with ONNX Runtime's operators and a cache, as ONNX Runtime GenAI's model builder writes it: in float."""
    rng = np.random.default_rng(seed)
    numbers, nodes, caches = {}, [], []

    def linear(x, name, k, n):
        numbers[f"{name}.weight"] = (rng.standard_normal((k, n)) / np.sqrt(k)).astype(np.float32)
        nodes.append(node("MatMul", [x, f"{name}.weight"], f"/{name}/out", f"/{name}/MatMul"))
        return f"/{name}/out"

    def ms(op, inputs, outputs, name, **attributes):
        nodes.append(helper.make_node(op, inputs, outputs, name, domain="" if op == "SimplifiedLayerNormalization" else MS, **attributes))

    nodes += [
        node("ReduceSum", ["attention_mask", "one"], "sums", "/mask/ReduceSum"),
        node("Sub", ["sums", "one"], "last", "/mask/Sub"),
        node("Cast", ["last"], "seqlens_k", "/mask/Cast", to=TensorProto.INT32),
        node("Shape", ["attention_mask"], "mask_shape", "/mask/Shape"),
        node("Gather", ["mask_shape", "at"], "length", "/mask/Gather", axis=0),
        node("Cast", ["length"], "total", "/mask/Cast_1", to=TensorProto.INT32),
        node("Gather", ["embed.weight", "input_ids"], "x", "/embed/Gather"),
    ]
    angles = np.outer(np.arange(32), 10000.0 ** (-np.arange(0, size, 2) / size)).astype(np.float32)
    numbers |= {"one": i64(1), "at": np.int64(1), "cos": np.cos(angles), "sin": np.sin(angles),
                "embed.weight": rng.standard_normal((V, hidden)).astype(np.float32)}
    skip = "x"
    for i in range(layers):
        at = f"model.layers.{i}"
        for norm in ("input", "post"):
            numbers[f"{at}.{norm}"] = (1 + rng.random(hidden)).astype(np.float32)
        if i == 0:
            ms("SimplifiedLayerNormalization", ["x", f"{at}.input"], [f"n{i}"], f"/{at}/input", axis=-1, epsilon=1e-5, stash_type=1)
        else:
            ms("SkipSimplifiedLayerNormalization", [skip, f"d{i - 1}", f"{at}.input"], [f"n{i}", "", "", f"s{i}"], f"/{at}/input", epsilon=1e-5)
            skip = f"s{i}"
        q, k, v = (linear(f"n{i}", f"{at}.{p}_proj", hidden, (heads if p == "q" else kv) * size) for p in "qkv")
        names = [f"{kind}.{i}.{part}" for kind in ("past_key_values", "present") for part in ("key", "value")]
        caches.append(names)
        ms("GroupQueryAttention", [q, k, v, *names[:2], "seqlens_k", "total", "cos", "sin"], [f"a{i}", *names[2:]], f"/{at}/attn",
           num_heads=heads, kv_num_heads=kv, do_rotary=1)
        o = linear(f"a{i}", f"{at}.o_proj", heads * size, hidden)
        ms("SkipSimplifiedLayerNormalization", [skip, o, f"{at}.post"], [f"m{i}", "", "", f"t{i}"], f"/{at}/post", epsilon=1e-5)
        skip = f"t{i}"
        gate, up = (linear(f"m{i}", f"{at}.{p}_proj", hidden, inner) for p in ("gate", "up"))
        nodes += [node("Sigmoid", [gate], f"g{i}"), node("Mul", [gate, f"g{i}"], f"h{i}"), node("Mul", [f"h{i}", up], f"u{i}")]
        nodes.append(node("Identity", [linear(f"u{i}", f"{at}.down_proj", inner, hidden)], f"d{i}"))
    numbers["final"] = np.ones(hidden, np.float32)
    ms("SkipSimplifiedLayerNormalization", [skip, f"d{layers - 1}", "final"], ["f"], "/model/final", epsilon=1e-5)
    nodes.append(node("MatMul", ["f", "lm_head.weight"], "logits", "/lm_head/MatMul"))
    numbers["lm_head.weight"] = (rng.standard_normal((hidden, V)) / 8).astype(np.float32)
    info = helper.make_tensor_value_info
    cache = lambda name, length: info(name, TensorProto.FLOAT, ["batch", kv, length, size])
    inputs = [info("input_ids", TensorProto.INT64, ["batch", "s"]), info("attention_mask", TensorProto.INT64, ["batch", "total_s"])]
    inputs += [cache(name, "past") for names in caches for name in names[:2]]
    results = [info("logits", TensorProto.FLOAT, ["batch", "s", V])] + [cache(n, "all") for names in caches for n in names[2:]]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "genai", inputs, results, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)], ir_version=10)
    rows = 6
    given = {"input_ids": rng.integers(0, V, (rows, 1)), "attention_mask": np.ones((rows, past + 1), np.int64)}
    given |= {name: rng.standard_normal((rows, kv, past, size)).astype(np.float32) for names in caches for name in names[:2]}
    return model, given


def rounded(w, bits, block, asymmetric=False):
    """`(q, scale, zero)` of blocks of rows of w: q unsigned, all of float32; the last block may be short."""
    k, n = w.shape
    filled = np.concatenate([w, np.zeros((-k % block, n), np.float32)]).reshape(-1, block, n)
    if asymmetric:
        low, high = np.minimum(filled.min(1), 0), np.maximum(filled.max(1), 0)
        scale = ((high - low) / (2**bits - 1)).astype(np.float32)
        zero = np.round(-low / scale)
    else:
        scale = (np.abs(filled).max(1) / max(2 ** (bits - 1) - 1, 1)).astype(np.float32)
        zero = np.full_like(scale, 2 ** (bits - 1))
    q = np.clip(np.round(filled / scale[:, None]) + zero[:, None], 0, 2**bits - 1).reshape(-1, n)[:k]
    return q, scale, zero


class Writer:
    """Replaces every MatMul with a weight by what `write` gives: nodes from x to y."""

    def __init__(self, model, write):
        self.model, self.meaning = copy.deepcopy(model), {}
        graph = self.model.graph
        arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        nodes = list(graph.node)
        del graph.node[:]
        for made in nodes:
            if made.op_type == "MatMul":
                w = made.input[1]
                graph.node.extend(write(self, made, arrays[w].astype(np.float32), w))
            else:
                graph.node.append(made)
        read = {name for n in graph.node for name in n.input}
        kept = [t for t in graph.initializer if t.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def const(self, name, value):
        graph = self.model.graph
        if all(t.name != name for t in graph.initializer):
            graph.initializer.append(value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name))
        return name

    def result(self):
        # ONNX Runtime has that operator in ONNX's domain, and ONNX has not.
        own = any(n.op_type == "SimplifiedLayerNormalization" for n in self.model.graph.node)
        if self.model.opset_import[0].version >= 21 and not own:
            onnx.checker.check_model(self.model)
        return self.model, self.meaning


def nbits(bits=4, block=32, zero=None, groups=False, level=4, fused_bias=False):
    def write(to, made, w, name):
        k, n = w.shape
        q, scale, z = rounded(w, bits, block, zero in ("packed", "float"))
        place = np.arange(k) // block
        inputs = [made.input[0], f"{name}_Q{bits}", f"{name}_scales"]
        blocks = np.zeros((scale.shape[0] * block, n))
        blocks[:k] = q
        to.const(inputs[1], packed(blocks.T.reshape(n, -1, block).astype(np.uint8), bits))
        to.const(inputs[2], np.ascontiguousarray(scale.T))
        if zero == "packed":
            inputs.append(to.const(f"{name}_zero_points", packed(z.T.astype(np.uint8), bits)))
        if zero == "float":
            inputs.append(to.const(f"{name}_zero_points", np.ascontiguousarray(z.T.astype(np.float32))))
        if groups:
            inputs += [""] * (4 - len(inputs)) + [to.const(f"{name}_g_idx", place.astype(np.int32))]
        if fused_bias:
            inputs += [""] * (5 - len(inputs)) + [to.const(f"{name}_bias", np.linspace(-1, 1, n, dtype=np.float32))]
        to.meaning[name] = ((q - z[place]) * scale[place]).astype(np.float32)
        yield helper.make_node("MatMulNBits", inputs, list(made.output), made.name + f"_Q{bits}", domain=MS, K=k, N=n, bits=bits,
                               block_size=block, accuracy_level=level)

    return lambda model: Writer(model, write).result()


def blocks(kind="int4", block=32, asymmetric=False, has_zero=True):
    bits, signed = TYPES[kind]
    dtype = getattr(TensorProto, kind.upper())

    def write(to, made, w, name):
        q, scale, z = rounded(w, bits, block, asymmetric)
        place, shift = np.arange(len(w)) // block, 2 ** (bits - 1) if signed else 0
        inputs = [to.const(f"{name}_DQ_Q{bits}", tensor(f"{name}_DQ_Q{bits}", (q - shift).astype(np.int64), dtype)),
                  to.const(f"{name}_DQ_scales", scale)]
        if has_zero:
            zeros = f"{name}_DQ_zero_points"
            inputs.append(to.const(zeros, tensor(zeros, (z - shift).astype(np.int64), dtype)))
        to.meaning[name] = ((q - z[place]) * scale[place]).astype(np.float32)
        yield node("DequantizeLinear", inputs, f"{name}_DQ", made.name + f"_DQ_Q{bits}", axis=0, block_size=block)
        yield node("MatMul", [made.input[0], f"{name}_DQ"], made.output[0], made.name + f"_matmul_Q{bits}")

    return lambda model: Writer(model, write).result()


def channel(to, w, name):
    """A weight in 8 bits with a scale per column, behind its DequantizeLinear."""
    scale = (np.abs(w).max(0) / 127).astype(np.float32)
    q = np.round(w / scale).astype(np.int8)
    to.meaning[name] = q * scale
    inputs = [to.const(f"{name}_quantized", q), to.const(f"{name}_scale", scale), to.const(f"{name}_zero_point", np.zeros(len(scale), np.int8))]
    return inputs, node("DequantizeLinear", inputs, f"{name}_DequantizeLinear_Output", name=f"{name}_DequantizeLinear", axis=1)


def magnitude(to, x):
    last, least = to.const("last", i64(-1)), to.const("least", np.float32(1e-6))
    yield node("Abs", [x], f"{x}_abs")
    yield node("ReduceMax", [f"{x}_abs", last], f"{x}_largest", keepdims=1)
    yield node("Max", [f"{x}_largest", least], f"{x}_magnitude")


def per_token(unsigned=True):
    def write(to, made, w, name):
        x, y = made.input[0], made.output[0]
        _, dequantize = channel(to, w, name)
        grid = [to.const("token_scale", np.float32(1 / 127)), to.const("token_zero", np.uint8(128) if unsigned else np.int8(0))]
        yield from magnitude(to, x)
        yield node("Div", [x, f"{x}_magnitude"], f"{x}_normalized")
        yield node("QuantizeLinear", [f"{x}_normalized", *grid], f"{x}_q")
        yield node("DequantizeLinear", [f"{x}_q", *grid], f"{x}_dq")
        yield dequantize
        yield node("MatMul", [f"{x}_dq", dequantize.output[0]], f"{y}_product", made.name)
        yield node("Mul", [f"{y}_product", f"{x}_magnitude"], y, name=f"{made.name}_magnitude")

    return lambda model: Writer(model, write).result()


def run_time_blocks(block=32):
    """Blocks of activations, with scales that are computed."""

    def write(to, made, w, name):
        x, y = made.input[0], made.output[0]
        _, dequantize = channel(to, w, name)
        shape = to.const(f"blocks_{len(w)}", i64(0, 0, len(w) // block, block))
        yield node("Abs", [x], f"{x}_abs")
        yield node("Reshape", [f"{x}_abs", shape], f"{x}_blocks")
        yield node("ReduceMax", [f"{x}_blocks", to.const("last", i64(-1))], f"{x}_largest", keepdims=0)
        yield node("Mul", [f"{x}_largest", to.const("per", np.float32(1 / 127))], f"{x}_small")
        yield node("Max", [f"{x}_small", to.const("least", np.float32(1e-8))], f"{x}_scale")
        yield node("QuantizeLinear", [x, f"{x}_scale"], f"{x}_q", axis=-1, block_size=block, output_dtype=TensorProto.INT8)
        yield node("DequantizeLinear", [f"{x}_q", f"{x}_scale"], f"{x}_dq", axis=-1, block_size=block)
        yield dequantize
        yield node("MatMul", [f"{x}_dq", dequantize.output[0]], y, made.name)

    return lambda model: Writer(model, write).result()


def dynamic():
    def write(to, made, w, name):
        inputs, _ = channel(to, w, name)
        yield helper.make_node("DynamicQuantizeMatMul", [made.input[0], *inputs], list(made.output), made.name + "_quant", domain=MS)

    return lambda model: Writer(model, write).result()


def with_table(form, bits=4, block=16):
    """The same with the embedding table in blocks."""

    def write(model):
        model, meaning = form(model)
        graph = model.graph
        at = next(i for i, n in enumerate(graph.node) if n.op_type == "Gather")
        table = next(t for t in graph.initializer if t.name == "table")
        q, scale, z = rounded(numpy_helper.to_array(table).T.copy(), bits, block, True)
        parts = {"table_Q4": packed(q.T.astype(np.uint8), bits), "table_scales": np.ascontiguousarray(scale.T),
                 "table_zero_points": packed(z.T.astype(np.uint8), bits)}
        graph.initializer.remove(table)
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in parts.items())
        names = list(parts)
        made = helper.make_node("GatherBlockQuantized", [names[0], "ids", *names[1:]], ["h0"], "/embed/Gather_Q4", domain=MS, bits=bits,
                                block_size=block)
        graph.node.remove(graph.node[at])
        graph.node.insert(at, made)
        place = np.arange(C) // block
        return model, meaning | {"table": ((q - z[place]) * scale[place]).T.astype(np.float32)}

    return write


FORMS = {
    "nbits_4_g32": nbits(),
    "nbits_4_g16_asymmetric": nbits(4, 16, "packed"),
    "nbits_4_level_0_bias": nbits(level=0, fused_bias=True),
    "nbits_4_float_zero": nbits(zero="float"),
    "nbits_4_g_idx": nbits(groups=True),
    "nbits_8_g128": nbits(8, 128),  # K = 96: one block, cut short
    "nbits_8_asymmetric": nbits(8, 64, "packed"),
    "nbits_2_g32": nbits(2, 32, "packed"),
    "blocks_int4": blocks(),
    "blocks_int4_no_zero": blocks(has_zero=False),
    "blocks_uint4_asymmetric": blocks("uint4", 32, True),
    "blocks_int8": blocks("int8", 96),
    "blocks_uint8": blocks("uint8", 32, True),
    "per_token_u8": per_token(),
    "per_token_s8": per_token(False),
    "run_time_blocks": run_time_blocks(),
    "dynamic_quantize_matmul": dynamic(),
    "table_4_nbits_4": with_table(nbits()),
    "table_8_per_token": with_table(per_token(), 8),
}
