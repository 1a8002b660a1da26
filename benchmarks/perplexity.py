#!/usr/bin/env python3
"""Perplexity of a real decoder: float32, plain min-max, and this tool without and with rotations.

    cargo build --release && models/fetch --decoder
    .venv/bin/python benchmarks/perplexity.py [--bits 8,8 6,6 4,8 4,4] [--slowdowns 0 15 50] [--layers N] [--json FILE]
    .venv/bin/python benchmarks/perplexity.py --fine-grained

--fine-grained takes scales per token and weights in groups in the place of --bits, and beside them ONNX Runtime's own quantizer of
weights in groups of 32 (default, symmetric, k-quant, HQQ; GPTQ with the same rows is asked for by --forms), which needs the package onnx_ir, HQQ PyTorch;
without them those rows are named as not run.

SmolLM2-135M-Instruct, 30 layers, the output weight included. Every model is quantized from smollm2-calib.npz, snippets of
reviews, news and tweets, and run in ONNX Runtime on two texts that nothing was calibrated or tuned on:

    bible      passages from all over the King James Bible
    reviews    of films and products, of the half of vaderSentiment's text that smollm2-calib.npz is not from

Perplexity is exp(mean −log p(token | tokens before it in its row)) over 32 rows × 255 tokens each. The table shows it, and
by how much it is above that of float32, in percent.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks/peer_tools", "models", "tests/python")]

import measure  # noqa: E402  (needs the path above)
import nbits  # noqa: E402
from build_llama import llama_model, read_llama  # noqa: E402

REAL = ROOT / "models" / "real"
TEXTS = ("bible", "reviews")
BATCH = 4  # rows: their logits take 200 MB


def negative_log_likelihoods(session, ids, mask):
    """−ln p of every token but the first of each row that is no padding, f64 [tokens]"""
    logits = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0][:, :-1]
    logits -= logits.max(axis=-1, keepdims=True)
    taken = np.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
    return (np.log(np.exp(logits).sum(axis=-1, dtype=np.float64)) - taken)[mask[:, 1:] > 0]


def perplexity(session, text, rows=None):
    """Of the text at the path of an .npz file, or of its first `rows` rows."""
    arrays = np.load(text)
    ids, mask = (arrays[name][:rows] for name in ("input_ids", "attention_mask"))
    found = [negative_log_likelihoods(session, ids[i : i + BATCH], mask[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
    return float(np.exp(np.concatenate(found).mean()))


def settings(bits, slowdowns):
    """(bits, name, options of the tool) of every row of the table."""
    for pair in bits:
        weights, activations = pair.split(",")
        common = ["--weight-bits", weights, "--activation-bits", activations]
        yield pair, "plain min-max", [*common, "--method", "none"]
        for percent in slowdowns:
            yield pair, f"--max-slowdown {percent}", [*common, "--max-slowdown", percent]


FINE = (
    ("8,8", "--preset robust"),
    ("8,8", "--weight-only"),
    ("4,8", "--preset llm"),
    ("4,8", "--weight-only --weight-bits 4"),
)
def fine_grained(args, model, out, measured):
    for bits, options in () if args.peers else FINE:
        command = [args.binary, model, out, "--calib", REAL / "smollm2-calib.npz", "--no-layers", "--force", "--quiet"]
        subprocess.run([str(part) for part in [*command, *options.split()]], check=True)
        measured(bits, options, out)
    for form in args.forms:
        try:
            nbits.quantize(model, out, form, REAL / "smollm2-calib.npz")
        except ImportError as error:
            print(f"not run: MatMulNBitsQuantizer, {form}: {error}")
            continue
        measured("4,8", f"ONNX Runtime's MatMulNBitsQuantizer, {form}", out)


def cells(found, reference):
    return " | ".join(f"{found[text]:.2f} | {100 * (found[text] / reference[text] - 1):+.1f} %" for text in TEXTS)


def parse():
    parser = argparse.ArgumentParser(description="Perplexity of SmolLM2-135M, quantized, on two unseen texts.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--bits", nargs="+", default=["8,8", "6,6", "4,8", "4,4"], help="of weights, of activations")
    parser.add_argument("--slowdowns", nargs="+", default=["0", "15", "50"], help="values of --max-slowdown")
    parser.add_argument("--fine-grained", action="store_true", help="scales per token and weights in groups")
    parser.add_argument("--peers", action="store_true", help="of --fine-grained only ONNX Runtime's quantizer")
    parser.add_argument("--forms", nargs="+", default=nbits.FORMS[:-1], choices=nbits.FORMS, help="of ONNX Runtime's quantizer; GPTQ takes hours")
    parser.add_argument("--layers", type=int, help="only the first layers, whose perplexity is high, to try the script")
    parser.add_argument("--rows", type=int, help="only so many rows of each text")
    parser.add_argument("--json", type=Path, help="write every number there")
    args = parser.parse_args()
    for path in (args.binary, REAL / "smollm2.gguf", *(REAL / f"smollm2-{text}.npz" for text in TEXTS)):
        if not os.access(path, os.R_OK):
            sys.exit(f"{path} is missing: run cargo build --release and models/fetch --decoder")
    return args


def main():
    args, results = parse(), []

    def measured(bits, name, model):
        session = measure.session(model)
        row = {text: perplexity(session, REAL / f"smollm2-{text}.npz", args.rows) for text in TEXTS}
        results.append({"bits": bits, "setting": name} | row)
        print(f"| {bits.replace(',', ' / ')} | {name} | {cells(row, results[0])} |", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")

    print("| bits W / A | setting | bible | above float | reviews | above float |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-perplexity-") as folder:
        model, out = Path(folder) / "float.onnx", Path(folder) / "out.onnx"
        built = llama_model(*read_llama(REAL / "smollm2.gguf", args.layers))
        model.write_bytes(built.SerializeToString(deterministic=True))
        del built
        measured("32,32", "float32", model)
        if args.fine_grained:
            fine_grained(args, model, out, measured)
            return
        for bits, name, options in settings(args.bits, args.slowdowns):
            command = [args.binary, model, out, "--calib", REAL / "smollm2-calib.npz", "--no-layers", "--force", "--quiet"]
            subprocess.run([str(part) for part in [*command, *options]], check=True)
            measured(bits, name, out)


if __name__ == "__main__":
    main()
