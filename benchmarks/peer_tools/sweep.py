#!/usr/bin/env python3
"""A tool at the best of several α, chosen on calibration rows alone: sweep.py SCRIPT SETTING MODEL OUT CALIB

SCRIPT quantizes with SETTING:α from every other calibration row; the α whose result has the highest SQNR on the rows
between is taken, and the model is quantized with it from all rows. Runs in the environment of the tool and prints
`alpha 0.80` last. An α that fails is left out; where all do, so does the sweep. Of a setting of two steps, FIRST+SECOND, the α is
that of the first alone.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import score
from score import measure

ALPHAS = ("0.50", "0.60", "0.70", "0.80", "0.85", "0.90", "0.95")


def halves(calib, folder):
    """Files of the even and of the odd rows."""
    arrays = dict(np.load(calib))
    paths = folder / "even.npz", folder / "odd.npz"
    for start, path in enumerate(paths):
        np.savez(path, **{name: array[start::2] for name, array in arrays.items()})
    return [str(path) for path in paths]


def run(script, *arguments):
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def main():
    script, setting, model, out, calib = sys.argv[1:]
    found, said = {}, ""
    with tempfile.TemporaryDirectory() as folder:
        even, odd = halves(calib, Path(folder))
        reference = score.values(model, odd)
        for alpha in ALPHAS:
            trial = Path(folder) / alpha / "model.onnx"
            trial.parent.mkdir()
            status, said = run(script, f"{setting.partition('+')[0]}:{alpha}", model, str(trial), even)
            if status == 0:
                found[alpha] = measure.sqnr(reference, score.values(trial, odd))
                print(f"alpha {alpha}: {found[alpha]:.2f} dB", flush=True)
    if not found:
        sys.exit(said)
    best = max(found, key=found.get)
    status, said = run(script, f"{setting}:{best}", model, out, calib)
    if status != 0:
        sys.exit(said)
    print(f"alpha {best}")


if __name__ == "__main__":
    main()
