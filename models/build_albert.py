#!/usr/bin/env python3
"""Write ALBERT weights as an ONNX graph: post-LN, one set of weights that every layer uses.

    python models/build_albert.py models/real/albert.bin out.onnx --heads 8 --layers 12 [--layer-norm decomposed]

ALBERT embeds tokens in E channels, maps them to H with one Linear and applies the same layer again and again. Each of
its constants is one initializer that all layers read, as PyTorch's exporters write it. Needs numpy and onnx.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from build_bert import Graph
from torch_weights import read_torch

LAYER = "encoder.albert_layer_groups.0.albert_layers.0"


def albert_model(weights, *, heads, layers, fused, epsilon=1e-12, name="albert"):
    """The encoder as a ModelProto; inputs input_ids, attention_mask, token_type_ids: int64 [B, S]; output
    last_hidden_state: f32 [B, S, H]. Linear weights in `weights` are [N, K], as PyTorch keeps them."""
    weights = {key.removeprefix("albert."): array for key, array in weights.items()}
    g = Graph()

    def linear(path, x, key):
        return g.linear(path, x, weights[f"{key}.weight"].T, weights[f"{key}.bias"], constants=key)

    def norm(path, x, key, output=None):
        return g.layer_norm(path, x, weights[f"{key}.weight"], weights[f"{key}.bias"], epsilon, fused, output, constants=key)

    def embed(table, ids):
        key = f"embeddings.{table}.weight"
        return g.add("Gather", f"/embeddings/{table}/Gather", [g.constant(key, weights[key]), ids])

    positions = len(weights["embeddings.position_embeddings.weight"])
    ids = g.constant("embeddings.position_ids", np.arange(positions, dtype=np.int64)[None])
    bounds = [g.constant("zero", np.array([0], np.int64)), g.sequence_length(), g.constant("axis_1", np.array([1], np.int64))]
    position_ids = g.add("Slice", "/embeddings/Slice", [ids, *bounds])
    mask = g.padding_mask()
    x = g.add("Add", "/embeddings/Add", [embed("word_embeddings", "input_ids"), embed("token_type_embeddings", "token_type_ids")])
    x = g.add("Add", "/embeddings/Add_1", [x, embed("position_embeddings", position_ids)])
    x = norm("/embeddings/LayerNorm", x, "embeddings.LayerNorm")
    x = linear("/encoder/embedding_hidden_mapping_in", x, "encoder.embedding_hidden_mapping_in")

    hidden = weights[f"{LAYER}.ffn_output.bias"].shape[0]
    for number in range(layers):
        layer = f"/encoder/layer.{number}"
        attention = f"{layer}/attention"
        q = g.split_heads(f"{attention}/q", linear(f"{attention}/query", x, f"{LAYER}.attention.query"), heads, [0, 2, 1, 3])
        k_t = g.split_heads(f"{attention}/k", linear(f"{attention}/key", x, f"{LAYER}.attention.key"), heads, [0, 2, 3, 1])
        v = g.split_heads(f"{attention}/v", linear(f"{attention}/value", x, f"{LAYER}.attention.value"), heads, [0, 2, 1, 3])
        y = g.attend(attention, q, k_t, v, hidden // heads, mask)
        y = linear(f"{attention}/dense", y, f"{LAYER}.attention.dense")
        x = norm(f"{attention}/LayerNorm", g.add("Add", f"{attention}/Add_1", [y, x]), f"{LAYER}.attention.LayerNorm")
        y = g.gelu(f"{layer}/activation", linear(f"{layer}/ffn", x, f"{LAYER}.ffn"))
        y = linear(f"{layer}/ffn_output", y, f"{LAYER}.ffn_output")
        last = "last_hidden_state" if number == layers - 1 else None
        x = norm(f"{layer}/full_layer_layer_norm", g.add("Add", f"{layer}/Add", [y, x]), f"{LAYER}.full_layer_layer_norm", last)

    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    return g.model(name, inputs, "last_hidden_state", hidden, 17 if fused else 13)


def main():
    parser = argparse.ArgumentParser(description="Write ALBERT weights (a PyTorch checkpoint) as an ONNX graph.")
    parser.add_argument("weights", help="a pytorch_model.bin with Hugging Face names")
    parser.add_argument("out", help="the ONNX file to write")
    parser.add_argument("--heads", type=int, required=True, help="number of attention heads (8 in rxnmapper)")
    parser.add_argument("--layers", type=int, required=True, help="how often the layer is applied (12 in rxnmapper)")
    parser.add_argument("--layer-norm", choices=["fused", "decomposed"], default="fused")
    args = parser.parse_args()
    fused = args.layer_norm == "fused"
    model = albert_model(read_torch(args.weights), heads=args.heads, layers=args.layers, fused=fused)
    onnx.checker.check_model(model, full_check=True)
    Path(args.out).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
