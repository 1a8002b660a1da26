#!/usr/bin/env python3
"""Write a decoder of LLaMA, OPT or BLOOM structure with random weights and planted outlier channels, of any size: weights go to
OUT.data one by one, so that 7 billion need no more memory than the largest of them.

    python models/build_decoder.py llama 0.1B decoder.onnx
    python models/build_decoder.py llama 7B decoder.onnx --dtype float16 --untied
    python models/build_decoder.py bloom 0.35B decoder.onnx --layers 2

llama: RMSNorm, rotary embedding, grouped-query heads, SiLU gate. opt: LayerNorm, learned positions, biases, ReLU. bloom: LayerNorm
behind the embedding, ALiBi, one fused weight for Q, K and V, GELU. All before the sums (pre-norm). Inputs input_ids,
attention_mask: int64 [batch, sequence]; output logits: f32 [batch, sequence, vocabulary]. Needs numpy and onnx.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Size:
    """Of the decoder."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int = 32000
    positions: int = 2048


SIZES = {
    "tiny": Size(3, 64, 4, 2, 160, 512, 128),
    "0.03B": Size(6, 576, 9, 3, 1536, 8192),
    "0.1B": Size(12, 768, 12, 4, 2048),
    "0.35B": Size(24, 1024, 16, 4, 2816),
    "1.1B": Size(22, 2048, 32, 4, 5632),
    "3B": Size(26, 3200, 32, 32, 8640),
    "7B": Size(32, 4096, 32, 32, 11008),
}

# Channels of a norm's output that are much larger than the others, and by how much.
OUTLIERS = 6
LARGEST = 40.0


