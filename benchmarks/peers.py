#!/usr/bin/env python3
"""onnx-osplus against the tools a user would pick instead: one Markdown table.

    cargo build --release && models/fetch
    python3 benchmarks/peers.py [--models 'L6$'] [--only nncf] [--runs 3] [--json peers.json]

Every tool quantizes the same models from the same calibration rows and is measured on the same held-out ones: static
per-tensor activations, one weight scale per output channel, except where the table says otherwise. Each gets the best
setting that was found for it; where SmoothQuant has an α, seven are tried, .50 to .95, and the one that does best on
calibration rows it was not given is taken (peer_tools/sweep.py; CPU, wall and peak are of the sweep, eight runs). T5 is
the small exports of models/architectures with random weights, because no registry has real ones; Moonshine, an encoder and a
decoder of speech, is real (models/fetch --packages). The script needs Python alone: it installs each tool, pinned, into .venv-peers/NAME; what
cannot be installed, or fails, is named with the reason below the table. Columns:

    SQNR, cosine    of the token embeddings (SPLADE: the sparse vector; SmolLM2: the residual stream; decoders of T5 and Moonshine: the logits;
                    ViT-S: its first output) over unpadded held-out tokens, against float32
    per token       the mean over tokens of each one's SQNR
    probe r, acc.   a ridge regression from float32 sentence embeddings to human sentiment scores, trained on 2000
                    sentences, applied to the quantized model's embeddings of 1000 others: correlation, right sign
    top-1, top-10   share of nearest neighbours among those 1000 sentences that float32 finds too
    CPU, wall, peak the tool in a process of its own, start to end, imports included: user + system seconds, ru_maxrss
    speed-up        CPU time of float32 / quantized in ONNX Runtime, 1 thread, 1 × 128 tokens, median of interleaved pairs
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "benchmarks" / "peer_tools"
sys.path.insert(0, str(TOOLS))

import environments  # noqa: E402  (needs the path above)
import readme  # noqa: E402

OURS = "onnx-osplus"


@dataclass
class Tool:
    label: str
    environment: str  # OURS: the binary
    script: str = ""
    setting: str = ""
    options: tuple = ()  # of the binary
    note: str = ""  # where it is no static 8-bit uint8 quantizer
    swept: bool = False  # at the best α of sweep.py, chosen on calibration rows
    models: str = ""  # only those that this regular expression finds: it takes minutes


SIX = ("--weight-bits", "6", "--activation-bits", "6")
TABLE = (
    Tool("**onnx-osplus**", OURS),
    Tool("onnx-osplus --max-slowdown 0", OURS, options=("--max-slowdown", "0")),
    Tool("onnx-osplus --max-slowdown 50", OURS, options=("--max-slowdown", "50")),
    Tool("onnxruntime, best: inputs of Linears only", "onnxruntime", "quantize_ort.py", "best"),
    Tool("onnxruntime, default for MatMul", "onnxruntime", "quantize_ort.py", "default"),
    Tool("onnxsim → onnxruntime, best", "onnxsim", "quantize_onnxsim.py", "simplify"),
    Tool("onnxslim → onnxruntime, best", "onnxslim", "quantize_onnxslim.py", "best"),
    Tool("onnxruntime + neural-compressor SmoothQuant", "neural-compressor", "quantize_ort.py", "smoothquant", swept=True),
    Tool("onnxsim SmoothQuant → onnxruntime", "onnxsim", "quantize_onnxsim.py", "smoothquant", swept=True),
    Tool("onnxsim OS+ α .5 → onnxruntime", "onnxsim", "quantize_onnxsim.py", "osplus"),
    Tool("NNCF, transformer preset", "nncf", "quantize_nncf.py", "transformer"),
    Tool("NNCF", "nncf", "quantize_nncf.py", "transformer", swept=True),
    Tool("NNCF, SmoothQuant off", "nncf", "quantize_nncf.py", "no-smoothquant"),
    Tool("AMD Quark, SmoothQuant", "quark", "quantize_quark.py", "smoothquant", swept=True),
    Tool("AMD Quark, SmoothQuant and AdaRound", "quark", "quantize_quark.py", "smoothquant+adaround", swept=True, models="MiniLM"),
    Tool("AMD Quark", "quark", "quantize_quark.py", "static"),
    Tool("onnx-neural-compressor", "onnx-neural-compressor", "quantize_onc.py", "static"),
    Tool("onnx-neural-compressor, SmoothQuant", "onnx-neural-compressor", "quantize_onc.py", "smoothquant", swept=True),
    Tool("**onnx-osplus** --target portable", OURS, options=("--target", "portable"), note="symmetric"),
    Tool("onnxruntime, best", "onnxruntime", "quantize_ort.py", "symmetric", note="symmetric"),
    Tool(
        "onnxsim SmoothQuant → onnxruntime",
        "onnxsim",
        "quantize_onnxsim.py",
        "smoothquant-symmetric",
        note="symmetric",
        swept=True,
    ),
    Tool("NVIDIA ModelOpt, max", "modelopt", "quantize_modelopt.py", "max", note="symmetric"),
    Tool("NVIDIA ModelOpt, entropy", "modelopt", "quantize_modelopt.py", "entropy", note="symmetric"),
    Tool("onnxsim quantize_auto", "onnxsim", "quantize_onnxsim.py", "auto", note="its choice", models="L3"),
    Tool("onnxruntime dynamic", "onnxruntime", "quantize_ort.py", "dynamic", note="dynamic"),
    Tool("**onnx-osplus**", OURS, options=SIX, note="6 bits"),
    Tool("onnx-osplus --method none (plain min-max)", OURS, options=("--method", "none", *SIX), note="6 bits"),
)


class Failed(Exception):
    """What went wrong, in one line."""


def last_line(text):
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    return lines[-1][:300] if lines else "no message"


def wait(process, limit):
    """The status and resource usage of a process, which is killed after `limit` seconds."""
    timer = threading.Timer(limit, process.kill)
    timer.start()
    try:
        # subprocess would reap the child without its resource usage.
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    return status, usage


def run_measured(command, variables, log, limit):
    """(wall s, CPU s, peak MB) of one process. This script loads no libraries, because a child's ru_maxrss starts at the
    memory of the process that started it."""
    start = time.perf_counter()
    with open(log, "w") as out:
        # In the folder of the log, because some tools write into the current one.
        command, folder = [str(c) for c in command], log.parent
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables, cwd=folder)
        status, usage = wait(process, limit)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if wall >= limit:
        raise Failed(f"not done after {limit:.0f} s")
    if process.returncode != 0:
        raise Failed(f"exit status {process.returncode}: {last_line(log.read_text(errors='replace'))}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def score(*arguments):
    interpreter = environments.python("onnxruntime")
    command = [str(a) for a in (interpreter, TOOLS / "score.py", *arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Failed(last_line(done.stderr))
    return json.loads(done.stdout)


def quantize(tool, model, folder, args):
    """One run of a tool: (wall s, CPU s, peak MB). The result is in folder/out."""
    out = folder / "out" / "model.onnx"
    if tool.environment == OURS:
        command = [args.binary, model["file"], out, "--calib", model["calib"], "--force", "--quiet", *tool.options]
        variables = dict(os.environ)
    else:
        interpreter = environments.python(tool.environment)
        script = [TOOLS / "sweep.py", tool.script] if tool.swept else [TOOLS / tool.script]
        command = [interpreter, *script, tool.setting, model["file"], out, model["calib"]]
        variables = environments.variables(interpreter)
    out.parent.mkdir(parents=True, exist_ok=True)
    for file in out.parent.iterdir():
        file.unlink()
    return run_measured(command, variables, folder / "log.txt", args.limit)


def quantize_all(tools, model, folder, args):
    """[runs of the tool, or why it failed]. The tools take turns, so that a slow minute of the machine is everybody's."""
    results = [[] for _ in tools]
    for _ in range(args.runs):
        for number, tool in enumerate(tools):
            if isinstance(results[number], list):
                try:
                    results[number].append(quantize(tool, model, folder / str(number), args))
                except (Failed, environments.NotInstalled) as error:
                    results[number] = error
    return results


