#!/usr/bin/env python3
"""Accuracy on held-out text: plain min-max, SmoothQuant and Outlier Suppression+ with the same placement of Q/DQ.

    cargo build --release && models/fetch
    .venv/bin/python benchmarks/accuracy.py [--bits 8]
    .venv/bin/python benchmarks/accuracy.py --bars …    what rotations must reach: the table of benchmarks/bars.py

Every model is quantized from models/real/calib.npz and run in ONNX Runtime on models/real/heldout.npz, other sentences.
The table shows the SQNR of the token embeddings over unpadded tokens, 10 log10(sum r^2 / sum (r - q)^2) in dB, and how
many Linears ONNX Runtime fused to MatMulIntegerToFloat.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "models"), str(ROOT / "tests" / "python")]

import measure  # noqa: E402  (needs the path above)
from build_bert import bert_model, read_safetensors  # noqa: E402

REAL = ROOT / "models" / "real"
METHODS = ("none", "smoothquant", "osplus")


def models(folder):
    """(name, file) of every model of the table."""
    weights = REAL / "minilm-l6.safetensors"
    if not weights.is_file():
        sys.exit(f"{weights} is missing: run models/fetch")
    yield "MiniLM-L3, native ONNX", REAL / "minilm-l3.onnx"
    for fused in (True, False):
        path = folder / f"l6-{fused}.onnx"
        model = bert_model(read_safetensors(weights), heads=12, fused=fused)
        path.write_bytes(model.SerializeToString(deterministic=True))
        yield f"MiniLM-L6, {'fused' if fused else 'decomposed'} LayerNorm", path


def main():
    parser = argparse.ArgumentParser(description="Held-out accuracy of the three methods on two real models.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--bits", default="8", help="bits of weights and activations")
    args = parser.parse_args()
    arrays = dict(np.load(REAL / "heldout.npz"))
    real = arrays["attention_mask"].astype(bool)
    print("| model | target | plain min-max | SmoothQuant | Outlier Suppression+ | fused Linears |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-benchmark-") as folder:
        folder = Path(folder)
        for name, model in models(folder):
            feeds = measure.with_token_types(model, arrays)
            reference = measure.outputs(model, feeds)
            output = next(o for o, a in reference.items() if a.ndim == 3 and a.shape[:2] == real.shape)
            for target in ("ort", "portable"):
                cells = []
                for method in METHODS:
                    out, report = folder / "out.onnx", folder / "report.json"
                    options = ["--target", target, "--method", method, "--no-layers", "--report", report, "--force", "--quiet"]
                    options += ["--weight-bits", args.bits, "--activation-bits", args.bits]
                    command = [args.binary, model, out, "--calib", REAL / "calib.npz", *options]
                    subprocess.run([str(c) for c in command], check=True)
                    got = measure.outputs(out, feeds)[output]
                    cells.append(f"{measure.sqnr(reference[output][real], got[real]):.2f}")
                optimized = measure.optimized_model(out, folder / "optimized.onnx")
                fused = sum(node.op_type == "MatMulIntegerToFloat" for node in optimized.graph.node)
                linears = json.loads(report.read_text())["linears"]
                print(f"| {name} | {target} | {' | '.join(cells)} | {fused} of {len(linears)} |", flush=True)


if __name__ == "__main__":
    if "--bars" in sys.argv:
        import bars

        sys.argv.remove("--bars")
        bars.main()
    else:
        main()
