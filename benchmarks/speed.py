#!/usr/bin/env python3
"""CPU time of quantized models against their float original in ONNX Runtime.

    .venv/bin/python benchmarks/speed.py FLOAT.onnx INT8.onnx [INT8.onnx …] [--batch 1] [--tokens 128] [--rounds 30]
    .venv/bin/python benchmarks/speed.py FLOAT.onnx INT8.onnx INT8.onnx@SkipLayerNormFusion --fix batch=1 sequence=128

Process CPU time on one thread, not wall time: it does not depend on what else the machine does. The models take turns
within every round and the ratio is taken per round, so a slow moment hits all of them; the table shows the median of
the ratios with their quartiles. The last column counts Linears that run in int8 in the optimized graph.

A file with @ and names of optimizers of ONNX Runtime (separated by +) runs without these; `--fix` gives free dimensions of
the inputs a size before the graph is optimized. Inputs are token ids, masks, or floats whose sizes but the first are fixed.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

INT8_OPS = ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul")


def load(given, folder, fixed=None):
    """The session of `PATH` or `PATH@OPTIMIZER+…`, and how many int8 Linears it runs."""
    path, _, without = str(given).partition("@")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    for name, size in (fixed or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    dump = Path(folder) / "optimized.onnx"
    options.optimized_model_filepath = str(dump)
    without = {"disabled_optimizers": without.split("+")} if without else {}
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], **without)
    graph = onnx.load(dump, load_external_data=False).graph
    return session, sum(node.op_type in INT8_OPS for node in graph.node)


def feeds(session, batch, tokens):
    """Random token ids below 500, which every committed and fetched model has; masks of ones; other integers are zeros.
    Floats are of a normal distribution, as images are that a model wants normalized."""
    random, arrays = np.random.RandomState(0), {}
    for value in session.get_inputs():
        if value.type == "tensor(float)" and all(isinstance(size, int) for size in value.shape[1:]):
            arrays[value.name] = random.standard_normal((batch, *value.shape[1:])).astype(np.float32)
            continue
        if value.type != "tensor(int64)" or len(value.shape) != 2:
            wanted = "int64 [batch, sequence] or float [batch, sizes …]"
            sys.exit(f"input {value.name}: expected {wanted}, found {value.type} {value.shape}")
        make = {"input_ids": lambda s: random.randint(1, 500, s), "attention_mask": np.ones}.get(value.name, np.zeros)
        arrays[value.name] = make((batch, tokens)).astype(np.int64)
    return arrays


def cpu_seconds(session, arrays, repeats):
    start = time.process_time()
    for _ in range(repeats):
        session.run(None, arrays)
    return (time.process_time() - start) / repeats


def measure(models, arguments):
    """Per model its times, and how many int8 Linears it runs; the models take turns."""
    fixed = {name: int(size) for name, size in (f.split("=") for f in arguments.fix)}
    with tempfile.TemporaryDirectory() as folder:
        loaded = [load(model, folder, fixed) for model in models]
    arrays = [feeds(session, arguments.batch, arguments.tokens) for session, _ in loaded]
    for (session, _), inputs in zip(loaded, arrays):
        session.run(None, inputs)  # the first run allocates

    times = [[] for _ in models]
    for number in range(arguments.rounds):
        order = range(len(models)) if number % 2 == 0 else reversed(range(len(models)))
        for index in order:
            times[index].append(cpu_seconds(loaded[index][0], arrays[index], arguments.repeats))
    return times, [linears for _, linears in loaded]


def table(names, times, linears):
    """Rows of Markdown: the median of the ratios to the first model, with quartiles."""
    print("| model | CPU ms | speed-up | quartiles | int8 Linears |\n|---|---|---|---|---|")
    for name, taken, count in zip(names, times, linears):
        ratios = [base / mine for base, mine in zip(times[0], taken)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(f"| {name} | {1e3 * statistics.median(taken):.1f} | {middle:.2f} | {low:.2f}–{high:.2f} | {count} |")


def options(parser):
    """How long is measured, and with what."""
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3, help="inferences of each model in a round")
    parser.add_argument("--fix", metavar="NAME=SIZE", nargs="*", default=[], help="sizes of free dimensions")


def main():
    parser = argparse.ArgumentParser(description="CPU time of int8 models against the float one in ONNX Runtime.")
    parser.add_argument("float_model")
    parser.add_argument("int8_models", nargs="+")
    options(parser)
    args = parser.parse_args()

    models = [args.float_model, *args.int8_models]
    times, linears = measure(models, args)
    print(f"ONNX Runtime {ort.__version__}, 1 thread, batch {args.batch} × {args.tokens} tokens, {args.rounds} rounds\n")
    table([Path(model).name for model in models], times, linears)


if __name__ == "__main__":
    main()
