#!/usr/bin/env python3
"""Memory and time of the whole job on decoders of one size, as a whole and block by block, beside ONNX Runtime's static quantizer on the
same file and rows, in pairs.

    cargo build --release
    .venv/bin/python benchmarks/scale.py llama 0.1B
    .venv/bin/python benchmarks/scale.py llama 1.1B --runs 1 --only on,ort
    .venv/bin/python benchmarks/scale.py llama 7B --dtype float16 --rows 4 --length 64 --only on --folder /large/disk

The models are those of models/build_decoder.py: random weights, planted outlier channels, a large first token. Anonymous memory is what a
process has of its own (RssAnon, looked at 20 times a second); the peak of resident memory counts the pages of the mapped file too. The
result is looked at in ONNX Runtime where the file is below 4 GB: SQNR of the logits on rows that no one has seen.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "models"))

import build_decoder  # noqa: E402  (needs the path above)
import numpy as np  # noqa: E402

ORT = """
import sys, numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
class Rows(CalibrationDataReader):
    def __init__(self, path):
        data = dict(np.load(path))
        self.rows = iter([{k: v[i:i + 1] for k, v in data.items()} for i in range(len(data["input_ids"]))])
    def get_next(self):
        return next(self.rows, None)
quantize_static(sys.argv[1], sys.argv[2], Rows(sys.argv[3]), op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
                weight_type=QuantType.QInt8, use_external_data_format=True, extra_options={"MatMulConstBOnly": True})
"""


def measure(command):
    """(wall s, CPU s, peak of anonymous MB, peak of resident MB) of one run to its end."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    anonymous = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            anonymous = max(anonymous, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))
        except (OSError, TypeError):
            pass
        time.sleep(0.05)
    if status:
        sys.exit(f"{command}: {process.stderr.read().decode()[-2000:]}")
    wall = time.perf_counter() - start
    return wall, usage.ru_utime + usage.ru_stime, anonymous * 1024 / 1e6, usage.ru_maxrss * 1024 / 1e6


def unseen_sqnr(model, quantized, feeds):
    import onnxruntime

    def run(path):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(["logits"], feeds)[0].astype(np.float64)

    r, o = run(model), run(quantized)
    return 10 * np.log10((r**2).sum() / ((r - o) ** 2).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("kind", choices=["llama", "opt", "bloom"])
    parser.add_argument("size", choices=build_decoder.SIZES)
    parser.add_argument("--dtype", choices=build_decoder.TYPES, default="float32")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="off,on,ort", help="which of off, on (--streaming) and ort")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--folder", help="where the files go")
    arguments = parser.parse_args()
    size = build_decoder.SIZES[arguments.size]
    size = replace(size, layers=arguments.layers or size.layers)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="onnx-osplus-scale-") as folder:
        folder = Path(folder)
        model, calib = folder / "in.onnx", folder / "calib.npz"
        build_decoder.build(arguments.kind, size, model, arguments.dtype, tied=arguments.size != "7B")
        np.savez(calib, **build_decoder.calibration(size, arguments.rows, arguments.length))
        unseen = build_decoder.calibration(size, 2, arguments.length, seed=77)
        megabytes = model.with_name("in.onnx.data").stat().st_size / 1e6
        print(f"{arguments.kind} {arguments.size} {arguments.dtype}, {size.layers} layers, {megabytes:.0f} MB, "
              f"{arguments.rows} x {arguments.length} tokens, {os.cpu_count()} CPUs", flush=True)  # fmt: skip
        tool = [arguments.binary, model]
        commands = {
            way: [*tool, folder / f"{way}.onnx", "--calib", calib, "--streaming", way, "--force", "-q"]
            for way in ("off", "on")
        }
        commands["ort"] = [sys.executable, "-c", ORT, model, folder / "ort.onnx", calib]
        wanted = arguments.only.split(",")
        runs = {way: [] for way in wanted}
        for _ in range(arguments.runs):
            for way in wanted:
                runs[way].append(measure(commands[way]))
        print("| | wall s | CPU s | anonymous MB | resident MB | SQNR on unseen rows, dB |\n|---|---|---|---|---|---|")
        names = {"off": "as a whole", "on": "block by block", "ort": "ONNX Runtime's quantize_static"}
        for way in wanted:
            wall, cpu, anonymous, resident = (statistics.median(column) for column in zip(*runs[way], strict=True))
            small = megabytes < 4000 and arguments.dtype != "bfloat16"
            sqnr = f"{unseen_sqnr(model, folder / f'{way}.onnx', unseen):.1f}" if small else "not run"
            print(f"| {names[way]} | {wall:.0f} | {cpu:.0f} | {anonymous:.0f} | {resident:.0f} | {sqnr} |", flush=True)


if __name__ == "__main__":
    main()
