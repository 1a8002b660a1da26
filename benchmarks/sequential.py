#!/usr/bin/env python3
"""What is to be gained where later Linears see what the quantized earlier ones give: rounding against their inputs, not float's.

    cargo build --release && models/fetch
    .venv/bin/python benchmarks/sequential.py [--bits 4,8 4,4 6,6 8,8] [--ridge 1] [--damping 0.25]

MiniLM-L6 is quantized by the tool, without rotations, and its float twin written (`--format float`). Then Linear by Linear, in the order of
the graph, with x of the twin and x̂ of the model whose earlier Linears are done, both less their means, on calibration tokens:

    W* = W + (X̂ᵀX̂ + λI)⁻¹ X̂ᵀ (X − X̂) W          what makes up for the error of the inputs
    Q  = error feedback on W* with X̂ᵀX̂             the tool's own scales
    b  = the bias that keeps the mean of the outputs

The tool's integers, error feedback on W and on W* compete on every eighth token, which set nothing. The table has SQNR and its mean over tokens on
held-out sentences, in ONNX Runtime.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "benchmarks/peer_tools", "models", "tests/python")]

import bars  # noqa: E402  (needs the path above)
import measure  # noqa: E402

REAL = ROOT / "models" / "real"
# A candidate must have so much of the error of the one before it at most.
CLEARLY = 0.99


def session(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Graph:
    def __init__(self, path):
        self.model = onnx.load(path)
        self.graph = self.model.graph
        self.producer = {output: node for node in self.graph.node for output in node.output}
        self.stored = {tensor.name: tensor for tensor in self.graph.initializer}

    def array(self, name):
        return numpy_helper.to_array(self.stored[name])

    def only(self, names, where):
        return next((name for name in names if name in where), None)

    def linear(self, output):
        """The MatMul and the name of the bias behind `output`, if an Add of both gives it."""
        add = self.producer[output]
        product, bias = self.only(add.input, self.producer), self.only(add.input, self.stored)
        if add.op_type != "Add" or not product or not bias or self.producer[product].op_type != "MatMul":
            return None
        return self.producer[product], bias

    def shows(self, names):
        self.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)

    def takes(self, name, shape):
        self.graph.input.append(helper.make_tensor_value_info(name, 1, list(shape)))


def linears(quantized, twin):
    """Every quantized Linear with a bias: names, float weight, the tool's weight and scales. Weight and bias become inputs of the graph."""
    found = []
    named = {output for node in twin.graph.node for output in node.output}
    for output in [o for node in list(quantized.graph.node) for o in node.output if o in named]:
        both = quantized.linear(output), twin.linear(output)
        if None in both or both[0][0].input[1] not in quantized.producer:
            continue
        (node, bias), (before, float_bias) = both
        dequantize = quantized.producer[node.input[1]]
        scale = quantized.array(dequantize.input[1])
        integers = quantized.array(dequantize.input[0]).astype(np.float32)
        entry = {"output": output, "x": node.input[0], "float_x": before.input[0], "name": f"weight_{len(found)}", "bias": bias}
        entry |= {"weight": twin.array(before.input[1]).astype(np.float64), "scale": np.broadcast_to(scale, integers.shape)[0]}
        entry |= {"float_bias": twin.array(float_bias).astype(np.float64).reshape(-1)}
        quantized.takes(entry["name"], integers.shape)
        node.input[1] = entry["name"]
        found.append(entry | {"values": {entry["name"]: integers * scale, bias: quantized.array(bias).astype(np.float32)}})
    for entry in found:
        quantized.takes(entry["bias"], quantized.array(entry["bias"]).shape)
    for bias in {entry["bias"] for entry in found}:
        quantized.graph.initializer.remove(quantized.stored[bias])
    return found


def feedback(weight, hessian, scale, qmax, damping):
    """Rows rounded one after the other, each error taken up by the rows behind it (GPTQ), as `solve/feedback.rs` does it."""
    size = len(hessian)
    hessian = hessian + damping * np.mean(np.diag(hessian)) * np.eye(size)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    weight, out = weight.copy(), np.zeros_like(weight)
    for k in range(size):
        out[k] = np.clip(np.round(weight[k] / scale), -qmax, qmax) * scale
        weight[k + 1 :] -= np.outer(upper[k, k + 1 :], (weight[k] - out[k]) / upper[k, k])
    return out


