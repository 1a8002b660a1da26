#!/usr/bin/env python3
"""Write a GGUF file of the LLaMA kind as a float32 ONNX graph, node by node as the TorchScript exporter writes it.

    models/fetch --decoder
    python models/build_llama.py models/real/smollm2.gguf smollm2.onnx
    python models/build_llama.py models/real/smollm2.gguf smol6.onnx --layers 6 --output residual

RMSNorm, rotary embedding, grouped-query heads, causal and padding mask, SiLU gate, no bias; the output weight is the
embedding table unless the file has one of its own. Inputs input_ids, attention_mask: int64 [batch, sequence]; output
logits: f32 [batch, sequence, vocabulary], or f32 [batch, sequence, H]: last_hidden_state, which the last norm gives, or
residual, which it reads. Needs numpy and onnx.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from build_bert import MASKED, Graph
from gguf_weights import read_gguf
from onnx import TensorProto

# GGUF's names of a block's tensors, and those that PyTorch has.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}


@dataclass(frozen=True)
class Config:
    """Of the decoder; `heads` share `kv_heads` keys and values, each of `head_size` channels."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    epsilon: float = 1e-5
    rope_base: float = 10000.0


def halves_in_order(weight, heads):
    """Rows of a query or key weight [heads · D, K] as PyTorch has them. GGUF pairs channel 2i with 2i + 1 for the rotary
    embedding, PyTorch i with i + D / 2."""
    n, k = weight.shape
    return weight.reshape(heads, n // heads // 2, 2, k).swapaxes(1, 2).reshape(n, k)


def read_llama(path, layers=None):
    """(Config, {PyTorch's name: array}) of a GGUF file, or of its first `layers` layers."""

    def wanted(name):
        return layers is None or not name.startswith("blk.") or int(name.split(".")[1]) < layers

    known, tensors = read_gguf(path, wanted)
    if known["general.architecture"] != "llama":
        raise ValueError(f"{path}: expected the architecture llama, found {known['general.architecture']}")
    heads, count = known["llama.attention.head_count"], known["llama.block_count"]
    config = Config(
        layers=count if layers is None else min(layers, count),
        heads=heads,
        kv_heads=known["llama.attention.head_count_kv"],
        head_size=known.get("llama.rope.dimension_count", known["llama.embedding_length"] // heads),
        epsilon=known["llama.attention.layer_norm_rms_epsilon"],
        rope_base=known.get("llama.rope.freq_base", 10000.0),
    )
    weights = {}
    for name, array in tensors.items():
        parts = name.removesuffix(".weight").split(".")
        if parts[0] == "blk":
            if parts[2] in ("attn_q", "attn_k"):
                array = halves_in_order(array, config.heads if parts[2] == "attn_q" else config.kv_heads)
            weights[f"layers.{parts[1]}.{BLOCK_NAMES[parts[2]]}.weight"] = array
        else:
            weights[f"{OTHER_NAMES[parts[0]]}.weight"] = array
    return config, weights


def rms_norm(g, path, x, gamma, epsilon):
    """x / √(mean(x²) + ε) · γ"""
    y = g.add("Pow", f"{path}/Pow", [x, g.constant("two", np.float32(2))])
    y = g.add("ReduceMean", f"{path}/ReduceMean", [y], axes=[-1])
    y = g.add("Add", f"{path}/Add", [y, g.constant("rms_norm_epsilon", np.float32(epsilon))])
    y = g.add("Div", f"{path}/Div", [g.constant("one", np.float32(1)), g.add("Sqrt", f"{path}/Sqrt", [y])])
    y = g.add("Mul", f"{path}/Mul", [x, y])
    return g.add("Mul", f"{path}/Mul_1", [g.constant(path.strip("/").replace("/", ".") + ".weight", gamma), y])


def rotate(g, path, x, cos, sin, head_size):
    """x cos + rotate_half(x) sin with x: [B, heads, S, D], cos and sin: [S, D]"""
    zero, axis, half, end = (
        g.constant(name, np.array([value], np.int64))
        for name, value in (("zero", 0), ("axis_3", 3), ("half_head", head_size // 2), ("end", 1 << 30))
    )
    first = g.add("Slice", f"{path}/Slice", [x, zero, half, axis])
    second = g.add("Slice", f"{path}/Slice_1", [x, half, end, axis])
    turned = g.add("Concat", f"{path}/Concat", [g.add("Neg", f"{path}/Neg", [second]), first], axis=-1)
    even = g.add("Mul", f"{path}/Mul", [x, cos])
    return g.add("Add", f"{path}/Add", [even, g.add("Mul", f"{path}/Mul_1", [turned, sin])])


def repeat_by_expand(g, path, x, config):
    """Each key or value head serves heads / kv_heads query heads: [B, kv, S, D] → [B, heads, S, D]"""
    x = g.add("Unsqueeze", f"{path}/Unsqueeze", [x, g.constant("axes_2", np.array([2], np.int64))])
    times = g.constant("repeats", np.array([1, 1, config.heads // config.kv_heads, 1, 1], np.int64))
    x = g.add("Expand", f"{path}/Expand", [x, times])
    shape = g.constant("merge_groups", np.array([0, config.heads, -1, config.head_size], np.int64))
    return g.add("Reshape", f"{path}/Reshape", [x, shape])


def decoder_layers(g, weights, config, x, rotation, mask, repeat):
    """The residual stream behind every layer. x: the embedded tokens [B, S, H]; rotation: names of cos and sin; mask: what is
    added to the scores; repeat(path, x): serves all heads with keys or values. Weights are [N, K], as PyTorch has them."""

    def weight(path):
        return weights[path.strip("/").replace("/", ".") + ".weight"]

    def linear(path, x):
        return g.linear(path, x, weight(path).T)

    def norm(path, x):
        return rms_norm(g, path, x, weight(path), config.epsilon)

    for number in range(config.layers):
        layer = f"/layers.{number}"
        n = norm(f"{layer}/input_layernorm", x)
        attention, size = f"{layer}/self_attn", config.head_size
        q, k, v = (linear(f"{attention}/{part}_proj", n) for part in "qkv")
        q = rotate(g, f"{attention}/q", g.split_heads(f"{attention}/q", q, config.heads, [0, 2, 1, 3]), *rotation, size)
        k = rotate(g, f"{attention}/k", g.split_heads(f"{attention}/k", k, config.kv_heads, [0, 2, 1, 3]), *rotation, size)
        v = g.split_heads(f"{attention}/v", v, config.kv_heads, [0, 2, 1, 3])
        k_t = g.add("Transpose", f"{attention}/k_t/Transpose", [repeat(f"{attention}/repeat_k", k)], perm=[0, 1, 3, 2])
        y = g.attend(attention, q, k_t, repeat(f"{attention}/repeat_v", v), size, mask)
        x = g.add("Add", f"{layer}/Add", [x, linear(f"{attention}/o_proj", y)])
        n = norm(f"{layer}/post_attention_layernorm", x)
        gate, up = linear(f"{layer}/mlp/gate_proj", n), linear(f"{layer}/mlp/up_proj", n)
        act = g.add("Mul", f"{layer}/mlp/act_fn/Mul", [gate, g.add("Sigmoid", f"{layer}/mlp/act_fn/Sigmoid", [gate])])
        y = linear(f"{layer}/mlp/down_proj", g.add("Mul", f"{layer}/mlp/Mul", [act, up]))
        x = g.add("Add", f"{layer}/Add_1", [x, y])
    return x


def rotary_embedding(g, positions, config):
    """Names of cos and sin, f32 [S, D], of the angles position · base^(−2i / D), which stand twice"""
    half = np.arange(0, config.head_size, 2, dtype=np.float64)
    frequencies = (config.rope_base ** (-half / config.head_size)).astype(np.float32)
    column = g.constant("axes_1", np.array([1], np.int64))
    p = g.add("Unsqueeze", "/rotary_emb/Unsqueeze", [g.add("Cast", "/rotary_emb/Cast", [positions], to=TensorProto.FLOAT), column])
    angles = g.add("Mul", "/rotary_emb/Mul", [p, g.constant("rotary_emb.inv_freq", frequencies)])
    angles = g.add("Concat", "/rotary_emb/Concat", [angles, angles], axis=-1)
    return g.add("Cos", "/rotary_emb/Cos", [angles]), g.add("Sin", "/rotary_emb/Sin", [angles])


def causal_and_padding_mask(g, positions):
    """f32 [B, 1, S, S]: 0 where the key is no later than the query and no padding, else the lowest float"""
    rows, columns = (g.constant(f"axes_{axis}", np.array([axis], np.int64)) for axis in (0, 1))
    keys, queries = g.add("Unsqueeze", "/Unsqueeze", [positions, rows]), g.add("Unsqueeze", "/Unsqueeze_1", [positions, columns])
    causal = g.add("LessOrEqual", "/LessOrEqual", [keys, queries])
    padding = g.add("Unsqueeze", "/Unsqueeze_2", ["attention_mask", g.constant("axes_1_2", np.array([1, 2], np.int64))])
    seen = g.add("And", "/And", [causal, g.add("Cast", "/Cast", [padding], to=TensorProto.BOOL)])
    return g.add("Where", "/Where", [seen, g.constant("nothing", np.float32(0)), g.constant("masked", MASKED)])


OUTPUTS = {"logits": "logits", "hidden": "last_hidden_state", "residual": "residual"}


def llama_model(config, weights, *, output="logits", name="llama"):
    """The decoder as a ModelProto, opset 17. output: logits, hidden (what the last norm gives) or residual (what it
    reads)."""
    g = Graph()
    table = g.constant("embed_tokens.weight", weights["embed_tokens.weight"])
    x = g.add("Gather", "/embed_tokens/Gather", [table, "input_ids"])
    length = g.add("Gather", "/Gather", [g.add("Shape", "/Shape", ["input_ids"]), g.constant("second", np.int64(1))], axis=0)
    ends = [g.constant("first", np.int64(0)), length, g.constant("step", np.int64(1))]
    positions = g.add("Range", "/Range", ends)
    rotation = rotary_embedding(g, positions, config)
    mask = causal_and_padding_mask(g, positions)
    x = decoder_layers(g, weights, config, x, rotation, mask, lambda path, x: repeat_by_expand(g, path, x, config))
    inputs, (vocabulary, width) = ["input_ids", "attention_mask"], weights["embed_tokens.weight"].shape
    if output != "residual":
        x = rms_norm(g, "/norm", x, weights["norm.weight"], config.epsilon)
    if output != "logits":
        g.nodes[-1].output[0] = OUTPUTS[output]
        return g.model(name, inputs, OUTPUTS[output], width, 17)
    if "lm_head.weight" in weights:
        weight = g.constant("lm_head.weight_t", weights["lm_head.weight"].T)
    else:
        weight = g.add("Transpose", "/lm_head/Transpose", [table], perm=[1, 0])
    g.add("MatMul", "/lm_head/MatMul", [x, weight], "logits")
    return g.model(name, inputs, "logits", vocabulary, 17)


def main():
    parser = argparse.ArgumentParser(description="Write a GGUF file of the LLaMA kind as a float32 ONNX graph.")
    parser.add_argument("weights", help="a .gguf file; tensors in F32, F16, Q4_1 or Q8_0")
    parser.add_argument("out", help="the ONNX file to write")
    parser.add_argument("--layers", type=int, help="only the first layers; all of them without this option")
    parser.add_argument("--output", choices=OUTPUTS, default="logits", help="hidden: behind the last norm; residual: before it")
    args = parser.parse_args()
    model = llama_model(*read_llama(args.weights, args.layers), output=args.output, name=Path(args.weights).stem)
    onnx.checker.check_model(model, full_check=True)
    Path(args.out).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