def measure(runs, model, folder, args):
    """One row of the table: what the tool cost and what its result is worth."""
    if not isinstance(runs, list):
        raise runs
    out = folder / "out" / "model.onnx"
    wall, cpu, peak = (statistics.median(column) for column in zip(*runs))
    size = sum(file.stat().st_size for file in out.parent.iterdir()) / 1e6
    row = {"wall_s": wall, "cpu_s": cpu, "peak_mb": peak, "file_mb": size}
    row |= score("accuracy", model["file"], out, model["heldout"], model["task"], model["cache"])
    chosen = re.findall(r"^alpha ([\d.]+)$", (folder / "log.txt").read_text(errors="replace"), re.MULTILINE)
    row |= {"alpha": float(chosen[-1])} if chosen else {}
    if args.rounds and model.get("speed", True):
        row |= score("speed", model["file"], out, args.rounds)
    return row


def table_row(name, tool_label, kind, row):
    cell = readme.cell
    cells = [name, tool_label + (f", α {row['alpha']:.2f}" if "alpha" in row else ""), kind]
    cells += [cell(row, "sqnr_db", "{:.2f}"), cell(row, "token_db", "{:.2f}"), cell(row, "cosine", "{:.5f}")]
    cells += [cell(row, "probe_r", "{:.3f}"), cell(row, "probe_accuracy", "{:.1f} %", 100)]
    cells += [cell(row, "top_1", "{:.1f} %", 100), cell(row, "top_10", "{:.1f} %", 100)]
    cells += [cell(row, "cpu_s", "{:.1f}"), cell(row, "wall_s", "{:.1f}"), cell(row, "peak_mb", "{:.0f}")]
    cells += [cell(row, "file_mb", "{:.1f}"), cell(row, "speed_up", "{:.2f}"), cell(row, "int8_linears", "{}")]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| model | tool | activations | SQNR dB | per token dB | cosine | probe r | probe acc. | top-1 | top-10 | CPU s | wall s | peak MB "
    "| file MB | speed-up | int8 Linears |\n|" + "---|" * 16
)


