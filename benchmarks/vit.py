#!/usr/bin/env python3
"""How fast a real vision transformer runs in ONNX Runtime: float32, plain int8, this tool with and without folded sizes.

    cargo build --release && models/fetch
    .venv/bin/python benchmarks/vit.py [--rounds 30]

The model is models/real/vit-s.onnx, a ViT-S for 224 × 224 pixels whose batch is open; like many exports it resizes its
table of positions by the sizes of its input. Images are noise: they calibrate it, and speed does not depend on them.
CPU time is taken as in speed.py.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import speed

ROOT = Path(__file__).resolve().parent.parent
BINARY = os.environ.get("ONNX_OSPLUS_BIN", str(ROOT / "target" / "release" / "onnx-osplus"))
MODEL = ROOT / "models" / "real" / "vit-s.onnx"
ROWS = 16

RESULTS = {
    "plain int8, sizes not folded": ["--method", "none", "--no-fold-sizes"],
    "plain int8": ["--method", "none"],
    "onnx-osplus, sizes not folded": ["--no-fold-sizes"],
    "onnx-osplus": [],
}


def main():
    parser = argparse.ArgumentParser(description="Speed of a real ViT-S in ONNX Runtime.")
    speed.options(parser)
    args = parser.parse_args()
    if not MODEL.is_file():
        sys.exit(f"{MODEL} is missing: run models/fetch")
    with tempfile.TemporaryDirectory() as folder:
        calib = Path(folder) / "calib.npz"
        images = np.random.RandomState(1).standard_normal((ROWS, 3, 224, 224)).astype(np.float32)
        np.savez(calib, input_image=images)
        files = []
        for number, chosen in enumerate(RESULTS.values()):
            files.append(Path(folder) / f"{number}.onnx")
            command = [BINARY, MODEL, files[-1], "--calib", calib, "--no-layers", "--quiet", *chosen]
            subprocess.run(command, check=True)
        times, linears = speed.measure([MODEL, *files], args)
    print(f"ONNX Runtime {ort.__version__}, 1 thread, batch {args.batch}, {args.rounds} rounds\n")
    speed.table(["float32", *RESULTS], times, linears)


if __name__ == "__main__":
    main()
