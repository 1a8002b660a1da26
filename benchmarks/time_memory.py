#!/usr/bin/env python3
"""Time and memory of the whole job: all-MiniLM-L6-v2 with 64 × 64 tokens of calibration.

    cargo build --release && models/fetch
    .venv/bin/python benchmarks/time_memory.py [--runs 5] [--layer-norm fused] [--option=--target --option=portable]

Each run is the release binary in a process of its own, as a user starts it: reading, calibration, search, self-check
and writing. Wall and CPU seconds, and the peak of resident memory (ru_maxrss, which counts pages of the memory-mapped
model as well). Every run is measured with wait4, so nothing else counts. Machine load is shown: keep it quiet.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "models"))

from build_bert import bert_model, read_safetensors  # noqa: E402  (needs the path above)


def write_l6(path, layer_norm):
    weights = ROOT / "models" / "real" / "minilm-l6.safetensors"
    if not weights.is_file():
        sys.exit(f"{weights} is missing: run models/fetch")
    model = bert_model(read_safetensors(weights), heads=12, fused=layer_norm == "fused")
    path.write_bytes(model.SerializeToString(deterministic=True))


def in_a_child(write):
    """Calls `write`, which makes a model, in a child: ru_maxrss of a process that is forked later starts at its parent's peak."""
    child = os.fork()
    if child == 0:
        write()
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("the model could not be built")


def measure(command):
    """(wall s, CPU s, peak MB) of one run to its end."""
    start = time.perf_counter()
    # subprocess would reap the child without its resource usage.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"exit status {process.returncode}: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def main():
    parser = argparse.ArgumentParser(description="Time and memory of the whole job on all-MiniLM-L6-v2.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layer-norm", choices=["fused", "decomposed"], default="fused")
    parser.add_argument("--model", type=Path, help="another model instead of all-MiniLM-L6-v2")
    parser.add_argument("--calib", type=Path, default=ROOT / "models" / "real" / "calib.npz")
    parser.add_argument("--option", action="append", default=[], help="one more argument for the tool; repeat as needed")
    args = parser.parse_args()
    if not os.access(args.binary, os.X_OK):
        sys.exit(f"{args.binary} is missing: run cargo build --release")

    with tempfile.TemporaryDirectory(prefix="onnx-osplus-benchmark-") as folder:
        model, out = args.model or Path(folder) / "l6.onnx", Path(folder) / "out.onnx"
        if args.model is None:
            in_a_child(lambda: write_l6(model, args.layer_norm))
        command = [args.binary, str(model), str(out), "--calib", str(args.calib), "--force", "--quiet", *args.option]
        print(f"{' '.join(command)}\n{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f} at the start", flush=True)
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        runs = [measure(command) for _ in range(args.runs)]
        size = out.stat().st_size / 1e6

    print("\n| run | wall s | CPU s | peak MB |\n|---|---|---|---|")
    for number, run in enumerate(runs, 1):
        print(f"| {number} | {run[0]:.2f} | {run[1]:.2f} | {run[2]:.0f} |")
    median = [statistics.median(column) for column in zip(*runs)]
    print(f"| **median** | **{median[0]:.2f}** | **{median[1]:.2f}** | **{median[2]:.0f}** |")
    print(f"\noutput {size:.1f} MB; this script itself peaked at {floor / 1000:.0f} MB, a floor under the figures")


if __name__ == "__main__":
    main()
