#!/usr/bin/env python3
"""CPU time and memory of the whole job beside ONNX Runtime's static quantizer on the same model and rows, in pairs.

    cargo build --release && models/fetch && models/fetch --decoder
    .venv/bin/python benchmarks/cpu.py [--models L6] [--runs 5] [--option=--max-slowdown=0]

Three models: MiniLM-L6; a BERT of 12 layers and hidden 256, whose weights are those of MiniLM-L6 cut to size, every layer twice; the first
six layers of SmolLM2-135M. ONNX Runtime is at the setting that is best for accuracy and costs least (inputs of Linears only, a scale per
output channel; benchmarks/peer_tools/quantize_ort.py), on rows cut to their own length. Both are processes of their own, in turn; the
ratios are medians over the pairs, with the smallest and the largest.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "benchmarks/peer_tools", "models", "tests/python")]

import bars  # noqa: E402  (needs the path above)
from build_bert import bert_model, read_safetensors  # noqa: E402
from time_memory import in_a_child, measure  # noqa: E402

PEER = ROOT / "benchmarks" / "peer_tools" / "quantize_ort.py"
SIZES = {384: 256, 1536: 1024}


def bert_12():
    """Every layer of MiniLM-L6 twice, cut to hidden 256 and 4 times that between the Linears of the FFN."""
    cut = {}
    for name, array in read_safetensors(bars.REAL / "minilm-l6.safetensors").items():
        array = np.ascontiguousarray(array[tuple(slice(SIZES.get(size, size)) for size in array.shape)])
        layer = re.match(r"encoder\.layer\.(\d+)\.(.*)", name)
        if layer is None:
            cut[name] = array
            continue
        for again in range(2):
            cut[f"encoder.layer.{2 * int(layer[1]) + again}.{layer[2]}"] = array
    return bert_model(cut, heads=8, fused=True)


MODELS = {
    "MiniLM-L6": (bars.minilm_l6, "calib.npz"),
    "BERT, 12 layers, hidden 256": (bert_12, "calib.npz"),
    "SmolLM2, 6 layers": (bars.smollm2, "smollm2-calib.npz"),
}


def parse():
    parser = argparse.ArgumentParser(description="CPU time and memory beside ONNX Runtime's static quantizer, in pairs.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--models", default="", help="only models whose name this regular expression finds")
    parser.add_argument("--runs", type=int, default=5, help="pairs")
    parser.add_argument("--option", action="append", default=[], help="one more argument for the tool; repeat as needed")
    args = parser.parse_args()
    if not os.access(args.binary, os.X_OK):
        sys.exit(f"{args.binary} is missing: run cargo build --release")
    return args


def main():
    args = parse()
    # Where it is set, every error inside the engine that is no error for its caller takes a backtrace.
    os.environ.pop("RUST_BACKTRACE", None)
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f} at the start\n")
    print("| model | CPU s, this tool | ONNX Runtime | ratio | peak MB | ONNX Runtime |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-cpu-") as folder:
        for name in (m for m in MODELS if re.search(args.models, m)):
            make, data = MODELS[name]
            model, out, calib = Path(folder) / "model.onnx", Path(folder) / "out.onnx", bars.REAL / data
            in_a_child(lambda: model.write_bytes(make().SerializeToString(deterministic=True)))
            ours = [args.binary, model, out, "--calib", calib, "--force", "--quiet", *args.option]
            theirs = [sys.executable, PEER, "best", model, out, calib]
            pairs = [[measure([str(word) for word in command]) for command in (ours, theirs)] for _ in range(args.runs)]
            cpu, peak = ([[run[column] for run in pair] for pair in pairs] for column in (1, 2))
            ratios = sorted(a / b for a, b in cpu)
            medians = [[statistics.median(column) for column in zip(*rows)] for rows in (cpu, peak)]
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            times, sizes = ([f"{value:.{digits}f}" for value in of] for of, digits in zip(medians, (1, 0)))
            print(f"| {name} | {times[0]} | {times[1]} | {spread} | {sizes[0]} | {sizes[1]} |", flush=True)


if __name__ == "__main__":
    main()