def refine(entry, x, seen, qmax, args):
    """The best weight of a Linear and its bias, for inputs `x` in float and `seen` behind what is quantized: [T, K]."""
    fit = np.arange(len(x)) % 8 != 7
    weight, target = entry["weight"], x @ entry["weight"]
    centred = seen[fit] - seen[fit].mean(0)
    hessian = centred.T @ centred
    ridge = args.ridge * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    missing = (x[fit] - x[fit].mean(0) - centred) @ weight
    wanted = weight + np.linalg.solve(hessian + ridge, centred.T @ missing)
    candidates = {
        "as it was": entry["values"][entry["name"]].astype(np.float64),
        "feedback": feedback(weight, hessian, entry["scale"], qmax, args.damping),
        "sequential": feedback(wanted, hessian, entry["scale"], qmax, args.damping),
    }
    best = None
    for kind, candidate in candidates.items():
        error = target - seen @ candidate
        bias = error[fit].mean(0)
        left = np.square(error[~fit] - bias).sum()
        if best is None or left < CLEARLY * best[0]:
            best = left, kind, candidate, bias
    return best[1:]


def experiment(args, folder, model, bits, calibration, heldout):
    weight_bits, activation_bits = bits.split(",")
    options = ["--weight-bits", weight_bits, "--activation-bits", activation_bits, "--max-slowdown", "0", "--force", "--quiet"]
    for name, form in (("quantized", []), ("float", ["--format", "float"])):
        command = [args.binary, model, folder / f"{name}.onnx", "--calib", REAL / "calib.npz", *options, *form]
        subprocess.run([str(c) for c in command], check=True)
    quantized, twin = Graph(folder / "quantized.onnx"), Graph(folder / "float.onnx")
    found = linears(quantized, twin)
    main = quantized.graph.output[0].name
    quantized.shows(dict.fromkeys(entry["x"] for entry in found))
    twin.shows(dict.fromkeys(entry["float_x"] for entry in found))
    run, run_twin = session(quantized.model), session(twin.model)
    mask = calibration["attention_mask"].astype(bool)
    of_tokens = lambda value: value[mask].astype(np.float64)  # noqa: E731
    names = list(dict.fromkeys(entry["float_x"] for entry in found))
    floats = dict(zip(names, map(of_tokens, run_twin.run(names, calibration))))
    values = {name: value for entry in found for name, value in entry["values"].items()}
    reference = run_twin.run([main], heldout)[0]

    def quality():
        got = run.run([main], {**heldout, **values})[0]
        real = heldout["attention_mask"].astype(bool)
        return f"{measure.sqnr(reference[real], got[real]):.2f} ({measure.sqnr_per_token(reference[real], got[real]):.2f})"

    before, chosen = quality(), Counter()
    for entry in found:
        seen = of_tokens(run.run([entry["x"]], {**calibration, **values})[0])
        kind, weight, bias = refine(entry, floats[entry["float_x"]], seen, 2 ** (int(weight_bits) - 1) - 1, args)
        chosen[kind] += 1
        values[entry["name"]] = weight.astype(np.float32)
        values[entry["bias"]] = (entry["float_bias"] + bias).astype(np.float32).reshape(values[entry["bias"]].shape)
    taken = ", ".join(f"{count} {kind}" for kind, count in sorted(chosen.items()))
    print(f"| W{weight_bits}A{activation_bits} | {before} | {quality()} | {taken} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Rounding against the inputs that a quantized model gives.")
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "onnx-osplus"))
    parser.add_argument("--bits", nargs="+", default=["4,8", "4,4", "6,6", "8,8"], help="of weights, activations")
    parser.add_argument("--ridge", type=float, default=1.0, help="λ over the mean of the diagonal")
    parser.add_argument("--damping", type=float, default=0.25, help="the same for the error feedback")
    args = parser.parse_args()
    print("| MiniLM-L6 | the tool, dB (per token) | sequential | Linears |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="onnx-osplus-sequential-") as folder:
        folder = Path(folder)
        model = folder / "in.onnx"
        onnx.save(bars.minilm_l6(), model)
        rows = [measure.with_token_types(model, dict(np.load(REAL / f"{name}.npz"))) for name in ("calib", "heldout")]
        wanted = {value.name for value in onnx.load(model).graph.input}
        calibration, heldout = ({k: v[:96] for k, v in arrays.items() if k in wanted} for arrays in rows)
        for bits in args.bits:
            experiment(args, folder, model, bits, calibration, heldout)


if __name__ == "__main__":
    main()
