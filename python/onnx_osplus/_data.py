"""Files of whatever is calibration data: what the command line's `--calib` reads."""

import itertools
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

# Rows that are taken of an iterable where nobody says how many: ranges change little with more, and all are in memory.
ROWS = 512


def sources(calibration, inputs, folder, samples=None, labelled=False):
    """The words behind `--calib` for the data, and whether `samples` was used up.

    `inputs` are name, type and shape of the model's inputs; what is in memory is written to `folder`. Rows that are `labelled` keep
    what may be a label.
    """
    if is_path(calibration):
        return [os.fspath(calibration)], False
    if isinstance(calibration, Mapping):
        if calibration and all(is_path(value) for value in calibration.values()):
            return [f"{name}={os.fspath(path)}" for name, path in calibration.items()], False
        return arrays([calibration], inputs, folder, None), False
    if isinstance(calibration, (list, tuple)) and calibration:
        if all(is_path(item) and exists(item) for item in calibration):
            return [os.fspath(item) for item in calibration], False
        if all(isinstance(item, str) for item in calibration):
            return [text(calibration, folder)], False
    items = iterate(calibration)
    first = next(items, None)
    if first is None:
        raise ValueError("the calibration data holds nothing")
    items = itertools.chain([first], items)
    if is_text(first, inputs):
        return [text(itertools.islice(items, samples or 100 * ROWS), folder, labelled)], False
    return arrays(items, inputs, folder, samples), True


def is_path(value):
    return isinstance(value, (str, os.PathLike))


def exists(value):
    """Whether a path, or that of `NAME=PATH`, is there."""
    value = os.fspath(value)
    try:
        return os.path.exists(value) or ("=" in value and os.path.exists(value.split("=", 1)[1]))
    except ValueError:
        return False


def iterate(calibration):
    """The items of an iterable, or of a CalibrationDataReader of ONNX Runtime."""
    if hasattr(calibration, "get_next"):
        yield from iter(calibration.get_next, None)
        if hasattr(calibration, "rewind"):
            # As it came, for who reads it next.
            try:
                calibration.rewind()
            except NotImplementedError:
                pass
        return
    try:
        items = iter(calibration)
    except TypeError:
        raise TypeError(
            "calibration data is a path, texts, arrays by input, an iterable of them, or a CalibrationDataReader, "
            f"not {type(calibration).__name__}"
        ) from None
    yield from items


def is_text(item, inputs):
    """Whether an item is text, or a row of a table with text and without the model's inputs."""
    if isinstance(item, str):
        return True
    names = {name for name, _, _ in inputs}
    return isinstance(item, Mapping) and not names & set(item) and any(isinstance(v, str) for v in item.values())


def text(items, folder, labelled=False):
    """A file of texts, or of the columns with text, and with labels if they are wanted."""
    kinds = (str, bool, int, float) if labelled else str
    path = Path(folder) / "texts.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            if isinstance(item, Mapping):
                item = {name: value for name, value in item.items() if isinstance(value, kinds)}
            file.write(json.dumps(item) + "\n")
    return os.fspath(path)


def arrays(items, inputs, folder, samples):
    """Files of arrays: items that can be one table are one. They are read in this order."""
    import numpy as np

    most = samples or ROWS
    tables, rows, cut = {}, 0, False
    for number, item in enumerate(items):
        if rows >= most:
            cut = samples is None
            break
        item = {name: as_array(value) for name, value in by_input(item, inputs).items()}
        item, count = with_rows(item, inputs)
        if count is None:
            # No common axis of rows: a run of its own.
            tables[number] = [item]
            rows += 1
            continue
        if samples is not None and rows + count > most:
            count = most - rows
            item = {name: array[:count] for name, array in item.items()}
        key = tuple((name, array.dtype.str, array.shape[1:]) for name, array in sorted(item.items()))
        tables.setdefault(key, []).append(item)
        rows += count
    if cut:
        warnings.warn(f"the first {rows} rows of the calibration data are used; samples=N asks for N", stacklevel=4)
    folder = Path(folder) / "arrays"
    folder.mkdir()
    for number, table in enumerate(tables.values()):
        whole = {name: np.concatenate([item[name] for item in table]) if len(table) > 1 else table[0][name] for name in table[0]}
        np.savez(folder / f"table-{number:06}.npz", **whole)
    return [os.fspath(folder)]


def by_input(item, inputs):
    """Values by input: of a mapping those that the model has, of a tuple by position."""
    names = [name for name, _, _ in inputs]
    if isinstance(item, Mapping):
        found = {name: item[name] for name in names if name in item}
        if not found:
            raise ValueError(f"the calibration data has {', '.join(map(str, item))}; the model's inputs are {', '.join(names)}")
        return found
    if isinstance(item, (tuple, list)) and not all(isinstance(value, (int, float)) for value in item):
        return dict(zip(names, item))
    return {names[0]: item}


def as_array(value):
    """A NumPy array of a tensor, an array, or numbers."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "biuf":
        if array.dtype.name == "bfloat16":
            return array.astype(np.float32)
        raise ValueError(f"calibration data is numbers, not {array.dtype} of shape {array.shape}")
    return array


def with_rows(item, inputs):
    """An item with an axis of rows in front, and how many; `None` where its arrays have none in common."""
    shapes = {name: shape for name, _, shape in inputs}
    ranked = [(name, array) for name, array in item.items() if shapes[name] is not None]
    # A row by itself, as a dataset gives it.
    if ranked and all(array.ndim == len(shapes[name]) - 1 for name, array in ranked):
        item = {name: array[None] for name, array in item.items()}
    fixed = any(shapes[name] and isinstance(shapes[name][0], int) and shapes[name][0] != 1 for name in item)
    counts = {array.shape[0] if array.ndim else None for array in item.values()}
    symbols = {str(shapes[name][0]) if shapes[name] else None for name in item}
    if fixed or len(counts) != 1 or counts == {None} or len(symbols - {"None"}) > 1:
        return item, None
    return item, counts.pop()
