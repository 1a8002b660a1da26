#!/usr/bin/env python3
"""What int8 attention costs and gains on MiniLM-L6: output SQNR, and CPU time in ONNX Runtime and OpenVINO.

    cargo build --release && models/fetch
    .venv/bin/python benchmarks/attention.py [--rounds 30] [--targets ort portable]

SQNR is that of the token embeddings on models/real/heldout.npz in ONNX Runtime. CPU time is process CPU time on one
thread for 1 × 128 tokens; the float model and both results take turns, and the table shows the median of the ratios.
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
sys.path[:0] = [str(ROOT / "models"), str(ROOT / "tests" / "python"), str(ROOT / "benchmarks")]

import measure  # noqa: E402  (needs the path above)
import openvino  # noqa: E402
import speed  # noqa: E402
from build_bert import bert_model, read_safetensors  # noqa: E402

REAL = ROOT / "models" / "real"


def in_onnx_runtime(path, arrays):
    session, _ = speed.load(path, path.parent)
    return lambda: session.run(None, {i.name: arrays[i.name] for i in session.get_inputs()})


def in_openvino(path, arrays):
    model = openvino.Core().read_model(str(path))
    model.reshape({i.get_any_name(): list(arrays[i.get_any_name()].shape) for i in model.inputs})
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda: request.infer({i.get_any_name(): arrays[i.get_any_name()] for i in model.inputs})


def ratios(runs, rounds, repeats=3):
    """Per model the median of how many times it is as fast as the first."""
    times = [[] for _ in runs]
    for run in runs:
        run()
    for number in range(rounds):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for index in order:
            start = time.process_time()
            for _ in range(repeats):
                runs[index]()
            times[index].append(time.process_time() - start)
    return [statistics.median(first / mine for first, mine in zip(times[0], taken)) for taken in times]


def main():
    parser = argparse.ArgumentParser(description="Cost and gain of int8 attention on MiniLM-L6.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--targets", nargs="+", default=["ort", "portable"])
    args = parser.parse_args()
    arrays = dict(np.load(REAL / "heldout.npz"))
    real = arrays["attention_mask"].astype(bool)
    timed = {
        "input_ids": np.random.RandomState(0).randint(1000, 20000, (1, 128)),
        "attention_mask": np.ones((1, 128), np.int64),
        "token_type_ids": np.zeros((1, 128), np.int64),
    }
    print("| target | attention | SQNR dB | ONNX Runtime | OpenVINO |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-benchmark-") as folder:
        original = Path(folder) / "l6.onnx"
        model = bert_model(read_safetensors(REAL / "minilm-l6.safetensors"), heads=12, fused=True)
        original.write_bytes(model.SerializeToString(deterministic=True))
        feeds = measure.with_token_types(original, arrays)
        reference = measure.outputs(original, feeds)["last_hidden_state"][real]
        for target in args.targets:
            paths = [original]
            for attention in ("float", "int8"):
                paths.append(Path(folder) / f"{target}-{attention}.onnx")
                command = [args.binary, original, paths[-1], "--calib", REAL / "calib.npz", "--target", target]
                subprocess.run([*map(str, command), "--attention", attention, "-q"], check=True)
            onnx_runtime, in_ov = (ratios([f(p, timed) for p in paths], args.rounds) for f in (in_onnx_runtime, in_openvino))
            for i, attention in enumerate(("float", "int8"), 1):
                db = measure.sqnr(reference, measure.outputs(paths[i], feeds)["last_hidden_state"][real])
                print(f"| {target} | {attention} | {db:.2f} | {onnx_runtime[i]:.2f} | {in_ov[i]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
