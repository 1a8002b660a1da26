#!/usr/bin/env python3
"""What rotations must reach: every bar beside what the tool gives without them, by default, and for more time.

    cargo build --release && models/fetch && models/fetch --decoder
    .venv/bin/python benchmarks/bars.py [--models 'L6|ALBERT'] [--slowdowns 0 default 50] [--rounds 15] [--json FILE]

Every model is quantized from calibration rows and run in ONNX Runtime on held-out ones. A cell has the SQNR of the output
over tokens that are no padding, 10 log10(sum r^2 / sum (r - q)^2), and in brackets the mean over tokens of the same, both
in dB; behind a comma, where the bar has a speed, the ratio of CPU times float32 / quantized (one thread, 1 x 128 tokens,
median of interleaved pairs). `default` is the tool without --max-slowdown. The exit status is 1 if a bar is missed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks/peer_tools", "models", "tests/python")]

import measure  # noqa: E402  (needs the path above)
import score  # noqa: E402
from build_albert import albert_model, read_torch  # noqa: E402
from build_bert import bert_model, read_safetensors  # noqa: E402
from build_llama import llama_model, read_llama  # noqa: E402

REAL = ROOT / "models" / "real"
BATCH = 8


@dataclass(frozen=True)
class Bar:
    """sqnr, per_token: dB of a setting; speed: times float32."""

    sqnr: float
    per_token: float = -np.inf
    speed: float = 0.0


@dataclass(frozen=True)
class Row:
    model: str
    weight_bits: int = 8
    activation_bits: int = 8
    target: str = "ort"
    bars: tuple = ()  # (setting, Bar)

    def name(self):
        bits = f"W{self.weight_bits}A{self.activation_bits}"
        return f"{self.model} {bits}" + (f" `{self.target}`" if self.target != "ort" else "")


ROWS = (
    Row("MiniLM-L6", bars=(("default", Bar(27.5, speed=2.15)), ("50", Bar(29)))),
    Row("MiniLM-L6", target="portable", bars=(("default", Bar(25.5)),)),
    Row("MiniLM-L6", 6, 6, bars=(("default", Bar(17.5)),)),
    Row("MiniLM-L6", 4, 8, bars=(("default", Bar(12)),)),
    Row("MiniLM-L6", 4, 4, bars=(("default", Bar(6.5)),)),
    Row("MiniLM-L3", bars=(("default", Bar(34.5)),)),
    Row("ALBERT", bars=(("default", Bar(32.5)),)),
    Row("ALBERT", 6, 6, bars=(("default", Bar(20.5)),)),
    Row("SmolLM2, 6 layers", bars=(("default", Bar(36, per_token=32)),)),
    Row("SmolLM2, 6 layers", 6, 6, bars=(("default", Bar(24)),)),
    Row("SmolLM2, 6 layers", 4, 4, bars=(("default", Bar(9.5)),)),
)


def minilm_l6():
    return bert_model(read_safetensors(REAL / "minilm-l6.safetensors"), heads=12, fused=True)


def albert():
    return albert_model(read_torch(REAL / "albert.bin"), heads=8, layers=12, fused=True)


def smollm2():
    return llama_model(*read_llama(REAL / "smollm2.gguf", 6), output="residual")


# How a model is made, and what its data is called.
MODELS = {
    "MiniLM-L6": (minilm_l6, ""),
    "MiniLM-L3": (None, ""),
    "ALBERT": (albert, "reactions-"),
    "SmolLM2, 6 layers": (smollm2, "smollm2-"),
}


def model_file(name, folder):
    make, data = MODELS[name]
    if not (REAL / f"{data}heldout.npz").is_file():
        sys.exit(f"{REAL / data}heldout.npz is missing: run models/fetch" + " --decoder" * data.startswith("smollm2"))
    if make is None:
        return REAL / "minilm-l3.onnx"
    path = folder / f"{list(MODELS).index(name)}.onnx"
    if not path.is_file():
        path.write_bytes(make().SerializeToString(deterministic=True))
    return path


def held_out(model, data):
    """The output of token vectors over held-out tokens that are no padding, f64 [tokens, C]."""
    session, arrays = measure.session(model), dict(np.load(REAL / f"{data}heldout.npz"))
    parts = []
    for start in range(0, len(arrays["input_ids"]), BATCH):
        feeds = score.feeds_of(session, arrays, slice(start, start + BATCH))
        parts.append(score.main_output(session, feeds)[arrays["attention_mask"][start : start + BATCH] > 0])
    return np.concatenate(parts).astype(np.float64)


def quantize(args, row, setting, model, out):
    options = ["--target", row.target, "--weight-bits", row.weight_bits, "--activation-bits", row.activation_bits]
    options += [] if setting == "default" else ["--max-slowdown", setting]
    calib = REAL / f"{MODELS[row.model][1]}calib.npz"
    command = [args.binary, model, out, "--calib", calib, "--no-layers", "--force", "--quiet", *options]
    subprocess.run([str(part) for part in command], check=True)


def measured(args, row, setting, model, reference, folder):
    """{sqnr, per_token, and speed where a bar of the row has one}"""
    out = folder / "out.onnx"
    quantize(args, row, setting, model, out)
    got = held_out(out, MODELS[row.model][1])
    found = {"sqnr": float(measure.sqnr(reference, got)), "per_token": measure.sqnr_per_token(reference, got)}
    if args.rounds and any(bar.speed for _, bar in row.bars):
        found["speed"] = score.cpu_ratio(model, out, args.rounds)["speed_up"]
    return found


def cell(found):
    speed = f", {found['speed']:.2f} ×" if found.get("speed") else ""
    return f"{found['sqnr']:.2f} ({found['per_token']:.2f}){speed}"


def bar_text(bars):
    texts = []
    for setting, bar in bars:
        text = f"{bar.sqnr:g}" + (f" ({bar.per_token:g})" if np.isfinite(bar.per_token) else "")
        text += f" at ≥ {bar.speed:g} ×" if bar.speed else ""
        texts.append(text if setting == "default" else f"{setting}: {text}")
    return "; ".join(texts)


def misses(row, found):
    """Words for every bar that what was `found`, by setting, does not reach."""
    for setting, bar in row.bars:
        for key, least in (("sqnr", bar.sqnr), ("per_token", bar.per_token), ("speed", bar.speed)):
            if setting in found and key in found[setting] and found[setting][key] < least:
                yield f"{row.name()}, {setting}: {key} {found[setting][key]:.2f}, must reach {least:g}"


def parse():
    parser = argparse.ArgumentParser(description="The bars of rotations on real models.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--models", default="", help="only rows whose name this regular expression finds")
    parser.add_argument("--slowdowns", nargs="+", default=["0", "default", "50"], help="values of --max-slowdown")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved pairs for a speed; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="write every number there")
    return parser.parse_args()


def main():
    args, missed, results = parse(), [], {}
    heads = [f"--max-slowdown {s}" if s != "default" else s for s in args.slowdowns]
    print(f"| model, bits | {' | '.join(heads)} | bar |\n|{'---|' * (len(heads) + 2)}")
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-bars-") as folder:
        folder, references = Path(folder), {}
        for row in (row for row in ROWS if re.search(args.models, row.name())):
            model = model_file(row.model, folder)
            if row.model not in references:
                references[row.model] = held_out(model, MODELS[row.model][1])
            found = {s: measured(args, row, s, model, references[row.model], folder) for s in args.slowdowns}
            results[row.name()] = found
            missed += misses(row, found)
            print(f"| {row.name()} | {' | '.join(map(cell, found.values()))} | {bar_text(row.bars)} |", flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(["\nMissed:", *(f"- {line}" for line in missed)]) if missed else "\nEvery bar of these settings is reached.")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
