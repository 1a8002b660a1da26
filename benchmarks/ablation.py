#!/usr/bin/env python3
"""Where the error of a quantized model comes from: which Linear, weight or activation, clipping or rounding.

    .venv/bin/python benchmarks/ablation.py models/real/minilm-l3.onnx [--bits 8] [--target ort] [--rows 16] [--top 10]

The model is quantized twice, plain min-max and migrated without rotations. In both results every Linear's input and weight are then set
apart, in float or quantized, and the whole model runs on held-out rows. SQNR in dB of the main output against float32:

    everything        what the file gives
    weights           inputs in float            activations   weights in float
    clipping          inputs saturate at their range but are not rounded
    rounding          inputs are rounded to multiples of their scale but do not saturate

The second table has one Linear quantized and all others in float, the worst first; `share` is its part of the summed
noise power of all Linears alone. Weights of 8 bits never saturate: their error is rounding.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "python"), str(ROOT / "benchmarks" / "peer_tools")]

import measure  # noqa: E402  (needs the path above)
import score  # noqa: E402

REAL = ROOT / "models" / "real"
LEVELS = {"uint8": (0, 255), "int8": (-128, 127), "uint4": (0, 15), "int4": (-8, 7), "uint16": (0, 65535), "int16": (-32768, 32767)}
FORMS = {  # what becomes of (input, weight)
    "nothing": ("float", "float"),
    "everything": ("quantized", "quantized"),
    "weights": ("float", "quantized"),
    "activations": ("quantized", "float"),
    "clipping": ("clipped", "float"),
    "rounding": ("rounded", "float"),
}
PARTS = tuple(part for part in FORMS if part != "nothing")


def tool(args, model, out, *options):
    bits = ("--weight-bits", args.bits, "--activation-bits", args.bits) if "float" not in options else ()
    options += ("--max-slowdown", "0")
    command = [args.binary, model, out, "--calib", args.calib, "--target", args.target, "--force", "--quiet", *bits, *options]
    subprocess.run([str(c) for c in command], check=True)


class Result:
    """A quantized model beside its own float form, and its variants."""

    def __init__(self, quantized, floating, names, feeds):
        self.model, self.feeds = onnx.load(quantized), feeds
        self.nodes = list(self.model.graph.node)
        self.producers, self.constants = measure.producers(self.model), measure.constants(self.model)
        original, weights = onnx.load(floating), {}
        self.choices, helpers = {}, {}
        constants = measure.constants(original)
        before = {node.name: node for node in original.graph.node}
        for node in self.nodes:
            if node.name in names:
                twin = before[node.name]
                weight = self.float_weight(twin, constants, measure.producers(original))
                weights[f"{node.name}/float_weight"] = weight.T if self.is_turned(node, twin) else weight
                inputs, helpers[node.name] = self.input_forms(node, twin.input[0])
                forms = {"quantized": node.input[1], "float": f"{node.name}/float_weight"}
                self.choices[node.name] = (inputs, forms)
        self.model.graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in weights.items())
        # In front of each Linear, the nodes that clip and round; ONNX Runtime drops those that nobody reads.
        self.order = [n for node in self.nodes for n in (*helpers.get(node.name, ()), node)]
        self.linears = {node.name: node for node in self.order if node.name in self.choices}

    @staticmethod
    def float_weight(node, constants, producers):
        """The weight of a Linear as the float model computes it, through Transpose, Cast and Identity."""
        name, through = node.input[1], []
        while name not in constants:
            through.append(producers[name])
            name = through[-1].input[0]
        weight = constants[name]
        for step in reversed(through):
            if step.op_type == "Transpose":
                weight = weight.T
            elif step.op_type not in ("Cast", "Identity"):
                raise ValueError(f"weight of {node.name}: {step.op_type} is not expected")
        return weight.astype(np.float32)

    @staticmethod
    def is_turned(node, twin):
        """Whether one of the two reads its weight as [N, K] (transB) and the other as [K, N]."""
        turned = [next((a.i for a in n.attribute if a.name == "transB"), 0) for n in (node, twin)]
        return turned[0] != turned[1]

    def input_forms(self, node, value):
        """{form: value name} of a Linear's input, and the nodes that make the forms which are not there."""
        dequantize = self.producers[node.input[0]]
        scale = np.float32(self.constants[dequantize.input[1]])
        zero = self.constants[dequantize.input[2]] if len(dequantize.input) > 2 else np.uint8(0)
        low, high = ((np.float32(level) - np.float32(zero)) * scale for level in LEVELS[str(zero.dtype)])
        step = self.producers[dequantize.input[0]]
        while step.output[0] != value and step.op_type in ("QuantizeLinear", "Clip"):
            if step.op_type == "Clip":
                low, high = max(low, self.constants[step.input[1]]), min(high, self.constants[step.input[2]])
            if step.input[0] not in self.producers:
                break
            step = self.producers[step.input[0]]
        name = f"{node.name}/input"
        arrays = {"scale": scale, "low": np.float32(low), "high": np.float32(high)}
        self.model.graph.initializer.extend(numpy_helper.from_array(np.reshape(a, ()), f"{name}_{n}") for n, a in arrays.items())
        nodes = [
            helper.make_node("Clip", [value, f"{name}_low", f"{name}_high"], [f"{name}_clipped"]),
            helper.make_node("Div", [value, f"{name}_scale"], [f"{name}_steps"]),
            helper.make_node("Round", [f"{name}_steps"], [f"{name}_whole"]),
            helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [f"{name}_rounded"]),
        ]
        forms = {"float": value, "quantized": node.input[0], "clipped": f"{name}_clipped", "rounded": f"{name}_rounded"}
        return forms, nodes

    def noise(self, reference, part, only=None):
        """Σ (reference − got)² with `part` of every Linear quantized, or of one alone."""
        for name, (inputs, weights) in self.choices.items():
            form = FORMS[part] if only in (None, name) else ("float", "float")
            self.linears[name].input[0], self.linears[name].input[1] = inputs[form[0]], weights[form[1]]
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.order)
        got = run(self.model.SerializeToString(), self.feeds)
        return np.square(reference - got).sum()


