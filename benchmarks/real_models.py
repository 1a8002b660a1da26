#!/usr/bin/env python3
"""Real models from packages: what this tool, plain min-max and ONNX Runtime's own quantization make of them.

    cargo build --release && models/fetch && models/fetch --packages
    python3 -m venv real-venv && real-venv/bin/pip install onnx onnxruntime sympy numpy pillow
    real-venv/bin/python benchmarks/real_models.py [NAME …] [--rounds 30]

64 rows calibrate, 64 others are measured in ONNX Runtime, all drawn by benchmarks/real_inputs.py. dB is the SQNR of the
worst output over all its elements, once as the tool's report says it and once on the rows that it never saw. Plain is the
same tool with `--method none`. Static and dynamic are onnxruntime.quantization with the Linears that the tool found, weights per
channel, QDQ. Speed is the median over rounds of the CPU time of float over that of the result on one thread, one row, the models
taking turns. The exit status is 1 if a result is below plain, or what the tool says is further than 2 dB off without its
saying that the rows tell no more ("unsure").
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import real_inputs as inputs
import speed

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT / "models" / "real"
BINARY = os.environ.get("ONNX_OSPLUS_BIN", str(ROOT / "target" / "release" / "onnx-osplus"))
ROWS = 64
IMAGENET = {"mean": np.array([123.675, 116.28, 103.53]), "deviation": np.array([58.395, 57.12, 57.375])}

# file in models/real: what draws its inputs
MODELS = {
    "ocr-text": inputs.pages("x", 320, 48, 1),
    "ocr-boxes": inputs.pages("x", 320, 320, 9, **IMAGENET),
    "ocr-upright": inputs.pages("x", 192, 48, 1),
    "page-orientation": inputs.pages("x", 224, 224, 8, **IMAGENET),
    "captcha-boxes": inputs.pages("images", 416, 416, 8, mean=0, deviation=1),
    "reaction-atoms": inputs.molecules,
    "file-type": inputs.file_bytes,
    "khmer-words": inputs.letters("x", "mask", 90, 96, keep=True),
    "sleep-spindles": inputs.spindles,
    "seizures": inputs.seizures,
    "romanizer": None,  # what its encoder says, below
    "romanizer-fa": None,
}


def romanizer(name):
    """Inputs of a decoder: names through its encoder, and the letters that were written so far."""

    def make(rng, rows):
        encoder = ort.InferenceSession(REAL / f"{name}-encoder.onnx", providers=["CPUExecutionProvider"])
        given = inputs.letters("src", "src_mask", 60, 12, keep=False)(rng, rows)
        memory, mask, hidden = encoder.run(None, given)
        return {"prefix": rng.integers(4, 60, (rows, 1)), "memory": memory, "src_mask": mask, "hidden": hidden}

    return make


def run(session, arrays, rows):
    """Outputs row by row, as a model with a fixed batch of one wants it: [output][row]"""
    found = [session.run(None, {name: array[row : row + 1] for name, array in arrays.items()}) for row in range(rows)]
    return list(zip(*found))


def session(path, without=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = without
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def sqnr_db(reference, path, arrays):
    """SQNR of every float output over all rows, in dB; where there is no number, none is given."""
    found = run(session(path), arrays, ROWS)
    values = []
    for wanted, got in zip(reference, found):
        wanted, got = (np.concatenate([np.asarray(part).ravel() for part in parts]) for parts in (wanted, got))
        if wanted.dtype.kind == "f":
            seen = np.isfinite(wanted) & (np.abs(wanted) < 1e4)
            signal, noise = ((part.astype(np.float64) ** 2).sum() for part in (wanted[seen], wanted[seen] - got[seen]))
            values.append(10 * np.log10(signal / noise) if noise else np.inf)
    return values


def peer(kind, model, out, linears, calib):
    """onnxruntime.quantization on the same Linears; None with the reason if it fails."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    class Rows(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(range(ROWS))

        def get_next(self):
            row = next(self.rows, None)
            return None if row is None else {name: array[row : row + 1] for name, array in calib.items()}

    proto = onnx.load(model)
    if max(entry.version for entry in proto.opset_import if entry.domain == "") < 13:
        proto = onnx.version_converter.convert_version(proto, 13)
    kinds = sorted({node.op_type for node in proto.graph.node if node.name in linears})
    common = {"nodes_to_quantize": sorted(linears), "op_types_to_quantize": kinds, "per_channel": True}
    if kind == "static":
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(proto, out, Rows(), quant_format=QuantFormat.QDQ, **types, **common)
    else:
        quantize_dynamic(proto, out, weight_type=QuantType.QInt8, **common)


