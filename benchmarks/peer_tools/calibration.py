"""Calibration data as the peers take it: one dictionary of NumPy arrays per run of the model."""

import numpy as np
import onnx


def input_names(graph):
    """Names of the graph inputs that need data: initializers listed as inputs (old files) do not."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def batches(model, path, padded=False):
    """[{input: array}] from an .npz of the inputs; token_type_ids are zeros.

    Rows one by one, cut to their own length, because the peers do not know that padding is no data: with padded rows
    their ranges cover tokens that no user reads, which costs them 0.2 dB on MiniLM-L6. padded: 8 rows at a time as they
    are, for tools that stack the batches.
    """
    names = input_names(onnx.load(model, load_external_data=False).graph)
    arrays = dict(np.load(path))
    rows = len(next(iter(arrays.values())))
    if "input_ids" in arrays:
        arrays.setdefault("token_type_ids", np.zeros_like(arrays["input_ids"]))
    if padded:
        return [{n: arrays[n][i : i + 8] for n in names} for i in range(0, rows, 8)]
    if "attention_mask" not in arrays:  # images, or a decoder whose padding is of the encoder's output
        return [{n: arrays[n][i : i + 1] for n in names} for i in range(rows)]
    lengths = arrays["attention_mask"].sum(axis=1)
    return [{n: arrays[n][i : i + 1, :length] for n in names} for i, length in enumerate(lengths)]


class Reader:
    """What ONNX Runtime and its relatives call a calibration data reader."""

    def __init__(self, model, path, padded=False):
        self.batches = batches(model, path, padded)
        self.rewind()

    def rewind(self):
        self.remaining = iter(self.batches)

    def get_next(self):
        return next(self.remaining, None)

    def get_first(self):
        return self.batches[0]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def not_linear(model):
    """Names of the MatMuls of two activations (attention), which a list of op types alone cannot leave out."""
    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
