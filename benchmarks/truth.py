"""The SQNR that the tool reports on its held-out rows against that on 256 unseen rows, for every export of models/architectures.

    python benchmarks/truth.py [--every 3] [-k NAME]

Prints a row per export, and at the end those that break the rule: within 2 dB, or the tool said that it cannot know.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "python"), str(ROOT / "models")]
import architectures  # noqa: E402  (needs the path above)

LIMIT_DB = 2.0
UNSEEN = 256


def run(path, batches):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    runs = [session.run(None, {k: v for k, v in batch.items() if k in names}) for batch in batches]
    return {name: [r[i] for r in runs] for i, name in enumerate(outputs)}


def sqnr(float_runs, runs):
    pairs = [(r.astype(np.float64), o.astype(np.float64)) for r, o in zip(float_runs, runs)]
    signal, error = (sum(f(r, o) for r, o in pairs) for f in (lambda r, o: (r**2).sum(), lambda r, o: ((r - o) ** 2).sum()))
    return 10 * np.log10(signal / error) if error else float("inf")


def measure(tool, row, folder):
    """Per output: reported, true, what the tool said beside it."""
    model, calib, out, report = architectures.FOLDER / row["file"], folder / "calib.npz", folder / "out.onnx", folder / "report.json"
    np.savez(calib, **architectures.data(row, seed=11))
    command = [tool, model, out, "--calib", calib, "--report", report, "--force", "--quiet"]
    job = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if job.returncode:
        raise RuntimeError(job.stderr.strip().splitlines()[-1])
    batches, rows, seed = [], 0, 1000
    while rows < UNSEEN:
        batch = architectures.data(row, seed=seed)
        rows, seed = rows + len(next(iter(batch.values()))), seed + 1
        batches.append(batch)
    float_runs, runs = run(model, batches), run(out, batches)
    for name, told in json.loads(report.read_text())["outputs"].items():
        yield name, told["sqnr_db"], sqnr(float_runs[name], runs[name]), told["caution"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", default=os.environ.get("ONNX_OSPLUS_BIN", ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--every", type=int, default=1, help="only every n-th export")
    parser.add_argument("-k", default="", help="only exports whose name holds this")
    arguments = parser.parse_args()
    rows = [row for row in architectures.ROWS if arguments.k in row["file"]][:: arguments.every]
    broken = []
    print(f"{'export':50} {'output':24} {'told':>7} {'true':>7} {'off':>6}  said")
    for row in rows:
        with tempfile.TemporaryDirectory() as folder:
            try:
                for name, told, true, said in measure(arguments.tool, row, Path(folder)):
                    off = (told if told is not None else float("inf")) - true
                    line = f"{row['file']:50} {name[:24]:24} {told or float('inf'):7.2f} {true:7.2f} {off:6.2f}  {said or ''}"
                    print(line, flush=True)
                    if abs(off) > LIMIT_DB and not said:
                        broken.append(line)
            except RuntimeError as error:
                print(f"{row['file']:50} {error}", flush=True)
    print(f"\n{len(broken)} outputs more than {LIMIT_DB} dB off without a word", *broken, sep="\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
