"""Time and memory of `onnx-osplus diff` on a pair of 537 MB models of which every weight differs.

    .venv/bin/python benchmarks/diff.py [BINARY]        (default: target/release/onnx-osplus)
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
LAYERS, SHAPE, RUNS = 32, (1024, 4096), 5


def write(path, added):
    random, nodes, weights, value = np.random.default_rng(0), [], [], "x"
    for i in range(LAYERS):
        name = f"encoder.layer.{i}.ffn.up.weight"
        weights.append(numpy_helper.from_array(random.standard_normal(SHAPE, dtype=np.float32) + np.float32(added), name))
        path_of = f"/encoder/layer.{i}/ffn"
        nodes.append(helper.make_node("MatMul", [value, name], [f"{path_of}/up_out"], name=f"{path_of}/up/MatMul"))
        nodes.append(helper.make_node("Slice", [f"{path_of}/up_out", "zero", "width", "last"], [f"{path_of}/out"], name=f"{path_of}/Slice"))
        value = f"{path_of}/out"
    for name, number in (("zero", 0), ("width", SHAPE[0]), ("last", -1)):
        weights.append(numpy_helper.from_array(np.array([number]), name))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", SHAPE[0]]) for n in ("x", value)]
    graph = helper.make_graph(nodes, "large", info[:1], info[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main():
    tool = sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/onnx-osplus"
    with tempfile.TemporaryDirectory() as folder:
        pair = [Path(folder) / name for name in ("a.onnx", "b.onnx")]
        for path, added in zip(pair, (0, 1e-3)):
            write(path, added)
        times = []
        for _ in range(RUNS):
            start, before = time.perf_counter(), os.times()
            subprocess.run([tool, "diff", *pair], check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            times.append((time.perf_counter() - start, cpu))
        wall, cpu = (sorted(t)[RUNS // 2] for t in zip(*times))
        print(f"2 × {pair[0].stat().st_size / 1e6:.0f} MB: {wall:.2f} s wall, {cpu:.2f} s CPU (medians of {RUNS} runs)")


main()
