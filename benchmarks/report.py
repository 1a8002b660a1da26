#!/usr/bin/env python3
"""What the error of every Linear in a report costs: the job with --report and with --report --no-layers, in pairs.

    cargo build --release
    .venv/bin/python benchmarks/report.py --runs 3

The model has the size of Whisper's tiny encoder: 4 layers of 384 channels and 1500 tokens, with random weights and planted outlier
channels, on five rows: so few that a run over all values of the model is most of the work.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "models"))

import numpy as np  # noqa: E402  (needs the path above)
import onnx  # noqa: E402
from build_bert import bert_model  # noqa: E402
from time_memory import measure  # noqa: E402

LAYERS, HIDDEN, INNER, HEADS, TOKENS, VOCABULARY, ROWS = 4, 384, 1536, 6, 1500, 2000, 5


def encoder():
    rng = np.random.default_rng(0)

    def normal(*shape, scale=None):
        return (rng.normal(size=shape) * (scale or shape[-1] ** -0.5)).astype(np.float32)

    def norm(name):
        gamma = np.abs(1 + 0.2 * rng.normal(size=HIDDEN))
        gamma[rng.integers(0, HIDDEN, 3)] *= 15
        return {f"{name}.weight": gamma.astype(np.float32), f"{name}.bias": normal(HIDDEN, scale=0.2)}

    def linear(name, n, k):
        return {f"{name}.weight": normal(n, k), f"{name}.bias": normal(n, scale=0.05)}

    weights = {
        "embeddings.word_embeddings.weight": normal(VOCABULARY, HIDDEN, scale=1),
        "embeddings.position_embeddings.weight": normal(TOKENS, HIDDEN, scale=0.3),
        "embeddings.token_type_embeddings.weight": normal(2, HIDDEN, scale=0.1),
        **norm("embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        path = f"encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            weights |= linear(f"{path}.attention.{name}", HIDDEN, HIDDEN)
        weights |= norm(f"{path}.attention.output.LayerNorm")
        weights |= linear(f"{path}.intermediate.dense", INNER, HIDDEN)
        weights |= linear(f"{path}.output.dense", HIDDEN, INNER)
        weights |= norm(f"{path}.output.LayerNorm")
    return bert_model(weights, heads=HEADS, fused=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-report-") as folder:
        folder = Path(folder)
        onnx.save(encoder(), folder / "in.onnx")
        ids = np.random.default_rng(1).integers(0, VOCABULARY, (ROWS, TOKENS))
        np.savez(folder / "calib.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
        command = [arguments.binary, folder / "in.onnx", folder / "out.onnx", "--calib", folder / "calib.npz", "--force", "-q"]
        command += ["--report", folder / "report.html"]
        ways = {"without": [*command, "--no-layers"], "with": command}
        runs = {way: [] for way in ways}
        for _ in range(arguments.runs):
            for way, words in ways.items():
                runs[way].append(measure([str(word) for word in words]))
    print("| the error of every Linear | wall s | CPU s | peak MB |\n|---|---|---|---|")
    for way, measured in runs.items():
        wall, cpu, peak = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"| {way} | {wall:.1f} | {cpu:.1f} | {peak:.0f} |")
    ratios = [b[1] / a[1] for a, b in zip(runs["without"], runs["with"], strict=True)]
    print(f"\nCPU time with / without, median of {arguments.runs} pairs: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
