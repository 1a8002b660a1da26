#!/usr/bin/env python3
"""The blocks of a quantized model, one by one in ONNX Runtime: for files that are too large to be loaded whole.

    .venv/bin/python benchmarks/blocks.py in.onnx out.onnx calib.npz

Both files are cut where models/build_decoder.py ends a layer. Every block of both is run on what the float blocks before it give; a
second stream goes through the quantized blocks alone, so that the last row is the error of the whole. Printed are dB of the block
alone, dB of the stream, and the operators that ONNX Runtime runs in integers. One block at a time is in memory.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "python"))

import measure  # noqa: E402  (needs the path above)
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from onnx import helper  # noqa: E402


class Cut:
    """A model without its weights, of which parts become models that read the same file of weights."""

    def __init__(self, path):
        self.path = path
        self.model = onnx.load(path, load_external_data=False)
        graph = self.model.graph
        self.maker = {output: node for node in graph.node for output in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name: value for value in graph.input}
        self.order = {id(node): at for at, node in enumerate(graph.node)}

    def ends(self):
        """Where layers end: the last sum of each, in order, then the output."""
        last = {}
        for name in self.maker:
            if found := re.fullmatch(r"layers\.(\d+)/Add\w*_output_0", name):
                at = int(found[1])
                last[at] = max(last.get(at, name), name, key=lambda n: self.order[id(self.maker[n])])
        return [last[at] for at in sorted(last)] + [self.model.graph.output[0].name]

    def part(self, begin, end, kind, folder):
        """What computes `end` from `begin` and the inputs of the model, as a session. `kind` is the element type of `begin`."""
        nodes, constants, inputs, stack = {}, {}, {}, [end]
        while stack:
            name = stack.pop()
            if name == begin or not name:
                continue
            if name in self.constants:
                constants[name] = self.constants[name]
            elif name in self.inputs:
                inputs[name] = self.inputs[name]
            elif id(node := self.maker[name]) not in nodes:
                nodes[id(node)] = node
                stack.extend(node.input)
        stated = [*inputs.values()]
        if begin:
            stated.append(helper.make_tensor_value_info(begin, kind, None))
        ordered = sorted(nodes.values(), key=lambda node: self.order[id(node)])
        output = helper.make_tensor_value_info(end, kind, None)
        output.ClearField("type")
        graph = helper.make_graph(ordered, "part", stated, [output], list(constants.values()))
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        # External data lie beside the file that names them.
        with tempfile.NamedTemporaryFile(dir=self.path.parent, suffix=".onnx") as file:
            onnx.save(model, file.name)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.optimized_model_filepath = str(folder / "optimized.onnx")
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
            session = ort.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
        fused = onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node
        return session, Counter(node.op_type for node in fused)


def run(session, end, begin, value, feeds):
    wanted = {entry.name for entry in session.get_inputs()}
    given = {name: array for name, array in feeds.items() if name in wanted}
    if begin:
        given[begin] = value
    return session.run([end], given)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("quantized", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=1)
    arguments = parser.parse_args()
    feeds = {name: array[: arguments.rows] for name, array in np.load(arguments.data).items()}
    float_model, quantized = Cut(arguments.model), Cut(arguments.quantized)
    ends = float_model.ends()
    if missing := [end for end in ends if end not in quantized.maker]:
        raise SystemExit(f"{arguments.quantized} does not compute {missing[0]}")
    print("| block | dB alone | dB so far | in integers | float MatMul |\n|---|---|---|---|---|")
    begin, stream, carried, kind = None, None, None, onnx.TensorProto.FLOAT
    for at, end in enumerate(ends):
        with tempfile.TemporaryDirectory(dir=arguments.quantized.parent, prefix="onnx-osplus-blocks-") as folder:
            session, _ = float_model.part(begin, end, kind, Path(folder))
            reference = run(session, end, begin, stream, feeds)
            del session
            session, ops = quantized.part(begin, end, kind, Path(folder))
            alone = run(session, end, begin, stream, feeds)
            carried = run(session, end, begin, carried, feeds)
            del session
        integers = {op: count for op, count in ops.items() if "Integer" in op or op.startswith(("QLinear", "QGemm"))}
        label = "output" if at == len(ends) - 1 else at
        shown = ", ".join(f"{count} {op}" for op, count in sorted(integers.items())) or "none"
        own, so_far = (measure.sqnr(reference, output) for output in (alone, carried))
        print(f"| {label} | {own:.1f} | {so_far:.1f} | {shown} | {ops['MatMul']} |", flush=True)
        begin, stream, kind = end, reference, helper.np_dtype_to_tensor_dtype(reference.dtype)


if __name__ == "__main__":
    main()