def osplus(model, out, calib, report, *more):
    command = [BINARY, model, out, "--calib", calib, "--report", report, "--no-layers", "--quiet", "--force", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}").splitlines()[0]


def ratios(models, arrays, rounds):
    """Median over rounds of the CPU time of the first model over that of each."""
    loaded, row = [session(model) for model in models], {name: array[:1] for name, array in arrays.items()}
    once = max(speed.cpu_seconds(loaded[0], row, 1), 1e-4)
    repeats, times = max(1, int(0.05 / once)), [[] for _ in models]
    for number in range(rounds + 1):
        order = list(range(len(models)))
        for index in order if number % 2 else reversed(order):
            times[index].append(speed.cpu_seconds(loaded[index], row, repeats))
    return [statistics.median(first / mine for first, mine in zip(times[0][1:], taken[1:])) for taken in times]


def measure(name, make, folder, rounds):
    """A row of the table, and what is wrong with it."""
    model = REAL / f"{name}.onnx"
    calib, unseen = (make(np.random.default_rng(seed), ROWS) for seed in (1, 2))
    data, report = folder / "calib.npz", folder / "report.json"
    np.savez(data, **calib)
    failed = osplus(model, folder / "osplus.onnx", data, report)
    if failed:
        return f"| {name} | {failed} |", None
    said = json.loads(report.read_text())
    linears = [linear["name"] for linear in said["linears"]]
    quantized = sum(linear["status"] == "quantized" for linear in said["linears"])
    reference = run(session(model, ort.GraphOptimizationLevel.ORT_DISABLE_ALL), unseen, ROWS)
    cells, files = {}, [model, folder / "osplus.onnx"]
    cells["osplus"] = sqnr_db(reference, files[-1], unseen)
    for kind in ("plain", "static", "dynamic"):
        out = folder / f"{kind}.onnx"
        try:
            if kind == "plain":
                osplus(model, out, data, folder / "plain.json", "--method", "none", "--no-metadata")
            else:
                peer(kind, model, out, set(linears), calib)
            cells[kind] = sqnr_db(reference, out, unseen)
            files.append(out)
        except Exception as error:  # whatever the peer stops at is its result
            cells[kind] = str(error).splitlines()[0][:60]
    taken = dict(zip([file.stem for file in files[1:]], ratios(files, unseen, rounds)[1:]))
    told = [output["sqnr_db"] for output in said["outputs"].values() if output["sqnr_db"] is not None]
    worst = {kind: min(values) if isinstance(values, list) and values else values for kind, values in cells.items()}
    share = (said.get("work") or {}).get("int8")
    unsure = any(output.get("caution") for output in said["outputs"].values())
    texts = [name, f"{quantized} of {len(linears)}", "–" if share is None else f"{100 * share:.0f} %"]
    texts += [(f"{min(told):.1f}" if told else "–") + (" (unsure)" if unsure else "")]
    for kind in ("osplus", "plain", "static", "dynamic"):
        texts.append(f"{worst[kind]:.1f}, × {taken[kind]:.2f}" if kind in taken else str(worst[kind]))
    wrong = []
    if isinstance(worst["plain"], float) and any(o < p - 0.1 for o, p in zip(cells["osplus"], cells["plain"])):
        wrong.append(f"below plain: {cells['osplus']} against {cells['plain']}")
    if told and not unsure and abs(min(told) - worst["osplus"]) > 2:
        wrong.append(f"says {min(told):.1f} dB, is {worst['osplus']:.1f}")
    return "| " + " | ".join(texts) + " |", "; ".join(wrong) or None


def main():
    parser = argparse.ArgumentParser(description="Real models from packages, quantized and measured.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    print(f"ONNX Runtime {ort.__version__}, 1 thread, {args.rounds} rounds\n")
    print("| model | Linears | work in int8 | dB said | dB, speed | plain | static | dynamic |\n|---|---|---|---|---|---|---|---|")
    faults = []
    for name in args.names or MODELS:
        if not (REAL / f"{name}.onnx").is_file():
            sys.exit(f"models/real/{name}.onnx is missing: run models/fetch --packages")
        with tempfile.TemporaryDirectory() as folder:
            row, wrong = measure(name, MODELS[name] or romanizer(name), Path(folder), args.rounds)
        print(row, flush=True)
        faults += [f"{name}: {wrong}"] if wrong else []
    print("\n" + "\n".join(faults) if faults else "")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
