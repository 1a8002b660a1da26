"""Make the small transformers under models/ that README's first command and the tests quantize.

    python models/make_tiny.py            write the files
    python models/make_tiny.py --check    fail unless the committed files are what this script makes, byte for byte

Every norm carries a few channels that are large and one-sided (γ · n + β with a large β), and every feed-forward layer
a few that are large after the activation, as trained transformers do; the Linears that read them have small weights
there, so that the float model depends on all channels alike. Plain int8 loses the ordinary channels.

    models/tiny/             BERT, post-LN, fused LayerNormalization, opset 17
    models/tiny-decomposed/  the same weights, LayerNormalization in nine nodes, opset 13
    models/tiny-llama/       decoder, pre-RMSNorm, RoPE, grouped-query heads, SiLU gate, no bias, tied output weight

Each folder has model.onnx, calib.npz and heldout.npz: input_ids and attention_mask, int64 [32, 32].
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
from build_bert import MASKED, Graph, bert_model
from build_llama import Config, decoder_layers, rms_norm

HERE = Path(__file__).resolve().parent
LAYERS, HIDDEN, HEADS, FFN, VOCABULARY, POSITIONS = 2, 64, 4, 256, 500, 64
ROWS, TOKENS = 32, 32
OUTLIERS = {7: 1.0, 23: -1.0, 41: 1.0}  # channel → side; the channels differ in size, see `plant_norm`


class Random:
    """Numbers that are the same on every machine: sums of integers from NumPy's frozen legacy stream."""

    def __init__(self, seed):
        self.stream = np.random.RandomState(seed)

    def integers(self, low, high, shape):
        return self.stream.randint(low, high, size=shape)

    def normal(self, shape, deviation):
        """Nearly Gaussian: the sum of six uniform integers, scaled by powers of two and `deviation`."""
        total = self.integers(-1024, 1025, (6, *shape)).sum(axis=0)
        # One of the six has variance 1024² / 3, so their sum has deviation 1024 · √2.
        return (total * (deviation / (1024 * 2**0.5))).astype(np.float32)


def plant_norm(random, *, ordinary, offset=True, planted=True):
    """γ, β: [H]. Ordinary channels have γ near `ordinary`, outliers reach 30 to 50 on one side."""
    gamma = ordinary + random.normal((HIDDEN,), 0.1 * ordinary)
    beta = random.normal((HIDDEN,), 0.1)
    for size, (channel, side) in enumerate(OUTLIERS.items() if planted else ()):
        if offset:
            gamma[channel], beta[channel] = 2.0, side * (28 + 4 * size)
        else:
            gamma[channel] = 12.0 + 3 * size
    return gamma.astype(np.float32), beta


def shrink_rows(weight, channels, factor):
    """Weights [N, K] that read a large input channel are small, as they are in trained models."""
    weight[:, list(channels)] *= np.float32(factor)
    return weight


def bert_weights(random):
    """Weights under Hugging Face names, Linear weights [N, K]."""
    w = {
        "embeddings.word_embeddings.weight": random.normal((VOCABULARY, HIDDEN), 1.0),
        "embeddings.position_embeddings.weight": random.normal((POSITIONS, HIDDEN), 0.3),
        "embeddings.token_type_embeddings.weight": random.normal((2, HIDDEN), 0.1),
    }

    def norm(path, ordinary, planted=True):
        w[f"{path}.weight"], w[f"{path}.bias"] = plant_norm(random, ordinary=ordinary, planted=planted)

    def linear(path, n, k, deviation):
        w[f"{path}.weight"] = random.normal((n, k), deviation)
        w[f"{path}.bias"] = random.normal((n,), 0.1)
        return w[f"{path}.weight"]

    norm("embeddings.LayerNorm", 1.0)
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        for name, deviation in (("query", 0.15), ("key", 0.15), ("value", 0.12)):
            shrink_rows(linear(f"{layer}.attention.self.{name}", HIDDEN, HIDDEN, deviation), OUTLIERS, 1 / 32)
        linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN, 0.2)
        # The residual brings the outliers into the sum before each norm and its deviation with them, hence γ near 7.
        norm(f"{layer}.attention.output.LayerNorm", 7.0)
        shrink_rows(linear(f"{layer}.intermediate.dense", FFN, HIDDEN, 0.12), OUTLIERS, 1 / 32)
        hot = [11 + 50 * i + number for i in range(5)]
        w[f"{layer}.intermediate.dense.weight"][hot] *= np.float32(12)
        shrink_rows(linear(f"{layer}.output.dense", HIDDEN, FFN, 0.08), hot, 1 / 12)
        # Nothing reads the last norm but the output; outliers there would only make its error look small.
        norm(f"{layer}.output.LayerNorm", 7.0, planted=number < LAYERS - 1)
    return w


def llama_weights(random, config, ffn):
    """Weights under PyTorch's names, [N, K], drawn in the order of the graph."""
    kv_width = config.kv_heads * config.head_size
    w = {"embed_tokens.weight": random.normal((VOCABULARY, HIDDEN), 1.0)}

    def norm(name):
        w[f"{name}.weight"], _ = plant_norm(random, ordinary=1.0, offset=False)

    def linear(name, k, n, deviation, large=(), columns=()):
        weight = shrink_rows(random.normal((n, k), deviation), large, 1 / 12)
        weight[list(columns)] *= np.float32(10)
        w[f"{name}.weight"] = weight

    for number in range(LAYERS):
        layer = f"layers.{number}"
        norm(f"{layer}.input_layernorm")
        linear(f"{layer}.self_attn.q_proj", HIDDEN, HIDDEN, 0.15, OUTLIERS)
        linear(f"{layer}.self_attn.k_proj", HIDDEN, kv_width, 0.15, OUTLIERS)
        linear(f"{layer}.self_attn.v_proj", HIDDEN, kv_width, 0.12, OUTLIERS)
        linear(f"{layer}.self_attn.o_proj", HIDDEN, HIDDEN, 0.1)
        norm(f"{layer}.post_attention_layernorm")
        hot = [9 + 40 * i + number for i in range(4)]
        linear(f"{layer}.mlp.gate_proj", HIDDEN, ffn, 0.15, OUTLIERS)
        linear(f"{layer}.mlp.up_proj", HIDDEN, ffn, 0.12, OUTLIERS, columns=hot)
        linear(f"{layer}.mlp.down_proj", ffn, HIDDEN, 0.08, hot)
    norm("norm")
    return w