class Writer:
    """A graph whose large constants are in a file beside it."""

    def __init__(self, path, dtype, seed):
        self.path, self.dtype = Path(path), dtype
        self.location = self.path.name + ".data"
        self.data = (self.path.parent / self.location).open("wb")
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants, self.known = [], [], {}

    def add(self, op, name, inputs, outputs=1, **attributes):
        made = [f"{name}_output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, name=name, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, name, array):
        if name not in self.known:
            self.known[name] = True
            self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def stored(self, array):
        """The bytes of float32 values in the type of the file."""
        if self.dtype == "float32":
            return np.ascontiguousarray(array, "<f4").tobytes()
        if self.dtype == "float16":
            return array.astype("<f2").tobytes()
        return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()

    def weight(self, name, array):
        """A constant of the type of the file, at a multiple of 4096 bytes in the file beside it."""
        tensor = TensorProto(name=name, data_type=TYPES[self.dtype], dims=array.shape)
        self.data.write(b"\0" * (-self.data.tell() % 4096))
        entries = {"location": self.location, "offset": self.data.tell()}
        entries["length"] = self.data.write(self.stored(array))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.constants.append(tensor)
        return name

    def normal(self, name, rows, columns, scale):
        array = self.random.standard_normal((rows, columns), dtype=np.float32)
        array *= scale
        return self.weight(name, array)

    def save(self, inputs, outputs):
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        self.data.close()
        onnx.save(model, self.path)


class Decoder:
    """One architecture, node by node."""

    def __init__(self, kind, size, writer, tied):
        self.kind, self.size, self.g, self.tied = kind, size, writer, tied
        self.kv_heads = size.kv_heads if kind == "llama" else size.heads
        self.head = size.width // size.heads

    def cast(self, name, x, to):
        if self.g.dtype == "float32":
            return x
        return self.g.add("Cast", name, [x], to=TYPES[to])

    def scalar(self, name, value):
        return self.g.constant(name, np.float32(value))

    def gamma(self, name):
        """Ones, with outliers."""
        gamma = np.ones(self.size.width, np.float32) + 0.1 * self.g.random.standard_normal(self.size.width, dtype=np.float32)
        at = self.g.random.choice(self.size.width, OUTLIERS, replace=False)
        gamma[at] *= np.geomspace(8, LARGEST, OUTLIERS).astype(np.float32)
        return self.g.weight(name, gamma)

    def norm(self, path, x):
        g = self.g
        if self.kind != "llama":
            beta = g.weight(f"{path}.bias", 0.1 * g.random.standard_normal(self.size.width, dtype=np.float32))
            return g.add("LayerNormalization", f"{path}/Norm", [x, self.gamma(f"{path}.weight"), beta], axis=-1, epsilon=1e-5)
        wide = self.cast(f"{path}/Cast", x, "float32")
        y = g.add("Pow", f"{path}/Pow", [wide, self.scalar("two", 2)])
        y = g.add("ReduceMean", f"{path}/ReduceMean", [y], axes=[-1])
        y = g.add("Sqrt", f"{path}/Sqrt", [g.add("Add", f"{path}/Add", [y, self.scalar("epsilon", 1e-5)])])
        y = g.add("Mul", f"{path}/Mul", [wide, g.add("Div", f"{path}/Div", [self.scalar("one", 1), y])])
        y = self.cast(f"{path}/Cast_1", y, self.g.dtype)
        return g.add("Mul", f"{path}/Mul_1", [self.gamma(f"{path}.weight"), y])

    def linear(self, path, x, k, n, gain=1.0):
        y = self.g.add("MatMul", f"{path}/MatMul", [x, self.g.normal(f"{path}.weight", k, n, gain / np.sqrt(k))])
        if self.kind == "llama":
            return y
        bias = self.g.weight(f"{path}.bias", 0.1 * self.g.random.standard_normal(n, dtype=np.float32))
        return self.g.add("Add", f"{path}/Add", [bias, y])

    def split_heads(self, path, x, heads):
        shape = self.g.constant(f"heads_{heads}", np.array([0, 0, heads, self.head], np.int64))
        x = self.g.add("Reshape", f"{path}/Reshape", [x, shape])
        return self.g.add("Transpose", f"{path}/Transpose", [x], perm=[0, 2, 1, 3])

    def rotate(self, path, x, cos, sin):
        g = self.g
        first, second = g.add("Split", f"{path}/Split", [x], 2, axis=-1)
        turned = g.add("Concat", f"{path}/Concat", [g.add("Neg", f"{path}/Neg", [second]), first], axis=-1)
        return g.add("Add", f"{path}/Add", [g.add("Mul", f"{path}/Mul", [x, cos]), g.add("Mul", f"{path}/Mul_1", [turned, sin])])

    def repeat(self, path, x):
        times = self.size.heads // self.kv_heads
        if times == 1:
            return x
        g = self.g
        x = g.add("Unsqueeze", f"{path}/Unsqueeze", [x, g.constant("axis_2", np.array([2], np.int64))])
        x = g.add("Expand", f"{path}/Expand", [x, g.constant("repeats", np.array([1, 1, times, 1, 1], np.int64))])
        shape = g.constant("merge_groups", np.array([0, self.size.heads, -1, self.head], np.int64))
        return g.add("Reshape", f"{path}/Reshape_1", [x, shape])

    def query_key_value(self, path, x):
        g, size = self.g, self.size
        if self.kind == "bloom":
            fused = self.linear(f"{path}.query_key_value", x, size.width, 3 * size.width)
            shape = g.constant("fused_heads", np.array([0, 0, size.heads, 3, self.head], np.int64))
            fused = g.add("Reshape", f"{path}/Reshape", [fused, shape])
            parts = g.add("Split", f"{path}/Split", [fused], 3, axis=3)
            axis = g.constant("axis_3", np.array([3], np.int64))
            squeezed = [g.add("Squeeze", f"{path}/Squeeze_{i}", [part, axis]) for i, part in enumerate(parts)]
            return [g.add("Transpose", f"{path}/Transpose_{i}", [s], perm=[0, 2, 1, 3]) for i, s in enumerate(squeezed)]
        widths = {"q_proj": size.heads, "k_proj": self.kv_heads, "v_proj": self.kv_heads}
        made = []
        for name, heads in widths.items():
            product = self.linear(f"{path}.{name}", x, size.width, heads * self.head)
            made.append(self.split_heads(f"{path}/{name}", product, heads))
        return made

    def attention(self, path, x, mask, angles):
        g, size = self.g, self.size
        q, k, v = self.query_key_value(path, x)
        if self.kind == "llama":
            q, k = (self.rotate(f"{path}/rotary_{n}", value, *angles) for n, value in (("q", q), ("k", k)))
            k, v = (self.repeat(f"{path}/repeat_{n}", value) for n, value in (("k", k), ("v", v)))
        k = g.add("Transpose", f"{path}/Transpose_k", [k], perm=[0, 1, 3, 2])
        scores = self.cast(f"{path}/Cast", g.add("MatMul", f"{path}/MatMul", [q, k]), "float32")
        scores = g.add("Mul", f"{path}/Mul", [scores, self.scalar("scale", self.head**-0.5)])
        probabilities = g.add("Softmax", f"{path}/Softmax", [g.add("Add", f"{path}/Add", [scores, mask])], axis=-1)
        probabilities = self.cast(f"{path}/Cast_1", probabilities, g.dtype)
        context = g.add("MatMul", f"{path}/MatMul_1", [probabilities, v])
        context = g.add("Transpose", f"{path}/Transpose_out", [context], perm=[0, 2, 1, 3])
        context = g.add("Reshape", f"{path}/Reshape_out", [context, g.constant("merge_heads", np.array([0, 0, size.width], np.int64))])
        return self.linear(f"{path}.o_proj", context, size.width, size.width, (2 * size.layers) ** -0.5)

    def feed_forward(self, path, x):
        g, size = self.g, self.size
        inner = size.inner if self.kind == "llama" else 4 * size.width
        up = self.linear(f"{path}.up_proj", x, size.width, inner)
        if self.kind == "llama":
            gate = self.linear(f"{path}.gate_proj", x, size.width, inner)
            gate = g.add("Mul", f"{path}/Mul", [gate, g.add("Sigmoid", f"{path}/Sigmoid", [gate])])
            up = g.add("Mul", f"{path}/Mul_1", [gate, up])
        elif self.kind == "opt":
            up = g.add("Relu", f"{path}/Relu", [up])
        else:
            up = self.gelu(path, up)
        return self.linear(f"{path}.down_proj", up, inner, size.width, (2 * size.layers) ** -0.5)

    def gelu(self, path, x):
        """x (1 + erf(x / √2)) / 2"""
        g = self.g
        half, root = (g.weight(f"{path}.{name}", np.float32(value).reshape(1)) for name, value in (("half", 0.5), ("root", 2**0.5)))
        one = g.weight(f"{path}.one", np.ones(1, np.float32))
        e = g.add("Erf", f"{path}/Erf", [g.add("Div", f"{path}/Div", [x, root])])
        e = g.add("Mul", f"{path}/Mul", [x, g.add("Add", f"{path}/Add", [e, one])])
        return g.add("Mul", f"{path}/Mul_1", [e, half])

    def positions(self):
        """0, 1, … of as many as there are tokens: int64 [T]."""
        g = self.g
        length = g.add("Gather", "/length", [g.add("Shape", "/Shape", ["input_ids"]), g.constant("index_1", np.int64(1))])
        return g.add("Range", "/Range", [g.constant("zero", np.int64(0)), length, g.constant("step", np.int64(1))])

    def mask(self, at):
        """What is added to scores, f32 [B, 1 or heads, T, T]: nothing can look ahead or at padding."""
        g = self.g
        rows = g.add("Unsqueeze", "/rows", [at, g.constant("axis_1", np.array([1], np.int64))])
        causal = g.add("LessOrEqual", "/causal", [at, rows])
        real = g.add("Cast", "/real", ["attention_mask"], to=TensorProto.BOOL)
        real = g.add("Unsqueeze", "/real_1", [real, g.constant("axes_12", np.array([1, 2], np.int64))])
        allowed = g.add("And", "/allowed", [causal, real])
        mask = g.add("Where", "/mask", [allowed, self.scalar("nothing", 0), self.scalar("masked", -3e38)])
        if self.kind != "bloom":
            return mask
        slopes = 2.0 ** (-8.0 * np.arange(1, self.size.heads + 1) / self.size.heads)
        slopes = g.constant("slopes", slopes.astype(np.float32).reshape(1, -1, 1, 1))
        alibi = g.add("Mul", "/alibi", [slopes, g.add("Cast", "/at", [at], to=TensorProto.FLOAT)])
        return g.add("Max", "/biased", [g.add("Add", "/mask_1", [mask, alibi]), self.scalar("masked", -3e38)])

    def angles(self, at):
        """cos and sin [T, D] of the type of the file."""
        g = self.g
        frequencies = 10000.0 ** (-np.arange(0, self.head, 2) / self.head)
        at = g.add("Unsqueeze", "/at_1", [g.add("Cast", "/at", [at], to=TensorProto.FLOAT), g.constant("axis_1", np.array([1], np.int64))])
        half = g.add("Mul", "/angles", [at, g.constant("frequencies", frequencies.astype(np.float32).reshape(1, -1))])
        both = g.add("Concat", "/angles_1", [half, half], axis=-1)
        return [self.cast(f"/{op}_1", g.add(op, f"/{op}", [both]), g.dtype) for op in ("Cos", "Sin")]

    def embedding(self, at):
        g, size = self.g, self.size
        table = g.random.standard_normal((size.vocabulary, size.width), dtype=np.float32)
        # Token 0 is as large as the first token of real decoders.
        table[0] *= 20
        x = g.add("Gather", "/embed_tokens/Gather", [g.weight("embed_tokens.weight", table), "input_ids"])
        if self.kind == "opt":
            places = g.normal("embed_positions.weight", size.positions, size.width, 0.3)
            x = g.add("Add", "/embed/Add", [x, g.add("Gather", "/embed_positions/Gather", [places, at])])
        return self.norm("embed_norm", x) if self.kind == "bloom" else x

    def build(self):
        g, size = self.g, self.size
        at = self.positions()
        mask = self.mask(at)
        angles = self.angles(at) if self.kind == "llama" else None
        x = self.embedding(at)
        for i in range(size.layers):
            attention = self.attention(f"layers.{i}.attn", self.norm(f"layers.{i}.attn_norm", x), mask, angles)
            x = g.add("Add", f"layers.{i}/Add", [x, attention])
            forward = self.feed_forward(f"layers.{i}.mlp", self.norm(f"layers.{i}.mlp_norm", x))
            x = g.add("Add", f"layers.{i}/Add_1", [x, forward])
        x = self.norm("norm", x)
        if self.tied:
            table = g.add("Transpose", "/lm_head/Transpose", ["embed_tokens.weight"], perm=[1, 0])
            logits = g.add("MatMul", "/lm_head/MatMul", [x, table])
        else:
            weight = g.normal("lm_head.weight", size.width, size.vocabulary, size.width**-0.5)
            logits = g.add("MatMul", "/lm_head/MatMul", [x, weight])
        logits = self.cast("/lm_head/Cast", logits, "float32")
        g.add("Identity", "/logits", [logits])
        g.nodes[-1].output[0] = "logits"
        tokens = ["batch", "sequence"]
        inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, tokens) for n in ("input_ids", "attention_mask")]
        g.save(inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*tokens, size.vocabulary])])


def build(kind, size, path, dtype="float32", tied=True, seed=0):
    """Writes the model and OUT.data."""
    Decoder(kind, size, Writer(path, dtype, seed), tied).build()


def calibration(size, rows, length, seed=1):
    """Token ids with the large token first, as decoders see them."""
    ids = np.random.default_rng(seed).integers(1, size.vocabulary, (rows, length))
    ids[:, 0] = 0
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["llama", "opt", "bloom"])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=TYPES, default="float32")
    parser.add_argument("--untied", action="store_true", help="a table of its own for the output")
    parser.add_argument("--layers", type=int, help="fewer or more of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calib", type=Path, help="also write token ids: .npz")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    size = replace(size, layers=arguments.layers or size.layers)
    build(arguments.kind, size, arguments.out, arguments.dtype, not arguments.untied, arguments.seed)
    if arguments.calib:
        np.savez(arguments.calib, **calibration(size, arguments.rows, arguments.length))


if __name__ == "__main__":
    main()