def run(model, feeds):
    """The main output of the unpadded tokens. Basic optimizations only: no kernel may change what is compared."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    out = score.main_output(session, {value.name: feeds[value.name] for value in session.get_inputs()})
    real = feeds["attention_mask"].astype(bool)
    return (out[real] if out.shape[:2] == real.shape else out).astype(np.float64)


def main():
    parser = argparse.ArgumentParser(description="Where the error of a quantized model comes from.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--calib", type=Path, default=REAL / "calib.npz")
    parser.add_argument("--heldout", type=Path, default=REAL / "heldout.npz")
    parser.add_argument("--bits", default="8")
    parser.add_argument("--target", default="ort")
    parser.add_argument("--rows", type=int, default=16, help="held-out rows to run")
    parser.add_argument("--top", type=int, default=10, help="Linears in the second table; 0 leaves it out")
    args = parser.parse_args()

    arrays = {name: array[: args.rows] for name, array in np.load(args.heldout).items()}
    feeds = arrays | {"token_type_ids": np.zeros_like(arrays["input_ids"])}
    reference = run(str(args.model), feeds)
    power = np.square(reference).sum()
    results = {}
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-ablation-") as folder:
        quantized, floating, report = (Path(folder) / n for n in ("quantized.onnx", "float.onnx", "report.json"))
        for name, method in (("plain", "none"), ("migrated", "osplus")):
            tool(args, args.model, quantized, "--method", method, "--no-layers", "--report", report)
            tool(args, args.model, floating, "--method", method, "--format", "float")
            linears = json.loads(report.read_text())["linears"]
            names = [linear["name"] for linear in linears if linear["status"] == "quantized"]
            results[name] = Result(quantized, floating, names, feeds)
            # A rotation is in one of the two files only: their weights belong to other inputs.
            if results[name].noise(reference, "nothing") > 1e-6 * power:
                sys.exit(
                    f"{args.model.name}, {name}: with every Linear in float the quantized file is not the float one, because a "
                    "rotation is folded; the report of --keep-float 1 has what every Linear adds alone (kept_float.sensitivity)"
                )

    def db(noise):
        return f"{10 * np.log10(power / noise):.2f}" if noise > 0 else "∞"

    print(f"{args.model.name}, {args.bits} bits, target {args.target}, {len(reference)} rows of output\n")
    print("| quantized | plain dB | migrated dB |\n|---|---|---|")
    for part in PARTS:
        print(f"| {part} | {' | '.join(db(results[n].noise(reference, part)) for n in ('plain', 'migrated'))} |", flush=True)
    if args.top:
        alone = {n: {l: r.noise(reference, "everything", l) for l in r.linears} for n, r in results.items()}
        total = sum(alone["migrated"].values())
        print("\n| Linear alone | plain dB | migrated dB | share | weights | activations | clipping | rounding |")
        print("|---|---|---|---|---|---|---|---|")
        for name in sorted(alone["migrated"], key=alone["migrated"].get, reverse=True)[: args.top]:
            cells = [db(alone["plain"][name]), db(alone["migrated"][name]), f"{100 * alone['migrated'][name] / total:.0f} %"]
            cells += [db(results["migrated"].noise(reference, p, name)) for p in PARTS if p != "everything"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
