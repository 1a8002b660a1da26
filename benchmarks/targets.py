#!/usr/bin/env python3
"""Every target on the runtimes that run on a CPU: accuracy on held-out text and CPU time against float32.

    cargo build --release && models/fetch
    .venv/bin/python benchmarks/targets.py [--tokens 128] [--rounds 20] [--targets ort,portable:--attention=int8]

MiniLM-L6 (fused LayerNorm) is quantized for each target from models/real/calib.npz; options of the tool can follow a
target's name behind a colon. SQNR is that of the token embeddings on models/real/heldout.npz, in dB, in each runtime
against its own float model. CPU time is that of the process on one thread: the models of a runtime take turns within
every round, forwards and backwards, and the table has the median of the ratios per round. OpenVINO's float model runs
with INFERENCE_PRECISION_HINT=f32, and so does the rest of the int8 ones.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "models"), str(ROOT / "tests" / "python")]

import measure  # noqa: E402  (needs the path above)
import onnxruntime  # noqa: E402
import openvino  # noqa: E402
import runtimes  # noqa: E402
from build_bert import bert_model, read_safetensors  # noqa: E402

REAL = ROOT / "models" / "real"


def onnx_runtime(path):
    session = runtimes.onnx_runtime_session(path)
    return lambda feeds: session.run(None, feeds)[0]


def open_vino(path):
    request = runtimes.openvino_compile(path).create_infer_request()
    return lambda feeds: request.infer(feeds)[0].copy()


RUNTIMES = {"ONNX Runtime": onnx_runtime, "OpenVINO": open_vino}


def cpu_seconds(run, feeds, repeats):
    start = time.process_time()
    for _ in range(repeats):
        run(feeds)
    return (time.process_time() - start) / repeats


def main():
    parser = argparse.ArgumentParser(description="Accuracy and CPU time of every target in ONNX Runtime and OpenVINO.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--targets", default="ort,tensorrt,openvino,portable", help="TARGET[:OPTION[:OPTION…]],…")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="inferences of each model in a round")
    args = parser.parse_args()
    weights = REAL / "minilm-l6.safetensors"
    if not weights.is_file():
        sys.exit(f"{weights} is missing: run models/fetch")
    heldout = dict(np.load(REAL / "heldout.npz"))
    heldout["token_type_ids"] = np.zeros_like(heldout["input_ids"])
    real = heldout["attention_mask"].astype(bool)
    shape = (1, args.tokens)
    feeds = {
        "input_ids": np.random.RandomState(0).randint(1000, 20000, shape),
        "attention_mask": np.ones(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-benchmark-") as folder:
        original = Path(folder) / "float.onnx"
        model = bert_model(read_safetensors(weights), heads=12, fused=True)
        original.write_bytes(model.SerializeToString(deterministic=True))
        files = {}
        for entry in args.targets.split(","):
            target, *options = entry.split(":")
            path = Path(folder) / f"{len(files)}.onnx"
            command = [
                args.binary,
                original,
                path,
                "--calib",
                REAL / "calib.npz",
                "--target",
                target,
                "--quiet",
                *options,
            ]
            subprocess.run([str(c) for c in command], check=True)
            files[" ".join([target, *options])] = path
        table = {name: [] for name in files}
        for runtime, load in RUNTIMES.items():
            base, loaded = load(original), {}
            for name, path in files.items():
                try:
                    loaded[name] = load(path)
                except Exception as error:  # what a runtime refuses is a result
                    print(f"{runtime} refuses {name}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
            reference = base({name: heldout[name] for name in feeds})[real]
            for name in files:
                got = loaded[name]({name: heldout[name] for name in feeds})[real] if name in loaded else None
                table[name].append("refused" if got is None else f"{measure.sqnr(reference, got):.2f}")
            runs = [base, *loaded.values()]
            for run in runs:
                run(feeds)
            ratios = {name: [] for name in loaded}
            for number in range(args.rounds):
                order = range(len(runs)) if number % 2 == 0 else range(len(runs) - 1, -1, -1)
                taken = {i: cpu_seconds(runs[i], feeds, args.repeats) for i in order}
                for i, name in enumerate(loaded, 1):
                    ratios[name].append(taken[0] / taken[i])
            for name in files:
                if name in ratios:
                    low, middle, high = statistics.quantiles(ratios[name], n=4)
                    table[name].append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
                else:
                    table[name].append("")
    versions = f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {openvino.__version__.split('-')[0]}"
    print(f"{versions}, 1 thread, 1 × {args.tokens} tokens, {args.rounds} rounds\n")
    print("| target | " + " | ".join(f"{runtime} dB | speed-up (quartiles)" for runtime in RUNTIMES) + " |")
    print("|" + "---|" * (1 + 2 * len(RUNTIMES)))
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
