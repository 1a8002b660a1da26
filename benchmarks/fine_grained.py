#!/usr/bin/env python3
"""Scales per token and weights in groups: accuracy beside plain rounding in the same form, and speed.

    cargo build --release && models/fetch && models/fetch --decoder
    .venv/bin/python benchmarks/fine_grained.py [--models SmolLM2] [--only speed] [--rounds 15] [--json FILE]

Every model is quantized from calibration rows and run in ONNX Runtime on held-out ones. A cell has the SQNR of the output
over tokens that are no padding, 10 log10(sum r^2 / sum (r - q)^2), and in brackets the mean over tokens of the same, both in
dB. `plain` is the tool with --method none: the same form, rounded to the nearest, nothing migrated. The bars are of all elements
and of the mean over tokens. Speeds are ratios of CPU times in one run, one thread, median of interleaved pairs: float32 over the
form for one token and for 128, and the static form over the one with scales per token. `--only peers` has 4 bits in groups of 32 beside
ONNX Runtime's own quantizer (peer_tools/nbits.py; HQQ needs PyTorch). The exit status is 1 if a bar is missed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "benchmarks/peer_tools", "models", "tests/python")]

import bars  # noqa: E402  (needs the path above)
import measure  # noqa: E402
import nbits  # noqa: E402

TOKEN = ("--activation-granularity", "per-token")
SMOL, L6 = "SmolLM2, 6 layers", "MiniLM-L6"


def bits(weights, activations=8):
    return ("--weight-bits", str(weights), "--activation-bits", str(activations))


@dataclass(frozen=True)
class Row:
    model: str
    name: str
    options: tuple
    sqnr: float = -np.inf
    per_token: float = -np.inf


ROWS = (
    Row(SMOL, "W8A8 per token", TOKEN, 32, 27.6),
    Row(SMOL, "W6A6 per token", (*TOKEN, *bits(6, 6)), 22, 16.5),
    Row(SMOL, "W4A4 per token", (*TOKEN, *bits(4, 4)), 9.5, 4),
    Row(SMOL, "8 bits, groups of 128", ("--weight-only",), 38, 34),
    Row(SMOL, "4 bits, groups of 32", ("--weight-only", *bits(4)), 24.5, 19.8),
    Row(SMOL, "4 bits, groups of 128", ("--weight-granularity", "group:128", *bits(4)), 22.5, 17.5),
    Row(SMOL, "--preset llm", ("--preset", "llm")),
    Row(SMOL, "2 bits, groups of 16", ("--weight-granularity", "group:16", *bits(2))),
    Row(L6, "W8A8 per token", TOKEN, 25.2),
    Row(L6, "W6A6 per token", (*TOKEN, *bits(6, 6)), 15.4),
    Row(L6, "8 bits, groups of 32", ("--weight-granularity", "group:32"), 34),
    Row(L6, "4 bits, groups of 32", ("--weight-only", *bits(4)), 16.2),
)
SPEEDS = ((), TOKEN, ("--preset", "llm"), ("--weight-only",))


def quantize(args, row_model, options, model, out):
    calib = bars.REAL / f"{bars.MODELS[row_model][1]}calib.npz"
    command = [args.binary, model, out, "--calib", calib, "--no-layers", "--force", "--quiet", *options]
    subprocess.run([str(part) for part in command], check=True)


def accuracy_of(name, reference, out):
    got = bars.held_out(out, bars.MODELS[name][1])
    return {"sqnr": float(measure.sqnr(reference, got)), "per_token": measure.sqnr_per_token(reference, got)}


def found(args, row, options, model, reference, out):
    quantize(args, row.model, options, model, out)
    return accuracy_of(row.model, reference, out)


def cell(numbers):
    return f"{numbers['sqnr']:.2f} ({numbers['per_token']:.2f})"


def accuracy(args, folder, results):
    """The table of accuracies, and a line for every bar that is missed."""
    print("| model | form | plain | this | bar |\n|---|---|---|---|---|")
    references, missed = {}, []
    for row in (row for row in ROWS if re.search(args.models, row.model)):
        model = bars.model_file(row.model, folder)
        if row.model not in references:
            references[row.model] = bars.held_out(model, bars.MODELS[row.model][1])
        variants = {"plain": (*row.options, "--method", "none"), "this": row.options}
        reference, out = references[row.model], folder / "out.onnx"
        numbers = {name: found(args, row, options, model, reference, out) for name, options in variants.items()}
        results[f"{row.model} {row.name}"] = numbers
        bar = " and ".join(f"{b:g}{end}" for b, end in ((row.sqnr, ""), (row.per_token, " per token")) if np.isfinite(b))
        print(f"| {row.model} | {row.name} | {cell(numbers['plain'])} | {cell(numbers['this'])} | {bar} |", flush=True)
        for key, least in (("sqnr", row.sqnr), ("per_token", row.per_token)):
            if numbers["this"][key] < least:
                missed.append(f"{row.model} {row.name}: {key} {numbers['this'][key]:.2f}, must reach {least:g}")
    return missed


def feeds(session, tokens):
    random = np.random.default_rng(1)
    values = {"input_ids": random.integers(5, 20000, (1, tokens)), "attention_mask": np.ones((1, tokens), np.int64)}
    return {i.name: values.get(i.name, np.zeros((1, tokens), np.int64)) for i in session.get_inputs()}


def cpu_times(paths, tokens, rounds):
    """Median CPU seconds of a run of each file, interleaved, one thread."""
    sessions = [measure.session(path) for path in paths]
    given = [feeds(session, tokens) for session in sessions]
    runs = max(1, 128 // tokens // 4)
    times = [[] for _ in paths]
    for _ in range(rounds + 2):
        for session, feed, of in zip(sessions, given, times):
            start = time.process_time()
            for _ in range(runs):
                session.run(None, feed)
            of.append((time.process_time() - start) / runs)
    return [float(np.median(of[2:])) for of in times]


def speed(args, folder, results):
    print("\n| model | form | 1 token | 128 tokens |\n|---|---|---|---|")
    for name in (m for m in (SMOL, L6) if re.search(args.models, m)):
        model, paths = bars.model_file(name, folder), []
        for i, options in enumerate(SPEEDS):
            paths.append(folder / f"speed{i}.onnx")
            quantize(args, name, options, model, paths[-1])
        times = {tokens: cpu_times([model, *paths], tokens, args.rounds) for tokens in (1, 128)}
        for i, options in enumerate(SPEEDS, 1):
            ratios = [times[tokens][0] / times[tokens][i] for tokens in times]
            results[f"{name} {' '.join(options) or 'static'} speed"] = ratios
            print(f"| {name} | {' '.join(options) or 'static'} | {ratios[0]:.2f} × | {ratios[1]:.2f} × |", flush=True)
        print(f"| {name} | static over per token, CPU time | | {times[128][1] / times[128][2]:.2f} |", flush=True)


def peers(args, folder, results):
    """4 bits in groups of 32 by this tool and by ONNX Runtime's quantizer: accuracy, and speed against float32."""
    print("\n| model | tool | dB (per token) | 1 token | 128 tokens |\n|---|---|---|---|---|")
    for name in (m for m in (SMOL, L6) if re.search(args.models, m)):
        model, prefix = bars.model_file(name, folder), bars.MODELS[name][1]
        reference, made = bars.held_out(model, prefix), {}
        for options in (("--preset", "llm"), ("--weight-only", *bits(4))):
            made[" ".join(options)] = folder / f"ours{len(made)}.onnx"
            quantize(args, name, options, model, made[" ".join(options)])
        for form in nbits.FORMS:
            try:
                nbits.quantize(model, folder / f"{form}.onnx", form, bars.REAL / f"{prefix}calib.npz")
                made[f"ONNX Runtime, {form}"] = folder / f"{form}.onnx"
            except ImportError as error:
                print(f"not run: {form}: {error}")
        times = {tokens: cpu_times([model, *made.values()], tokens, args.rounds) for tokens in (1, 128)}
        for i, (tool, path) in enumerate(made.items(), 1):
            numbers = accuracy_of(name, reference, path)
            ratios = [of[0] / of[i] for of in times.values()]
            results[f"{name} {tool}"] = numbers | {"speed": ratios}
            print(f"| {name} | {tool} | {cell(numbers)} | {ratios[0]:.2f} × | {ratios[1]:.2f} × |", flush=True)


def parse():
    parser = argparse.ArgumentParser(description="Scales per token and weights in groups on real models.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--models", default="", help="only models whose name this regular expression finds")
    parser.add_argument("--only", choices=("accuracy", "speed", "peers"), help="one of the tables")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds for a speed; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="write every number there")
    return parser.parse_args()


def main():
    args, results = parse(), {}
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-fine-") as folder:
        missed = accuracy(args, Path(folder), results) if args.only in (None, "accuracy") else []
        if args.rounds and args.only in (None, "speed"):
            speed(args, Path(folder), results)
        if args.only == "peers":
            peers(args, Path(folder), results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    reached = "\nEvery bar of accuracy is reached." if args.only in (None, "accuracy") else ""
    print("\n".join(["\nMissed:", *(f"- {line}" for line in missed)]) if missed else reached)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