def parse():
    parser = argparse.ArgumentParser(description="onnx-osplus against other quantizers, in one table.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--models", default="", help="only models whose name this regular expression finds")
    parser.add_argument(
        "--only", default="", help="only tools whose environment or label this regular expression finds"
    )
    parser.add_argument("--runs", type=int, default=1, help="runs of each tool; the median is shown")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a run is given up")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved pairs for the speed-up; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="write every number there")
    parser.add_argument("--readme", action="store_true", help="put the table of all tools into docs/results.md")
    args = parser.parse_args()
    if args.readme and (args.only or not all(re.search(args.models, name, re.IGNORECASE) for name in readme.MODELS)):
        parser.error("--readme needs every tool and the models of its table")
    args.binary = os.path.abspath(args.binary)
    if not os.access(args.binary, os.X_OK):
        sys.exit(f"{args.binary} is missing: run cargo build --release")
    return args


def main():
    args, missing, results = parse(), [], []
    tools = [t for t in TABLE if re.search(args.only, f"{t.environment} {t.label}", re.IGNORECASE)]
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-peers-") as folder:
        folder = Path(folder)
        models = {n: m for n, m in score("models", folder).items() if re.search(args.models, n, re.IGNORECASE)}
        print(
            f"{date.today()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start\n\n{HEAD}", flush=True
        )
        for number, (name, model) in enumerate(models.items()):
            model["cache"] = str(folder / f"original-{number}.npz")
            original = score("accuracy", model["file"], model["file"], model["heldout"], model["task"], model["cache"])
            original["file_mb"] = Path(model["file"]).stat().st_size / 1e6
            print(table_row(name, "float32", "", original), flush=True)
            tried = [tool for tool in tools if re.search(tool.models, name)]
            runs = quantize_all(tried, model, folder, args)
            for i, tool in enumerate(tried):
                try:
                    row = measure(runs[i], model, folder / str(i), args)
                except (Failed, environments.NotInstalled) as error:
                    missing.append(f"{name}: {tool.label}: {error}")
                    row = {"error": str(error)}
                results.append({"model": name, "tool": tool.label, "activations": tool.note or "static", **row})
                print(table_row(name, tool.label, tool.note or "static", row), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1) + "\n")
    used = {tool.environment for tool in tools} - {OURS}
    versions = ", ".join(f"{p} {environments.version(e)}" for e, p in environments.PACKAGES.items() if e in used)
    print(f"\nVersions: {versions}." if versions else "")
    print("\n".join(["\nWithout a result:", *(f"- {line}" for line in missing)]) if missing else "")
    if args.readme:
        readme.write(results, f"{date.today()}, `{' '.join(['python3', *sys.argv])}`; {versions}.")


if __name__ == "__main__":
    main()
