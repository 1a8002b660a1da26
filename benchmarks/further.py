#!/usr/bin/env python3
"""Architectures that are in no test: exported, quantized, and compared with plain min-max in ONNX Runtime.

    cargo build --release && tests/run python -k test_fixed            # makes .venv
    python3 -m venv architectures-venv
    architectures-venv/bin/pip install -r models/architectures/requirements.txt
    architectures-venv/bin/python benchmarks/further.py export FOLDER [--exporter script17.eager] [NAME …]
    .venv/bin/python benchmarks/further.py measure FOLDER

Models are small and have random weights (further_models.py). A row says what the outputs of plain min-max and of this
tool are worth on inputs that calibrated nothing, SQNR in dB, and how many Linears were found and quantized. The exit
status is 1 if a model that ONNX Runtime runs cannot be quantized, or is below plain min-max by more than 0.1 dB.
Exporters fail for some models; those are listed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION, HELD_OUT = 64, 256  # of two logits a row, 16 rows say nothing
sys.path.append(str(ROOT / "tests" / "python"))  # measure
BINARY = os.environ.get("ONNX_OSPLUS_BIN", str(ROOT / "target" / "release" / "onnx-osplus"))


def export_one(name, exporter, folder):
    """NAME.EXPORTER.onnx and, the same for every exporter, NAME.calib.npz and NAME.heldout.npz."""
    import further_models
    import torch

    kind, attention = exporter.split(".")
    module, inputs = further_models.module(name, attention)
    example = inputs(4)
    file = folder / f"{name}.{exporter}.onnx"
    common = {"input_names": list(example), "output_names": ["y"], "opset_version": int(kind[-2:])}
    if kind.startswith("script"):
        axes = {key: {0: "batch"} for key in [*example, "y"]}
        torch.onnx.export(module, tuple(example.values()), file, dynamo=False, dynamic_axes=axes, **common)
    else:
        batch = torch.export.Dim("batch", min=1, max=4096)
        shapes = (tuple({0: batch} for _ in example),)
        options = {"dynamo": True, "dynamic_shapes": shapes, "external_data": False, "verbose": False}
        torch.onnx.export(module, tuple(example.values()), file, **options, **common)
    for part, rows in (("calib", CALIBRATION), ("heldout", HELD_OUT)):
        torch.manual_seed(rows)
        np.savez(folder / f"{name}.{part}.npz", **{key: value.numpy() for key, value in inputs(rows).items()})


def export(names, exporter, folder):
    import logging
    import warnings

    import further_models

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or further_models.MODELS:
        try:
            export_one(name, exporter, folder)
            print(f"{name}: exported", flush=True)
        except Exception as error:  # noqa: BLE001: exporters fail in every way
            print(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}", flush=True)


def measure_one(file, folder):
    """The row of one export, and whether it fails."""
    import measure
    import onnx

    name = file.name.split(".")[0]
    inputs = {i.name for i in onnx.load(file, load_external_data=False).graph.input}

    def rows(part):
        """Arrays of the inputs; exporters drop those that the model does not read."""
        return {key: array for key, array in np.load(folder / f"{name}.{part}.npz").items() if key in inputs}

    feeds = rows("heldout")
    try:
        reference = measure.outputs(file, feeds)["y"]
    except Exception as error:  # noqa: BLE001: an export that does not run is no case
        return f"does not run in ONNX Runtime: {str(error).splitlines()[0][:100]}", False
    out, report = folder / "out" / file.name, folder / "out" / f"{file.name}.json"
    calibration = out.with_suffix(".npz")
    np.savez(calibration, **rows("calib"))
    found = []
    for method in ("none", "osplus"):
        command = [BINARY, file, out, "--calib", calibration, "--method", method, "--report", report]
        done = subprocess.run([*command, "--force", "--quiet", "--no-layers"], capture_output=True, text=True)
        if done.returncode != 0:
            return f"exit status {done.returncode}: {' '.join(done.stderr.split())[:200]}", True
        found.append(measure.sqnr(reference, measure.outputs(out, feeds)["y"]))
    report = json.loads(report.read_text())
    quantized = sum(linear["status"] == "quantized" for linear in report["linears"])
    row = f"{found[0]:.2f} | {found[1]:.2f} | {quantized} of {len(report['linears'])} | {report['decision']}"
    return row, found[1] < found[0] - 0.1


def measure_all(folder):
    (folder / "out").mkdir(exist_ok=True)
    print("| export | plain dB | onnx-osplus dB | int8 Linears | decision |\n|---|---|---|---|---|")
    rows = {}
    for file in sorted(folder.glob("*.onnx")):
        rows[file.stem] = measure_one(file, folder)
        print(f"| {file.stem} | {rows[file.stem][0]} |", flush=True)
    failed = [name for name, (_, fails) in rows.items() if fails]
    print(f"\n{len(rows)} exports, {len(failed)} failed: {', '.join(failed) or 'none'}")
    return bool(failed)


def main():
    parser = argparse.ArgumentParser(description="Architectures that are in no test, against plain min-max.")
    parser.add_argument("step", choices=["export", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these models")
    parser.add_argument("--exporter", default="script17.eager", help="script|dynamo, the opset, eager|sdpa")
    args = parser.parse_args()
    if args.step == "measure":
        sys.exit(measure_all(args.folder))
    export(args.names, args.exporter, args.folder)


if __name__ == "__main__":
    main()
