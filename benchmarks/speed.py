#!/usr/bin/env python3
"""CPU time of quantized models against their float original in ONNX Runtime.

    .venv/bin/python benchmarks/speed.py FLOAT.onnx INT8.onnx [INT8.onnx …] [--batch 1] [--tokens 128] [--rounds 30]

Process CPU time on one thread, not wall time: it does not depend on what else the machine does. The models take turns
within every round and the ratio is taken per round, so a slow moment hits all of them; the table shows the median of
the ratios with their quartiles. The last column counts Linears that run in int8 in the optimized graph.
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


def load(path, folder):
    """The session, and how many int8 Linears it runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    dump = Path(folder) / "optimized.onnx"
    options.optimized_model_filepath = str(dump)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(dump, load_external_data=False).graph
    return session, sum(node.op_type in INT8_OPS for node in graph.node)


def feeds(session, batch, tokens):
    """Random token ids below 500, which every committed and fetched model has; masks of ones; zeros elsewhere."""
    random, arrays = np.random.RandomState(0), {}
    for value in session.get_inputs():
        if value.type != "tensor(int64)" or len(value.shape) != 2:
            sys.exit(f"input {value.name}: expected int64 [batch, sequence], found {value.type} {value.shape}")
        make = {"input_ids": lambda s: random.randint(1, 500, s), "attention_mask": np.ones}.get(value.name, np.zeros)
        arrays[value.name] = make((batch, tokens)).astype(np.int64)
    return arrays


def cpu_seconds(session, arrays, repeats):
    start = time.process_time()
    for _ in range(repeats):
        session.run(None, arrays)
    return (time.process_time() - start) / repeats


def main():
    parser = argparse.ArgumentParser(description="CPU time of int8 models against the float one in ONNX Runtime.")
    parser.add_argument("float_model", type=Path)
    parser.add_argument("int8_models", type=Path, nargs="+")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3, help="inferences of each model in a round")
    args = parser.parse_args()

    paths = [args.float_model, *args.int8_models]
    with tempfile.TemporaryDirectory() as folder:
        loaded = [load(path, folder) for path in paths]
    arrays = [feeds(session, args.batch, args.tokens) for session, _ in loaded]
    for (session, _), inputs in zip(loaded, arrays):
        session.run(None, inputs)  # the first run allocates

    times = [[] for _ in paths]
    for number in range(args.rounds):
        order = range(len(paths)) if number % 2 == 0 else reversed(range(len(paths)))
        for index in order:
            times[index].append(cpu_seconds(loaded[index][0], arrays[index], args.repeats))

    print(f"ONNX Runtime {ort.__version__}, 1 thread, batch {args.batch} × {args.tokens} tokens, {args.rounds} rounds\n")
    print("| model | CPU ms | speed-up | quartiles | int8 Linears |\n|---|---|---|---|---|")
    for path, (_, linears), taken in zip(paths, loaded, times):
        ratios = [base / mine for base, mine in zip(times[0], taken)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(f"| {path.name} | {1e3 * statistics.median(taken):.1f} | {middle:.2f} | {low:.2f}–{high:.2f} | {linears} |")


if __name__ == "__main__":
    main()
