"""Data for the inputs of the exports of models/architectures, for the script that makes them, tests and benchmarks."""

import numpy as np


def arrays(specs, rows, seed):
    """Data for inputs as table.json specifies them, the same on every machine."""
    random = np.random.RandomState(seed)
    made = {}
    for spec in specs:
        shape = [rows if d == "batch" else d for d in spec["shape"]]
        if spec["kind"] == "ids":
            a = random.randint(spec["low"], spec["high"], shape)
        elif spec["kind"] == "mask":
            a = np.ones(shape)
            for row in range(2, rows, 3):  # every third row is padded at its end
                a[row, shape[1] - 1 - (5 * row) % 8 :] = 0
        elif spec["kind"] == "zeros":
            a = np.zeros(shape)
        elif spec["kind"] == "bool":
            a = np.full(shape, spec["value"])
        else:
            # Nearly Gaussian, from integers alone.
            a = random.randint(-1024, 1025, [6, *shape]).sum(axis=0) / (1024 * 2**0.5)
            for channel, factor in spec.get("outliers", {}).items():
                a[..., int(channel)] = abs(a[..., int(channel)]) * factor
        made[spec["name"]] = a.astype(spec["dtype"])
    return made
