#!/usr/bin/env python3
"""The oldest ONNX Runtime and OpenVINO in which the files for each target load, give the right numbers and run in int8.

    ONNX_OSPLUS_BIN=target/release/onnx-osplus .venv/bin/python benchmarks/oldest.py [--only onnxruntime]

Every version gets a throw-away virtual environment of this Python. A cell is `ok`, or the first of these that is not
true in some file: it loads, its outputs are within 30 dB of those that the pinned ONNX Runtime computes without
optimizations, every Linear is an integer product. Files are made from three exports of models/architectures of
opset 17: a BERT with pooler, a GPT-2 and a LLaMA.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("ONNX_OSPLUS_BIN", str(ROOT / "target" / "release" / "onnx-osplus"))
sys.path[:0] = [str(ROOT / "models"), str(ROOT / "tests" / "python")]

import measure  # noqa: E402  (needs the path above)
import onnx  # noqa: E402
import runtimes  # noqa: E402
from architectures import ROWS, feeds_of, quantize  # noqa: E402

EXPORTS = ["bert_pooled-script17-sdpa", "gpt2-script17-sdpa", "llama-script17-eager"]
VERSIONS = {
    "onnxruntime": ["1.15.1", "1.16.3", "1.17.3", "1.18.1", "1.19.2", "1.20.1", "1.22.1", "1.23.2", "1.31.1", "1.32.0"],
    "openvino": ["2023.1.0", "2023.3.0", "2024.2.0", "2024.6.0", "2025.2.0", "2026.4.1"],
}
TARGETS = {"onnxruntime": ["ort", "portable"], "openvino": ["openvino", "portable", "ort"]}

# Runs in the environment of the old version, which has the runtime and numpy only.
PROBE = {
    "onnxruntime": """
import sys, numpy, onnxruntime as r
path, feeds, out, dump = sys.argv[1:]
o = r.SessionOptions(); o.optimized_model_filepath = dump; o.log_severity_level = 4
s = r.InferenceSession(path, o, providers=["CPUExecutionProvider"])
numpy.savez(out, *s.run(None, dict(numpy.load(feeds))))
""",
    "openvino": """
import sys, json, numpy, openvino as r
path, feeds, out, dump = sys.argv[1:]
core = r.Core() if hasattr(r, "Core") else __import__("openvino.runtime").runtime.Core()
c = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
info = lambda op, k: (lambda v: v.astype(str) if hasattr(v, "astype") else str(v))(op.get_rt_info()[k])
ops = [(info(op, "layerType"), info(op, "runtimePrecision")) for op in c.get_runtime_model().get_ops()]
json.dump(ops, open(dump, "w"))
numpy.savez(out, *c(dict(numpy.load(feeds))).values())
""",
}


def environment(folder, package, version):
    """The Python of an environment with one version, None if pip cannot install it."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # Releases before mid-2024 are built for numpy 1.
    old = version < "1.19" if package == "onnxruntime" else version < "2024.4"
    packages = [f"{package}=={version}", "numpy==1.26.4" if old else "numpy==2.2.6"]
    command = [
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--only-binary",
        ":all:",
        *packages,
    ]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    return python if done.returncode == 0 else None


def integer_products(package, dump):
    """(Linears in integers, Linears in float)"""
    if package == "onnxruntime":
        count, left = runtimes.products(onnx.load(dump))
        return count, len(left)
    types = [precision for kind, precision in json.loads(Path(dump).read_text()) if kind == "FullyConnected"]
    integer = sum(t.lower() in ("i8", "u8") for t in types)
    return integer, len(types) - integer


def check(python, package, path, linears, feeds, folder):
    """`ok`, or what is wrong."""
    np.savez(folder / "feeds.npz", **feeds)
    out, dump = folder / "out.npz", folder / "dump"
    for old in (out, dump):
        old.unlink(missing_ok=True)
    command = [python, "-c", PROBE[package], path, folder / "feeds.npz", out, dump]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        return "fails: " + done.stderr.strip().splitlines()[-1][:80]
    expected = runtimes.onnx_runtime_session(path, "disable").run(None, feeds)
    worst = min(measure.sqnr(a, b) for a, b in zip(expected, np.load(out).values()))
    if not worst >= 30:
        return f"wrong: {worst:.0f} dB"
    integer, left = integer_products(package, dump)
    # The products of rotations stay in float.
    rotations = len(measure.rotation_products(onnx.load(path)))
    return "ok" if integer == linears and left <= rotations else f"{integer} of {linears} in int8, {left} products in float"


def main():
    parser = argparse.ArgumentParser(description="The oldest runtimes that run the files of each target in int8.")
    parser.add_argument("--only", choices=list(VERSIONS))
    args = parser.parse_args()
    for package, versions in VERSIONS.items():
        if args.only not in (None, package):
            continue
        print(f"\n| {package} | " + " | ".join(TARGETS[package]) + " |\n|" + "---|" * (1 + len(TARGETS[package])))
        for version in versions:
            with tempfile.TemporaryDirectory(prefix="onnx-osplus-oldest-") as folder:
                folder = Path(folder)
                python = environment(folder / "venv", package, version)
                cells = []
                for target in TARGETS[package]:
                    results = ["not installable on this Python"] if python is None else []
                    for name in EXPORTS if python else []:
                        done, path, report = quantize(ROWS[name], "--target", target)
                        assert done.returncode == 0, done.stderr
                        linears = sum(linear["status"] == "quantized" for linear in report["linears"])
                        feeds = feeds_of(ROWS[name], onnx.load(path), 2, 2)
                        results.append(check(python, package, path, linears, feeds, folder))
                    wrong = [f"{name.split('-')[0]} {r}" for name, r in zip(EXPORTS, results) if r != "ok"]
                    cells.append("; ".join(wrong) if wrong else "ok")
                print(f"| {version} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
