#!/usr/bin/env python3
"""Whether one rotation of the whole residual stream would gain anything: it costs no node in a model that norms before its blocks.

    cargo build --release && models/fetch --decoder
    .venv/bin/python benchmarks/stream_rotation.py [--binary target/release/onnx-osplus] [--seeds 0 1]

R is put into the float model (QuaRot's R1): every gamma goes into the Linears behind its norm, the embedding table and all that
write the stream are multiplied by R, all that read it by its transpose. Then the tool runs on both models, with the same data.
The model is that of bars.py: the first six layers of SmolLM2. SQNR and, in brackets, its mean over tokens, in dB.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import bars
import numpy as np
import onnx
from onnx import helper, numpy_helper

LAYERS, SETTINGS = 6, {"W8A8": (8, 8), "W6A6": (6, 6), "W4A4": (4, 4)}


def orthogonal(n, seed):
    """Signs, and Hadamard's matrix for the part of n that is a power of two, Hartley's for the rest."""
    power = n & -n
    odd = n // power
    hadamard = np.array([[(-1.0) ** (i & j).bit_count() for j in range(power)] for i in range(power)]) / power**0.5
    turns = 2 * np.pi * np.outer(np.arange(odd), np.arange(odd)) / odd
    hartley = (np.cos(turns) + np.sin(turns)) / odd**0.5
    return np.random.default_rng(seed).choice([-1.0, 1.0], n)[:, None] * np.kron(hadamard, hartley)


def rotated(model, seed):
    """The same function with a rotated stream; its output is turned back by one MatMul in float."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    stored = {t.name: t for t in model.graph.initializer}

    def change(name, how):
        array = numpy_helper.to_array(stored[name]).astype(np.float64)
        stored[name].CopyFrom(numpy_helper.from_array(how(array).astype(np.float32), name))
        return array

    width = stored["embed_tokens.weight"].dims[1]
    r = orthogonal(width, seed)
    change("embed_tokens.weight", lambda w: w @ r)
    readers = {"input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
               "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj")}  # fmt: skip
    for layer in range(LAYERS):
        for norm, linears in readers.items():
            gamma = change(f"layers.{layer}.{norm}.weight", np.ones_like)
            for linear in linears:
                change(f"layers.{layer}.{linear}.weight_t", lambda w, gamma=gamma: r.T @ (gamma[:, None] * w))
        for linear in ("self_attn.o_proj", "mlp.down_proj"):
            change(f"layers.{layer}.{linear}.weight_t", lambda w: w @ r)
    output = model.graph.output[0].name
    writer = next(n for n in model.graph.node if output in n.output)
    writer.output[0] = "stream"
    model.graph.initializer.append(numpy_helper.from_array(r.T.astype(np.float32), "back"))
    model.graph.node.append(helper.make_node("MatMul", ["stream", "back"], [output], name="turned_back"))
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=bars.ROOT / "target" / "release" / "onnx-osplus")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    args = parser.parse_args()
    calib, heldout = (bars.REAL / f"smollm2-{part}.npz" for part in ("calib", "heldout"))
    feeds = dict(np.load(heldout))
    real = feeds["attention_mask"].astype(bool)
    model = bars.smollm2()
    models = {"as it is": model} | {f"rotated stream, seed {seed}": rotated(model, seed) for seed in args.seeds}
    with tempfile.TemporaryDirectory() as folder:
        for name, form in models.items():
            source, out = (Path(folder) / x for x in ("in.onnx", "out.onnx"))
            onnx.save(form, source)
            ((output, reference),) = bars.measure.outputs(source, feeds).items()
            for setting, (weight, activation) in SETTINGS.items():
                bits = ("--weight-bits", str(weight), "--activation-bits", str(activation))
                quiet = ("--calib", calib, "--no-layers", "--force", "--quiet", "--exclude", "turned_back")
                subprocess.run([args.binary, source, out, *quiet, *bits], check=True)
                got = bars.measure.outputs(out, feeds)[output]
                error, signal = ((x[real].astype(np.float64) ** 2).sum(-1) for x in (reference - got, reference))
                total, token = 10 * np.log10(signal.sum() / error.sum()), (10 * np.log10(signal / error)).mean()
                print(f"{name:24} {setting}  {total:6.2f} ({token:.2f})", flush=True)


if __name__ == "__main__":
    main()