def llama_model(random):
    """Pre-norm decoder; inputs input_ids, attention_mask: int64 [B, S]; output logits: f32 [B, S, VOCABULARY]. Rotation
    and causal mask are slices of tables, heads are repeated by Concat: build_llama.py computes and expands them."""
    config = Config(layers=LAYERS, heads=HEADS, kv_heads=2, head_size=HIDDEN // HEADS, epsilon=1e-6)
    weights, g, head = llama_weights(random, config, 160), Graph(), config.head_size
    table = g.constant("embed_tokens.weight", weights["embed_tokens.weight"])
    zero, axis_0, axis_3, _, _ = (
        g.constant(name, np.array([value], np.int64))
        for name, value in (("zero", 0), ("axis_0", 0), ("axis_3", 3), ("half_head", head // 2), ("end", 1 << 30))
    )
    length = g.sequence_length()
    # Angles are rounded to 2⁻¹²: the last bits of sin and cos are the business of each machine's libm.
    angle = np.arange(POSITIONS)[:, None] * 10000.0 ** (-np.arange(0, head, 2) / head)
    angle = np.concatenate([angle, angle], axis=1)
    rotation = []
    for name, function in (("cos", np.cos), ("sin", np.sin)):
        values = (np.rint(function(angle) * 4096) / 4096).astype(np.float32)
        rotation.append(g.add("Slice", f"/{name}/Slice", [g.constant(f"rotary.{name}", values), zero, length, axis_0]))
    causal = g.constant("causal_mask", np.triu(np.full((1, 1, POSITIONS, POSITIONS), MASKED), 1))
    causal = g.add("Slice", "/causal/Slice", [causal, zero, length, g.constant("axis_2", np.array([2], np.int64))])
    causal = g.add("Slice", "/causal/Slice_1", [causal, zero, length, axis_3])
    mask = g.add("Min", "/causal/Min", [causal, g.padding_mask()])

    def repeat(path, x):
        """Each key/value head serves heads / kv_heads query heads: [B, kv, S, D] → [B, heads, S, D]"""
        x = g.add("Unsqueeze", f"{path}/Unsqueeze", [x, g.constant("axes_2", np.array([2], np.int64))])
        x = g.add("Concat", f"{path}/Concat", [x] * (config.heads // config.kv_heads), axis=2)
        shape = g.constant("merge_groups", np.array([0, config.heads, -1, head], np.int64))
        return g.add("Reshape", f"{path}/Reshape", [x, shape])

    x = g.add("Gather", "/embed_tokens/Gather", [table, "input_ids"])
    x = decoder_layers(g, weights, config, x, rotation, mask, repeat)
    # The output layer reads the embedding table, transposed.
    weight = g.add("Transpose", "/lm_head/Transpose", [table], perm=[1, 0])
    x = rms_norm(g, "/norm", x, weights["norm.weight"], config.epsilon)
    g.add("MatMul", "/lm_head/MatMul", [x, weight], "logits")
    return g.model("tiny-llama", ["input_ids", "attention_mask"], "logits", VOCABULARY, 17)


def token_rows(random):
    """ids and mask, int64 [ROWS, TOKENS]; every third row is padded with 0 at its end."""
    ids = random.integers(1, VOCABULARY, (ROWS, TOKENS)).astype(np.int64)
    mask = np.ones((ROWS, TOKENS), np.int64)
    for row in range(2, ROWS, 3):
        mask[row, 8 + (5 * row) % 20 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def npz_bytes(arrays):
    """np.savez with a fixed time stamp."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, array, version=(1, 0))
            entry = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            file.writestr(entry, data.getvalue())
    return archive.getvalue()


def files():
    """{path under models/: bytes} of everything this script makes."""
    weights = bert_weights(Random(2304))
    models = {
        "tiny": bert_model(weights, heads=HEADS, fused=True, name="tiny"),
        "tiny-decomposed": bert_model(weights, heads=HEADS, fused=False, epsilon=1e-5, name="tiny-decomposed"),
        "tiny-llama": llama_model(Random(9145)),
    }
    made = {}
    for name, model in models.items():
        onnx.checker.check_model(model, full_check=True)
        made[f"{name}/model.onnx"] = model.SerializeToString(deterministic=True)
        made[f"{name}/calib.npz"] = npz_bytes(token_rows(Random(1)))
        made[f"{name}/heldout.npz"] = npz_bytes(token_rows(Random(2)))
    return made


def main():
    parser = argparse.ArgumentParser(description="Make the small models under models/.")
    parser.add_argument("--check", action="store_true", help="compare with the files there, write nothing")
    args = parser.parse_args()
    wrong = []
    for name, data in files().items():
        path = HERE / name
        if args.check:
            if not path.is_file() or path.read_bytes() != data:
                wrong.append(str(path))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            print(f"{path} {len(data):,} bytes")
    if wrong:
        sys.exit("not what models/make_tiny.py makes: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
