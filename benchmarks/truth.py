"""The SQNR that the tool reports on its held-out rows against that on 256 unseen rows, for every export of models/architectures.

    ONNX_OSPLUS_BIN=target/release/onnx-osplus python benchmarks/truth.py [--every 3] [-k NAME]

Prints a row per export, and at the end those that break the rule: within 2 dB, or the tool said that it cannot know.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "python"), str(ROOT / "models")]
import architectures  # noqa: E402  (needs the path above; ONNX_OSPLUS_BIN names the tool)

LIMIT_DB = 2.0
UNSEEN = 256


def sqnr(float_out, out):
    r, o = float_out.astype(np.float64), out.astype(np.float64)
    keep = np.isfinite(r) & np.isfinite(o)
    error = ((r - o)[keep] ** 2).sum()
    return 10 * np.log10((r[keep] ** 2).sum() / error) if error else float("inf")


def measure(row):
    """Per output: reported, true, what the tool said beside it."""
    done, out, report = architectures.quantize(row)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    path = architectures.FOLDER / row["file"]
    feeds = architectures.feeds_of(row, onnx.load(path), UNSEEN, 1000)
    float_runs, runs = (architectures.run(model, row, feeds) for model in (path, out))
    for name, told in report["outputs"].items():
        if name in runs:
            yield name, told["sqnr_db"], sqnr(float_runs[name], runs[name]), told["caution"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="only every n-th export")
    parser.add_argument("-k", default="", help="only exports whose name holds this")
    arguments = parser.parse_args()
    rows = [row for name, row in architectures.ROWS.items() if arguments.k in name][:: arguments.every]
    broken = []
    print(f"{'export':50} {'output':24} {'told':>7} {'true':>7} {'off':>6}  said")
    for row in rows:
        try:
            for name, told, true, said in measure(row):
                told = float("inf") if told is None else told
                off = 0 if told == true else told - true
                line = f"{row['file']:50} {name[:24]:24} {told:7.2f} {true:7.2f} {off:6.2f}  {said or ''}"
                print(line, flush=True)
                if abs(off) > LIMIT_DB and not said:
                    broken.append(line)
        except Exception as error:  # a file that ONNX Runtime does not run is a row too
            print(f"{row['file']:50} {str(error).splitlines()[0][:150]}", flush=True)
    print(f"\n{len(broken)} outputs more than {LIMIT_DB} dB off without a word", *broken, sep="\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
